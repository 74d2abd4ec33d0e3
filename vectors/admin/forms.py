"""The forms of the namespace pages. What they refuse, and in which words, is what the API refuses."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np
import orjson
from django import forms
from django.conf import settings
from django.forms.models import construct_instance

from mlvdb_site.http.errors import RequestError
from vectors.engine.ids import key_of_text
from vectors.errors import InvalidInput, MLVectorDBError
from vectors.models import Namespace
from vectors.names import checked_namespace
from vectors.query_processor.parsing import filter_of
from vectors.selectors import namespaces_alive

T = TypeVar("T")

PAGE_SIZES = (25, 50, 100, 250)
DEFAULT_TOP_K = 10
MAX_TOP_K = 250
STRING_ID = "string"
"""The value of `id_type` that reads an id of digits as a string."""


class RefusingForm(forms.BaseForm):
    """A form whose errors may come from the code that the API calls too."""

    def refuse(self, refusal: MLVectorDBError | RequestError, *, fallback: str | None = None) -> None:
        """Show a refusal beside the field it names; beside `fallback`, or above the form, when it names none here."""
        path = refusal.field or ""
        name, dot, inside = path.partition(".")
        message = f"{inside}: {refusal.message}" if dot else refusal.message
        self.add_error(name if name in self.fields else fallback, message)

    def read(self, name: str, reader: Callable[[], T]) -> T | None:
        """Return what `reader` reads from the field `name`; None, with its refusal beside the field, when it cannot."""
        try:
            return reader()
        except (MLVectorDBError, RequestError) as refusal:
            self.refuse(refusal, fallback=name)
            return None


class NamespaceForm(RefusingForm, forms.ModelForm):
    """A namespace to make or change. `refusal` is why the service did not take the very same form a moment before."""

    refusal: MLVectorDBError | None = None

    class Meta:
        model = Namespace
        fields = ("name", "dimension", "metric", "recall_target", "picture")

    def clean(self) -> dict[str, Any]:
        """Check what needs no lock; the service checks the rest when it saves."""
        data = super().clean() or self.cleaned_data
        name = data.get("name")
        if name is not None:
            self.read("name", lambda: checked_namespace(name, field="name"))
            if namespaces_alive().filter(name=name).exists():
                self.add_error("name", f"There is a namespace {name} already.")
        if self.refusal is not None:
            self.refuse(self.refusal)
        return data

    def _post_clean(self) -> None:
        # The table's constraints are left to the service, which refuses the same in the API's words.
        self.instance = construct_instance(self, self.instance, self._meta.fields)


class TextField(forms.Field):
    """Text as it was sent: ids may hold spaces, and anything else."""

    def to_python(self, value: str | None) -> str:
        """Return the text."""
        return value or ""


class FilterField(TextField):
    """A filter as the API takes it: JSON."""

    def __init__(self) -> None:
        super().__init__(
            required=False,
            widget=forms.Textarea(attrs={"rows": 1, "placeholder": '{"price__lt": 10}', "spellcheck": "false"}),
        )


class RowsForm(RefusingForm, forms.Form):
    """What browsing and searching have in common: a filter, and an id with its type."""

    id_field = "id"

    filter = FilterField()
    id_type = forms.BooleanField(
        required=False, label="a string", widget=forms.CheckboxInput(attrs={"value": STRING_ID})
    )

    def clean(self) -> dict[str, Any]:
        """Read filter and id: `key` and `condition` in the cleaned data."""
        data = super().clean() or self.cleaned_data
        text, id_text = data.get("filter", ""), data.get(self.id_field, "")
        data["condition"] = (
            self.read("filter", lambda: filter_of(_json(text, field="filter"))) if text.strip() else None
        )
        as_string = bool(data.get("id_type"))
        data["key"] = self.read(self.id_field, lambda: key_of_text(id_text, as_string=as_string)) if id_text else None
        return data


class BrowseForm(RowsForm):
    """A page of rows in id order."""

    id_field = "after"

    limit = forms.TypedChoiceField(
        choices=[(size, str(size)) for size in PAGE_SIZES],
        coerce=int,
        required=False,
        empty_value=PAGE_SIZES[0],  # type: ignore[arg-type]
        label="rows",
    )
    after = TextField(required=False, label="after id")

    field_order = ("after", "id_type", "filter", "limit")


class SearchForm(RowsForm):
    """The rows most similar to one of them, or to a vector."""

    id = TextField(required=False, label="like id")
    query = TextField(
        required=False,
        label="or vector",
        widget=forms.Textarea(attrs={"rows": 1, "placeholder": "[0.12, -0.5, …]", "spellcheck": "false"}),
    )
    top_k = forms.IntegerField(required=False, min_value=1, max_value=MAX_TOP_K, initial=DEFAULT_TOP_K, label="rows")
    metric = forms.ChoiceField(
        required=False, choices=[("", "the namespace's own"), *Namespace.Metric.choices], label="by"
    )

    field_order = ("id", "id_type", "query", "top_k", "metric", "filter")

    def clean(self) -> dict[str, Any]:
        """Read the query vector: `vector` in the cleaned data."""
        data = super().clean()
        text = data.get("query", "")
        data["vector"] = self.read("query", lambda: vector_of(text)) if text.strip() else None
        data["top_k"] = data.get("top_k") or DEFAULT_TOP_K
        if not self.errors:
            if data["key"] is None and data["vector"] is None:
                self.add_error("id", "Give an id or a vector.")
            elif data["key"] is not None and data["vector"] is not None:
                self.add_error("query", "Give an id or a vector, not both.")
        return data


def vector_of(text: str) -> np.ndarray:
    """Return the vector in a JSON text as (d,) float32, finite; raise InvalidInput."""
    values = _json(text, field="query")
    if type(values) is not list or not values:
        raise InvalidInput("a vector is a list of numbers", field="query")
    if len(values) > settings.MLVDB_MAX_DIMENSION:
        raise InvalidInput(f"a vector has at most {settings.MLVDB_MAX_DIMENSION} numbers", field="query")
    for position, value in enumerate(values):
        if type(value) not in (int, float):
            raise InvalidInput(f"entry {position} must be a number, got {type(value).__name__}", field="query")
    with np.errstate(over="ignore"):
        vector = np.asarray(values, dtype=np.float64).astype(np.float32)
    if not np.isfinite(vector).all():
        raise InvalidInput(f"entry {int(np.argmin(np.isfinite(vector)))} is beyond float32", field="query")
    return vector


def _json(text: str, *, field: str) -> Any:
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError as error:
        raise InvalidInput(f"not valid JSON: {error}", field=field) from None
