"""The parts of a classification model, whatever its architecture: embeddings, encoder layers,
pooler, head.

Here: finding them, training only the upper ones (`freeze`), how fast each trains (`rate_factors`),
and a hidden layer before the output (`add_head_units`). Parts are found by what they are (the list
of encoder layers, the base model, the last linear layer), never by the order of the parameter
tensors: the last four tensors of a BERT are a fraction of its pooler and head, not four layers.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

from torch import nn
from transformers import PreTrainedModel

from bert_kd.errors import TeacherError

ABOVE_THE_LAYERS = ("pooler", "final_norm")
"""Names of modules inside a base model that stand above its last encoder layer."""


@dataclass(frozen=True)
class Group:
    """One part of the model and whether it trains."""

    name: str
    parameters: int
    trains: bool


@dataclass(frozen=True)
class Trainable:
    """How many parameters there are and train, in all and by part, from the embeddings up."""

    parameters: int
    trainable: int
    groups: tuple[Group, ...]

    def describe(self) -> str:
        """Return one line for people."""
        parts = ", ".join(
            f"{group.name} {group.parameters:,}{'' if group.trains else ' (frozen)'}"
            for group in self.groups
        )
        share = self.trainable / max(self.parameters, 1)
        return f"{self.trainable:,} of {self.parameters:,} parameters train ({share:.1%}): {parts}"

    def facts(self) -> dict[str, Any]:
        """Return the same as plain values for JSON."""
        return asdict(self)


def freeze(model: PreTrainedModel, last_layers: int | Literal["all", "head"]) -> Trainable:
    """Let the last N encoder layers, the pooler and all above them train; freeze the rest.

    `all` trains everything, `head` the pooler and what is above it. Frozen layers keep their
    dropout while the others train, as everywhere in transformers: it acts on the activations that
    the trained layers see.

    Raises TeacherError where the layers cannot be told apart or are fewer than asked for.
    """
    if isinstance(last_layers, int):
        name, layers = encoder_layers(model)
        if last_layers > len(layers):
            raise TeacherError(
                f"teacher.unfreeze.last_layers = {last_layers}, but {_kind(model)} has "
                f'{len(layers)} encoder layers: give at most {len(layers)}, or "all"'
            )
        first = len(layers) - last_layers
    else:
        name, layers, first = "", nn.ModuleList(), 0

    counts: dict[str, list[int]] = {}  # part -> [parameters, trains]
    for parameter_name, parameter in model.named_parameters():
        part, trains = _part(model, parameter_name, name, first, len(layers))
        trains = trains or last_layers == "all"
        parameter.requires_grad = trains
        count = counts.setdefault(part, [0, int(trains)])
        count[0] += parameter.numel()
    groups = tuple(Group(part, count, bool(trains)) for part, (count, trains) in counts.items())
    return Trainable(
        parameters=sum(group.parameters for group in groups),
        trainable=sum(group.parameters for group in groups if group.trains),
        groups=groups,
    )


def _part(
    model: PreTrainedModel, parameter: str, layers_name: str, first: int, layers: int
) -> tuple[str, bool]:
    """Return the part a parameter belongs to and whether it trains when upper parts do."""
    base = f"{model.base_model_prefix}."
    if not parameter.startswith(base):
        return "head", True
    inside = parameter.removeprefix(base)
    if any(piece in ABOVE_THE_LAYERS for piece in inside.split(".")):
        return "pooler", True
    if layers_name and inside.startswith(f"{layers_name}."):
        index = int(inside.removeprefix(f"{layers_name}.").split(".")[0])
        if index < first:
            return f"layers 1 to {first}", False
        return f"layers {first + 1} to {layers}", True
    return ("embeddings" if layers_name else "below the pooler"), False


def rate_factors(model: PreTrainedModel, decay: float) -> dict[str, float]:
    """Return for each parameter what its learning rate is multiplied by.

    Head and pooler have 1, the last encoder layer `decay`, the one below it `decay`², and so on
    down to the embeddings (and all else below the layers) with `decay` to the power of layers + 1:
    the discriminative fine-tuning of Howard and Ruder 2018 (section 3.2), a layer of the encoder a
    step. Raises TeacherError where the layers cannot be told apart.
    """
    name, layers = encoder_layers(model, "set teacher.layer_decay = 1 for it")
    base = f"{model.base_model_prefix}."

    def steps_down(parameter: str) -> int:
        inside = parameter.removeprefix(base)
        if inside == parameter or any(piece in ABOVE_THE_LAYERS for piece in inside.split(".")):
            return 0
        if inside.startswith(f"{name}."):
            return len(layers) - int(inside.removeprefix(f"{name}.").split(".")[0])
        return len(layers) + 1

    return {parameter: decay ** steps_down(parameter) for parameter, _ in model.named_parameters()}


def encoder_layers(
    model: PreTrainedModel, remedy: str = 'teacher.unfreeze.last_layers can be "all" or "head"'
) -> tuple[str, nn.ModuleList]:
    """Return the list of encoder layers and its name inside the base model.

    It is the one `ModuleList` of as many entries as `config.num_hidden_layers` says (BERT:
    `encoder.layer`, DistilBERT: `transformer.layer`, ModernBERT: `layers`). Raises TeacherError,
    with the remedy, where there is none or no single one.
    """
    wanted = model.config.num_hidden_layers
    if getattr(model.config, "num_hidden_groups", None) is not None:
        raise TeacherError(
            f"the layers of {_kind(model)} share one set of weights, so the last ones can't be "
            f"trained otherwise than the first ones: {remedy}"
        )
    if model.config.is_encoder_decoder:
        raise TeacherError(
            f"{_kind(model)} has an encoder and a decoder, so its last encoder layers are not its "
            f"last layers: {remedy}"
        )
    found = [
        (name, module)
        for name, module in model.base_model.named_modules()
        if isinstance(module, nn.ModuleList) and len(module) == wanted
    ]
    # A layer may hold lists of its own (experts, groups): the list of the layers is the outermost.
    depth = min((name.count(".") for name, _ in found), default=0)
    found = [(name, module) for name, module in found if name.count(".") == depth]
    if len(found) != 1:
        reason = (
            f"no list of {wanted} layers was found in it"
            if not found
            else f"it has several lists of {wanted} layers ({', '.join(name for name, _ in found)})"
        )
        raise TeacherError(
            f"the last encoder layers of {_kind(model)} can't be told apart: {reason}; {remedy}"
        )
    return found[0]


def output_layer(model: PreTrainedModel) -> tuple[str, nn.Linear]:
    """Return the linear layer that gives the logits, and its name in the model."""
    base = f"{model.base_model_prefix}."
    found = [
        (name, module)
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear)
        and not name.startswith(base)
        and module.out_features == model.config.num_labels
    ]
    if not found:
        raise TeacherError(
            f"the output layer of {_kind(model)} can't be found: set teacher.head_units = 0"
        )
    return found[-1]


def add_head_units(model: PreTrainedModel, units: int) -> str:
    """Put a hidden layer of `units` (linear, ReLU, dropout) before the output layer; return the
    head's name.

    The new head is `nn.Sequential(Linear, ReLU, Dropout, Linear)` in the place of the output layer.
    """
    name, output = output_layer(model)
    config = model.config
    dropout: float = getattr(config, "hidden_dropout_prob", getattr(config, "dropout", 0.1))
    head = nn.Sequential(
        nn.Linear(output.in_features, units),
        nn.ReLU(),
        nn.Dropout(dropout),
        nn.Linear(units, output.out_features),
    )
    model.set_submodule(name, head.to(output.weight.device))
    return name


def positions(model: PreTrainedModel) -> int | None:
    """Return the most tokens that the model has position vectors for; None: no limit."""
    for name, module in model.named_modules():
        if name.endswith("position_embeddings") and isinstance(module, nn.Embedding):
            # RoBERTa and its kin count positions from behind the padding index.
            before = 0 if module.padding_idx is None else module.padding_idx + 1
            return int(module.num_embeddings) - before
    return None


def _kind(model: PreTrainedModel) -> str:
    return f"the model ({type(model).__name__})"
