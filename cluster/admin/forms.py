"""The forms of the cluster's pages. What they refuse, and in which words, is what the API refuses."""

from __future__ import annotations

from typing import Any

from django import forms
from django.forms.models import construct_instance

from cluster.models import Replica
from vectors.admin.forms import RefusingForm, TextField
from vectors.errors import MLVectorDBError
from vectors.models import ShardHead

#: Names of the API's parameters → names of the form's fields.
_FIELDS = {"replica_id": "name", "replica_url": "url", "shard_id": "shard"}


class ReplicaForm(RefusingForm, forms.ModelForm):
    """A replica to add. `refusal` is why the service did not take the very same form a moment before."""

    refusal: MLVectorDBError | None = None

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

    def clean(self) -> dict[str, Any]:
        """Show what the service has refused; it checks everything."""
        data = super().clean() or self.cleaned_data
        if self.refusal is not None:
            self.add_error(_FIELDS.get(self.refusal.field or ""), self.refusal.message)
        return data

    def _post_clean(self) -> None:
        # The table's constraints are left to the service, which refuses the same in the API's words.
        self.instance = construct_instance(self, self.instance, self._meta.fields)


class PauseForm(forms.ModelForm):
    """What may be changed of a replica: whether anything is sent to it."""

    class Meta:
        model = Replica
        fields = ("paused",)


class ForceForm(forms.Form):
    """The confirmation of a removal or promotion."""

    force = forms.BooleanField(required=False, label="By force")
