"""Where one node keeps its files, and the identity it makes for itself on first use."""

from __future__ import annotations

import os
import secrets
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

BASE_DIR = Path(__file__).resolve().parent.parent


@dataclass(frozen=True, slots=True)
class NodeFiles:
    """The data dir of one node and the paths in it."""

    root: Path

    @property
    def database(self) -> Path:
        """The SQLite file of registry and log."""
        return self.root / "node.sqlite3"

    @property
    def segments(self) -> Path:
        """Segment directories: `<shard uid>/<namespace uid>/<segment uid>`."""
        return self.root / "segments"

    @property
    def set_aside(self) -> Path:
        """Log records taken out of a log, kept for a person to look at."""
        return self.root / "set-aside"

    @property
    def staging(self) -> Path:
        """Files of full syncs on their way in: `<shard uid>/…`."""
        return self.root / "staging"

    @property
    def scratch(self) -> Path:
        """Temporary files of the supervised processes; what a killed one leaves goes when the node ends or starts."""
        return self.root / "scratch"

    @property
    def metrics(self) -> Path:
        """Counters of the node's processes (prometheus-client's multiprocess files)."""
        return self.root / "metrics"

    @property
    def logs(self) -> Path:
        """Log files of the supervised processes."""
        return self.root / "logs"

    @property
    def admin_password(self) -> Path:
        """The first password of the user `admin`."""
        return self.root / "admin-password"

    @property
    def secret_key(self) -> Path:
        """Django's SECRET_KEY of this node."""
        return self.root / "secret-key"

    @property
    def node_id(self) -> Path:
        """The uid of this node: 32 hexadecimal digits."""
        return self.root / "node-id"

    @property
    def merge_lock(self) -> Path:
        """Locked (flock) while segments are merged or indexed: one merge at a time."""
        return self.root / "merge.lock"

    @property
    def append_lock(self) -> Path:
        """Locked (flock) around an append, so that waiting writers queue in the kernel instead of polling SQLite."""
        return self.root / "append.lock"

    @property
    def serve_lock(self) -> Path:
        """Locked by the one `serve` that runs this node."""
        return self.root / "serve.lock"

    @property
    def serve_record(self) -> Path:
        """What the running `serve` wrote of itself: URLs, process ids, broker socket (JSON)."""
        return self.root / "serve.json"

    def create(self) -> None:
        """Make the directories."""
        for path in (self.root, self.segments, self.metrics, self.logs):
            path.mkdir(parents=True, exist_ok=True)

    def scratch_clear(self) -> None:
        """Remove the temporary files; nobody may be using them."""
        shutil.rmtree(self.scratch, ignore_errors=True)

    def read_or_make(self, path: Path, fresh: str) -> str:
        """Return the text of `path`; when there is none, write `fresh` (mode 0600) and return it.

        Two processes may race here: the file appears whole under its name (link of a finished temporary file), and
        the loser reads the winner's.
        """
        try:
            return path.read_text().strip()
        except FileNotFoundError:
            pass
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}-")
        try:
            with os.fdopen(handle, "w") as file:
                file.write(fresh + "\n")
            try:
                os.link(temporary, path)
            except FileExistsError:
                return path.read_text().strip()
        finally:
            os.unlink(temporary)
        return fresh


def node_files(data_dir: str) -> NodeFiles:
    """Return the files of the node in `data_dir` (`var/8000` of the checkout when empty)."""
    return NodeFiles(Path(data_dir).expanduser().resolve() if data_dir else BASE_DIR / "var" / "8000")


def secret_key(files: NodeFiles) -> str:
    """Return the node's SECRET_KEY, made on first use."""
    return files.read_or_make(files.secret_key, secrets.token_urlsafe(50))


def node_id(files: NodeFiles) -> str:
    """Return the node's uid, made on first use."""
    return files.read_or_make(files.node_id, secrets.token_hex(16))
