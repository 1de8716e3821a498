"""A trained student becomes a bundle: the ONNX model, weights, tokenizer, facts and model card.

The one module of this package that loads torch: it compares the exported model's answers with
torch's and refuses to write a bundle whose answers differ.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer

from bert_kd.config import ExportConfig
from bert_kd.data.batches import encode
from bert_kd.errors import BundleError
from bert_kd.runtime.bundle import (
    CARD,
    FACTS,
    FILES,
    MODEL,
    TOKENIZER,
    WEIGHTS,
    Agreement,
    Bundle,
    read_bundle,
    sha256,
)
from bert_kd.runtime.card import model_card
from bert_kd.runtime.onnx_graph import build_model
from bert_kd.runtime.predictor import Engine, OnnxEngine
from bert_kd.store import to_json, writing_folder
from bert_kd.student.model import Student, count_parameters, load_student

CHECK_BATCH = 32
"""Rows of a batch of the comparison, taken as they come: short and long texts padded together."""


def export_bundle(
    student_folder: Path,
    bundle_folder: Path,
    check_texts: Sequence[str],
    check_texts_b: Sequence[str] | None,
    config: ExportConfig,
    metrics: Mapping[str, Any] | None = None,
    training: Mapping[str, Any] | None = None,
    name: str | None = None,
) -> Bundle:
    """Write the bundle of a trained student and return its facts.

    The first `config.check_rows` of `check_texts` (and `check_texts_b`) are answered by torch and
    by the exported model. `metrics` (name → value, or split → name → value) and `training` (facts
    of the training data and the teacher) go into `bundle.json` and the model card as they are;
    `name` is what the bundle is called, None: as its student. An older bundle in `bundle_folder` is
    replaced as a whole.

    Raises BundleError where the answers differ by more than `config.tolerance` in a logit; the
    older bundle stays.
    """
    student = load_student(student_folder)
    texts = list(check_texts[: config.check_rows])
    texts_b = list(check_texts_b[: config.check_rows]) if check_texts_b is not None else None
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

    weights = {key: value.numpy() for key, value in student.model.state_dict().items()}
    model = build_model(weights, student.shape.pooling, student.shape.pair, student.labels)
    with writing_folder(bundle_folder) as aside:
        (aside / MODEL).write_bytes(model.SerializeToString())
        shutil.copyfile(student_folder / WEIGHTS, aside / WEIGHTS)
        shutil.copyfile(student_folder / TOKENIZER, aside / TOKENIZER)
        engine = OnnxEngine(aside / MODEL, student.shape.pair, student.labels, threads=None)
        agreement = compare(student, engine, texts, texts_b)
        # Written so that NaN is refused too.
        if not agreement.largest_difference <= config.tolerance:
            raise BundleError(
                f"the exported model of {student.name!r} differs from torch by "
                f"{agreement.largest_difference:.3g} in a logit, more than export.tolerance = "
                f"{config.tolerance:g}: raise that, if such a difference is acceptable"
            )
        parameters, without_embeddings = count_parameters(student.model)
        bundle = Bundle(
            folder=bundle_folder,
            name=name or student.name,
            labels=student.labels,
            pair=student.shape.pair,
            shape=asdict(student.shape),
            parameters=parameters,
            parameters_without_embeddings=without_embeddings,
            files={name: sha256(aside / name) for name in FILES},
            bytes=sum((aside / name).stat().st_size for name in FILES),
            agreement=agreement,
            metrics=dict(metrics or {}),
            training=dict(training or {}),
        )
        distilled = bool(student.facts.get("distilled", True))
        card = model_card(bundle, _max_length(student.tokenizer), distilled)
        (aside / CARD).write_text(card, encoding="utf-8")
        (aside / FACTS).write_text(to_json(bundle.to_json()), encoding="utf-8")
    return read_bundle(bundle_folder)


def compare(
    student: Student, engine: Engine, texts: Sequence[str], texts_b: Sequence[str] | None
) -> Agreement:
    """Return how far the engine's answers lie from torch's, in batches that pad short texts."""
    sides = [encode(student.tokenizer, side) for side in (texts, texts_b) if side is not None]
    largest, same = 0.0, 0
    with torch.inference_mode():
        for start in range(0, len(texts), CHECK_BATCH):
            rows = np.arange(start, min(start + CHECK_BATCH, len(texts)))
            arrays = [array for side in sides for array in side.padded(rows)]
            ours = engine.logits(*arrays)
            theirs = student.model(*map(torch.from_numpy, arrays)).logits.numpy()
            # np.maximum, unlike max, keeps NaN.
            largest = float(np.maximum(largest, np.abs(ours - theirs).max()))
            same += int((ours.argmax(-1) == theirs.argmax(-1)).sum())
    return Agreement(len(texts), largest, same / len(texts))


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
