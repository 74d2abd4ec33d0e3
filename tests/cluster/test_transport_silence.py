"""Silent peers are waited for once; late ones are not taken for silent ones."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from cluster.transport import client
from cluster.transport.client import PeerClient
from cluster.transport.errors import PeerError, PeerSilent
from cluster.transport.silence import Outcome, SilenceBook
from tests.cluster.scripted_peer import Connection, ScriptedPeer, answers_everything

STATUS = "/cluster/node/status"
ALIVE = "/cluster/node/alive"
URL = "http://db.example:8000"

Wait = Callable[..., Any]


@pytest.fixture(autouse=True)
def _short_times_and_nobody_told(settings: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    settings.MLVDB_PROBE_TIMEOUT_S = 0.2
    monkeypatch.setattr(client, "_refused_hooks", [])
    monkeypatch.setattr(client, "_app_hooks", tuple)


class Peer:
    """What a probe finds, as the test says."""

    def __init__(self) -> None:
        self.outcome: Outcome = "silent"
        self.probes: list[float] = []
        self.may_answer = threading.Event()
        self.may_answer.set()

    def __call__(self, url: str) -> Outcome:
        self.probes.append(time.monotonic())
        self.may_answer.wait(10)
        return self.outcome


@pytest.fixture
def found() -> Peer:
    return Peer()


@pytest.fixture
def book(found: Peer) -> Iterator[SilenceBook]:
    made = SilenceBook(found, every_s=0.05, idle_s=0.1)
    yield made
    found.outcome = "answers"
    found.may_answer.set()


# The book


def test_a_doubt_alone_makes_nobody_silent(book: SilenceBook, found: Peer, wait_for: Wait) -> None:
    found.may_answer.clear()
    book.doubt(URL)
    wait_for(lambda: found.probes, what="the probe")

    assert not book.is_silent(URL)


def test_a_peer_that_answers_the_probe_was_only_late(book: SilenceBook, found: Peer, wait_for: Wait) -> None:
    found.outcome = "answers"
    for number in range(3):
        book.doubt(URL)
        wait_for(lambda number=number: len(found.probes) > number, what="the probe")
        wait_for(lambda: not book._doubted, what="the end of the doubt")

    assert not book.is_silent(URL)


def test_a_peer_that_does_not_answer_the_probe_is_silent_until_it_does(
    book: SilenceBook, found: Peer, wait_for: Wait
) -> None:
    book.doubt(URL)
    wait_for(lambda: book.is_silent(URL), what="the silence")
    wait_for(lambda: len(found.probes) > 3, what="more probes")
    assert book.is_silent(URL)
    assert book.silent_s(URL) > 0

    found.outcome = "answers"

    wait_for(lambda: not book.is_silent(URL), what="the end of the silence")
    assert book.silent_s(URL) == 0


def test_probes_keep_their_distance_and_many_doubts_are_one(book: SilenceBook, found: Peer, wait_for: Wait) -> None:
    for _ in range(50):
        book.doubt(URL)
    wait_for(lambda: len(found.probes) >= 4, what="probes")

    gaps = [later - earlier for earlier, later in zip(found.probes, found.probes[1:], strict=False)]
    assert min(gaps) >= 0.05


def test_whoever_answers_anybody_is_not_silent(book: SilenceBook, found: Peer, wait_for: Wait) -> None:
    book.doubt(URL)
    wait_for(lambda: book.is_silent(URL), what="the silence")

    book.heard(URL)

    assert not book.is_silent(URL)


def test_an_answer_is_newer_than_the_silence_of_a_probe_begun_before(
    book: SilenceBook, found: Peer, wait_for: Wait
) -> None:
    found.may_answer.clear()
    book.doubt(URL)
    wait_for(lambda: found.probes, what="the probe")
    book.heard(URL)
    found.may_answer.set()

    wait_for(lambda: not book._probers, timeout_s=15, what="the end of the probers")
    assert not book.is_silent(URL)


def test_a_probe_that_could_not_be_made_changes_nothing(book: SilenceBook, found: Peer, wait_for: Wait) -> None:
    book.doubt(URL)
    wait_for(lambda: book.is_silent(URL), what="the silence")
    found.outcome = "unknown"
    seen = len(found.probes)
    wait_for(lambda: len(found.probes) > seen + 2, what="more probes")

    book.doubt("http://other.example:1")
    wait_for(lambda: "http://other.example:1" not in book._doubted, what="the end of the doubt")

    assert book.is_silent(URL)
    assert not book.is_silent("http://other.example:1")


def test_one_silent_peer_does_not_delay_the_probe_of_another(found: Peer, wait_for: Wait) -> None:
    over = threading.Event()
    asked: list[str] = []

    def probe(url: str) -> Outcome:
        asked.append(url)
        if url == URL:
            over.wait(10)
        return "answers"

    book = SilenceBook(probe)
    book.doubt(URL)
    book.doubt("http://other.example:1")

    wait_for(lambda: len(asked) == 2, what="both probes")
    over.set()


# The client and its book


class Node:
    """A peer whose routes answer, or do not, as the test says."""

    def __init__(self) -> None:
        self.alive_answers = True
        self.others_answer = True
        self.peer = ScriptedPeer(self._script)
        self.url = self.peer.url

    def _script(self, connection: Connection) -> None:
        while (request := connection.request()) is not None:
            if self.alive_answers if request.target == ALIVE else self.others_answer:
                connection.answer()
            else:
                connection.hold()

    def targets(self, target: str) -> int:
        return sum(request.target == target for request in self.peer.requests)


@pytest.fixture
def node() -> Iterator[Node]:
    made = Node()
    yield made
    made.peer.close()


@pytest.fixture
def calls() -> Iterator[PeerClient]:
    made = PeerClient()
    yield made
    made.close()


def test_a_long_call_that_times_out_at_a_living_peer_makes_it_not_silent(
    calls: PeerClient, node: Node, wait_for: Wait
) -> None:
    node.others_answer = False

    for _ in range(3):
        with pytest.raises(PeerSilent) as caught:
            calls.call(node.url, "GET", STATUS, timeout_s=0.3)
        assert caught.value.waited
        wait_for(lambda: not calls._silence._doubted, what="the end of the doubt")

    assert node.targets(ALIVE) >= 3
    assert not calls.is_silent(node.url)


def test_a_silent_peer_is_waited_for_once(calls: PeerClient, node: Node, wait_for: Wait) -> None:
    node.alive_answers = node.others_answer = False
    with pytest.raises(PeerSilent):
        calls.call(node.url, "GET", STATUS, timeout_s=0.3)
    wait_for(lambda: calls.is_silent(node.url), what="the silence")
    asked = node.targets(STATUS)
    began = time.monotonic()

    for _ in range(100):
        with pytest.raises(PeerSilent) as caught:
            calls.call(f"{node.url}/", "GET", STATUS, timeout_s=5)
        assert not caught.value.waited

    assert time.monotonic() - began < 1
    assert node.targets(STATUS) == asked


def test_silence_is_found_out_while_the_first_call_still_waits(calls: PeerClient, node: Node, wait_for: Wait) -> None:
    node.alive_answers = node.others_answer = False
    errors: list[PeerError] = []

    def wait_long() -> None:
        try:
            calls.call(node.url, "GET", STATUS, timeout_s=20)
        except PeerError as error:
            errors.append(error)

    thread = threading.Thread(target=wait_long)
    thread.start()

    wait_for(lambda: calls.is_silent(node.url), timeout_s=5, what="the silence")
    assert thread.is_alive()
    node.peer.close()
    thread.join(10)
    assert len(errors) == 1


def test_a_slow_answer_is_waited_for_in_spite_of_the_doubt(calls: PeerClient, wait_for: Wait) -> None:
    probed = threading.Event()

    def script(connection: Connection) -> None:
        while (request := connection.request()) is not None:
            if request.target == ALIVE:
                probed.set()
            else:
                probed.wait(10)
            connection.answer()

    peer = ScriptedPeer(script)
    try:
        assert calls.call(peer.url, "GET", STATUS, timeout_s=10).status == 200
        assert not calls.is_silent(peer.url)
    finally:
        peer.close()


def test_a_peer_that_is_back_is_called_again_without_a_hand(calls: PeerClient, node: Node, wait_for: Wait) -> None:
    node.alive_answers = node.others_answer = False
    with pytest.raises(PeerSilent):
        calls.call(node.url, "GET", STATUS, timeout_s=0.3)
    wait_for(lambda: calls.is_silent(node.url), what="the silence")

    node.alive_answers = node.others_answer = True

    wait_for(lambda: not calls.is_silent(node.url), what="the end of the silence")
    assert calls.call(node.url, "GET", STATUS).status == 200


def test_background_work_asks_a_silent_peer_all_the_same(calls: PeerClient, node: Node, wait_for: Wait) -> None:
    node.alive_answers = node.others_answer = False
    with pytest.raises(PeerSilent):
        calls.call(node.url, "GET", STATUS, timeout_s=0.3)
    wait_for(lambda: calls.is_silent(node.url), what="the silence")
    node.others_answer = True

    assert calls.call(node.url, "GET", STATUS, even_if_silent=True).status == 200
    assert not calls.is_silent(node.url)


def test_a_silent_peer_that_is_gone_is_refused_and_not_silent(calls: PeerClient, node: Node, wait_for: Wait) -> None:
    node.alive_answers = node.others_answer = False
    with pytest.raises(PeerSilent):
        calls.call(node.url, "GET", STATUS, timeout_s=0.3)
    wait_for(lambda: calls.is_silent(node.url), what="the silence")

    node.peer.close()

    wait_for(lambda: not calls.is_silent(node.url), what="the end of the silence")


def test_one_silent_peer_leaves_the_others_alone(calls: PeerClient, node: Node, wait_for: Wait) -> None:
    node.alive_answers = node.others_answer = False
    with pytest.raises(PeerSilent):
        calls.call(node.url, "GET", STATUS, timeout_s=0.3)
    wait_for(lambda: calls.is_silent(node.url), what="the silence")
    other = ScriptedPeer(answers_everything)
    try:
        assert calls.call(other.url, "GET", STATUS).status == 200
    finally:
        other.close()
