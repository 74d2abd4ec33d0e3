"""The failure detector: what one more sample makes of a node. Pure.

A sample is a probe that was answered or failed, or a request whose connection was refused. The detector is slow to
believe either way: one failure makes a node suspect (nothing is routed to it), three in a row make it dead, and a dead
node has to answer twice before it is alive. It counts samples and knows no time, so no clock can mislead it.
"""

from __future__ import annotations

from typing import NamedTuple

from cluster.states import PeerHealth

DEAD_AFTER = 3
"""Failed samples in a row after which a node is dead."""

ALIVE_AFTER = 2
"""Good samples in a row after which a dead node is alive again."""


class Detection(NamedTuple):
    """What is thought of a node, and the samples in a row that it rests on."""

    health: PeerHealth
    failures: int = 0
    successes: int = 0


def detect(before: Detection, *, ok: bool) -> Detection:
    """Return what a sample makes of a node.

    `successes` is counted only as far as it matters, so that a node that stays alive stays the same.
    """
    if ok:
        successes = min(before.successes + 1, ALIVE_AFTER)
        stays_dead = before.health is PeerHealth.DEAD and successes < ALIVE_AFTER
        return Detection(PeerHealth.DEAD if stays_dead else PeerHealth.ALIVE, 0, successes)
    failures = before.failures + 1
    is_dead = before.health is PeerHealth.DEAD or failures >= DEAD_AFTER
    return Detection(PeerHealth.DEAD if is_dead else PeerHealth.SUSPECT, failures, 0)


def is_settled(detection: Detection, *, ok: bool) -> bool:
    """Whether more samples like the last one would change nothing: there is no need to ask again at once."""
    return detection.health is (PeerHealth.ALIVE if ok else PeerHealth.DEAD)
