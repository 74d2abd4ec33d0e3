"""The cluster's admin in a test: who is logged in, and the rows that its pages show."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from django.contrib.auth.models import Permission, User
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from cluster.models import HealthCheck, Replica
from tests.vectors.admin_site import client_of
from vectors.models import LogEntry, ShardHead, ShardTerm

REPLICAS = "/admin/cluster/replica/"


def staff_with(*permissions: str) -> Client:
    """Return a client of a member of staff who has these permissions (`app.codename`), and no others."""
    user = User.objects.create_user("-".join(("staff", *permissions))[:150], password="x", is_staff=True)
    for permission in permissions:
        app, codename = permission.split(".")
        user.user_permissions.add(Permission.objects.get(content_type__app_label=app, codename=codename))
    return client_of(user)


def page_of(replica: Replica, view: str = "change") -> str:
    """Return the path of a replica's page."""
    return f"{REPLICAS}{replica.pk}/{view}/"


def act(client: Client, action: str, *replicas: Replica, follow: bool = True) -> Any:
    """Run an action on replicas from their list."""
    data = {"action": action, "_selected_action": [str(replica.pk) for replica in replicas]}
    return client.post(REPLICAS, data, follow=follow)


def log_grows(head: ShardHead, *ages_s: float, term: int | None = None) -> None:
    """Append empty entries to the log's rows, each logged so long ago; a higher term begins with the first of them."""
    now = timezone.now()
    if term is not None and term > head.term:
        ShardTerm.objects.create(shard=head, term=term, first_seq=head.last_seq + 1)
        head.term = term
    for age_s in ages_s:
        head.last_seq += 1
        LogEntry.objects.create(
            shard=head,
            seq=head.last_seq,
            term=head.term,
            namespace="n" * 32,
            kind=1,
            rows=0,
            payload=b"",
            crc32=0,
            created_at=now - timedelta(seconds=age_s),
        )
    head.save(update_fields=["last_seq", "term"])


def probes(replica: Replica, *outcomes: bool) -> None:
    """Add probes to the history, the last one newest."""
    now = timezone.now()
    for number, ok in enumerate(outcomes):
        HealthCheck.objects.create(
            replica=replica,
            at=now - timedelta(seconds=5 * (len(outcomes) - number)),
            ok=ok,
            health=replica.health,
            took_ms=2.5,
            error="" if ok else "refused",
        )


def queries_of(client: Client, url: str) -> int:
    """Return the number of queries that a page takes."""
    with CaptureQueriesContext(connection) as captured:
        assert client.get(url).status_code == 200
    return len(captured)
