"""The client between nodes against peers of every kind: what comes back, in what time, and what is never done."""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import orjson
import pytest

from cluster.transport import addresses, client
from cluster.transport.client import PeerClient, on_refused
from cluster.transport.errors import PeerError, PeerGarbled, PeerLost, PeerRefused, PeerRejected, PeerSilent
from mlvdb_site.http.signing import SignatureCheck, check_signature
from tests.cluster.scripted_peer import NODE_ID, Connection, ScriptedPeer, answers_everything

STATUS = "/cluster/node/status"
SLACK_S = 1.0
"""How much later than its deadline a call may end on a machine that is busy."""

Script = Callable[[Connection], None]
MakePeer = Callable[[Script], ScriptedPeer]


@pytest.fixture
def peer() -> Iterator[MakePeer]:
    peers: list[ScriptedPeer] = []

    def make(script: Script) -> ScriptedPeer:
        peers.append(ScriptedPeer(script))
        return peers[-1]

    yield make
    for made in peers:
        made.close()


@pytest.fixture
def refused(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The peers that others were told have refused, in place of what the node does about it."""
    monkeypatch.setattr(client, "_refused_hooks", [])
    monkeypatch.setattr(client, "_app_hooks", tuple)
    told: list[str] = []
    on_refused(told.append)
    return told


@pytest.fixture
def calls(refused: list[str]) -> Iterator[PeerClient]:
    made = PeerClient()
    yield made
    made.close()


def says(data: bytes) -> Script:
    def script(connection: Connection) -> None:
        connection.request()
        connection.send(data)
        connection.hold()

    return script


# What comes back


def test_an_answer_comes_back_whole(calls: PeerClient, peer: MakePeer) -> None:
    body = os.urandom(300_000)
    there = peer(answers_everything)

    answer = calls.call(there.url, "PUT", STATUS, body=body)

    assert (answer.status, answer.body, answer.headers["x-mlvdb-node"]) == (200, body, NODE_ID)


def test_a_request_names_its_sender_and_nothing_of_the_environment(
    calls: PeerClient, peer: MakePeer, settings: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    there = peer(answers_everything)
    (tmp_path / "netrc").write_text("machine 127.0.0.1 login ada password secret\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")

    calls.call(there.url, "GET", STATUS)

    headers = there.requests[0].headers
    assert headers["x-mlvdb-node"] == settings.MLVDB_NODE_ID
    assert not {"authorization", "cookie", "proxy-authorization", "x-mlvdb-signature"} & set(headers)


def test_a_request_is_signed_as_the_other_side_checks_it(calls: PeerClient, peer: MakePeer, settings: Any) -> None:
    settings.MLVDB_CLUSTER_SECRET = "one secret"
    there = peer(answers_everything)

    calls.call(there.url, "POST", "/cluster/node/shards/a%20b/x?path=%C3%A9%2F+c&offset=1", body=b"abc")

    sent = there.requests[0]
    meta = {f"HTTP_{name.upper().replace('-', '_')}": value for name, value in sent.headers.items()}
    path, _, query = sent.target.partition("?")
    meta |= {"REQUEST_METHOD": "POST", "PATH_INFO": path.replace("%20", " "), "QUERY_STRING": query}
    assert check_signature("one secret", meta) is SignatureCheck.VALID
    assert check_signature("another", meta) is SignatureCheck.WRONG


def test_json_goes_out_and_comes_back(calls: PeerClient, peer: MakePeer) -> None:
    there = peer(answers_everything)

    assert calls.json(there.url, "POST", STATUS, json={"a": [1]}) == {"a": [1]}
    assert there.requests[0].headers["content-type"] == "application/json"


def test_no_content_is_an_answer(calls: PeerClient, peer: MakePeer) -> None:
    there = peer(says(f"HTTP/1.1 204 X\r\nX-MLVDB-Node: {NODE_ID}\r\nX-MLVDB-Epoch: 7\r\n\r\n".encode()))

    answer = calls.call(there.url, "GET", STATUS)

    assert (answer.status, answer.body, answer.epoch) == (204, b"", 7)


def test_an_error_of_the_peer_comes_back_with_its_parts(calls: PeerClient, peer: MakePeer) -> None:
    error = {"code": "stale_epoch", "message": "too old", "field": "epoch", "detail": {"epoch": 9}}
    body = orjson.dumps({"error": error, "request_id": "x"})
    there = peer(lambda connection: connection.request() and connection.answer(body, status=409, headers=RETRY))

    with pytest.raises(PeerRejected) as caught:
        calls.call(there.url, "GET", STATUS)

    rejected = caught.value
    assert (rejected.peer_status, rejected.peer_code, rejected.peer_field) == (409, "stale_epoch", "epoch")
    assert (rejected.peer_message, rejected.peer_detail, rejected.retry_after_s) == ("too old", {"epoch": 9}, 3.0)
    assert (rejected.status, rejected.code) == (503, "peer_rejected")
    assert there.url in rejected.message


RETRY = "Retry-After: 3\r\n"
HEAD = f"HTTP/1.1 200 OK\r\nX-MLVDB-Node: {NODE_ID}\r\n".encode()


@pytest.mark.parametrize(
    "said",
    [
        b"\x16\x03\x01\x02\x00garbage\r\n\r\n",
        b"SSH-2.0-OpenSSH_9.2\r\n",
        b"no end of line ever",
        b"\x00",
        b"HTTP/1.1 banana OK\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}",
        b"HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1:1/\r\nContent-Length: 0\r\n\r\n",
        HEAD + b"Content-Encoding: gzip\r\nContent-Length: 2\r\n\r\n{}",
        HEAD + b"Content-Length: 999999999999\r\n\r\n",
        HEAD + b"Transfer-Encoding: chunked\r\n\r\nnonsense\r\n",
        HEAD + b"".join(b"X-%d: %s\r\n" % (n, b"y" * 100) for n in range(2000)) + b"\r\n",
        HEAD + b"X: " + b"y" * 200_000 + b"\r\n\r\n",
        b"HTTP/1.1 500 X\r\nContent-Length: 5\r\n\r\nOops!",
        b'HTTP/1.1 404 X\r\nContent-Length: 18\r\n\r\n{"error": "gone!"}',
        b'HTTP/1.1 404 X\r\nContent-Length: 21\r\n\r\n{"error": {"code":1}}',
    ],
    ids=lambda said: said[:40].decode("latin-1"),
)
def test_what_is_not_the_answer_of_a_node_is_garbled(calls: PeerClient, peer: MakePeer, said: bytes) -> None:
    there = peer(says(said))

    with pytest.raises(PeerGarbled):
        calls.json(there.url, "GET", STATUS, timeout_s=5)

    assert there.connections == 1


@pytest.mark.parametrize("body", [b"{", b"[]", b"7", b"\xff\xfe", b"NaN"])
def test_json_that_is_no_object_is_garbled(calls: PeerClient, peer: MakePeer, body: bytes) -> None:
    there = peer(lambda connection: connection.request() and connection.answer(body))

    with pytest.raises(PeerGarbled):
        calls.json(there.url, "GET", STATUS)


@pytest.mark.parametrize("framing", ["length", "chunked", "until closed", "one chunk line"])
def test_an_answer_without_end_is_cut_off_at_its_limit(calls: PeerClient, peer: MakePeer, framing: str) -> None:
    sent = 0

    def flood(connection: Connection) -> None:
        nonlocal sent
        connection.request()
        head = {"length": b"Content-Length: 70000\r\n", "until closed": b"Connection: close\r\n"}
        connection.send(HEAD + head.get(framing, b"Transfer-Encoding: chunked\r\n") + b"\r\n")
        piece = b"1" * 65536
        if framing == "chunked":
            piece = b"10000\r\n" + piece + b"\r\n"
        while sent < 500_000_000:
            connection.send(piece)
            sent += len(piece)

    there = peer(flood)

    with pytest.raises(PeerGarbled):
        calls.call(there.url, "GET", STATUS, max_answer_bytes=65536, timeout_s=10)

    assert sent < 50_000_000


# In what time


def silent(connection: Connection) -> None:
    connection.request()
    connection.hold()


def drips_head(connection: Connection) -> None:
    connection.request()
    connection.drip(HEAD * 20)


def drips_body(connection: Connection) -> None:
    connection.request()
    connection.send(HEAD + b"Content-Length: 1000\r\n\r\n")
    connection.drip(b"x" * 1000)


def drips_interim_answers(connection: Connection) -> None:
    connection.request()
    while not connection.peer.closing.wait(0.02):
        connection.send(b"HTTP/1.1 100 Continue\r\n\r\n")


def drips_trailers(connection: Connection) -> None:
    connection.request()
    connection.send(HEAD + b"Transfer-Encoding: chunked\r\n\r\n0\r\n")
    while not connection.peer.closing.wait(0.02):
        connection.send(b"X: y\r\n")


def reads_nothing(connection: Connection) -> None:
    connection.hold()


@pytest.mark.parametrize(
    "script", [silent, drips_head, drips_body, drips_interim_answers, drips_trailers, reads_nothing]
)
def test_a_call_ends_at_its_deadline_whatever_the_peer_does(calls: PeerClient, peer: MakePeer, script: Script) -> None:
    there = peer(script)
    began = time.monotonic()

    with pytest.raises(PeerSilent) as caught:
        calls.call(there.url, "PUT", STATUS, body=b"x" * 20_000_000, timeout_s=0.5)

    assert 0.5 <= time.monotonic() - began < 0.5 + SLACK_S
    assert caught.value.waited
    assert there.connections == 1, "a call that was waited for is not tried again"


def test_a_lookup_that_hangs_takes_no_longer_than_a_connection_may(
    calls: PeerClient, settings: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings.MLVDB_PEER_CONNECT_TIMEOUT_S = 0.2
    over = threading.Event()
    started = []
    monkeypatch.setattr(addresses, "_resolved", lambda host, port: started.append(host) or over.wait(30) or [])
    began = time.monotonic()

    for _ in range(3):
        with pytest.raises(PeerSilent, match="looked up"):
            calls.call("http://db.example:8000", "GET", STATUS, timeout_s=5, even_if_silent=True)

    over.set()
    assert time.monotonic() - began < 0.6 + SLACK_S
    assert started == ["db.example"], "those who wait for the same name share a lookup"


def test_a_queue_that_takes_no_connection_is_silence(calls: PeerClient, settings: Any) -> None:
    settings.MLVDB_PEER_CONNECT_TIMEOUT_S = 0.2
    with socket.socket() as full:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        waiting = [socket.socket() for _ in range(4)]
        for sock in waiting:
            sock.setblocking(False)
            sock.connect_ex(full.getsockname())
        began = time.monotonic()

        with pytest.raises(PeerSilent, match="no connection"):
            calls.call(f"http://127.0.0.1:{full.getsockname()[1]}", "GET", STATUS, timeout_s=5)

        assert time.monotonic() - began < 0.2 + SLACK_S
        for sock in waiting:
            sock.close()


# Connections


def test_a_connection_is_kept_for_the_next_call(calls: PeerClient, peer: MakePeer) -> None:
    there = peer(answers_everything)

    for number in range(20):
        assert calls.call(there.url, "POST", STATUS, body=b"%d" % number).body == b"%d" % number

    assert there.connections == 1


def test_an_answer_that_nobody_asked_for_is_not_taken_for_the_next_one(calls: PeerClient, peer: MakePeer) -> None:
    asked_once, stuffed = threading.Event(), threading.Event()

    def script(connection: Connection) -> None:
        connection.request()
        connection.send(HEAD + b"Content-Length: 4\r\n\r\ngood" + HEAD + b"Content-Length: 3\r\n\r\nBAD")
        asked_once.wait(10)
        connection.send(HEAD + b"Content-Length: 3\r\n\r\nBAD")
        stuffed.set()
        connection.request()
        connection.answer(b"never asked")

    there = peer(script)
    first = calls.call(there.url, "GET", STATUS).body
    asked_once.set()
    stuffed.wait(10)
    second = calls.call(there.url, "GET", STATUS).body

    assert (first, second, there.connections) == (b"good", b"good", 2)


def closes_kept_connections(connection: Connection) -> None:
    """Answer once; then hang up when the next request is in."""
    connection.request()
    connection.answer(b"%d" % connection.number)
    connection.request()


def test_a_kept_connection_that_the_peer_has_closed_is_replaced_once(calls: PeerClient, peer: MakePeer) -> None:
    there = peer(closes_kept_connections)

    answers = [calls.call(there.url, "POST", STATUS, body=b"x").body for _ in range(3)]

    assert answers == [b"0", b"1", b"2"]
    assert [request.body for request in there.requests] == [b"x"] * 5


def test_what_must_not_be_done_twice_gets_a_fresh_connection(calls: PeerClient, peer: MakePeer) -> None:
    there = peer(closes_kept_connections)
    calls.call(there.url, "POST", STATUS, body=b"1")

    assert calls.call(there.url, "POST", STATUS, body=b"2", idempotent=False).body == b"1"
    assert [request.body for request in there.requests] == [b"1", b"2"]


def test_what_must_not_be_done_twice_is_not_tried_twice(calls: PeerClient, peer: MakePeer) -> None:
    there = peer(lambda connection: connection.request() and None)

    with pytest.raises(PeerLost):
        calls.call(there.url, "POST", STATUS, body=b"1", idempotent=False)

    assert len(there.requests) == 1


def test_a_call_is_tried_twice_and_not_more(calls: PeerClient, peer: MakePeer) -> None:
    there = peer(lambda connection: connection.request() and None)

    with pytest.raises(PeerLost):
        calls.call(there.url, "GET", STATUS)

    assert len(there.requests) == 2


def test_a_connection_lost_in_the_middle_of_an_answer_is_tried_again(calls: PeerClient, peer: MakePeer) -> None:
    def script(connection: Connection) -> None:
        connection.request()
        if connection.number:
            connection.answer(b"whole")
            connection.hold()
        else:
            connection.send(HEAD + b"Content-Length: 5\r\n\r\nwh")

    there = peer(script)

    assert calls.call(there.url, "GET", STATUS).body == b"whole"


def test_a_peer_that_is_gone_at_the_second_try_may_have_done_the_first(calls: PeerClient, peer: MakePeer) -> None:
    def script(connection: Connection) -> None:
        connection.request()
        there.close()

    there = peer(script)

    with pytest.raises(PeerRefused) as caught:
        calls.call(there.url, "POST", STATUS, body=b"rows")
    assert caught.value.may_be_done

    with pytest.raises(PeerRefused) as caught:
        calls.call(there.url, "POST", STATUS, body=b"rows")
    assert not caught.value.may_be_done


def test_the_second_try_has_what_is_left_of_the_time(calls: PeerClient, peer: MakePeer) -> None:
    def script(connection: Connection) -> None:
        connection.request()
        if connection.number:
            connection.hold()
        else:
            connection.peer.closing.wait(0.3)

    there = peer(script)
    began = time.monotonic()

    with pytest.raises(PeerSilent):
        calls.call(there.url, "GET", STATUS, timeout_s=0.6)

    assert time.monotonic() - began < 0.6 + SLACK_S


def test_threads_get_their_own_answers(calls: PeerClient, peer: MakePeer) -> None:
    there = peer(answers_everything)
    wrong: list[Any] = []

    def work(name: int) -> None:
        for number in range(40):
            body = b"%d:%d;" % (name, number) * (1 + number * 50)
            answer = calls.call(there.url, "POST", STATUS, body=body)
            if answer.body != body:
                wrong.append((name, number))

    threads = [threading.Thread(target=work, args=(name,)) for name in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)

    assert not wrong
    assert len(there.requests) == 320
    assert there.connections <= 8


def test_a_forked_process_has_connections_of_its_own(peer: MakePeer) -> None:
    there = peer(answers_everything)
    client.peer_client().call(there.url, "POST", STATUS, body=b"parent")

    child = os.fork()
    if child == 0:
        code = 1
        try:
            same = [client.peer_client().call(there.url, "POST", STATUS, body=b"child").body for _ in range(3)]
            code = 0 if same == [b"child"] * 3 else 2
        finally:
            os._exit(code)
    bodies = [client.peer_client().call(there.url, "POST", STATUS, body=b"parent").body for _ in range(3)]
    _, status = os.waitpid(child, 0)

    assert os.waitstatus_to_exitcode(status) == 0
    assert bodies == [b"parent"] * 3
    assert there.connections == 2


# Refusals


def closed_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def test_a_refused_connection_is_known_at_once_and_told(calls: PeerClient, refused: list[str]) -> None:
    url = f"http://127.0.0.1:{closed_port()}"
    began = time.monotonic()

    with pytest.raises(PeerRefused, match="connection refused"):
        calls.call(f"{url}/", "GET", STATUS, timeout_s=5)

    assert time.monotonic() - began < SLACK_S
    assert refused == [url]
    assert not calls.is_silent(url)


def test_a_hook_that_fails_does_not_hide_the_refusal(calls: PeerClient, refused: list[str]) -> None:
    on_refused(lambda url: 1 / 0)

    with pytest.raises(PeerRefused):
        calls.call(f"http://127.0.0.1:{closed_port()}", "GET", STATUS)

    assert len(refused) == 1


@pytest.mark.parametrize("url", ["http://nobody.invalid:8000", "http://", "ftp://127.0.0.1:1", "http://[::1", "x"])
def test_a_url_that_leads_nowhere_is_refused(calls: PeerClient, url: str) -> None:
    with pytest.raises(PeerRefused):
        calls.call(url, "GET", STATUS)


def test_a_node_out_of_descriptors_blames_nobody_else(
    calls: PeerClient, peer: MakePeer, refused: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    there = peer(answers_everything)

    def none_left(*arguments: object) -> None:
        raise OSError(24, "Too many open files")

    monkeypatch.setattr("cluster.transport.connections._connected", none_left)

    with pytest.raises(PeerError) as caught:
        calls.call(there.url, "GET", STATUS)

    assert type(caught.value) is PeerError
    assert not refused
