"""Rows of the registry as people change them: by the services that the API calls, with the same rules and refusals.

Django's admin wraps a change in one transaction; a change of the registry is a durable transaction of its own, with
calls to other nodes after it. So the views below run without one, and the history row follows what was done.
"""

from __future__ import annotations

from typing import Any

from django import forms
from django.contrib import admin, messages
from django.db.models import QuerySet
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.utils.decorators import method_decorator
from django.views.decorators.csrf import csrf_protect

from cluster.admin.live import LiveAdmin
from cluster.admin.operated import refused
from vectors.errors import MLVectorDBError

_REFUSAL = "_refusal"
_KNOWN = "_was_known"


class RegisteredAdmin(LiveAdmin):
    """Rows that are added, changed and checked; `facts` of one that is there are fixed."""

    facts: tuple[str, ...] = ()
    add_form: type[forms.BaseForm]
    change_form: type[forms.BaseForm]
    known_words = ""
    """What is said when the very same one was there already."""

    def check_now(self, row: Any) -> bool:
        """Probe its node; return whether it has answered as it should. Raise what the service refuses with."""
        raise NotImplementedError

    def get_actions(self, request: HttpRequest) -> dict[str, Any]:
        """Leave out Django's deletion: an action of our own says what it means."""
        actions = super().get_actions(request)
        actions.pop("delete_selected", None)
        return actions

    def get_readonly_fields(self, request: HttpRequest, obj: Any = None) -> tuple[str, ...]:
        """What it was registered with is fixed: remove it, and add another."""
        return () if obj is None else self.facts

    def get_form(self, request: HttpRequest, obj: Any = None, change: bool = False, **kwargs: Any) -> Any:
        """Return the form, with the refusal of the service when there was one to this very request."""
        kwargs["form"] = self.add_form if obj is None else self.change_form
        form: Any = super().get_form(request, obj, change, **kwargs)
        form.refusal = getattr(request, _REFUSAL, None)
        return form

    @method_decorator(csrf_protect)
    def changeform_view(
        self,
        request: HttpRequest,
        object_id: str | None = None,
        form_url: str = "",
        extra_context: dict[str, Any] | None = None,
    ) -> Any:
        """Add or change; a refusal of the service comes back as an error of the form."""
        context = {**(extra_context or {}), "show_save_and_add_another": False, "show_save_and_continue": False}
        try:
            return self._changeform_view(request, object_id, form_url, context)  # type: ignore[attr-defined]
        except MLVectorDBError as refusal:
            setattr(request, _REFUSAL, refusal)
            return self._changeform_view(request, object_id, form_url, context)  # type: ignore[attr-defined]

    def take_over(self, request: HttpRequest, obj: Any, made: Any, *, is_new: bool) -> None:
        """Make the row of a form the one that the service has written, or found."""
        obj.__dict__.update(made.__dict__)
        setattr(obj, _KNOWN, not is_new)
        if is_new and made.last_error:
            messages.warning(
                request, f"Its node does not answer yet, and is asked again every few seconds: {made.last_error}"
            )

    def log_addition(self, request: HttpRequest, obj: Any, message: Any) -> Any:
        """Write nothing when it was there already."""
        return None if getattr(obj, _KNOWN, False) else super().log_addition(request, obj, message)

    def response_add(self, request: HttpRequest, obj: Any, post_url_continue: str | None = None) -> HttpResponse:
        """Go to the list; say so when nothing was added."""
        if getattr(obj, _KNOWN, False):
            messages.info(request, f"{self._named(obj)} {self.known_words}: nothing has changed.")
            return self.to_list()
        return super().response_add(request, obj, post_url_continue)

    @admin.action(description="Check health now", permissions=["view"])
    def check_health(self, request: HttpRequest, queryset: QuerySet[Any]) -> None:
        """Probe; a probe is a sample for the failure detector too."""
        for row in queryset:
            name = self._named(row)
            try:
                answered = self.check_now(row)
            except MLVectorDBError as refusal:
                refused(request, refusal, subject=name)
                continue
            if answered:
                messages.success(request, f"{name} has answered as it should.")
            else:
                row.refresh_from_db()
                messages.error(request, f"{name} has not answered as it should: {row.last_error}")

    def to_page_of_one(
        self, request: HttpRequest, queryset: QuerySet[Any], page: str, *, otherwise: str
    ) -> HttpResponse | None:
        """Go to a page of the one row that was chosen; say `otherwise` when it was not one."""
        chosen = list(queryset[:2])
        if len(chosen) != 1:
            messages.error(request, otherwise)
            return None
        return HttpResponseRedirect(self.view_url(page, chosen[0].pk))

    def _named(self, row: Any) -> str:
        return f"{str(self.opts.verbose_name).capitalize()} {row}"
