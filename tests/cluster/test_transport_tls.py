"""The client between nodes over TLS: the same deadlines, and no peer that cannot prove who it is.

`self_signed.pem` is a certificate for 127.0.0.1 with its key, made for these tests and trusted by nobody else.
"""

from __future__ import annotations

import os
import ssl
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from cluster.transport.client import PeerClient
from cluster.transport.errors import PeerGarbled, PeerSilent
from tests.cluster.scripted_peer import Connection, ScriptedPeer, answers_everything

CERTIFICATE = Path(__file__).with_name("self_signed.pem")
STATUS = "/cluster/node/status"
Script = Callable[[Connection], None]


@pytest.fixture
def peer() -> Iterator[Callable[[Script], ScriptedPeer]]:
    peers: list[ScriptedPeer] = []
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(CERTIFICATE)

    def make(script: Script) -> ScriptedPeer:
        peers.append(ScriptedPeer(script, tls=context))
        return peers[-1]

    yield make
    for made in peers:
        made.close()


@pytest.fixture
def trusting(monkeypatch: pytest.MonkeyPatch) -> Iterator[PeerClient]:
    """A client that takes the certificate of these tests for a good one."""
    monkeypatch.setenv("SSL_CERT_FILE", str(CERTIFICATE))
    made = PeerClient()
    yield made
    made.close()


def test_answers_come_over_tls_and_connections_are_kept(
    trusting: PeerClient, peer: Callable[[Script], ScriptedPeer]
) -> None:
    there = peer(answers_everything)
    body = os.urandom(3_000_000)

    answers = [trusting.call(there.url, "PUT", STATUS, body=body, timeout_s=30).body for _ in range(3)]

    assert answers == [body] * 3
    assert there.connections == 1


def test_a_peer_that_cannot_prove_who_it_is_is_told_nothing(
    peer: Callable[[Script], ScriptedPeer], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SSL_CERT_FILE", raising=False)
    there = peer(answers_everything)

    with pytest.raises(PeerGarbled, match=r"(?i)certificate"):
        PeerClient().call(there.url, "GET", STATUS)

    assert not there.requests


def drips(connection: Connection) -> None:
    connection.request()
    connection.drip(b"HTTP/1.1 200 OK\r\n" * 100)


def says_nothing(connection: Connection) -> None:
    connection.request()
    connection.hold()


def reads_nothing(connection: Connection) -> None:
    connection.hold()


@pytest.mark.parametrize("script", [drips, says_nothing, reads_nothing])
def test_a_call_over_tls_ends_at_its_deadline(
    trusting: PeerClient, peer: Callable[[Script], ScriptedPeer], script: Script
) -> None:
    there = peer(script)
    began = time.monotonic()

    with pytest.raises(PeerSilent):
        trusting.call(there.url, "PUT", STATUS, body=b"x" * 20_000_000, timeout_s=0.7)

    assert time.monotonic() - began < 1.7


def test_a_handshake_that_never_ends_is_silence(trusting: PeerClient, settings: Any) -> None:
    settings.MLVDB_PEER_CONNECT_TIMEOUT_S = 0.3
    plain = ScriptedPeer(lambda connection: connection.hold())
    began = time.monotonic()
    try:
        with pytest.raises(PeerSilent):
            trusting.call(plain.url.replace("http", "https"), "GET", STATUS, timeout_s=5)
    finally:
        plain.close()

    assert time.monotonic() - began < 1.5
