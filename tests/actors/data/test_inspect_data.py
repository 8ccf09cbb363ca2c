"""`preceptor data inspect`: what it shows of each kind of data."""

import io
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, cast

import pytest
from rich.console import Console

from actors.data.tokenizer import Tokenizer
from actors.errors import UserError
from configs.schema import Config, Pipeline
from configs.schema.data import ConversationDataConfig, DataConfig, TextDataConfig
from configs.schema.ppo import PPOStage
from configs.schema.reward import RewardStage
from orchestrator.inspect_data import inspect, printable

Write = Callable[[list[dict[str, Any]]], str]

PAIR = {"prompt": "why", "chosen": "it is hot", "rejected": "no"}


def shown(config: Config, *, stage: str | None = None, rows: int = 2, terminal: bool = False) -> str:
    out = io.StringIO()
    console = Console(file=out, width=40, force_terminal=terminal, color_system="standard" if terminal else None)
    inspect(config, stage, rows, console)
    return out.getvalue()


def reward(path: str, model: str, **data: Any) -> RewardStage:
    values = {"path": path, "held_out_rows": 1, **data}
    return RewardStage.model_validate(
        {"stage": "reward", "run": {"dir": "r"}, "data": values, "model": {"model": model}}
    )


def ppo(path: str, model: str, **data: Any) -> PPOStage:
    return PPOStage.model_validate(
        {
            "stage": "ppo",
            "run": {"dir": "r"},
            "data": {"path": path, **data},
            "policy": {"model": model},
            "critic": {"init_from": "policy"},
            "reward": {"functions": [{"function": "rewards:short"}]},
            "rollout": {"max_response_tokens": 8},
            "ppo": {"steps": 1},
        }
    )


def stage_of(data: DataConfig, model: str) -> Config:
    """A stage as `inspect` reads one: its data, and the model whose tokenizer it reads with."""
    values = {"data": data.model_dump(), "model": {"model": model}}
    return cast("Config", SimpleNamespace(stage="sft", data=data, model_dump=lambda: values))


def test_conversations_show_what_is_learned(write_rows: Write, tokenizer_folder: str) -> None:
    turns = [{"role": "user", "content": "why"}, {"role": "assistant", "content": "it is hot"}]
    path = write_rows([{"messages": turns}, {"messages": turns * 2}, {"messages": turns * 4}, {"messages": turns}])
    data = ConversationDataConfig(path=path, max_tokens=12, overlong="truncate_left", held_out_rows=1)
    assert shown(stage_of(data, tokenizer_folder)) == (
        f"{path}:1: 9 tokens, 4 learned\n"
        "<bos> <user> why <eos> <assistant>«it is hot <eos>»\n\n"
        f"{path}:2: 12 tokens, 7 learned, 5 cut off at the start\n"
        "it«is hot <eos>»<user> why <eos> <assistant>«it is hot <eos>»\n\n"
        "rows                  4, 0 left out for length\n"
        "sequences             4: 3 to train on, 1 held out\n"
        "tokens of a sequence  shortest 9, median 10.5, longest 12\n"
        "tokens                42, 22 with loss (52.4%)\n"
        "tokens cut off        26\n"
    )


def test_a_terminal_gets_colours_instead_of_marks(write_rows: Write, tokenizer_folder: str) -> None:
    data = TextDataConfig(path=write_rows([{"text": "red cat [bold]"}]), held_out_rows=0)
    text = shown(stage_of(data, tokenizer_folder), terminal=True)
    assert "\x1b[2mred\x1b[0m\x1b[1;32mcat <unk> <eos>\x1b[0m\n" in text
    assert "«" not in text


def test_documents_show_their_pieces(write_rows: Write, tokenizer_folder: str) -> None:
    path = write_rows([{"text": "one two three"}, {"text": "one"}])
    text = shown(stage_of(TextDataConfig(path=path, max_tokens=2, held_out_rows=1), tokenizer_folder), rows=9)
    assert f"{path}:1, piece 2 of 2: 2 tokens, 1 learned\nthree«<eos>»\n" in text
    assert "sequences             3: 2 to train on, 1 held out\n" in text


def test_rankings_show_every_answer(write_rows: Write, tokenizer_folder: str) -> None:
    path = write_rows([{**PAIR, "margin": 2, "annotator": 7}, PAIR, {**PAIR, "prompt": "why " * 9}])
    text = shown(reward(path, tokenizer_folder, max_tokens=12, overlong="drop", held_out_rows=2), rows=1)
    start = "<bos> <user> why <eos> <assistant>"
    assert text == (
        f"{path}:1, answer 1 of 2, rank 0, margin 2, by 7: 9 tokens, 4 learned\n{start}«it is hot <eos>»\n\n"
        f"{path}:1, answer 2 of 2, rank 1, margin 2, by 7: 7 tokens, 2 learned\n{start}«no <eos>»\n\n"
        "rows               3, 1 left out for length, 0 for ranking all answers alike\n"
        "groups             2: 1 to train on, 1 held out\n"
        "tokens of a group  shortest 16, median 16, longest 16\n"
        "tokens             32, 12 of answers\n"
        "tokens cut off     0\n"
    )


def test_prompts(write_rows: Write, tokenizer_folder: str) -> None:
    path = write_rows([{"prompt": "why"}, {"prompt": "red cat"}])
    assert shown(ppo(path, tokenizer_folder), rows=1) == (
        f"{path}:1, id 0: 5 tokens\n<bos> <user> why <eos> <assistant>\n\n"
        "rows                2, 0 left out for length\n"
        "prompts             2: 2 to learn from, 0 held out\n"
        "tokens of a prompt  shortest 5, median 5.5, longest 6\n"
        "tokens              11\n"
    )


def test_a_pipelines_stage_reads_with_the_tokenizer_that_it_started_from(
    write_rows: Write, tokenizer_folder: str
) -> None:
    path = write_rows([PAIR, PAIR])
    values = {
        "stage": "pipeline",
        "run": {"dir": "r"},
        "stages": {
            "first": reward(path, tokenizer_folder).model_dump(mode="json"),
            "second": reward(path, "stage:first").model_dump(mode="json"),
        },
    }
    pipeline = Pipeline.model_validate(values)
    assert shown(pipeline, stage="second") == shown(pipeline, stage="first")
    with pytest.raises(UserError, match="--stage: missing; allowed: first or second"):
        shown(pipeline)
    with pytest.raises(UserError, match="--stage: got 'third'; allowed: first or second"):
        shown(pipeline, stage="third")


def test_bad_data_is_told_as_the_run_would(write_rows: Write, tokenizer_folder: str, tokenizer: Tokenizer) -> None:
    path = write_rows([{"prompt": "x"}, PAIR])
    with pytest.raises(UserError, match=r":1: there is no column 'chosen' \(data\.format: preference\)"):
        shown(reward(path, tokenizer_folder))


def test_a_terminal_obeys_nothing_that_stands_in_the_data() -> None:
    assert printable("red\x1b[31m\ttwo\nthree\u202eé") == "red\\x1b[31m\ttwo\nthree\\u202eé"
