"""The systems of the inference benchmark, each opened from files: raw texts in, probabilities out.

Run by itself, this module opens one system in a process of its own and tells what that took:
`inference_systems.py SPEC` with the JSON of a `Spec`.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]
Answer = Callable[[Sequence[str]], Any]
Kind = Literal["bert-torch", "bert-onnx", "student-torch", "student-onnx", "native", "fasttext"]

LONGEST = 256
"""Tokens at which texts are cut, special ones included, by BERTs and students alike."""
TOKENS_PER_BATCH = 1024
"""Padded tokens of a batch of a BERT, whose texts are sorted by length."""


@dataclass(frozen=True)
class Spec:
    """A system on disk: a BERT's folder, or `.onnx` file beside a tokenizer; a student's folder; a
    bundle; a fastText file.
    """

    kind: Kind
    path: Path

    def to_json(self) -> str:
        return json.dumps({key: str(value) for key, value in asdict(self).items()})

    @staticmethod
    def from_json(text: str) -> Spec:
        given = json.loads(text)
        return Spec(given["kind"], Path(given["path"]))


def open_system(spec: Spec, threads: int) -> Answer:
    """Return the system, ready to answer in so many threads. Those in torch go by the threads that
    torch has while they answer; fastText answers in one.
    """
    if spec.kind == "bert-torch":
        return _bert(_torch_logits(spec.path), spec.path)
    if spec.kind == "bert-onnx":
        return _bert(_onnx_logits(spec.path, threads), spec.path.parent)
    if spec.kind == "student-torch":
        return _torch_student(spec.path)
    if spec.kind == "fasttext":
        return _fasttext(spec.path)
    from bert_kd.runtime.predictor import load

    engine: Any = "native" if spec.kind == "native" else "onnx"
    return load(spec.path, engine=engine, threads=threads).probabilities


def softmax(logits: Floats) -> Floats:
    """Return the probabilities [texts, classes]."""
    powers = np.exp(logits - logits.max(axis=-1, keepdims=True))
    found: Floats = powers / powers.sum(axis=-1, keepdims=True)
    return found


# --- BERTs -------------------------------------------------------------------------------------

Logits = Callable[[npt.NDArray[np.int64], npt.NDArray[np.int64]], Floats]
"""Ids and mask [batch, length] to logits [batch, classes]."""


def _bert(logits: Logits, folder: Path) -> Answer:
    """Return the system of a BERT, with the plain tokenizer of the `tokenizers` package."""
    from tokenizers import Tokenizer

    from bert_kd.data.batches import encode, sorted_batches

    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.enable_truncation(LONGEST)
    tokenizer.no_padding()

    def answer(texts: Sequence[str]) -> Floats:
        tokens = encode(tokenizer, texts)
        found: list[tuple[Any, Floats]] = []
        for rows in sorted_batches(tokens.lengths, TOKENS_PER_BATCH):
            ids, lengths = tokens.padded(rows)
            mask = (np.arange(ids.shape[1]) < lengths[:, None]).astype(np.int64)
            found.append((rows, logits(ids, mask)))
        answers = np.empty((len(texts), found[0][1].shape[1]), dtype=np.float32)
        for rows, values in found:
            answers[rows] = values
        return softmax(answers)

    return answer


def _torch_logits(folder: Path) -> Logits:
    import torch
    from transformers import AutoModelForSequenceClassification

    from bert_kd.teacher.model import quiet

    with quiet():
        model = AutoModelForSequenceClassification.from_pretrained(folder).eval()

    def logits(ids: npt.NDArray[np.int64], mask: npt.NDArray[np.int64]) -> Floats:
        with torch.inference_mode():
            inputs = {"input_ids": torch.from_numpy(ids), "attention_mask": torch.from_numpy(mask)}
            found: Floats = model(**inputs).logits.numpy()
        return found

    return logits


def _onnx_logits(path: Path, threads: int) -> Logits:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])

    def logits(ids: npt.NDArray[np.int64], mask: npt.NDArray[np.int64]) -> Floats:
        found: Floats = session.run(["logits"], {"input_ids": ids, "attention_mask": mask})[0]
        return found

    return logits


# --- others ------------------------------------------------------------------------------------


def _torch_student(folder: Path) -> Answer:
    from bert_kd.data.batches import encode
    from bert_kd.student.model import load_student
    from bert_kd.student.train import Examples, predict

    student = load_student(folder)

    def answer(texts: Sequence[str]) -> Floats:
        tokens = encode(student.tokenizer, texts)
        return softmax(predict(student.model, Examples(tokens, None, np.full(len(texts), -1))))

    return answer


def _fasttext(path: Path) -> Answer:
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import fasttext

    model = fasttext.load_model(str(path))
    return lambda texts: model.predict([text.replace("\n", " ") for text in texts], k=-1)


# --- one in a process of its own ---------------------------------------------------------------


def resident_bytes() -> int | None:
    """Return what this process holds in memory now; None where the system does not tell."""
    try:
        lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith("VmRSS"))


def serve_once(spec: Spec, texts: Sequence[str]) -> dict[str, float | None]:
    """Open a system, answer texts, and return seconds until it could (with imports), seconds to
    open it again, and the memory that the process then holds.
    """
    started = time.perf_counter()
    answer = open_system(spec, threads=1)
    ready = time.perf_counter() - started
    for text in texts:
        answer([text])
    answer(texts)
    memory = resident_bytes()
    started = time.perf_counter()
    open_system(spec, threads=1)
    again = time.perf_counter() - started
    return {"ready_seconds": ready, "open_seconds": again, "resident_bytes": memory}


if __name__ == "__main__":
    told = serve_once(Spec.from_json(sys.argv[1]), json.loads(sys.stdin.read()))
    sys.stdout.write(json.dumps(told))
