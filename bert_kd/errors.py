"""The errors that a user can fix.

Each carries one message that says what is wrong, where, and what to do. `bert_kd.cli` is the one
place that catches `UserError`, prints it and exits with status 2; every other exception is a bug
and keeps its traceback.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """Something that the user can put right; its text says how."""


class ConfigError(UserError):
    """A configuration that cannot be used: unknown key, wrong type, value out of range."""


class DataError(UserError):
    """Input rows that cannot be used: missing column, unknown label, not UTF-8, ragged rows."""


class TeacherError(UserError):
    """A teacher model that cannot be used: not found, layers that can't be split, other labels than
    the data's.
    """


class CacheError(UserError):
    """A logit cache that cannot be used: damaged, incomplete, from another teacher, disk full."""


class StudentError(UserError):
    """A student that cannot be trained or loaded as asked."""


class BundleError(UserError):
    """An exported bundle that cannot be loaded or does not do what was asked."""


class StageError(UserError):
    """A stage whose input is missing or out of date; the message names the stage to run."""


class MissingExtra(UserError):
    """A package of an optional extra is not installed; the message gives the install line."""

    def __init__(self, package: str, extra: str) -> None:
        super().__init__(
            f"this needs the package '{package}', which is not installed: "
            f"pip install 'bert_kd[{extra}]'"
        )
        self.package = package
        self.extra = extra


def nearest(word: str, choices: Iterable[str]) -> str:
    """Return ` (did you mean 'x'?)` for the choice nearest to `word`, or an empty string where none
    is near.
    """
    matches = difflib.get_close_matches(word, list(choices), n=1, cutoff=0.5)
    return f" (did you mean '{matches[0]}'?)" if matches else ""
