"""What one web worker spends, measured inside a process that is set up like one; run by `single_node.py`.

    python benchmarks/inside.py NAMESPACE QUERIES.npy

prints one JSON object of seconds, for the node that MLVDB_DATA_DIR names.
"""

from __future__ import annotations

import io
import json
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
os.environ.setdefault("DJANGO_SETTINGS_MODULE", "mlvdb_site.settings")

import django

django.setup()

import numpy as np

from benchmarks.wire import timed
from mlvdb_site.wsgi import application
from vectors.engine import search
from vectors.engine.distances import Query, products
from vectors.engine.topk import contenders
from vectors.query_processor import SearchRequest, query_processor
from vectors.runtime import runtime
from vectors.store import log

TIMES = 60


def answer(body: bytes, namespace: str) -> int:
    """Put one search through the WSGI application and return the length of its answer."""
    status: list[str] = []
    environ = {
        "REQUEST_METHOD": "POST",
        "PATH_INFO": "/search",
        "QUERY_STRING": f"namespace={namespace}",
        "SERVER_NAME": "127.0.0.1",
        "SERVER_PORT": "8000",
        "SERVER_PROTOCOL": "HTTP/1.1",
        "REMOTE_ADDR": "127.0.0.1",
        "HTTP_HOST": "127.0.0.1",
        "HTTP_ACCEPT": "application/json",
        "CONTENT_TYPE": "application/json",
        "CONTENT_LENGTH": str(len(body)),
        "wsgi.input": io.BytesIO(body),
        "wsgi.errors": sys.stderr,
        "wsgi.url_scheme": "http",
    }
    parts = application(environ, lambda line, headers: status.append(line))
    length = sum(map(len, parts))
    if hasattr(parts, "close"):
        parts.close()
    if not status[0].startswith("200"):
        raise RuntimeError(status[0])
    return length


def main(namespace: str, queries_file: str) -> None:
    """Measure and print."""
    queries = np.load(queries_file, allow_pickle=False).astype(np.float32)
    query = queries[0]
    processor = query_processor()
    processor.find_similar(SearchRequest(query=query), namespace=namespace)
    shard = runtime().shards()[0]
    opened = shard.fresh(timeout_s=60)
    view = opened.engine.view(namespace)
    assert view is not None
    matrices = [part.part.matrix[: part.rows] for part in view.parts]
    largest = max(view.parts, key=lambda part: part.rows)
    scan = products(largest.part, largest.rows, Query.of(query, "cosine"), None)
    wanted = search.Wanted(Query.of(query, "cosine"), 10)
    body = json.dumps({"query": query.tolist(), "top_k": 10, "with_values": False}).encode()
    tiny = json.dumps({"query": query.tolist(), "top_k": 10, "with_values": False}).encode()
    for _ in range(20):
        answer(body, namespace)
    print(
        json.dumps(
            {
                "rows": view.count,
                "parts": len(view.parts),
                "product_s": timed(lambda: [matrix @ query for matrix in matrices], times=TIMES),
                "search_s": timed(lambda: search.search(view, wanted), times=TIMES),
                "topk_s": timed(lambda: contenders(scan.goodness, 10, scan.error), times=TIMES),
                "freshness_s": timed(lambda: [shard.fresh(timeout_s=1) for _ in range(100)], times=TIMES) / 100,
                "bare_head_s": timed(lambda: [log.read_head(shard.shard_id) for _ in range(100)], times=TIMES) / 100,
                "request_s": timed(lambda: answer(tiny, "tiny"), times=10 * TIMES),
                "tiny_search_s": timed(lambda: search.search(opened.engine.view("tiny"), wanted), times=10 * TIMES),
            }
        )
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
    sys.stdout.flush()
    # The runtime's thread must not keep the process.
    os._exit(0)
