"""`preceptor compare`: what it refuses before anything starts, and real models through the command line."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from actors.errors import UserError
from actors.preflight import check_compare
from configs.errors import ConfigError
from configs.schema.compare import CompareConfig
from orchestrator import cli
from orchestrator.commands import compare as compare_command
from tests.orchestrator.report.made_runs import REWARD, rank_section, write_pipeline
from tests.orchestrator.report.pages import whole_page
from tests.tiny_models import EOS_ID, make_tiny_causal_lm, make_tiny_scalar

ROOT = Path(__file__).resolve().parents[2]
QUESTIONS = [
    f"what is the {colour} {thing} ?" for colour in ("red", "blue") for thing in ("cat", "dog", "bird", "fish")
]
MEAN, STD = 0.25, 2.0
STATISTICS = {
    "num_groups": 8,
    "num_pairs": 8,
    "pair_accuracy": 0.9,
    "ece": 0.1,
    "length_correlation": 0.0,
    "mean": MEAN,
    "std": STD,
    "data_fingerprint": "f",
}
JUDGE = """
def words(prompt, response):
    assert prompt.startswith("what is")
    return len(set(response.split()))
"""


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Models a and b, a reward model, each with a vocabulary of its own; prompts; a function that judges."""
    folder = tmp_path_factory.mktemp("compare")
    make_tiny_causal_lm(folder / "a", tied=True)
    make_tiny_causal_lm(folder / "b", tied=False, seed=1, vocab_size=120)
    make_tiny_scalar(folder / "r", seed=2, vocab_size=140)
    (folder / "r" / "preceptor_reward.json").write_text(json.dumps(STATISTICS))
    (folder / "p.jsonl").write_text("".join(json.dumps({"prompt": text}) + "\n" for text in QUESTIONS))
    (folder / "judges.py").write_text(JUDGE)
    return folder


def asked(folder: Path, *arguments: str, a: str = "a", b: str = "b", prompts: str = "p.jsonl") -> CompareConfig:
    """The config of a command line; models and prompts within the folder."""
    files = [str(folder / one) for one in (a, b, prompts)]
    line = ["compare", files[0], files[1], "--prompts", files[2], "--max-tokens", "16", *arguments]
    return compare_command.config_of(cli._parse(line), folder / "unused")


# ---------------------------------------------------------------------------------------------------------------- bad input


def test_what_is_spoilt_below_passes(made: Path) -> None:
    facts = check_compare(asked(made, "--reward-model", str(made / "r"), "--num-prompts", "3"))
    assert facts.prompts == tuple(QUESTIONS[:3])
    assert facts.rows == ((0, 1, 2), (0, 1, 2))
    assert facts.normalised
    assert not check_compare(asked(made)).normalised


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--temperature", "0"], "rollout.temperature: got 0.0; allowed: a number of at least 0.01 (--temperature)"),
        (
            ["--num-prompts", "0"],
            "data.max_rows: got 0; allowed: a whole number of at least 1, or null (--num-prompts)",
        ),
        (["data.prompt=x"], "data.prompt: unknown key (did you mean 'prompt_column'?)"),
        (["--function", "words"], "annotator.function: got 'words'; allowed: text of the form"),
        (["reward.model.normalise=false"], "reward.model.model: missing; allowed: a folder or hub name"),
        (["--function", "m:f", "--reward-model", "r"], "annotator: got a function beside a reward model"),
    ],
)
def test_an_option_out_of_range_is_named(made: Path, arguments: list[str], said: str) -> None:
    with pytest.raises(ConfigError) as refused:
        asked(made, *arguments)
    assert said in str(refused.value)


def no_such_model(folder: Path) -> CompareConfig:
    return asked(folder, b="nowhere")


def reward_model_that_answers(folder: Path) -> CompareConfig:
    return asked(folder, b="r")


def language_model_that_judges(folder: Path) -> CompareConfig:
    return asked(folder, "--reward-model", str(folder / "a"))


def no_such_function(folder: Path) -> CompareConfig:
    return asked(folder, "--function", "no_such:judge")


def no_such_prompts(folder: Path) -> CompareConfig:
    return asked(folder, prompts="gone.jsonl")


def empty_prompts(folder: Path) -> CompareConfig:
    (folder / "empty.jsonl").touch()
    return asked(folder, prompts="empty.jsonl")


def prompts_of_another_column(folder: Path) -> CompareConfig:
    return asked(folder, "data.prompt_column=question")


def prompt_too_long(folder: Path) -> CompareConfig:
    return asked(folder, "data.max_prompt_tokens=3")


def all_prompts_too_long(folder: Path) -> CompareConfig:
    return asked(folder, "data.max_prompt_tokens=3", "data.overlong=drop")


def small_window(folder: Path, model: str) -> Path:
    small = folder / f"small-{model}"
    shutil.copytree(folder / model, small, dirs_exist_ok=True)
    config = json.loads((small / "config.json").read_text())
    (small / "config.json").write_text(json.dumps(config | {"max_position_embeddings": 8}))
    return small


def window_of_b(folder: Path) -> CompareConfig:
    return asked(folder, b=small_window(folder, "b").name)


def window_of_the_reward_model(folder: Path) -> CompareConfig:
    return asked(folder, "--reward-model", str(small_window(folder, "r")))


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (no_such_model, ["B: model folder", "nowhere", "does not exist"]),
        (reward_model_that_answers, ["B: ", "LlamaForSequenceClassification", "allowed: *ForCausalLM"]),
        (language_model_that_judges, ["--reward-model: ", "LlamaForCausalLM", "allowed: *ForSequenceClassification"]),
        (no_such_function, ["--function: ", "no_such"]),
        (no_such_prompts, ["data.path: there is no file", "gone.jsonl"]),
        (empty_prompts, ["data.path", "empty.jsonl", "no rows"]),
        (prompts_of_another_column, ["p.jsonl:1: there is no column 'question' (data.prompt_column)"]),
        (prompt_too_long, ["A: ", "p.jsonl:1: the prompt has", "data.max_prompt_tokens: 3", "data.overlong: drop"]),
        (all_prompts_too_long, ["A: data.max_prompt_tokens: all 8 prompts"]),
        (window_of_b, ["B: the longest prompt", "window", "small-b", "8"]),
        (window_of_the_reward_model, ["--reward-model: ", "p.jsonl:1", "window", "small-r", "8"]),
    ],
)
def test_bad_input_is_named_before_a_model_is_loaded(
    made: Path, spoil: Callable[[Path], CompareConfig], said: list[str]
) -> None:
    with pytest.raises(UserError) as refused:
        check_compare(spoil(made))
    for part in said:
        assert part in str(refused.value)


def test_prompts_that_one_model_drops_are_left_out_for_both(made: Path, tmp_path: Path) -> None:
    """`word125` is no word of b's, but one token all the same: b's template is made longer instead."""
    shutil.copytree(made / "b", tmp_path / "b")
    template = tmp_path / "b" / "chat_template.jinja"
    template.write_text("yes yes yes yes " + template.read_text())
    shutil.copytree(made / "a", tmp_path / "a")
    rows = ["yes no", "yes " * 9, "no yes"]
    (tmp_path / "p.jsonl").write_text("".join(json.dumps({"prompt": text}) + "\n" for text in rows))
    facts = check_compare(asked(tmp_path, "data.max_prompt_tokens=14", "data.overlong=drop"))
    assert facts.prompts == ("yes no", "no yes")
    assert facts.ids == ("0", "2")
    assert facts.rows == ((0, 2), (0, 1))
    assert facts.num_dropped == 1


def refused(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> str:
    """The one message of a command line that is refused before Ray starts."""
    assert cli.main(["compare", *map(str, arguments)]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    return err


def test_what_can_be_refused_at_once_is(made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    models = (made / "a", made / "b", "--prompts", made / "p.jsonl")
    assert "--html: " in refused(capsys, *models, "--html", tmp_path)
    (tmp_path / "file").touch()
    assert "is no folder" in refused(capsys, *models, "--json", tmp_path / "file" / "x.json")
    assert "--json: " in refused(capsys, *models, "--html", tmp_path / "x", "--json", tmp_path / "x")
    for override in ("models=[a, b]", "run.dir=x", "data.held_out_rows=2"):
        assert f"{override.partition('=')[0]}: got " in refused(capsys, *models, override)
    write_pipeline(tmp_path / "run", before=rank_section("m"), reward=REWARD)
    assert "A: " in refused(capsys, tmp_path / "run", *models[1:])
    assert "B: " in refused(capsys, made / "a", tmp_path / "run", *models[2:])
    assert "--reward-model: " in refused(capsys, *models, "--reward-model", tmp_path / "run")


# ------------------------------------------------------------------------------------------------------------- real models


def run(made: Path, folder: Path, *arguments: str) -> tuple[dict[str, Any], str]:
    """The JSON and the terminal's text of a comparison that is made in `folder`, where nothing else is left."""
    (folder / "tmp").mkdir(parents=True)
    (folder / "cwd").mkdir()
    files = ("--prompts", made / "p.jsonl", "--json", folder / "out.json", "--html", folder / "out.html")
    done = subprocess.run(
        [sys.executable, "-m", "orchestrator", "compare", *arguments, *map(str, files), "--dtype", "fp32"],
        cwd=folder / "cwd",
        env=os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{made}", "TMPDIR": str(folder / "tmp")},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stderr == "", "libraries are silent"
    assert list((folder / "cwd").iterdir()) == []
    assert list((folder / "tmp").glob("preceptor-compare-*")) == []
    return json.loads((folder / "out.json").read_text()), done.stdout


GREEDY_TEMPERATURE = 0.01
NEARLY = 0.12
"""Where the second logit lies less far below the highest it is sampled now and then even at that temperature (else once in 10^5 times)."""


def sure_words(model: Path, prompt: str) -> list[str]:
    """How the model's answer has to begin at that temperature: its likeliest words by transformers, as far as they are clear."""
    tokenizer, lm = AutoTokenizer.from_pretrained(model), AutoModelForCausalLM.from_pretrained(model)
    given = tokenizer.apply_chat_template(
        [{"role": "user", "content": prompt}], add_generation_prompt=True, return_dict=False
    )
    said: list[int] = []
    while len(said) < 8:
        with torch.no_grad():
            (first, second), (token, _) = lm(torch.tensor([[*given, *said]])).logits[0, -1].topk(2)
        if first - second < NEARLY or token == EOS_ID:
            break
        said.append(int(token))
    return tokenizer.decode(said, skip_special_tokens=True).split()


@pytest.mark.slow
def test_each_model_answers_with_its_own_weights_and_the_reward_model_scores_its_own_way(
    made: Path, tmp_path: Path
) -> None:
    found, out = run(
        made,
        tmp_path,
        str(made / "a"),
        str(made / "b"),
        *("--reward-model", str(made / "r"), "--max-tokens", "10", "--temperature", str(GREEDY_TEMPERATURE)),
    )
    assert [one["prompt"] for one in found["prompts"]] == QUESTIONS
    answers = {source: [one["answers"][source][0] for one in found["prompts"]] for source in "AB"}
    for source, own, other in (("A", "a", "b"), ("B", "b", "a")):
        words = {name: [sure_words(made / name, question) for question in QUESTIONS] for name in (own, other)}
        begins = {
            name: [
                answer["text"].split()[: len(start)] == start
                for start, answer in zip(starts, answers[source], strict=True)
            ]
            for name, starts in words.items()
        }
        assert all(begins[own])
        assert sum(map(len, words[own])) >= 2 * len(QUESTIONS), "enough of them is known beforehand"
        assert sum(begins[other]) <= sum(not start for start in words[other]), "the other model says something else"
    reader, scorer = (
        AutoTokenizer.from_pretrained(made / "r"),
        AutoModelForSequenceClassification.from_pretrained(made / "r"),
    )
    for source in "AB":
        for question, answer in zip(QUESTIONS, answers[source], strict=True):
            text = f"<bos><user> {question}<eos><assistant> {answer['text']}" + "<eos>" * (not answer["cut_off"])
            with torch.no_grad():
                (score,) = scorer(**reader(text, return_tensors="pt", add_special_tokens=False)).logits[0].tolist()
            assert answer["score"] == pytest.approx((score - MEAN) / STD, abs=1e-4)
    wins = [
        0.5 + 0.5 * ((b["score"] > a["score"]) - (b["score"] < a["score"]))
        for a, b in zip(answers["A"], answers["B"], strict=True)
    ]
    assert found["figures"]["B"]["win_frac"] == sum(wins) / len(wins)
    assert f"B wins {100 * sum(wins) / len(wins):.1f}% ± " in out
    assert "reward model" in whole_page((tmp_path / "out.html").read_text()).text


@pytest.mark.slow
def test_a_model_against_itself_gives_equal_answers_and_wins_half(made: Path, tmp_path: Path) -> None:
    model = str(made / "a")
    asked = ("--responses", "2", "--max-tokens", "12", "--function", "judges:words")
    found, out = run(made, tmp_path, model, model, *asked, "rollout.prompts_per_wave=3", "annotator.num_workers=2")
    for prompt in found["prompts"]:
        assert prompt["answers"]["A"] == prompt["answers"]["B"]
        assert [one["score"] for one in prompt["answers"]["A"]] == [
            len(set(one["text"].split())) for one in prompt["answers"]["A"]
        ]
    texts = [one["text"] for prompt in found["prompts"] for one in prompt["answers"]["A"]]
    assert len(texts) == 2 * len(QUESTIONS)
    assert len(set(texts)) > len(QUESTIONS), "every answer has a seed of its own"
    assert len({one["score"] for prompt in found["prompts"] for one in prompt["answers"]["A"]}) > 1
    assert (found["figures"]["B"]["win_frac"], found["figures"]["B"]["win_error"]) == (0.5, 0.0)
    assert "B wins 50.0% ± 0.0 against A" in out
