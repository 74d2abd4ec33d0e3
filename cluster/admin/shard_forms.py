"""The forms of the shard pages. What they refuse, and in which words, is what the API refuses."""

from __future__ import annotations

from typing import Any

from django import forms
from django.conf import settings

from cluster.admin.forms import RegisteredForm
from cluster.models import Shard
from vectors.admin.forms import TextField


class ShardChangeForm(RegisteredForm):
    """What may be changed of a shard."""

    weight = forms.FloatField(
        initial=1.0,
        help_text="Its share of the slots, compared with the other shards' weights. Nothing moves before a rebalance.",
        widget=forms.NumberInput(attrs={"step": "any", "min": "0"}),
    )
    auto_failover = forms.BooleanField(
        required=False,
        initial=lambda: settings.MLVDB_AUTO_FAILOVER,
        label="Fails over by itself",
        help_text="When its node is dead, a replica of it that is in sync takes its place. A shard on this node has"
        " none of its own.",
    )

    class Meta:
        model = Shard
        fields = ("weight", "auto_failover")


class ShardForm(ShardChangeForm):
    """A shard to add."""

    field_of = {"shard_id": "label", "shard_url": "url"}

    label = forms.CharField(
        label="Shard id", help_text="A name for it: letters, digits, dots, hyphens and underscores."
    )
    url = TextField(
        required=False,
        label="URL",
        help_text="Where the empty node is that becomes this shard, such as http://10.0.0.5:8000. Empty: a shard on"
        " this node, with an engine, a log and an index of its own.",
        widget=forms.TextInput(attrs={"class": "vTextField", "inputmode": "url", "spellcheck": "false"}),
    )
    rebalance = forms.BooleanField(
        required=False,
        initial=True,
        label="Fill it now",
        help_text="Moves its share of the slots to it, while reads and writes go on. Otherwise it stays empty until a"
        " rebalance.",
    )

    class Meta:
        model = Shard
        fields = ("label", "url", "weight", "auto_failover")


class TargetForm(forms.Form):
    """Where all slots of a shard are to go."""

    target = forms.ChoiceField(label="To shard")

    def __init__(self, targets: list[str], *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        choice = self.fields["target"]
        assert isinstance(choice, forms.ChoiceField)
        choice.choices = [("", "choose"), *((label, label) for label in targets)]
