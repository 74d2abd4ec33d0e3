"""Standing for election: a copy asks the members of its shard for their votes in a new term.

Preconditions: this node has a copy of the shard, and was told who the members are (a placement, or its own registry).
Steps of one attempt:
1. promise the term here, durably: from now on this copy takes nothing of an older primary, so its position is final;
2. ask all other members at once; each promises in the same way and answers its position;
3. count (`votes`). A member that knows a newer placement ends the attempt: that is taken first. Members that have
   promised a higher term to another candidate lead to another attempt, in a term above that.
Afterwards nothing but terms has changed anywhere. A crash at any point leaves promises, which cost the old primary, if
there is one, its right to write until it is elected again; it sees to that itself.
"""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Mapping
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from typing import Any

from django.conf import settings

from cluster.replication.placements import PlacedCopy, PlacementDocument
from cluster.replication.votes import Ballot, Count, Result, count, document_for, next_term
from cluster.states import Membership
from cluster.transport.client import peer_client
from cluster.transport.errors import PeerError, PeerGarbled, PeerRejected
from cluster.transport.messages import shard_path
from vectors.errors import Conflict, StaleTerm
from vectors.store import terms
from vectors.store.log import Head, Position

logger = logging.getLogger(__name__)

ATTEMPTS = 6
_PAUSE_S = 0.4


class NotElected(Conflict):
    """Raised when too few members gave their vote; `detail`: votes, needed, and per member why not."""

    code = "not_enough_votes"


class MoreCaughtUp(Conflict):
    """Raised when a member that was reached has entries that the candidate lacks; `detail` names it."""

    code = "more_caught_up"


class PrimaryAlive(Conflict):
    """Raised when the shard's primary answers and nobody forces it out; `detail.primary_url`."""

    code = "primary_alive"


class NewerPlacement(Exception):
    """Raised to the caller of an election when a member knows a newer placement than the candidate."""

    def __init__(self, document: PlacementDocument) -> None:
        super().__init__(f"epoch {document.epoch}")
        self.document = document


@dataclass(frozen=True, slots=True)
class Elected:
    """A won election; `document` is the placement under which it was held, `votes` the positions of all voters."""

    document: PlacementDocument
    term: int
    votes: Mapping[str, Position]
    count: Count
    refusals: Mapping[str, str]


@dataclass(slots=True)
class _Answers:
    """What the members said to one ballot."""

    votes: dict[str, Position] = field(default_factory=dict)
    refusals: dict[str, str] = field(default_factory=dict)
    terms: set[int] = field(default_factory=set)
    is_contested: bool = False
    newest: PlacementDocument | None = None
    alive_primary: str | None = None


def elect(document: PlacementDocument, head: Head, *, force: bool, term: int = 0) -> Elected:
    """Win an election for this node's copy, whose head is `head`, or raise why it was not won.

    `document` is what this node was told, or as its owner would tell; `term` asks for one that the old primary has
    agreed to. Raise NewerPlacement, PrimaryAlive, MoreCaughtUp, NotElected, StorageError and the like.
    """
    node = settings.MLVDB_NODE_ID
    known = {head.promised_term, head.term, document.term, term - 1}
    is_drawn = False
    answers = _Answers()
    counted: Count | None = None
    for attempt in range(ATTEMPTS):
        if attempt and answers.is_contested:
            # Two candidates that start again at the same moment would meet again.
            time.sleep(random.uniform(0.25, 1) * _PAUSE_S * attempt)
        ballot = Ballot(
            cluster=document.cluster,
            shard=document.shard,
            epoch=document.epoch,
            term=next_term(known, drawn=is_drawn),
            candidate=node,
            force=force,
        )
        try:
            own = terms.term_promise(head.shard_id, ballot.term, candidate=node)
        except StaleTerm as stale:
            known.add(int(stale.detail["promised_term"]))
            continue
        position = Position(own.term, own.last_seq)
        answers = _ask_members(document, ballot, own=position, is_drawn=is_drawn)
        known |= {ballot.term, *answers.terms}
        if answers.newest is not None:
            raise NewerPlacement(answers.newest)
        if answers.alive_primary is not None and not force:
            raise PrimaryAlive(answers.alive_primary, detail={"primary_url": document.primary.url})
        votes = {document.name: position, **answers.votes}
        counted = count(document, votes, is_drawn=is_drawn, force=force)
        logger.info(
            "election shard=%s term=%d result=%s votes=%d needed=%d",
            head.label,
            ballot.term,
            counted.result.name.lower(),
            counted.votes,
            counted.needed,
        )
        if counted.result is Result.ELECTED:
            return Elected(document, ballot.term, votes, counted, answers.refusals)
        if counted.result is Result.BEHIND:
            raise _more_caught_up(document, counted)
        if counted.result is Result.DRAW_A_TERM:
            is_drawn = True
        elif not answers.is_contested:
            break
    raise NotElected(
        f"{counted.votes if counted else 0} of {counted.needed if counted else '?'} votes: "
        + ("; ".join(f"{name}: {reason}" for name, reason in answers.refusals.items()) or "other candidates stand too"),
        detail={
            "votes": counted.votes if counted else 0,
            "needed": counted.needed if counted else None,
            "refusals": answers.refusals,
        },
    )


def _ask_members(document: PlacementDocument, ballot: Ballot, *, own: Position, is_drawn: bool) -> _Answers:
    """Ask every other member for its vote, all at once.

    Where the votes that came are enough, the others have no longer than a probe has: nobody takes writes during a
    handover, and a member that is silent counts as one that cannot be reached.
    """
    others = [copy for copy in document.copies if copy.name != document.name and copy.membership is not Membership.NONE]
    answers = _Answers()
    if not others:
        return answers
    patience_ends = time.monotonic() + settings.MLVDB_PROBE_TIMEOUT_S
    pool = ThreadPoolExecutor(len(others), thread_name_prefix="vote")
    try:
        asked = {pool.submit(_ask, copy, ballot): copy for copy in others}
        waiting = set(asked)
        while waiting:
            votes = {document.name: own, **answers.votes}
            is_enough = count(document, votes, is_drawn=is_drawn, force=False).result is Result.ELECTED
            timeout_s = max(0.0, patience_ends - time.monotonic()) if is_enough else None
            done, waiting = wait(waiting, timeout=timeout_s, return_when=FIRST_COMPLETED)
            if not done:
                break
            for reply in done:
                _note(answers, document, asked[reply], reply.result())
        answers.refusals |= {asked[reply].name: "it has not answered in time" for reply in waiting}
        answers.refusals = {copy.name: answers.refusals[copy.name] for copy in others if copy.name in answers.refusals}
    finally:
        pool.shutdown(wait=False)
    return answers


def _ask(copy: PlacedCopy, ballot: Ballot) -> dict[str, Any] | PeerError:
    try:
        return peer_client().json(
            copy.url,
            "POST",
            shard_path(ballot.shard, "vote"),
            json={
                "cluster": ballot.cluster,
                "epoch": ballot.epoch,
                "term": ballot.term,
                "candidate": ballot.candidate,
                "force": ballot.force,
            },
            even_if_silent=True,
        )
    except PeerError as error:
        return error


def _note(answers: _Answers, document: PlacementDocument, copy: PlacedCopy, reply: dict[str, Any] | PeerError) -> None:
    if isinstance(reply, PeerRejected):
        answers.refusals[copy.name] = f"{reply.peer_code}: {reply.peer_message}"
        detail = reply.peer_detail
        if reply.peer_code == "stale_term":
            answers.is_contested = True
            answers.terms.add(int(detail.get("promised_term") or 0))
        elif reply.peer_code == "stale_epoch":
            _note_newer(answers, document, copy, detail.get("placement"))
        elif reply.peer_code == "primary_alive":
            answers.alive_primary = reply.peer_message
        return
    if isinstance(reply, PeerError):
        answers.refusals[copy.name] = f"{reply.code}: {reply.message}"
        return
    try:
        if copy.node and reply["node"] != copy.node:
            raise ValueError(f"it is node {str(reply['node'])[:8]}")
        answers.votes[copy.name] = Position(int(reply["term"]), int(reply["seq"]))
    except (KeyError, TypeError, ValueError) as error:
        answers.refusals[copy.name] = f"no vote: {error}"


def _note_newer(answers: _Answers, document: PlacementDocument, copy: PlacedCopy, told: Any) -> None:
    """Keep the newest placement that a member knows, as this node would have been told it."""
    try:
        newer = PlacementDocument.of(told)
    except ValueError as error:
        answers.refusals[copy.name] = f"stale_epoch, and {error}"
        return
    if newer.cluster != document.cluster or newer.shard != document.shard or newer.epoch <= document.epoch:
        return
    if answers.newest is None or newer.epoch > answers.newest.epoch:
        answers.newest = document_for(newer, node=settings.MLVDB_NODE_ID, name=document.name)


def placement_ask(copy: PlacedCopy, document: PlacementDocument) -> PlacementDocument | None:
    """Return what a member knows of the shard's placement, as this node would have been told; None if it does not say.

    Raise the errors of `cluster.transport`.
    """
    answer = peer_client().json(copy.url, "GET", shard_path(document.shard, "placement"), even_if_silent=True)
    try:
        told = PlacementDocument.of(answer)
    except ValueError as error:
        raise PeerGarbled(f"answered no placement: {error}", url=copy.url) from None
    if told.cluster != document.cluster or told.shard != document.shard:
        return None
    return document_for(told, node=settings.MLVDB_NODE_ID, name=document.name)


def _more_caught_up(document: PlacementDocument, counted: Count) -> MoreCaughtUp:
    assert counted.ahead is not None
    name, position = counted.ahead
    return more_caught_up(document, name, Position(*position))


def more_caught_up(document: PlacementDocument, name: str, position: Position) -> MoreCaughtUp:
    """Return the error that names a copy with more than the candidate's."""
    url = next((copy.url for copy in document.copies if copy.name == name), "")
    return MoreCaughtUp(
        f"{name} at {url} has more (term {position.term}, seq {position.seq}): promote that one",
        detail={"name": name, "url": url, "term": position.term, "seq": position.seq},
    )
