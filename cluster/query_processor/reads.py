"""A read of one shard: which copy answers it, and what that copy must have.

Level `one` without tokens goes where the preference says (`cluster.routing.choice`). What the answer must have comes
on top: at `quorum` and `all` the position that enough members agree on, with `min_seq` the entry of a session token. A
copy that lacks it is not asked, or refuses; this node's own is waited for, for a moment, before others are asked. What
is sent to another node is not sent on by it, and everything ends at the deadline of the request.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from django.conf import settings

from cluster.query_processor.agreement import Agreed, MembersChanged, agree
from cluster.query_processor.copies import NOTHING, Here, Requirement, copies_of
from cluster.query_processor.errors import ShardUnavailable
from cluster.query_processor.means import Means, means
from cluster.query_processor.reading import Read, with_time_left
from cluster.query_processor.remote import remote_read
from cluster.query_processor.session_tokens import TokensWanted, token_lost, tokens_for
from cluster.routing.choice import Copy, Plan, plan_read, plan_read_among
from cluster.routing.hedging import Attempt, NoAnswer, first_answer
from cluster.states import Membership
from cluster.topology import ShardView, TopologyView, topology
from vectors.errors import MLVectorDBError, Unavailable
from vectors.query_processor import Answer, RequestOptions, ShardAccount
from vectors.tokens import Token

_PAUSE_S = 0.05


def read_shard(view: TopologyView, shard: ShardView, read: Read, options: RequestOptions) -> Answer[Any]:
    """Answer a read from one shard, whichever copy it takes. Raise what `vectors.errors` and `.errors` say."""
    return _ShardRead(view, shard, read, options, means()).answer()


class _ShardRead:
    """One read of one shard on its way."""

    def __init__(
        self, view: TopologyView, shard: ShardView, read: Read, options: RequestOptions, shared: Means
    ) -> None:
        self.read = read
        self.options = options
        self.means = shared
        self.deadline = time.monotonic() + (options.timeout_s or settings.MLVDB_READ_TIMEOUT_S)
        self.turn = shared.turn() if options.read_preference == "replica" else 0
        self._look(view, shard)
        self.wanted = tokens_for(shard, options.min_seq) if options.min_seq else TokensWanted()

    def _look(self, view: TopologyView, shard: ShardView) -> None:
        self.view = view
        self.shard = shard
        self.copies = copies_of(shard)
        own = next((copy for copy in self.copies if copy.is_here), None)
        self.here: Here | None = None if own is None else self.means.here(shard, own)

    @property
    def preference(self) -> str | None:
        """Where the read goes; one that has seen what nobody here knows of asks the primary, which knows most."""
        if self.wanted.has_foreign and (self.here is None or not self.here.copy.is_primary):
            return "primary"
        return self.options.read_preference

    @property
    def left_s(self) -> float:
        """Seconds that are left."""
        return self.deadline - time.monotonic()

    def answer(self) -> Answer[Any]:
        """Answer it."""
        if self.options.consistency != "one" and not self._is_alone():
            return self._agreed()
        plan = plan_read(self.copies, self.preference, turn=self.turn)
        if self.wanted.token is not None:
            return self._with_token(plan, Requirement(token=self.wanted.token))
        if plan.is_here and self.here is not None:
            if self.here.has_slots(self.options):
                return self.here.read(self.read, self.options)
            plan = plan_read(self.copies, "primary")
        with self.means.waits.slot():
            return self._first(plan, NOTHING)

    def _is_alone(self) -> bool:
        """Whether this node's copy is the only member, so that every level is reached here."""
        members = [copy for copy in self.copies if copy.membership is not Membership.NONE]
        return len(members) == 1 and members[0].is_here and members[0].is_primary

    # Session tokens.

    def _with_token(self, plan: Plan, requirement: Requirement) -> Answer[Any]:
        here, token = self.here, requirement.token
        assert token is not None
        if here is not None and plan.is_here:
            head = here.head()
            if here.has(requirement, head):
                return here.read(self.read, self.options, requirement=requirement)
            if here.copy.is_primary and here.has_lost(token, head):
                raise token_lost(self.shard.label, token)
        with self.means.waits.slot():
            return self._wait_with_token(plan, requirement, token)

    def _wait_with_token(self, plan: Plan, requirement: Requirement, token: Token) -> Answer[Any]:
        """Wait for the entry here for a moment, then ask those that may have it, and so on until the deadline."""
        here = self.here if plan.is_here else None
        others = frozenset(copy.name for copy in self.copies if copy.is_readable and not (here and copy.is_here))
        patience_s = settings.MLVDB_HEDGE_AFTER_S
        while True:
            is_lost_here = here is not None and here.has_lost(token, here.head())
            until = min(self.deadline, time.monotonic() + patience_s)
            if here is not None and not is_lost_here and here.wait_for(requirement, until=until):
                return here.read(self.read, self._options_left(), requirement=requirement)
            try:
                return self._first(plan_read_among(self.copies, self.preference, others, turn=self.turn), requirement)
            except ShardUnavailable:
                if is_lost_here:
                    # Nobody who might know better can be asked, and this copy knows a newer term.
                    raise token_lost(self.shard.label, token) from None
                if self.left_s <= 0:
                    if here is not None:
                        raise here.refusal(requirement, here.head()) from None
                    raise
            if here is None:
                time.sleep(max(0.0, min(patience_s, self.left_s)))
            patience_s *= 2

    # Levels.

    def _agreed(self) -> Answer[Any]:
        """Read what enough members have, from one that has it; begin again while members change or copies fail."""
        with self.means.waits.slot():
            failure = self._unavailable([], [])
            while self.left_s > 0:
                try:
                    agreed = self._agree()
                    return self._first(self._plan_among(agreed), Requirement(agreed.position, self.wanted.token))
                except MembersChanged as change:
                    failure = ShardUnavailable(
                        f"the members of shard {self.shard.label} are changing: {change}",
                        detail={"shard": self.shard.label},
                        retry_after_s=1,
                    )
                except ShardUnavailable as error:
                    failure = error
                if self.left_s <= _PAUSE_S:
                    break
                time.sleep(_PAUSE_S)
                view = topology()
                if self.shard.uid in view.shards:
                    self._look(view, view.shards[self.shard.uid])
            raise failure

    def _agree(self) -> Agreed:
        return agree(
            self.view,
            self.shard,
            self.copies,
            self.options.consistency,
            here=self.here,
            deadline=self.deadline,
            means=self.means,
        )

    def _plan_among(self, agreed: Agreed) -> Plan:
        able = agreed.holders
        if self.wanted.token is not None:
            # The write may be beyond what these members have: whoever has it has all of that as well.
            able |= {copy.name for copy in self.copies if copy.is_readable}
        return plan_read_among(self.copies, self.preference, able, turn=self.turn)

    # Asking.

    def _first(self, plan: Plan, requirement: Requirement) -> Answer[Any]:
        """Return the first answer of a plan's copies. Raise ShardUnavailable when there is none in time."""
        asked = [self._attempt(copy, requirement) for copy in plan.copies]
        stand_ins: list[Attempt[Answer[Any]]] = []
        if self.read.allows_partial(self.options) and not self.wanted.has_foreign:
            stand_ins = [self._attempt(copy, requirement, is_stand_in=True) for copy in plan.stand_ins]
        attempts = [*asked, *stand_ins]
        names = [attempt.name for attempt in attempts]
        if not attempts:
            raise self._unavailable(names, [])
        try:
            outcome = first_answer(
                attempts,
                deadline=self.deadline,
                hedge_after_s=settings.MLVDB_HEDGE_AFTER_S,
                is_final=_is_final,
                threads=self.means.threads,
            )
        except NoAnswer as failure:
            raise self._unavailable(names, failure.errors) from failure
        assert outcome.answer is not None
        is_stand_in = outcome.name in {copy.name for copy in plan.stand_ins}
        copy = next(copy for copy in self.copies if copy.name == outcome.name)
        if copy.is_here:
            return outcome.answer
        accounts = [self._account(account, copy, requirement, is_stand_in) for account in outcome.answer.shards]
        return Answer(outcome.answer.value, accounts)

    def _attempt(self, copy: Copy, requirement: Requirement, *, is_stand_in: bool = False) -> Attempt[Answer[Any]]:
        if copy.is_here:
            here = self.here
            assert here is not None
            return Attempt(
                copy.name,
                "",
                lambda timeout_s: here.read(
                    self.read,
                    with_time_left(self.options, timeout_s),
                    requirement=requirement,
                    is_stand_in=is_stand_in,
                ),
            )
        token = requirement.token
        # A copy that cannot answer in full is passed over, whatever the client would put up with in the end.
        asked = replace(
            self.options,
            consistency="one",
            read_preference=None,
            partial=False,
            min_seq={} if token is None else {self.shard.label: str(token)},
        )
        # Called in another thread, perhaps: nothing of this request's database connection is in it.
        cluster, uid = self.view.cluster_of(self.shard), self.shard.uid
        return Attempt(
            copy.name,
            copy.url,
            lambda timeout_s: remote_read(
                copy.url,
                cluster,
                uid,
                self.read,
                with_time_left(asked, timeout_s),
                requirement.position,
                timeout_s=timeout_s,
            ),
        )

    def _account(self, account: ShardAccount, copy: Copy, requirement: Requirement, is_stand_in: bool) -> ShardAccount:
        """Return another copy's account as this node knows better: what its own log has beyond it, and that nobody
        knows how much there is beyond it while the primary cannot be asked."""
        lag = account.lag
        if is_stand_in:
            lag = None
        elif self.here is not None and self.here.copy.is_primary and requirement.position is None:
            head = self.here.head()
            if head.takes_writes and head.term == account.term:
                lag = max(account.lag or 0, head.last_seq - account.seq)
        return replace(account, shard=self.shard.label, copy=copy.name, lag=lag)

    def _options_left(self) -> RequestOptions:
        return with_time_left(self.options, self.left_s)

    def _unavailable(self, asked: Sequence[str], errors: Sequence[tuple[str, Exception]]) -> ShardUnavailable:
        why = dict.fromkeys(asked, "no answer in time") | {name: _words(error) for name, error in errors}
        return ShardUnavailable(
            f"no copy of shard {self.shard.label} that may answer could be asked in time",
            detail={"shard": self.shard.label, "copies": why},
            retry_after_s=1,
        )


def _is_final(error: Exception) -> bool:
    """Whether another copy would say the same, or nothing can be said at all: only what may pass is asked elsewhere."""
    return not isinstance(error, Unavailable)


def _words(error: Exception) -> str:
    if isinstance(error, MLVectorDBError):
        return f"{error.code}: {error.message}"[:300]
    return str(error)[:300]
