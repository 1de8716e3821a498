"""The inference benchmark from texts to the document, with models of a handful of units."""

from __future__ import annotations

import json
import os

import inference
import inference_make
import inference_parts
import inference_systems
import numpy as np
import pytest
import speed_docs
import speed_runs
from inference_systems import Spec

from bert_kd.evaluate.speed import Speed
from bert_kd.runtime.native import engine as native
from bert_kd.store import read_json, write_json

SMALL = {"layers": 1, "hidden": 16, "heads": 2, "inner": 32}
TEXTS = ["where is my parcel", "refund", "the lid of the pan broke and I want another one"] * 2


@pytest.fixture(scope="module")
def bundled() -> speed_runs.Labelled:
    found = speed_runs.read_split(speed_runs.HELPDESK, "train")
    return speed_runs.Labelled(found.texts[:64], found.labels[:64])


@pytest.fixture(scope="module")
def berts(tmp_path_factory, tiny_bert):
    """A BERT in torch and ONNX Runtime, fp32 and int8."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(inference_make, "SHAPES", {"BERT-base": SMALL})
        folder = tmp_path_factory.mktemp("berts") / "BERT-base"
        return inference_make.make_bert("BERT-base", folder, str(tiny_bert), 3)


@pytest.fixture(scope="module")
def students(tmp_path_factory, tiny_bert, bundled):
    folder = tmp_path_factory.mktemp("students")
    return inference_make.make_student(8, folder, str(tiny_bert), bundled, TEXTS)


def test_a_bert_answers_the_same_in_every_runtime(berts):
    torch_answers, *others = (
        inference_systems.open_system(spec, 1)(TEXTS) for spec in berts.values()
    )
    assert torch_answers.shape == (6, 3)
    np.testing.assert_allclose(torch_answers.sum(axis=1), 1, atol=1e-5)
    np.testing.assert_allclose(torch_answers[:3], torch_answers[3:], atol=1e-6)
    np.testing.assert_allclose(torch_answers, others[0], atol=1e-5)
    np.testing.assert_allclose(torch_answers, others[1], atol=0.05)


def test_a_student_answers_the_same_in_every_runtime(students):
    names = list(students)
    assert names[0] == "H = 8, torch" and "H = 8, ONNX Runtime int8" in names
    assert ("H = 8, native int8" in names) == (native.missing() is None)
    answers = [inference_systems.open_system(spec, 1)(TEXTS) for spec in students.values()]
    for found in answers[1:]:
        np.testing.assert_allclose(found, answers[0], atol=1e-2)


def test_a_student_is_taken_out_of_its_bundle(students, tmp_path):
    bundle = students["H = 8, ONNX Runtime fp32"].path
    taken = inference_make.take_student(bundle, tmp_path / "taken", TEXTS)
    assert list(taken) == list(students)
    mine = inference_systems.open_system(taken["H = 8, torch"], 1)(TEXTS)
    theirs = inference_systems.open_system(students["H = 8, torch"], 1)(TEXTS)
    np.testing.assert_array_equal(mine, theirs)


def test_what_is_made_is_made_once(students, tiny_bert, bundled, monkeypatch):
    monkeypatch.setattr(inference_make, "save_student", lambda *given: pytest.fail("made again"))
    monkeypatch.setattr(inference_make, "export_bundle", lambda *given: pytest.fail("made again"))
    folder = students["H = 8, torch"].path.parent.parent
    assert inference_make.make_student(8, folder, str(tiny_bert), bundled, TEXTS) == students


def test_a_spec_survives_its_json(tmp_path):
    spec = Spec("native", tmp_path / "a b")
    assert Spec.from_json(spec.to_json()) == spec


def test_long_texts_are_joined():
    assert inference.joined(["a", "b", "c", "d", "e"], 2) == ["a b", "c d", "e"]


def test_serving_tells_memory_and_time(students):
    told = inference_systems.serve_once(students["H = 8, ONNX Runtime fp32"], TEXTS)
    assert told["ready_seconds"] > 0 and told["open_seconds"] > 0
    assert told["resident_bytes"] is None or told["resident_bytes"] > 1e6


class FoundSpeeds:
    """Stands for `Timings`: a slow system answered few texts one by one."""

    rate = dict.fromkeys(("slow", "fast"))

    def speed(self, name: str, reference: str) -> Speed:
        return Speed(
            p50=5.0,
            p95=6.0,
            p99=7.0,
            texts_per_second=100.0,
            single_texts=inference.P99_TEXTS - (name == "slow"),
            bulk_texts=128 if name == "slow" else 2048,
            rounds=5,
            reference=reference,
            times_faster=3.0,
            times_throughput=4.0,
        )


def test_it_is_told_how_many_texts_stand_behind_a_speed(monkeypatch):
    case = inference.Case("short", 1, TEXTS)
    monkeypatch.setattr(inference, "time_systems", lambda *given, **more: FoundSpeeds())
    options = inference.parse([])
    rows = inference.measure_case(case, {}, options, 1.0)

    def value(system: str, metric: str) -> float | None:
        return speed_runs.value_of(rows, system, f"short.threads1.{metric}")

    assert [value(name, "single_texts") for name in ("slow", "fast")] == [99, 100]
    assert [value(name, "bulk_texts") for name in ("slow", "fast")] == [128, 2048]
    assert [value(name, "latency_p99_us") for name in ("slow", "fast")] == [None, 7.0]


@pytest.mark.parametrize("threads", [1, 2])
def test_a_case_keeps_every_library_to_its_threads(threads, monkeypatch):
    import threadpoolctl
    import torch

    seen = {}

    def look(*given: object, **more: object) -> FoundSpeeds:
        pools = threadpoolctl.threadpool_info()
        seen["blas"] = {pool["num_threads"] for pool in pools if pool["user_api"] == "blas"}
        seen["torch"] = torch.get_num_threads()
        seen["tokenizers"] = os.environ["TOKENIZERS_PARALLELISM"]
        return FoundSpeeds()

    monkeypatch.setattr(speed_runs, "_tokenizing_pool", lambda count: count)
    monkeypatch.setattr(inference, "time_systems", look)
    with threadpoolctl.threadpool_limits(3, user_api="blas"), speed_runs.torch_threads(3):
        inference.measure_case(
            inference.Case("short", threads, TEXTS), {}, inference.parse([]), 1.0
        )
    tokenizing = {1: "false", 2: "true"}[threads]
    assert seen == {"blas": {threads}, "torch": threads, "tokenizers": tokenizing}


def test_threads_that_tokenizers_cannot_keep_to_are_refused(capsys):
    assert inference.parse(["--threads", "1", "4"]).threads == [1, 4]
    with pytest.raises(SystemExit):
        inference.parse(["--threads", "1", "2", "4"])
    assert "1 and one other number" in capsys.readouterr().err


def test_processes_take_turns_and_tokenize_in_one_thread(monkeypatch):
    begun = []

    def run_alone(script: str, spec: str, given: str) -> dict[str, float | None]:
        begun.append(json.loads(spec)["path"])
        assert os.environ["TOKENIZERS_PARALLELISM"] == "false"
        return {"ready_seconds": float(len(begun)), "resident_bytes": None}

    monkeypatch.setattr(inference, "run_alone", run_alone)
    specs = {name: Spec("fasttext", inference_make.Path(name)) for name in "ab"}
    rows = inference.measure_processes(specs, TEXTS, 3)
    assert begun == [*"ab", *"ab", *"ba", *"ab"]  # first a warm-up, which is not counted
    assert speed_runs.value_of(rows, "a", "ready_seconds") == 6.0  # of 3, 6, 7
    assert speed_runs.value_of(rows, "a", "resident_bytes") is None


@pytest.mark.skipif(native.missing() is not None, reason="needs the native runtime")
def test_parts_of_an_answer_are_differences_within_rounds(students, monkeypatch):
    asked = []
    # The machine is twice as slow in the second round, and much faster in the third.
    pace = np.array([1.0, 2.0, 0.1])
    takes = {"whole": 10.0, "tokenizing": 3.0, "kernel": 8.0, "multiply_adds": 6.0, "reading": 5.0}

    def interleaved(turns, rounds, **more):
        asked.append(set(turns))
        assert os.environ["TOKENIZERS_PARALLELISM"] == "false"
        found = {}
        for name, turn in turns.items():
            taken = turn()
            assert (taken > 0).all() and len(taken) == (1 if "bulk" in name else len(TEXTS))
            found[name] = [np.full(len(taken), takes[name.partition(".")[2]]) * now for now in pace]
            found[name][0][len(TEXTS) - 1 :] = 1e6  # the last text was interrupted
        return found

    monkeypatch.setattr(inference_parts, "interleaved", interleaved)
    rows = inference_parts.measure_parts(students, TEXTS, 3)
    parts = {"whole", "tokenizing", "kernel"}
    expected = {f"bulk_us.{part}" for part in parts | {"multiply_adds"}}
    assert asked == [expected | {f"single_us.{part}" for part in parts | {"reading"}}]

    def value(metric: str) -> float | None:
        return speed_runs.value_of(rows, "H = 8, native int8", metric)

    assert value("bulk_us.whole") == 10 and value("single_us.kernel") == 8
    assert value("bulk_us.rest") == 2 and value("single_us.rest") == 3
    for manner in ("bulk_us", "single_us"):
        assert value(f"{manner}.outside") == -1  # as it is: the parts cost more than the whole
        assert value(f"{manner}.outside_low") == -2
        assert value(f"{manner}.outside_high") == pytest.approx(-0.1)
    assert value("recurrent_bytes") == 4 * 8**2


def inference_json(rows: list, **config: object) -> dict:
    """Return what the benchmark writes, of one short case in one thread."""
    usual = {"set": "sst2", "weights": "random", "rounds": 5, "systems": {"slow": {}, "fast": {}}}
    return {"rows": rows, "config": usual | {"characters": {"short.threads1": 100.0}} | config}


def row(system: str, metric: str, value: float, ratio: float | None = None) -> dict:
    return speed_runs.fact_row(system, metric, value) | {"ratio": ratio}


def speed(system: str, p50: float, ratio: float, timed: tuple[int, int] | None) -> list[dict]:
    start = "short.threads1"
    rows = [
        row(system, f"{start}.latency_p50_us", p50, ratio),
        row(system, f"{start}.latency_p99_us", 3 * p50),
        row(system, f"{start}.texts_per_second", 500.0, 2 * ratio),
    ]
    if timed is not None:
        for metric, count in zip(("single_texts", "bulk_texts"), timed, strict=True):
            rows.append(row(system, f"{start}.{metric}", count))
    return rows


def page_of(found: dict) -> str:
    return "\n".join(speed_docs.inference(found))


def test_the_page_tells_what_a_ratio_and_a_p99_stand_for():
    rows = speed("slow", 100.0, 1.0, (80, 128)) + speed("fast", 10.0, 6.0, (1280, 2048))
    rows[1]["value"] = None  # the 99th percentile of 80
    page = page_of(inference_json(rows, threads_of=["model", "tokenizing", "BLAS"]))
    assert "| slow | 100 µs | – | 1.00× | 500 | 2.00× | 80 / 128 |" in page
    assert "| fast | 10 µs | 30 µs | 6.00× | 500 | 12.0× | 1,280 / 2,048 |" in page
    assert "p99 | times as fast, same texts |" in page and "not the quotient" in page
    assert "Threads are those of model, tokenizing and BLAS." in page


def test_the_page_says_what_an_older_file_lacks():
    rows = speed("slow", 100.0, 1.0, None) + speed("fast", 10.0, 6.0, None)
    rows += [row("peak int8", "operations_per_second", 1e9), row("slow", "ready_seconds", 1.0)]
    rows += [row("fast", "operations_per_text", 1e5), row("x", "H = 8.tokenizing_us", 1.0)]
    page = page_of(inference_json(rows))
    assert "| fast | 10 µs | – | 6.00× | 500 | 12.0× | – |" in page
    assert "`tokenizers` cut lists of texts on all cores" in page
    assert "minutes apart" in page and "| in bulk |" not in page
    assert "not in turns" in page


def test_what_is_outside_is_shown_as_it_is():
    name = "H = 8, native int8"
    parts = {"whole": 5.0, "tokenizing": 1.25, "kernel": 4.0, "rest": 1.5, "outside": -0.26}
    parts |= {"outside_low": -1.0, "outside_high": 0.5}
    rows = [row(name, f"bulk_us.{part}", value) for part, value in parts.items()]
    rows += [row(name, f"single_us.{part}", 2 * value) for part, value in parts.items()]
    rows += [row(name, "bulk_us.multiply_adds", 2.5), row(name, "single_us.reading", 4.0)]
    rows += [row(name, "recurrent_bytes", 256), row(name, "ready_seconds", 1.0)]
    page = page_of(inference_json(rows, process_rounds=3))
    assert f"| {name} | 5.0 | 1.2 | 2.5 | 1.5 | −0.3 [−1.0, 0.5] |" in page
    assert f"| {name} | 10.0 | 2.5 | 4.0 | 3.0 | −0.5 [−2.0, 1.0] | 256 B |" in page
    assert "3 rounds, after one that is not counted" in page and "minutes apart" not in page


def test_the_page_tells_threads_of_training_and_caching():
    machine = {"threads": 2}
    assert speed_docs.threads({"machine": {"threads": 1}}) == "1 thread"
    sizes = {"h8": {"vocabulary": 10, "embedding": 4, "tokens_mean": 5.0}}
    config = {"set": "sst2", "rows": 64, "batch_size": 32, "sizes": sizes, "epochs": 1, "seeds": 2}
    config |= {"texts": 64, "tokens_mean": 5.0, "model": "tiny", "device": "cpu"}
    rows = [row("a", "h8.examples_per_second", 1.0, 1.0), row("a", "deviation_of_logits", 1.0)]
    found = {"rows": rows, "config": config, "machine": machine}
    accuracy = found | {"rows": []}
    for section, given in (
        (speed_docs.training, found),
        (speed_docs.training_accuracy, accuracy),
        (speed_docs.caching, found),
        (speed_docs.caching_freezing, found),
    ):
        assert ", 2 threads" in "\n".join(section(given))
    page = "\n".join(speed_docs.training_accuracy(accuracy))
    assert "seconds" not in page  # which that run had not timed alike
    accuracy["config"]["precision"] = {"ordinary loop": "fp32", "the package's loop": "bf16"}
    page = "\n".join(speed_docs.training_accuracy(accuracy))
    assert (
        "seconds, of the whole" in page
        and "ordinary loop in fp32, the package's loop in bf16." in page
    )


def test_the_page_can_be_written_from_the_published_file():
    found = read_json(speed_runs.REPOSITORY / "benchmarks" / "results" / "inference.json")
    page = page_of(found)
    assert all(f"| {name} |" in page for name in found["config"]["systems"])
    assert "### Where the time goes" in page


@pytest.mark.slow
def test_it_runs_to_the_document(berts, students, tiny_bert, tmp_path, monkeypatch):
    native_ones = {name: spec for name, spec in students.items() if "native" in name}
    monkeypatch.setattr(inference, "make_systems", lambda *given: berts | students)
    whole = inference.measure_processes
    monkeypatch.setattr(
        inference,
        "measure_processes",
        lambda specs, texts, rounds: whole(dict(list(native_ones.items())[:1]), texts, 1),
    )
    monkeypatch.setattr(inference, "FITTED_ROWS", 200)
    few = ["--set", "helpdesk", "--model", str(tiny_bert), "--rounds", "1", "--minutes", "0.01"]
    few += ["--single-texts", "2", "--bulk-texts", "16", "--threads", "1"]
    *_, found = inference.measure(inference.parse(few))
    rows = found["rows"]
    for name in found["config"]["systems"]:
        assert speed_runs.value_of(rows, name, "short.threads1.texts_per_second") > 0
        assert speed_runs.value_of(rows, name, "long.threads1.latency_p50_us") > 0
        assert speed_runs.value_of(rows, name, "short.threads1.single_texts") == 2
        assert speed_runs.value_of(rows, name, "short.threads1.bulk_texts") == 16
    if native_ones:
        assert speed_runs.value_of(rows, "H = 8, native int8", "share_of_peak") > 0
        assert speed_runs.value_of(rows, "tokenizers", "H = 8.tokenizing_us") > 0
        assert speed_runs.value_of(rows, "H = 8, native int8", "single_us.whole") > 0
        faster = speed_runs.value_of(rows, "H = 8, native int8", "short.threads1.times_bulk")
        assert faster is not None
    write_json(tmp_path / "inference.json", found)
    monkeypatch.setattr(
        speed_docs,
        "GOALS",
        {"BERT-base, torch": {"H = 8": (2.0, 1e9)}, "nothing": {"H = 8": (1, 1)}},
    )
    speed_docs.write_docs(tmp_path, tmp_path / "docs" / "speed.md")
    page = (tmp_path / "docs" / "speed.md").read_text(encoding="utf-8")
    assert "### Short texts, 1 thread\n" in page
    if native_ones:
        assert "| H = 8 against BERT-base, torch |" in page and "| no |" in page
        assert "| batch 1 | whole |" in page
    assert "1 round, after one" in page
    assert "BERT-base, torch" in (tmp_path / "docs" / "speed" / "inference.svg").read_text()
