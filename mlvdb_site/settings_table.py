"""Every MLVDB_* setting: name, type, default and meaning, in one table.

The table feeds the Django settings module (`settings.MLVDB_X`), the options of `manage.py serve`, the system checks
and `docs/settings.md`. A value comes from the environment variable of the same name, else from the default.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

TRUE_WORDS = frozenset({"1", "true", "yes", "on"})
FALSE_WORDS = frozenset({"", "0", "false", "no", "off"})


class SettingError(ValueError):
    """Raised when an environment variable holds something its setting cannot be."""


@dataclass(frozen=True, slots=True)
class Setting:
    """One setting: `kind` turns the text of the environment variable into the value."""

    name: str
    kind: Callable[[str], Any]
    default: Any
    help: str
    minimum: float | None = None
    maximum: float | None = None
    choices: tuple[str, ...] = ()

    def read(self, environ: Mapping[str, str]) -> Any:
        """Return the value in `environ`, or the default; raise SettingError naming the variable."""
        text = environ.get(self.name)
        if text is None or (text == "" and self.kind is not boolean):
            return self.default
        try:
            value = self.kind(text)
        except ValueError as error:
            raise SettingError(f"{self.name}={text!r}: {error}") from None
        if self.choices and value not in self.choices:
            raise SettingError(f"{self.name}={text!r}: must be one of {', '.join(self.choices)}")
        if self.minimum is not None and value < self.minimum:
            raise SettingError(f"{self.name}={text!r}: must be at least {self.minimum:g}")
        if self.maximum is not None and value > self.maximum:
            raise SettingError(f"{self.name}={text!r}: must be at most {self.maximum:g}")
        return value


def boolean(text: str) -> bool:
    """Read a switch; raise ValueError for a word that is neither yes nor no."""
    word = text.strip().lower()
    if word in TRUE_WORDS:
        return True
    if word in FALSE_WORDS:
        return False
    raise ValueError("must be true or false")


def size_bytes(text: str) -> int:
    """Read a size: a number of bytes, or one with the suffix k, m or g (powers of 1,024)."""
    word = text.strip().lower().removesuffix("b").removesuffix("i")
    factor = {"k": 1024, "m": 1024**2, "g": 1024**3}.get(word[-1:], 1)
    if factor != 1:
        word = word[:-1]
    try:
        return int(float(word) * factor)
    except ValueError:
        raise ValueError("must be a size such as 67108864 or 64m") from None


def database_url(text: str) -> str:
    """Read the URL of a PostgreSQL database."""
    if not text.startswith(("postgres://", "postgresql://")):
        raise ValueError("must begin with postgres:// or postgresql://")
    return text


def base_url(text: str) -> str:
    """Read the URL of a node: scheme and host, nothing behind the port."""
    parts = urlsplit(text.strip())
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.path.strip("/") or parts.query:
        raise ValueError("must be a URL such as http://10.0.0.5:8000")
    return text.strip().rstrip("/")


def words(text: str) -> tuple[str, ...]:
    """Read a comma-separated list."""
    return tuple(word.strip() for word in text.split(",") if word.strip())


def whole(text: str) -> int:
    """Read an integer."""
    try:
        return int(text)
    except ValueError:
        raise ValueError("must be a whole number") from None


def number(text: str) -> float:
    """Read a finite number."""
    try:
        value = float(text)
    except ValueError:
        raise ValueError("must be a number") from None
    if value != value or value in (float("inf"), float("-inf")):
        raise ValueError("must be a finite number")
    return value


MIB = 1024 * 1024

SETTINGS: tuple[Setting, ...] = (
    # The node and its processes.
    Setting("MLVDB_DATA_DIR", str, "", "Directory of this node: database, segments, secret key, metrics, logs; var/8000 in the checkout when unset."),
    Setting("MLVDB_HOST", str, "127.0.0.1", "Address the web server binds to."),
    Setting("MLVDB_PORT", whole, 8000, "Port of the web server.", minimum=1, maximum=65535),
    Setting("MLVDB_WORKERS", whole, 2, "Web worker processes.", minimum=1),
    Setting("MLVDB_THREADS", whole, 8, "Request threads in each web worker.", minimum=1),
    Setting("MLVDB_LOG_LEVEL", str, "info", "Level of the node's log.", choices=("debug", "info", "warning", "error", "critical")),
    Setting("MLVDB_RELOAD", boolean, False, "Start the web workers, Celery workers and beat again when the code changes."),
    Setting("MLVDB_ADVERTISE_URL", base_url, "", "URL under which other nodes reach this one."),
    Setting("MLVDB_SERVES_HTTP", boolean, True, "Off in a program that is a node itself (`cluster.library`): other nodes are told no URL of it."),
    Setting("MLVDB_BROKER_URL", str, "", "Redis or Valkey URL for Celery; empty: the node runs a private one."),
    Setting("MLVDB_BROKER_TIMEOUT_S", number, 0.5, "Connect and read timeout of a publish to the broker.", minimum=0.01),
    Setting("DATABASE_URL", database_url, "", "postgres://… to keep registry and log in PostgreSQL; empty: an SQLite file in the data dir."),
    Setting("MLVDB_DURABILITY", str, "fsync", "fsync: an acknowledged write survives a power cut; process: it survives a killed process.", choices=("fsync", "process")),
    Setting("MLVDB_DATABASE_TIMEOUT_S", number, 10.0, "Longest wait for the database: for its write lock, and on PostgreSQL for a connection or an answer.", minimum=0.1),
    # Access.
    Setting("MLVDB_TRUSTED_PROXIES", words, (), "Addresses of proxies whose forwarded requests are accepted in protected mode."),
    Setting("MLVDB_ALLOWED_HOSTS", words, ("*",), "Host names answered once API keys exist (protected mode answers loopback names only)."),
    Setting("MLVDB_QUERY_PROCESSOR", str, "cluster.query_processor.ClusterQueryProcessor", "Dotted path of the query processor the views call."),
    # Limits of requests.
    Setting("MLVDB_MAX_BATCH", whole, 10_000, "Rows in one batch, ids in one fetch or delete.", minimum=1),
    Setting("MLVDB_MAX_BODY_BYTES", size_bytes, 64 * MIB, "Bytes of a request body (413 beyond).", minimum=1024),
    Setting("MLVDB_MAX_DIMENSION", whole, 4096, "Dimension of a vector.", minimum=1),
    Setting("MLVDB_MAX_METADATA_BYTES", size_bytes, 64 * 1024, "Bytes of one row's metadata as JSON.", minimum=2),
    Setting("MLVDB_MAX_TOP_K", whole, 1000, "top_k of a search.", minimum=1),
    Setting("MLVDB_MAX_OFFSET", whole, 10_000, "offset of a search.", minimum=0),
    Setting("MLVDB_MAX_SEARCHES", whole, 1000, "Searches in one batch.", minimum=1),
    Setting("MLVDB_MAX_SCROLL", whole, 100_000, "Rows in one page of a listing.", minimum=1),
    Setting("MLVDB_MAX_FILTER_CONDITIONS", whole, 256, "Conditions in one filter.", minimum=1),
    Setting("MLVDB_MAX_FILTER_DEPTH", whole, 16, "Depth of AND, OR, NOT in one filter.", minimum=1),
    Setting("MLVDB_MAX_FILTER_VALUES", whole, 10_000, "Values in one `in` condition.", minimum=1),
    Setting("MLVDB_MAX_NAMESPACES", whole, 10_000, "Namespaces of one node.", minimum=1),
    Setting("MLVDB_MAX_TIMEOUT_S", number, 300.0, "Largest `timeout` a request may ask for.", minimum=1),
    Setting("MLVDB_READ_TIMEOUT_S", number, 2.0, "Deadline of a read that names none.", minimum=0.01),
    Setting("MLVDB_WRITE_TIMEOUT_S", number, 5.0, "Deadline of a write that names none.", minimum=0.01),
    # Memory, tail and checkpoints.
    Setting("MLVDB_MEMORY_LIMIT", size_bytes, 0, "Estimated bytes of all engines of the node beyond which inserts get 507; 0: 80 % of the machine's memory."),
    Setting("MLVDB_TAIL_SOFT_BYTES", size_bytes, 24 * MIB, "Log bytes after the newest segment that ask for a checkpoint.", minimum=1024),
    Setting("MLVDB_TAIL_HARD_BYTES", size_bytes, 512 * MIB, "Log bytes after the newest segment beyond which writes get 503 checkpoint_behind.", minimum=1024),
    Setting("MLVDB_CHECKPOINT_INTERVAL_S", number, 300.0, "Age at which even a small tail is turned into a segment.", minimum=1),
    Setting("MLVDB_TAIL_REST_BYTES", size_bytes, 2 * MIB, "Log bytes after the newest segment that are turned into one as soon as no entry has come for a second.", minimum=1024),
    Setting("MLVDB_CHECKPOINT_GRACE_S", number, 5.0, "How long the broker has to get a due checkpoint started before `serve` runs it itself.", minimum=0),
    Setting("MLVDB_SEGMENT_TIER", whole, 4, "Segments of one size tier that are merged into one of the next.", minimum=2),
    Setting("MLVDB_MERGE_REST_S", number, 5.0, "Time without a new log entry after which the segments of a namespace are merged into one.", minimum=0),
    Setting("MLVDB_SEGMENT_MAX_BYTES", size_bytes, 4096 * MIB, "Vector bytes beyond which a segment is merged no more.", minimum=1024),
    Setting("MLVDB_LEASE_S", number, 15.0, "Time without a heartbeat after which a lease may be taken over.", minimum=0.2),
    Setting("MLVDB_LOG_PRUNE_BYTES", size_bytes, 8 * MIB, "Log bytes removed in one transaction after a checkpoint.", minimum=1024),
    Setting("MLVDB_IDLE_CATCH_UP_S", number, 0.5, "Interval at which an idle worker catches up with the log.", minimum=0.05),
    Setting("MLVDB_FILTER_CACHE_BYTES", size_bytes, 256 * MIB, "Filter columns and masks kept in each worker.", minimum=0),
    Setting("MLVDB_COMMIT_GROUP_BYTES", size_bytes, 8 * MIB, "Payload bytes that waiting writes of one worker may share in one commit.", minimum=1024),
    Setting("MLVDB_PIN_S", number, 600.0, "Time without a sign of its holder after which a pin on log and files is ignored.", minimum=0.2),
    Setting("MLVDB_LOG_RETENTION_BYTES", size_bytes, 1024 * MIB, "Log bytes kept beyond a checkpoint for replicas that are behind; a replica behind that gets a full sync.", minimum=0),
    Setting("MLVDB_INDEX_MIN_ROWS", whole, 10_000, "Rows from which on a segment gets an index; smaller ones are searched exactly.", minimum=100),
    Setting("MLVDB_INDEX_THREADS", whole, 2, "Merges and builds of indexes at work side by side, and the threads that they share, at low priority.", minimum=1),
    Setting("MLVDB_RECALL_SAMPLES", whole, 200, "Recent queries kept of each namespace that has an index or may get one; indexes are tuned and their recall is measured with them. 0: none are kept.", minimum=0, maximum=10_000),
    # Replication: the flags of `serve`.
    Setting("MLVDB_ENABLE_REPLICATION", str, "", "primary: this node may have replicas; replica: it registers itself with MLVDB_PRIMARY_URL. What the data dir holds wins.", choices=("primary", "replica")),
    Setting("MLVDB_REPLICA_NAME", str, "", "Name under which a node started as replica registers itself."),
    Setting("MLVDB_PRIMARY_URL", base_url, "", "URL of the primary with which a node started as replica registers itself."),
    # Sharding: the flags of `serve`, and a limit.
    Setting("MLVDB_ENABLE_SHARDING", boolean, False, "This node may have shards: its rows are spread over copies of its own and over other nodes. What the data dir holds wins."),
    Setting("MLVDB_SHARDS", whole, 2, "Local shards (shard_0, shard_1, …) made when sharding is switched on.", minimum=1),
    Setting("MLVDB_SHARDING_STRATEGY", str, "", "How generated ids are spread over shards; unset: as this node's shards were made, hash at first. Another one than they were made with refuses to start.", choices=("hash", "round_robin")),
    Setting("MLVDB_MAX_SHARDS", whole, 1024, "Shards of one coordinator.", minimum=1, maximum=65_535),
    # Between nodes.
    Setting("MLVDB_CLUSTER_SECRET", str, "", "Shared secret that signs requests between nodes; empty: nodes talk over loopback only."),
    Setting("MLVDB_PEER_CONNECT_TIMEOUT_S", number, 1.0, "Connect timeout of a request to another node.", minimum=0.01),
    Setting("MLVDB_PEER_TIMEOUT_S", number, 5.0, "Longest wait for the whole answer of another node, where no request's deadline is nearer.", minimum=0.05),
    Setting("MLVDB_PEER_ANSWER_BYTES", size_bytes, 256 * MIB, "Bytes of another node's answer beyond which it is refused.", minimum=64 * 1024),
    Setting("MLVDB_PROBE_TIMEOUT_S", number, 0.8, "Connect and answer timeout of a health probe.", minimum=0.05),
    Setting("MLVDB_SLICE_BYTES", size_bytes, 8 * MIB, "Log bytes sent to a replica in one request.", minimum=1024),
    Setting("MLVDB_SYNC_CHUNK_BYTES", size_bytes, 8 * MIB, "Bytes of a segment file sent in one request of a full sync.", minimum=1024, maximum=64 * MIB),
    Setting("MLVDB_INLINE_SHIP_BYTES", size_bytes, 8 * MIB, "Log bytes a waiting write sends to a replica itself; beyond it waits for the background sender.", minimum=1024),
    Setting("MLVDB_MOVE_SLICE_BYTES", size_bytes, 4 * MIB, "Bytes of rows or log that a move of slots takes over at once, a thirty-second of it while clients are at work.", minimum=1024, maximum=64 * MIB),
    Setting("MLVDB_MOVE_CLOSE_TIMEOUT_S", number, 1.0, "Longest time for which a move closes slots to writes before it opens them again and goes on following.", minimum=0.05),
    Setting("MLVDB_AUTO_FAILOVER", boolean, True, "Whether a new shard on another node is replaced by one of its replicas when its node is dead; each shard can be set otherwise."),
    Setting("MLVDB_FAILOVER_MAX_LAG", whole, 10_000, "Operations a replica of a shard may be behind its primary and still take its place by itself.", minimum=0),
    Setting("MLVDB_BACKOFF_MAX_SWEEPS", whole, 15, "Most sweeps for which a replica that failed again and again is left alone.", minimum=0),
    Setting("MLVDB_HEDGE_AFTER_S", number, 0.1, "How late a copy may be with a read before another is asked as well.", minimum=0.001),
    Setting("MLVDB_STALE_AFTER_S", number, 15.0, "How long a replica may not have heard from its primary before its answers say that their lag is unknown.", minimum=0.5),
    Setting("MLVDB_HEALTH_HISTORY", whole, 20_000, "Probes kept as history of each replica.", minimum=10),
)

BY_NAME: dict[str, Setting] = {setting.name: setting for setting in SETTINGS}


def read_all(environ: Mapping[str, str] | None = None) -> dict[str, Any]:
    """Return {name: value} of every setting; raise SettingError for the first that cannot be read."""
    source = os.environ if environ is None else environ
    return {setting.name: setting.read(source) for setting in SETTINGS}
