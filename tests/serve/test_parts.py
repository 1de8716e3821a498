"""Keys, metrics, logs, scores, the OpenAPI document and spans: each a function by itself."""

from __future__ import annotations

import base64
import json
import os
import re
import threading
import time

import numpy as np
import pytest
from servers import Harness

from bert_kd.errors import UserError
from bert_kd.serve import answers, openapi
from bert_kd.serve.app import ENDPOINTS
from bert_kd.serve.keys import Keys, read_keys
from bert_kd.serve.logs import LINES, Log
from bert_kd.serve.metrics import Metrics, families

# --- keys ----------------------------------------------------------------------------------------


def basic(text):
    return b"Basic " + base64.b64encode(text.encode())


@pytest.mark.parametrize("given", [b"Bearer k1", b"bearer  k2", basic("me:k1"), basic(":k2")])
def test_keys_that_open(given):
    assert Keys(["k1", "k2"]).allow(given)


@pytest.mark.parametrize(
    "given",
    [None, b"", b"Bearer", b"Bearer k", b"Bearer k11", b"k1", b"Basic k1", basic("k1"), b"Basic !"],
)
def test_keys_that_do_not(given):
    assert not Keys(["k1", "k2"]).allow(given)


def test_no_keys_at_all():
    assert Keys().allow(None) and not Keys()


def test_a_file_of_keys(tmp_path):
    file = tmp_path / "keys"
    file.write_text("# ours\nk1\n\n  k2 \n")
    assert read_keys("k0", file) == ("k0", "k1", "k2")
    assert read_keys(None, None) == ()
    file.write_text("\ufeffk1\r\nk2\r\n", encoding="utf-8", newline="")  # as Windows' editors do
    assert read_keys(None, file) == ("k1", "k2")
    file.write_text("# none\n")
    with pytest.raises(UserError, match="holds none"):
        read_keys(None, file)
    with pytest.raises(UserError, match="cannot be read"):
        read_keys(None, tmp_path / "nowhere")
    for key in ("", "two words", "ключ", "a\tb"):
        with pytest.raises(UserError, match="must be a word of ASCII"):
            read_keys(key, None)


# --- metrics -------------------------------------------------------------------------------------


def test_workers_are_summed():
    known = families(["small"], ENDPOINTS)
    size = Metrics(known).size
    memory = memoryview(bytearray(2 * size))
    first, second = (Metrics(known, memory, row) for row in (0, 1))
    first.add("requests_total", "predict", "200")
    second.add("requests_total", "predict", "200", amount=2)
    first.observe("compute_seconds", "small", value=0.0002)
    second.observe("compute_seconds", "small", value=99.0)
    second.set("connections", 7)
    assert first.render() == second.render()
    text = first.render().decode()
    assert 'bert_kd_requests_total{endpoint="predict",status="200"} 3\n' in text
    assert 'bert_kd_compute_seconds_bucket{model="small",le="0.0001"} 0\n' in text
    assert 'bert_kd_compute_seconds_bucket{model="small",le="0.00025"} 1\n' in text
    assert 'bert_kd_compute_seconds_bucket{model="small",le="+Inf"} 2\n' in text
    assert 'bert_kd_compute_seconds_count{model="small"} 2\n' in text
    assert re.search(r'bert_kd_compute_seconds_sum\{model="small"\} 99\.0002', text)
    assert "bert_kd_connections 7\n" in text
    second.clear_gauges()
    assert first.value("connections") == 0 and first.value("requests_total", "predict", "200") == 3


def test_names_are_escaped():
    metrics = Metrics(families(['a"b\\c\nd'], ENDPOINTS))
    metrics.add("texts_total", 'a"b\\c\nd')
    assert r'bert_kd_texts_total{model="a\"b\\c\nd"} 1' in metrics.render().decode()


# --- logs ----------------------------------------------------------------------------------------


def test_lines_are_json_and_whole(tmp_path):
    with (tmp_path / "log").open("wb") as file:
        log = Log(file.fileno())
        for number in range(500):
            log.write("info", "one", number=number, text="x" * 50, value=float("nan"))
        log.close()
    lines = [json.loads(line) for line in (tmp_path / "log").read_text().splitlines()]
    assert [line["number"] for line in lines] == list(range(500))
    assert lines[0] | {"time": 0} == {
        "time": 0, "level": "info", "event": "one", "process": os.getpid(), "number": 0,
        "text": "x" * 50, "value": None,
    }  # fmt: skip


def test_a_reader_that_sleeps_holds_up_nobody():
    reader, writer = os.pipe()
    dropped = []
    log = Log(writer, lambda: dropped.append(1))
    for _ in range(LINES + 3000):  # more than the pipe and the list hold together
        log.write("info", "one", text="x" * 100)
    assert dropped
    thread = threading.Thread(
        target=lambda: [None for _ in iter(lambda: os.read(reader, 1 << 16), b"")]
    )
    thread.start()
    deadline = time.monotonic() + 20
    while log._lines and time.monotonic() < deadline:
        time.sleep(0.01)
    log.close()
    os.close(writer)
    thread.join(20)
    os.close(reader)
    assert not log._lines


def test_a_reader_that_is_gone():
    reader, writer = os.pipe()
    os.close(reader)
    log = Log(writer)
    log.write("info", "one")
    log.close()
    os.close(writer)


# --- scores --------------------------------------------------------------------------------------


def test_few_rows_and_many_are_scored_alike():
    logits = np.random.default_rng(0).normal(0, 8, (50, 5)).astype(np.float32)
    labels = list("abcde")
    for function in (
        lambda rows: answers.best(rows, labels),
        lambda rows: answers.ranked(rows, labels, None),
    ):
        together = function(logits)
        alone = [function(logits[row : row + 1])[0] for row in range(50)]
        for one, other in zip(together, alone, strict=True):
            for a, b in zip(
                *((x if isinstance(x, list) else [x]) for x in (one, other)), strict=True
            ):
                assert a["label"] == b["label"] and a["score"] == pytest.approx(b["score"], 1e-12)


def test_extreme_logits_give_numbers():
    logits = np.array([[3e38, -3e38, 0.0]], dtype=np.float32)
    for transform in ("softmax", "sigmoid", "none"):
        for rows in (logits, np.repeat(logits, 20, axis=0)):
            assert np.isfinite(answers.scores(rows, transform)).all()


def test_equal_logits_keep_the_labels_order():
    logits = np.zeros((1, 3), dtype=np.float32)
    assert answers.best(logits, list("abc"))[0]["label"] == "a"
    assert [one["label"] for one in answers.ranked(logits, list("abc"), 2)[0]] == ["a", "b"]


# --- the OpenAPI document ------------------------------------------------------------------------


def test_the_document_describes_the_api(harness):
    document = harness.get("/openapi.json").json()
    request = document["components"]["schemas"]["PredictRequest"]
    assert set(request["properties"]) == {
        "inputs", "top_k", "raw_scores", "truncate", "truncation_direction", "model",
    }  # fmt: skip
    assert request["additionalProperties"] is False
    assert set(document["paths"]) == {
        "/predict", "/", "/models/{name}", "/docs", "/openapi.json", "/info", "/metrics",
        "/health", "/ready",
    }  # fmt: skip
    assert document["paths"]["/models/{name}"]["parameters"][0]["schema"]["enum"] == [
        "small", "twin",
    ]  # fmt: skip
    assert "security" not in document


def test_every_reference_leads_somewhere(harness):
    text = harness.get("/openapi.json").text
    schemas = json.loads(text)["components"]["schemas"]
    for name in re.findall(r'"#/components/schemas/(\w+)"', text):
        assert name in schemas


def test_every_example_is_answered(harness):
    document = harness.get("/openapi.json").json()
    for path, operations in document["paths"].items():
        if "post" in operations:
            content = operations["post"]["requestBody"]["content"]["application/json"]
            answer = harness.post(path.replace("{name}", "small"), content["example"])
            assert answer.status == 200, answer.text


def test_every_path_is_there_and_every_get_is_documented(harness):
    document = harness.get("/openapi.json").json()
    for path, operations in document["paths"].items():
        if "get" in operations:
            assert harness.get(path).status == 200
    assert set(harness.app._gets) <= set(document["paths"])


def test_the_docs_name_every_field():
    page = openapi.page(openapi.document(["<b>"], keyed=True), "localhost")
    for word in (
        "truncate",
        "function_to_apply",
        "error_type",
        "concurrent_requests",
        "Bearer KEY",
    ):
        assert word in page
    assert "<b>" not in page
    assert "<script" not in page


# --- spans ---------------------------------------------------------------------------------------


def test_requests_are_spans_below_their_callers(bundle):
    pytest.importorskip("opentelemetry.sdk")
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import SimpleSpanProcessor
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

    from bert_kd.serve.tracing import tracer

    kept = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(kept))
    with Harness([bundle], trace=tracer(provider)) as harness:
        caller = f"00-{'a' * 32}-{'b' * 16}-01"
        harness.post("/predict", {"inputs": ["secret", "b"]}, traceparent=caller)
        harness.post("/predict", {"inputs": 3})
    first, second = kept.get_finished_spans()
    assert first.name == "POST predict"
    assert f"{first.parent.trace_id:032x}" == "a" * 32
    assert first.attributes["http.response.status_code"] == 200
    assert first.attributes["bert_kd.texts"] == 2
    assert "secret" not in str(first.to_json())
    assert first.end_time >= first.start_time
    assert second.parent is None and second.attributes["http.response.status_code"] == 422
    provider.shutdown()
