"""Terms: what histories tell of two logs and of tokens, and that one vote and one primary is all a term has."""

from __future__ import annotations

import threading

import pytest
from django.db import connection
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.vectors.paper_logs import PaperLog, new_copy
from vectors.engine.operations import Kind, StartTerm
from vectors.errors import NotPrimary, NotReady, StaleTerm, TokenLost
from vectors.models import LogEntry, Manifest, ShardHead, ShardTerm
from vectors.query_processor import LocalQueryProcessor, RequestOptions
from vectors.store import log, terms
from vectors.store.cut_back import cut_back
from vectors.store.log import START, Position
from vectors.store.pins import pin_set
from vectors.store.receive import receive
from vectors.store.terms import TermStart, TokenState
from vectors.store.verify import verify_shard
from vectors.tokens import Token, token_of

UID = "ab" * 16
SHORT = UID[:8]


def history_of(entries):
    """Return the history of a log given as the terms of its entries."""
    changes = [seq for seq, term in enumerate(entries, start=1) if entries[seq - 2 : seq - 1] != [term]]
    return [TermStart(entries[seq - 1], seq) for seq in changes] or [TermStart(1, 1)]


@st.composite
def branches(draw, number):
    """Entries of terms that no other branch has: a term has one primary."""
    rises = draw(st.lists(st.integers(1, 2), max_size=3))
    terms_of = [10 + 2 * sum(rises[: place + 1]) + number for place in range(len(rises))]
    return [term for term in terms_of for _ in range(draw(st.integers(1, 4)))]


@st.composite
def two_logs(draw):
    common = [1] * draw(st.integers(0, 5))
    for term in (3, 6):
        if draw(st.booleans()):
            common = common + [term] * draw(st.integers(1, 4))
    ours, theirs = common[: draw(st.integers(0, len(common)))], common[: draw(st.integers(0, len(common)))]
    return ours + draw(branches(0)), theirs + draw(branches(1))


@given(logs=two_logs())
@settings(max_examples=400, deadline=None)
def test_the_last_common_position_is_the_one_that_comparing_all_entries_finds(logs):
    ours, theirs = logs
    shared = 0
    while shared < min(len(ours), len(theirs)) and ours[shared] == theirs[shared]:
        shared += 1
    expected = Position(ours[shared - 1], shared) if shared else START
    found = terms.last_common(history_of(ours), len(ours), history_of(theirs), len(theirs))
    assert found == expected
    assert terms.last_common(history_of(theirs), len(theirs), history_of(ours), len(ours)) == expected


@given(logs=two_logs())
@settings(max_examples=100, deadline=None)
def test_the_term_at_a_seq_is_that_of_the_entry(logs):
    for entries in logs:
        history = history_of(entries)
        assert [terms.term_at(history, seq) for seq in range(1, len(entries) + 1)] == entries
        assert terms.term_at(history, 0) == START.term


def test_two_forced_terms_of_one_number_are_not_common():
    ours = [TermStart(1, 1), TermStart(2, 8)]
    theirs = [TermStart(1, 1), TermStart(2, 6)]
    assert terms.last_common(ours, 20, theirs, 20) == Position(1, 5)


@given(logs=two_logs(), data=st.data())
@settings(max_examples=400, deadline=None)
def test_a_token_of_another_log_is_held_or_lost_or_later_as_the_entries_say(logs, data):
    ours, theirs = logs
    if not theirs:
        return
    seq = data.draw(st.integers(1, len(theirs)))
    token = Token(0, SHORT, theirs[seq - 1], seq)
    state = terms.token_state(token, uid=UID, history=history_of(ours), seq=len(ours))
    if seq <= len(ours) and ours[seq - 1] == theirs[seq - 1]:
        assert state is TokenState.HELD
    elif (ours[:seq] or [1])[-1] > theirs[seq - 1]:
        # Whatever this log gets from here on, terms only rise: that entry is in none of its futures.
        assert state is TokenState.LOST
    else:
        # One future holds it: this log cut back to what both have, and gone on as the other one.
        assert state is TokenState.LATER


def test_a_token_of_another_shard_is_lost_and_one_of_an_empty_log_is_held_everywhere():
    history = [TermStart(1, 1)]
    assert terms.token_state(Token(0, "00000000", 1, 1), uid=UID, history=history, seq=5) is TokenState.LOST
    assert terms.token_state(Token(0, SHORT, 0, 0), uid=UID, history=history, seq=0) is TokenState.HELD


def test_a_promise_keeps_the_primary_from_committing_anything_more(shard, batch):
    shard.queries.upsert_many(batch(0, 3), namespace="a")
    before = log.read_head(shard.head.pk)
    promised = terms.term_promise(shard.head.pk, 2, candidate="c" * 32)
    assert promised == before._replace(promised_term=2, voted_for="c" * 32)
    assert log.read_head(shard.head.pk) == promised
    with pytest.raises(NotPrimary) as refused:
        shard.queries.upsert_many(batch(3, 1), namespace="a")
    assert refused.value.detail == {"shard": "shard_0", "term": 1, "promised_term": 2}
    with pytest.raises(NotPrimary):
        shard.queries.namespace_put("b", dimension=3)
    with pytest.raises(NotPrimary):
        shard.queries.namespace_drop("a")
    assert log.read_head(shard.head.pk) == promised
    assert shard.queries.count(namespace="a").value == 3
    assert shard.queries.list_namespaces().value == ["a"]


def test_a_term_has_one_vote_and_it_may_be_asked_for_again(shard):
    first = terms.term_promise(shard.head.pk, 5, candidate="c" * 32)
    assert terms.term_promise(shard.head.pk, 5, candidate="c" * 32) == first
    with pytest.raises(StaleTerm) as refused:
        terms.term_promise(shard.head.pk, 5, candidate="d" * 32)
    assert refused.value.detail == {"promised_term": 5, "voted_for": "c" * 32, "term": 1}
    with pytest.raises(StaleTerm):
        terms.term_promise(shard.head.pk, 4, candidate="c" * 32)
    assert terms.term_promise(shard.head.pk, 6, candidate="d" * 32).voted_for == "d" * 32


def test_a_term_that_was_heard_of_has_its_primary_and_gets_no_vote(shard):
    assert terms.term_heard(shard.head.pk, 4).promised_term == 4
    assert terms.term_heard(shard.head.pk, 3).promised_term == 4
    with pytest.raises(StaleTerm):
        terms.term_promise(shard.head.pk, 4, candidate="c" * 32)


def test_promises_race_with_appends_and_nothing_is_committed_after_one_is_answered(shard, batch):
    shard.queries.upsert_many(batch(0, 1), namespace="a")
    stop, writers, promised = threading.Event(), [], []

    def write(start):
        try:
            for number in range(start, start + 1000):
                if stop.is_set():
                    return
                writers.append(next(iter(shard.queries.upsert_many(batch(number, 1), namespace="a").seq.values())))
        except NotPrimary:
            writers.append(None)
        finally:
            connection.close()

    def promise():
        try:
            promised.append(terms.term_promise(shard.head.pk, 2, candidate="c" * 32))
        finally:
            connection.close()

    threads = [threading.Thread(target=write, args=(1000 * number,)) for number in range(1, 4)]
    for thread in threads:
        thread.start()
    while len(writers) < 20:
        assert any(thread.is_alive() for thread in threads)
    promiser = threading.Thread(target=promise)
    promiser.start()
    for thread in [promiser, *threads]:
        thread.join(timeout=30)
    stop.set()
    assert writers.count(None) == 3
    acknowledged = [int(token.rsplit(".", 1)[1]) for token in writers if token is not None]
    assert max(acknowledged) <= promised[0].last_seq
    assert ShardHead.objects.get().last_seq == LogEntry.objects.count() == promised[0].last_seq


def test_a_new_term_begins_with_an_entry_that_names_the_one_before(shard, batch, settings):
    shard.queries.upsert_many(batch(0, 3), namespace="a")
    terms.term_promise(shard.head.pk, 4, candidate=settings.MLVDB_NODE_ID)
    position = terms.term_start(shard.head.pk, 4)
    assert position == (4, 3)
    assert terms.term_start(shard.head.pk, 4) == position
    [entry] = log.read_after(shard.head.pk, 2, through=3)
    assert (entry.term, entry.kind, entry.namespace) == (4, Kind.TERM_START, "")
    assert entry.operation() == StartTerm(settings.MLVDB_NODE_ID, after=1)
    assert terms.read_terms(shard.head.pk) == [TermStart(1, 1), TermStart(4, 3)]
    head = log.read_head(shard.head.pk)
    assert (head.term, head.promised_term, head.takes_writes, head.knocked) == (4, 4, True, True)
    token = next(iter(shard.queries.upsert_many(batch(3, 1), namespace="a").seq.values()))
    assert token.endswith(".4.4")
    assert shard.queries.count(namespace="a").value == 4
    assert shard.served_digest("a") == shard.digest("a")
    shard.checkpoint()
    shard.restart()
    assert shard.queries.count(namespace="a").value == 4
    assert ShardTerm.objects.count() == 1


def test_only_the_node_that_has_the_vote_starts_the_term(shard):
    terms.term_promise(shard.head.pk, 3, candidate="c" * 32)
    for term in (1, 2, 3):
        with pytest.raises(StaleTerm):
            terms.term_start(shard.head.pk, term)
    assert log.read_head(shard.head.pk).last_seq == 0
    # Of a term that no copy here has heard of, the copy's own vote is taken along.
    assert terms.term_start(shard.head.pk, 4) == (4, 1)
    assert terms.read_terms(shard.head.pk) == [TermStart(4, 1)]


def test_a_released_primary_takes_no_writes_until_it_starts_a_term_again(shard, batch):
    shard.queries.upsert_many(batch(0, 1), namespace="a")
    released = terms.primary_release(shard.head.pk, 2)
    assert (released.is_primary, released.promised_term, released.term) == (False, 2, 1)
    assert terms.primary_release(shard.head.pk, 1) == released
    with pytest.raises(NotPrimary):
        shard.queries.upsert_many(batch(1, 1), namespace="a")
    terms.term_start(shard.head.pk, 3)
    assert shard.queries.upsert_many(batch(1, 1), namespace="a").count == 1
    with pytest.raises(StaleTerm):
        terms.primary_release(shard.head.pk, 2)


@pytest.mark.parametrize(
    ("alter", "finding"),
    [
        (lambda: ShardTerm.objects.filter(term=6).delete(), "the head is of term 6, its last entry of term 4"),
        (lambda: ShardTerm.objects.filter(term=3).delete(), "log entry 3 has term 3, by the terms noted 1"),
        (lambda: ShardTerm.objects.filter(term=3).update(first_seq=2), "log entry 2 has term 1, by the terms noted 3"),
        (lambda: ShardTerm.objects.filter(term=3).update(first_seq=4), "log entry 3 begins term 3"),
        (lambda: ShardTerm.objects.filter(term=3).update(first_seq=9), "term 3 from seq 9 does not follow term 6"),
        (lambda: ShardTerm.objects.filter(term=6).update(first_seq=99), "begins at seq 99, behind the end of the log"),
        (lambda: ShardHead.objects.update(promised_term=2), "the head has promised term 2 and is of term 6"),
        (lambda: Manifest.objects.update(term=1), "the manifest of seq 4 is of term 1, the log there of term 3"),
        (lambda: LogEntry.objects.filter(seq=5).update(term=3), "log entry 5 has term 3, by the terms noted 4"),
    ],
)
def test_verification_finds_terms_that_do_not_follow_from_the_log(shard, batch, alter, finding):
    pin_set(shard.head.pk, "test", seq=0)
    shard.queries.upsert_many(batch(0, 1), namespace="a")
    terms.term_start(shard.head.pk, 3)
    shard.queries.upsert_many(batch(1, 1), namespace="a")
    shard.checkpoint()
    terms.term_start(shard.head.pk, 4)
    terms.term_start(shard.head.pk, 6)
    assert verify_shard(shard.head).findings == []
    alter()
    findings = verify_shard(shard.head).findings
    assert any(finding in line for line in findings), findings


def test_a_session_token_is_held_lost_or_not_there_yet_as_the_terms_say(shard, batch):
    paper = PaperLog()
    paper.put("a" * 32, "a")
    for number in range(4):
        paper.upsert("a" * 32, number)
    newer = paper.fork(3, 4)
    newer.upsert("a" * 32, 9)
    head = new_copy()
    queries = LocalQueryProcessor(head.pk)

    def ask(position):
        token = token_of(head.uid, term=position.term, seq=position.seq)
        return queries.count(namespace="a", options=RequestOptions(min_seq={"copy": token})).value

    receive(head.pk, term=1, before=START, entries=paper.entries)
    assert ask(paper.position) == 4
    for later in (Position(1, 6), newer.at(4), newer.position):
        with pytest.raises(NotReady):
            ask(later)
    cut_back(head.pk, to=paper.at(3), term=4)
    with pytest.raises(NotReady):
        ask(newer.at(4))
    receive(head.pk, term=4, before=newer.at(3), entries=newer.after(3))
    assert ask(newer.position) == ask(paper.at(3)) == 3
    for lost in (paper.at(4), paper.at(5), Position(1, 99)):
        with pytest.raises(TokenLost):
            ask(lost)
    with pytest.raises(NotReady):
        ask(Position(4, 99))
    # The primary of the term has what was acknowledged in it; of a newer one it may not know.
    terms.term_start(head.pk, 5)
    with pytest.raises(TokenLost):
        ask(Position(5, 99))
    with pytest.raises(NotReady):
        ask(Position(6, 99))
