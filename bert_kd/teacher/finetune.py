"""Fine-tuning the teacher (stage 02) with `transformers.Trainer`; an already fine-tuned one is
taken in as it is.

Reads `data/train.parquet` and `data/validation.parquet`, writes the teacher folder. Texts are
tokenised once into one array; batches hold rows of similar length and are padded to their own
longest. After `kill -9` the same call goes on from the last whole checkpoint and ends with the same
weights.
"""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from bert_kd.config import TeacherConfig
from bert_kd.data.prepare import Prepared
from bert_kd.data.rows import iterate_rows
from bert_kd.errors import TeacherError
from bert_kd.hardware import computes_bf16
from bert_kd.progress import clock, progress, say
from bert_kd.scores import GREATER_IS_BETTER
from bert_kd.store import RunFolder, fingerprint
from bert_kd.teacher.base import WEIGHTS, fingerprint_base
from bert_kd.teacher.card import TRIED, Card
from bert_kd.teacher.checkpoints import Checkpoint, last_whole, prepare_folder
from bert_kd.teacher.encoding import Encoded, Padding, encode
from bert_kd.teacher.model import (
    Teacher,
    load_base,
    load_finished,
    load_weights,
    save_teacher,
    trained_token_vectors,
)
from bert_kd.teacher.parts import freeze
from bert_kd.teacher.prefix import Prefix, cache_states
from bert_kd.teacher.trainer import (
    Examples,
    Plan,
    learning_rate,
    make_trainer,
    out_of_patience,
    train,
)

MOST_UNKNOWN = 0.05
"""With a larger share of unknown wordpieces the teacher is told to be of another language."""
UNREADABLE = 1 / 3
"""With a larger share there is little that it could learn: it is tried first (`trial.py`)."""


def finetune(
    config: TeacherConfig,
    run: RunFolder,
    prepared: Prepared,
    folder: Path | None = None,
    *,
    trial: bool = False,
) -> dict[str, Any]:
    """Write one teacher's folder (None: `run.teacher`) and return the content of its
    `teacher.json`. Of an ensemble, this is one member.

    With `trial` and `epochs = "auto"`, a teacher that can't read the texts learns from
    `trainer.TRIED_EXAMPLES` alone.

    Raises TeacherError for a model, labels or settings that don't fit; the message says what to
    change.
    """
    folder = folder or run.teacher
    if not config.fine_tune:
        return _take_in(config, folder, prepared)
    bf16 = computes_bf16() if config.bf16 == "auto" else config.bf16
    config = config.model_copy(update={"bf16": bf16})
    started = time.monotonic()
    teacher = load_base(config, prepared.labels)
    trainable = freeze(teacher.model, config.unfreeze.last_layers)
    say(f"{folder.name} {config.model}, seed {config.seed}: {trainable.describe()}")
    # Twins start from them; of an ensemble all members have the same, and one is enough.
    before = trained_token_vectors(teacher.model) if folder == run.teacher else {}
    examples = _read(run, prepared, "train", teacher)
    validation = _read(run, prepared, "validation", teacher)

    plan, tried = Plan.of(config, len(examples.gold)), False
    if trial and _unknown_share(teacher, examples.encoded) > UNREADABLE:
        short = Plan.of(config, len(examples.gold), trial=True)
        plan, tried = short, short.steps < plan.steps
    if tried:
        say(
            f"it trains for {plan.steps:,} steps, after which a linear model is asked whether more "
            "are worth it; to train it on such texts all the same, set teacher.epochs"
        )
    identity = _fingerprint(config, prepared, tried)
    checkpoints = run.checkpoints_of(folder)
    prepare_folder(checkpoints, identity)
    checkpoint = last_whole(checkpoints)
    # A trial does not read every row: to keep the states of all would take longer than it does.
    cached = config.cache_prefix and not tried
    prefix = Prefix(teacher.model, config.unfreeze.last_layers) if cached else None
    if checkpoint is not None:
        say(f"resuming the teacher's training from step {checkpoint.step} of {plan.steps}")
    if checkpoint is None or not _is_over(checkpoint, config, plan):
        if prefix is not None:
            found = cache_states(
                prefix,
                {"train": examples.encoded, "validation": validation.encoded},
                Padding.of(teacher.tokenizer),
                run.prefix_of(folder),
                identity,
                bf16=bf16,
            )
            examples = replace(examples, states=found["train"])
            validation = replace(validation, states=found["validation"])
            prefix.skip()
        trainer = make_trainer(config, checkpoints, teacher, plan, examples, validation, prefix)
        train(trainer, plan, checkpoint)
        if prefix is not None:
            prefix.restore()
        checkpoint = last_whole(checkpoints)
    if checkpoint is None:
        raise RuntimeError(f"no checkpoint in {checkpoints} after the training")

    history = _history(checkpoint.state)
    best_step = int(checkpoint.state["best_global_step"])
    load_weights(teacher.model, checkpoints / f"checkpoint-{best_step}" / WEIGHTS)
    card = Card(
        prepared.labels,
        prepared.pair,
        config.max_length,
        config.head_units,
        pooling=teacher.pooling,
    )
    facts = {
        "base": config.model,
        "fine_tuned": True,
        "trainable": trainable.facts(),
        "learning_rate": learning_rate(config, teacher.model),
        "metric": config.metric,
        "best": next(entry for entry in history if entry["step"] == best_step),
        "history": history,
        "steps": checkpoint.step,
        **({TRIED: True} if tried else {}),
        "cut": {"train": examples.encoded.cut, "validation": validation.encoded.cut},
        "data": {name: prepared.fingerprints[name] for name in ("train", "validation")},
        "seconds": round(time.monotonic() - started, 1),
    }
    content = save_teacher(folder, teacher, card, facts, before)
    shutil.rmtree(checkpoints)
    shutil.rmtree(run.prefix_of(folder), ignore_errors=True)
    best = content["best"]
    say(
        f"{folder.name}: {config.metric} {best[config.metric]:.4f} on validation "
        f"(the best of {len(history)}, after {best['epoch']:.2f} epochs); "
        f"took {clock(content['seconds'])}"
    )
    return content


def _take_in(config: TeacherConfig, folder: Path, prepared: Prepared) -> dict[str, Any]:
    """Copy a fine-tuned model into the run as it is, its labels matched with the data's."""
    teacher, head_units, pooling = load_finished(config, prepared.labels)
    card = Card(
        prepared.labels,
        prepared.pair,
        config.max_length,
        head_units,
        teacher.column_order,
        pooling,
    )
    parameters = sum(parameter.numel() for parameter in teacher.model.parameters())
    facts = {"base": config.model, "fine_tuned": False, "parameters": parameters, "history": []}
    order = "in the data's order" if card.column_order is None else "reordered to the data's order"
    say(f"teacher {config.model}: used as it is, {parameters:,} parameters, its classes {order}")
    return save_teacher(folder, teacher, card, facts)


def _read(run: RunFolder, prepared: Prepared, split: str, teacher: Teacher) -> Examples:
    gold: list[npt.NDArray[np.int64]] = []

    def parts() -> Iterator[tuple[list[str], list[str] | None]]:
        with progress(f"tokenising {split}", prepared.rows[split], "rows") as advance:
            for rows in iterate_rows(run.split(split)):
                kept = np.flatnonzero(rows.labels >= 0)
                gold.append(rows.labels[kept])
                pairs = rows.texts_b
                yield (
                    [rows.texts[index] for index in kept],
                    None if pairs is None else [pairs[index] for index in kept],
                )
                advance(len(rows))

    encoded = encode(teacher.tokenizer, parts(), teacher.max_length)
    if not len(encoded):
        raise TeacherError(f"{run.split(split)} holds no row with a label: the teacher can't learn")
    if encoded.cut:
        say(
            f"{split}: {encoded.cut:,} of {len(encoded):,} texts are longer than "
            f"teacher.max_length = {teacher.max_length} wordpieces and are cut"
        )
    unknown = _unknown_share(teacher, encoded)
    if unknown > MOST_UNKNOWN:
        say(
            f"{split}: {unknown:.0%} of the wordpieces are unknown to the teacher, so that its "
            "answers will be poor: give a model of the texts' language as teacher.model"
        )
    return Examples(encoded, np.concatenate(gold))


def _unknown_share(teacher: Teacher, encoded: Encoded) -> float:
    """Return which share of the texts' own wordpieces the teacher has no entry for."""
    tokenizer = teacher.tokenizer
    unknown = tokenizer.unk_token_id
    added = {tokenizer.cls_token_id, tokenizer.sep_token_id}
    added |= {tokenizer.bos_token_id, tokenizer.eos_token_id}
    if unknown is None or unknown in added:  # no entry tells what is unknown
        return 0.0
    own = encoded.tokens.ids[
        ~np.isin(encoded.tokens.ids, [one for one in added if one is not None])
    ]
    return float((own == unknown).mean()) if len(own) else 0.0


def _fingerprint(config: TeacherConfig, prepared: Prepared, tried: bool) -> str:
    """Return the fingerprint of all that a checkpoint depends on."""
    weights = fingerprint_base(config.model) or config.model
    data = {name: prepared.fingerprints[name] for name in ("train", "validation")}
    about = (config.telling, weights, prepared.labels, prepared.pair, data)
    return fingerprint(*about, TRIED) if tried else fingerprint(*about)


def _history(state: dict[str, Any]) -> list[dict[str, float]]:
    """Return the evaluations: step, epoch, metrics, and the last training loss before each."""
    history, loss = [], math.nan
    for entry in state["log_history"]:
        loss = entry.get("loss", loss)
        if "eval_nll" in entry:
            history.append(
                {
                    "step": entry["step"],
                    "epoch": entry["epoch"],
                    "train_loss": loss,
                    **{name: entry[f"eval_{name}"] for name in GREATER_IS_BETTER},
                }
            )
    return history


def _is_over(checkpoint: Checkpoint, config: TeacherConfig, plan: Plan) -> bool:
    """Whether training had ended with this checkpoint and only the teacher folder is missing."""
    return checkpoint.step >= plan.steps or out_of_patience(checkpoint.state["log_history"], config)
