"""A tokenizer of plain words with a chat template, and rows on disk."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from actors.data.tokenizer import Tokenizer, load_tokenizer
from tests.tiny_models import make_tiny_tokenizer


@pytest.fixture(scope="session")
def tokenizer_folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("tokenizer")
    make_tiny_tokenizer(folder)
    return str(folder)


@pytest.fixture(scope="session")
def tokenizer(tokenizer_folder: str) -> Tokenizer:
    return load_tokenizer(tokenizer_folder)


@pytest.fixture
def write_file(tmp_path: Path) -> Callable[[str, list[dict[str, Any]]], str]:
    def write(name: str, rows: list[dict[str, Any]]) -> str:
        path = tmp_path / name
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
        return str(path)

    return write


@pytest.fixture
def write_rows(write_file: Callable[[str, list[dict[str, Any]]], str]) -> Callable[[list[dict[str, Any]]], str]:
    return lambda rows: write_file("rows.jsonl", rows)
