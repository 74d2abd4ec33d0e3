"""What a full sync's sender has, recorded, and a copy on another data dir that takes it."""

from __future__ import annotations

import dataclasses
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from mlvdb_site.node import NodeFiles
from vectors import runtime
from vectors.engine.operations import Operation, encode
from vectors.models import ShardHead
from vectors.store import leases, log
from vectors.store.copies import copy_create
from vectors.store.install import Installed, install
from vectors.store.log import Entry, Position
from vectors.store.offer import SyncOffer, file_path, offer_make
from vectors.store.staging import chunk_write, offer_take
from vectors.store.terms import TermStart

Digests = Mapping[str, tuple[int, str]]


@dataclass
class Recorded:
    """An offer, the bytes of its files, the log after it, and what the sender holds at its head."""

    offer: SyncOffer
    files: Mapping[str, bytes]
    entries: list[Entry]
    digests: Digests

    def of_term(self, term: int, *, token: int = 1, since: int = 2) -> Recorded:
        """The same contents, offered by the primary of another term, whose history is its own from seq `since` on."""
        terms = [TermStart(1, 1), TermStart(term, since)] if term > 1 else [TermStart(1, 1)]
        manifest = dataclasses.replace(self.offer.manifest, term=term)
        head = Position(term, self.offer.head.seq)
        offer = dataclasses.replace(self.offer, manifest=manifest, terms=terms, head=head, token=token)
        return dataclasses.replace(self, offer=offer)

    def with_token(self, token: int, **changes: object) -> Recorded:
        """The same, offered under another token."""
        return dataclasses.replace(self, offer=dataclasses.replace(self.offer, token=token, **changes))


def record(shard, *, name: str = "ship:1") -> Recorded:
    """Offer what a shard holds and record it."""
    lease = leases.seize_lease(name, "sender")
    offer = offer_make(shard.head.pk, lease)
    files = {path: file_path(offer.shard, path).read_bytes() for path in offer.files}
    entries = list(log.read_after(shard.head.pk, offer.seq, through=offer.head.seq))
    return Recorded(offer, files, entries, digests(shard))


def digests(shard) -> Digests:
    """Rows and digest of every namespace, read from disk."""
    from vectors.engine.digest import view_digest
    from vectors.store import recovery

    opened = recovery.open_shard(shard.head.pk)
    assert not opened.damage
    return {item.spec.name: view_digest(item.view()) for item in opened.engine.namespaces()}


def move_to_another_node(shard, settings, root, *, uid: str, label: str = "shard_0") -> None:
    """Leave the sender's data dir and rows behind; `shard` is a new copy of shard `uid` in `root`."""
    runtime.reset()
    ShardHead.objects.all().delete()
    settings.NODE_FILES = NodeFiles(root)
    settings.NODE_FILES.create()
    shard.head = copy_create(uid, label)


def send_files(
    recorded: Recorded, *, chunk: int = 700, harm: Callable[[str, int, bytes], bytes] = lambda path, at, data: data
) -> dict[str, int]:
    """Offer and send every file as a sender does; return the bytes sent of each. `harm` may alter what is sent."""
    sent: dict[str, int] = {}
    for path, here in offer_take(recorded.offer).items():
        data, tries = recorded.files[path], 0
        while here < len(data):
            part = harm(path, here, data[here : here + chunk])
            sent[path] = sent.get(path, 0) + len(part)
            here = chunk_write(recorded.offer.shard, path, here, part)
            tries += 1
            assert tries < 10_000
    return sent


def sync(recorded: Recorded, **how) -> Installed:
    """Do a whole full sync."""
    send_files(recorded, **how)
    return install(recorded.offer.shard, recorded.offer)


def entry(seq: int, term: int, namespace: str, operation: Operation) -> Entry:
    """Make a log entry."""
    payload = encode(operation)
    crc32 = log.checksum(seq, term, operation.kind, namespace, zlib.crc32(payload))
    return Entry(seq, term, namespace, int(operation.kind), payload, crc32)
