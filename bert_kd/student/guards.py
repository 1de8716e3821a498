"""Losses that this data or these teachers leave empty, refused before any long work.

Here: what can be told from the configuration, the number of classes and the manifests of caches;
stages 01 to 04 all ask. Nothing here loads torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from bert_kd.config import LogitsConfig, StudentConfig
from bert_kd.errors import StudentError
from bert_kd.logits.manifest import read_manifest


def check_loss(
    config: StudentConfig, classes: int, logits: LogitsConfig, caches: Sequence[Path], teachers: int
) -> None:
    """Refuse a loss that so many `classes` or `teachers` leave empty.

    `caches` are those of their answers that are there already. Raises StudentError.
    """
    _check_classes(config, classes)
    if config.loss.feature_weight:
        _check_features(config, logits, caches, teachers)


def _check_classes(config: StudentConfig, classes: int) -> None:
    """Refuse what two classes leave empty of a soft term."""
    loss = config.loss
    if classes > 2 or not loss.soft_weight:
        return
    if loss.standardise:
        raise StudentError(
            f"{config.name}: with two classes a standardised row tells the better class and "
            "nothing more: leave loss.standardise out"
        )
    if loss.soft == "dist":
        raise StudentError(
            f"{config.name}: with two classes a row's correlation is 1 or -1 and teaches nothing: "
            'set loss.soft = "kl", and leave its dist_ keys out'
        )


def _check_features(
    config: StudentConfig, logits: LogitsConfig, caches: Sequence[Path], teachers: int
) -> None:
    """Refuse pooled states that nobody caches."""
    if teachers > 1:
        one = "name one in logits.teachers" if logits.teachers else "set teacher.ensemble = 1"
        raise StudentError(
            f"{config.name}: feature_weight learns from a single teacher, and {teachers} are "
            f"given: set feature_weight = 0, or {one}"
        )
    found = [(folder, read_manifest(folder)) for folder in caches]
    lacking = [folder for folder, manifest in found if manifest and manifest.feature_size is None]
    if logits.teachers:
        if lacking:
            raise StudentError(
                f"{config.name}: feature_weight needs the teacher's features, and {lacking[0]} has "
                "none: set feature_weight = 0, or name in logits.teachers a cache that a run with "
                "logits.features = true has filled"
            )
        return
    if lacking or not (logits.features or found):
        steps = [] if logits.features else ["set logits.features = true"]
        if lacking:
            steps += [f"remove {lacking[0]}", "run cache-logits, which computes all answers again"]
        held = f", and {lacking[0]} has none" if lacking else ""
        raise StudentError(
            f"{config.name}: feature_weight needs the teacher's features{held}: "
            f"{' and '.join(steps) if len(steps) < 3 else ', '.join(steps)}; or set "
            "feature_weight = 0"
        )
