"""The parts of the replica pages that are renewed while they are looked at: each is a template over the truth."""

from __future__ import annotations

from django.template.loader import render_to_string
from django.utils.safestring import SafeString

from cluster.admin.history import events_about, moves_of
from cluster.admin.truth import MORE_BARS, MORE_BARS_WIDTH, NodeTruth, ReplicaTruth, replicas_truth
from cluster.models import Replica


def health_part(truth: ReplicaTruth) -> SafeString:
    """Return health, URL and last error of a replica."""
    return render_to_string("admin/cluster/replica/health.html", {"truth": truth})


def copies_part(truth: ReplicaTruth) -> SafeString:
    """Return the state of each of a replica's copies."""
    return render_to_string("admin/cluster/replica/copies.html", {"truth": truth})


def node_part(node: NodeTruth) -> SafeString:
    """Return what this node is."""
    return render_to_string("admin/cluster/replica/node.html", {"node": node})


def replica_part(replica: Replica) -> SafeString:
    """Return all of it for one replica, with its last moves and events."""
    [truth] = replicas_truth([replica], bars=MORE_BARS, width=MORE_BARS_WIDTH)
    context = {"truth": truth, "moves": moves_of(replica), "events": events_about(replica.name)}
    return render_to_string("admin/cluster/replica/panel.html", context)
