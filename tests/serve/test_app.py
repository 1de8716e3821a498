"""The endpoints answer as the predictor does, and every error is JSON that a program can read."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from html import unescape

import numpy as np
import pytest
from servers import Harness, refused
from test_connection import Client

from bert_kd.errors import BundleError
from bert_kd.serve.limits import Limits
from bert_kd.serve.metrics import STATUSES
from bert_kd.serve.openapi import REFUSALS

PAIR = {"text": "a film", "text_pair": "very long"}


def same(found, expected):
    """Whether two answers have one shape and labels, and scores that differ by rounding alone."""
    if isinstance(expected, list):
        return len(found) == len(expected) and all(map(same, found, expected))
    return found["label"] == expected["label"] and found["score"] == pytest.approx(
        expected["score"], abs=1e-6
    )


@pytest.mark.parametrize(
    "options", [{}, {"top_k": None}, {"top_k": 1}, {"top_k": 2}, {"top_k": 99}]
)
@pytest.mark.parametrize(
    "inputs", ["a film", "", [], ["a film"], ["a film", "bad"], {"text": "bad"}, [{"text": "bad"}]]
)
def test_answers_are_the_predictors(harness, single, inputs, options):
    answer = harness.post("/predict", {"inputs": inputs, **options})
    assert answer.status == 200, answer.text
    assert same(answer.json(), single(inputs, **options))
    assert answer.headers["server-timing"].startswith("predict;dur=")


@pytest.mark.parametrize("inputs", [PAIR, [PAIR], [PAIR, {"text": "", "text_pair": ""}], []])
def test_pairs_and_the_other_bundle(harness, pair, inputs):
    answer = harness.post("/predict", {"inputs": inputs, "model": "twin", "top_k": None})
    assert same(answer.json(), pair(inputs, top_k=None))


def test_raw_scores_are_logits(harness, single):
    found = harness.post("/predict", {"inputs": ["bad"], "top_k": None, "raw_scores": True}).json()
    logits = dict(zip(single.labels, single.logits(["bad"])[0].tolist(), strict=True))
    assert {one["label"]: one["score"] for one in found[0]} == pytest.approx(logits, abs=1e-5)


def test_lists_of_lists_are_answered_as_text_embeddings_inference_does(harness, single, pair):
    found = harness.post("/predict", {"inputs": [["a film"], ["bad"]]}).json()
    assert same(found, single(["a film", "bad"], top_k=None))
    found = harness.post("/predict", {"inputs": [["a film", "very long"]], "model": "twin"}).json()
    assert same(found, pair([PAIR], top_k=None))


@pytest.mark.parametrize("options", [{"truncate": None}, {"truncation_direction": "Right"}])
def test_what_text_embeddings_inference_takes_besides(harness, single, options):
    found = harness.post("/predict", {"inputs": "film " * 99, **options})
    assert found.status == 200, found.text
    assert same(found.json(), single("film " * 99))


def test_hugging_face_inference_shapes(harness, single, pair):
    assert same(harness.post("/", {"inputs": "bad"}).json(), single(["bad"], top_k=None))
    asked = {"inputs": ["bad", "a film"], "parameters": {"top_k": 2}, "options": {}}
    assert same(harness.post("/models/small", asked).json(), single(asked["inputs"], top_k=2))
    assert same(harness.post("/models/twin", {"inputs": PAIR}).json(), pair([PAIR], top_k=None))


def test_functions_to_apply(harness, single):
    logits = dict(zip(single.labels, single.logits(["bad"])[0].tolist(), strict=True))
    for name, function in (("none", float), ("sigmoid", lambda x: 1 / (1 + np.exp(-x)))):
        body = {"inputs": "bad", "parameters": {"function_to_apply": name}}
        found = {one["label"]: one["score"] for one in harness.post("/", body).json()[0]}
        assert found == pytest.approx({k: function(v) for k, v in logits.items()}, abs=1e-5)


def test_truncate_false_refuses_what_would_be_cut(harness):
    longest, longer = "film " * 32, "film " * 33
    assert harness.post("/predict", {"inputs": longest, "truncate": False}).status == 200
    for inputs in (["bad", longer], ["bad", longer * 200]):
        answer = harness.post("/predict", {"inputs": inputs, "truncate": False})
        message = refused(answer, 422, "invalid_request")
        assert message.startswith("inputs[1] is longer than the 32 tokens")
    pairs = [PAIR, {"text": "a", "text_pair": longer}]
    answer = harness.post("/predict", {"inputs": pairs, "truncate": False, "model": "twin"})
    assert refused(answer, 422, "invalid_request").startswith("inputs[1] is longer")


def test_any_text_is_answered(harness, single):
    texts = ["\x00", "🙂" * 500, "e\u0301", "word " * 20_000, "\u202e", " \t\n"]
    answer = harness.post("/predict", {"inputs": texts})
    assert same(answer.json(), single(texts))


INVALID = {
    "missing inputs": ({}, "missing required field inputs"),
    "number": ({"inputs": 3}, "inputs: expected .*, got int"),
    "null": ({"inputs": None}, "inputs: expected .*, got null"),
    "number in list": ({"inputs": ["a", 3]}, r"inputs\[1\]: expected .*, got int"),
    "three in list": ({"inputs": [["a", "b", "c"]]}, r"inputs\[0\]: .* length <= 2"),
    "none in list": ({"inputs": [[]]}, r"inputs\[0\]: .* length >= 1"),
    "lists and texts": ({"inputs": [["a"], "b"]}, "1 of 2 are lists"),
    "number in pair": (
        {"inputs": [{"text": "a", "text_pair": 3}]},
        r"inputs\[0\]\.text_pair: expected .*, got int",
    ),
    "pair without text": ({"inputs": {"text_pair": "a"}}, r"inputs: .*missing .* text"),
    "unknown key in pair": ({"inputs": {"text": "a", "x": 1}}, "inputs: unknown field 'x'"),
    "unknown field": ({"inputs": "a", "topk": 1}, r"unknown field 'topk' \(did you mean 'top_k'"),
    "top_k 0": ({"inputs": "a", "top_k": 0}, "top_k: expected int >= 1"),
    "top_k text": ({"inputs": "a", "top_k": "1"}, "top_k: expected .*, got str"),
    "top_k true": ({"inputs": "a", "top_k": True}, "top_k: expected .*, got bool"),
    "top_k float": ({"inputs": "a", "top_k": 1.0}, "top_k: expected .*, got float"),
    "pair to single": ({"inputs": PAIR}, "reads single texts, and a pair was given"),
    "single to pair": ({"inputs": "a", "model": "twin"}, "compares two texts, and one was given"),
    "mixed": ({"inputs": [PAIR, "a"], "model": "twin"}, "1 of 2 are pairs"),
}


def test_what_a_field_takes_is_listed(harness):
    body = {"inputs": "a", "parameters": {"function_to_apply": "tanh"}}
    found = refused(harness.post("/", body), 422, "invalid_request")
    assert found == (
        "parameters.function_to_apply: invalid enum value 'tanh': give 'softmax', 'sigmoid', 'none'"
    )
    body = {"inputs": "a", "truncation_direction": "Left"}
    found = refused(harness.post("/predict", body), 422, "invalid_request")
    assert "give 'Right': a text is read from its beginning" in found


@pytest.mark.parametrize("case", INVALID)
def test_invalid_requests_name_the_field(harness, case):
    body, message = INVALID[case]
    found = refused(harness.post("/predict", body), 422, "invalid_request")
    assert re.search(message, found), found


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"{'inputs': 1}",
        b'{"inputs": "a"',
        b'{"inputs": "\xff"}',
        b'{"inputs": "\xed\xa0\x80"}',
        rb'{"inputs": "\ud800"}',
        b'{"inputs": NaN}',
        b'{"inputs": "a"} x',
        b"NaN",
    ],
)
@pytest.mark.parametrize("path", ["/predict", "/", "/models/small"])
def test_what_is_no_json(harness, path, body):
    refused(harness.post(path, body), 400, "invalid_json")


@pytest.mark.parametrize(
    ("inside", "half"),
    [
        (rb"\ud800", True),
        (rb"a\\\uDC00 b", True),
        (rb"\ud83c\udfac \ud83c", True),
        (rb"\ud83c\ud83c\udfac", True),
        (rb"\ud83c\udfac\x", False),
        (rb"\\ud800 \x", False),
        (rb"\ud83c\n", True),
        (rb"\ud83c\u0041", True),
        (rb"\x \ud800", False),
        (rb'a" "\ud800 film', False),
    ],
)
def test_half_a_surrogate_pair_is_told(harness, inside, half):
    body = b'{"inputs": "' + inside + b'"}'
    message = refused(harness.post("/predict", body), 400, "invalid_json")
    assert ("half of a surrogate pair" in message) == half


def test_a_body_that_ends_too_soon_is_no_half_of_a_pair(harness):
    for inside in (b"x", rb"\u00e9", rb"\ud83c\udfac", rb"\\ud83c", b"\\\\"):
        body = b'{"inputs": "' + inside * 100_000
        message = refused(harness.post("/predict", body), 400, "invalid_json")
        assert message == "the body is not JSON: Input data was truncated"


@pytest.mark.parametrize(
    "body", [b"[]", b"null", b'"a"', b"[" * 100_000, b'{"inputs": ' + b"[" * 100_000]
)
def test_json_of_another_shape(harness, body):
    refused(harness.post("/predict", body), 422, "invalid_request")


def test_names_and_methods_that_are_not_there(harness):
    answer = harness.post("/predict", {"inputs": "a", "model": "smal"})
    assert "did you mean 'small'?" in refused(answer, 404, "not_found")
    refused(harness.post("/models/smal", {"inputs": "a"}), 404, "not_found")
    refused(harness.get("/nowhere"), 404, "not_found")
    for method, path, allowed in (
        ("GET", "/predict", "POST"),
        ("DELETE", "/", "GET, HEAD, POST"),
        ("POST", "/health", "GET, HEAD"),
        ("OPTIONS", "/info", "GET, HEAD"),
    ):
        answer = harness.call(method, path)
        refused(answer, 405, "method_not_allowed")
        assert answer.headers["allow"] == allowed
    message = refused(harness.call("DELETE", "/"), 405, "method_not_allowed")
    assert message == "DELETE is not answered at this path: use GET, HEAD or POST"
    message = refused(harness.get("/predict"), 405, "method_not_allowed")
    assert message == "GET is not answered at this path: use POST"


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", "json"])
def test_json_under_another_name_says_which_header_to_send(harness, kind):
    answer = harness.call("POST", "/predict", b'{"inputs": "a"}', {"content-type": kind})
    message = refused(answer, 415, "unsupported_media_type")
    assert "content-type: application/json" in message


def test_a_character_set_may_be_named(harness):
    headers = {"content-type": "Application/JSON; charset=utf-8"}
    assert harness.call("POST", "/predict", b'{"inputs": "a"}', headers).status == 200


def test_compressed_bodies_are_refused(harness):
    for coding, status in (("gzip", 415), ("identity", 200), ("Identity", 200)):
        answer = harness.post("/predict", {"inputs": "a"}, **{"content-encoding": coding})
        assert answer.status == status
    answer = harness.post("/predict", b"\x1f\x8b", **{"content-encoding": "gzip"})
    assert "content-encoding" in refused(answer, 415, "unsupported_media_type")


# --- limits --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def narrow(bundle):
    limits = Limits(concurrent_requests=2, queued_texts=4, texts=4, characters=10)
    with Harness([bundle], limits) as harness:
        yield harness


def test_too_many_or_too_long_texts(narrow):
    assert narrow.post("/predict", {"inputs": ["a" * 10] * 4}).status == 200
    message = refused(narrow.post("/predict", {"inputs": ["a"] * 5}), 413, "payload_too_large")
    assert "5 texts were given, 4 are answered at a time" in message
    message = refused(
        narrow.post("/predict", {"inputs": ["a", "a" * 11]}), 413, "payload_too_large"
    )
    assert message.startswith("inputs[1] has 11 characters")


@pytest.mark.parametrize("path", ["/predict", "/"])
def test_more_texts_than_the_limit_are_not_looked_at(narrow, path):
    """So that a body of millions of them, here of the wrong kind, holds up nobody."""
    message = refused(narrow.post(path, {"inputs": [PAIR] * 5}), 413, "payload_too_large")
    assert message.startswith("5 texts were given")


@pytest.mark.parametrize(
    ("path", "headers", "status", "endpoint"),
    [
        ("/predict", ("authorization: Bearer first",), 413, "predict"),
        ("/", ("authorization: Bearer first",), 413, "inference"),
        ("/predict", (), 401, "predict"),
    ],
)
def test_a_large_body_is_refused_to_who_may_ask(locked, path, headers, status, endpoint):
    """And counted at the endpoint that it was meant for."""
    client = Client(locked.app)
    series = ("requests_total", endpoint, str(status))
    before = locked.metrics.value(*series)
    size = Limits().payload_bytes + 1
    lines = [f"POST {path} HTTP/1.1", "host: x", "content-type: application/json", *headers]
    client.send("\r\n".join([*lines, f"content-length: {size}", "", ""]).encode())
    assert client.refusal()[0] == status
    assert locked.metrics.value(*series) == before + 1
    assert locked.app.in_hand == 0


def ask(harness, inputs):
    body = json.dumps({"inputs": inputs}).encode()
    return harness.start("POST", "/predict", body, {"content-type": "application/json"})


def test_more_requests_than_are_taken_on_are_refused_politely(narrow):
    waiting = [ask(narrow, "bad")[1] for _ in range(4)]  # the loop has not run yet
    first, second, third, fourth = (
        narrow.loop.run_until_complete(answered) for answered in waiting
    )
    assert (first.status, second.status) == (200, 200)
    for response in (third, fourth):
        assert response.status == 429
        assert dict(response.headers)[b"retry-after"] == b"1"
        assert json.loads(response.body)["error_type"] == "overloaded"
    assert narrow.post("/predict", {"inputs": "bad"}).status == 200  # those in hand are done
    assert narrow.app.in_hand == 0


def test_a_full_queue_is_refused_politely(narrow):
    waiting = [ask(narrow, ["bad"] * 3)[1] for _ in range(2)]
    responses = [narrow.loop.run_until_complete(answered) for answered in waiting]
    assert [response.status for response in responses] == [200, 429]


def test_limits_must_be_positive():
    with pytest.raises(Exception, match="texts is 0: give a number above 0"):
        Limits(texts=0)
    with pytest.raises(Exception, match="body_seconds is nan"):
        Limits(body_seconds=float("nan"))


PAGES = ("/", "/docs", "/openapi.json")

# --- keys ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def locked(bundle):
    with Harness([bundle], keys=("first", "second")) as harness:
        yield harness


@pytest.mark.parametrize("path", ["/predict", "/", "/models/small"])
def test_a_key_is_asked_for(locked, path):
    for headers in ({}, {"authorization": "Bearer nope"}, {"authorization": "Bearer"}):
        answer = locked.post(path, {"inputs": "a"}, **headers)
        refused(answer, 401, "unauthorized")
        challenges = [value for name, value in answer.fields if name == "www-authenticate"]
        assert [challenge.split()[0] for challenge in challenges] == ["Bearer"]
    for key in ("first", "second"):
        answer = locked.post(path, {"inputs": "a"}, authorization=f"Bearer {key}")
        assert answer.status == 200


def test_everything_but_health_is_locked(locked):
    """Of the pages a browser asks for the key itself."""
    for path in ("/", "/info", "/metrics", "/docs", "/openapi.json", "/nowhere"):
        answer = locked.get(path)
        refused(answer, 401, "unauthorized")
        schemes = [value.split()[0] for name, value in answer.fields if name == "www-authenticate"]
        assert schemes == (["Bearer", "Basic"] if path in PAGES else ["Bearer"])
    assert locked.get("/health").status == locked.get("/ready").status == 200


# --- the server itself ---------------------------------------------------------------------------


def test_docs_ask_where_they_were_asked_for(harness, locked):
    """Their examples can be pasted into a shell as they are."""
    text = unescape(harness.get("/docs", host="example.org:8123").text)
    assert re.findall("curl -s .*", text) == [
        f"curl -s example.org:8123{path} \\" for path in ("/predict", "/", "/models/small")
    ]
    assert "KEY" not in text
    headers = {"host": "[::1]:80", "authorization": "Bearer first"}
    text = unescape(locked.get("/docs", **headers).text)
    examples = re.findall("<pre>(.*?)</pre>", text, re.DOTALL)
    assert examples[0].startswith("curl -s '[::1]:80/predict' \\\n")
    assert all("-H 'authorization: Bearer KEY'" in example for example in examples)
    for host in ({}, {"host": "<script>"}):
        text = harness.get("/docs", **host).text
        assert "curl -s HOST/predict" in text and "<script>" not in text


def test_every_status_is_counted_and_documented(harness):
    for operations in harness.get("/openapi.json").json()["paths"].values():
        for operation in (operations[method] for method in ("get", "post") if method in operations):
            assert {"400", "408", "413", "431", "500"} < set(operation["responses"])
            assert set(operation["responses"]) <= set(STATUSES)
    assert {str(status) for status in (*REFUSALS, 405)} <= set(STATUSES)


def test_health_and_readiness(bundle):
    with Harness([bundle]) as harness:
        assert harness.get("/health").json() == {"status": "ok"}
        assert harness.get("/ready").json() == {"status": "ready"}
        harness.app.stopping = True
        assert harness.get("/health").status == 200
        refused(harness.get("/ready"), 503, "stopping")


def test_info(harness, single):
    info = harness.get("/info").json()
    assert [bundle["name"] for bundle in info["bundles"]] == ["small", "twin"]
    first = info["bundles"][0]
    assert first["labels"] == list(single.labels)
    assert (first["pair"], first["max_tokens"]) == (False, 32)
    assert first["engine"] == single.engine.name
    assert first["parameters"] == single.bundle.parameters
    assert info["limits"]["texts"] == Limits().texts
    assert info["key_required"] is False
    assert str(single.bundle.folder) not in str(info)


def test_page_needs_nothing_from_outside(harness):
    for path in ("/", "/docs"):
        answer = harness.get(path)
        assert answer.headers["content-type"] == "text/html; charset=utf-8"
        policy = answer.headers["content-security-policy"]
        assert "default-src 'none'" in policy and "unsafe" not in policy
        for outside in ("http://", "https://", "//cdn", "@import", "src="):
            assert outside not in answer.text


def test_a_bug_shows_no_traceback_and_is_logged_with_it(bundle, monkeypatch):
    with Harness([bundle]) as harness:

        def broken(*_arguments):
            raise RuntimeError("the secret")

        monkeypatch.setattr(type(harness.models["small"].predictor), "logits", broken)
        answer = harness.post("/predict", {"inputs": "a"})
        assert "secret" not in refused(answer, 500, "internal")
        monkeypatch.undo()
        monkeypatch.setattr(harness.app, "_predict_reader", None)
        assert "NoneType" not in refused(harness.post("/predict", {"inputs": "a"}), 500, "internal")
        monkeypatch.undo()
        monkeypatch.setattr(type(harness.models["small"]), "first_too_long", broken)
        for inputs in ("a", "a " * 4000):  # counted at once, and in a thread
            answer = harness.post("/predict", {"inputs": inputs, "truncate": False})
            assert "secret" not in refused(answer, 500, "internal")
        bugs = [line for line in harness.logged() if line["event"] == "bug"]
    assert "the secret" in bugs[0]["traceback"] and "NoneType" in bugs[1]["traceback"]
    assert bugs[0]["request"] == "test"


def test_requests_are_logged_without_their_texts(bundle):
    with Harness([bundle]) as harness:
        harness.post("/predict", {"inputs": ["the private text"] * 2})
        harness.post("/predict", {"inputs": 3})
        harness.get("/health")
        lines = harness.logged()
    assert [(line["status"], line["texts"]) for line in lines] == [("200", 2), ("422", 0)]
    assert "private" not in json.dumps(lines)


def test_long_paths_are_logged_in_part(bundle):
    with Harness([bundle]) as harness:
        harness.get("/" + "a" * 30_000)
        assert harness.logged()[0]["path"] == "/" + "a" * 199


def test_texts_are_logged_where_that_is_asked_for(bundle):
    with Harness([bundle], log_texts=True) as harness:
        harness.post("/predict", {"inputs": "the private text"})
        assert harness.logged()[0]["texts"] == ["the private text"]


def test_requests_are_counted(bundle):
    with Harness([bundle]) as harness:
        harness.post("/predict", {"inputs": ["a"] * 3})
        harness.post("/", {"inputs": 3})
        text = harness.get("/metrics").text
    assert 'bert_kd_requests_total{endpoint="predict",status="200"} 1' in text
    assert 'bert_kd_requests_total{endpoint="inference",status="422"} 1' in text
    assert 'bert_kd_texts_total{model="small"} 3' in text
    assert 'bert_kd_queue_seconds_count{model="small"} 1' in text
    assert "bert_kd_requests_in_hand 0" in text


def test_nothing_to_serve_is_refused():
    with pytest.raises(BundleError, match="no bundle to serve"):
        Harness([])


def test_serving_pulls_in_no_torch():
    code = """
import sys
import bert_kd.serve.life
heavy = {"torch", "transformers", "datasets", "onnx", "pyarrow", "pydantic"}
found = heavy & {name.partition(".")[0] for name in sys.modules}
assert not found, found
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
