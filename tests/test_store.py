"""Files are written whole or not at all, and a stamp tells its output from another's."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from bert_kd.errors import UserError
from bert_kd.store import (
    Stamp,
    fingerprint,
    fingerprint_files,
    read_json,
    write_json,
    write_text,
    writing,
    writing_folder,
)


def leftovers(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir() if path.name.startswith(".")]


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path):
    path = tmp_path / "a.txt"
    write_text(path, "old")
    with pytest.raises(RuntimeError), writing(path) as aside:
        aside.write_text("half")
        raise RuntimeError
    assert path.read_text() == "old" and not leftovers(tmp_path)


def test_nobody_sees_a_part_of_a_file(tmp_path: Path):
    path = tmp_path / "a.txt"
    with writing(path) as aside:
        aside.write_text("new")
        assert not path.exists() and aside.parent == tmp_path
    assert path.read_text() == "new" and not leftovers(tmp_path)


def test_a_full_disk_is_said_in_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    write_text(tmp_path / "a.txt", "old")
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match="no space left on the disk of"):
        write_text(tmp_path / "a.txt", "new")
    with pytest.raises(UserError, match="no space left"), writing_folder(tmp_path / "f") as aside:
        (aside / "x").write_text("x")
    assert (tmp_path / "a.txt").read_text() == "old" and not leftovers(tmp_path)


def test_other_errors_of_the_system_are_not_hidden(tmp_path: Path):
    with pytest.raises(PermissionError), writing(tmp_path / "a") as aside:
        aside.write_text("x")
        raise PermissionError(errno.EACCES, "no")
    with pytest.raises(FileNotFoundError), writing(tmp_path / "a"):
        (tmp_path / "other").read_text()


def test_a_folder_is_replaced_as_a_whole(tmp_path: Path):
    target = tmp_path / "model"
    with writing_folder(target) as aside:
        (aside / "old").write_text("1")
    with writing_folder(target) as aside:
        (aside / "new").write_text("2")
    assert [path.name for path in target.iterdir()] == ["new"] and not leftovers(tmp_path)
    with pytest.raises(RuntimeError), writing_folder(target) as aside:
        (aside / "half").write_text("3")
        raise RuntimeError
    assert [path.name for path in target.iterdir()] == ["new"] and not leftovers(tmp_path)


def test_json_holds_no_nan_and_damage_is_named(tmp_path: Path):
    path = tmp_path / "a.json"
    write_json(path, {"a": float("nan"), "b": [float("inf"), 1.5], "c": Path("x/y"), "d": "ß"})
    assert read_json(path) == {"a": None, "b": [None, 1.5], "c": "x/y", "d": "ß"}
    path.write_text("{")
    with pytest.raises(UserError, match=r"a\.json is damaged"):
        read_json(path)
    with pytest.raises(UserError, match=r"b\.json is missing"):
        read_json(tmp_path / "b.json")


def test_fingerprints_go_by_content(tmp_path: Path):
    assert fingerprint({"a": 1, "b": 2}) == fingerprint({"b": 2, "a": 1}) != fingerprint({"a": 1})
    (tmp_path / "a").write_text("x")
    (tmp_path / "b").write_text("y")
    both = [tmp_path / "a", tmp_path / "b"]
    first = fingerprint_files(both)
    os.utime(tmp_path / "a", (0, 0))
    assert fingerprint_files(both) == first != fingerprint_files(both[::-1])
    # Where one file ends and the next begins matters.
    (tmp_path / "a").write_text("xy")
    (tmp_path / "b").write_text("")
    assert fingerprint_files(both) != first


def test_stamps_differ_by_identity_and_inputs(tmp_path: Path):
    made = Stamp("s", {"run": "a", "x": {"k": 1}, "y": 2}, {"x": {"k": 1}}, {"in": "f"})
    made.write(tmp_path)
    found = Stamp.read(tmp_path)
    assert found == made and not made.differences(found)
    moved = Stamp("s", {"run": "b", "x": {"k": 1}, "y": 9}, {"x": {"k": 1}}, {"in": "f"})
    assert not moved.differences(found) and moved.fingerprint == made.fingerprint
    wanted = Stamp("s", {"run": "a"}, {"x": {"k": 3}}, {"in": "f"})
    assert wanted.differences(found) == ["x.k: wanted 3, made with 1"]
    assert wanted.fingerprint != made.fingerprint
    other = Stamp("s", {"run": "a"}, {"x": {"k": 1}}, {"in": "g"})
    assert other.differences(found) == ["inputs.in: wanted 'g', made with 'f'"]
    assert Stamp.read(tmp_path / "nowhere") is None
    write_json(tmp_path / "stage.json", {"stage": "s", "colour": "red"})
    with pytest.raises(UserError, match="damaged or of another version"):
        Stamp.read(tmp_path)


def test_a_place_that_cannot_be_written_to_is_named(tmp_path: Path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(UserError, match="cannot be made .* choose another place"):
        write_text(tmp_path / "file" / "a.txt", "x")


@pytest.mark.parametrize("write", [writing, writing_folder])
def test_a_place_that_takes_no_files_is_refused_before_any_work(write, tmp_path: Path):
    for path in (Path("/proc/a"), tmp_path / ("a" * 245), tmp_path / ("a" * 300)):
        with pytest.raises(UserError, match="cannot be written .*: choose another name or place"):
            with write(path):
                pytest.fail("begun")
    assert not list(tmp_path.iterdir())


def test_a_folder_that_may_not_be_written_to_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def refuse(self: Path, *_: object, **__: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", str(self))

    monkeypatch.setattr(Path, "touch", refuse)  # tests may run as root, which may write anywhere
    with pytest.raises(UserError, match=r"a\.txt cannot be written \(Permission denied\)"):
        write_text(tmp_path / "a.txt", "x")


def test_a_folder_in_the_place_of_a_file_is_named(tmp_path: Path):
    (tmp_path / "a").mkdir()
    with pytest.raises(UserError, match=r"a cannot be written \(Is a directory\)"):
        write_text(tmp_path / "a", "x")
    assert not leftovers(tmp_path)


def test_a_full_disk_is_recognised_in_words_too(tmp_path: Path):
    with pytest.raises(UserError, match="no space left"), writing(tmp_path / "a") as aside:
        aside.write_text("x")
        raise RuntimeError("I/O error: No space left on device (os error 28)")


def test_what_killed_writers_left_is_swept_away_once_it_is_old(tmp_path: Path):
    old, young, other = (
        tmp_path / ".a.txt.12345678.tmp",
        tmp_path / ".a.txt.87654321.tmp",
        tmp_path / ".b.txt.12345678.tmp",
    )
    for path in (old, young, other):
        path.write_text("x")
        os.utime(path, (0, 0))
    os.utime(young)
    write_text(tmp_path / "a.txt", "x")
    assert not old.exists() and young.exists() and other.exists()
