"""One picture of the shards, by which a whole request is planned, and what it makes of the request's own conditions.

Everything that is asked of shards on behalf of one answer carries the epoch of one picture. A shard whose slots have
changed since refuses (StaleScope), and then nothing of what was gathered counts: the request is planned anew by a newer
picture. So a row that moves meanwhile is neither answered twice nor left out.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from cluster.query_processor.errors import ShardUnavailable
from cluster.query_processor.reading import Read
from cluster.query_processor.session_tokens import token_lost
from cluster.query_processor.sharded.narrowing import Narrowing
from cluster.sharding.view import ShardingView, ShardMember
from cluster.topology import TopologyView, topology
from vectors.engine.namespace import NamespaceSpec
from vectors.errors import NotReady, StaleScope
from vectors.query_processor import RequestOptions, Scope
from vectors.tokens import Token, parse_token

T = TypeVar("T")

FIRST_PAUSE_S = 0.002
LONGEST_PAUSE_S = 0.02


@dataclass(frozen=True, slots=True)
class Question:
    """A read, or a part of one, of one shard."""

    member: ShardMember
    read: Read
    options: RequestOptions
    narrowing: Narrowing | None = None
    """What other shards' answers make of it meanwhile, where it is a search."""


@dataclass(frozen=True, slots=True)
class Picture:
    """The shards as of one moment, and a request's options and deadline (a moment of the monotonic clock)."""

    view: TopologyView
    sharding: ShardingView
    options: RequestOptions
    deadline: float
    tokens: Mapping[str, Token]
    """The session tokens of the request by uid of the shard."""
    is_after_change: bool
    """Whether the request has seen a write of before a change of the shards: its rows may be in another one by now,
    where only the primary is sure to have them."""

    @classmethod
    def now(cls, options: RequestOptions, deadline: float) -> Picture:
        """Take the picture as committed now. Raise TokenLost, and NotReady where there are no shards yet."""
        view = topology()
        sharding = view.routes
        if sharding is None:
            raise NotReady("the shards of this node are not known yet", retry_after_s=1)
        tokens, is_after_change = _tokens(sharding, options.min_seq) if options.min_seq else ({}, False)
        return cls(view, sharding, options, deadline, tokens, is_after_change)

    @property
    def left_s(self) -> float:
        """Seconds that are left."""
        return self.deadline - time.monotonic()

    def scope(self, member: ShardMember, spec: NamespaceSpec | None) -> Scope:
        """Return what of a shard's copy counts: masked only where it may hold rows of others' slots."""
        is_masked = member.has_foreign or member.has_copies
        return Scope(self.sharding.epoch, member.slots if is_masked else None, spec)

    def options_for(self, member: ShardMember, spec: NamespaceSpec | None) -> RequestOptions:
        """Return the options of the request as one shard is to heed them."""
        token = self.tokens.get(member.uid)
        return replace(
            self.options,
            scope=self.scope(member, spec),
            min_seq={} if token is None else {member.label: str(token)},
            read_preference="primary" if self.is_after_change else self.options.read_preference,
        )

    def question(self, member: ShardMember, spec: NamespaceSpec | None, operation: str, **arguments: Any) -> Question:
        """Return a read for one shard."""
        return Question(member, Read(operation, arguments), self.options_for(member, spec))


def planned(options: RequestOptions, timeout_s: float, do: Callable[[Picture], T]) -> T:
    """Do a request by the picture of now, and again by a newer one while shards find it too old, until the deadline.

    Raise ShardUnavailable when it is too old to the end, and what `do` raises.
    """
    deadline = time.monotonic() + (options.timeout_s or timeout_s)
    pause_s = FIRST_PAUSE_S
    while True:
        try:
            return do(Picture.now(options, deadline))
        except StaleScope as stale:
            if deadline - time.monotonic() <= pause_s:
                raise ShardUnavailable(
                    f"the slots of the shards kept changing: {stale.message}", detail=stale.detail, retry_after_s=1
                ) from stale
        time.sleep(pause_s)
        pause_s = min(2 * pause_s, LONGEST_PAUSE_S)


def _tokens(sharding: ShardingView, min_seq: Mapping[str, str]) -> tuple[dict[str, Token], bool]:
    """Return the tokens of the shards by uid, and whether any is from before a change.

    Raise TokenLost for one under a shard's label that is another's, and not from before.
    """
    found: dict[str, Token] = {}
    is_after_change = False
    for label, text in min_seq.items():
        token = parse_token(text)
        member = next((member for member in sharding.members if token.names(member.uid)), None)
        is_old = token.epoch < sharding.epoch
        if member is None and not is_old and label in sharding.by_label:
            raise token_lost(label, token)
        is_after_change = is_after_change or is_old or member is None
        if member is not None:
            known = found.get(member.uid)
            if known is None or (token.term, token.seq) > (known.term, known.seq):
                found[member.uid] = token
    return found, is_after_change
