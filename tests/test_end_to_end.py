"""The whole service through its command line: pretraining, fine-tuning, the model's own answers ranked, DPO on them, a reward model, then
PPO against it and a function, with everything on.

Real Ray, vLLM and DeepSpeed; tiny models. What the numbers must be is proved elsewhere (`tests/proof`); here the parts meet.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from orchestrator.ledger import Ledger, LedgerEntry, SupervisedEntry
from tests.tiny_models import make_letter_scalar, make_tiny_causal_lm

ROOT = Path(__file__).resolve().parent.parent
FUNCTION = """
def short(prompt, response, **columns):
    assert columns["kind"] == "colour"
    return -len(response.split()) / 10


def good(prompt, response):
    return response.split().count("good") - len(response.split()) / 100
"""


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished pipeline: ranks 2 and 1, two engines, all roles of PPO in one group, adaptive KL, critic warm-up, two rewards."""
    folder = tmp_path_factory.mktemp("whole")
    make_tiny_causal_lm(folder / "model", tied=True)
    (folder / "my_rewards.py").write_text(FUNCTION)
    colours, things = ("red", "blue", "green", "old"), ("cat", "dog", "bird", "fish", "house", "tree")
    prompts = [f"what is the {colour} {thing} ?" for colour in colours for thing in things]
    pairs = [{"prompt": p, "chosen": "yes it is good", "rejected": "no it is bad"} for p in prompts]
    (folder / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in pairs))
    (folder / "prompts.jsonl").write_text("".join(json.dumps({"prompt": p, "kind": "colour"}) + "\n" for p in prompts))
    documents = [{"text": f"{prompt} it is a {colour} one"} for prompt in prompts for colour in colours]
    (folder / "documents.jsonl").write_text("".join(json.dumps(row) + "\n" for row in documents))
    chats = [
        {"messages": [{"role": "user", "content": p}, {"role": "assistant", "content": f"it is {word}"}]}
        for p in prompts
        for word in ("good", "bad")
    ]
    (folder / "chats.jsonl").write_text("".join(json.dumps(row) + "\n" for row in chats))
    one_group = {"group": "all"}
    config = {
        "stage": "pipeline",
        "run": {"dir": str(folder / "run"), "seed": 3, "checkpoint_every": 2},
        "stages": {
            "pretrain": {
                "stage": "pretrain",
                "data": {"path": str(folder / "documents.jsonl"), "max_tokens": 32, "held_out_rows": 8},
                "model": trained(str(folder / "model"), zero_stage=2, num_ranks=2),
                "training": {"sequences_per_step": 16, "evaluate_every": 2, "export": "best"},
            },
            "sft": {
                "stage": "sft",
                "data": {"path": str(folder / "chats.jsonl"), "max_tokens": 32, "held_out_rows": 8},
                "model": trained("stage:pretrain", zero_stage=0, num_ranks=1),
                "training": {"sequences_per_step": 10},
            },
            "rank": {
                "stage": "rank",
                "data": {"path": str(folder / "prompts.jsonl"), "max_prompt_tokens": 32},
                "policy": {"model": "stage:sft"},
                "rollout": {
                    "num_engines": 2,
                    "threads_per_engine": 1,
                    "responses_per_prompt": 3,
                    "max_response_tokens": 8,
                    "prompts_per_wave": 5,
                },
                "annotator": {"function": "my_rewards:good", "num_workers": 2},
            },
            "dpo": {
                "stage": "dpo",
                "data": {"path": "stage:rank", "format": "ranking", "max_tokens": 32, "held_out_rows": 5},
                "model": trained("stage:sft", zero_stage=3, num_ranks=2),
                "training": {"groups_per_step": 6},
            },
            "reward": {
                "stage": "reward",
                "data": {"path": str(folder / "pairs.jsonl"), "max_tokens": 64, "held_out_rows": 6},
                "model": {
                    "model": str(folder / "model"),
                    "engine": {"zero_stage": 2, "micro_batch_tokens": 256},
                    "optimizer": {"lr": 2e-3},
                    "placement": {"num_ranks": 2, "threads_per_rank": 1},
                },
                "training": {"epochs": 2, "groups_per_step": 6},
            },
            "ppo": {
                "stage": "ppo",
                "data": {"path": str(folder / "prompts.jsonl"), "max_prompt_tokens": 32, "held_out_rows": 4},
                "policy": {
                    "model": str(folder / "model"),
                    "engine": {"zero_stage": 3, "micro_batch_tokens": 256, "activation_checkpointing": True},
                    "optimizer": {"lr": 1e-3, "warmup_steps": 2, "decay": "cosine"},
                    "placement": {"num_ranks": 2, "threads_per_rank": 1, **one_group},
                },
                "critic": {
                    "engine": {"zero_stage": 1, "micro_batch_tokens": 256},
                    "optimizer": {"lr": 1e-3},
                    "warmup_steps": 1,
                    "placement": {"num_ranks": 2, "threads_per_rank": 1, **one_group},
                },
                "reference": {"placement": {"num_ranks": 2, "threads_per_rank": 1, **one_group}},
                "reward": {
                    "model": {
                        "model": "stage:reward",
                        "placement": {"num_ranks": 2, "threads_per_rank": 1, **one_group},
                    },
                    "functions": [{"function": "my_rewards:short", "weight": 0.5, "num_workers": 2}],
                    "clip": 5.0,
                },
                "rollout": {
                    "num_engines": 2,
                    "threads_per_engine": 1,
                    "group": "all",
                    "temperature": 0.7,
                    "responses_per_prompt": 2,
                    "max_response_tokens": 12,
                    "prompts_per_wave": 3,
                },
                "ppo": {
                    "steps": 3,
                    "prompts_per_step": 8,
                    "epochs": 2,
                    "minibatches": 2,
                    "kl": {"controller": {"kind": "adaptive", "coef": 0.1, "target": 0.5, "horizon": 100}},
                },
                "evaluation": {
                    "every": 2,
                    "responses_per_prompt": 3,
                    "judge": {"function": "my_rewards:good"},
                },
            },
        },
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    done = preceptor(folder, "run", "config.yaml")
    assert done.returncode == 0, done.stdout + done.stderr
    (folder / "stdout.txt").write_text(done.stdout)
    return folder


def trained(model: str, *, zero_stage: int, num_ranks: int) -> dict[str, Any]:
    return {
        "model": model,
        "engine": {"zero_stage": zero_stage, "micro_batch_tokens": 256},
        "optimizer": {"lr": 2e-3},
        "placement": {"num_ranks": num_ranks, "threads_per_rank": 1},
    }


def preceptor(folder: Path, *argv: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": str(ROOT), "PRECEPTOR_REGISTRY": f"sqlite:///{folder}/registry.db"}
    return subprocess.run(
        [sys.executable, "-m", "orchestrator", *argv],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=840,
        check=False,
    )


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_terminal_tells_the_run(finished: Path) -> None:
    told = (finished / "stdout.txt").read_text()
    for part in (
        "stage pretrain (1 of 6",
        "stage reward (5 of 6",
        "held out:",
        "stage ppo (6 of 6",
        "step 3/3",
        "reward",
        "KL",
        "tokens/s",
    ):
        assert part in told, told


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_every_step_is_in_the_ledger_and_its_trajectories_on_disk(finished: Path) -> None:
    ledger = Ledger(finished / "run" / "ppo", LedgerEntry)
    assert ledger.last_step() == 3
    coefficient = 0.1
    for step in (1, 2, 3):
        entry = ledger.read(step)
        assert entry.kl_coef == pytest.approx(coefficient), "each step goes on from the last one's coefficient"
        coefficient = entry.kl_controller["coef"]
        assert len(entry.updates["critic"]) == 4
        assert len(entry.updates["policy"]) == (0 if step == 1 else 4), "the critic warms up alone"
        assert entry.metrics["sync/probe_gap"] < 1e-4
        assert entry.metrics["logprob_gap"] < 1e-4
        assert len(entry.waves) == 3
        rows = [
            row
            for files in entry.trajectory_files
            for file in files
            for row in pq.read_table(finished / "run" / "ppo" / file.name).to_pylist()
        ]
        assert len(rows) == 16
        assert len({row["id"] for row in rows}) == 16
        for row in rows:
            assert {span["policy_version"] for span in row["version_spans"]} == {step - 1}
            assert row["response"]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_export_is_a_model_that_moved(finished: Path) -> None:
    before = AutoModelForCausalLM.from_pretrained(finished / "model", dtype=torch.float32)
    after = AutoModelForCausalLM.from_pretrained(finished / "run" / "ppo" / "export", dtype=torch.float32)
    assert AutoTokenizer.from_pretrained(finished / "run" / "ppo" / "export").chat_template
    moved = [name for name, value in after.state_dict().items() if not torch.equal(value, before.state_dict()[name])]
    assert len(moved) == len(after.state_dict())


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_held_out_answers_are_judged_and_compared_with_the_first_weights(finished: Path) -> None:
    run = finished / "run" / "ppo"
    evaluations = {int(path.stem): json.loads(path.read_text()) for path in run.glob("evaluations/*.json")}
    assert sorted(evaluations) == [0, 2, 3], "before the first step, every second one, and the last"
    tokenizer = AutoTokenizer.from_pretrained(finished / "model")
    numbers: dict[int, dict[str, list[float]]] = {}
    for step, evaluation in evaluations.items():
        assert {f"{path.parent.name}/{path.name}" for path in run.glob(f"evaluations/{step:08d}/*.jsonl")} == {
            *evaluation["files"]
        }
        files = [run / "evaluations" / name for name in evaluation["files"]]
        rows = [json.loads(line) for file in files for line in file.read_text().splitlines()]
        assert len(rows) == 4 * 3
        by_prompt: dict[str, list[float]] = {}
        for row in rows:
            words = row["response"].split()
            assert not set(words) & set(tokenizer.all_special_tokens)
            assert row["judged"] == pytest.approx(words.count("good") - len(words) / 100)
            by_prompt.setdefault(row["prompt_id"], []).append(row["judged"])
        assert sorted(by_prompt) == ["20", "21", "22", "23"], "the last rows of the file"
        assert evaluation["judged"] == by_prompt
        judged = [row["judged"] for row in rows]
        assert evaluation["metrics"]["held_out/judged"] == pytest.approx(sum(judged) / 12)
        assert evaluation["metrics"]["held_out/score"] == pytest.approx(sum(row["score"] for row in rows) / 12)
        assert evaluation["metrics"]["held_out/kl"] == pytest.approx(sum(row["kl"] for row in rows) / 12)
        numbers[step] = by_prompt
    assert abs(evaluations[0]["metrics"]["held_out/kl"]) < 1e-4, "the reference is the policy before the first step"
    ledger = Ledger(run, LedgerEntry)
    for step in (2, 3):
        pairs = [(a, b) for one, late in numbers[step].items() for b in late for a in numbers[0][one]]
        wins = sum(1.0 if b > a else 0.5 if b == a else 0.0 for a, b in pairs) / len(pairs)
        assert evaluations[step]["metrics"]["held_out/win_rate"] == pytest.approx(wins)
    trained = {row_id for step in (1, 2, 3) for wave in ledger.read(step).waves for row_id in wave.prompt_ids}
    assert not trained & {"20", "21", "22", "23"}, "nothing is learned from them"


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_registry_has_the_run_as_its_directory_tells_it(finished: Path) -> None:
    listed = json.loads(preceptor(finished, "runs", "--stages", "--json").stdout)
    runs = {run["name"]: run for run in listed}
    assert {name: run["state"] for name, run in runs.items()} == dict.fromkeys(
        ("run", "pretrain", "sft", "rank", "dpo", "reward", "ppo"), "finished"
    )
    assert {run["part_of"] for name, run in runs.items() if name != "run"} == {runs["run"]["id"]}
    assert [(one["key"], one["run_id"]) for one in runs["sft"]["parents"]] == [("model.model", runs["pretrain"]["id"])]
    assert [(one["key"], one["run_id"]) for one in runs["dpo"]["parents"]] == [
        ("model.model", runs["sft"]["id"]),
        ("data.path", runs["rank"]["id"]),
    ]
    told = json.loads(preceptor(finished, "show", runs["ppo"]["id"], "--json").stdout)
    from_folder = json.loads(preceptor(finished, "show", "run/ppo", "--json").stdout)
    assert told == from_folder
    assert [step["digest"] != "" for step in told["steps"] if step["kind"] == "step"] == [True] * 3
    again = preceptor(finished, "reproduce", "run", "--check")
    assert again.returncode == 0, again.stdout + again.stderr


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_finished_run_is_not_run_again(finished: Path) -> None:
    told = preceptor(finished, "lineage", "run/dpo/export")
    for part in ("policy of stage dpo", "annotator of stage rank", "stage sft", "stage pretrain", "documents.jsonl"):
        assert part in told.stdout, told.stdout + told.stderr
    again = preceptor(finished, "resume", "run")
    assert again.returncode == 0, again.stderr
    assert "finished" in again.stdout
    occupied = preceptor(finished, "run", "config.yaml")
    assert occupied.returncode == 2
    assert "run.dir" in occupied.stderr


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_models_own_answers_are_ranked_by_the_function(finished: Path) -> None:
    lines = (finished / "run" / "rank" / "export" / "rankings.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    assert [row["id"] for row in rows] == [str(number) for number in range(24)]
    for row in rows:
        numbers = [text.split().count("good") - len(text.split()) / 100 for text in row["responses"]]
        assert row["scores"] == pytest.approx(numbers)
        best = max(range(3), key=numbers.__getitem__)
        assert row["ranks"][best] == 1


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_best_evaluation_is_exported(finished: Path) -> None:
    run = finished / "run" / "pretrain"
    ledger = Ledger(run, SupervisedEntry)
    merits = {step: ledger.read(step).metrics.get("held_out/merit") for step in range(1, ledger.last_step() + 1)}
    found = {step: merit for step, merit in merits.items() if merit is not None}
    assert len(found) == 3, "every second step, and the last"
    best = max(found, key=found.__getitem__)
    assert json.loads((run / "export" / "lineage.json").read_text())["step"] == best
    evaluation = json.loads((run / "export" / "preceptor_language.json").read_text())
    assert -evaluation["loss"] == pytest.approx(found[best], abs=1e-6)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_dpo_moves_the_policy_towards_what_is_ranked_higher(finished: Path) -> None:
    ledger = Ledger(finished / "run" / "dpo", SupervisedEntry)
    last = ledger.read(ledger.last_step()).metrics
    assert last["reward_gap"] > 0
    assert (finished / "run" / "dpo" / "reference_logprobs.json").exists()


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_reward_model_of_another_tokenizer_scores_the_texts(tmp_path: Path) -> None:
    """Sharded over two ranks, whose texts are of different lengths; the reference reads what is on disk, one text at a time."""
    make_tiny_causal_lm(tmp_path / "model", tied=True)
    make_letter_scalar(tmp_path / "letters")
    things = ("cat", "dog", "house", "tree")
    prompts = [{"prompt": f"what is the {thing} ?"} for thing in things]
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in prompts))
    sharded = {"engine": {"zero_stage": 3, "micro_batch_tokens": 160}, "placement": {"num_ranks": 2}}
    config = {
        "stage": "ppo",
        "run": {"dir": str(tmp_path / "run"), "seed": 3},
        "data": {"path": str(tmp_path / "prompts.jsonl"), "max_prompt_tokens": 32},
        "policy": trained(str(tmp_path / "model"), zero_stage=0, num_ranks=1),
        "critic": {"init_from": "policy", "optimizer": {"lr": 1e-3}},
        "reward": {"model": {"model": str(tmp_path / "letters"), "normalise": False, **sharded}},
        "rollout": {
            "threads_per_engine": 1,
            "responses_per_prompt": 3,
            "max_response_tokens": 12,
            "prompts_per_wave": 2,
        },
        "ppo": {"steps": 2, "prompts_per_step": 4},
    }
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    done = preceptor(tmp_path, "run", "config.yaml")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "answers are handed to the reward model as text: its tokenizer is not the policy's" in done.stdout
    letters = AutoTokenizer.from_pretrained(tmp_path / "letters")
    network = AutoModelForSequenceClassification.from_pretrained(tmp_path / "letters", dtype=torch.float32)
    ledger = Ledger(tmp_path / "run", LedgerEntry)
    lengths = set()
    for step in (1, 2):
        entry = ledger.read(step)
        names = [file.name for files in entry.trajectory_files for file in files]
        rows = [row for name in names for row in pq.read_table(tmp_path / "run" / name).to_pylist()]
        assert len(rows) == 12
        for row in rows:
            prompt = prompts[int(row["prompt_id"])]["prompt"]
            answer = " ".join(word for word in row["response"].split() if not word.startswith("<"))
            text = f"<user>\n{prompt}<end>\n<assistant>\n{answer}{'' if row['truncated'] else '<end>'}"
            ids = letters(text, return_tensors="pt", add_special_tokens=False)["input_ids"]
            lengths.add(ids.shape[1])
            with torch.no_grad():
                assert row["score"] == pytest.approx(float(network(ids).logits), abs=5e-5), text
        scores = [row["score"] for row in rows]
        assert entry.metrics["reward/0"] == pytest.approx(sum(scores) / len(scores), abs=1e-6)
    assert len(lengths) > 3
