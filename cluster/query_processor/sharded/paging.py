"""A page of rows in key order, put together from pages of shards.

Each shard is asked for its share of the page and some more. What is behind the last key of a shard that has more is not
known yet, so rows count up to the least of these keys, and the shard it belongs to is asked to go on from there. So a
page of n rows costs about n rows, not n of each shard.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Any

from cluster.query_processor.means import Means
from cluster.query_processor.sharded.picture import Picture
from cluster.query_processor.sharded.routing import owning
from cluster.query_processor.sharded.scatter import Scattered, failed_account, gathered
from cluster.sharding.view import ShardMember
from vectors.engine.filters import Filter
from vectors.engine.namespace import NamespaceSpec
from vectors.errors import MLVectorDBError
from vectors.query_processor import Answer, Page, Record, ShardAccount

_SOME_MORE = 16


@dataclass(slots=True)
class _Stream:
    """What is known of one shard's rows: those fetched and not handed out, and where the rest begins."""

    member: ShardMember
    records: list[Record] = field(default_factory=list)
    next_after: bytes | None = None
    has_more: bool = True


class PageOfShards:
    """One page on its way: up to `limit` rows after a key."""

    def __init__(
        self,
        picture: Picture,
        spec: NamespaceSpec,
        shared: Means,
        *,
        limit: int,
        after: bytes | None,
        filter: Filter | None,
        with_values: bool,
    ) -> None:
        self._picture = picture
        self._spec = spec
        self._shared = shared
        self._limit = limit
        self._arguments: dict[str, Any] = {
            "namespace": spec.name,
            "filter": filter,
            "with_values": with_values,
        }
        members = owning(picture.sharding)
        self._share = limit if len(members) == 1 else _share(limit, len(members))
        self._streams = [_Stream(member, next_after=after) for member in members]
        self._accounts: dict[str, list[ShardAccount]] = {}

    def answer(self) -> Answer[Page]:
        """Return it. Raise what `gathered` raises."""
        self._fetch(self._streams)
        records: list[Record] = []
        while True:
            waiting = [stream for stream in self._streams if stream.has_more]
            bound = min((stream.records[-1].key for stream in waiting), default=None)
            records.extend(self._through(bound))
            if len(records) > self._limit or bound is None or (len(records) == self._limit and waiting):
                break
            self._fetch([stream for stream in waiting if not stream.records])
        more = len(records) > self._limit or any(stream.has_more or stream.records for stream in self._streams)
        records = records[: self._limit]
        accounts = [account for stream in self._streams for account in self._accounts[stream.member.uid]]
        return Answer(Page(records, records[-1].key if more and records else None), accounts)

    def _through(self, bound: bytes | None) -> list[Record]:
        """Take the fetched rows up to a key, in order; all of them without one."""
        taken: list[Record] = []
        for stream in self._streams:
            if bound is None or (stream.records and stream.records[-1].key <= bound):
                taken.extend(stream.records)
                stream.records = []
            else:
                kept = next((at for at, record in enumerate(stream.records) if record.key > bound), 0)
                taken.extend(stream.records[:kept])
                stream.records = stream.records[kept:]
        taken.sort(key=lambda record: record.key)
        return taken

    def _fetch(self, streams: list[_Stream]) -> None:
        found = gathered(self._picture, [self._question(stream) for stream in streams], self._shared)
        for stream in streams:
            uid = stream.member.uid
            failure = found.failures.get(uid)
            if failure is not None:
                self._give_up(stream, failure)
                continue
            page: Page = found.answers[uid].value
            stream.records = page.records
            stream.next_after = page.next_after
            stream.has_more = page.next_after is not None
            self._note(stream, found)

    def _question(self, stream: _Stream) -> Any:
        return self._picture.question(
            stream.member, self._spec, "scroll", limit=self._share, after=stream.next_after, **self._arguments
        )

    def _note(self, stream: _Stream, found: Scattered) -> None:
        """Add up the accounts of a shard that was asked more than once."""
        uid = stream.member.uid
        accounts = list(found.answers[uid].shards)
        before = self._accounts.get(uid, [])
        if len(before) == len(accounts):
            accounts = [
                replace(account, took_ms=account.took_ms + earlier.took_ms)
                for account, earlier in zip(accounts, before, strict=True)
            ]
        self._accounts[uid] = accounts

    def _give_up(self, stream: _Stream, failure: MLVectorDBError) -> None:
        # The client accepts a part: what this shard still has is left out, and said to be.
        stream.records, stream.has_more = [], False
        self._accounts[stream.member.uid] = [failed_account(stream.member, failure.code)]


def _share(limit: int, members: int) -> int:
    """Return how many rows a shard is asked for: its share of a page as hashed ids fall, and four deviations more."""
    expected = limit / members
    return min(limit, math.ceil(expected + 4 * math.sqrt(expected)) + _SOME_MORE)
