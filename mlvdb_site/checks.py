"""System checks of the settings: what cannot work is an error, what is unwise a warning."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator
from typing import Any

from django.conf import settings
from django.core.checks import CheckMessage, Error, Tags, Warning, register
from django.utils.module_loading import import_string

from mlvdb_site.http.local import TrustedProxies
from mlvdb_site.settings_table import SETTINGS

OLDEST_SQLITE = (3, 35, 0)
MIN_THREADS = 4


@register(Tags.compatibility)
def node_settings(app_configs: Any, **kwargs: Any) -> list[CheckMessage]:
    """Check the settings of the table against each other and against this machine."""
    return [*_settings_contradicting(), *_storage(), *_query_processor()]


def _settings_contradicting() -> Iterator[CheckMessage]:
    if settings.MLVDB_TAIL_HARD_BYTES <= settings.MLVDB_TAIL_SOFT_BYTES:
        yield Error(
            "MLVDB_TAIL_HARD_BYTES must be larger than MLVDB_TAIL_SOFT_BYTES.",
            hint="Writes would be refused before a checkpoint is even asked for.",
            id="mlvdb.E001",
        )
    if settings.MLVDB_THREADS < MIN_THREADS:
        yield Error(
            f"MLVDB_THREADS must be at least {MIN_THREADS}.",
            hint="Two threads of a worker are kept for what peers send; the rest may wait for other nodes.",
            id="mlvdb.E002",
        )
    for name in ("MLVDB_READ_TIMEOUT_S", "MLVDB_WRITE_TIMEOUT_S"):
        if getattr(settings, name) > settings.MLVDB_MAX_TIMEOUT_S:
            yield Error(f"{name} must not be larger than MLVDB_MAX_TIMEOUT_S.", id="mlvdb.E003")
    try:
        TrustedProxies(settings.MLVDB_TRUSTED_PROXIES)
    except ValueError as error:
        yield Error(f"MLVDB_TRUSTED_PROXIES: {error}.", id="mlvdb.E004")
    if settings.MLVDB_COMMIT_GROUP_BYTES > settings.MLVDB_TAIL_HARD_BYTES:
        yield Error("MLVDB_COMMIT_GROUP_BYTES must not be larger than MLVDB_TAIL_HARD_BYTES.", id="mlvdb.E005")
    if settings.MLVDB_MAX_BODY_BYTES > settings.MLVDB_TAIL_HARD_BYTES:
        yield Warning(
            "MLVDB_MAX_BODY_BYTES is larger than MLVDB_TAIL_HARD_BYTES.",
            hint="One request alone could fill the tail.",
            id="mlvdb.W001",
        )
    defaults = {setting.name: setting for setting in SETTINGS}
    if 2 * defaults["MLVDB_BROKER_TIMEOUT_S"].default < settings.MLVDB_BROKER_TIMEOUT_S:
        yield Warning(
            f"MLVDB_BROKER_TIMEOUT_S is {settings.MLVDB_BROKER_TIMEOUT_S:g}.",
            hint="A write may wait twice as long for a broker that is silent.",
            id="mlvdb.W002",
        )


def _storage() -> Iterator[CheckMessage]:
    files = settings.NODE_FILES
    for directory in (files.root, files.segments, files.metrics):
        if not os.access(directory, os.W_OK | os.X_OK):
            yield Error(f"The directory {directory} is not writable.", hint="See MLVDB_DATA_DIR.", id="mlvdb.E006")
    if settings.DATABASES["default"]["ENGINE"].endswith("sqlite3") and sqlite3.sqlite_version_info < OLDEST_SQLITE:
        yield Error(
            f"SQLite {sqlite3.sqlite_version} is older than {'.'.join(map(str, OLDEST_SQLITE))}.",
            hint="Use a newer Python build, or PostgreSQL by DATABASE_URL.",
            id="mlvdb.E007",
        )


def _query_processor() -> Iterator[CheckMessage]:
    try:
        import_string(settings.MLVDB_QUERY_PROCESSOR)
    except ImportError as error:
        yield Error(f"MLVDB_QUERY_PROCESSOR cannot be imported: {error}.", id="mlvdb.E008")
