"""Asking shards for the parts of one read: those of other nodes in threads first, this node's own meanwhile.

This node's own copies answer in the thread of the request, one after the other, unless a shard's answer depends on
copies elsewhere (a level, a replica): such shards are asked side by side. A shard whose node is known to be down is not
asked at all. All have one deadline, and whoever has not answered by then has failed.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

from django.conf import settings

from cluster.query_processor.errors import CopyBehind, ShardUnavailable
from cluster.query_processor.means import Means, means
from cluster.query_processor.reading import with_time_left
from cluster.query_processor.reads import read_shard
from cluster.query_processor.remote import domain_error, remote_read
from cluster.query_processor.sharded.picture import Picture, Question
from cluster.query_processor.sharded.routing import is_dead, why_dead
from cluster.replication.knocks import failover_knock, silence_knock
from cluster.routing.hedging import Attempt, Gathering
from cluster.routing.threads import PeerBusy
from cluster.sharding.view import ShardMember
from cluster.transport.errors import PeerError, PeerRejected, PeerSilent
from vectors.errors import Busy, MLVectorDBError, NotEnoughCopies, NotPrimary, Unavailable
from vectors.query_processor import Answer, RequestOptions, ShardAccount

_DEMANDED = (NotEnoughCopies, CopyBehind)
"""What a client asked for and did not get: no answer of the other shards makes up for it."""


@dataclass(frozen=True, slots=True)
class Scattered:
    """What the shards answered, and why others did not; in the order in which they were asked."""

    asked: Sequence[ShardMember]
    answers: dict[str, Answer[Any]]
    failures: dict[str, MLVectorDBError]

    @property
    def accounts(self) -> list[ShardAccount]:
        """How each shard took part, those that failed included."""
        accounts: list[ShardAccount] = []
        for member in self.asked:
            failure = self.failures.get(member.uid)
            if failure is not None:
                accounts.append(failed_account(member, failure.code))
            else:
                accounts.extend(self.answers[member.uid].shards)
        return accounts

    @property
    def values(self) -> list[Any]:
        """The answers' values, in the order asked."""
        return [self.answers[member.uid].value for member in self.asked if member.uid in self.answers]

    def failure(self) -> MLVectorDBError:
        """Return one error for the shards that failed: the first one's own, which names all of them."""
        return combined(self.failures, self.asked)


def failed_account(member: ShardMember, code: str) -> ShardAccount:
    """Return the account of a shard of which no copy has answered."""
    return ShardAccount(member.label, "", lag=None, strategy="", error=code)


def scatter(picture: Picture, questions: Sequence[Question], shared: Means) -> Scattered:
    """Ask shards, and return what came of it when all have answered or failed, at the deadline at the latest.

    Errors that another try would not change are raised, StaleScope among them, and a level or state that was asked for
    and is not to be had.
    """
    if not questions:
        return Scattered((), {}, {})
    answers: dict[str, Answer[Any]] = {}
    failures: dict[str, MLVectorDBError] = {}
    by_name = {question.member.uid: question for question in questions}
    for question in questions:
        if is_dead(question.member):
            failures[question.member.uid] = shard_unavailable(question.member, why_dead(question.member))
    asked = [question for question in questions if question.member.uid not in failures]
    attempts = [_attempt(picture, question) for question in asked]
    # Those that go to threads first: they are under way while this thread reads its own copies.
    attempts.sort(key=lambda attempt: not attempt.peer)
    with _slot(attempts, shared):
        gathering = Gathering(attempts, deadline=picture.deadline, threads=shared.threads)
        while (outcome := gathering.next()) is not None:
            question = by_name[outcome.name]
            if outcome.error is None:
                assert outcome.answer is not None
                answers[outcome.name] = outcome.answer
            else:
                failures[outcome.name] = _failure(question.member, outcome.error)
    for question in asked:
        if question.member.uid not in answers and question.member.uid not in failures:
            failures[question.member.uid] = shard_unavailable(question.member, "no answer in time")
    return Scattered([question.member for question in questions], answers, failures)


def gathered(picture: Picture, questions: Sequence[Question], shared: Means) -> Scattered:
    """Ask shards as `scatter` does; raise the failure of one unless the client accepts a part.

    A part of nothing is none: when every shard failed, that is raised as well.
    """
    found = scatter(picture, questions, shared)
    if found.failures and (not found.answers or not questions[0].read.allows_partial(picture.options)):
        raise combined(found.failures, found.asked)
    return found


def combined(failures: dict[str, MLVectorDBError], members: Sequence[ShardMember]) -> MLVectorDBError:
    """Return one error for the shards that failed: the first one's own, which names all of them."""
    failed = [member for member in members if member.uid in failures]
    first = failures[failed[0].uid]
    if len(failed) > 1:
        first.detail["shards"] = {
            member.label: f"{failures[member.uid].code}: {failures[member.uid].message}"[:300] for member in failed
        }
    return first


def shard_unavailable(member: ShardMember, why: str) -> ShardUnavailable:
    """Return the error for a shard that could not be asked."""
    return ShardUnavailable(
        f"shard {member.label} could not be asked: {why}"[:500],
        detail={"shard": member.label, **({"url": member.url} if member.url else {}), "reason": why[:300]},
        retry_after_s=1,
    )


def time_for(picture: Picture, member: ShardMember) -> float:
    """Return the seconds that a call to a shard's node has; raise ShardUnavailable when none are left."""
    left_s = min(picture.left_s, settings.MLVDB_PEER_TIMEOUT_S)
    if left_s <= 0:
        raise shard_unavailable(member, "no time was left")
    return left_s


def peer_s(left_s: float) -> float:
    """Return the seconds that another node gets of those that are left: what it says at the end of them must still
    arrive here in time."""
    return left_s - min(0.1, left_s / 10)


def waits_for_others(picture: Picture, member: ShardMember, options: RequestOptions) -> bool:
    """Whether a shard of this node depends on copies elsewhere to answer."""
    shard = picture.view.shards.get(member.uid)
    if shard is None or not shard.copies:
        return shard is not None and not shard.is_local_primary
    is_here = options.read_preference in (None, "nearest", "primary") and shard.is_local_primary
    return options.consistency != "one" or not is_here


def _slot(attempts: Sequence[Attempt[Any]], shared: Means) -> AbstractContextManager[None]:
    return shared.waits.request_slot() if any(attempt.peer for attempt in attempts) else nullcontext()


def _attempt(picture: Picture, question: Question) -> Attempt[Answer[Any]]:
    member = question.member
    if not member.is_local:
        return Attempt(member.uid, member.url, lambda _timeout_s: _ask_remote(picture, question))
    threads_of = f"shard {member.uid}" if waits_for_others(picture, member, question.options) else ""
    return Attempt(member.uid, threads_of, lambda _timeout_s: _ask_here(picture, question))


def _ask_here(picture: Picture, question: Question) -> Answer[Any]:
    shard = picture.view.shards.get(question.member.uid)
    if shard is None:
        raise shard_unavailable(question.member, "its copy has left this node")
    narrowing = question.narrowing
    read = question.read if narrowing is None else narrowing.narrowed(question.read)
    options = with_time_left(question.options, picture.left_s)
    if shard.is_local_primary and shard.shard_id is not None and not (shard.copies or options.min_seq):
        # There is nobody to choose among, to agree with, or to be deposed by.
        answer = read.of(means().own(shard.shard_id), options)
    else:
        answer = read_shard(picture.view, shard, read, options)
    if narrowing is not None:
        narrowing.heed(read, answer.value)
    return answer


def _ask_remote(picture: Picture, question: Question) -> Answer[Any]:
    member, timeout_s = question.member, time_for(picture, question.member)
    options = replace(question.options, partial=question.read.allows_partial(question.options))
    answer = remote_read(
        member.url,
        picture.view.cluster,
        member.uid,
        question.read,
        with_time_left(options, peer_s(timeout_s)),
        None,
        timeout_s=timeout_s,
    )
    return Answer(answer.value, [replace(account, shard=member.label) for account in answer.shards])


def _failure(member: ShardMember, error: Exception) -> MLVectorDBError:
    """Return why a shard has no part in the answer; raise what is the answer."""
    if isinstance(error, PeerRejected):
        error = domain_error(error, of_shard=True) or shard_unavailable(member, error.message)
    if isinstance(error, NotPrimary) and not member.is_local:
        # Where its primary is now is for the coordinator to find out, not for its clients.
        failover_knock(member.number)
        return shard_unavailable(member, error.message)
    if isinstance(error, PeerSilent):
        silence_knock()
    if isinstance(error, PeerError):
        return shard_unavailable(member, error.message)
    if isinstance(error, PeerBusy):
        return Busy(str(error), detail={"shard": member.label}, retry_after_s=1)
    if not isinstance(error, Unavailable) or isinstance(error, _DEMANDED):
        raise error
    error.detail.setdefault("shard", member.label)
    return error
