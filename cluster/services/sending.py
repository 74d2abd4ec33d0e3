"""Sending to several nodes at once, by threads that touch no row; what they answered is for the caller to write."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import wait as wait_for_futures
from typing import TypeVar

from django.db import connection

_AT_ONCE = 16

Errand = TypeVar("Errand")
Answer = TypeVar("Answer")


def sent_at_once(
    errands: Sequence[Errand],
    send: Callable[[Errand], Answer],
    *,
    within_s: float,
    thread_name: str,
    meanwhile: Callable[[], object] | None = None,
) -> Iterator[tuple[Errand, Answer]]:
    """Send all errands and yield each with what `send` returned; one that is not back in time is left out.

    Each sending ends at its own deadline; `within_s` is for a machine that stands still. `meanwhile` is done by the
    caller's thread while the others wait for the nodes.
    """
    pool = ThreadPoolExecutor(min(_AT_ONCE, max(1, len(errands))), thread_name_prefix=thread_name)
    try:
        sendings: dict[Future[Answer], Errand] = {pool.submit(_sent, send, errand): errand for errand in errands}
        if meanwhile is not None:
            meanwhile()
        done, _ = wait_for_futures(sendings, timeout=within_s)
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
    for sending in done:
        yield sendings[sending], sending.result()


def _sent(send: Callable[[Errand], Answer], errand: Errand) -> Answer:
    try:
        return send(errand)
    finally:
        # Hooks of the transport may have opened one.
        connection.close()
