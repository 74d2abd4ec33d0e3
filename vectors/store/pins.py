"""Pins: log entries and manifests that someone still reads, which pruning and cleaning leave alone.

A holder sets its pin anew while it works. Whoever prunes ignores, and removes, a pin that it has seen unchanged for
MLVDB_PIN_S on its own monotonic clock: a holder that died keeps nothing for ever.
"""

from __future__ import annotations

import logging
import time
from typing import NamedTuple

from django.conf import settings
from django.db import transaction
from django.db.models import F

from vectors.errors import LogGap
from vectors.models import LogEntry, Manifest, Pin, ShardHead
from vectors.store.append_lock import writers_in_line
from vectors.store.faults import storage_faults

logger = logging.getLogger(__name__)


class PinsFloor(NamedTuple):
    """What live pins hold: log entries after `seq` (None: no entries), and the files of `manifests`."""

    seq: int | None
    manifests: frozenset[int]


class _Seen(NamedTuple):
    state: tuple[int, int, int]
    since: float


# Pin → how this process saw it last, and since when it has been so.
_seen: dict[tuple[int, int], _Seen] = {}


@storage_faults()
def pin_set(shard_id: int, holder: str, seq: int, manifest: int = 0) -> None:
    """Keep the log entries after `seq`, and the files of `manifest` unless it is 0, until the pin is dropped.

    Setting it again moves it and shows that its holder lives; each time is a small transaction, so once in several
    seconds is enough. Raise LogGap when entries or manifest are gone already: then nothing is pinned.
    """
    with writers_in_line(), transaction.atomic(durable=True):
        head = _locked_head(shard_id)
        if head is None or (manifest and not Manifest.objects.filter(shard_id=shard_id, number=manifest).exists()):
            raise LogGap(f"manifest {manifest} of shard copy {shard_id} is gone", detail={"manifest": manifest})
        # Entries after the manifest are there in any case, so only older ones need a look.
        if seq < head.manifest_seq and not LogEntry.objects.filter(shard_id=shard_id, seq=seq + 1).exists():
            raise LogGap(f"log entry {seq + 1} of shard copy {shard_id} is gone", detail={"seq": seq})
        _, is_new = Pin.objects.get_or_create(
            shard_id=shard_id, holder=holder, defaults={"seq": seq, "manifest": manifest}
        )
        if not is_new:
            Pin.objects.filter(shard_id=shard_id, holder=holder).update(
                seq=seq, manifest=manifest, beats=F("beats") + 1
            )


@storage_faults()
def pin_beat(shard_id: int, holder: str) -> bool:
    """Show that the holder of a pin lives; return whether the pin is still there."""
    return bool(Pin.objects.filter(shard_id=shard_id, holder=holder).update(beats=F("beats") + 1))


@storage_faults()
def pin_drop(shard_id: int, holder: str) -> None:
    """Let go of what a pin held; a pin that is not there is fine."""
    Pin.objects.filter(shard_id=shard_id, holder=holder).delete()


def pins_floor(shard_id: int) -> PinsFloor:
    """Return what live pins hold, and remove those seen unchanged for MLVDB_PIN_S."""
    now = time.monotonic()
    live: list[Pin] = []
    known: set[tuple[int, int]] = set()
    for pin in Pin.objects.filter(shard_id=shard_id):
        state = (pin.beats, pin.seq, pin.manifest)
        seen = _seen.get((shard_id, pin.pk))
        if seen is None or seen.state != state:
            seen = _seen[shard_id, pin.pk] = _Seen(state, now)
        known.add((shard_id, pin.pk))
        if now - seen.since < settings.MLVDB_PIN_S:
            live.append(pin)
        elif Pin.objects.filter(pk=pin.pk, beats=pin.beats, seq=pin.seq).delete()[0]:
            logger.warning("pin_expired shard=%s holder=%s seq=%d", shard_id, pin.holder, pin.seq)
    for key in [key for key in _seen if key[0] == shard_id and key not in known]:
        del _seen[key]
    return PinsFloor(
        min((pin.seq for pin in live), default=None), frozenset(pin.manifest for pin in live if pin.manifest)
    )


def _locked_head(shard_id: int) -> ShardHead | None:
    # Cleaning locks the head too, so a manifest seen here is pinned before it can be removed.
    return ShardHead.objects.select_for_update().filter(pk=shard_id).first()
