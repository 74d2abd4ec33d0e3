"""Admin of the site's own rows: API keys, and what is known of background processes."""

from __future__ import annotations

from typing import Any

from django import forms
from django.contrib import admin, messages
from django.contrib.admin.helpers import ACTION_CHECKBOX_NAME
from django.db.models import QuerySet
from django.http import HttpRequest, HttpResponse
from django.template.response import TemplateResponse
from django.utils.html import format_html

from mlvdb_site import keys
from mlvdb_site.models import ApiKey, ProcessHeartbeat, Scope


class ApiKeyForm(forms.ModelForm):
    """Name and scopes; the rest of a key is made."""

    scopes = forms.MultipleChoiceField(choices=Scope.choices, widget=forms.CheckboxSelectMultiple, initial=["read"])

    class Meta:
        model = ApiKey
        fields = ("name", "scopes")


@admin.register(ApiKey)
class ApiKeyAdmin(admin.ModelAdmin):
    """Keys are made, changed and revoked, never deleted: what one did stays attributable."""

    form = ApiKeyForm
    list_display = ("name", "prefix", "scope_list", "state", "last_used_at", "created_at", "created_by")
    list_select_related = ("created_by",)
    search_fields = ("name", "prefix")
    actions = ("revoke",)
    readonly_fields = ("prefix", "state", "created_at", "created_by", "last_used_at", "revoked_at")

    @admin.display(description="scopes")
    def scope_list(self, key: ApiKey) -> str:
        """Return the scopes in words."""
        return ", ".join(key.scopes)

    @admin.display(description="state")
    def state(self, key: ApiKey) -> str:
        """Return whether the key opens anything."""
        return "revoked" if key.revoked_at else "active"

    def get_fields(self, request: HttpRequest, obj: ApiKey | None = None) -> Any:
        """Ask a new key for nothing but its name and scopes."""
        return ("name", "scopes") if obj is None else ("name", "scopes", *self.readonly_fields)

    def has_change_permission(self, request: HttpRequest, obj: ApiKey | None = None) -> bool:
        """A revoked key stays as it was."""
        return super().has_change_permission(request, obj) and (obj is None or obj.revoked_at is None)

    def has_delete_permission(self, request: HttpRequest, obj: ApiKey | None = None) -> bool:
        """Never: revoke instead."""
        return False

    def save_model(self, request: HttpRequest, obj: ApiKey, form: Any, change: bool) -> None:
        """Change the key, or make it and show its text, this once."""
        if change:
            keys.key_change(obj, name=obj.name, scopes=form.cleaned_data["scopes"])
            return
        made, text = keys.key_create(
            name=obj.name,
            scopes=form.cleaned_data["scopes"],
            created_by=request.user,  # type: ignore[arg-type]
        )
        obj.__dict__.update(made.__dict__)
        self.message_user(
            request,
            format_html("The key <code>{}</code> is shown only now: copy it.", text),
            level=messages.WARNING,
        )

    @admin.action(description="Revoke selected API keys", permissions=["change"])
    def revoke(self, request: HttpRequest, queryset: QuerySet[ApiKey]) -> HttpResponse | None:
        """Ask, then end the keys for good."""
        if request.POST.get("confirmed"):
            revoked = [key for key in queryset if keys.key_revoke(key)]
            for key in revoked:
                self.log_change(request, key, "Revoked.")
            self.message_user(request, f"Revoked {len(revoked)} API key{'' if len(revoked) == 1 else 's'}.")
            return None
        living = ApiKey.objects.filter(revoked_at=None)
        return TemplateResponse(
            request,
            "admin/mlvdb_site/apikey/revoke.html",
            {
                **self.admin_site.each_context(request),
                "title": "Revoke API keys",
                "opts": self.model._meta,
                "keys": queryset,
                "action_checkbox_name": ACTION_CHECKBOX_NAME,
                "leaves_none": not living.exclude(pk__in=[key.pk for key in queryset]).exists(),
            },
        )


@admin.register(ProcessHeartbeat)
class ProcessHeartbeatAdmin(admin.ModelAdmin):
    """Signs of life, read-only."""

    list_display = ("name", "node", "owner", "seen_at", "beats")
    list_filter = ("node",)

    def get_queryset(self, request: HttpRequest) -> QuerySet[ProcessHeartbeat]:
        """All rows, newest first."""
        return super().get_queryset(request).order_by("-seen_at")

    def has_add_permission(self, request: HttpRequest) -> bool:
        """Written by the processes alone."""
        return False

    def has_change_permission(self, request: HttpRequest, obj: ProcessHeartbeat | None = None) -> bool:
        """Written by the processes alone."""
        return False

    def has_delete_permission(self, request: HttpRequest, obj: ProcessHeartbeat | None = None) -> bool:
        """Written by the processes alone."""
        return False
