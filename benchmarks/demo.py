"""`make bench-demo`: the demo with DPO beside PPO, for each seed, `python -m benchmarks.demo [--seeds 0 1 2] [--runs DIR] [--out FILE]`.

A seed is that of the model's first weights, the data, the annotators and the run. A run that is finished is measured and not run again, one
that was broken off goes on.
"""

from __future__ import annotations

import argparse
import itertools
import json
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from rich.console import Console

from actors.reward_trainer import load_reward_stats
from benchmarks.table import Cell, Table, machine_line
from configs.load import load_config
from configs.schema import Pipeline, stage_models
from configs.schema.reward import RewardStage
from examples.demo.people import noise_ceiling, right, utility
from orchestrator.ledger import Ledger, LedgerEntry
from orchestrator.run_dir import CONFIG_FILE, DONE_FILE, EXPORT_FOLDER, RANKINGS_FILE
from orchestrator.wins import win_frac

RECIPE = Path("configs/recipes/demo-dpo.yaml")
INPUTS = "runs/demo-inputs"
"""Where the recipe has its inputs; each seed's stand elsewhere."""
LAST_STEPS = 5
BATCH = 64
"""Answers in one forward pass."""
TUNED = {"PPO": "after", "DPO": "after_dpo"}
"""The ways to learn from the rankings, and the stages that measure what came of them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RewardMeasures:
    """The reward model on held-out rankings."""

    accuracy: float
    """Share of pairs of differently ranked answers that it has in the annotators' order."""
    perfect: float
    """The same of who knows the utility, on the same pairs."""
    expected: float
    """What the noise lets `perfect` be on average."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AnswerMeasures:
    """A model's answers to the held-out prompts."""

    utility: float
    """Mean."""
    win_rate: float
    """Against the answers of the fine-tuned model to the same prompt, all pairs, ties half."""
    right_frac: float
    """Share of answers that state what was asked, and that is true."""
    distinct_frac: float
    """Share of answers that differ from the earlier ones to the same prompt."""


Row = Mapping[str, Any]
"""A line of a file of rankings: id, prompt, responses [K], ranks [K], scores [K]."""


def reward_measures(rows: Sequence[Row], accuracy: float) -> RewardMeasures:
    """`rows`: the held-out rankings."""
    agreed, groups = [], []
    for row in rows:
        answers = [
            (utility(row["prompt"], text), rank) for text, rank in zip(row["responses"], row["ranks"], strict=True)
        ]
        for (value, rank), (other, other_rank) in itertools.combinations(answers, 2):
            if rank != other_rank:
                groups.append((value, other))
                agreed.append(0.5 if value == other else float((value > other) == (rank < other_rank)))
    return RewardMeasures(accuracy=accuracy, perfect=fmean(agreed), expected=noise_ceiling(groups))


def answer_measures(rows: Sequence[Row], before: Sequence[Row]) -> AnswerMeasures:
    """`before`: of the fine-tuned model, to the same prompts."""
    theirs = {row["id"]: row["scores"] for row in before}
    win_rate, _ = win_frac([theirs[row["id"]] for row in rows], [row["scores"] for row in rows])
    return AnswerMeasures(
        utility=fmean(score for row in rows for score in row["scores"]),
        win_rate=win_rate,
        right_frac=fmean(right(row["prompt"], text) for row in rows for text in row["responses"]),
        distinct_frac=sum(len(set(row["responses"])) for row in rows) / sum(len(row["responses"]) for row in rows),
    )


def divergence(model: Path, reference: Path, rows: Sequence[Row]) -> float:
    """KL of a model from another in nats per answer, estimated from its own answers: mean of log p - log p_reference."""
    ours, theirs = (_logprobs(folder, rows) for folder in (model, reference))
    return fmean(a - b for a, b in zip(ours, theirs, strict=True))


def _logprobs(folder: Path, rows: Iterable[Row]) -> list[float]:
    """Of each answer with its end token."""
    import torch
    from torch.nn.utils.rnn import pad_sequence
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    texts, starts = [], []
    for row in rows:
        asked = [{"role": "user", "content": row["prompt"]}]
        text = tokenizer.apply_chat_template(asked, tokenize=False, add_generation_prompt=True)
        prompt = tokenizer(text, add_special_tokens=False)["input_ids"]
        for response in row["responses"]:
            answer = [*tokenizer(response, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
            texts.append(torch.tensor(prompt + answer))
            starts.append(len(prompt))
    found: list[float] = []
    for first in range(0, len(texts), BATCH):
        some, from_ = texts[first : first + BATCH], starts[first : first + BATCH]
        # padding follows the answers, and a token sees none that follows it
        tokens = pad_sequence(some, batch_first=True)
        with torch.inference_mode():
            logprobs = torch.log_softmax(model(tokens).logits[:, :-1], -1)
        chosen = logprobs.gather(2, tokens[:, 1:, None])[:, :, 0]
        found += [
            float(chosen[at, start - 1 : len(text) - 1].sum())
            for at, (text, start) in enumerate(zip(some, from_, strict=True))
        ]
    return found


def rankings(run: Path, stage: str) -> list[Row]:
    """What a stage `rank` has exported."""
    return [json.loads(line) for line in (run / stage / EXPORT_FOLDER / RANKINGS_FILE).read_text("utf-8").splitlines()]


def finished_run(seed: int, folder: Path) -> Path:
    """The run of that seed under `folder`, run or gone on with as far as it was not.

    Raises:
        subprocess.CalledProcessError: where it failed; what it said is on stderr.
    """
    inputs, run = folder / f"seed-{seed}-inputs", folder / f"seed-{seed}"
    if (run / DONE_FILE).exists():
        return run
    if (run / CONFIG_FILE).exists():
        command = ["orchestrator", "resume", str(run)]
    else:
        subprocess.run([sys.executable, "-m", "tools.make_demo", str(inputs), "--seed", str(seed)], check=True)
        command = ["orchestrator", "run", str(RECIPE), f"run.dir={run}", f"run.seed={seed}", *moved_inputs(inputs)]
    subprocess.run([sys.executable, "-m", *command], check=True, stdin=subprocess.DEVNULL)
    return run


def moved_inputs(inputs: Path) -> list[str]:
    """The overrides with which the recipe reads its inputs from elsewhere."""
    pipeline = load_config(RECIPE)
    assert isinstance(pipeline, Pipeline)
    keys = {
        f"stages.{name}.{key}": value
        for name, stage in pipeline.stages.items()
        for key, value in {"data.path": stage.data.path, **stage_models(stage)}.items()
    }
    return [f"{key}={value.replace(INPUTS, str(inputs))}" for key, value in keys.items() if value.startswith(INPUTS)]


def measure(run: Path) -> tuple[RewardMeasures, dict[str, AnswerMeasures], dict[str, float]]:
    """Of a finished run: the reward model; by SFT, PPO and DPO their answers; by PPO and DPO their KL from SFT."""
    pipeline = load_config(run / CONFIG_FILE)
    assert isinstance(pipeline, Pipeline)
    reward = pipeline.stages["reward"]
    assert isinstance(reward, RewardStage)
    accuracy = load_reward_stats(str(run / "reward" / EXPORT_FOLDER)).pair_accuracy
    before = rankings(run, "before")
    answers = {"SFT": answer_measures(before, before)}
    divergences = {}
    for name, stage in TUNED.items():
        rows = rankings(run, stage)
        answers[name] = answer_measures(rows, before)
        tuned = run / name.lower() / EXPORT_FOLDER
        divergences[name] = divergence(tuned, run / "sft" / EXPORT_FOLDER, rows)
    return reward_measures(rankings(run, "rank")[-reward.data.held_out_rows :], accuracy), answers, divergences


def training_kl(run: Path) -> float:
    """What PPO's last steps recorded."""
    ledger = Ledger(run / "ppo", LedgerEntry)
    last = ledger.last_step()
    return fmean(ledger.read(step).metrics["kl"] for step in range(last - LAST_STEPS + 1, last + 1))


def tables_of(runs: Mapping[int, Path]) -> list[Table]:
    """What the runs, by seed, came to."""
    measured = {seed: measure(run) for seed, run in runs.items()}
    rewards = [
        (f"seed {seed}", r.accuracy, r.perfect, r.expected, r.accuracy / r.perfect)
        for seed, (r, _, _) in measured.items()
    ]
    models: list[tuple[Cell, ...]] = []
    for name in ("SFT", *TUNED):
        rows = [
            (of.utility, of.win_rate, of.right_frac, of.distinct_frac, divergences.get(name, 0.0))
            for of, divergences in ((answers[name], divergences) for _, answers, divergences in measured.values())
        ]
        models += [(f"{name}, seed {seed}", *row) for seed, row in zip(measured, rows, strict=True)]
        models.append((f"**{name}, mean**", *_spread(rows)))
    kl = ", ".join(f"{training_kl(run):.3g}" for run in runs.values())
    return [
        Table(
            title="Reward model",
            columns=("", "accuracy", "ceiling", "ceiling expected", "share of ceiling"),
            rows=(*rewards, ("**mean**", *_spread([row[1:] for row in rewards]))),
            note="On pairs of held-out rankings. The ceiling is the accuracy of who knows the utility, on the same pairs; "
            "expected is what the noise lets it be on average.",
        ),
        Table(
            title="Answers to held-out prompts",
            columns=("", "utility", "win rate against SFT", "right", "distinct", "KL from SFT, nats per answer"),
            rows=tuple(models),
            note="Four answers to each prompt. KL is estimated from these answers. "
            f"In training, the mean of PPO's last {LAST_STEPS} steps was {kl}.",
        ),
    ]


def _spread(rows: Sequence[Sequence[float]]) -> list[Cell]:
    """Mean and standard deviation of each column."""
    columns = list(zip(*rows, strict=True))
    if len(rows) < 2:
        return [fmean(column) for column in columns]
    return [f"{fmean(column):.3g} ± {stdev(column):.2g}" for column in columns]


def main(argv: Sequence[str] | None = None) -> int:
    """Exit code 0, or 1 where a run failed."""
    parser = argparse.ArgumentParser(prog="benchmarks.demo", description="The demo, measured with several seeds.")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="(default: 0 1 2)")
    parser.add_argument(
        "--runs", type=Path, default=Path("runs/bench-demo"), help="their folder (default: %(default)s)"
    )
    parser.add_argument("--out", type=Path, default=None, help="Markdown file (default: demo.md in the runs' folder)")
    arguments = parser.parse_args(argv)
    where, console = machine_line(), Console()
    try:
        runs = {seed: finished_run(seed, arguments.runs) for seed in arguments.seeds}
    except subprocess.CalledProcessError as error:
        print(f"a run ended with exit code {error.returncode}; the same command goes on with it", file=sys.stderr)
        return 1
    tables = tables_of(runs)
    for table in tables:
        console.print(table.rich())
    out = arguments.out or arguments.runs / "demo.md"
    out.write_text("\n".join([f"# The demo, measured\n\n{where}.\n", *(table.markdown() for table in tables)]), "utf-8")
    console.print(f"written to {out}", soft_wrap=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
