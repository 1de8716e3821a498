"""The states below the trained layers, computed once and read again in every epoch.

Where the last layers alone train, the frozen ones give a text the same states in every epoch, but
for dropout. Here they run once, in eval mode; what the last of them gives lies on disk in float16,
memory-mapped, and is what the trained layers read. Not here: which layers are frozen (`parts`).
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from bert_kd.data.batches import Ints, sorted_batches
from bert_kd.errors import TeacherError, UserError
from bert_kd.progress import progress, say
from bert_kd.store import make_folder, read_json, write_json
from bert_kd.teacher.encoding import Encoded, Padding, batch
from bert_kd.teacher.parts import encoder_layers

Halves = npt.NDArray[np.float16]

REMEDY = "set teacher.cache_prefix = false"
ROWS_AT_ONCE = 4096
"""Texts between two records of how far the work is: what a kill loses at most."""
TOKENS_PER_BATCH = 2048
FREE = 0.9
"""Share of the free disk that may be taken."""


@dataclass(frozen=True)
class States:
    """States of the texts of a split: those of text i are `values[offsets[i]:offsets[i + 1]]`."""

    values: Halves  # [tokens, hidden], on disk
    offsets: Ints  # [texts + 1]

    def padded(self, rows: Ints, padding: Padding) -> Tensor:
        """Return the states [batch, longest, hidden] of these rows, float16; padding is zero."""
        starts, ends = self.offsets[rows], self.offsets[rows + 1]
        longest = int((ends - starts).max(initial=1))
        states = np.zeros((len(rows), longest, self.values.shape[1]), dtype=np.float16)
        for line, start, end in zip(states, starts, ends, strict=True):
            place = slice(longest - (end - start), None) if padding.left else slice(end - start)
            line[place] = self.values[start:end]
        return torch.from_numpy(states)


class Prefix:
    """The frozen lower layers of a model: they compute states, or are skipped for given ones.

    The model itself stays as it is, names of weights included; skipped layers hand on what they
    get, and the last of them gives the states that were handed to `give`.
    """

    def __init__(self, model: PreTrainedModel, last_layers: int | Literal["all", "head"]) -> None:
        """Find the layers below the trained ones. Raises TeacherError where there are none, or the
        layers can't be told apart.
        """
        _, layers = encoder_layers(model, REMEDY)
        trained = {"head": 0, "all": len(layers)}.get(str(last_layers), last_layers)
        assert isinstance(trained, int)
        self.model = model
        self.frozen, self.above = layers[: len(layers) - trained], layers[len(layers) - trained :]
        if not len(self.frozen):
            raise TeacherError(
                f"teacher.cache_prefix = true, but all {len(layers)} encoder layers train: lower "
                f"teacher.unfreeze.last_layers, or {REMEDY}"
            )
        self._given: Tensor | None = None

    @property
    def hidden_size(self) -> int:
        return int(self.model.config.hidden_size)

    def give(self, states: Tensor) -> None:
        """Take the states [batch, length, hidden] of the next batch, float16."""
        self._given = states

    def skip(self) -> None:
        """From now on skip the frozen layers and read what is given."""
        for layer in self.frozen:
            _replace(layer, _hand_on)
        _replace(self.frozen[-1], self._read)

    def restore(self) -> None:
        """From now on run the frozen layers again."""
        for layer in self.frozen:
            vars(layer).pop("forward", None)

    def compute(self, inputs: dict[str, Tensor]) -> Tensor:
        """Return the states [batch, length, hidden] above the frozen layers, in eval mode.

        Raises TeacherError where a layer gives more than states.
        """
        found: list[Any] = []
        hook = self.frozen[-1].register_forward_hook(lambda _, __, given: found.append(given))
        for layer in self.above:  # nobody reads what they would give
            _replace(layer, _hand_on)
        try:
            self.model.eval()  # type: ignore[no-untyped-call]
            with torch.inference_mode():
                self.model.base_model(**inputs)
        finally:
            hook.remove()
            for layer in self.above:
                vars(layer).pop("forward", None)
        states = found[0]
        if not isinstance(states, Tensor):
            raise TeacherError(
                f"the layers of {type(self.model).__name__} give more than states, so these can't "
                f"be read in place of running them: {REMEDY}"
            )
        return states

    def _read(self, states: Tensor, *_: Any, **__: Any) -> Tensor:
        assert self._given is not None and self._given.shape == states.shape
        return self._given.to(states.dtype)


def _hand_on(states: Tensor, *_: Any, **__: Any) -> Tensor:
    return states


def _replace(layer: nn.Module, forward: Any) -> None:
    layer.forward = forward


def needed_bytes(prefix: Prefix, splits: Sequence[Encoded]) -> int:
    """Return the size on disk of the states of all texts."""
    return sum(len(encoded.tokens.ids) for encoded in splits) * prefix.hidden_size * 2


def cache_states(
    prefix: Prefix,
    splits: dict[str, Encoded],
    padding: Padding,
    folder: Path,
    fingerprint: str,
    *,
    bf16: bool = False,
) -> dict[str, States]:
    """Return the states of all texts of `splits`, computing those that `folder` lacks.

    `fingerprint` stands for all that they depend on: states of another one are removed. Killed, the
    same call goes on after the last `ROWS_AT_ONCE` texts. Raises TeacherError where the disk has
    too little room.
    """
    make_folder(folder)
    needed = needed_bytes(prefix, list(splits.values()))
    done = {name: _rows_done(folder, name, fingerprint) for name in splits}
    there = sum(file.stat().st_blocks * 512 for file in folder.glob("*.f16"))
    free = shutil.disk_usage(folder).free
    if needed - there > FREE * free:
        raise TeacherError(
            f"the states below the trained layers take {needed / 1e9:.1f} GB, and "
            f"{free / 1e9:.1f} GB are free on the disk of {folder}: free some, lower "
            f"teacher.max_length, or {REMEDY}"
        )
    say(
        f"states below the trained layers ({len(prefix.frozen)} frozen): {needed / 1e6:,.0f} MB in "
        f"{folder.name} while the teacher trains"
    )
    total = sum(map(len, splits.values()))
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    nn.Module.to(prefix.model, device)
    found = {}
    with progress("frozen layers", total, "texts", done=sum(done.values())) as advance:
        for name, encoded in splits.items():
            shape = (len(encoded.tokens.ids), prefix.hidden_size)
            path = folder / f"{name}.f16"
            values = np.memmap(path, np.float16, "r+" if path.exists() else "w+", shape=shape)
            for start in range(done[name], len(encoded), ROWS_AT_ONCE):
                rows = np.arange(start, min(start + ROWS_AT_ONCE, len(encoded)))
                lengths = encoded.tokens.lengths[rows]
                for chosen in sorted_batches(lengths, TOKENS_PER_BATCH):
                    inputs = batch(encoded, rows[chosen], padding)
                    with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
                        states = prefix.compute(
                            {key: value.to(device) for key, value in inputs.items()}
                        )
                    real = inputs["attention_mask"].bool()  # [batch, length]
                    flat = states.to(torch.float16).cpu()[real].numpy()  # [tokens, hidden]
                    _scatter(values, flat, encoded, rows[chosen])
                    advance(len(chosen))
                values.flush()
                write_json(
                    folder / f"{name}.json", {"fingerprint": fingerprint, "rows": int(rows[-1]) + 1}
                )
            found[name] = States(values, encoded.tokens.offsets)
    return found


def _rows_done(folder: Path, name: str, fingerprint: str) -> int:
    """Return how many texts have their states in `folder`; those of other settings are removed."""
    try:
        found = read_json(folder / f"{name}.json")
        if found["fingerprint"] == fingerprint and (folder / f"{name}.f16").exists():
            return int(found["rows"])
    except (UserError, KeyError, TypeError):
        pass
    (folder / f"{name}.json").unlink(missing_ok=True)
    (folder / f"{name}.f16").unlink(missing_ok=True)
    return 0


def _scatter(values: Halves, flat: Halves, encoded: Encoded, rows: Ints) -> None:
    """Write the states of `rows`, one text after the other in `flat`, to their places."""
    at = 0
    for row in rows:
        start, end = encoded.tokens.offsets[row], encoded.tokens.offsets[row + 1]
        values[start:end] = flat[at : at + end - start]
        at += end - start
