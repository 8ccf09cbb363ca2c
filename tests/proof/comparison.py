"""A run against the plain script: what both are given, and how far apart they end."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import torch
from safetensors.torch import load_file
from torch import Tensor

from configs.schema.engine import OptimizerConfig
from configs.schema.ppo import AdaptiveKLConfig, PPOStage
from orchestrator.batching import minibatches_of
from tests.proof.parts import Run
from tests.proof.plain_ppo import Numbers, Optimizer, PlainPPO, Result, Step, Trajectory

TERMS = {"policy/loss": 1.0, "policy/policy_loss": 1.0, "kl": 1.0}
"""Size of the terms of numbers that are means or sums of both signs: whitened advantages times ratios, differences of log-probabilities.
What is left of them after they have cancelled still carries their rounding, so a difference counts relative to them where they are larger.
"""
FLOOR = 0.1
"""Likewise of all other numbers."""


@dataclass(frozen=True, kw_only=True)
class Difference:
    """The largest relative differences of a run from the plain script."""

    numbers: dict[str, float]
    """`policy/loss`, ... over all minibatches, and `kl` over steps."""
    updates: dict[str, float]
    """`policy/<tensor>`, ...: |update - plain update| / |plain update|, Euclidean."""

    @property
    def worst_number(self) -> float:
        return max(self.numbers.values())

    @property
    def worst_update(self) -> float:
        return max(self.updates.values())

    def __str__(self) -> str:
        number, update = (
            max(self.numbers, key=self.numbers.__getitem__),
            max(self.updates, key=self.updates.__getitem__),
        )
        return f"numbers {self.worst_number:.1e} ({number}), updates {self.worst_update:.1e} ({update})"


def note(label: str, figures: object) -> None:
    """Adds a line to the file that PARITY_REPORT names, for a table of what was measured."""
    if report := os.environ.get("PARITY_REPORT"):
        with Path(report).open("a") as file:
            file.write(f"{label:32} {figures}\n")


def compare(run: Run) -> Difference:
    """The run's ledger and exported models against the plain script's."""
    plain = plain_ppo(run.config)
    before = {role: weights(model) for role, model in (("policy", plain.policy), ("critic", plain.critic))}
    result = plain.run([stored_step(run, step) for step in range(1, len(run.entries) + 1)])
    updates = {}
    for role, model, folder in (("policy", plain.policy, "export"), ("critic", plain.critic, "critic")):
        ours, theirs = load_file(run.folder / folder / "model.safetensors"), weights(model)
        assert ours.keys() == theirs.keys(), ours.keys() ^ theirs.keys()
        for name, start in before[role].items():
            change = theirs[name] - start
            assert change.norm() > 0, f"{role}/{name} was not trained"
            updates[f"{role}/{name}"] = float((ours[name] - start - change).norm() / change.norm())
    return Difference(
        numbers=compare_numbers(
            [entry.updates for entry in run.entries],
            # without a reference nobody has measured a KL
            [e.metrics["kl"] for e in run.entries] if "kl" in run.entries[0].metrics else None,
            result,
        ),
        updates=updates,
    )


def compare_numbers(
    ledger: Sequence[Mapping[str, Any]], kl: Sequence[float] | None, result: Result
) -> dict[str, float]:
    """The largest relative difference of each number of a minibatch, by role and name, and of each step's KL."""
    worst = {}
    if kl is not None:
        worst["kl"] = max(relative("kl", a, b) for a, b in zip(kl, result.kl, strict=True))
    for role, plain in (("policy", result.policy), ("critic", result.critic)):
        for step, minibatches in enumerate(plain):
            for ours, theirs in zip(ledger[step][role], minibatches, strict=True):
                for name, value in theirs.items():
                    key = f"{role}/{name}"
                    worst[key] = max(worst.get(key, 0.0), relative(key, ours[name], value))
    return worst


def relative(name: str, ours: float, plain: float) -> float:
    return abs(ours - plain) / max(abs(plain), TERMS.get(name, FLOOR)) if math.isfinite(ours) else math.inf


def weights(model: torch.nn.Module) -> dict[str, Tensor]:
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def plain_ppo(config: PPOStage) -> PlainPPO:
    """The plain script with the numbers of a config."""
    ppo, kl, total = config.ppo, config.ppo.kl, config.ppo.steps * config.ppo.epochs * config.ppo.minibatches
    adaptive = kl.controller if isinstance(kl.controller, AdaptiveKLConfig) else None
    numbers = Numbers(
        temperature=config.rollout.temperature,
        target_kl=ppo.target_kl,
        kl_coef=kl.controller.coef,
        kl_where=kl.where,
        kl_estimator=kl.estimator,
        kl_target=adaptive.target if adaptive else None,
        kl_horizon=adaptive.horizon if adaptive else 10000,
        gamma=ppo.gamma,
        gae_lambda=ppo.gae_lambda,
        clip_low=ppo.clip_low,
        clip_high=ppo.clip_high,
        dual_clip=ppo.dual_clip,
        importance_cap=ppo.importance_cap,
        value_clip=ppo.value_clip,
        sequence_mean=ppo.aggregation == "sequence_mean",
        entropy_coef=ppo.entropy_coef,
        bootstrap=ppo.truncation == "bootstrap",
    )
    assert config.policy.model is not None
    return PlainPPO(
        config.policy.model,
        config.critic.model or config.policy.model,
        numbers,
        plain_optimizer(config.policy.optimizer, total),
        plain_optimizer(config.critic.optimizer, total),
        new_head=config.critic.model is None,
    )


def plain_optimizer(config: OptimizerConfig, total_updates: int) -> Optimizer:
    return Optimizer(
        lr=config.lr,
        total_updates=total_updates,
        warmup=config.warmup_steps,
        decay=config.decay,
        final_frac=config.final_lr_frac,
        betas=config.betas,
        eps=config.eps,
        weight_decay=config.weight_decay,
        max_grad_norm=config.max_grad_norm,
    )


def stored_step(run: Run, step: int) -> Step:
    """A step's trajectories from the run's files in the order of their ids, and the minibatches that the run's seed gives."""
    rows = sorted(
        (row for file in trajectory_files(run.folder, step) for row in pq.read_table(file).to_pylist()),
        key=lambda row: row["id"],
    )
    ppo = run.config.ppo
    minibatches = []
    for epoch in range(ppo.epochs):
        of = minibatches_of(len(rows), ppo.minibatches, seed=run.config.run.seed, step=step, epoch=epoch)
        minibatches += [[b for b in range(len(rows)) if of[b] == minibatch] for minibatch in range(ppo.minibatches)]
    return Step(trajectories=[stored_trajectory(row) for row in rows], minibatches=minibatches)


def trajectory_files(run_dir: Path, step: int) -> list[Path]:
    return sorted((run_dir / "trajectories" / f"{step:08d}").glob("*.parquet"))


def stored_trajectory(row: Mapping[str, Any]) -> Trajectory:
    return Trajectory(
        tokens=row["tokens"],
        chosen=row["loss_mask"],
        rollout_logprobs=row["rollout_logprobs"],
        score=row["score"],
        truncated=row["truncated"],
    )
