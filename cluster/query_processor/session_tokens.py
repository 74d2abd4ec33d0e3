"""Session tokens of a read: which of them are about a shard, whatever the label under which they were sent."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from cluster.topology import ShardView
from vectors.errors import TokenLost
from vectors.tokens import Token, parse_token


@dataclass(frozen=True, slots=True)
class TokensWanted:
    """The session token of a read that a shard must have, and whether there are tokens that nobody here knows."""

    token: Token | None = None
    has_foreign: bool = False


def tokens_for(shard: ShardView, min_seq: Mapping[str, str]) -> TokensWanted:
    """Return what a read's tokens ask of a shard: by the shard's uid, since labels are one registry's own.

    Raise TokenLost for a token under the shard's label that is another shard's.
    """
    found: Token | None = None
    has_foreign = False
    for label, text in min_seq.items():
        token = parse_token(text)
        if token.names(shard.uid):
            if found is None or (token.term, token.seq) > (found.term, found.seq):
                found = token
        elif label == shard.label:
            raise token_lost(label, token)
        else:
            has_foreign = True
    return TokensWanted(found, has_foreign)


def token_lost(label: str, token: Token) -> TokenLost:
    """Return the error for a token whose entry is not in the log and will not come."""
    return TokenLost(
        f"shard {label} does not have the entry of that token",
        field="min_seq",
        detail={"shard": label, "token": str(token)},
    )
