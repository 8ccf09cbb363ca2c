"""Answers as text become the tokens that stage `reward` trains on."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from actors.data.prompts import read_prompts
from actors.data.rankings import RankingDataset
from actors.data.reward_reader import RewardReader
from actors.data.tokenizer import Tokenizer, load_tokenizer
from actors.errors import RewardFailed, UserError
from configs.schema.data import PromptDataConfig, RankingDataConfig
from configs.schema.rewards import RewardModelConfig
from tests.tiny_models import make_letter_tokenizer, make_tiny_tokenizer, tiny_config

Write = Callable[[str, list[dict[str, Any]]], str]
CHAT = [
    {"role": "user", "content": "hello"},
    {"role": "assistant", "content": "yes"},
    {"role": "user", "content": "why ?"},
]
DIALOGUE = "\n\nHuman: hello\n\nAssistant: yes\n\nHuman: why ?\n\nAssistant:"
END = {"words": 2, "letters": 1}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    for name, make in (("words", make_tiny_tokenizer), ("letters", make_letter_tokenizer)):
        make(folder / name)
        tiny_config(tied=False).save_pretrained(folder / name)
    return folder


def reader(
    model: Path, path: str, *, chat_template: bool | None = None, overlong: Any = "error", **data: Any
) -> RewardReader:
    config = RewardModelConfig(model=str(model), chat_template=chat_template, overlong=overlong)
    return RewardReader(config, PromptDataConfig(path=path, **data))


@pytest.mark.parametrize("model", ["words", "letters"])
@pytest.mark.parametrize(
    ("prompt", "chat_template", "format"),
    [
        ("what is it ?", True, "prompt"),
        (CHAT, True, "prompt"),
        ("what is it ?", False, "prompt"),
        (DIALOGUE, True, "hh-rlhf"),
        (DIALOGUE, False, "hh-rlhf"),
    ],
)
def test_texts_become_the_tokens_that_the_model_was_trained_on(
    models: Path, write_file: Write, model: str, prompt: Any, chat_template: bool, format: str
) -> None:
    """A cut-off answer is the same without its end token."""
    hh = format == "hh-rlhf"
    answers = ["it is hot", "no"]
    ranked = (
        {name: f"{prompt} {text}" for name, text in zip(("chosen", "rejected"), answers, strict=True)}
        if hh
        else {"prompt": prompt, "chosen": answers[0], "rejected": answers[1]}
    )
    rankings = write_file("rankings.jsonl", [ranked, ranked])
    trained = RankingDataset.load(
        RankingDataConfig(
            path=rankings,
            format="hh-rlhf" if hh else "preference",
            chat_template=chat_template,
            held_out_rows=1,
        ),
        load_tokenizer(str(models / model)),
    ).group(0)
    path = write_file("prompts.jsonl", [{"chosen": f"{prompt} never read"} if hh else {"prompt": prompt}])
    data: dict[str, Any] = {"format": format, "chat_template": chat_template}
    asked = read_prompts(PromptDataConfig(path=path, **data))[1] * 2
    of_model = reader(models / model, path, **data)
    assert of_model.encode(asked, answers, [False, False]) == list(trained.sequences)
    assert {ids[-1] for ids in trained.sequences} == {END[model]}
    cut_off = [ids[:-1] for ids in trained.sequences]
    assert of_model.encode(asked, answers, [True, True]) == cut_off


@pytest.mark.parametrize("answer", ["it is", " it is", "it is \n", ""])
@pytest.mark.parametrize("cut_off", [False, True])
def test_space_that_another_template_wrote_around_an_answer_is_left_out(
    models: Path, write_file: Write, tmp_path: Path, answer: str, cut_off: bool
) -> None:
    """Also with a template that writes spaces of its own: none of what stands behind an answer follows one that was cut off."""
    make_letter_tokenizer(tmp_path / "spaced")
    tiny_config(tied=False).save_pretrained(tmp_path / "spaced")
    template = (
        "{% for m in messages %}{% if m['role'] == 'user' %}<user>{{ m['content'] }}<assistant>"
        "{% else %} {{ m['content'] }} <end>{% endif %}{% endfor %}"
    )
    (tmp_path / "spaced" / "chat_template.jinja").write_text(template)
    path = write_file("prompts.jsonl", [{"prompt": "why"}])
    (found,) = reader(tmp_path / "spaced", path).encode(
        read_prompts(PromptDataConfig(path=path))[1], [answer], [cut_off]
    )
    text = answer.strip()
    expected = f"<user>why<assistant> {text}" if text else "<user>why<assistant>"
    if not cut_off:
        expected = f"<user>why<assistant> {text} <end>"
    assert load_tokenizer(str(tmp_path / "spaced")).decode(found) == expected


def changed(folder: Path, source: Path, **settings: Any) -> Path:
    """A copy whose tokenizer has other settings."""
    tokenizer = load_tokenizer(str(source))
    for name, value in settings.items():
        setattr(tokenizer, name, value)
    tokenizer.save_pretrained(folder)
    tiny_config(tied=False).save_pretrained(folder)
    return folder


def test_text_is_needed_where_tokenizer_or_template_differ(models: Path, tmp_path: Path) -> None:
    policy: Tokenizer = load_tokenizer(str(models / "words"))
    assert reader(models / "words", "unread").why_text(policy) is None
    assert reader(models / "words", "unread", chat_template=True).why_text(policy) is None
    assert "tokenizer is not the policy's: " in str(reader(models / "letters", "unread").why_text(policy))
    other = changed(tmp_path / "other", models / "words", chat_template="{{ messages[0]['content'] }}")
    assert reader(other, "unread").why_text(policy) == "its chat template is not the policy's"
    plain = RewardReader(RewardModelConfig(model=str(other)), PromptDataConfig(path="unread", chat_template=False))
    assert plain.why_text(policy) is None, "no template writes anything"
    bare = changed(tmp_path / "bare", models / "words", chat_template=None)
    assert reader(bare, "unread").why_text(policy) is None, "it reads the policy's template"
    why = reader(models / "words", "unread", chat_template=False).why_text(policy)
    assert why == "reward.model.chat_template is not data.chat_template"


def test_prompts_are_checked_before_there_are_answers(models: Path, write_file: Write, tmp_path: Path) -> None:
    path = write_file("prompts.jsonl", [{"prompt": "hello"}, {"prompt": "x" * 60}])
    prompts = read_prompts(PromptDataConfig(path=path))[1]
    of_letters = reader(models / "letters", path)
    of_letters.check(prompts)
    config = models / "letters" / "config.json"
    narrow = changed(tmp_path / "narrow", models / "letters")
    (narrow / "config.json").write_text(json.dumps(json.loads(config.read_text()) | {"max_position_embeddings": 50}))
    with pytest.raises(
        UserError, match=r"prompts.jsonl:2: the prompt and the shortest answer have 68 tokens.*1 to 50, the window of"
    ):
        reader(narrow, path).check(prompts)
    with pytest.raises(RewardFailed, match=r"no reward for prompt '1': prompt and answer have 68 tokens"):
        reader(narrow, path).encode(prompts, [".", "."], [False, False])
    cutting = reader(narrow, path, overlong="truncate_left")
    cutting.check(prompts)
    whole = of_letters.encode(prompts, [".", "."], [False, False])
    assert cutting.encode(prompts, [".", "."], [False, False]) == [whole[0], whole[1][-50:]]
    bare = changed(tmp_path / "bare", models / "letters", chat_template=None)
    with pytest.raises(
        UserError, match=r"reward.model.chat_template: .* no chat template.*reward.model.chat_template: false"
    ):
        reader(bare, path).check(prompts)
    reader(bare, path, chat_template=False).check(prompts)
    refusing = "{{ raise_exception('no system turn') }}"
    with pytest.raises(
        UserError, match=r"^reward.model.model: .*prompts.jsonl:1: the model's chat template refuses .* no system turn"
    ):
        reader(changed(tmp_path / "strict", models / "letters", chat_template=refusing), path).check(prompts)


def test_an_answer_that_the_template_refuses_stops_the_step(models: Path, write_file: Write, tmp_path: Path) -> None:
    refuses_bad = "{% if m['content'] == 'bad' %}{{ raise_exception('not that') }}{% endif %}"
    template = "{% for m in messages %}" + refuses_bad + "{{ m['content'] }}<end>{% endfor %}"
    path = write_file("prompts.jsonl", [{"prompt": "hello"}])
    of_model = reader(changed(tmp_path / "strict", models / "letters", chat_template=template), path)
    prompts = read_prompts(PromptDataConfig(path=path))[1]
    of_model.check(prompts)
    with pytest.raises(RewardFailed, match=r"no reward for prompt '0': reward.model.model: .*not that"):
        of_model.encode(prompts, ["bad"], [False])
