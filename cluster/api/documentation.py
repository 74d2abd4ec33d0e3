"""Replication and sharding in OpenAPI, as a node answers where they are not enabled."""

from __future__ import annotations

import re
from typing import Any

from cluster.api.disabled import DisabledView
from mlvdb_site.http.openapi import MEDIA_TYPES, describe, ref

_FORM = "application/x-www-form-urlencoded"


def document(endpoints: list[Any], **context: Any) -> list[Any]:
    """Document the views (a preprocessing hook)."""
    for path, _, method, callback in endpoints:
        view = callback.cls
        if not issubclass(view, DisabledView):
            continue
        names = re.findall(r"{(\w+)}", path)
        example = view.examples.get(method)
        describe(
            view,
            method,
            operation_id=_operation_id(path, method),
            tag=path.split("/")[1],
            summary=view.__doc__ or view.title,
            description=f"Where it is not enabled: `{view.feature.message}`.",
            path={name: {"type": "string"} for name in names},
            body=None if method != "POST" else {"type": "object", "additionalProperties": True},
            body_required=False,
            example=example,
            answer=ref("Message"),
            errors=(404, 405) if names else (),
            body_types=(MEDIA_TYPES[0], _FORM),
        )
    return endpoints


def _operation_id(path: str, method: str) -> str:
    """Return the words of the path, with the names in it, and the method."""
    return "_".join([*re.findall(r"\w+", path.replace("-", "_")), method.lower()])
