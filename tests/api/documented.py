"""Answers against the committed OpenAPI document."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import jsonschema
import yaml
from django.conf import settings

COMMITTED = Path(settings.BASE_DIR) / "docs" / "openapi.yaml"


@cache
def document() -> dict[str, Any]:
    """Return the committed document."""
    return dict(yaml.safe_load(COMMITTED.read_text()))


def valid(body: object, path: str, method: str = "get") -> None:
    """Check what a method of a path has answered with 200."""
    schema = document()["paths"][path][method]["responses"]["200"]["content"]["application/json"]["schema"]
    jsonschema.Draft202012Validator({**schema, "components": document()["components"]}).validate(body)
