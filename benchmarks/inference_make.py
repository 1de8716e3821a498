"""What the inference benchmark measures, made on disk: BERTs of known shapes with random weights,
students of random weights (or one out of a bundle), a fastText model.

Speed does not depend on what the weights are. What is made lies in a folder named by all that it
is made from, the packages and the exporter's code among it: what is there is taken as it is, and
what anything else would make is made beside it.
"""

from __future__ import annotations

import logging
import shutil
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from inference_systems import LONGEST, Spec
from speed_runs import REPOSITORY, Labelled
from torch import Tensor, nn

from bert_kd.config import ExportConfig, StudentConfig
from bert_kd.errors import BundleError
from bert_kd.progress import say
from bert_kd.runtime.bundle import TOKENIZER, WEIGHTS, read_bundle
from bert_kd.runtime.export import export_bundle
from bert_kd.store import fingerprint, fingerprint_files, versions, write_json, writing_folder
from bert_kd.student.model import CONFIG, BiLSTM, Shape, Student, save_student
from bert_kd.student.vocabulary import build_tokenizer
from bert_kd.teacher.base import locate_model
from bert_kd.teacher.model import quiet

SHAPES: Mapping[str, Mapping[str, Any]] = {
    "BERT-base": {},
    "DistilBERT": {"distil": True},
    "MiniLM-L6": {"layers": 6, "hidden": 384, "heads": 12, "inner": 1536},
    "BERT-tiny": {"layers": 2, "hidden": 128, "heads": 2, "inner": 512},
}
"""Sizes of the BERTs, where they are not those of BERT-base."""
PRECISIONS = ("int8", "bf16", "fp32")
FASTTEXT_RATES = (0.1, 0.05, 0.02, 0.01)
"""Tried in turn until one converges; a rate changes nothing of the speed."""
WINNER = 30.0
"""Bias of a random student's first class: it wins by far, so that the check of the export, which is
about labels, has nothing to say against any precision.
"""
CODE = ("bert_kd/student", "bert_kd/runtime")
"""Where the code lies that makes students and bundles; their formats are among it."""


def place_of(folder: Path, *made_from: object) -> Path:
    """Return the place in `folder` of what is made from this, by the packages that are installed
    and by the code that makes students and exports them.
    """
    packages = versions()
    for name in ("onnx", "fasttext-numpy2"):
        with suppress(metadata.PackageNotFoundError):
            packages[name] = metadata.version(name)
    code = [path for room in CODE for path in sorted((REPOSITORY / room).rglob("*.py"))]
    return folder / fingerprint(made_from, packages, fingerprint_files([Path(__file__), *code]))


# --- BERTs -------------------------------------------------------------------------------------


def make_bert(name: str, folder: Path, base: str, classes: int) -> dict[str, Spec]:
    """Make a BERT of this shape, with the WordPiece of the model `base`, in torch and in ONNX
    Runtime (its graph optimised), fp32 and int8.
    """
    model = Path(locate_model(base))
    words = fingerprint_files([model / TOKENIZER])
    folder = place_of(folder, name, SHAPES[name], words, classes)
    if not folder.exists():
        say(f"making {name}")
        with writing_folder(folder) as aside, quiet(), _silence():
            _write_bert(name, aside, model, classes)
    return {
        f"{name}, torch": Spec("bert-torch", folder),
        f"{name}, ONNX Runtime fp32": Spec("bert-onnx", folder / "fp32.onnx"),
        f"{name}, ONNX Runtime int8": Spec("bert-onnx", folder / "int8.onnx"),
    }


def _write_bert(name: str, folder: Path, base: Path, classes: int) -> None:
    from onnx import TensorProto
    from onnxruntime.quantization import QuantType, quantize_dynamic
    from onnxruntime.transformers.optimizer import optimize_model
    from tokenizers import Tokenizer

    shutil.copyfile(base / TOKENIZER, folder / TOKENIZER)
    vocabulary = Tokenizer.from_file(str(folder / TOKENIZER)).get_vocab_size()
    torch.manual_seed(17)
    model, heads, hidden = _bert(SHAPES[name], vocabulary, classes)
    model.save_pretrained(folder)
    model.set_attn_implementation("eager")  # what the optimiser knows to fuse
    plain = folder / "plain.onnx"
    ids = torch.full((2, 8), 7)
    changing = {0: "batch", 1: "length"}
    torch.onnx.export(
        _Logits(model.eval()),
        (ids, torch.ones_like(ids)),
        plain,
        input_names=["input_ids", "attention_mask"],
        output_names=["logits"],
        dynamic_axes={"input_ids": changing, "attention_mask": changing, "logits": {0: "batch"}},
        opset_version=17,
        dynamo=False,
    )
    fused = optimize_model(
        str(plain), model_type="bert", num_heads=heads, hidden_size=hidden, opt_level=1
    )
    fused.save_model_to_file(str(folder / "fp32.onnx"))
    quantize_dynamic(
        folder / "fp32.onnx",
        folder / "int8.onnx",
        weight_type=QuantType.QInt8,
        extra_options={"DefaultTensorType": TensorProto.FLOAT},
    )
    plain.unlink()


class _Logits(nn.Module):
    """A model that takes ids and mask, and gives logits."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        logits: Tensor = self.model(input_ids=input_ids, attention_mask=attention_mask).logits
        return logits


def _bert(sizes: Mapping[str, Any], vocabulary: int, classes: int) -> tuple[Any, int, int]:
    """Return the model, its attention heads and its hidden size."""
    from transformers import (
        BertConfig,
        BertForSequenceClassification,
        DistilBertConfig,
        DistilBertForSequenceClassification,
    )

    if sizes.get("distil"):
        small = DistilBertConfig(vocab_size=vocabulary, num_labels=classes)
        return DistilBertForSequenceClassification(small), small.n_heads, small.dim
    shape = BertConfig(
        vocab_size=vocabulary,
        num_labels=classes,
        hidden_size=sizes.get("hidden", 768),
        num_hidden_layers=sizes.get("layers", 12),
        num_attention_heads=sizes.get("heads", 12),
        intermediate_size=sizes.get("inner", 3072),
    )
    return BertForSequenceClassification(shape), shape.num_attention_heads, shape.hidden_size


@contextmanager
def _silence() -> Iterator[None]:
    """Keep the notes of exporter, optimiser and quantiser off the terminal."""
    before = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


# --- students ----------------------------------------------------------------------------------


def student_config(hidden: int) -> StudentConfig:
    """Return the package's student of this hidden size, of the size that is next to it."""
    size = "large" if hidden >= 256 else "base" if hidden >= 128 else "nano"
    sizes = {"size": size, "model": {"hidden_size": hidden}}
    return StudentConfig.model_validate({"name": "student", **sizes})


def make_student(
    hidden: int, folder: Path, base: str, texts: Labelled, check: list[str]
) -> dict[str, Spec]:
    """Make a student of random weights with the WordPiece of `base` pruned to `texts`, and its
    bundles, checked on `check`.
    """
    config, words = student_config(hidden), Path(locate_model(base)) / TOKENIZER
    vocabulary = config.vocabulary.model_copy(update={"max_length": LONGEST})
    sizes = config.model_dump(mode="json"), vocabulary.max_length
    learnt = fingerprint_files([words]), texts.texts, texts.classes
    folder = place_of(folder, sizes, learnt, check)
    source = folder / "student"
    if not source.exists():
        tokenizer = build_tokenizer(vocabulary, texts.texts, words)
        shape = Shape(
            vocabulary=tokenizer.get_vocab_size(),
            embedding=config.embedding.size,
            hidden=hidden,
            layers=config.model.layers,
            pooling=config.model.pooling,
            dense=config.model.dense,
            classes=texts.classes,
        )
        torch.manual_seed(17)
        model = BiLSTM(shape).eval()
        with torch.no_grad():
            model.output.bias[0] = WINNER
        labels = tuple(str(label) for label in range(texts.classes))
        with writing_folder(source) as aside:
            save_student(aside, Student(model, tokenizer, labels, f"H = {hidden}"))
    return _bundles(f"H = {hidden}", source, folder, check)


def take_student(bundle: Path, folder: Path, check: list[str]) -> dict[str, Spec]:
    """Take the student out of a bundle, and export it in all precisions that are good enough."""
    facts = read_bundle(bundle)
    told = {"name": facts.name, "labels": list(facts.labels), "shape": dict(facts.shape)}
    content = fingerprint_files([bundle / name for name in (WEIGHTS, TOKENIZER)])
    folder = place_of(folder, told, content, check)
    source = folder / "student"
    if not source.exists():
        with writing_folder(source) as aside:
            for name in (WEIGHTS, TOKENIZER):
                shutil.copyfile(bundle / name, aside / name)
            write_json(aside / CONFIG, told)
    return _bundles(f"H = {facts.shape['hidden']}", source, folder, check)


def _bundles(name: str, source: Path, folder: Path, check: list[str]) -> dict[str, Spec]:
    """Return the student in torch, in ONNX Runtime and in the native runtime, by precision."""
    found = {f"{name}, torch": Spec("student-torch", source)}
    made: dict[str, Callable[[], Path]] = {
        precision: lambda precision=precision: _export(source, folder, check, precision)
        for precision in PRECISIONS
    }
    for precision, make in made.items():
        try:
            bundle = make()
        except BundleError as error:
            say(f"{name} is not measured in {precision}: {error}")
            continue
        if "native" in read_bundle(bundle).runtimes:
            found[f"{name}, native {precision}"] = Spec("native", bundle)
        if precision != "bf16":
            found[f"{name}, ONNX Runtime {precision}"] = Spec("student-onnx", bundle)
    return found


def _export(source: Path, folder: Path, check: list[str], precision: Any) -> Path:
    bundle = folder / precision
    if not bundle.exists():
        onnx: Any = "int8" if precision == "int8" else "fp32"
        export_bundle(source, bundle, check, None, ExportConfig(precision=precision, onnx=onnx))
    return bundle


# --- fastText ----------------------------------------------------------------------------------


def make_fasttext(folder: Path, texts: Labelled) -> dict[str, Spec]:
    """Train fastText on unigrams of `texts`, 100 values a word; nothing where its package is not
    installed.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            import fasttext
        except ImportError:
            say("fastText is not measured: pip install 'bert_kd[bench]'")
            return {}
    folder = place_of(folder, texts.texts, texts.labels.tolist())
    path = folder / "model.bin"
    if not path.exists():
        with writing_folder(folder) as aside:
            lines = zip(texts.labels, texts.texts, strict=True)
            file = aside / "train.txt"
            file.write_text("".join(f"__label__{label} {text}\n" for label, text in lines), "utf-8")
            for rate in FASTTEXT_RATES:
                settings: Any = {"lr": rate, "minCount": 1, "epoch": 5, "dim": 100, "wordNgrams": 1}
                try:
                    model = fasttext.train_supervised(str(file), thread=1, verbose=0, **settings)
                except RuntimeError as error:
                    if "NaN" not in str(error) or rate == FASTTEXT_RATES[-1]:
                        raise
                    continue  # it diverged, as it does at times
                model.save_model(str(aside / path.name))
                break
    return {"fastText unigrams": Spec("fasttext", path)}


def facts_of(specs: Mapping[str, Spec]) -> dict[str, dict[str, str]]:
    """Return the kinds of the systems, without where they lie."""
    return {name: {"kind": asdict(spec)["kind"]} for name, spec in specs.items()}
