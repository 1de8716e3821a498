"""The ordinary ways to serve a classifier, as one finds them described: FastAPI under uvicorn, a
model call for each request.

    serving_peers.py student BUNDLE      ONNX Runtime on the student's `model.onnx`
    serving_peers.py pipeline FOLDER     transformers' text-classification pipeline

Prints its address on standard error and serves until it is ended. uvicorn has its faster parser and
event loop (httptools, uvloop) and writes no access log. Handlers are plain functions, which FastAPI
runs in its thread pool; with a third argument `loop` they are coroutines on the event loop.
"""

from __future__ import annotations

import json
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import uvicorn
from fastapi import FastAPI
from pydantic import BaseModel

Answer = list[dict[str, Any]]
Classify = Callable[[str], Answer]


class Question(BaseModel):
    """A request."""

    inputs: str


class Scored(BaseModel):
    """A label and its score."""

    label: str
    score: float


def student(folder: Path) -> Classify:
    """Return the student of a bundle in ONNX Runtime, a text at a time, one thread."""
    import numpy as np
    import onnxruntime
    from tokenizers import Tokenizer

    labels = json.loads((folder / "bundle.json").read_text(encoding="utf-8"))["labels"]
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(
        str(folder / "model.onnx"), options, providers=["CPUExecutionProvider"]
    )

    def classify(text: str) -> Answer:
        ids = tokenizer.encode(text).ids or [0]
        feed = {
            "ids": np.array([ids], dtype=np.int64),
            "lengths": np.array([len(ids)], dtype=np.int64),
        }
        logits = session.run(["logits"], feed)[0][0]
        powers = np.exp(logits - logits.max())
        best = int(powers.argmax())
        return [{"label": labels[best], "score": float(powers[best] / powers.sum())}]

    return classify


def pipeline(folder: Path) -> Classify:
    """Return transformers' pipeline with the model in a folder."""
    import transformers

    found = transformers.pipeline("text-classification", model=str(folder), device="cpu")
    return lambda text: list(found(text, truncation=True))


def make_app(classify: Classify, on_loop: bool) -> FastAPI:
    """Return the application; `on_loop`: answers on the event loop, not in the thread pool."""
    app = FastAPI()

    if on_loop:

        @app.post("/predict")
        async def answer_on_loop(question: Question) -> list[Scored]:
            return [Scored(**found) for found in classify(question.inputs)]

    else:

        @app.post("/predict")
        def answer(question: Question) -> list[Scored]:
            return [Scored(**found) for found in classify(question.inputs)]

    return app


def main() -> None:
    """Serve on a free port."""
    kind, folder = sys.argv[1], Path(sys.argv[2])
    classify = student(folder) if kind == "student" else pipeline(folder)
    app = make_app(classify, on_loop=sys.argv[3:] == ["loop"])
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(4096)
        sys.stderr.write(f"serving at http://127.0.0.1:{listener.getsockname()[1]}/\n")
        sys.stderr.flush()
        config = uvicorn.Config(
            app, http="httptools", loop="uvloop", access_log=False, log_level="warning"
        )
        uvicorn.Server(config).run(sockets=[listener])


if __name__ == "__main__":
    main()
