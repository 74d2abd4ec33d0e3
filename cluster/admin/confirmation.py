"""The page between asking for a change and doing it: what it means, its plan, and whether by force."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from django.contrib.admin import ModelAdmin
from django.http import HttpRequest
from django.template.response import TemplateResponse
from django.utils.safestring import SafeString

from cluster.admin.consequences import ShardConsequences
from cluster.admin.forms import ForceForm


@dataclass(frozen=True, slots=True)
class Confirmation:
    """What the page says. `steps` is what will happen, `refusals` what came of the last attempt.

    `shards` is what it means for the members of each, `plan` what moves; `force_risks` is what force may cost, and
    where there is none nothing is asked about it. Without `is_possible` there is no button.
    """

    title: str
    button: str
    back: str
    steps: Sequence[str]
    refusals: Sequence[str]
    shards: Sequence[ShardConsequences] = ()
    plan: SafeString | str = ""
    force_risks: Sequence[str] = ()
    is_possible: bool = True


def wants_force(request: HttpRequest) -> bool:
    """Whether the person has ticked the box."""
    form = ForceForm(request.POST)
    return form.is_valid() and form.cleaned_data["force"]


def confirmation_page(model_admin: ModelAdmin, request: HttpRequest, confirmation: Confirmation) -> TemplateResponse:
    """Return the page; sent again, it shows why the service has refused, with the numbers of now."""
    context = {
        **model_admin.admin_site.each_context(request),
        "title": confirmation.title,
        "subtitle": None,
        "opts": model_admin.opts,
        "media": model_admin.media,
        "confirmation": confirmation,
        "force_form": ForceForm(),
    }
    return TemplateResponse(request, "admin/cluster/confirmation.html", context)
