"""What a start may have to do before the first request: migrations, static files, the first user, periodic tasks.

Each step finds out quickly that there is nothing to do: a second start must not wait for the first one's work.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module, metadata
from pathlib import Path

from django.apps import apps
from django.conf import settings
from django.core.management import call_command
from django.db import connection

from mlvdb_site.node import NodeFiles

ADMIN_NAME = "admin"

_MIGRATION_LOCK = 0x4D4C5644  # "MLVD": nodes that share a PostgreSQL database migrate one after the other


class PreparationRefused(RuntimeError):
    """Raised when the node cannot be started on this data dir with these settings."""


class DatabaseRefused(PreparationRefused):
    """Raised when the database is not this node's."""


class SettingsRefused(PreparationRefused):
    """Raised when a node that is to join others was not told enough to do it, or its shards were made otherwise."""


def migrate(files: NodeFiles) -> bool:
    """Bring the database to the code's state; return whether there was anything to do.

    The stamp says that a whole `migrate` ended here, permissions and content types included; the table says that this
    is still the same database.
    """
    wanted = _migrations_on_disk()
    digest = _digest(f"{app}.{name}" for app, name in sorted(wanted))
    stamp = files.root / "migrated"
    if _read(stamp) == digest and wanted <= _migrations_applied():
        return False
    with _one_at_a_time():
        call_command("migrate", interactive=False, verbosity=0)
    _write(stamp, digest)
    return True


def collect_static() -> bool:
    """Copy static files to STATIC_ROOT when they have changed; return whether they had.

    The directory belongs to the checkout, so nodes that start at once wait for one of them to do it.
    """
    root = Path(settings.STATIC_ROOT)
    stamp = root / ".collected"
    digest = _digest(_static_state())
    if _read(stamp) == digest:
        return False
    root.mkdir(parents=True, exist_ok=True)
    with (root.parent / f".{root.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if _read(stamp) == digest:
            return False
        call_command("collectstatic", interactive=False, verbosity=0)
        _write(stamp, digest)
    return True


def make_first_user(files: NodeFiles) -> str | None:
    """Make the user `admin` when nobody may use the admin yet; return its password, None when nothing was made.

    The password is in its file before the user is in the database: a crash in between repeats the step with the same
    password.
    """
    from django.contrib.auth import get_user_model

    users = get_user_model()._default_manager
    if users.filter(is_superuser=True).exists() or users.filter(username=ADMIN_NAME).exists():
        return None
    password = files.read_or_make(files.admin_password, secrets.token_urlsafe(12))
    users.create_superuser(ADMIN_NAME, password=password)
    return password


def make_first_rows() -> None:
    """Make what every node has from its first start: its own shard, and the periodic tasks.

    Then switch replication and sharding on, where the settings say so.

    Raise DatabaseRefused and SettingsRefused.
    """
    from cluster.services import joining, sharding_sweep
    from mlvdb_site.schedule import schedule_seed
    from vectors import services

    try:
        services.ensure_local_shard()
    except services.WrongNode as error:
        raise DatabaseRefused(error.message) from None
    schedule_seed()
    try:
        joining.check_settings()
        sharding_sweep.check_settings()
    except (joining.InvalidInput, sharding_sweep.StrategyFixed) as error:
        raise SettingsRefused(error.message) from None
    joining.replication_switch_on()
    try:
        sharding_sweep.sharding_switch_on()
    except joining.MLVectorDBError as error:
        raise SettingsRefused(f"sharding cannot be switched on: {error.message}") from None


def _migrations_on_disk() -> set[tuple[str, str]]:
    # Names only: importing a hundred migration modules is most of what a `migrate` without work costs.
    found: set[tuple[str, str]] = set()
    for config in apps.get_app_configs():
        directory = Path(config.path) / "migrations"
        if (directory / "__init__.py").exists():
            found |= {(config.label, path.stem) for path in directory.glob("[!_]*.py")}
    return found


def _migrations_applied() -> set[tuple[str, str]]:
    from django.db.migrations.recorder import MigrationRecorder

    return set(MigrationRecorder(connection).applied_migrations())


@contextmanager
def _one_at_a_time() -> Iterator[None]:
    if connection.vendor != "postgresql":
        yield
        return
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_advisory_lock(%s)", [_MIGRATION_LOCK])
        try:
            yield
        finally:
            cursor.execute("SELECT pg_advisory_unlock(%s)", [_MIGRATION_LOCK])


def _static_state() -> Iterator[str]:
    yield repr(settings.STORAGES)
    for config in sorted(apps.get_app_configs(), key=lambda config: config.name):
        directory = Path(config.path) / "static"
        if not directory.is_dir():
            continue
        if Path(settings.BASE_DIR) in directory.parents:
            yield from _file_states(directory)
        else:
            # A package's files change with its version.
            yield f"{config.name} {_version(config.name)} {config.path}"
    for directory in settings.STATICFILES_DIRS:
        yield from _file_states(Path(directory))


def _file_states(directory: Path) -> Iterator[str]:
    for path in sorted(directory.rglob("*")):
        if path.is_file():
            state = path.stat()
            yield f"{path} {state.st_size} {state.st_mtime_ns}"


def _version(app_name: str) -> str:
    module = import_module(app_name.partition(".")[0])
    version = getattr(module, "__version__", None)
    if version is None:
        for distribution in metadata.packages_distributions().get(module.__name__, []):
            version = metadata.version(distribution)
    return str(version)


def _digest(parts: Iterator[str]) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part.encode() + b"\0")
    return digest.hexdigest()


def _read(stamp: Path) -> str:
    try:
        return stamp.read_text()
    except OSError:
        return ""


def _write(stamp: Path, digest: str) -> None:
    temporary = stamp.with_name(f"{stamp.name}.{os.getpid()}")
    temporary.write_text(digest)
    temporary.replace(stamp)
