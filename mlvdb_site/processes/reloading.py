"""Notices changed code for `serve --reload`, by modification times: no library, no thread, a few milliseconds."""

from __future__ import annotations

import os
from pathlib import Path

SUFFIXES = (".py", ".html")


class CodeWatch:
    """The newest state of the source files below some directories."""

    def __init__(self, directories: list[Path]) -> None:
        self.directories = directories
        self._seen = self._look()

    def changed(self) -> list[str]:
        """Return the paths that were added, changed or removed since the last call."""
        now = self._look()
        paths = sorted(path for path in now.keys() | self._seen.keys() if now.get(path) != self._seen.get(path))
        self._seen = now
        return paths

    def _look(self) -> dict[str, int]:
        found: dict[str, int] = {}
        for directory in self.directories:
            for root, names, files in os.walk(directory):
                names[:] = [name for name in names if not name.startswith((".", "__pycache__"))]
                for file in files:
                    if file.endswith(SUFFIXES):
                        path = os.path.join(root, file)
                        try:
                            found[path] = os.stat(path).st_mtime_ns
                        except FileNotFoundError:
                            continue
        return found
