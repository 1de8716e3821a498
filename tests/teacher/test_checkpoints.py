"""Which checkpoint is gone on from."""

from __future__ import annotations

import json

from bert_kd.teacher.checkpoints import last_whole, mark_complete, prepare_folder


def write_checkpoint(folder, step, whole=True):
    place = folder / f"checkpoint-{step}"
    place.mkdir()
    (place / "model.safetensors").write_bytes(b"weights")
    (place / "trainer_state.json").write_text(json.dumps({"global_step": step}))
    if whole:
        mark_complete(place)
    return place


def test_the_newest_whole_checkpoint_counts(tmp_path):
    folder = tmp_path / "checkpoints"
    prepare_folder(folder, "one")
    assert last_whole(folder) is None
    for step in (9, 10, 100):
        write_checkpoint(folder, step)
    assert last_whole(folder).step == 100


def test_half_written_ones_are_passed_over_and_removed(tmp_path):
    folder = tmp_path / "checkpoints"
    prepare_folder(folder, "one")
    write_checkpoint(folder, 1)
    unfinished = write_checkpoint(folder, 2, whole=False)
    cut_off = write_checkpoint(folder, 3)
    (cut_off / "model.safetensors").write_bytes(b"wei")
    assert last_whole(folder).step == 1
    assert not unfinished.exists() and not cut_off.exists()


def test_checkpoints_of_other_settings_are_set_aside(tmp_path):
    folder = tmp_path / "checkpoints"
    prepare_folder(folder, "one")
    write_checkpoint(folder, 1)
    prepare_folder(folder, "one")
    assert last_whole(folder).step == 1
    prepare_folder(folder, "two")
    assert last_whole(folder) is None
    assert (tmp_path / "checkpoints.one.old" / "checkpoint-1").exists()
    write_checkpoint(folder, 2)
    prepare_folder(folder, "one")
    assert last_whole(folder).step == 1 and not (tmp_path / "checkpoints.one.old").exists()
    assert (tmp_path / "checkpoints.two.old" / "checkpoint-2").exists()


def test_a_folder_without_a_checkpoint_is_not_kept(tmp_path):
    folder = tmp_path / "checkpoints"
    folder.mkdir()
    prepare_folder(folder, "one")
    prepare_folder(folder, "two")
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoints"]
