"""`transformers.Trainer` with our batches, our loss and our progress line.

Here: the plan of steps and evaluations, batches of similar length, and what happens at each step.
Its own bars and prints are off and it reports to no service. One process trains on one device.
"""

from __future__ import annotations

import errno
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.data import DataLoader, Dataset, Sampler
from transformers import (
    EvalPrediction,
    PreTrainedModel,
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

from bert_kd.config import TeacherConfig
from bert_kd.data.batches import bucketed_batches
from bert_kd.errors import TeacherError
from bert_kd.progress import Advance, progress, say
from bert_kd.scores import GREATER_IS_BETTER, measure
from bert_kd.teacher.checkpoints import KEPT, Checkpoint, mark_complete
from bert_kd.teacher.encoding import Encoded, Padding, batch
from bert_kd.teacher.memory import out_of_memory
from bert_kd.teacher.model import Teacher, quiet
from bert_kd.teacher.objective import class_weights, r_drop_loss, weighted_loss
from bert_kd.teacher.parts import rate_factors
from bert_kd.teacher.prefix import Prefix, States

SCHEDULES = {"linear": "linear", "cosine": "cosine", "constant": "constant_with_warmup"}
EXAMPLES, EPOCHS = 60_000, (3, 20)
"""What `epochs = "auto"` goes by: examples wanted, and the least and most epochs."""
TRIED_EXAMPLES = 6_000
"""Of a trial: see `trial.py`."""
RATE, WIDTH = 2e-4, 384
"""What `learning_rate = "auto"` goes by: the rate for layers of this width. With half of it the
offline BERT had learned too little of 52 classes after 60,000 examples.
"""
STATES = "prefix_states"
"""What a batch calls the states below the trained layers; the model is not handed them."""
NO_SPACE = ("No space left", "file write failed", "iostream error", "unexpected pos")
"""How safetensors and torch.save put a full disk, here and there."""


@dataclass(frozen=True)
class Examples:
    """One split, tokenised, with its gold labels; rows without a label are left out."""

    encoded: Encoded
    gold: npt.NDArray[np.int64]  # [rows]
    states: States | None = None
    """Below the trained layers, where they are cached."""


@dataclass(frozen=True)
class Plan:
    """How many steps there are and after which of them the teacher is evaluated."""

    steps: int
    steps_per_epoch: int
    evaluations_per_epoch: int

    @staticmethod
    def of(config: TeacherConfig, rows: int, *, trial: bool = False) -> Plan:
        """Return the plan for a training set of `rows` rows; a `trial` of `epochs = "auto"` is
        short.
        """
        batches = math.ceil(rows / config.batch_size)
        per_epoch = math.ceil(batches / config.gradient_accumulation)
        epochs = _enough(rows, trial) if config.epochs == "auto" else config.epochs
        return Plan(math.ceil(epochs * per_epoch), per_epoch, config.evaluations_per_epoch)

    def evaluates_after(self, step: int) -> bool:
        """Whether step `step` (from 1) ends one of the equal parts of an epoch, or the training."""
        per_epoch, parts = self.steps_per_epoch, self.evaluations_per_epoch
        return step >= self.steps or step * parts // per_epoch > (step - 1) * parts // per_epoch


def _enough(rows: int, trial: bool) -> float:
    """Return how many epochs over `rows` rows bring `EXAMPLES` examples, within `EPOCHS`; of a
    trial, how many bring `TRIED_EXAMPLES`, if these are fewer.
    """
    least, most = EPOCHS
    epochs = min(max(math.ceil(EXAMPLES / rows), least), most)
    return min(epochs, TRIED_EXAMPLES / rows) if trial else epochs


def learning_rate(config: TeacherConfig, model: PreTrainedModel) -> float:
    """Return the learning rate of head and pooler, for this model where it is `auto`."""
    if config.learning_rate != "auto":
        return config.learning_rate
    return RATE * WIDTH / int(model.config.hidden_size)


class _Rows(Dataset[int]):
    """Row numbers; the collator turns them into a batch."""

    def __init__(self, rows: int) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return self.rows

    def __getitem__(self, row: int) -> int:
        return row


class _Buckets(Sampler[list[int]]):
    """Shuffled batches of similar length, in an order that goes by seed and epoch alone."""

    def __init__(self, lengths: npt.NDArray[np.int64], batch_size: int, seed: int) -> None:
        self.lengths, self.batch_size, self.seed, self.epoch = lengths, batch_size, seed, 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return math.ceil(len(self.lengths) / self.batch_size)

    def __iter__(self) -> Iterator[list[int]]:
        generator = np.random.default_rng((self.seed, self.epoch))
        for rows in bucketed_batches(self.lengths, self.batch_size, generator):
            yield rows.tolist()


class _Sorted(Sampler[list[int]]):
    """Batches by rising length. The one short batch comes last, as accelerate takes it for granted
    when it gathers the answers: elsewhere, rows of a full last batch would be cut off.
    """

    def __init__(self, lengths: npt.NDArray[np.int64], batch_size: int) -> None:
        self.lengths, self.batch_size = lengths, batch_size

    def __len__(self) -> int:
        return math.ceil(len(self.lengths) / self.batch_size)

    def __iter__(self) -> Iterator[list[int]]:
        order = np.argsort(self.lengths, kind="stable").tolist()
        for start in range(0, len(order), self.batch_size):
            yield order[start : start + self.batch_size]


class TeacherTrainer(Trainer):
    """The Trainer with our batches and our loss."""

    def __init__(
        self,
        *,
        padding: Padding,
        train: Examples,
        validation: Examples,
        weights: Tensor,
        layer_decay: float,
        two_passes: bool,
        prefix: Prefix | None = None,
        **settings: Any,
    ) -> None:
        self.prefix = prefix
        self.padding, self.train_examples, self.validation_examples = padding, train, validation
        self.class_weights, self.layer_decay, self.two_passes = weights, layer_decay, two_passes
        super().__init__(
            train_dataset=_Rows(len(train.gold)),
            eval_dataset=_Rows(len(validation.gold)),
            **settings,
        )

    def create_optimizer(self, model: nn.Module | None = None) -> Optimizer:
        """Return the Trainer's own optimizer; with layer decay, over groups of different rates."""
        if self.optimizer is None and self.layer_decay < 1:
            assert isinstance(self.model, PreTrainedModel)
            kind, settings = self.get_optimizer_cls_and_kwargs(self.args, self.model)
            self.optimizer = kind(self._groups(self.model), **settings)
        optimizer: Optimizer = super().create_optimizer(model)
        return optimizer

    def _groups(self, model: PreTrainedModel) -> list[dict[str, Any]]:
        """Return the parameters that train, by learning rate and weight decay, the head's first;
        as ever, biases and norms have no weight decay.
        """
        factors = rate_factors(model, self.layer_decay)
        decaying = set(self.get_decay_parameter_names(model))
        groups: dict[tuple[float, bool], list[nn.Parameter]] = {}
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                groups.setdefault((factors[name], name in decaying), []).append(parameter)
        return [
            {
                "params": groups[factor, decays],
                "lr": self.args.learning_rate * factor,
                "weight_decay": self.args.weight_decay if decays else 0.0,
            }
            for factor, decays in sorted(groups, reverse=True)
        ]

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Tensor],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """Return the loss; with R-Drop, in training, of two passes that dropout tells apart."""
        if self.two_passes and model.training:
            # As one batch. The labels stay as they are: two passes, one gold label a row.
            inputs = {
                name: value if name == "labels" else torch.cat([value, value])
                for name, value in inputs.items()
            }
        if self.prefix is not None:
            self.prefix.give(inputs[STATES])
            inputs = {name: value for name, value in inputs.items() if name != STATES}
        return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)

    def _loader(self, examples: Examples, batches: Sampler[list[int]]) -> DataLoader[Any]:
        def collate(rows: list[int]) -> dict[str, Tensor]:
            chosen = np.asarray(rows, dtype=np.int64)
            inputs = batch(examples.encoded, chosen, self.padding)
            if examples.states is not None:
                inputs[STATES] = examples.states.padded(chosen, self.padding)
            return {**inputs, "labels": torch.from_numpy(examples.gold[chosen])}

        loader: DataLoader[Any] = DataLoader(
            _Rows(len(examples.gold)), batch_sampler=batches, collate_fn=collate
        )
        prepared: DataLoader[Any] = self.accelerator.prepare(loader)
        return prepared

    def get_train_dataloader(self) -> DataLoader[Any]:
        """Return shuffled batches of similar length."""
        lengths = self.train_examples.encoded.tokens.lengths
        buckets = _Buckets(lengths, self.args.per_device_train_batch_size, self.args.seed)
        return self._loader(self.train_examples, buckets)

    def get_eval_dataloader(self, eval_dataset: Any = None) -> DataLoader[Any]:
        """Return the validation rows in batches of similar length: metrics know no order."""
        lengths = self.validation_examples.encoded.tokens.lengths
        batches = _Sorted(lengths, self.args.per_device_eval_batch_size)
        return self._loader(self.validation_examples, batches)

    def get_batch_samples(
        self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device
    ) -> tuple[list[Any], Tensor]:
        """Return the parts of one accumulated batch and the sum of their rows' class weights."""
        parts, _ = super().get_batch_samples(epoch_iterator, num_batches, device)
        total = sum(float(self.class_weights[part["labels"].cpu()].sum()) for part in parts)
        return parts, torch.tensor(total, device=device)


class _Flow(TrainerCallback):
    """When to evaluate, save and stop, and what the user sees of it."""

    def __init__(self, config: TeacherConfig, plan: Plan) -> None:
        self.config, self.plan = config, plan
        self.advance: Advance | None = None
        self.loss = ""

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        if self.advance is not None:
            self.advance(1, self.loss)
        if self.plan.evaluates_after(state.global_step):
            control.should_evaluate = control.should_save = True

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **given: Any,
    ) -> None:
        logs: dict[str, float] = given["logs"]
        if "loss" in logs:
            best = (
                ""
                if state.best_metric is None
                else f", best {self.config.metric} {state.best_metric:.4f}"
            )
            self.loss = f"loss {logs['loss']:.4f}{best}"

    def on_evaluate(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **given: Any,
    ) -> None:
        metrics: dict[str, float] = given["metrics"]
        if not math.isfinite(metrics["eval_nll"]):
            raise TeacherError(
                f"the teacher's training diverged (its answers at step {state.global_step} are not "
                "finite): lower teacher.learning_rate or raise teacher.warmup"
            )
        say(
            f"epoch {state.epoch:.2f}: accuracy {metrics['eval_accuracy']:.4f}, "
            f"macro F1 {metrics['eval_macro_f1']:.4f}, NLL {metrics['eval_nll']:.4f} on validation"
        )
        if out_of_patience(state.log_history, self.config):
            say(f"stopping: no better {self.config.metric} in {self.config.patience} evaluations")
            control.should_training_stop = True

    def on_save(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        mark_complete(Path(str(args.output_dir)) / f"checkpoint-{state.global_step}")


def make_trainer(
    config: TeacherConfig,
    checkpoints: Path,
    teacher: Teacher,
    plan: Plan,
    train: Examples,
    validation: Examples,
    prefix: Prefix | None = None,
) -> TeacherTrainer:
    """Return a Trainer for `teacher`, its frozen parts as they are; it writes to `checkpoints`.

    With a `prefix` its layers are skipped for the states of the examples.
    """
    if config.bf16 and torch.cuda.is_available() and not torch.cuda.is_bf16_supported():
        raise TeacherError(
            "teacher.bf16 = true, but this GPU can't compute in bf16: set it to false"
        )
    weights = class_weights(config.class_weights, train.gold, teacher.labels)

    def loss(outputs: Any, gold: Tensor, num_items_in_batch: Tensor | None = None) -> Tensor:
        logits, smoothing = outputs["logits"], config.label_smoothing
        if len(logits) == 2 * len(gold):
            return r_drop_loss(logits, gold, weights, smoothing, config.r_drop, num_items_in_batch)
        return weighted_loss(logits, gold, weights, smoothing, num_items_in_batch)

    def metrics(answers: EvalPrediction) -> dict[str, float]:
        logits = answers.predictions
        # Some architectures return more than the logits, after them.
        logits = logits[0] if isinstance(logits, tuple) else logits
        return measure(logits, np.asarray(answers.label_ids))

    with quiet():
        arguments = TrainingArguments(
            output_dir=str(checkpoints),
            max_steps=plan.steps,
            per_device_train_batch_size=config.batch_size,
            per_device_eval_batch_size=config.batch_size,
            gradient_accumulation_steps=config.gradient_accumulation,
            learning_rate=learning_rate(config, teacher.model),
            weight_decay=config.weight_decay,
            warmup_steps=math.ceil(config.warmup * plan.steps),
            lr_scheduler_type=SCHEDULES[config.schedule],
            bf16=bool(config.bf16),
            use_cpu=not torch.cuda.is_available(),
            seed=config.seed,
            # `_Flow` says when, in equal parts of an epoch; so the Trainer must not.
            eval_strategy="steps",
            eval_steps=plan.steps,
            save_strategy="steps",
            save_steps=plan.steps,
            save_total_limit=KEPT,
            metric_for_best_model=config.metric,
            greater_is_better=GREATER_IS_BETTER[config.metric],
            logging_steps=max(plan.steps // 200, 1),
            report_to=[],
            disable_tqdm=True,
            log_level="error",
            label_names=["labels"],
            remove_unused_columns=False,
        )
        # One process, one GPU: the Trainer would multiply the batch size by their number.
        arguments._n_gpu = min(arguments.n_gpu, 1)
        trainer = TeacherTrainer(
            model=teacher.model,
            args=arguments,
            padding=Padding.of(teacher.tokenizer),
            train=train,
            validation=validation,
            weights=weights,
            layer_decay=config.layer_decay,
            two_passes=config.r_drop > 0,
            prefix=prefix,
            compute_loss_func=loss,
            compute_metrics=metrics,
            callbacks=[_Flow(config, plan)],
        )
    trainer.remove_callback(PrinterCallback)
    return trainer


def train(trainer: TeacherTrainer, plan: Plan, checkpoint: Checkpoint | None) -> None:
    """Train to the end of `plan`, from `checkpoint` if there is one; checkpoints are what is left
    of it.

    Raises TeacherError where memory or disk run out, or the training diverges.
    """
    flow = next(found for found in trainer.callback_handler.callbacks if isinstance(found, _Flow))
    done = 0 if checkpoint is None else checkpoint.step
    resume = None if checkpoint is None else str(checkpoint.folder)
    try:
        with quiet(), progress("training the teacher", plan.steps, "steps", done=done) as advance:
            flow.advance = advance
            trainer.train(resume_from_checkpoint=resume)
    except (OSError, RuntimeError, MemoryError, SafetensorError) as error:
        if out_of_memory(error):
            raise TeacherError(
                "memory ran out while the teacher trained: halve teacher.batch_size and double "
                "teacher.gradient_accumulation (the same training), or lower teacher.max_length"
            ) from error
        full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
        if full or any(phrase in str(error) for phrase in NO_SPACE):
            raise TeacherError(
                f"no space left on the disk of {trainer.args.output_dir}: free some and run "
                "the same command again; it goes on from the last whole checkpoint"
            ) from error
        raise


def out_of_patience(log_history: list[dict[str, float]], config: TeacherConfig) -> bool:
    """Whether the last `patience` evaluations were no better than the best before them."""
    if not config.patience:
        return False
    sign = 1.0 if GREATER_IS_BETTER[config.metric] else -1.0
    values = [sign * entry[f"eval_{config.metric}"] for entry in log_history if "eval_nll" in entry]
    return bool(values) and len(values) - 1 - int(np.argmax(values)) >= config.patience
