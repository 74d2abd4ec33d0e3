"""Session tokens: the opaque `seq` values that a write answers and `min_seq` takes.

`<epoch>.<first 8 digits of the shard's uid>.<term>.<seq>`; the epoch is the cluster's, 0 on a single node.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from vectors.errors import InvalidInput

_FORM = re.compile(r"([0-9]{1,18})\.([0-9a-f]{8})\.([0-9]{1,18})\.([0-9]{1,18})")
_UID_DIGITS = 8


class Token(NamedTuple):
    """A position in the log of one shard, under one epoch of its cluster."""

    epoch: int
    shard: str
    term: int
    seq: int

    def __str__(self) -> str:
        return f"{self.epoch}.{self.shard}.{self.term}.{self.seq}"

    def names(self, uid: str) -> bool:
        """Whether it is a token of the shard with that uid."""
        return self.shard == uid[:_UID_DIGITS]


def token_of(uid: str, *, term: int, seq: int, epoch: int = 0) -> str:
    """Return the token of a position."""
    return str(Token(epoch, uid[:_UID_DIGITS], term, seq))


def parse_token(text: str) -> Token:
    """Read a token; raise InvalidInput naming `min_seq`."""
    form = _FORM.fullmatch(text)
    if form is None:
        raise InvalidInput("min_seq holds label:value pairs as a write's `seq` answered them", field="min_seq")
    return Token(int(form[1]), form[2], int(form[3]), int(form[4]))
