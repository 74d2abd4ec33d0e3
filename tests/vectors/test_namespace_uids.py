"""Uids of namespaces that say which of two was made later."""

from __future__ import annotations

import uuid

import pytest

from vectors.namespace_uids import is_later, ordered_uid

NOW_MS = 1_800_000_000_000


def test_a_uid_is_a_uuid_of_version_7_with_the_time_it_was_made_at():
    made = uuid.UUID(hex=ordered_uid(now_ms=NOW_MS))

    assert (made.version, made.variant, made.int >> 80) == (7, uuid.RFC_4122, NOW_MS)


@pytest.mark.parametrize("now_ms", [NOW_MS - 86_400_000, NOW_MS, NOW_MS + 1])
def test_each_is_later_than_the_one_before_whatever_the_clock_says(now_ms):
    first = ordered_uid(now_ms=NOW_MS)
    second = ordered_uid(now_ms=now_ms, newest=first)

    assert second > first
    assert is_later(second, first) is True
    assert is_later(first, second) is False


@pytest.mark.parametrize("other", ["abab6c495e774f30a3e4e62ac14aa3f7", "0" * 32, "7" * 31 + "x", ""])
def test_those_that_a_node_made_for_itself_come_first(other):
    made = ordered_uid(now_ms=NOW_MS)

    assert is_later(made, other) is True
    assert is_later(other, made) is False


def test_of_two_that_nodes_made_for_themselves_it_cannot_be_told():
    assert is_later(uuid.uuid4().hex, uuid.uuid4().hex) is None
