"""A trained student becomes a bundle: its models for both engines, weights, tokenizer, facts and
model card.

The one module of this package that loads torch: it compares the answers of each exported model with
torch's, takes the fastest precision whose answers are good enough (`agreement.py` says what that
is), and refuses to write a bundle whose answers are not.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer

from bert_kd.config import ExportConfig
from bert_kd.data.batches import encode
from bert_kd.errors import BundleError
from bert_kd.progress import say
from bert_kd.runtime.agreement import Labels, measure, shortfall
from bert_kd.runtime.bundle import (
    CARD,
    FACTS,
    MODEL,
    MODELS,
    NATIVE,
    TOKENIZER,
    WEIGHTS,
    Bundle,
    Runtime,
    read_bundle,
)
from bert_kd.runtime.card import model_card
from bert_kd.runtime.digests import checksum, sha256
from bert_kd.runtime.engine import EngineName, Floats, Precision
from bert_kd.runtime.native import engine as native
from bert_kd.runtime.native.fold import fold
from bert_kd.runtime.onnx_engine import OnnxEngine
from bert_kd.runtime.onnx_graph import build_model, quantise
from bert_kd.store import to_json, writing_folder
from bert_kd.student.model import Student, count_parameters, load_student

CHECK_BATCH = 32
"""Rows of a batch that torch answers, taken as they come: short and long texts padded together."""
FASTEST_FIRST: tuple[Precision, ...] = ("int8", "bf16", "fp32")


@dataclass(frozen=True)
class Check:
    """The texts that an exported model is judged by, and what torch answers to them."""

    texts: list[str]
    texts_b: list[str] | None
    gold: Labels | None  # [texts], -1: none
    logits: Floats  # [texts, classes]


def export_bundle(
    student_folder: Path,
    bundle_folder: Path,
    check_texts: Sequence[str],
    check_texts_b: Sequence[str] | None,
    config: ExportConfig,
    metrics: Mapping[str, Any] | None = None,
    training: Mapping[str, Any] | None = None,
    name: str | None = None,
    check_labels: Labels | None = None,
) -> Bundle:
    """Write the bundle of a trained student and return its facts.

    The first `config.check_rows` of `check_texts` (and `check_texts_b`) are answered by torch and
    by the exported models; with `check_labels`, gold labels as class numbers (−1: none), their
    accuracies are compared, too. `metrics` (name → value, or split → name → value) and `training`
    (facts of the training data and the teacher) go into `bundle.json` and the model card as they
    are; `name` is what the bundle is called, None: as its student. An older bundle in
    `bundle_folder` is replaced as a whole.

    Raises BundleError where the answers differ more than the configuration allows; the older bundle
    stays.
    """
    student = load_student(student_folder)
    texts = list(check_texts[: config.check_rows])
    texts_b = list(check_texts_b[: config.check_rows]) if check_texts_b is not None else None
    gold = None if check_labels is None else np.asarray(check_labels[: config.check_rows])
    if not texts:
        raise BundleError("there are no texts to compare the exported model with torch: give some")
    if student.shape.pair != (texts_b is not None):
        raise BundleError(
            f"the student {student.name!r} reads {_kind(student.shape.pair)}, and "
            f"{_kind(texts_b is not None)} were given to check it"
        )
    _check_vocabulary(student)
    if (
        bundle_folder.exists()
        and not (bundle_folder / FACTS).exists()
        and any(bundle_folder.iterdir())
    ):
        raise BundleError(f"{bundle_folder} holds something that is no bundle: give another folder")

    check = Check(texts, texts_b, gold, answers_of_torch(student, texts, texts_b))
    with writing_folder(bundle_folder) as aside:
        shutil.copyfile(student_folder / WEIGHTS, aside / WEIGHTS)
        shutil.copyfile(student_folder / TOKENIZER, aside / TOKENIZER)
        onnx = _write_onnx(student, aside, check, config)
        fast = _write_native(student, aside, check, config)
        runtimes: dict[EngineName, Runtime] = {"native": fast} if fast else {}
        runtimes["onnx"] = onnx
        files = [*(MODELS[engine] for engine in runtimes), WEIGHTS, TOKENIZER]
        parameters, without_embeddings = count_parameters(student.model)
        bundle = Bundle(
            folder=bundle_folder,
            name=name or student.name,
            labels=student.labels,
            pair=student.shape.pair,
            shape=asdict(student.shape),
            parameters=parameters,
            parameters_without_embeddings=without_embeddings,
            files={name: sha256(aside / name) for name in files},
            checksums={name: checksum(aside / name) for name in files},
            bytes=sum((aside / name).stat().st_size for name in files),
            max_tokens=_max_length(student.tokenizer),
            runtimes=runtimes,
            metrics=dict(metrics or {}),
            training=dict(training or {}),
        )
        distilled = bool(student.facts.get("distilled", True))
        (aside / CARD).write_text(model_card(bundle, distilled), encoding="utf-8")
        (aside / FACTS).write_text(to_json(bundle.to_json()), encoding="utf-8")
    return read_bundle(bundle_folder)


def answers_of_torch(
    student: Student, texts: Sequence[str], texts_b: Sequence[str] | None
) -> Floats:
    """Return torch's logits [texts, classes], in batches that pad short texts."""
    sides = [encode(student.tokenizer, side) for side in (texts, texts_b) if side is not None]
    answers = np.empty((len(texts), len(student.labels)), dtype=np.float32)
    with torch.inference_mode():
        for start in range(0, len(texts), CHECK_BATCH):
            rows = np.arange(start, min(start + CHECK_BATCH, len(texts)))
            arrays = [torch.from_numpy(array) for side in sides for array in side.padded(rows)]
            answers[rows] = student.model(*arrays).logits.numpy()
    return answers


def _write_onnx(student: Student, folder: Path, check: Check, config: ExportConfig) -> Runtime:
    """Write `model.onnx` and return its facts. Raises BundleError where its answers differ."""
    path = folder / MODEL
    model = build_model(
        _weights(student), student.shape.pooling, student.shape.pair, student.labels
    )
    if config.onnx == "int8":
        model = quantise(model)
    path.write_bytes(model.SerializeToString())
    engine = OnnxEngine(path, student.tokenizer, student.shape.pair, student.labels, config.onnx)
    agreement = measure(engine.logits(check.texts, check.texts_b), check.logits, check.gold)
    difference = agreement.largest_difference
    # Written so that NaN is refused too.
    if config.onnx == "fp32" and not difference <= config.tolerance:
        raise BundleError(
            f"the exported model of {student.name!r} differs from torch by {difference:.3g} in a "
            f"logit, more than export.tolerance = {config.tolerance:g}: raise that, if such a "
            "difference is acceptable"
        )
    if config.onnx == "int8" and (why := shortfall(agreement, "int8")):
        raise BundleError(
            f"the exported model of {student.name!r} is not good enough in int8 ({why}): set "
            'export.onnx = "fp32"'
        )
    return Runtime(config.onnx, path.stat().st_size, agreement)


def _write_native(
    student: Student, folder: Path, check: Check, config: ExportConfig
) -> Runtime | None:
    """Write `native.safetensors` in the first precision that is good enough; return its facts.

    None, and said, where there is none or where the runtime is not installed, unless the
    configuration names a precision: then BundleError.
    """
    asked = None if config.precision == "auto" else config.precision
    if why := native.missing():
        if asked:
            raise BundleError(f'export.precision is "{asked}", and {why}; or set it to "auto"')
        say(f"export: the bundle of {student.name} has ONNX alone, as {why}")
        return None
    path = folder / NATIVE
    for precision in (asked,) if asked else FASTEST_FIRST:
        try:
            folded = fold(
                _weights(student),
                asdict(student.shape),
                student.labels,
                path,
                precision,
                config.table,
                folder / TOKENIZER,
            )
            engine = native.NativeEngine(
                path, folder / TOKENIZER, asdict(student.shape), student.labels
            )
            _check_tokenizer(engine, check)
            agreement = measure(engine.logits(check.texts, check.texts_b), check.logits, check.gold)
            refused = shortfall(agreement, precision)
        except BundleError as error:
            refused = str(error)
        if refused is None:
            say(
                f"export: {student.name} is native in {precision}, {folded.bytes / 1e6:.1f} MB, of "
                f"which {folded.table_bytes / 1e6:.1f} MB are the folded embedding, read as needed"
            )
            return Runtime(precision, folded.bytes, agreement, config.table, folded.table_bytes)
        path.unlink(missing_ok=True)
        if asked:
            raise BundleError(
                f"{student.name!r} is not good enough in {asked}, which export.precision names "
                f'({refused}): set it to another one, or to "auto"'
            )
        say(f"export: {student.name} is not taken in {precision}: {refused}")
    say(f"export: the bundle of {student.name} has ONNX alone")
    return None


def _check_tokenizer(engine: native.NativeEngine, check: Check) -> None:
    """Raise BundleError where the compiled tokenizer gives a text other ids than `tokenizers`."""
    for side in (check.texts, check.texts_b or []):
        if rows := engine.misread(side):
            raise BundleError(
                f"the compiled tokenizer gives other tokens than `tokenizers` to {side[rows[0]]!r}"
            )


def _weights(student: Student) -> dict[str, Floats]:
    return {key: value.numpy() for key, value in student.model.state_dict().items()}


def _check_vocabulary(student: Student) -> None:
    """Raise BundleError where the tokenizer can give an id that the embedding has no row for."""
    largest = max(student.tokenizer.get_vocab().values())
    if largest >= student.shape.vocabulary:
        raise BundleError(
            f"the tokenizer of {student.name!r} gives ids up to {largest}, and the embedding has "
            f"{student.shape.vocabulary} rows: train the student again with --force train-students"
        )


def _kind(pair: bool) -> str:
    return "pairs" if pair else "single texts"


def _max_length(tokenizer: Tokenizer) -> int | None:
    """Return the length in tokens at which texts are cut, or None where they are not."""
    return int(tokenizer.truncation["max_length"]) if tokenizer.truncation else None
