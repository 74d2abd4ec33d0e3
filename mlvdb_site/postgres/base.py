"""Django's PostgreSQL backend with what a node needs of a connection that lives as long as its thread.

Three things are different. A connection is checked before each request without a round trip: nothing is to be read
from an idle one unless the server has said goodbye. Every statement has a deadline on this side too, since a server
that is stopped or cut off keeps none of its own. A commit is on the server's disk when it is answered, whatever the
server's default is: the engines of a node would otherwise run ahead of a log that lost its end.
"""

from __future__ import annotations

import math
import select
import time
from collections.abc import Generator
from typing import Any

from django.conf import settings
from django.db.backends.postgresql import base
from psycopg import Connection, IsolationLevel, OperationalError

_GRACE_S = 1.0
"""How much longer than the server this side waits: its own error, of the lock not had in time, says more."""

_COMMIT_ON_DISK = (
    "SELECT set_config('synchronous_commit', 'on', false) WHERE current_setting('synchronous_commit') = 'off'"
)


class BoundedConnection(Connection[Any]):
    """A connection that gives up, and closes, when the server leaves a statement without an answer for too long."""

    limit_s: float | None = None

    def wait(self, gen: Any, *arguments: Any, **options: Any) -> Any:
        """Wait for the answer to a statement; raise OperationalError when it does not come in time."""
        if self.limit_s is None:
            return super().wait(gen, *arguments, **options)
        try:
            return super().wait(_bounded(gen, self.limit_s), *arguments, **options)
        except TimeoutError:
            self.pgconn.finish()
            raise OperationalError(f"the database did not answer within {self.limit_s:g} s") from None


def _bounded(gen: Generator[Any, Any, Any], limit_s: float) -> Generator[Any, Any, Any]:
    """Pass on what psycopg's generator waits for, until the limit: it is resumed with 0 while nothing has happened."""
    deadline = time.monotonic() + limit_s
    try:
        wanted = next(gen)
        while True:
            ready = yield wanted
            if not ready and time.monotonic() > deadline:
                raise TimeoutError
            wanted = gen.send(ready)
    except StopIteration as end:
        return end.value


class DatabaseWrapper(base.DatabaseWrapper):
    """The connection of one thread."""

    def __init__(self, settings_dict: dict[str, Any], *arguments: Any, **options: Any) -> None:
        options_given = settings_dict["OPTIONS"]
        # Payloads travel as they are, not as text in the statement (a batch of 1.6 MB: 83 commits/s instead of 29), and
        # what every request asks is planned once (the head of a log: 66 µs instead of 101).
        options_given.setdefault("server_side_binding", True)
        options_given.setdefault("prepare_threshold", 5)
        super().__init__(settings_dict, *arguments, **options)

    def get_connection_params(self) -> dict[str, Any]:
        """Return what to connect with; what the URL says of an option wins, its server settings are added to ours."""
        timeout_s = settings.MLVDB_DATABASE_TIMEOUT_S
        timeout_ms = math.ceil(timeout_s * 1000)
        given = super().get_connection_params()
        server_settings = {
            # A writer that waits for the head of a log: for as long as it would wait for SQLite's write lock.
            "lock_timeout": timeout_ms,
            # A process that is stopped in the middle of an append must not hold that lock for ever.
            "idle_in_transaction_session_timeout": 3 * timeout_ms,
        }
        options = [*(f"-c {name}={value}" for name, value in server_settings.items()), given.pop("options", "")]
        return {
            "connect_timeout": max(2, math.ceil(timeout_s)),
            # A machine or network that is gone, as the kernel notices it.
            "tcp_user_timeout": timeout_ms,
            "keepalives_idle": max(1, math.ceil(timeout_s)),
            "keepalives_interval": max(1, math.ceil(timeout_s / 5)),
            "keepalives_count": 3,
            **given,
            "options": " ".join(options).strip(),
        }

    def get_new_connection(self, conn_params: dict[str, Any]) -> Any:
        """Connect, with the deadline of MLVDB_DATABASE_TIMEOUT_S for each statement from now on."""
        connection = BoundedConnection.connect(**conn_params)
        connection.limit_s = settings.MLVDB_DATABASE_TIMEOUT_S + _GRACE_S
        # Who has waited for the head of a log must see what was committed meanwhile, whatever the server's default is.
        self.isolation_level = connection.isolation_level = IsolationLevel.READ_COMMITTED
        return connection

    def init_connection_state(self) -> None:
        """Prepare a new connection."""
        super().init_connection_state()
        with self.connection.cursor() as cursor:
            cursor.execute(_COMMIT_ON_DISK)
        if not self.get_autocommit():
            self.connection.commit()

    def is_usable(self) -> bool:
        """Return whether the connection is still there, as far as this side can tell without asking the server."""
        if self.connection is None or self.connection.closed or self.connection.broken:
            return False
        poll = select.poll()
        poll.register(self.connection.fileno(), select.POLLIN)
        return not poll.poll(0)

    def schema_editor(self, *arguments: Any, **options: Any) -> Any:
        """Change the schema, without a deadline: building an index takes what it takes."""
        self.ensure_connection()
        self.connection.limit_s = None
        return super().schema_editor(*arguments, **options)
