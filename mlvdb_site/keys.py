"""API keys: made, revoked and checked here and nowhere else.

A key reads `mlvdb_<prefix>_<secret>`. The database holds the prefix and an HMAC-SHA256 of the whole key under a key
derived from SECRET_KEY, so a copy of the database opens nothing. The secret has 256 random bits and needs no slow hash.
"""

from __future__ import annotations

import hmac
import logging
import secrets
import threading
import time
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import timedelta
from functools import cache
from typing import TYPE_CHECKING

from django.conf import settings
from django.db import DatabaseError, connection, transaction
from django.db.models import Q
from django.utils import timezone

from mlvdb_site.markers import keys_changed
from mlvdb_site.models import ApiKey, Scope

if TYPE_CHECKING:
    from django.contrib.auth.models import User

logger = logging.getLogger(__name__)

LAST_USED_INTERVAL_S = 60.0

_PREFIX_BYTES = 6
_SECRET_BYTES = 32


@dataclass(frozen=True, slots=True)
class KeyRecord:
    """What is checked of a key that was not revoked."""

    id: int
    name: str
    prefix: str
    digest: bytes
    scopes: frozenset[str]


def key_create(*, name: str, scopes: Iterable[str], created_by: User | None = None) -> tuple[ApiKey, str]:
    """Make a key and return its row and its text, which is nowhere stored. Raise ValueError for bad arguments."""
    prefix = secrets.token_hex(_PREFIX_BYTES)
    text = f"mlvdb_{prefix}_{secrets.token_urlsafe(_SECRET_BYTES)}"
    name = name.strip()
    if not name:
        raise ValueError("a key needs a name")
    with transaction.atomic():
        key = ApiKey.objects.create(
            name=name, prefix=prefix, digest=_digest(text).hex(), scopes=_checked(scopes), created_by=created_by
        )
        keys_changed()
    logger.info("api key created prefix=%s scopes=%s", prefix, ",".join(key.scopes))
    return key, text


def key_change(key: ApiKey, *, name: str, scopes: Iterable[str]) -> None:
    """Give a key another name and other scopes; they hold from the next request on. Raise ValueError."""
    with transaction.atomic():
        key.name, key.scopes = name, _checked(scopes)
        key.save(update_fields=["name", "scopes"])
        keys_changed()
    logger.info("api key changed prefix=%s scopes=%s", key.prefix, ",".join(key.scopes))


def key_revoke(key: ApiKey) -> bool:
    """End a key for good; False when it was revoked before."""
    with transaction.atomic():
        changed = ApiKey.objects.filter(pk=key.pk, revoked_at=None).update(revoked_at=timezone.now())
        keys_changed()
    if changed:
        logger.info("api key revoked prefix=%s", key.prefix)
    return bool(changed)


class KeyRing:
    """The living keys as one process knows them, read again whenever the marker of the keys differs."""

    def __init__(self) -> None:
        self._snapshot: tuple[str | None, dict[str, KeyRecord]] | None = None

    def keys(self, marker: str | None) -> dict[str, KeyRecord]:
        """Return {prefix: key} as of `marker` or later; empty means protected mode."""
        snapshot = self._snapshot
        if snapshot is not None and snapshot[0] == marker:
            return snapshot[1]
        # The marker was read before the keys: they may be newer than it, never older.
        keys = {row.prefix: row for row in map(_record, ApiKey.objects.filter(revoked_at=None))}
        self._snapshot = (marker, keys)
        return keys


def key_matching(text: str, keys: dict[str, KeyRecord]) -> KeyRecord | None:
    """Return the key that `text` is, None when it is none of `keys`."""
    parts = text.split("_", 2)
    if len(parts) != 3 or parts[0] != "mlvdb" or not text.isascii():
        return None
    record = keys.get(parts[1])
    if record is None or not hmac.compare_digest(_digest(text), record.digest):
        return None
    return record


class LastUsed:
    """Records that keys are used, at most once a minute each, in a thread of its own.

    The request does not wait for it: on SQLite the write may have to queue behind a long one.
    """

    def __init__(self) -> None:
        self._written: dict[int, float] = {}
        self._lock = threading.Lock()

    def touch(self, key_id: int) -> threading.Thread | None:
        """Note a use; return the thread that writes it, None when it was written within the minute."""
        now = time.monotonic()
        if now - self._written.get(key_id, float("-inf")) < LAST_USED_INTERVAL_S:
            return None
        with self._lock:
            if now - self._written.get(key_id, float("-inf")) < LAST_USED_INTERVAL_S:
                return None
            self._written[key_id] = now
        thread = threading.Thread(target=_last_used_write, args=(key_id,), name="api-key-last-used", daemon=True)
        thread.start()
        return thread


def _last_used_write(key_id: int) -> None:
    now = timezone.now()
    due = Q(last_used_at=None) | Q(last_used_at__lt=now - timedelta(seconds=LAST_USED_INTERVAL_S))
    try:
        ApiKey.objects.filter(due, pk=key_id).update(last_used_at=now)
    except DatabaseError as error:
        logger.warning("api key use not recorded key=%d error=%r", key_id, str(error))
    finally:
        connection.close()


def _record(row: ApiKey) -> KeyRecord:
    return KeyRecord(
        id=row.pk, name=row.name, prefix=row.prefix, digest=bytes.fromhex(row.digest), scopes=frozenset(row.scopes)
    )


def _checked(scopes: Iterable[str]) -> list[str]:
    wanted = set(scopes)
    unknown = wanted - set(Scope.values)
    if unknown:
        raise ValueError(f"unknown scope {sorted(unknown)[0]!r}; there are {', '.join(Scope.values)}")
    if not wanted:
        raise ValueError("a key needs at least one scope")
    return [scope for scope in Scope.values if scope in wanted]


def _digest(text: str) -> bytes:
    return hmac.digest(_digest_key(settings.SECRET_KEY), text.encode(), "sha256")


@cache
def _digest_key(secret_key: str) -> bytes:
    return hmac.digest(secret_key.encode(), b"mlvdb_site.keys", "sha256")
