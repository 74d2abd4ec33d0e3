"""Which `serve` runs a node: a lock held as long as it lives, and a record of what it started."""

from __future__ import annotations

import fcntl
import json
import os
import tempfile
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path

from mlvdb_site.node import NodeFiles

# Whoever looks whether a node runs holds the lock for an instant.
_TAKE_WITHIN_S = 0.3


@dataclass(frozen=True, slots=True)
class ServeRecord:
    """The contents of `<data-dir>/serve.json`."""

    pid: int
    url: str
    advertise_url: str = ""
    broker_url: str = ""
    broker_is_private: bool = False
    started_at: str = ""
    ready: bool = False
    processes: dict[str, int] = field(default_factory=dict)


class NodeInUse(RuntimeError):
    """Raised when another `serve` holds the node's lock; the message is for the person at the terminal."""


class ServeLock:
    """The lock of a data dir; the kernel lets go of it when its holder ends, however that happens."""

    def __init__(self, files: NodeFiles) -> None:
        self.files = files
        self._descriptor = -1

    def take(self) -> None:
        """Take the lock; raise NodeInUse with the holder's URL and process id."""
        descriptor = os.open(self.files.serve_lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        deadline = time.monotonic() + _TAKE_WITHIN_S
        while not _locked(descriptor, fcntl.LOCK_EX):
            if time.monotonic() >= deadline:
                os.close(descriptor)
                record = _load(self.files.serve_record)
                holder = "a node that is starting"
                if record is not None:
                    holder = f"{f'the node at {record.url}' if record.url else 'a program'} (pid {record.pid})"
                raise NodeInUse(f"data dir {self.files.root} is in use by {holder}")
            time.sleep(0.02)
        self._descriptor = descriptor

    def release(self) -> None:
        """Let go of the lock."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


def write_record(files: NodeFiles, record: ServeRecord) -> None:
    """Replace the record in one step: a reader sees the old one or the new one, whole."""
    handle, temporary = tempfile.mkstemp(dir=files.root, prefix=".serve-")
    with os.fdopen(handle, "w") as file:
        json.dump(asdict(record), file, indent=2)
    os.replace(temporary, files.serve_record)


def remove_record(files: NodeFiles) -> None:
    """Remove the record at a proper end."""
    files.serve_record.unlink(missing_ok=True)


def left_over_record(files: NodeFiles) -> ServeRecord | None:
    """Return what a killed `serve` left behind; call it while holding the lock."""
    return _load(files.serve_record)


def running_record(files: NodeFiles) -> ServeRecord | None:
    """Return the record of the `serve` that runs this node now, None when there is none."""
    try:
        descriptor = os.open(files.serve_lock, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        if _locked(descriptor, fcntl.LOCK_SH):
            return None
        return _load(files.serve_record)
    finally:
        os.close(descriptor)


def _locked(descriptor: int, mode: int) -> bool:
    try:
        fcntl.flock(descriptor, mode | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def _load(path: Path) -> ServeRecord | None:
    try:
        return ServeRecord(**json.loads(path.read_text()))
    except (OSError, ValueError, TypeError):
        return None
