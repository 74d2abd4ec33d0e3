"""Names of namespaces, shards and replicas: what they may be."""

from __future__ import annotations

import re
from typing import Final

from vectors.errors import InvalidInput

NAME_PATTERN: Final = "[A-Za-z0-9_][A-Za-z0-9._-]{0,127}"
RESERVED_NAMESPACES: Final = frozenset({"vectors"})
"""Words that are routes below `/namespaces`, and so no names."""

_NAME = re.compile(NAME_PATTERN)


def checked_name(text: str, *, field: str, reserved: frozenset[str] = frozenset()) -> str:
    """Return a name; raise InvalidInput when it cannot be one."""
    if not _NAME.fullmatch(text):
        raise InvalidInput(
            f"{field} must be 1 to 128 letters, digits, '.', '_' or '-', and not begin with '.' or '-'", field=field
        )
    if text in reserved:
        raise InvalidInput(f"{text!r} is a word of the API's paths and cannot be a name", field=field)
    return text


def checked_namespace(text: str, *, field: str = "namespace") -> str:
    """Return the name of a namespace; raise InvalidInput when it cannot be one."""
    return checked_name(text, field=field, reserved=RESERVED_NAMESPACES)
