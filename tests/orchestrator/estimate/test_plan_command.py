"""`preceptor plan` with the time of a step: table, JSON, picture, and what it refuses."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from orchestrator.cli import main
from orchestrator.commands.base import BAD_INPUT, FINE
from tests.orchestrator.estimate.step_cases import PPO_8B

PLAN = ("plan", PPO_8B, "cluster.gpu=h100-80gb", "cluster.gpu_hour_price=2.5")


def test_the_table_says_time_critical_path_idle_shares_and_cost(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(PLAN) == FINE
    shown = capsys.readouterr().out
    assert "time of a step in seconds, estimated" in shown
    assert re.search(r"rollout +generate \(rollout\) +0\.0 +[\d.]+ +[\d.]+ +memory", shown)
    assert re.search(r"step: \d+ s, [\d,]+ tokens/s", shown)
    assert "critical path: generate (rollout) -> score (reference)" in shown
    assert re.search(r"idle: policy \d+%, critic \d+%, scorers \d+%, rollout \d+%", shown)
    assert re.search(r"run: 200 steps, [\d.]+ h, [\d.]+ GPU-hours, cost [\d.]+", shown)
    assert "what would help, as overrides" in shown


def test_json_has_phases_assumptions_and_suggestions(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*PLAN, "--json", "--prompt-tokens", "200", "--response-tokens", "300"]) == FINE
    found = json.loads(capsys.readouterr().out)["estimate"]
    assert {phase["phase"] for phase in found["time"]["phases"]} == {"generate", "score", "update", "sync"}
    assert max(phase["end_s"] for phase in found["time"]["phases"]) == pytest.approx(found["time"]["step_s"])
    assert found["time"]["assumptions"][0].startswith("every prompt has 200 tokens, every answer has 300 tokens")
    assert set(found["time"]["idle_frac"]) == {"policy", "critic", "scorers", "rollout"}
    assert all(set(suggestion) == {"change", "effect", "gain"} for suggestion in found["suggestions"])


def test_a_picture_is_written_beside_the_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*PLAN, "--picture", str(tmp_path / "step.svg")]) == FINE
    assert "ppo-8b-8gpu.yaml, stage ppo, h100-80gb" in (tmp_path / "step.svg").read_text("utf-8")


def test_the_stages_of_a_pipeline_are_summed_and_drawn_one_by_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = "model: {model: Qwen/Qwen2.5-1.5B, engine: {dtype: bf16, zero_stage: 2}}"
    text = (
        "stage: pipeline\nrun: {dir: r}\ncluster: {device: cuda, gpu: h100-80gb, gpu_hour_price: 2}\nstages:\n"
        f"  first: {{stage: sft, data: {{path: d.jsonl, max_rows: 1064}}, {model}}}\n"
        f"  second: {{stage: sft, data: {{path: d.jsonl, max_rows: 1064}}, {model}}}\n"
        f"  third: {{stage: sft, data: {{path: d.jsonl}}, {model}}}\n"
    )
    (tmp_path / "p.yaml").write_text(text, "utf-8")
    assert main(["plan", str(tmp_path / "p.yaml"), "--picture", str(tmp_path / "p.png")]) == FINE
    shown = capsys.readouterr().out
    assert sorted(path.name for path in tmp_path.glob("*.png")) == ["p-first.png", "p-second.png", "p-third.png"]
    hours = re.findall(r"run: \d+ steps, [\d.]+ \w+, ([\d.]+) GPU-hours", shown)
    total = re.search(r"2 of 3 stages, of which that is known: [\d.]+ \w+, ([\d.]+) GPU-hours, cost ([\d.]+)", shown)
    assert total is not None
    assert float(total[1]) == pytest.approx(sum(map(float, hours)), rel=0.02)
    assert float(total[2]) == pytest.approx(2 * float(total[1]), rel=0.02)
    assert "run: not known, as no data is read here; data.max_rows would tell" in shown


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--response-tokens", "5000"],
            "--response-tokens: got 5000; allowed: at most rollout.max_response_tokens of stage ppo (1024)",
        ),
        (["--prompt-tokens", "0"], "--prompt-tokens: got 0; allowed: a number of at least 1"),
        (["--prompt-tokens", "nan"], "--prompt-tokens: got nan; allowed: a number of at least 1"),
        (["--picture", "step.gif"], "--picture: got 'step.gif'; allowed: a name that ends in .png or .svg"),
        (
            ["--picture", "step.png", "cluster.gpu=null"],
            "--picture: there is nothing to draw: the kind of GPU is not given (cluster.gpu)",
        ),
    ],
)
def test_what_it_refuses(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    in_cluster = ["cluster.address=auto"]  # what this machine has does not count
    assert main([*PLAN, *in_cluster, *arguments]) == BAD_INPUT
    assert message in capsys.readouterr().err


def test_there_is_no_picture_of_a_run_on_cpu(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "configs/recipes/bandit.yaml", "--picture", "step.png"]) == BAD_INPUT
    assert capsys.readouterr().err == "preceptor: --picture: there is nothing to draw: on CPU no time is estimated\n"


def test_it_loads_neither_torch_nor_ray_and_takes_under_two_seconds() -> None:
    """Of processor time: a busy machine must not fail it."""
    loaded = "print(*(name for name in ('torch', 'ray', 'matplotlib', 'transformers') if name in sys.modules))"
    code = f"import sys, time; from orchestrator.cli import main; main({list(PLAN)!r}); {loaded}; print(time.process_time())"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    *_, modules, seconds = found.stdout.splitlines()
    assert modules == ""
    assert float(seconds) < 2
