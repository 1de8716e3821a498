"""A real port, a real client."""

from __future__ import annotations

import importlib
import json
import re
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request

import pytest

from bert_kd.errors import BundleError, MissingExtra, UserError
from bert_kd.serve.app import listen, serve


@pytest.fixture(scope="module")
def address(bundle, pair_bundle):
    """Where a server in a process of its own listens."""
    code = f"""
from pathlib import Path
from bert_kd.serve.app import serve
serve([Path({str(bundle)!r}), Path({str(pair_bundle)!r})], port=0, threads=1)
"""
    with subprocess.Popen(
        [sys.executable, "-c", code], stderr=subprocess.PIPE, text=True
    ) as server:
        line = server.stderr.readline()
        found = re.fullmatch(r"serving small, twin at (http://127\.0\.0\.1:\d+)/\n", line)
        assert found, line + server.stderr.read()
        yield found[1]
        server.send_signal(signal.SIGINT)
        assert server.wait(timeout=20) == 0
        assert server.stderr.read() == ""  # no traceback at the end


def post(address, body):
    request = urllib.request.Request(
        f"{address}/predict", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=20) as response:
        return json.load(response)


def test_answers_a_real_client(address, single, pair):
    assert post(address, {"inputs": "a film"}) == single("a film")
    asked = [{"text": "a", "text_pair": "b"}] * 3
    assert post(address, {"inputs": asked, "model": "twin", "top_k": 2}) == pair(asked, top_k=2)


def test_errors_reach_a_real_client(address):
    with pytest.raises(urllib.error.HTTPError) as caught:
        post(address, {"inputs": 3})
    with caught.value as response:
        assert response.status == 422
        assert json.load(response)["error_type"] == "invalid_request"


def test_page_and_health(address):
    with urllib.request.urlopen(f"{address}/", timeout=20) as response:
        assert b"<title>" in response.read()
    with urllib.request.urlopen(f"{address}/health", timeout=20) as response:
        assert json.load(response) == {"status": "ok"}


def test_a_port_in_use_is_named(bundle):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(UserError, match=f"cannot listen at 127.0.0.1, port {port}"):
            serve([bundle], port=port, threads=1)


@pytest.mark.parametrize("port", [-1, 70_000])
def test_ports_that_are_none(port):
    with pytest.raises(UserError, match="cannot listen"):
        listen("127.0.0.1", port)


def test_two_bundles_of_one_name(bundle):
    with pytest.raises(BundleError, match="two of the bundles are called 'small'"):
        serve([bundle, bundle], port=0)


def test_missing_server_is_named_with_its_install_line(bundle, monkeypatch):
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    with pytest.raises(MissingExtra, match=r"'uvicorn'.*pip install 'bert_kd\[serve\]'"):
        serve([bundle], port=0)


def test_missing_fastapi_is_named_with_its_install_line(monkeypatch):
    monkeypatch.setitem(sys.modules, "fastapi", None)
    monkeypatch.delitem(sys.modules, "bert_kd.serve.app")
    with pytest.raises(MissingExtra, match=r"'fastapi'.*pip install 'bert_kd\[serve\]'"):
        importlib.import_module("bert_kd.serve.app")
