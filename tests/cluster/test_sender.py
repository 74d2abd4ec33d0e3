"""One sender and one copy: what is looked at when, and what a primary makes of a copy that has more than itself."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import orjson
import pytest

from cluster.replication import sender
from cluster.replication.sender import PrimaryBehind, Sender, Step, Target
from cluster.transport.messages import PeerAnswer
from vectors.errors import NotPrimary
from vectors.models import ShardHead
from vectors.services import namespace_put
from vectors.store import log, terms
from vectors.store.log import Position

URL = "http://replica-1.test:8000"


class Copy:
    """A copy in the place of the transport: it answers a position and takes every slice."""

    def __init__(self, shard: ShardHead) -> None:
        self.shard = shard
        self.position = Position(1, 0)
        self.before_answer: Callable[[], object] = lambda: None
        self.slices = 0

    def has_all(self) -> None:
        """Have it be where the primary is."""
        self.position = head_of(self.shard).position

    def json(self, url: str, method: str, path: str, **_options: Any) -> dict[str, Any]:
        """Answer where it is."""
        self.before_answer()
        term, seq = self.position
        history = [list(start) for start in terms.read_terms(self.shard.pk)]
        return {"term": term, "seq": seq, "promised_term": 1, "terms": history, "manifest_seq": 0, "oldest_seq": 1}

    def call(self, url: str, method: str, path: str, **_options: Any) -> PeerAnswer:
        """Take a slice."""
        assert "/slice?" in path, path
        self.slices += 1
        self.has_all()
        return PeerAnswer(200, {}, orjson.dumps({"term": self.position.term, "seq": self.position.seq}))  # type: ignore[arg-type]


@pytest.fixture
def copy(head: ShardHead, monkeypatch: pytest.MonkeyPatch) -> Copy:
    found = Copy(head)
    monkeypatch.setattr(sender, "peer_client", lambda: found)
    return found


def head_of(shard: ShardHead) -> log.Head:
    found = log.read_head(shard.pk)
    assert found is not None
    return found


def write(shard: ShardHead, *names: str) -> None:
    for name in names:
        namespace_put(shard.pk, name, dimension=3)


def sender_to(copy: Copy) -> Sender:
    return Sender(Target("replica_1", URL, copy.shard.uid, copy.shard.pk))


def test_a_copy_that_is_sent_to_by_others_while_it_is_asked_is_not_ahead_of_its_primary(copy: Copy) -> None:
    write(copy.shard, "a")

    def written_and_sent_by_another_process() -> None:
        write(copy.shard, "b")
        copy.has_all()

    copy.before_answer = written_and_sent_by_another_process
    sending = sender_to(copy)

    assert sending.step(timeout_s=1) is Step.UP_TO_DATE
    assert sending.known == Position(1, 2)


def test_a_primary_that_has_lost_what_a_copy_has_writes_no_more_in_that_term(copy: Copy) -> None:
    """Else its new entries would stand where the lost ones were, and nobody could tell the two logs apart."""
    write(copy.shard, "a", "b")
    copy.position = Position(1, 5)

    with pytest.raises(PrimaryBehind):
        sender_to(copy).step(timeout_s=1)

    with pytest.raises(NotPrimary):
        write(copy.shard, "c")
    assert copy.slices == 0
