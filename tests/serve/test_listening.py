"""A real port, real clients, real signals."""

from __future__ import annotations

import builtins
import importlib
import json
import os
import re
import resource
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from dataclasses import fields

import pytest
from faults import (
    ask_on,
    killed_worker,
    odd_requests,
    replaced_bundles,
    stopped_under_load,
    twice_the_permitted_load,
    wait_for,
)
from servers import QUESTIONS, serving
from test_app import same
from test_models import put

from bert_kd.errors import BundleError, MissingExtra, UserError
from bert_kd.serve.life import listen, serve
from bert_kd.serve.limits import Limits
from bert_kd.serve.worker import Settings

PATIENCE = 30.0
"""Seconds after which something that should happen soon has failed."""


@pytest.fixture(scope="module")
def served(bundle, pair_bundle):
    """A server of both bundles with short deadlines."""
    with serving(
        *("--bundle", bundle, "--bundle", pair_bundle, "--threads", 1),
        *("--header-seconds", 1, "--body-seconds", 1, "--max-payload", 100_000),
    ) as served:
        yield served


def test_answers_a_real_client(served, single, pair):
    status, found = served.ask({"inputs": "a film"})
    assert status == 200 and same(found, single("a film"))
    asked = [{"text": "a", "text_pair": "b"}] * 3
    status, found = served.ask({"inputs": asked, "model": "twin", "top_k": 2})
    assert status == 200 and same(found, pair(asked, top_k=2))


def test_hugging_faces_client_works_as_it_is(served, single, pair, monkeypatch):
    """Its own `InferenceClient`, unchanged, for the server and for a model of it."""
    hub = pytest.importorskip("huggingface_hub")
    # Where the hub is switched off, so is the client, also for a server on this machine.
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    client = hub.InferenceClient(served.address)
    found = client.text_classification("a film")
    assert same([{"label": one.label, "score": one.score} for one in found],
                single("a film", top_k=None))  # fmt: skip
    found = client.text_classification("a film", top_k=1, function_to_apply="sigmoid")
    assert len(found) == 1 and found[0].label == single("a film")[0]["label"]
    named = hub.InferenceClient(model=f"{served.address}/models/small", token="none")
    assert named.text_classification("bad")[0].label == single("bad")[0]["label"]
    unknown = hub.InferenceClient(model=f"{served.address}/models/none", token="none")
    with pytest.raises(hub.errors.HfHubHTTPError, match="404"):
        unknown.text_classification("bad")


def test_errors_page_and_health(served):
    status, found = served.ask({"inputs": 3})
    assert (status, found["error_type"]) == (422, "invalid_request")
    assert b"<title>" in served.get("/")[1]
    assert json.loads(served.get("/health")[1]) == {"status": "ok"}


def received(client):
    """Return all that comes until the server closes."""
    client.settimeout(PATIENCE)
    data = b""
    while piece := client.recv(65536):
        data += piece
    return data


@pytest.mark.parametrize(
    "start",
    [
        b"POST /predict HTTP/1.1\r\nhost: x\r\n",
        b"POST /predict HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
        b"content-length: 5000\r\n\r\n{",
    ],
    ids=["headers", "body"],
)
def test_slow_senders_are_cut(served, start):
    with socket.create_connection(("127.0.0.1", served.port)) as client:
        client.sendall(start)
        answer = received(client)
    assert answer.startswith(b"HTTP/1.1 408 ")
    assert b'"request_timeout"' in answer
    assert served.ask({"inputs": "a film"})[0] == 200


def test_silent_connections_are_closed(served):
    with socket.create_connection(("127.0.0.1", served.port)) as client:
        assert received(client) == b""


def test_what_is_not_wanted_is_refused_before_its_body_comes(served):
    """As every refusal that needs no body; a client that sends it all the same gets the answer."""
    with socket.create_connection(("127.0.0.1", served.port)) as client:
        client.sendall(b"POST /nowhere HTTP/1.1\r\nhost: x\r\ncontent-length: 5000\r\n\r\n")
        assert received(client).startswith(b"HTTP/1.1 404 ")
    for body in ("a", "x" * 90_000):
        status, found = served.ask({"inputs": body}, headers={"content-type": "text/plain"})
        assert (status, found["error_type"]) == (415, "unsupported_media_type")


def test_ten_megabytes_are_refused_before_they_are_read(served):
    with socket.create_connection(("127.0.0.1", served.port)) as client:
        client.sendall(
            b"POST /predict HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
            b"content-length: 10000000\r\n\r\n"
        )
        assert received(client).startswith(b"HTTP/1.1 413 ")


def test_ten_megabytes_that_are_sent_all_the_same(served):
    """The client that goes on sending still gets its answer, not a reset."""
    status, found = served.ask({"inputs": "x" * 10_000_000})
    assert (status, found["error_type"]) == (413, "payload_too_large")


def test_clients_that_vanish(served, single):
    body = json.dumps({"inputs": ["a film"] * 4000}).encode()
    head = b"POST /predict HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
    request = head + b"content-length: %d\r\n\r\n" % len(body) + body
    for end in (20, len(head), len(request) - 5, len(request)) * 10:
        client = socket.create_connection(("127.0.0.1", served.port))
        client.sendall(request[:end])
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")  # reset
        client.close()
    status, found = served.ask({"inputs": QUESTIONS})
    assert status == 200 and same(found, single(QUESTIONS))
    deadline = time.monotonic() + PATIENCE
    while served.metric("bert_kd_requests_in_hand") and time.monotonic() < deadline:
        time.sleep(0.05)
    assert served.metric("bert_kd_requests_in_hand") == 0


def test_stopping_answers_what_is_in_hand(bundle, single):
    with serving("--bundle", bundle, "--threads", 1) as served:
        texts = QUESTIONS * 180
        answers = []
        asking = threading.Thread(target=lambda: answers.append(served.ask({"inputs": texts})))
        idle = socket.create_connection(("127.0.0.1", served.port))
        half = socket.create_connection(("127.0.0.1", served.port))
        body = json.dumps({"inputs": "a film"}).encode()
        half.sendall(
            b"POST /predict HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
            b"content-length: %d\r\n\r\n" % len(body)
        )
        deadline = time.monotonic() + PATIENCE
        while not served.metric("bert_kd_requests_in_hand") and time.monotonic() < deadline:
            time.sleep(0.01)
        asking.start()
        while served.metric("bert_kd_requests_in_hand") < 2 and asking.is_alive():
            pass
        served.process.send_signal(signal.SIGTERM)
        half.sendall(body)
        assert b"200 OK" in received(half)
        assert received(idle) == b""
        asking.join(PATIENCE)
        assert served.process.wait(PATIENCE) == 0
        status, found = answers[0]
        assert status == 200 and same(found, single(texts))
        assert [line["event"] for line in served.log()][-1] == "stopped"
        half.close()
        idle.close()


def test_an_interrupt_ends_it_quietly(bundle):
    with serving("--bundle", bundle, "--threads", 1) as served:
        served.process.send_signal(signal.SIGINT)
        assert served.process.wait(PATIENCE) == 0


def test_twice_the_permitted_load(bundle, single):
    counts = twice_the_permitted_load(bundle, single, clients=16, seconds=2.0)
    assert counts["answered"] > 0 and counts["refused"] > 0
    assert counts["wrong"] == counts["lost"] == 0


def test_a_killed_worker_comes_back(bundle, single):
    counts = killed_worker(bundle, single, kills=2)
    assert counts["answered"] > 0 and counts["wrong"] == 0
    assert counts["came back"] == 2


def test_a_worker_starts_again_when_its_bundle_is_whole(bundle, pair_bundle, single, tmp_path):
    """One that was killed does not come back with what a reload would refuse; the other answers."""
    place, named = tmp_path / "served", tmp_path / "named"
    put(bundle, place)
    put(bundle, named)
    with serving(
        *("--bundle", place, "--bundle", f"other={named}", "--workers", 2),
        *("--reload-seconds", 0.05),
    ) as served:
        put(pair_bundle, place)
        wait_for(lambda: served.metric(REFUSED_RELOADS) == 2, "both to refuse it")
        os.kill(served.workers()[0], signal.SIGKILL)

        def told(why):
            events = [line for line in served.log() if line["event"] == "start"]
            return any(why in line["why"] for line in events)

        wait_for(lambda: told("now holds the bundle 'twin'"), "one to refuse it at its start")
        assert served.metric("bert_kd_workers") == 1
        shutil.rmtree(place)
        wait_for(lambda: told("is not a bundle"), "another attempt")
        for _ in range(20):
            status, found = served.ask({"inputs": "a film"})
            assert status == 200 and same(found, single("a film"))
        put(bundle, place)
        wait_for(lambda: served.metric("bert_kd_workers") == 2, "both to serve")
        assert served.metric("bert_kd_worker_starts_total") == 3
        assert served.ask({"inputs": "a film", "model": "other"})[0] == 200


REFUSED_RELOADS = 'bert_kd_reloads_total{model="small",result="refused"}'


@pytest.mark.parametrize("workers", [1, 2])
def test_stopping_under_load_loses_nothing(bundle, single, workers):
    counts = stopped_under_load(bundle, single, workers, times=1)
    assert counts["answered"] > 0 and counts["stopped"] == 1
    assert counts["wrong"] == counts["lost"] == 0


def test_bundles_replaced_under_load(bundle, other_bundle, tmp_path, single, other):
    counts = replaced_bundles([bundle, other_bundle], [single, other], tmp_path, times=4)
    assert counts["replaced"] == 4 and counts["answered"] > 0
    assert counts["wrong"] == counts["lost"] == 0


def test_workers_end_with_their_supervisor(bundle):
    with serving("--bundle", bundle, "--workers", 2) as served:
        workers = served.workers()
        served.process.kill()
        served.process.wait(PATIENCE)
        deadline = time.monotonic() + PATIENCE
        while any(alive(worker) for worker in workers) and time.monotonic() < deadline:
            time.sleep(0.05)
        assert not any(alive(worker) for worker in workers)
        served.process.returncode = 0  # killed here, on purpose


def alive(process):
    try:
        with open(f"/proc/{process}/stat") as stat:
            return stat.read().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_workers_that_cannot_start_end_it_all(bundle, tmp_path):
    put(bundle, tmp_path / "bad")
    (tmp_path / "bad" / "tokenizer.json").write_text("{}")
    with pytest.raises(AssertionError, match="tokenizer.json is damaged"):
        with serving("--bundle", tmp_path / "bad", "--workers", 2):
            pass


# --- refused before anything is served -----------------------------------------------------------


def settings(*bundles, **options):
    return Settings(bundles=tuple(map(str, bundles)), threads=1, **options)


def test_a_port_in_use_is_named(bundle):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(UserError, match=f"cannot listen at 127.0.0.1, port {port}"):
            serve(settings(bundle), port=port)


@pytest.mark.parametrize("port", [-1, 70_000])
def test_ports_that_are_none(port):
    with pytest.raises(UserError, match="cannot listen"):
        listen("127.0.0.1", port)


def test_two_bundles_of_one_name(bundle):
    with pytest.raises(BundleError, match="two of the bundles are called 'small'"):
        serve(settings(bundle, bundle), port=0)


def test_no_bundle(tmp_path):
    with pytest.raises(BundleError, match="give at least one"):
        serve(settings(), port=0)
    with pytest.raises(BundleError, match="is not a bundle"):
        serve(settings(tmp_path), port=0)


def test_other_machines_need_a_key(bundle):
    with pytest.raises(UserError, match="can be reached from other machines.*--api-key-file"):
        serve(settings(bundle), host="0.0.0.0", port=0)


@pytest.mark.parametrize("access", [["--api-key", "k1"], ["--allow-no-key"]])
def test_other_machines_with_a_key_or_permission(bundle, access):
    with serving("--bundle", bundle, "--host", "0.0.0.0", *access) as served:
        headers = {"authorization": "Bearer k1"} if access[0] == "--api-key" else {}
        assert served.ask({"inputs": "a"}, headers=headers)[0] == 200
        assert served.get("/info")[0] == (401 if headers else 200)


def test_the_help_cuts_no_name_at_80_columns():
    done = subprocess.run(
        [sys.executable, "-m", "bert_kd", "serve", "--help"],
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | {"COLUMNS": "80", "TERM": "dumb"},
    )
    assert "…" not in done.stdout
    for field in fields(Limits):
        name = LIMIT_OPTIONS.get(field.name, f"--{field.name.replace('_', '-')}")
        assert re.search(rf"{name} +(N \[x>=1\]|S > 0) ", done.stdout), name


LIMIT_OPTIONS = {
    "concurrent_requests": "--max-requests",
    "connections": "--max-connections",
    "queued_texts": "--max-queued-texts",
    "texts": "--max-texts",
    "characters": "--max-characters",
    "payload_bytes": "--max-payload",
}


@pytest.mark.parametrize("seconds", [-1.0, float("nan"), float("inf")])
def test_pauses_between_reloads_that_are_none(bundle, seconds):
    with pytest.raises(UserError, match="reload_seconds is .*: give seconds, or 0 for never"):
        serve(settings(bundle, reload_seconds=seconds), port=0)


@pytest.mark.parametrize("package", ["httptools", "msgspec", "uvloop"])
def test_a_missing_package_is_named_with_its_install_line(monkeypatch, package):
    monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.delitem(sys.modules, "bert_kd.serve.life")
    with pytest.raises(MissingExtra, match=rf"'{package}'.*pip install 'bert_kd\[serve\]'"):
        importlib.import_module("bert_kd.serve.life")


def test_missing_opentelemetry_is_named_with_its_install_line(bundle, monkeypatch):
    real = builtins.__import__

    def without(name, *arguments, **options):
        if name.startswith("opentelemetry"):
            raise ModuleNotFoundError(name)
        return real(name, *arguments, **options)

    from bert_kd.serve.tracing import open_provider

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(MissingExtra, match=r"pip install 'bert_kd\[otel\]'"):
        open_provider()


def test_more_clients_than_the_process_may_open_files(bundle):
    """They wait, and are answered."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (64, hard))
    try:
        with serving("--bundle", bundle, "--threads", 1) as served:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
            clients = [socket.create_connection(("127.0.0.1", served.port)) for _ in range(80)]
            for client in clients:
                ask_on(client, "bad", read=False)
            wait_for(lambda: "accept" in [line["event"] for line in served.log()], "the log")
            for client in clients[:40]:
                assert b"200 OK" in client.recv(1000)
                client.close()
            for client in clients[40:]:
                client.settimeout(PATIENCE)
                assert b"200 OK" in client.recv(1000)
                client.close()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.slow
def test_odd_requests(bundle, pair_bundle):
    """Every endpoint by its schema; `faults.py` does it at length."""
    pytest.importorskip("schemathesis")
    counts = odd_requests(bundle, pair_bundle, cases=10)
    assert counts["requests"] > 100
    assert counts["failed"] == counts["server errors"] == 0
