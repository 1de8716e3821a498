"""What all students of one configuration share, and the training of one of them.

Here: tokenizer, token ids, cached teacher answers and start vectors, made once for all seeds and
twins (`prepare_lesson`), and one student from there to its folder (`teach`). The loop itself is
`train.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from bert_kd.config import LogitsConfig, LossConfig, StudentConfig, TeacherSource
from bert_kd.data.prepare import Prepared
from bert_kd.errors import StudentError
from bert_kd.logits.cache import Answers, LogitCache
from bert_kd.logits.combine import read_teachers
from bert_kd.logits.gate import gate
from bert_kd.progress import say
from bert_kd.store import RunFolder
from bert_kd.student.embeddings import start_vectors
from bert_kd.student.examples import Encoded, encode_splits, texts_of
from bert_kd.student.model import BiLSTM, Shape, Student, count_parameters, save_student
from bert_kd.student.train import Examples, train
from bert_kd.student.vocabulary import build_tokenizer


@dataclass(frozen=True)
class Lesson:
    """All that the students of one configuration learn from."""

    config: StudentConfig
    labels: tuple[str, ...]
    pair: bool
    tokenizer: Tokenizer
    rows: Encoded  # train, then transfer
    answers: Answers  # to these rows
    validation: Encoded
    teacher: Path | None  # the teacher's folder, for start vectors; the model is never loaded


def prepare_lesson(
    config: StudentConfig,
    logits: LogitsConfig,
    run: RunFolder,
    prepared: Prepared,
    sources: Sequence[TeacherSource],
) -> Lesson:
    """Build the tokenizer, encode train, transfer and validation, and read the teachers' answers.

    Raises CacheError where answers are missing or the gate is not passed, StudentError where the
    configuration does not fit the teacher.
    """
    teacher = run.teacher if (run.teacher / "tokenizer.json").exists() else None
    _check(config, sources, teacher)
    learned = [run.split(name) for name in ("train", "transfer") if name in prepared.rows]
    vocabulary_from = teacher / "tokenizer.json" if teacher else None
    tokenizer = build_tokenizer(config.vocabulary, texts_of(learned), vocabulary_from)
    rows = encode_splits(tokenizer, learned)
    validation = encode_splits(tokenizer, [run.split("validation")])
    answers = read_teachers(
        sources,
        prepared.labels,
        rows.keys,
        logits.combine,
        features=config.loss.feature_weight > 0,
    )
    passed = gate(answers, prepared.labels, rows.labels, logits.minimum_gain)
    say(
        f"{config.name}: the teacher is right on {passed.accuracy:.1%} of {passed.labelled:,} gold "
        f"labels (the majority class: {passed.majority:.1%})"
    )
    say(
        f"{config.name}: {len(rows):,} rows, {tokenizer.get_vocab_size():,} vocabulary entries "
        f"({config.vocabulary.kind}), {rows.cut:,} texts cut at {config.vocabulary.max_length} "
        f"tokens, {validation.unknown_share:.2%} of validation's tokens unknown"
    )
    return Lesson(
        config, prepared.labels, prepared.pair, tokenizer, rows, answers, validation, teacher
    )


def _check(config: StudentConfig, sources: Sequence[TeacherSource], teacher: Path | None) -> None:
    """Refuse, before any work, what these teachers cannot give."""
    lacking = []
    if teacher is None and config.vocabulary.kind == "wordpiece":
        lacking.append('vocabulary.kind = "words" or "bpe"')
    if teacher is None and config.embedding.start == "teacher":
        lacking.append('embedding.start = "random" or "file"')
    if lacking:
        raise StudentError(
            f"{config.name}: there is no teacher folder to take a vocabulary and token vectors "
            f"from; set {' and '.join(lacking)}"
        )
    if not config.loss.feature_weight:
        return
    if len(sources) > 1:
        raise StudentError(
            f"{config.name}: feature_weight learns from a single teacher, and {len(sources)} are "
            "given: set feature_weight = 0, or one teacher"
        )
    if LogitCache.open(sources[0].folder).manifest.feature_size is None:
        raise StudentError(
            f"{config.name}: feature_weight needs the teacher's features, and {sources[0].folder} "
            "has none: set logits.features = true and run cache-logits again"
        )


def teach(
    lesson: Lesson, folder: Path, *, name: str, seed: int, twin: bool, fingerprint: str
) -> dict[str, Any]:
    """Train one student (or twin: gold labels only, no transfer rows) into `folder`; returns its
    metrics.
    """
    import torch

    config = lesson.config
    examples = _examples(lesson, twin)
    if twin:
        loss = LossConfig(
            hard_weight=1.0, soft_weight=0.0, label_smoothing=config.loss.label_smoothing
        )
        config = config.model_copy(update={"loss": loss})
    sizes = config.model
    shape = Shape(
        vocabulary=lesson.tokenizer.get_vocab_size(),
        embedding=config.embedding.size,
        hidden=sizes.hidden_size,
        layers=sizes.layers,
        pooling=sizes.pooling,
        dense=sizes.dense,
        classes=len(lesson.labels),
        pair=lesson.pair,
        dropout=sizes.dropout,
    )
    torch.manual_seed(seed)
    model = BiLSTM(shape)
    start = start_vectors(config.embedding, lesson.tokenizer, lesson.teacher, seed)
    if start is not None:
        model.embedding.weight.data.copy_(torch.from_numpy(start.vectors))
    total, without_embedding = count_parameters(model)
    found = f", {start.found:,} start vectors" if start is not None else ""
    say(
        f"{name}: {total:,} parameters ({without_embedding:,} without the embedding){found}, "
        f"{len(examples):,} rows"
    )
    validation = Examples(
        lesson.validation.tokens, lesson.validation.tokens_b, lesson.validation.labels
    )
    metrics = train(
        config, model, examples, validation, folder, seed=seed, name=name, fingerprint=fingerprint
    )
    facts = {"seed": seed, "twin": twin, "parameters": total}
    student = Student(model.cpu().eval(), lesson.tokenizer, lesson.labels, name, facts)
    save_student(folder, student)
    for left in (*folder.glob("checkpoint.*"), *folder.glob(".*.tmp")):
        left.unlink()
    return metrics


def _examples(lesson: Lesson, twin: bool) -> Examples:
    """Return the rows to learn from; a twin sees those with a gold label, and no teacher."""
    rows = lesson.rows
    if not twin:
        answers = lesson.answers
        return Examples(rows.tokens, rows.tokens_b, rows.labels, answers.logits, answers.features)
    labelled = np.flatnonzero(rows.labels >= 0)
    other = rows.tokens_b.take(labelled) if rows.tokens_b is not None else None
    return Examples(rows.tokens.take(labelled), other, rows.labels[labelled])
