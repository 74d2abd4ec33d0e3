"""Whether there is a node where a command looks for one."""

from __future__ import annotations

from django.conf import settings
from django.core.management.base import CommandError
from django.db import connection

from vectors.models import ShardHead


def require_node() -> None:
    """Raise CommandError, one line, when the data dir holds no node yet."""
    if ShardHead._meta.db_table not in connection.introspection.table_names():
        raise CommandError(
            f"there is no node in {settings.NODE_FILES.root}: MLVDB_DATA_DIR says where to look, `serve` starts one"
        )
