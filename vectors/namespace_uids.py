"""Uids of namespaces that are made for many shards: of two with one name, they say which was made later.

A UUID of version 7 (RFC 9562 §5.7): 48 bits of Unix milliseconds, then random ones. Whoever makes them keeps them in
order: the time of a new one is later than that of every earlier one, whatever the clock says. A node that makes
namespaces for itself alone draws uids of version 4; a registry takes these in before it makes any, so they come first.
"""

from __future__ import annotations

import re
import uuid
from typing import Final

VERSION_AT: Final = 12
"""Where a uid, as hexadecimal digits, has its version."""
VERSION: Final = "7"

_FIRST = -1
_ORDERED = re.compile(f"([0-9a-f]{{{VERSION_AT}}}){VERSION}[0-9a-f]{{19}}")


def ordered_uid(*, now_ms: int, newest: str = "") -> str:
    """Return a uid, 32 hexadecimal digits, that is later than `newest`, the last one that was made."""
    made_ms = max(now_ms, _made_ms(newest) + 1)
    random = uuid.uuid4().hex
    # The random digits keep the two bits that every UUID has, its variant.
    return f"{made_ms:012x}{VERSION}{random[VERSION_AT + 1 :]}"


def is_later(uid: str, other: str) -> bool | None:
    """Return whether the first of two namespaces of one name was made later; None where their uids do not say."""
    made, other_made = _made_ms(uid), _made_ms(other)
    return None if made == other_made else made > other_made


def _made_ms(uid: str) -> int:
    ordered = _ORDERED.fullmatch(uid)
    return _FIRST if ordered is None else int(ordered[1], 16)
