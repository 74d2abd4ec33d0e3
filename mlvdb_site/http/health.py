"""How the node is: for people, for load balancers, for Prometheus; and the level of its log."""

from __future__ import annotations

import time
from typing import Any, ClassVar

from django.apps import apps
from django.conf import settings
from django.http import HttpResponse
from django.utils.module_loading import import_string
from rest_framework.request import Request
from rest_framework.response import Response

from mlvdb_site import STARTED_AT, __version__
from mlvdb_site.heartbeats import QUEUES, process_states, process_warnings, worker_name
from mlvdb_site.http.errors import RequestError
from mlvdb_site.http.parameters import QueryParameter, choice
from mlvdb_site.http.views import NodeView
from mlvdb_site.logging_config import LEVELS, level_marker, level_set
from mlvdb_site.markers import log_level_marker_write


def _readiness() -> Any:
    return import_string("vectors.runtime.readiness")()


def _damage() -> dict[str, Any]:
    """Return {shard: what is lost}, as recorded and as this process has met it."""
    rows = apps.get_model("vectors", "ShardHead").objects.filter(damage__isnull=False)
    return {**_readiness().detail.get("damage", {}), **dict(rows.values_list("label", "damage"))}


class HealthView(NodeView):
    """The node and its background processes."""

    parameters: ClassVar = {"GET": ()}

    def get(self, request: Request) -> Response:
        """Return how the node is. `status` is about its data: healthy, starting, or damaged.

        A broker, worker or beat that is not running leaves reads and writes as they are, and is a warning.
        """
        readiness = _readiness()
        damage = _damage()
        states = process_states()
        return Response(
            {
                "status": "damaged" if damage else "healthy" if readiness.ready else "starting",
                "version": __version__,
                "node": settings.MLVDB_NODE_ID,
                "ready": readiness.ready,
                "uptime_s": round(time.monotonic() - STARTED_AT, 1),
                "workers_alive": {queue: states[worker_name(queue)].alive for queue in QUEUES},
                "beat_alive": states["beat"].alive,
                "processes": {
                    state.name: {
                        "alive": state.alive,
                        "last_seen": None if state.seen_at is None else state.seen_at.isoformat(),
                        "age_s": None if state.age_s is None else round(state.age_s, 1),
                    }
                    for state in states.values()
                },
                "damage": damage,
                "warnings": process_warnings(states),
            }
        )


class AliveView(NodeView):
    """Whether this worker process answers at all."""

    parameters: ClassVar = {"GET": ()}

    def get(self, request: Request) -> Response:
        """Answer at once, without a look at database or engine."""
        return Response({"status": "alive"})


class ReadyView(NodeView):
    """Whether this worker process serves at full speed."""

    parameters: ClassVar = {"GET": ()}

    def get(self, request: Request) -> Response:
        """Return 200 when segments are mapped, the tail is replayed and the database answers, else 503 and why."""
        readiness = _readiness()
        if not readiness.ready:
            error = readiness.detail.get("error")
            raise RequestError(
                f"the node cannot answer: {error}"
                if error
                else f"the node is starting: {readiness.percent:.0f} % of its data is mapped and replayed",
                code="not_ready",
                status=503,
                detail={"percent": round(readiness.percent, 1), **readiness.detail},
                retry_after_s=1,
            )
        return Response({"status": "ready", "percent": 100.0})


class MetricsView(NodeView):
    """Prometheus metrics of the whole node, whichever worker process answers."""

    parameters: ClassVar = {"GET": ()}

    def perform_content_negotiation(self, request: Request, force: bool = False) -> Any:
        """Errors are JSON; the metrics themselves have one form, whatever the scraper accepts."""
        renderer = self.get_renderers()[0]
        return renderer, renderer.media_type

    def get(self, request: Request) -> HttpResponse:
        """Return the metrics in Prometheus' text format."""
        from prometheus_client import CollectorRegistry
        from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4, generate_latest

        from mlvdb_site.http.gauges import NodeCollector
        from mlvdb_site.http.metrics import counting_pids, register_requests, scrape

        directory = settings.NODE_FILES.metrics
        registry = CollectorRegistry()
        with scrape(directory):
            register_requests(registry, directory)
            registry.register(NodeCollector(counting_pids(directory)))
            return HttpResponse(generate_latest(registry), content_type=CONTENT_TYPE_PLAIN_0_0_4)


class LogLevelView(NodeView):
    """The level of the node's log."""

    parameters: ClassVar = {
        "POST": (
            QueryParameter(
                "level",
                "The new level; holds in every process of the node until it is restarted.",
                schema={"type": "string", "enum": list(LEVELS)},
                example="debug",
            ),
        )
    }

    def post(self, request: Request) -> Response:
        """Change the level in all processes of the node; each follows with its next request or task."""
        body: Any = request.data
        for name in body:
            if name != "level":
                raise RequestError(f"unknown field {name!r}; known is: level", code="unknown_field", field=name)
        # Both are checked; the query wins.
        levels = [
            _level(given) for given in (request.query_params.get("level"), body.get("level")) if given is not None
        ]
        if not levels:
            raise RequestError("name the new level", code="missing_field", field="level")
        level = levels[0]
        log_level_marker_write(level_marker(level))
        level_set(level)
        return Response({"status": "success", "message": f"Log level set to {level}", "level": level})

    def example_body(self, method: str, request: Request) -> Any:
        """Return a body that works."""
        return {"level": "debug"}


def _level(text: Any) -> str:
    if not isinstance(text, str):
        raise RequestError("level must be a string", field="level")
    return choice(text.lower(), field="level", choices=LEVELS)
