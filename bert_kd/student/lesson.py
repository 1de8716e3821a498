"""What all students of one configuration share, and the training of one of them.

Here: tokenizer, token ids, cached teacher answers and start vectors, made once for all seeds and
twins (`prepare_lesson`), and one student from there to its folder (`teach`). The loop itself is
`train.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from bert_kd.config import LogitsConfig, LossConfig, StudentConfig, TeacherSource, is_linear
from bert_kd.data.prepare import Prepared
from bert_kd.errors import StudentError
from bert_kd.logits.cache import Answers
from bert_kd.logits.calibration import Calibration
from bert_kd.logits.gate import gate
from bert_kd.logits.panel import Panel, open_panel
from bert_kd.progress import say
from bert_kd.store import RunFolder
from bert_kd.student.choice import choose_rows
from bert_kd.student.embeddings import Start, has_trained_vectors, start_vectors, untaught
from bert_kd.student.examples import Encoded, encode_splits, texts_of
from bert_kd.student.guards import check_loss
from bert_kd.student.model import (
    BiLSTM,
    Shape,
    Student,
    count_parameters,
    load_student,
    save_student,
)
from bert_kd.student.start import start_from
from bert_kd.student.train import Examples, train
from bert_kd.student.vocabulary import build_tokenizer, model_type

FULL_WEIGHT = 1.0
"""Of gold labels beside a linear model. On 90,000 Chinese headlines a student that gave them 0.1
had 87.4% right on validation, one that gave them this 88.4%, as many as without the model.
"""
LEARNED = ("train", "transfer", "views")
"""The splits that students learn from."""


@dataclass(frozen=True)
class Instead:
    """Who is followed instead of the teachers: the linear model of n-grams."""

    doubt: str
    """Why the teachers are not followed."""
    cache: Path
    """Its answers to all rows."""


@dataclass(frozen=True)
class Lesson:
    """All that the students of one configuration learn from."""

    config: StudentConfig
    labels: tuple[str, ...]
    pair: bool
    tokenizer: Tokenizer
    rows: Encoded  # train, then transfer and views
    answers: Answers | None  # to these rows; None: there is no teacher, gold labels are all
    calibrations: tuple[Calibration, ...]  # of the teachers behind them; none: as they answered
    validation: Encoded
    teacher: Path | None  # the teacher's folder, for start vectors; the model is never loaded
    base: Path | None  # the token vectors of before its training, for twins; None: as they are
    cache: Path | None  # the first teacher's answers, with its word vectors beside them
    doubt: str | None = None  # why the teachers are not followed


def prepare_lesson(
    config: StudentConfig,
    logits: LogitsConfig,
    run: RunFolder,
    prepared: Prepared,
    sources: Sequence[TeacherSource],
    instead: Instead | None = None,
) -> Lesson:
    """Build the tokenizer, encode what is learned and validation, and read the teachers' answers.

    Without `sources` the rows are those of train alone: nobody has labelled the others. With
    `instead`, its answers are learned, and the teachers still give vocabulary and start vectors.

    Raises CacheError where answers are missing or the gate is not passed, StudentError where the
    configuration does not fit the teacher.
    """
    linear = any(is_linear(source.folder.name) for source in sources)
    has_folder = not linear and (run.teacher / "tokenizer.json").exists()
    teacher = run.teacher if has_folder else None
    base = run.base_of(run.teacher)
    _check(config, teacher)
    folders = [source.folder for source in sources]
    check_loss(config, len(prepared.labels), logits, folders, len(sources))
    _say_of_two_classes(config, len(prepared.labels))
    followed = bool(sources)
    if not followed and "transfer" in prepared.rows:
        say(f"{config.name}: transfer texts are left aside, as no teacher labels them")
    splits = LEARNED if followed else LEARNED[:1]
    learned = [run.split(name) for name in splits if name in prepared.rows]
    vocabulary_from = teacher / "tokenizer.json" if teacher else None
    tokenizer = build_tokenizer(
        config.vocabulary, texts_of(learned), vocabulary_from, _mask_token(prepared)
    )
    rows = encode_splits(tokenizer, learned)
    validation = encode_splits(tokenizer, [run.split("validation")])
    answers: Answers | None = None
    calibrations: tuple[Calibration, ...] = ()
    if followed and config.loss.distils:
        if instead is not None:
            config, logits = _follow_linear(config), _judged_already(logits)
        asked = sources if instead is None else (TeacherSource(folder=instead.cache),)
        panel = open_panel(logits, asked, prepared.labels, run.split("validation"))
        calibrations = panel.calibrations
        for calibration in calibrations:
            say(f"{config.name}: {calibration.describe()}")
        who = "linear model" if linear or instead is not None else "teacher"
        rows, answers = _taught(config, panel, rows, who)
    say(
        f"{config.name}: {len(rows):,} rows, {tokenizer.get_vocab_size():,} vocabulary entries "
        f"({model_type(tokenizer)}), {rows.cut:,} texts cut at {config.vocabulary.max_length} "
        f"tokens, {validation.unknown_share:.2%} of validation's tokens unknown"
    )
    return Lesson(
        config,
        prepared.labels,
        prepared.pair,
        tokenizer,
        rows,
        answers,
        calibrations,
        validation,
        teacher,
        base if base.exists() else None,
        sources[0].folder if sources else None,
        instead.doubt if instead is not None else None,
    )


def _follow_linear(config: StudentConfig) -> StudentConfig:
    """Return the configuration with which the linear model is followed. It has no features; and
    gold labels, which know more than it does of the rows that have one, count fully.
    """
    hard = max(config.loss.hard_weight, FULL_WEIGHT)
    loss = config.loss.model_copy(update={"feature_weight": 0.0, "hard_weight": hard})
    if config.loss.feature_weight:
        say(
            f"{config.name}: a linear model has no features: loss.feature_weight counts for nothing"
        )
    if not loss.soft_weight:  # by the usual term: the one that is named was never asked for
        loss = LossConfig(
            hard_weight=loss.hard_weight,
            soft_weight=config.loss.feature_weight,
            label_smoothing=loss.label_smoothing,
        )
    return config.model_copy(update={"loss": loss})


def _judged_already(logits: LogitsConfig) -> LogitsConfig:
    """Return how the linear model's answers are read: it is calibrated, and better than a teacher
    that may have passed the gate.
    """
    return logits.model_copy(update={"calibrate": False, "minimum_gain": -1.0})


def _taught(
    config: StudentConfig, panel: Panel, rows: Encoded, who: str
) -> tuple[Encoded, Answers]:
    """Return the rows that are learned, with the answers to them, which have passed the gate; `who`
    gave them.
    """
    answers = panel.answers(rows.keys, features=config.loss.feature_weight > 0)
    passed = gate(answers, panel.labels, rows.labels, panel.config.minimum_gain)
    chosen = choose_rows(config.rows, rows.keys, rows.labels, answers.logits)
    if chosen is not None:
        say(
            f"{config.name}: {config.rows.maximum:,} of {int((rows.labels < 0).sum()):,} rows "
            f"without a gold label are learned from ({config.rows.choose})"
        )
        features = None if answers.features is None else answers.features[chosen]
        rows, answers = rows.take(chosen), Answers(answers.logits[chosen], features)
    say(
        f"{config.name}: the {who} is right on {passed.accuracy:.1%} of {passed.labelled:,} gold "
        f"labels (the majority class: {passed.majority:.1%})"
    )
    return rows, answers


def _mask_token(prepared: Prepared) -> str | None:
    """Return how views write a masked word, where there are such views."""
    token = prepared.report.get("views", {}).get("mask_token")
    return None if token is None else str(token)


def _check(config: StudentConfig, teacher: Path | None) -> None:
    """Refuse, before any work, what these teachers cannot give."""
    lacking = []
    if teacher is None and config.vocabulary.kind == "wordpiece":
        lacking.append('vocabulary.kind = "words" or "bpe"')
    if teacher is None and config.embedding.start in ("teacher", "words"):
        lacking.append('embedding.start = "random" or "file"')
    if lacking:
        raise StudentError(
            f"{config.name}: there is no teacher folder to take a vocabulary and token vectors "
            f"from; set {' and '.join(lacking)}"
        )


def _say_of_two_classes(config: StudentConfig, classes: int) -> None:
    """Say what two classes leave of `dkd`."""
    if classes == 2 and config.loss.soft_weight and config.loss.soft == "dkd":
        say(
            f"{config.name}: with two classes dkd is kl times dkd_target_weight; there are no "
            "other classes for dkd_other_weight"
        )


def teach(
    lesson: Lesson, folder: Path, *, name: str, seed: int, twin: bool, fingerprint: str
) -> dict[str, Any]:
    """Train one student (or twin: gold labels only, no transfer rows) into `folder`; returns its
    metrics. The checkpoint stays, so that a kill before the folder is stamped costs no second
    training.
    """
    import torch

    config = lesson.config
    examples = _examples(lesson, twin)
    gold = examples.logits is None
    start = _start(lesson, name, seed, twin)
    resolved = {
        "epochs": config.training.epochs_over(len(examples), gold=gold, twin=twin),
        "embedding_rate": config.training.embedding_rate_from(
            given=config.start_from is not None
            or (start is not None and 2 * start.found > len(start.vectors))
        ),
    }
    config = config.model_copy(update={"training": config.training.model_copy(update=resolved)})
    if gold and config.loss.distils:
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
        match=lesson.pair and sizes.match,
        dropout=sizes.dropout,
        word_dropout=sizes.word_dropout,
    )
    torch.manual_seed(seed)
    model = BiLSTM(shape)
    if start is not None:
        model.embedding.weight.data.copy_(torch.from_numpy(start.vectors))
    if config.start_from is not None:
        source = load_student(config.start_from)
        shared = start_from(model, lesson.tokenizer, source)
        say(f"{name}: starts from {config.start_from}, with {shared:,} of its word vectors")
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
    facts: dict[str, Any] = {"seed": seed, "twin": twin, "parameters": total}
    facts["distilled"] = config.loss.distils
    if lesson.doubt is not None and config.loss.distils:
        facts["doubt"] = lesson.doubt
    if lesson.calibrations and not twin:
        facts["calibrations"] = [asdict(calibration) for calibration in lesson.calibrations]
    student = Student(model.cpu().eval(), lesson.tokenizer, lesson.labels, name, facts)
    save_student(folder, student)
    return metrics


def _start(lesson: Lesson, name: str, seed: int, twin: bool) -> Start | None:
    """Return start vectors; those of a twin have nothing of the teacher's training."""
    embedding, base = lesson.config.embedding, None
    if twin:
        embedding, base = untaught(embedding), lesson.base
        taken = lesson.teacher if embedding.start == "teacher" and base is None else None
        if taken is not None and has_trained_vectors(taken):
            say(
                f"{name}: its token vectors were trained on a task, as {taken} has no others: for "
                'a twin without any of it set embedding.start = "random", or make the teacher '
                "again by fine-tuning with this version"
            )
    return start_vectors(embedding, lesson.tokenizer, lesson.teacher, lesson.cache, seed, base)


def _examples(lesson: Lesson, twin: bool) -> Examples:
    """Return the rows to learn from; a twin sees those with a gold label, and no teacher. So does
    a student that has none or learns from gold labels alone.
    """
    rows, answers = lesson.rows, lesson.answers
    if answers is not None and lesson.config.loss.distils and not twin:
        return Examples(rows.tokens, rows.tokens_b, rows.labels, answers.logits, answers.features)
    labelled = np.flatnonzero(rows.labels >= 0)
    other = rows.tokens_b.take(labelled) if rows.tokens_b is not None else None
    return Examples(rows.tokens.take(labelled), other, rows.labels[labelled])
