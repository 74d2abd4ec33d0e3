"""Counting and timing of requests, per process in files that any process of the node can add up.

prometheus-client's multiprocess mode: each worker maps files of its own under the metrics directory, a scrape merges
them. What dead workers counted is folded into an archive, so that counters never fall and files do not pile up.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import struct
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path

from django.conf import settings
from django.http import HttpRequest, HttpResponse

# Read when prometheus_client is first imported: it decides between plain and mapped values.
os.environ["PROMETHEUS_MULTIPROC_DIR"] = str(settings.NODE_FILES.metrics)

from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.mmap_dict import MmapedDict
from prometheus_client.multiprocess import MultiProcessCollector

_BUCKETS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
_ARCHIVE = "archive"

BEGAN = "mlvdb.began"
"""Key of the WSGI environment: when (`time.perf_counter`) a request began that comes here only later."""

_requests = Counter(
    "mlvdb_http_requests", "Requests by method, route and status.", ("method", "route", "status"), registry=None
)
_seconds = Histogram(
    "mlvdb_http_request_seconds",
    "Time from request to answer in the node's code.",
    ("method", "route"),
    registry=None,
    buckets=_BUCKETS,
)


class RequestCounts:
    """What counts and times the requests of this process."""

    def __init__(self) -> None:
        # Looking a child up by its labels costs more than counting; the keys are bounded by routes and statuses.
        self._children: dict[tuple[str | None, str, int], tuple[Counter, Histogram]] = {}

    def count(self, method: str | None, route: str, status: int, took_s: float) -> None:
        """Count a request under the route that answered it."""
        key = (method, route, status)
        children = self._children.get(key)
        if children is None:
            shown = method if method in _METHODS else "other"
            children = (_requests.labels(shown, route, str(status)), _seconds.labels(shown, route))
            if shown != "other":
                self._children[key] = children
        children[0].inc()
        children[1].observe(took_s)


class MetricsMiddleware:
    """Counts and times each request under the route that answered it, `none` where none did."""

    def __init__(self, get_response: Callable[[HttpRequest], HttpResponse]) -> None:
        self.get_response = get_response
        self._counts = RequestCounts()

    def __call__(self, request: HttpRequest) -> HttpResponse:
        """Answer the request."""
        began = request.META.get(BEGAN) or time.perf_counter()
        response = self.get_response(request)
        took_s = time.perf_counter() - began
        match = request.resolver_match
        route = "none" if match is None else match.route or "/"
        self._counts.count(request.method, route, response.status_code, took_s)
        return response


def register_requests(registry: CollectorRegistry, directory: Path) -> None:
    """Add the merged counts of all processes, living and dead, to a scrape's registry."""
    MultiProcessCollector(registry, path=str(directory))


def requests_counted(directory: Path, *, routes: tuple[str, ...]) -> float:
    """Return how many requests of routes that begin with one of `routes` all processes of the node have answered.

    Cheap, and not exact: what is being folded or made at the moment may be left out, or be counted twice.
    """
    total = 0.0
    for path in directory.glob("counter_*.db"):
        try:
            for key, value, _timestamp, _position in MmapedDict.read_all_values_from_file(str(path)):
                if (_route_of(key) or "").startswith(routes):
                    total += value
        except (OSError, RuntimeError, ValueError, struct.error):
            continue
    return total


@lru_cache(maxsize=4096)
def _route_of(key: str) -> str | None:
    """Return the route that a count of requests is of, None for any other count."""
    _metric, name, labels, _help = json.loads(key)
    return labels["route"] if name == "mlvdb_http_requests_total" else None


@contextmanager
def scrape(directory: Path) -> Iterator[None]:
    """Hold off other scrapes while files are folded and read, and fold those of dead processes first."""
    with open(directory / "scrape.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        for path in sorted(directory.glob("*.db")):
            pid = _pid(path)
            if pid is not None and not _is_alive(pid):
                _fold(path)
        yield


def counting_pids(directory: Path) -> list[int]:
    """Return the process ids of the living processes that count requests."""
    pids = {_pid(path) for path in directory.glob("*.db")}
    return sorted(pid for pid in pids if pid is not None and _is_alive(pid))


def _fold(path: Path) -> None:
    """Add a dead process's file to the archive of its kind, then remove it.

    A crash between the two counts it twice; the other order would lose it, and counters must not fall.
    """
    archive = path.with_name(f"{path.name.partition('_')[0]}_{_ARCHIVE}.db")
    temporary = archive.with_suffix(".new")
    temporary.unlink(missing_ok=True)
    if archive.exists():
        shutil.copyfile(archive, temporary)
    sums = MmapedDict(str(temporary))
    try:
        for key, value, _timestamp, _position in MmapedDict.read_all_values_from_file(str(path)):
            sums.write_value(key, sums.read_value(key)[0] + value, 0.0)
    finally:
        sums.close()
    os.replace(temporary, archive)
    path.unlink()


def _pid(path: Path) -> int | None:
    text = path.stem.rpartition("_")[2]
    return int(text) if text.isdigit() else None


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
