"""The benchmarks of the server and of files, from a small bundle to the document."""

from __future__ import annotations

import json
import signal
import socket
import threading

import bulk
import pytest
import serving
import serving_docs
import serving_load
from serving_load import Load, Told
from small_students import TEXTS, make_bundle

from bert_kd.errors import UserError
from bert_kd.runtime.predictor import load
from bert_kd.store import write_json

SERVER, POOL = serving.SERVER, serving.POOL


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    return make_bundle(tmp_path_factory.mktemp("benchmark"))


@pytest.fixture
def answering():
    """A server of one thread a connection that answers each request with its own body, in pieces,
    and every tenth with status 429.
    """
    listener = socket.create_server(("127.0.0.1", 0))
    asked = []

    def answer(client):
        with client:
            data = b""
            while piece := client.recv(65536):
                data += piece
                _, size = serving_load.split(b"HTTP/1.1 200 " + data)
                size -= len(b"HTTP/1.1 200 ")
                if size <= 0 or len(data) < size:
                    continue
                body, data = data[data.index(b"\r\n\r\n") + 4 : size], data[size:]
                asked.append(body)
                status = b"429 Busy" if len(asked) % 10 == 0 else b"200 OK"
                head = b"HTTP/1.1 %s\r\nContent-Length: %d\r\n\r\n" % (status, len(body))
                client.sendall(head[:9])
                client.sendall(head[9:] + body)

    def accept():
        while True:
            try:
                client, _ = listener.accept()
            except OSError:
                return
            threading.Thread(target=answer, args=(client,), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    yield listener.getsockname()[1], asked
    listener.close()


def test_the_load_asks_everything_and_keeps_every_answer(answering):
    port, asked = answering
    bodies = [json.dumps({"inputs": text}) for text in (*TEXTS, "long " * 100_000)]
    told = serving_load.run(Load(port, 3, 0.3, bodies))
    assert {body for _, body, _ in told.answers} == set(bodies)
    assert all(body == bodies[place] for place, body, _ in told.answers)
    assert sum(times for _, _, times in told.answers) == told.answered
    # What was on its way at the end is waited for, and not counted.
    assert len(asked) - 3 < told.answered + told.others["429"] <= len(asked)
    assert 0 < told.p50_ms <= told.p99_ms and told.seconds >= 0.3


@pytest.fixture
def ten_seconds():
    """Ends a test that hangs."""

    def hung(*_):
        raise TimeoutError("it hangs")

    before = signal.signal(signal.SIGALRM, hung)
    signal.alarm(10)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def test_a_request_that_is_sent_in_pieces_is_answered(answering, ten_seconds, monkeypatch):
    """Also where the last piece is a small one."""
    port, asked = answering
    connect = socket.create_connection

    def narrow(*given, **named):
        made = connect(*given, **named)
        made.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 8192)
        return made

    pieces = []
    send_rest = serving_load._send_rest

    def watched(client, poll):
        pieces.append(len(client.unsent))
        send_rest(client, poll)

    monkeypatch.setattr(serving_load.socket, "create_connection", narrow)
    monkeypatch.setattr(serving_load, "_send_rest", watched)
    body = json.dumps({"inputs": "x" * 3_000_000})
    told = serving_load.run(Load(port, 1, 0.1, [body]))
    assert told.answered >= 1 and told.answers[0][1] == body
    assert len(asked) < len(pieces) and 0 < pieces[-1] < len(body)


def test_percentiles():
    values = [float(value) for value in range(100)]
    assert serving_load.percentile(values, 0.5) == 50.0
    assert serving_load.percentile(values, 0.99) == 99.0
    assert serving_load.percentile([7.0], 0.99) == 7.0


def test_a_wrong_answer_is_found(bundle):
    predictor = load(bundle, threads=1)
    right = [predictor(text)[0] for text in TEXTS]

    def counted(answers: list[object], asked: list[int]) -> int:
        compared = serving.Compared.of(predictor, TEXTS)
        told = Told(2, {}, 1.0, 1.0, 1.0, 0.0, [(0, json.dumps(answers), 2)])
        compared.add(told, [asked])
        assert compared.answers == 2 * len(asked)
        return compared.wrong

    assert counted(right, [*range(len(TEXTS))]) == 0
    assert counted(right[:2][::-1], [0, 1]) == 4  # in another order
    assert counted([{**right[0], "label": "other"}], [0]) == 2
    assert counted([{**right[0], "score": right[0]["score"] - 0.01}], [0]) == 2
    assert counted(right[:1], [0, 1]) == 4


@pytest.mark.slow
def test_the_server_beside_the_ordinary_way(bundle, tmp_path):
    pytest.importorskip("fastapi", reason="FastAPI is not installed")
    command = ["--bundle", str(bundle), "--rounds", "1", "--seconds", "0.3", "--connections", "2"]
    command += ["--systems", SERVER, POOL, "--memory-minutes", "0", "--texts", "20"]
    options = serving.parse([*command, "--bulk-texts", "50"])
    *_, found = serving.measure(options)
    write_json(tmp_path / "serving.json", found)
    serving_docs.write_docs(tmp_path, tmp_path / "docs" / "serving.md")
    page = (tmp_path / "docs" / "serving.md").read_text()
    assert f"| {SERVER} |" in page and f"| {POOL} |" in page
    assert "| of them wrong | 0 |" in page
    compared = next(row for row in found["rows"] if row["metric"] == "answers_compared")
    assert compared["value"] > 20


def test_a_server_that_does_not_start_is_told():
    with pytest.raises(UserError, match="no such place"):
        with serving.served("-c", "raise SystemExit('no such place')"):
            pass


def test_options_that_a_benchmark_has_no_use_for_are_refused(capsys):
    with pytest.raises(SystemExit):
        serving.parse(["--minutes", "3"])
    assert "unrecognized arguments: --minutes" in capsys.readouterr().err


def test_a_command_that_ends_before_it_is_killed_is_told(bundle, tmp_path, monkeypatch):
    done = bulk.Told({"rows": 10, "resumed": 0, "seconds": 1.0}, [1])
    monkeypatch.setattr(bulk, "predict", lambda *given: done)
    options = bulk.parse(["--bundle", str(bundle), "--long-rows", "10"])
    with pytest.raises(UserError, match=r"--long-rows, or a smaller --kill-at"):
        list(bulk.measure_long(options, tmp_path, TEXTS))


@pytest.mark.slow
def test_a_file_beside_its_texts_in_memory(bundle, tmp_path):
    command = ["--bundle", str(bundle), "--threads", "1", "--rows", "2000", "--rounds", "1"]
    *_, found = bulk.measure(bulk.parse([*command, "--long-rows", "60000"]))
    write_json(tmp_path / "bulk.json", found)
    serving_docs.write_docs(tmp_path, tmp_path / "serving.md")
    page = (tmp_path / "serving.md").read_text()
    assert "| rows missing, out of place or wrong | 0 |" in page
    assert found["config"]["rounds"] == 1
    resumed = next(row for row in found["rows"] if row["metric"] == "long.resumed_rows")
    assert 0 < resumed["value"] < 60_000


def test_without_results_the_document_says_what_to_do(tmp_path):
    with pytest.raises(UserError, match="benchmarks/serving.py"):
        serving_docs.write_docs(tmp_path, tmp_path / "serving.md")
