"""A report about made-up models, for tests of what shows it."""

from __future__ import annotations

import numpy as np

from bert_kd.evaluate.comparisons import compare
from bert_kd.evaluate.findings import DataFacts, Machine, Model, Report, WorstErrors
from bert_kd.evaluate.metrics import measure, worst_errors
from bert_kd.evaluate.speed import Speed

LABELS = ("account", "billing", "delivery", "technical")
SAMPLES = 100


def make_report(
    *,
    labels: tuple[str, ...] = LABELS,
    rows: int = 60,
    texts: tuple[str, ...] = ("where is my parcel?",),
    texts_b: tuple[str, ...] | None = None,
    teacher: bool = True,
    black_box: bool = False,
    twin: bool = True,
    groups: tuple[str, ...] = ("base",),
    seeds: tuple[int, ...] = (17,),
    speed: bool = True,
    epochs: int = 3,
    splits: tuple[str, ...] = ("validation", "test"),
) -> Report:
    """Return a report whose teacher is right in nine of ten texts and whose students are a bit
    worse.
    """
    generator = np.random.default_rng(5)
    gold = {split: generator.integers(len(labels), size=rows) for split in splits}
    gold = {split: np.sort(values) for split, values in gold.items()}
    taught = {split: answers(generator, gold[split], len(labels), 0.9) for split in splits}
    models, comparisons, predicted = [], [], {}

    def add(name, group, role, seed, logits, size, parameters, found_speed, history):
        metrics = {
            split: measure(
                logits[split],
                gold[split],
                labels,
                teacher_logits=taught[split] if teacher else None,
                bootstrap_samples=SAMPLES,
                seed=1,
            )
            for split in splits
        }
        known = role != "teacher" or not black_box
        models.append(
            Model(
                name=name,
                group=group,
                role=role,
                seed=seed,
                metrics=metrics,
                parameters=parameters if known else None,
                parameters_without_embedding=parameters // 2 if known else None,
                bytes=size if known else None,
                speed=found_speed if known and speed else None,
                description="BERT, 6 layers of 384"
                if role == "teacher"
                else "BiLSTM 300 → 2 × 256",
                history=history if known else (),
            )
        )

    if teacher:
        add("teacher", "teacher", "teacher", 17, taught, 90_900_000, 22_713_216,
            _speed(11_200, 1.0, 95.0), _history(generator, min(epochs, 4), 0.9))  # fmt: skip
    for place, group in enumerate(groups):
        for role, accuracy in (("student", 0.88 - 0.03 * place), ("twin", 0.8 - 0.03 * place)):
            if role == "twin" and not twin:
                continue
            for seed in seeds:
                logits = {
                    split: answers(generator, gold[split], len(labels), accuracy)
                    for split in splits
                }
                predicted.setdefault((group, role), []).append(logits[splits[-1]].argmax(axis=1))
                name = f"{group}-{role}-{seed}" if role == "twin" else f"{group}-{seed}"
                timed = _speed(290 / (3.0**place), 38.4 * 3.0**place, 5210.0 * 3**place)
                add(name, group, role, seed, logits, 12_340_000 // 3**place, 3_104_520 // 3**place,
                    timed, _history(generator, epochs, accuracy))  # fmt: skip
        comparisons.append(
            compare(
                group,
                splits[-1],
                gold[splits[-1]],
                student=predicted[group, "student"],
                twin=predicted.get((group, "twin")),
                teacher=taught[splits[-1]].argmax(axis=1) if teacher else None,
                samples=SAMPLES,
                seed=1,
            )
        )
    shown = [texts[row % len(texts)] for row in range(rows)]
    return Report(
        run="demo",
        split=splits[-1],
        data=DataFacts(
            source="bundled:helpdesk",
            labels=labels,
            rows={"train": 10 * rows} | {split: rows for split in splits},
            counts={
                split: tuple(int((gold[split] == place).sum()) for place in range(len(labels)))
                for split in splits
            },
            pair=texts_b is not None,
        ),
        models=tuple(models),
        machine=Machine("AMD EPYC", 2, 23.5, "Linux-6.1-x86_64-with-glibc2.36", "3.11.7", 1),
        comparisons=tuple(comparisons),
        worst=WorstErrors(
            model=f"{groups[0]}-{seeds[0]}" if groups else "teacher",
            split=splits[-1],
            errors=worst_errors(
                shown,
                None if texts_b is None else [texts_b[row % len(texts_b)] for row in range(rows)],
                answers(generator, gold[splits[-1]], len(labels), 0.8),
                gold[splits[-1]],
                labels,
                teacher_logits=taught[splits[-1]] if teacher else None,
                count=6,
            ),
        ),
    )


def answers(generator, gold, classes, accuracy):
    """Return logits [rows, classes] whose largest is in the gold column for this share of rows."""
    rows = len(gold)
    wrong = (
        (gold + generator.integers(1, min(classes, 4), size=rows)) % classes
        if classes > 2
        else 1 - gold
    )
    chosen = np.where(np.arange(rows) % 100 < 100 * accuracy, gold, wrong)
    chosen = np.where(generator.random(rows) < accuracy, gold, wrong)
    logits = generator.normal(size=(rows, classes))
    certain = np.where(chosen == gold, 3.5, 1.6)
    logits[np.arange(rows), chosen] = logits.max(axis=1) + generator.exponential(certain)
    return logits


def _speed(p50: float, faster: float, rate: float) -> Speed:
    return Speed(
        p50=p50,
        p95=1.4 * p50,
        p99=1.9 * p50,
        texts_per_second=rate,
        single_texts=192,
        bulk_texts=512,
        rounds=3,
        reference="teacher",
        times_faster=faster,
        times_throughput=rate / 95,
    )


def _history(generator, epochs, accuracy):
    return tuple(
        {
            "epoch": epoch + 1,
            "loss": float(1.8 * np.exp(-epoch / 4) + 0.1 + 0.02 * generator.random()),
            "validation_accuracy": float(
                accuracy - 0.5 * np.exp(-(epoch + 1) / 3) + 0.01 * generator.normal()
            ),
            "learning_rate": 1e-3,
        }
        for epoch in range(epochs)
    )
