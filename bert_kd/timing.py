"""The speed of teacher, students and twins, each as it would be used, in one interleaved run.

Here: which models are timed, and each as a system that answers raw text (the teacher in torch, a
student as its exported bundle, by the engine that would serve it). How systems are timed is
`evaluate.speed`.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np

from bert_kd.config import Config
from bert_kd.data.rows import Rows, iterate_rows
from bert_kd.errors import MissingExtra
from bert_kd.evaluate.findings import Model
from bert_kd.evaluate.speed import System, Texts, in_threads, measure_speed
from bert_kd.store import RunFolder

if TYPE_CHECKING:
    from bert_kd.student.model import Student


def with_speed(
    config: Config,
    run: RunFolder,
    models: Sequence[Model],
    students: dict[str, Student],
    rows: Rows,
    notes: list[str],
) -> list[Model]:
    """Return the models with their speed on `rows`: the teacher, the first seed of each student and
    twin. What could not be timed as it is served is said in `notes`.
    """
    settings = config.evaluate
    first = {(model.group, model.role): model for model in reversed(models)}
    timed = [model for model in models if first[model.group, model.role] is model]
    texts: Texts = (
        rows.texts if rows.texts_b is None else list(zip(rows.texts, rows.texts_b, strict=True))
    )
    with ExitStack() as stack:
        stack.enter_context(in_threads(settings.threads))
        systems: dict[str, System] = {}
        engines: dict[str, str] = {}
        # What exports are judged by, so that those timed are those that stage 06 will write.
        check = next(iterate_rows(run.split("validation"), config.export.check_rows))
        for model in timed:
            if model.role != "teacher":
                aside = Path(stack.enter_context(TemporaryDirectory()))
                systems[model.name], engines[model.name] = _student_system(
                    config, run.student(model.name), aside, check, students[model.name], notes
                )
            elif not (config.logits.teachers or config.teacher.linear):
                folders = run.teachers(max(len(model.ensemble), 1))
                systems[model.name] = _teacher_system(config, folders)
                engines[model.name] = "torch fp32"
        found = measure_speed(
            systems,
            texts,
            single_texts=settings.speed_texts,
            bulk_texts=settings.speed_bulk_texts,
            rounds=settings.speed_rounds,
        )
    return [
        replace(model, speed=found.get(model.name), engine=engines.get(model.name))
        for model in models
    ]


def _teacher_system(config: Config, folders: Sequence[Path]) -> System:
    """Return the teacher, or all of an ensemble one after the other, as one system."""
    import torch

    from bert_kd.teacher.answer import Answering
    from bert_kd.teacher.model import open_teacher

    members = []
    for folder in folders:
        teacher = open_teacher(folder)
        torch.nn.Module.to(teacher.model, "cpu")  # where the students are, too
        members.append(Answering(teacher, "fp32", config.logits.tokens_per_batch))
    return lambda texts: np.mean([answer(*_sides(texts)).logits for answer in members], axis=0)


def _student_system(
    config: Config, folder: Path, aside: Path, check: Rows, student: Student, notes: list[str]
) -> tuple[System, str]:
    """Return the student as it will be served, and by what; in torch where the runtime is not
    installed.
    """
    try:
        from bert_kd.runtime.export import export_bundle
        from bert_kd.runtime.predictor import load

        export_bundle(
            folder,
            aside / "bundle",
            check.texts,
            check.texts_b,
            config.export,
            check_labels=check.labels,
        )
        predictor = load(aside / "bundle", threads=config.evaluate.threads)
    except MissingExtra as missing:
        note = f"Students were timed in torch, not in their runtime: {missing}"
        if note not in notes:
            notes.append(note)
        return _torch_system(student), "torch fp32"
    name = f"{predictor.engine.name} {predictor.engine.precision}"
    return lambda texts: predictor.probabilities(*_sides(texts)), name


def _torch_system(student: Student) -> System:
    from bert_kd.data.batches import encode
    from bert_kd.student.train import Examples, predict

    def answer(texts: Texts) -> Any:
        first, second = _sides(texts)
        other = encode(student.tokenizer, second) if second is not None else None
        labels = np.full(len(first), -1)
        return predict(student.model, Examples(encode(student.tokenizer, first), other, labels))

    return answer


def _sides(texts: Texts) -> tuple[list[str], list[str] | None]:
    """Return first texts and second texts (None for single texts)."""
    first = [text if isinstance(text, str) else text[0] for text in texts]
    second = [text[1] for text in texts if not isinstance(text, str)]
    return first, second or None
