"""The endpoints answer as the predictor does, and every error is JSON that a program can read."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest
from fastapi.testclient import TestClient

from bert_kd.errors import BundleError
from bert_kd.serve.app import create_app

PAIR = {"text": "a film", "text_pair": "very long"}
JSON = {"content-type": "application/json"}


@pytest.fixture(scope="module")
def client(single, pair):
    with TestClient(create_app({"small": single, "twin": pair})) as client:
        yield client


def refused(response, status, kind):
    """Check an error's form and return its message."""
    assert response.status_code == status, response.text
    assert set(response.json()) == {"error", "error_type"}
    assert response.json()["error_type"] == kind
    return response.json()["error"]


@pytest.mark.parametrize(
    "options", [{}, {"top_k": None}, {"top_k": 1}, {"top_k": 2}, {"top_k": 99}]
)
@pytest.mark.parametrize(
    "inputs", ["a film", "", [], ["a film"], ["a film", "bad"], {"text": "bad"}, [{"text": "bad"}]]
)
def test_answers_are_the_predictors(client, single, inputs, options):
    response = client.post("/predict", json={"inputs": inputs, **options})
    assert response.status_code == 200, response.text
    assert response.json() == single(inputs, **options)
    assert response.headers["server-timing"].startswith("predict;dur=")


@pytest.mark.parametrize("inputs", [PAIR, [PAIR], [PAIR, {"text": "", "text_pair": ""}]])
def test_pairs_and_the_other_bundle(client, pair, inputs):
    response = client.post("/predict", json={"inputs": inputs, "model": "twin", "top_k": None})
    assert response.json() == pair(inputs, top_k=None)


def test_any_text_is_answered(client):
    texts = ["\x00", "🙂" * 500, "e\u0301", "word " * 20_000, "\u202e", " \t\n"]
    response = client.post("/predict", json={"inputs": texts})
    assert response.status_code == 200
    assert len(response.json()) == len(texts)


INVALID = {
    "missing inputs": ({}, "inputs: Field required"),
    "number": ({"inputs": 3}, "inputs: must be a text, "),
    "null": ({"inputs": None}, "inputs: must be a text, "),
    "number in list": ({"inputs": ["a", 3]}, r"inputs\[1\]: must be a text or "),
    "list in list": ({"inputs": [["a", "b"]]}, r"inputs\[0\]: must be a text or "),
    "number in pair": (
        {"inputs": [{"text": "a", "text_pair": 3}]},
        r"inputs\[0\]\.text_pair: Input should be a valid string",
    ),
    "pair without text": ({"inputs": {"text_pair": "a"}}, r"inputs\.text: Field required"),
    "unknown key in pair": ({"inputs": {"text": "a", "x": 1}}, r"inputs\.x: Extra inputs are not"),
    "unknown field": ({"inputs": "a", "topk": 1}, "topk: Extra inputs are not permitted"),
    "top_k 0": ({"inputs": "a", "top_k": 0}, "top_k: .*greater than or equal to 1"),
    "top_k text": ({"inputs": "a", "top_k": "1"}, "top_k: .*valid integer"),
    "top_k true": ({"inputs": "a", "top_k": True}, "top_k: .*valid integer"),
    "top_k float": ({"inputs": "a", "top_k": 1.0}, "top_k: .*valid integer"),
    "pair to single": ({"inputs": PAIR}, "reads single texts, and a pair was given"),
    "single to pair": ({"inputs": "a", "model": "twin"}, "compares two texts, and one was given"),
    "mixed": ({"inputs": [PAIR, "a"], "model": "twin"}, "1 of 2 inputs are pairs"),
    "many wrong": ({"inputs": [1] * 9}, r"inputs\[2\]: .* \(and 6 more\)"),
}


@pytest.mark.parametrize("case", INVALID)
def test_invalid_requests_name_the_field(client, case):
    body, message = INVALID[case]
    response = client.post("/predict", json=body)
    found = refused(response, 422, "invalid_request")
    assert re.search(message, found), found


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"{'inputs': 1}", b'{"inputs": "a"', b'{"inputs": "\xff"}', b"[" * 100_000],
)
def test_what_is_no_json(client, body):
    response = client.post("/predict", content=body, headers=JSON)
    assert response.status_code in (400, 422)
    refused(response, response.status_code, response.json()["error_type"])
    assert response.json()["error_type"] in ("invalid_json", "invalid_request")


@pytest.mark.parametrize("body", [b"[]", b"null", b'"a"', b"NaN", b'{"inputs": "a", "top_k": NaN}'])
def test_json_of_another_shape(client, body):
    refused(client.post("/predict", content=body, headers=JSON), 422, "invalid_request")


def test_half_of_a_character(client):
    response = client.post("/predict", content=rb'{"inputs": "\ud800"}', headers=JSON)
    refused(response, 422, "invalid_request")


def test_unknown_names_and_methods(client):
    message = refused(
        client.post("/predict", json={"inputs": "a", "model": "smal"}), 404, "not_found"
    )
    assert "did you mean 'small'?" in message
    refused(client.get("/nowhere"), 404, "not_found")
    response = client.get("/predict")
    refused(response, 405, "method_not_allowed")
    assert response.headers["allow"] == "POST"


def test_a_bug_shows_no_traceback(single, monkeypatch):
    def broken(*_args, **_options):
        raise RuntimeError("the secret")

    monkeypatch.setattr(type(single), "probabilities", broken)
    with TestClient(create_app({"small": single}), raise_server_exceptions=False) as client:
        response = client.post("/predict", json={"inputs": "a"})
    assert "secret" not in refused(response, 500, "internal")


def test_health(client):
    assert client.get("/health").json() == {"status": "ok"}


def test_info(client, single):
    info = client.get("/info").json()
    assert [bundle["name"] for bundle in info["bundles"]] == ["small", "twin"]
    first = info["bundles"][0]
    assert first["labels"] == list(single.labels)
    assert (first["pair"], first["engine"], first["max_tokens"]) == (False, "onnx", 32)
    assert first["parameters"] == single.bundle.parameters
    assert first["bytes"] == single.bundle.bytes
    assert str(single.bundle.folder) not in str(info)


def test_page_needs_nothing_from_outside(client):
    response = client.get("/")
    assert response.headers["content-type"] == "text/html; charset=utf-8"
    assert "default-src 'none'" in response.headers["content-security-policy"]
    for outside in ("http://", "https://", "//cdn", "@import", "src="):
        assert outside not in response.text


def test_schema_describes_the_request(client):
    schema = client.get("/openapi.json").json()
    request = schema["components"]["schemas"]["PredictRequest"]
    assert set(request["properties"]) == {"inputs", "top_k", "model"}
    assert request["additionalProperties"] is False
    assert set(schema["paths"]) == {"/predict", "/health", "/info"}


def test_nothing_to_serve_is_refused():
    with pytest.raises(BundleError, match="no bundle to serve"):
        create_app({})


def test_serving_pulls_in_no_torch():
    code = """
import sys
import bert_kd.serve.app
heavy = {"torch", "transformers", "datasets", "onnx", "pyarrow"}
found = heavy & {name.partition(".")[0] for name in sys.modules}
assert not found, found
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_json_under_another_name_says_which_header_to_send(client):
    answer = client.post(
        "/predict", content=b'{"inputs": "a"}', headers={"content-type": "text/plain"}
    )
    assert answer.status_code == 422
    assert "content-type: application/json" in answer.json()["error"]


def test_a_model_name_that_is_half_a_character(client):
    answer = client.post(
        "/predict",
        content=b'{"inputs": "a", "model": "\\ud800"}',
        headers={"content-type": "application/json"},
    )
    assert answer.status_code in (404, 422) and answer.json()["error_type"] != "internal"
