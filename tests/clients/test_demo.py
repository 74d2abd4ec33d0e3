"""The demonstration: what it loads, what it prints, and that the printed line works when it is pasted."""

from __future__ import annotations

import io
import json
import re
import shutil
import subprocess

import pytest

from tests.clients.faults import FaultServer, error
from vectors import demo
from vectors.client import Client
from vectors.client.session import Session
from vectors.datasets import load_digits

pytestmark = [pytest.mark.processes]


def _printed(url: str) -> str:
    out = io.StringIO()
    demo.run(url, out)
    return out.getvalue()


def test_it_loads_the_digits_and_prints_a_search_that_answers_what_it_prints(client: Client, node_url: str) -> None:
    text = _printed(node_url)

    assert client.count(namespace="digits") == 1797
    assert client.namespace_details()[0]["picture"] == "8x8"
    record = client.get("digit-0042", namespace="digits")
    assert record.metadata["digit"] == 4
    assert record.metadata["parity"] == "even"
    curl = next(line.strip() for line in text.splitlines() if line.strip().startswith("curl"))
    shown = json.loads(re.search(r"\n  (\[.*?\])\n\n", text, re.DOTALL)[1])  # type: ignore[index]
    if shutil.which("curl") is None:
        pytest.skip("curl is not here")
    answered = subprocess.run(["/bin/sh", "-c", curl], capture_output=True, text=True, check=True, timeout=30).stdout
    assert json.loads(answered) == shown
    assert shown[0]["id"] == "digit-0042"
    assert len(shown) == demo.TOP_K


def test_every_curl_line_it_prints_finds_something(client: Client, node_url: str) -> None:
    lines = [line.strip() for line in _printed(node_url).splitlines() if line.strip().startswith("curl")]
    if shutil.which("curl") is None:
        pytest.skip("curl is not here")

    assert len(lines) == 2
    for line in lines:
        printed = subprocess.run(["/bin/sh", "-c", line], capture_output=True, text=True, check=True, timeout=30)
        assert json.loads(printed.stdout)[0]["id"].startswith("digit-")


def test_a_second_run_finds_the_data_and_a_load_cut_short_is_completed(client: Client, node_url: str) -> None:
    _printed(node_url)
    before = client.min_seq

    assert "are in namespace digits" in _printed(node_url)
    assert client.min_seq == before
    client.delete(["digit-0001", "digit-1797"], namespace="digits")
    assert "loaded into namespace digits" in _printed(node_url)
    assert client.count(namespace="digits") == 1797


def test_a_node_with_keys_is_one_line(faults: FaultServer) -> None:
    faults.afterwards = error(401, "not_authenticated")

    assert _printed(faults.url).splitlines() == [
        "The demonstration needs an API key with scope write: set MLVDB_API_KEY to one."
    ]


def test_a_node_that_fails_is_one_line(faults: FaultServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Session, "sleep", staticmethod(lambda seconds: None))
    faults.afterwards = error(507, "storage_full")

    lines = _printed(faults.url).splitlines()

    assert len(lines) == 1
    assert "storage_full" in lines[0]


def test_pictures_are_left_out_where_the_terminal_cannot_show_them(client: Client, node_url: str) -> None:
    out = io.TextIOWrapper(io.BytesIO(), encoding="ascii")

    demo.run(node_url, out)

    out.seek(0)
    assert "curl" in out.read()


def test_the_digits_are_those_of_the_source() -> None:
    digits = load_digits()

    assert digits.values.shape == (1797, 64)
    assert digits.values.flags.c_contiguous
    assert (digits.values.min(), digits.values.max()) == (0, 16)
    assert digits.labels[:10].tolist() == list(range(10))
    assert len(set(digits.ids)) == len(digits) == 1797
    assert {row["digit"] for row in digits.metadata} == set(range(10))
