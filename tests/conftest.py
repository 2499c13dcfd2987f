"""Fixtures that several packages' tests share."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, processors

WORDS = ("<unk>", "<s>", "</s>", "<end>", "red", "green", "blue")


@pytest.fixture
def word_tokenizer() -> Tokenizer:
    """A tokenizer of seven tokens as `tokenizers` makes them: `<s>` goes in front of a text, `</s>` behind it."""
    tokenizer = Tokenizer(models.WordLevel({word: id_ for id_, word in enumerate(WORDS)}, unk_token="<unk>"))
    tokenizer.add_special_tokens(["<s>", "</s>", "<end>"])
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)]
    )
    return tokenizer


@pytest.fixture
def make_folder(tmp_path: Path, word_tokenizer: Tokenizer) -> Callable[..., Path]:
    """Writes a Hugging Face folder: tokenizer.json and the JSON files that are given by name."""

    def make(**files: Any) -> Path:
        word_tokenizer.save(str(tmp_path / "tokenizer.json"))
        for name, content in files.items():
            (tmp_path / f"{name}.json").write_text(json.dumps(content), encoding="utf-8")
        return tmp_path

    return make
