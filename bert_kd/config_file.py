"""Reading a run's configuration: a TOML file, then `section.key=value` overrides.

Precedence: default < file < command line. There is no inheritance, no interpolation and no
environment variable. A `stage.json` that a stage wrote can stand in for the TOML file: it holds the
sections that the stage read.
"""

from __future__ import annotations

import json
import re
import tomllib
import typing
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from bert_kd.config import Config, Section
from bert_kd.errors import ConfigError, nearest


def load_config(path: Path | None = None, overrides: Sequence[str] = ()) -> Config:
    """Read a TOML file (or a stage's `stage.json`), apply `section.key=value` overrides and check
    everything.

    Raises ConfigError, naming the key, the file and the nearest valid key.
    """
    values = _read(path) if path is not None else {}
    where = str(path) if path is not None else "the command line"
    _validate(values, where)
    for override in overrides:
        _apply(values, override)
    return _validate(values, where if not overrides else f"{where} with the overrides")


def _read(path: Path) -> dict[str, Any]:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise ConfigError(f"the config file {path} does not exist") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} cannot be read as a UTF-8 text file: {error}") from None
    try:
        if path.suffix == ".json":
            found = json.loads(text)
            found = found.get("config", found) if isinstance(found, dict) else None
            if not isinstance(found, dict):
                raise ConfigError(f"{path} holds no JSON object: give a TOML file or a stage.json")
            return found
        return tomllib.loads(text)
    except (json.JSONDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"{path}: {error}") from None


def _validate(values: Mapping[str, Any], where: str) -> Config:
    try:
        return Config.model_validate(values)
    except ValidationError as error:
        problems = [_explain(values, item) for item in _telling(error.errors())]
        raise ConfigError(f"{where}: " + "; ".join(problems)) from None


def _telling(errors: Sequence[Any]) -> list[Any]:
    """Return the errors without those that only follow from another one at the same place."""
    return [
        error
        for error in errors
        if error["type"] != "too_short"
        or not any(
            other["loc"][: len(error["loc"])] == error["loc"]
            for other in errors
            if other is not error
        )
    ]


def _explain(values: Mapping[str, Any], item: Any) -> str:
    """Put one pydantic error into words: the key as the user writes it, what is wrong, the nearest
    valid key.
    """
    place = [part for part in item["loc"] if not _is_union_tag(part)]
    key = ".".join(str(part) for part in place)
    if item["type"] == "extra_forbidden":
        section = _section_type(place[:-1])
        known = sorted(section.model_fields) if section else []
        parent = ".".join(str(part) for part in place[:-1])
        return (
            f"unknown key '{key}'{nearest(str(place[-1]), known)}; "
            f"{parent or 'the top level'} has: {', '.join(known)}"
        )
    if key == "students" and item["type"] == "tuple_type":
        return "students is a list of tables: write [[students]] with two brackets"
    if item["type"] == "missing":
        return f"{key} is missing"
    if item["type"] == "value_error":
        message = item["msg"].removeprefix("Value error, ")
        return f"{key}: {message}" if key else message
    return f"{key} = {item['input']!r}: {_reason(item)}"


def _reason(item: Any) -> str:
    """Return what pydantic says of a value; of a choice, with the nearest valid one."""
    if item["type"] == "tuple_type":
        return f"give a list, such as {[item['input']]!r}"
    message = item["msg"].removeprefix("Value error, ")
    reason = f"{message[0].lower()}{message[1:]}"
    if item["type"] != "literal_error":
        return reason
    return reason + nearest(str(item["input"]), re.findall(r"'([^']+)'", item["ctx"]["expected"]))


def _is_union_tag(part: Any) -> bool:
    """Whether pydantic put this part of a place there to name a branch of a union, not a key."""
    return isinstance(part, str) and bool(
        re.search(r"[\[\]()]|^(int|str|float|none|constrained-\w+)$", part)
    )


def _section_type(place: Iterable[Any]) -> type[Section] | None:
    """Return the model that holds the keys at `place`, or None where there is none."""
    section: type[Section] = Config
    for part in place:
        if isinstance(part, int):
            continue
        if part not in section.model_fields:
            return None
        inner = _sections_in(section.model_fields[part].annotation)
        if inner is None:
            return None
        section = inner
    return section


def _sections_in(annotation: Any) -> type[Section] | None:
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return annotation
    for argument in typing.get_args(annotation):
        found = _sections_in(argument)
        if found is not None:
            return found
    return None


def _apply(values: dict[str, Any], override: str) -> None:
    """Set one `section.key=value` in the nested `values`; the value is read by the field's type."""
    key, equals, text = override.partition("=")
    key, parts = key.strip(), key.strip().split(".")
    if not equals or not all(parts):
        raise ConfigError(f"override {override!r}: expected section.key=value")

    section: type[Section] = Config
    place: Any = values
    for depth, part in enumerate(parts[:-1]):
        if isinstance(place, list):
            place = _pick_student(place, part, override)
            continue
        if part not in section.model_fields:
            raise ConfigError(
                f"override {override!r}: unknown key '{part}'{nearest(part, section.model_fields)}"
            )
        inner = _sections_in(section.model_fields[part].annotation)
        if inner is None:
            raise ConfigError(
                f"override {override!r}: '{'.'.join(parts[: depth + 1])}' has no keys below it"
            )
        section = inner
        if part == "students" and part not in place:
            place[part] = [{"name": "base"}]
        place = place.setdefault(part, {})

    last = parts[-1]
    if isinstance(place, list) or last not in section.model_fields:
        known = sorted(section.model_fields)
        raise ConfigError(
            f"override {override!r}: unknown key '{key}'{nearest(last, known)}; "
            f"{'.'.join(parts[:-1]) or 'the top level'} has: {', '.join(known)}"
        )
    place[last] = _read_value(
        section.model_fields[last].rebuild_annotation(), text.strip(), override
    )


def _pick_student(students: list[Any], part: str, override: str) -> Any:
    """Return the entry of `[[students]]` named `part` (or standing at that position)."""
    for student in students:
        if student.get("name") == part:
            return student
    if part.isdecimal() and int(part) < len(students):
        return students[int(part)]
    names = [str(student.get("name")) for student in students]
    raise ConfigError(
        f"override {override!r}: no student is named '{part}'{nearest(part, names)}; "
        f"there are: {', '.join(names)}"
    )


def _read_value(annotation: Any, text: str, override: str) -> Any:
    """Read `text` as a value of the type `annotation`: as it stands first, then as a TOML value."""
    adapter: TypeAdapter[Any] = TypeAdapter(annotation)
    if text == "none":
        try:
            return adapter.validate_python(None)
        except ValidationError:
            pass
    try:
        return adapter.validate_python(text)
    except ValidationError as error:
        first = error
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text
    try:
        adapter.validate_python(value)
    except ValidationError as error:
        reason = _reason((error if value is not text else first).errors()[0])
        raise ConfigError(f"override {override!r}: {reason}") from None
    return value
