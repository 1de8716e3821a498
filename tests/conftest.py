"""What many rooms' tests share: a one-layer BERT from a config, a tiny run of the whole line."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

import pytest

from bert_kd.config import Config
from bert_kd.config_file import load_config

REPOSITORY = Path(__file__).parents[1]
CONFIGS = REPOSITORY / "scripts" / "configs"
HELPDESK = REPOSITORY / "data" / "helpdesk"


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    """Keep torch to one thread: these models are too small to share, and results must not vary."""
    import torch

    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def tiny_bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a one-layer BERT from a config; its WordPiece has the bundled data's words."""
    import torch
    from tokenizers import Tokenizer, normalizers, pre_tokenizers, processors
    from tokenizers.models import WordPiece
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    text = (HELPDESK / "train.tsv").read_text(encoding="utf-8").lower()
    words = [word for word, count in Counter(re.findall(r"[a-z]+", text)).items() if count > 2]
    letters = [chr(code) for code in range(33, 127) if not chr(code).isupper()]
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    pieces = dict.fromkeys([*special, *letters, *("##" + letter for letter in letters), *words])
    vocabulary = {piece: index for index, piece in enumerate(pieces)}
    tokenizer = Tokenizer(WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token="[UNK]",
        pad_token="[PAD]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
    )
    torch.manual_seed(0)
    shape = BertConfig(
        vocab_size=len(vocabulary),
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=64,
    )
    folder = tmp_path_factory.mktemp("tiny-bert")
    BertModel(shape).save_pretrained(folder)
    fast.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_overrides(tiny_bert: Path) -> list[str]:
    """What `tiny.toml` needs to be told here."""
    return [f"teacher.model={tiny_bert}"]


@pytest.fixture(scope="session")
def tiny_run(tmp_path_factory: pytest.TempPathFactory, tiny_overrides: list[str]) -> Config:
    """The configuration of a finished run of the tiny line, 01 to 06. To be read, not changed."""
    from bert_kd.stages import run_stages

    folder = tmp_path_factory.mktemp("runs") / "tiny"
    config = load_config(CONFIGS / "tiny.toml", [*tiny_overrides, f"run={folder}"])
    run_stages(config)
    return config
