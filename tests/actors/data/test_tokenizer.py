"""Tokenizers: what training needs of them, and when two are the same."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tokenizers import processors

from actors.data.tokenizer import (
    Tokenizer,
    difference,
    encode_plain,
    encode_rendered,
    end_token_ids,
    fingerprint,
    load_tokenizer,
    render_chat,
    require_chat_template,
    same_tokenizer,
    start_token_ids,
)
from actors.errors import UserError
from tests.tiny_models import BOS_ID, EOS_ID

Change = Callable[[dict[str, Any]], None]


def changed(folder: str, target: Path, *, config: Change | None = None, tokenizer: Change | None = None) -> str:
    """A copy of a tokenizer's folder with its JSON changed."""
    shutil.copytree(folder, target)
    for name, change in (("tokenizer_config.json", config), ("tokenizer.json", tokenizer)):
        if change is not None:
            content = json.loads((target / name).read_text("utf-8"))
            change(content)
            (target / name).write_text(json.dumps(content), "utf-8")
    return str(target)


def test_a_folder_without_tokenizer_is_told(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=f"model '{tmp_path}': cannot load its tokenizer: "):
        load_tokenizer(str(tmp_path))


def test_a_tokenizer_without_end_token_is_told(tmp_path: Path, tokenizer_folder: str) -> None:
    folder = changed(tokenizer_folder, tmp_path / "a", config=lambda config: config.pop("eos_token"))
    with pytest.raises(UserError, match="its tokenizer has no end token"):
        load_tokenizer(folder)


def test_a_missing_padding_token_is_no_fault(tmp_path: Path, tokenizer_folder: str) -> None:
    folder = changed(tokenizer_folder, tmp_path / "a", config=lambda config: config.pop("pad_token"))
    assert load_tokenizer(folder).pad_token is None


def test_a_missing_chat_template_is_told(tmp_path: Path, tokenizer: Tokenizer, tokenizer_folder: str) -> None:
    require_chat_template(tokenizer, "data.chat_template")
    shutil.copytree(tokenizer_folder, tmp_path / "a")
    (tmp_path / "a" / "chat_template.jinja").unlink()
    with pytest.raises(UserError, match=r"data\.chat_template: .* has no chat template\..*data\.chat_template: false"):
        require_chat_template(load_tokenizer(str(tmp_path / "a")), "data.chat_template")


def test_a_template_that_refuses_is_told_with_the_row(tmp_path: Path, tokenizer_folder: str) -> None:
    shutil.copytree(tokenizer_folder, tmp_path / "a")
    (tmp_path / "a" / "chat_template.jinja").write_text("{{ raise_exception('roles must alternate') }}")
    tokenizer, messages = load_tokenizer(str(tmp_path / "a")), [{"role": "user", "content": "hello"}]
    with pytest.raises(UserError, match=r"file:7: the model's chat template refuses .*: roles must alternate"):
        render_chat(tokenizer, messages, where="file:7", open_answer=True)


def test_end_tokens_come_from_tokenizer_and_generation_config(tmp_path: Path, tokenizer: Tokenizer) -> None:
    assert end_token_ids(str(tmp_path), tokenizer) == (EOS_ID,)
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": 77}))
    assert end_token_ids(str(tmp_path), tokenizer) == (EOS_ID, 77)
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": [5, EOS_ID, 1]}))
    assert end_token_ids(str(tmp_path), tokenizer) == (1, EOS_ID, 5)


def test_start_tokens_are_kept_and_end_tokens_left_to_the_answer(tmp_path: Path, tokenizer_folder: str) -> None:
    tokenizer = load_tokenizer(tokenizer_folder)
    assert start_token_ids(tokenizer) == []
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<bos> $A <eos>", special_tokens=[("<bos>", BOS_ID), ("<eos>", EOS_ID)]
    )
    words = tokenizer.convert_tokens_to_ids(["red", "cat"])
    assert tokenizer("red cat")["input_ids"] == [BOS_ID, *words, EOS_ID]
    assert encode_plain(tokenizer, ["red cat", "cat"]) == [[BOS_ID, *words], [BOS_ID, words[1]]]
    assert encode_rendered(tokenizer, ["red cat"]) == [words]


def test_a_copy_is_the_same_tokenizer(tmp_path: Path, tokenizer: Tokenizer, tokenizer_folder: str) -> None:
    copy = load_tokenizer(changed(tokenizer_folder, tmp_path / "a"))
    assert same_tokenizer(tokenizer, copy)
    assert difference(tokenizer, copy) is None


def test_padding_and_template_do_not_make_another_tokenizer(
    tmp_path: Path, tokenizer: Tokenizer, tokenizer_folder: str
) -> None:
    def change(config: dict[str, Any]) -> None:
        config["pad_token"] = config["eos_token"]

    folder = changed(tokenizer_folder, tmp_path / "a", config=change)
    (tmp_path / "a" / "chat_template.jinja").write_text("{{ messages }}")
    assert same_tokenizer(tokenizer, load_tokenizer(folder))


def swap_cat_and_dog(content: dict[str, Any]) -> None:
    vocabulary = content["model"]["vocab"]
    vocabulary["cat"], vocabulary["dog"] = vocabulary["dog"], vocabulary["cat"]


def drop_last(content: dict[str, Any]) -> None:
    del content["model"]["vocab"]["word127"]


def split_on_spaces_alone(content: dict[str, Any]) -> None:
    content["pre_tokenizer"] = {"type": "WhitespaceSplit"}


def lower_case(content: dict[str, Any]) -> None:
    content["normalizer"] = {"type": "Lowercase"}


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (swap_cat_and_dog, r"token \d+ is 'cat' and 'dog'"),
        (drop_last, r"128 and 127 tokens"),
        (split_on_spaces_alone, r"pre-tokeniser: .* and \{\"type\": \"WhitespaceSplit\"\}"),
        (lower_case, r"normaliser: null and \{\"type\": \"Lowercase\"\}"),
    ],
)
def test_a_difference_is_found_and_named(
    tmp_path: Path, tokenizer: Tokenizer, tokenizer_folder: str, change: Change, expected: str
) -> None:
    other = load_tokenizer(changed(tokenizer_folder, tmp_path / "a", tokenizer=change))
    assert not same_tokenizer(tokenizer, other)
    assert fingerprint(tokenizer) != fingerprint(other)
    with pytest.raises(AssertionError, match=expected):
        raise AssertionError(difference(tokenizer, other))


def test_another_end_token_is_a_difference(tmp_path: Path, tokenizer: Tokenizer, tokenizer_folder: str) -> None:
    def change(config: dict[str, Any]) -> None:
        config["eos_token"] = "<bos>"

    other = load_tokenizer(changed(tokenizer_folder, tmp_path / "a", config=change))
    assert not same_tokenizer(tokenizer, other)
    assert difference(tokenizer, other) == 'end token: "<eos>" and "<bos>"'
