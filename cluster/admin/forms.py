"""The forms of the cluster's pages. What they refuse, and in which words, is what the API refuses."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from django import forms
from django.forms.models import construct_instance

from cluster.models import Replica
from vectors.admin.forms import RefusingForm, TextField
from vectors.errors import MLVectorDBError
from vectors.models import ShardHead


class RegisteredForm(RefusingForm, forms.ModelForm):
    """A row of the registry. `refusal` is why the service did not take the very same form a moment before."""

    refusal: MLVectorDBError | None = None

    field_of: Mapping[str, str] = {}
    """Names of the API's parameters → names of the form's fields, where they differ."""

    def clean(self) -> dict[str, Any]:
        """Show what the service has refused; it checks everything."""
        data = super().clean() or self.cleaned_data
        if self.refusal is not None:
            field = self.refusal.field or ""
            name = self.field_of.get(field, field)
            self.add_error(name if name in self.fields else None, self.refusal.message)
        return data

    def _post_clean(self) -> None:
        # The table's constraints are left to the service, which refuses the same in the API's words.
        self.instance = construct_instance(self, self.instance, self._meta.fields)


class ReplicaForm(RegisteredForm):
    """A replica to add."""

    field_of = {"replica_id": "name", "replica_url": "url", "shard_id": "shard"}

    name = forms.CharField(
        label="Replica id", help_text="A name for it: letters, digits, dots, hyphens and underscores."
    )
    url = TextField(
        label="URL",
        help_text="Where its node is reached from here, such as http://10.0.0.5:8000. It may not be up yet.",
        widget=forms.TextInput(attrs={"class": "vTextField", "inputmode": "url", "spellcheck": "false"}),
    )
    shard = forms.ChoiceField(required=False, help_text="What it keeps copies of.")

    class Meta:
        model = Replica
        fields = ("name", "url", "shard")

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        heads = ShardHead.objects.filter(is_primary=True).values_list("uid", "label")
        choice = self.fields["shard"]
        assert isinstance(choice, forms.ChoiceField)
        choice.choices = [("", "all shards of this node"), *((uid, f"only {label}") for uid, label in heads)]


class PauseForm(RegisteredForm):
    """What may be changed of a replica: whether anything is sent to it."""

    class Meta:
        model = Replica
        fields = ("paused",)


class ForceForm(forms.Form):
    """The confirmation of a removal or promotion."""

    force = forms.BooleanField(required=False, label="By force")
