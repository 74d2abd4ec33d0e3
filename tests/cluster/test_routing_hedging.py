"""Asking several copies: the next one when one is late or fails, all until enough have answered."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextvars import ContextVar

import pytest

from cluster.routing.hedging import Attempt, Gathering, NoAnswer, first_answer
from cluster.routing.threads import CallThreads, PeerBusy
from cluster.routing.waits import Waits
from tests.processes.node import wait_for
from vectors.errors import Busy, VectorNotFound


class Peer:
    """A copy whose answer comes when the test says so."""

    def __init__(self, name: str, *, answer: object = None, error: Exception | None = None) -> None:
        self.name = name
        self.asked = threading.Event()
        self.ended = threading.Event()
        self.go_on = threading.Event()
        self.timeout_s: float | None = None
        self._answer = answer if answer is not None else name
        self._error = error

    def at_once(self) -> Peer:
        self.go_on.set()
        return self

    def attempt(self, *, is_here: bool = False) -> Attempt[object]:
        return Attempt(self.name, "" if is_here else f"http://{self.name}", self._call)

    def _call(self, timeout_s: float) -> object:
        self.timeout_s = timeout_s
        self.asked.set()
        self.go_on.wait(10)
        self.ended.set()
        if self._error is not None:
            raise self._error
        return self._answer


@pytest.fixture
def threads() -> CallThreads:
    return CallThreads(per_peer=2)


@pytest.fixture
def peers() -> Iterator[Callable[..., Peer]]:
    made: list[Peer] = []

    def make(name: str, **more: object) -> Peer:
        made.append(Peer(name, **more))  # type: ignore[arg-type]
        return made[-1]

    yield make
    for peer in made:
        peer.go_on.set()


def ask(threads: CallThreads, *peers: Peer, deadline_s: float = 5.0, hedge_after_s: float = 5.0) -> object:
    return first_answer(
        [peer.attempt() for peer in peers],
        deadline=time.monotonic() + deadline_s,
        hedge_after_s=hedge_after_s,
        is_final=lambda error: isinstance(error, VectorNotFound),
        threads=threads,
    ).answer


def test_the_first_copy_answers_and_the_second_is_not_asked(threads, peers):
    first, second = peers("a").at_once(), peers("b")

    assert ask(threads, first, second) == "a"
    assert not second.asked.is_set()


def test_a_late_copy_is_overtaken_by_the_next_one(threads, peers):
    late, second = peers("late"), peers("b").at_once()

    assert ask(threads, late, second, hedge_after_s=0.01) == "b"
    assert late.asked.is_set()
    assert not late.ended.is_set()


def test_a_late_copy_still_wins_when_it_is_faster_than_the_next_one(threads, peers):
    late, later = peers("late"), peers("later")
    later_is_asked = threading.Thread(target=lambda: (later.asked.wait(5), late.go_on.set()))
    later_is_asked.start()

    assert ask(threads, late, later, hedge_after_s=0.01) == "late"
    later_is_asked.join()


def test_the_next_copy_is_asked_at_once_when_one_fails(threads, peers):
    broken, second = peers("broken", error=OSError("gone")).at_once(), peers("b").at_once()
    began = time.monotonic()

    assert ask(threads, broken, second, hedge_after_s=5) == "b"
    assert time.monotonic() - began < 4


def test_an_error_that_is_an_answer_is_raised_and_nobody_else_is_asked(threads, peers):
    first, second = peers("a", error=VectorNotFound("no such row")).at_once(), peers("b").at_once()

    with pytest.raises(VectorNotFound):
        ask(threads, first, second)
    assert not second.asked.is_set()


def test_when_all_fail_the_reasons_are_named_in_order(threads, peers):
    with pytest.raises(NoAnswer) as caught:
        ask(threads, peers("a", error=OSError("x")).at_once(), peers("b", error=OSError("y")).at_once())

    assert [(name, str(error)) for name, error in caught.value.errors] == [("a", "x"), ("b", "y")]


def test_the_deadline_ends_the_asking_while_calls_are_under_way(threads, peers):
    began = time.monotonic()

    with pytest.raises(NoAnswer):
        ask(threads, peers("a"), peers("b"), deadline_s=0.1, hedge_after_s=0.01)
    assert time.monotonic() - began < 2


def test_a_call_has_what_is_left_of_the_request_s_time(threads, peers):
    late, second = peers("late"), peers("b").at_once()

    ask(threads, late, second, deadline_s=3, hedge_after_s=0.2)

    assert late.timeout_s is not None
    assert second.timeout_s is not None
    assert second.timeout_s <= late.timeout_s - 0.15 <= 3


def test_a_lone_copy_is_asked_in_the_thread_of_the_request(threads):
    asked_in: list[threading.Thread] = []
    attempt = Attempt("a", "http://a", lambda _timeout_s: asked_in.append(threading.current_thread()))

    first_answer(
        [attempt], deadline=time.monotonic() + 1, hedge_after_s=1, is_final=lambda _error: True, threads=threads
    )

    assert asked_in == [threading.current_thread()]


def test_the_copy_here_is_asked_in_the_thread_of_the_request_while_another_is_late(threads, peers):
    late, asked_in = peers("late"), []
    here: Attempt[object] = Attempt("here", "", lambda _timeout_s: asked_in.append(threading.current_thread()) or 1)

    outcome = first_answer(
        [late.attempt(), here],
        deadline=time.monotonic() + 5,
        hedge_after_s=0.01,
        is_final=lambda _error: True,
        threads=threads,
    )

    assert outcome.name == "here"
    assert asked_in == [threading.current_thread()]


def test_a_call_in_another_thread_knows_the_request_that_it_is_made_for(threads, peers):
    seen: list[str] = []
    request_id: ContextVar[str] = ContextVar("request_id")
    request_id.set("abc")
    attempt: Attempt[object] = Attempt("a", "http://a", lambda _timeout_s: seen.append(request_id.get()) or 1)

    first_answer(
        [attempt, peers("b").attempt()],
        deadline=time.monotonic() + 5,
        hedge_after_s=5,
        is_final=lambda _error: True,
        threads=threads,
    )

    assert seen == ["abc"]


def test_a_loser_s_thread_comes_to_its_end_and_is_used_again(threads, peers):
    late, second = peers("late"), peers("b").at_once()
    ask(threads, late, second, hedge_after_s=0.01)
    assert threads.under_way("http://late") == 1

    late.go_on.set()

    wait_for(lambda: threads.under_way("http://late") == 0, what="the end of the loser's call")
    before = threading.active_count()
    ask(threads, peers("c").at_once(), peers("d").at_once())
    assert threading.active_count() <= before


def test_a_peer_with_too_many_unanswered_calls_is_passed_over_and_others_are_not_held_up(threads, peers):
    for _ in range(2):
        ask(threads, peers("stopped"), peers("b").at_once(), hedge_after_s=0.01)

    third = peers("stopped")
    assert ask(threads, third, peers("b").at_once(), hedge_after_s=5) == "b"
    assert not third.asked.is_set()


def gather(threads: CallThreads, *peers: Peer, deadline_s: float = 5.0) -> Gathering[object]:
    return Gathering([peer.attempt() for peer in peers], deadline=time.monotonic() + deadline_s, threads=threads)


def test_all_are_asked_at_the_same_time_and_answers_come_as_they_come(threads, peers):
    slow, quick, broken = peers("slow"), peers("quick").at_once(), peers("broken", error=OSError("x"))
    gathering = gather(threads, slow, quick, broken)

    assert gathering.next().answer == "quick"
    assert slow.asked.wait(5)
    assert broken.asked.wait(5)
    broken.go_on.set()
    assert isinstance(gathering.next().error, OSError)
    slow.go_on.set()
    assert gathering.next().answer == "slow"
    assert gathering.next() is None


def test_nobody_is_waited_for_beyond_the_deadline(threads, peers):
    assert gather(threads, peers("a"), peers("b"), deadline_s=0.05).next() is None


def test_one_may_wait_for_an_answer_for_less_than_the_deadline_and_again(threads, peers):
    slow = peers("slow")
    gathering = gather(threads, slow, peers("b"), deadline_s=60)

    assert gathering.next(within_s=0.01) is None
    slow.go_on.set()
    assert gathering.next().answer == "slow"


def test_a_peer_with_too_many_unanswered_calls_counts_as_one_that_failed(peers):
    threads = CallThreads(per_peer=1)
    gather(threads, peers("stopped"), peers("a").at_once())

    outcome = gather(threads, peers("stopped"), peers("b")).next()

    assert outcome is not None
    assert outcome.name == "stopped"
    assert isinstance(outcome.error, PeerBusy)


def test_threads_are_refused_beyond_the_bound_of_one_peer_only():
    threads, go_on = CallThreads(per_peer=1), threading.Event()
    threads.start("a", lambda: go_on.wait(5))

    with pytest.raises(PeerBusy):
        threads.start("a", lambda: None)
    done = threading.Event()
    threads.start("b", done.set)
    assert done.wait(5)
    go_on.set()


def test_two_threads_of_a_worker_never_wait():
    waits = Waits(4)

    with waits.slot(), waits.slot(), pytest.raises(Busy) as caught, waits.slot():
        pass
    assert caught.value.retry_after_s == 1
    with waits.slot():
        pass


def test_a_request_counts_once_whatever_it_waits_for_and_in_whichever_thread():
    waits = Waits(3)
    seen = []
    calls = CallThreads(per_peer=2)
    done = threading.Event()

    def call() -> None:
        with waits.slot():
            seen.append("thread")
        done.set()

    with waits.request_slot(), waits.slot():
        calls.start("a", call)
        assert done.wait(5)
        other = threading.Thread(target=lambda: seen.append(is_busy(waits)))
        other.start()
        other.join(5)

    assert seen == ["thread", True]
    assert not is_busy(waits)


def is_busy(waits: Waits) -> bool:
    """Whether another request may not wait now."""
    try:
        with waits.slot():
            return False
    except Busy:
        return True


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_a_worker_of_few_threads_lets_one_wait(threads):
    assert Waits(threads).limit == 1
