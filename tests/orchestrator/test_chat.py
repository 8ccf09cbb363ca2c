"""Talking with a model: the lines by a conversation that is none, the answers by a real engine."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest

from actors.errors import UserError
from orchestrator.chat import model_of, talk
from tests.orchestrator.report.made_runs import PPO, REWARD, rank_section, write_config, write_pipeline
from tests.tiny_models import make_tiny_causal_lm

ROOT = Path(__file__).resolve().parents[2]


class Echo:
    """Says every word back; a turn of `too long` does not fit, and `wait` is broken off by the user."""

    def __init__(self) -> None:
        self.messages: list[dict[str, str]] = []
        self.forgotten = 0

    def answer(self, text: str) -> Generator[str, None, None]:
        if text == "too long":
            raise UserError("this turn alone has 9 tokens")
        self.messages.append({"role": "user", "content": text})
        self.forgotten = 2 if len(self.messages) > 2 else 0
        said = ""
        try:
            for word in text.split():
                if word == "wait":
                    raise KeyboardInterrupt
                said += f"{word} "
                yield f"{word} "
        finally:
            self.messages.append({"role": "assistant", "content": said})


def talked(text: str, *, system: str | None = None) -> tuple[list[str], Echo]:
    echo, out = Echo(), io.StringIO()
    conversation: Any = echo
    talk(conversation, io.StringIO(text), out, system=system)
    return out.getvalue().splitlines()[1:], echo


def test_lines_and_answers() -> None:
    lines, echo = talked("hello there\n\nbye now\n")
    assert lines == [
        "you: model: hello there ",
        "you: you: model: bye now ",
        "(the window is full: the oldest 2 messages are forgotten)",
        "you: ",
    ]
    assert [message["content"] for message in echo.messages] == ["hello there", "hello there ", "bye now", "bye now "]


def test_reset_keeps_what_the_system_says_and_quit_ends() -> None:
    lines, echo = talked("a\n/reset\nb\n/quit\nnever read\n", system="be kind")
    assert lines == ["you: model: a ", "you: forgotten", "you: model: b ", "you: "]
    assert [message["content"] for message in echo.messages] == ["be kind", "b", "b "]


def test_an_answer_that_is_broken_off_is_kept_as_far_as_it_came() -> None:
    lines, echo = talked("one wait two\nthree\n")
    assert lines[0] == "you: model: one  (broken off)"
    assert echo.messages[1]["content"] == "one "
    assert lines[1] == "you: model: three "


def test_a_turn_that_does_not_fit_is_told() -> None:
    assert talked("too long\nshort\n")[0][:2] == [
        "you: model: (this turn alone has 9 tokens)",
        "you: model: short ",
    ]


def test_what_a_checkpoint_names(tmp_path: Path) -> None:
    assert model_of("hub/name") == "hub/name"
    write_config(tmp_path / "run", PPO)
    tmp_path = tmp_path / "run"
    with pytest.raises(UserError, match="is a run directory without an exported model"):
        model_of(str(tmp_path))
    (tmp_path / "export").mkdir()
    (tmp_path / "export" / "config.json").touch()
    assert model_of(str(tmp_path)) == str(tmp_path / "export")


def test_a_pipelines_run_names_the_stages_that_have_such_a_model(tmp_path: Path) -> None:
    run = tmp_path / "run"
    write_pipeline(run, before=rank_section("m"), reward=REWARD, ppo=PPO)
    with pytest.raises(UserError, match=r"A: .* is a pipeline's run directory; allowed: .* none has one yet"):
        model_of(str(run), "A")
    for name in ("reward", "ppo"):
        (run / name / "export").mkdir(parents=True)
        (run / name / "export" / "config.json").touch()
    with pytest.raises(UserError) as refused:
        model_of(str(run), "A")
    assert str(refused.value).endswith(f"one of its stages with such a model's export: '{run / 'ppo'}'")
    with pytest.raises(UserError) as refused:
        model_of(str(run), "--reward-model", kinds=("reward",))
    assert str(refused.value).endswith(f"export: '{run / 'reward'}'")


@pytest.mark.slow
def test_a_real_model_answers_and_remembers(tmp_path: Path) -> None:
    make_tiny_causal_lm(tmp_path / "model", tied=True)
    arguments = ["chat", str(tmp_path / "model"), "--max-tokens", "6", "--window", "40", "--temperature", "1.0"]
    done = subprocess.run(
        [sys.executable, "-m", "orchestrator", *arguments],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        input="what is the red cat ?\nand the blue dog ?\nwhy ?\nand how ?\n",
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    lines = done.stdout.splitlines()
    assert lines[0] == f"loading {tmp_path / 'model'} ..."
    answers = [line.removeprefix("you: model: ") for line in lines if line.startswith("you: model: ")]
    assert len(answers) == 4
    assert all(answers)
    assert "messages are forgotten" in done.stdout, "four turns do not fit into 40 tokens"
    assert done.stderr == "", "libraries are silent"
