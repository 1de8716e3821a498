"""The student's training loop, to be read from top to bottom.

Reads token ids, gold labels and cached teacher logits; writes checkpoints, a history and the best
student. The teacher is never loaded. A run that was killed goes on from its last checkpoint and
ends with the same weights.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from bert_kd.config import StudentConfig, TrainingConfig
from bert_kd.data.batches import Ints, Tokens, bucketed_batches, sorted_batches
from bert_kd.errors import StudentError
from bert_kd.hardware import computes_bf16
from bert_kd.progress import progress, say
from bert_kd.scores import measure
from bert_kd.store import to_json, write_json, write_text, writing
from bert_kd.student.losses import NO_LABEL, DistillationLoss, Losses
from bert_kd.student.model import UNKNOWN_ID, BiLSTM
from bert_kd.student.optimizer import StudentOptimizer

CHECKPOINT, HISTORY, METRICS = "checkpoint.safetensors", "history.jsonl", "metrics.json"
FORMAT = 4
"""Of checkpoints."""
EVALUATION_TOKENS = 16_384
ZEROS = (0.0,) * len(Losses._fields)
FOLLOW_STEPS = 32
"""The average of the weights follows once in so many steps, and at an epoch's end: all rows of the
embedding have to be up to date for it.
"""


@dataclass(frozen=True)
class Examples:
    """Rows ready for the student: token ids (of both sides of a pair), gold labels (−1: none),
    teacher answers.
    """

    tokens: Tokens
    tokens_b: Tokens | None
    labels: Ints  # [rows]
    logits: npt.NDArray[np.float32] | None = None  # [rows, classes]
    features: npt.NDArray[np.float16] | None = None  # [rows, teacher's hidden size]

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def lengths(self) -> Ints:
        """What a row costs in tokens: the longer side of a pair."""
        if self.tokens_b is None:
            return self.tokens.lengths
        return np.maximum(self.tokens.lengths, self.tokens_b.lengths)


@dataclass
class State:
    """All that a checkpoint holds besides tensors; with them it fixes the rest of the run."""

    epoch: int = 0
    step: int = 0  # batches of this epoch that are done
    best: float = -math.inf  # of the metric, over the epochs so far
    best_epoch: int = -1
    kept: int = -1  # the epoch whose weights are kept: see `is_as_good`
    seconds: float = 0.0
    sums: tuple[float, ...] = ZEROS  # of `Losses` over this epoch's rows so far: see `_row_sums`
    history: tuple[dict[str, Any], ...] = ()


def train(
    config: StudentConfig,
    model: BiLSTM,
    examples: Examples,
    validation: Examples,
    folder: Path,
    *,
    seed: int,
    name: str,
    fingerprint: str,
) -> dict[str, Any]:
    """Train `model` in place, leave in it the weights of the latest epoch that is as good as the
    best, and return the metrics of that epoch. An `embedding_rate` that is `auto` is that of a
    random start.

    `folder` takes `checkpoint.safetensors`, `history.jsonl` and `metrics.json`; a checkpoint that
    lies there is resumed. On a CPU the same seed gives the same weights, interrupted or not.
    Raises StudentError where the training diverges.
    """
    settings = config.training
    # The state is one for the process; a teacher or another student may have left its precision.
    AcceleratorState._reset_state(reset_partial_state=True)
    accelerator = Accelerator(mixed_precision=_precision(settings.precision))
    teacher_size = 0 if examples.features is None else examples.features.shape[1]
    torch.manual_seed(seed)
    objective = DistillationLoss(config.loss, model.shape.pooled, teacher_size)
    model.embedding.weight.requires_grad_(not config.embedding.freeze)
    batch_size = settings.batch_over(len(examples))
    batches_per_epoch = math.ceil(len(examples) / batch_size)
    epochs = settings.epochs_over(len(examples))
    rate = learning_rates(settings, epochs * batches_per_epoch)
    model, objective = accelerator.prepare(model, objective)
    table = model.embedding.weight
    optimizer = StudentOptimizer(
        [p for p in (*model.parameters(), *objective.parameters()) if p is not table],
        table if table.requires_grad else None,
        settings,
        settings.embedding_rate_from(given=False),
        accelerator.scaler,
    )
    averaged = deepcopy(model).requires_grad_(False) if settings.ema else None
    best = deepcopy(model).requires_grad_(False)  # the weights of the best epoch so far

    run = _Run(folder, fingerprint, accelerator, model, objective, averaged, best, optimizer)
    state = run.resume()
    if state.step or state.epoch:
        say(f"{name}: goes on in epoch {state.epoch + 1} after batch {state.step}")

    lengths = examples.lengths
    # Word dropout shows it in place of others.
    unknown = torch.tensor([UNKNOWN_ID], device=accelerator.device)
    started, last_saved = time.monotonic() - state.seconds, time.monotonic()
    total = epochs * len(examples)
    done = state.epoch * len(examples) + state.step * batch_size
    with progress(name, total, "examples", done=done) as advance:
        while state.epoch < epochs and not _out_of_patience(state, settings):
            model.train()
            shuffled = np.random.default_rng([seed, state.epoch])
            batches = bucketed_batches(lengths, batch_size, shuffled)
            # On the device: to read them would wait for it at every step.
            sums = torch.tensor(state.sums, dtype=torch.float64, device=accelerator.device)
            for rows in batches[state.step :]:
                done_steps = state.epoch * len(batches) + state.step
                optimizer.begin(rate(done_steps))
                ids, batch_lengths, ids_b, lengths_b, labels, logits, features = _batch(
                    examples, rows, accelerator.device
                )
                optimizer.catch_up(ids, ids_b, unknown)
                with accelerator.autocast():
                    output = model(ids, batch_lengths, ids_b, lengths_b)
                losses = objective(
                    output.logits.float(), output.pooled.float(), labels, logits, features
                )
                accelerator.backward(losses.total)
                optimizer.step()
                window, last = state.step % FOLLOW_STEPS + 1, state.step + 1 == len(batches)
                if last or (averaged is not None and window == FOLLOW_STEPS):
                    optimizer.catch_up()
                    _follow(averaged, model, settings.ema, done_steps, window)

                state.step += 1
                sums += _row_sums(losses, labels)
                advance(len(rows))
                if time.monotonic() - last_saved > settings.checkpoint_seconds:
                    state.sums = tuple(sums.tolist())
                    state.seconds = time.monotonic() - started
                    run.save(state)
                    last_saved = time.monotonic()

            judged = averaged if averaged is not None else model
            measured = evaluate(judged, validation)
            means = _means(sums, examples.labels)
            if not math.isfinite(measured["nll"] + means["loss"]):
                raise StudentError(
                    f"{name} diverged in epoch {state.epoch + 1} (its loss is not finite): lower "
                    "training.learning_rate, or set training.clip"
                )
            value = -measured["nll"] if settings.metric == "nll" else measured[settings.metric]
            if value > state.best:
                state.best, state.best_epoch = value, state.epoch
            if is_as_good(value, state.best, settings.metric, len(validation)):
                state.kept = state.epoch
                best.load_state_dict(judged.state_dict())
            state.seconds = time.monotonic() - started
            row = {
                "epoch": state.epoch + 1,
                **means,
                **{f"validation_{key}": value for key, value in measured.items()},
                "learning_rate": rate((state.epoch + 1) * len(batches) - 1),  # of the last batch
                "seconds": state.seconds,
            }
            state.history = (*state.history, row)
            state.epoch, state.step, state.sums = state.epoch + 1, 0, ZEROS
            run.save(state)
            last_saved = time.monotonic()
            advance(0, f"epoch {state.epoch}, {settings.metric} {abs(value):.4f}")

    model.load_state_dict(best.state_dict())
    model.eval()
    chosen = state.history[state.kept]
    metrics = {
        "best_epoch": state.kept + 1,
        "epochs": state.epoch,
        "seconds": state.seconds,
        "examples": len(examples),
        **{key: value for key, value in chosen.items() if key.startswith("validation_")},
    }
    write_json(folder / METRICS, metrics)
    return metrics


def is_as_good(value: float, best: float, metric: str, rows: int) -> bool:
    """Return whether an epoch's metric over so many validation rows is as good as the best:
    accuracy and macro-F1, if within a standard error of it; likelihood, if no worse.

    The standard error is that of a share of right answers, for macro-F1 too, whose own is larger
    where a class is rare. Such a difference tells nothing, and later weights, of a lower learning
    rate, are the better settled ones: of several seeds of SST-2, those kept from early epochs had
    the worst test.
    """
    if metric == "nll":
        return value >= best
    return value >= best - math.sqrt(max(best * (1 - best), 0.0) / max(rows, 1))


def read_history(folder: Path) -> list[dict[str, Any]]:
    """Return the rows of a student's `history.jsonl`, one an epoch."""
    lines = (folder / HISTORY).read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def predict(model: BiLSTM, examples: Examples) -> npt.NDArray[np.float32]:
    """Return the logits [rows, classes] of all examples, in their order."""
    device = next(model.parameters()).device
    model.eval()
    logits = np.zeros((len(examples), model.shape.classes), dtype=np.float32)
    with torch.inference_mode():
        for rows in sorted_batches(examples.lengths, EVALUATION_TOKENS):
            ids, lengths, ids_b, lengths_b, *_ = _batch(examples, rows, device)
            logits[rows] = model(ids, lengths, ids_b, lengths_b).logits.float().cpu().numpy()
    return logits


def evaluate(model: BiLSTM, examples: Examples) -> dict[str, float]:
    """Return accuracy, macro-F1 and negative log-likelihood (nats a row) on gold labels."""
    logits = predict(model, examples)
    labelled = examples.labels != NO_LABEL
    return measure(logits[labelled], examples.labels[labelled])


def _batch(
    examples: Examples, rows: Ints, device: torch.device
) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None, Tensor, Tensor | None, Tensor | None]:
    """Return ids, lengths (kept on the CPU), both again for a second text, labels, teacher logits
    and features.
    """
    ids, lengths = examples.tokens.padded(rows)
    ids_b = lengths_b = None
    if examples.tokens_b is not None:
        other, other_lengths = examples.tokens_b.padded(rows)
        ids_b = torch.from_numpy(other).to(device)
        lengths_b = torch.from_numpy(other_lengths)
    logits = features = None
    if examples.logits is not None:
        logits = torch.from_numpy(examples.logits[rows]).to(device)
    if examples.features is not None:
        features = torch.from_numpy(examples.features[rows].astype(np.float32)).to(device)
    return (
        torch.from_numpy(ids).to(device),
        torch.from_numpy(lengths),
        ids_b,
        lengths_b,
        torch.from_numpy(examples.labels[rows]).to(device),
        logits,
        features,
    )


def _out_of_patience(state: State, settings: TrainingConfig) -> bool:
    """Whether the last `patience` epochs brought nothing better."""
    return 0 < settings.patience <= state.epoch - 1 - state.best_epoch


def _precision(asked: str) -> str:
    """Return accelerate's word for the precision; `auto` is bf16 where hardware computes in it."""
    if asked != "auto":
        return "no" if asked == "fp32" else asked
    return "bf16" if computes_bf16() else "no"


def learning_rates(settings: TrainingConfig, steps: int) -> Callable[[int], float]:
    """Return the learning rate at a step: a linear rise, then cosine, linear or constant."""
    rising = max(int(settings.warmup * steps), 1)

    def factor(step: int) -> float:
        if step < rising:
            return (step + 1) / rising
        if settings.schedule == "constant":
            return 1.0
        share = min((step - rising) / max(steps - rising, 1), 1.0)
        return (
            1.0 - share if settings.schedule == "linear" else 0.5 * (1 + math.cos(math.pi * share))
        )

    return lambda step: settings.learning_rate * factor(step)


@torch.no_grad()
def _row_sums(losses: Losses, labels: Tensor) -> Tensor:
    """Return a batch's terms [4] (float64), each times the rows that it is a mean over, which for
    the hard term are those with one of the `labels` [batch].
    """
    labelled = (labels != NO_LABEL).sum()
    rows = torch.full_like(labelled, len(labels))
    return torch.stack(losses).double() * torch.stack([rows, labelled, rows, rows])


def _means(sums: Tensor, labels: Ints) -> dict[str, float]:
    """Return an epoch's terms by their names in the history, of sums [4] over rows with these
    `labels` [rows]: each a mean over the rows that it applies to, 0 where there are none.
    """
    rows, labelled = len(labels), int((labels != NO_LABEL).sum())
    total, hard, soft, feature = sums.tolist()
    return {
        "loss": total / rows,
        "hard": hard / max(labelled, 1),
        "soft": soft / rows,
        "feature": feature / rows,
    }


@torch.no_grad()
def _follow(averaged: BiLSTM | None, model: BiLSTM, decay: float, step: int, window: int) -> None:
    """Move the averaged weights, where there are any, towards the model's, once for the last
    `window` steps; early steps count more, so that the start is forgotten.
    """
    if averaged is None:
        return
    decay = min(decay, (1 + step) / (10 + step)) ** window
    for slow, fast in zip(averaged.parameters(), model.parameters(), strict=True):
        slow.lerp_(fast, 1 - decay)


@dataclass(frozen=True)
class _Run:
    """What a checkpoint saves and restores, as one safetensors file written whole or not at all."""

    folder: Path
    fingerprint: str
    accelerator: Accelerator
    model: BiLSTM
    objective: DistillationLoss
    averaged: BiLSTM | None
    best: BiLSTM
    optimizer: StudentOptimizer

    def save(self, state: State) -> None:
        """Write the checkpoint and the history."""
        tensors = {f"model.{key}": value for key, value in self.model.state_dict().items()}
        tensors |= {f"best.{key}": value for key, value in self.best.state_dict().items()}
        tensors |= {f"objective.{key}": value for key, value in self.objective.state_dict().items()}
        if self.averaged is not None:
            tensors |= {f"ema.{key}": value for key, value in self.averaged.state_dict().items()}
        tensors |= {f"optimizer.{key}": value for key, value in self.optimizer.tensors().items()}
        tensors["rng.cpu"] = torch.get_rng_state()
        if self.accelerator.device.type == "cuda":
            tensors["rng.cuda"] = torch.cuda.get_rng_state()
        scaler = self.accelerator.scaler
        facts = {
            "format": FORMAT,
            "fingerprint": self.fingerprint,
            "state": vars(state),
            "scaler": scaler.state_dict() if scaler is not None else None,
        }
        with writing(self.folder / CHECKPOINT) as aside:
            contiguous = {key: value.detach().cpu().contiguous() for key, value in tensors.items()}
            save_file(contiguous, aside, metadata={"facts": json.dumps(facts)})
        lines = [json.dumps(json.loads(to_json(row))) + "\n" for row in state.history]
        write_text(self.folder / HISTORY, "".join(lines))

    def resume(self) -> State:
        """Restore the checkpoint of this folder and return its state, or a fresh state where there
        is none.
        """
        path = self.folder / CHECKPOINT
        if not path.exists():
            return State()
        try:
            with safe_open(path, framework="pt") as file:
                facts = json.loads(file.metadata()["facts"])
                tensors = {key: file.get_tensor(key) for key in file.keys()}
        except (SafetensorError, KeyError, json.JSONDecodeError) as error:
            path.rename(path.with_suffix(".damaged"))
            say(f"{path} is damaged ({error}) and was set aside: training starts again")
            return State()

        if (facts.get("format"), facts["fingerprint"]) != (FORMAT, self.fingerprint):
            path.rename(path.with_suffix(".other"))
            say(f"{path} is of other settings or data and was set aside: training starts again")
            return State()

        def part(prefix: str) -> dict[str, Tensor]:
            return {
                key.removeprefix(prefix): value
                for key, value in tensors.items()
                if key.startswith(prefix)
            }

        self.model.load_state_dict(part("model."))
        self.best.load_state_dict(part("best."))
        self.objective.load_state_dict(part("objective."))
        if self.averaged is not None:
            self.averaged.load_state_dict(part("ema."))
        self.optimizer.load(part("optimizer."))
        if self.accelerator.scaler is not None and facts["scaler"]:
            self.accelerator.scaler.load_state_dict(facts["scaler"])
        torch.set_rng_state(tensors["rng.cpu"])
        if "rng.cuda" in tensors:
            torch.cuda.set_rng_state(tensors["rng.cuda"])
        state = facts["state"]
        return State(**state | {"history": tuple(state["history"]), "sums": tuple(state["sums"])})
