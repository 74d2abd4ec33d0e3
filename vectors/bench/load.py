"""Load on a node: prepared requests, sent by a process of their own."""

from __future__ import annotations

import base64
import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import urlsplit

import numpy as np

from vectors.bench.data import TOP_K
from vectors.client.rows import pack


class LoadFailed(RuntimeError):
    """Raised when the load generator stopped: the node answered with an error, or not at all."""


def search_requests(
    queries: np.ndarray, url: str, *, namespace: str, api_key: str | None, options: Mapping[str, Any]
) -> list[bytes]:
    """Return a search for each of queries (q, d) float32 as whole HTTP requests, in msgpack."""
    host = urlsplit(url).netloc
    key = f"Authorization: Bearer {api_key}\r\n" if api_key else ""
    found = []
    for query in queries:
        body = pack({"query": query.tobytes(), "top_k": TOP_K, "with_values": False, **options})
        head = (
            f"POST /search?namespace={namespace} HTTP/1.1\r\nHost: {host}\r\n{key}Accept: application/msgpack\r\n"
            f"Content-Type: application/msgpack\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        found.append(head.encode() + body)
    return found


def generated(requests: Sequence[bytes], url: str, *, connections: int, seconds: float) -> np.ndarray:
    """Send requests round and round for some time; return the latency of each in seconds. Raise LoadFailed."""
    parts = urlsplit(url)
    plan = {
        "host": parts.hostname,
        "port": parts.port or 80,
        "requests": [base64.b64encode(request).decode() for request in requests],
        "connections": connections,
        "seconds": seconds,
    }
    done = subprocess.run(
        [sys.executable, "-m", "vectors.bench.generator"],
        input=json.dumps(plan),
        capture_output=True,
        text=True,
        check=False,
        timeout=seconds + 120,
    )
    if done.returncode:
        raise LoadFailed(f"the load generator failed: {done.stderr.strip().splitlines()[-1]}")
    return np.array(json.loads(done.stdout))
