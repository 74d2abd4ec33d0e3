"""The copies of a shard, out of the topology, as the router wants them; and the one on this node, to read from."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from cluster.query_processor.errors import CopyBehind, CopySyncing
from cluster.query_processor.reading import Read
from cluster.query_processor.session_tokens import token_lost
from cluster.query_processor.staleness import Hearing
from cluster.replication.placements import PRIMARY
from cluster.routing.choice import Copy
from cluster.states import CopyState, Membership
from cluster.topology import CopyView, ShardView
from vectors.errors import NotReady, TokenLost
from vectors.query_processor import Answer, LocalQueryProcessor, RequestOptions, ShardAccount
from vectors.store import log, terms
from vectors.store.log import Position
from vectors.store.slots import slots_now
from vectors.store.terms import TokenState
from vectors.tokens import Token

_FIRST_PAUSE_S = 0.002
_LONGEST_PAUSE_S = 0.02

_NOT_WHOLE = {CopyState.QUARANTINED: "copy_quarantined"}


def copies_of(shard: ShardView) -> list[Copy]:
    """Return all copies of a shard that this node knows of, the primary's first."""
    copies = []
    if shard.is_local_primary:
        copies.append(Copy(PRIMARY, is_here=True, is_primary=True))
    elif shard.primary_url or shard.placement is not None:
        # Also a primary without a URL, which nobody can ask: it counts among those of whom enough must answer.
        copies.append(Copy(PRIMARY, shard.primary_url or "", is_primary=True))
    copies.extend(_copy(view) for view in shard.copies if not view.is_self or shard.shard_id is not None)
    if shard.shard_id is not None and not any(copy.is_here for copy in copies):
        # Removed from its cluster, or the primary of a term that is over: it is in no set of members, and old.
        name = shard.placement.name if shard.placement is not None else "detached"
        copies.append(Copy(name, is_here=True, membership=Membership.NONE))
    return copies


def _copy(view: CopyView) -> Copy:
    return Copy(
        view.name,
        "" if view.is_self else view.url,
        is_here=view.is_self,
        state=view.state,
        membership=view.membership,
        is_routable=view.health.is_unobjectionable and not view.paused,
    )


class Requirement(NamedTuple):
    """What the state that is read from must have: a position of the log, the entry of a session token."""

    position: Position | None = None
    token: Token | None = None


NOTHING = Requirement()


@dataclass(frozen=True, slots=True)
class Here:
    """The copy of a shard on this node."""

    shard: ShardView
    shard_id: int
    copy: Copy
    processor: LocalQueryProcessor
    hearing: Hearing

    def head(self) -> log.Head:
        """Return the head of its log; raise NotReady when the copy has just left this node."""
        head = log.read_head(self.shard_id)
        if head is None:
            raise NotReady(f"shard {self.shard.label} has left this node", retry_after_s=1)
        return head

    def token_state(self, token: Token, head: log.Head) -> TokenState:
        """Return what its log knows of the entry that a session token names."""
        if token.term == head.term and token.names(head.uid):
            # Nearly always so; the history of terms is one more statement.
            return TokenState.HELD if token.seq <= head.last_seq else TokenState.LATER
        return terms.token_state(token, uid=head.uid, history=terms.read_terms(self.shard_id), seq=head.last_seq)

    def wait_for(self, requirement: Requirement, *, until: float, clock: Callable[[], float] = time.monotonic) -> bool:
        """Wait until the log has what is required, until a moment of the clock; return whether it has."""
        pause_s = _FIRST_PAUSE_S
        while not self.has(requirement, self.head()):
            left = until - clock()
            if left <= 0:
                return False
            time.sleep(min(pause_s, left))
            pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)
        return True

    def has(self, requirement: Requirement, head: log.Head) -> bool:
        """Whether the log has what is required."""
        if requirement.position is not None and head.position < requirement.position:
            return False
        return requirement.token is None or self.token_state(requirement.token, head) is TokenState.HELD

    def read(
        self, read: Read, options: RequestOptions, *, requirement: Requirement = NOTHING, is_stand_in: bool = False
    ) -> Answer[Any]:
        """Answer from this copy, and account for how old the answer may be.

        Raise CopyBehind when it lacks what is required, CopySyncing when it has no whole state and the read may leave
        nothing out, TokenLost, and what the operation raises.
        """
        head = self.head()
        if self.copy.is_primary and requirement is NOTHING and head.takes_writes:
            return read.of(self.processor, options)
        if not self.has(requirement, head) or not self.has_slots(options):
            raise self.refusal(requirement, head)
        error = self._not_whole() if requirement.position is None else None
        if error is not None and not read.allows_partial(options):
            raise CopySyncing(
                f"the copy of shard {self.shard.label} on this node is {self.copy.state.label};"
                " partial=true answers from what it has",
                detail={"shard": self.shard.label, "copy": self.copy.name, "state": self.copy.state.value},
                retry_after_s=1,
            )
        answer = read.of(self.processor, self._local(options, requirement, head))
        lag = self._lag(head, requirement, is_stand_in)
        return Answer(answer.value, [self._account(account, head, lag, error) for account in answer.shards])

    def has_slots(self, options: RequestOptions) -> bool:
        """Whether the copy is past the entries of its log by which its shard got all slots that are asked for.

        Rows that were moved to the shard lie before them. A copy that has yet to receive them would miss rows which
        their former shard has let go of since, and that is more than being a few writes behind.
        """
        owned = None if options.scope is None else options.scope.owned
        if owned is None or self.copy.is_primary:
            return True
        now = slots_now(self.shard_id)
        return now is None or not owned - now.writable

    def refusal(self, requirement: Requirement, head: log.Head) -> TokenLost | CopyBehind:
        """Return the error for a state that this copy does not have: lost, or not reached yet."""
        token = requirement.token
        if token is not None and self.has_lost(token, head):
            return token_lost(self.shard.label, token)
        return CopyBehind(
            f"the copy of shard {self.shard.label} on this node has not reached that state yet",
            detail={"shard": self.shard.label, "copy": self.copy.name, "term": head.term, "seq": head.last_seq},
            retry_after_s=1,
        )

    def has_lost(self, token: Token, head: log.Head) -> bool:
        """Whether the entry of a token is not in the log and will not come, as far as this copy knows."""
        state = self.token_state(token, head)
        if state is TokenState.LATER:
            # What a primary acknowledged in its own term is in its log, or gone. A higher term is another primary's.
            return self.copy.is_primary and token.term <= head.term
        return state is TokenState.LOST

    def _not_whole(self) -> str | None:
        return None if self.copy.is_readable else _NOT_WHOLE.get(self.copy.state, "copy_syncing")

    def _local(self, options: RequestOptions, requirement: Requirement, head: log.Head) -> RequestOptions:
        # A token is known by the shard's uid: the label under which it came may be another registry's.
        tokens = {} if requirement.token is None else {head.label: str(requirement.token)}
        return options if not tokens and not options.min_seq else replace(options, min_seq=tokens)

    def _lag(self, head: log.Head, requirement: Requirement, is_stand_in: bool) -> int | None:
        """Return how many operations the answer may lack; None when nobody can tell."""
        if requirement.position is not None:
            # The newest state that enough members have is known, and this is it.
            return 0
        if self.copy.is_primary:
            # One that has promised a higher term has acknowledged all that it ever will, and another may go on.
            return 0 if head.takes_writes else None
        placement = self.shard.placement
        if is_stand_in or placement is None or placement.is_detached:
            return None
        return self.hearing.lag(self.shard.uid, head.last_seq)

    def _account(self, account: ShardAccount, head: log.Head, lag: int | None, error: str | None) -> ShardAccount:
        if account.lag and lag is not None:
            lag = max(lag, account.lag)
        return replace(
            account,
            shard=self.shard.label,
            copy=self.copy.name,
            lag=lag,
            term=head.term,
            seq=head.last_seq,
            error=account.error or error,
        )
