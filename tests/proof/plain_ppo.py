"""PPO on stored trajectories as plainly as it can be written: one process, transformers and torch, padded batches, whole logits.

It shares no code with the project, so that a mistake there is not made here too. What it takes as given is what was sampled or drawn:
tokens, the engine's log-probabilities, scores, and which trajectories make up a minibatch.

Legend: `B` trajectories of a batch, `L` tokens of the longest. Everything said of token t stands at t.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import torch
import transformers
from torch import Tensor, nn


@dataclass(kw_only=True)
class Trajectory:
    tokens: list[int]
    chosen: list[bool]
    rollout_logprobs: list[float]
    score: float
    truncated: bool


@dataclass(kw_only=True)
class Step:
    trajectories: list[Trajectory]
    minibatches: list[list[int]]
    """Trajectories of each optimizer step, in order over epochs."""


@dataclass(kw_only=True)
class Optimizer:
    lr: float
    total_updates: int
    warmup: int = 0
    decay: str = "constant"
    final_frac: float = 0.0
    betas: tuple[float, float] = (0.9, 0.95)
    eps: float = 1e-8
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0

    def rate(self, update: int) -> float:
        if update < self.warmup:
            return self.lr * (update + 1) / self.warmup
        done = (update - self.warmup) / max(1, self.total_updates - self.warmup)
        left = {"constant": 1.0, "linear": 1 - done, "cosine": (1 + math.cos(math.pi * done)) / 2}[self.decay]
        return self.lr if self.decay == "constant" else self.lr * (self.final_frac + (1 - self.final_frac) * left)


@dataclass(kw_only=True)
class Numbers:
    temperature: float
    kl_coef: float
    kl_where: str = "reward"
    kl_estimator: str = "k1"
    kl_target: float | None = None
    """Of the adaptive controller; None: the coefficient stays."""
    kl_horizon: int = 10000
    gamma: float = 1.0
    gae_lambda: float = 0.95
    clip_low: float = 0.2
    clip_high: float = 0.2
    dual_clip: float | None = None
    importance_cap: float | None = 2.0
    value_clip: float | None = 0.2
    sequence_mean: bool = False
    target_kl: float | None = None
    entropy_coef: float = 0.0
    bootstrap: bool = True


@dataclass(kw_only=True)
class Result:
    policy: list[list[dict[str, float]]] = field(default_factory=list)
    """By step and minibatch."""
    critic: list[list[dict[str, float]]] = field(default_factory=list)
    kl: list[float] = field(default_factory=list)
    """By step: log p_old - log p_reference summed over a trajectory, mean over trajectories."""


class PlainPPO:
    def __init__(
        self, policy: str, critic: str, numbers: Numbers, of_policy: Optimizer, of_critic: Optimizer, *, new_head: bool
    ) -> None:
        load = transformers.AutoModelForCausalLM.from_pretrained
        self.policy = load(policy, dtype=torch.float32, attn_implementation="eager")
        self.reference = load(policy, dtype=torch.float32, attn_implementation="eager")
        self.critic = transformers.AutoModelForSequenceClassification.from_pretrained(
            critic, dtype=torch.float32, attn_implementation="eager", num_labels=1
        )
        if new_head:
            nn.init.zeros_(self.critic.score.weight)
        self.numbers, self.kl_coef = numbers, numbers.kl_coef
        self.of_policy, self.of_critic = of_policy, of_critic
        self.policy_adam, self.critic_adam = adam(self.policy, of_policy), adam(self.critic, of_critic)
        self.updates = 0
        self.result = Result()

    def run(self, steps: list[Step]) -> Result:
        for step in steps:
            self.step(step)
        return self.result

    def step(self, step: Step) -> None:
        n = self.numbers
        whole = Batch(step.trajectories)
        with torch.no_grad():
            old, _ = logprobs(self.policy, whole, n.temperature)
            reference, _ = logprobs(self.reference, whole, n.temperature)
            values, last_values = state_values(self.critic, whole)
        advantages, returns = torch.zeros_like(old), torch.zeros_like(old)
        for b, trajectory in enumerate(step.trajectories):
            places = [t for t, chosen in enumerate(trajectory.chosen) if chosen]
            penalty = kl(old[b] - reference[b], n.kl_estimator) * (self.kl_coef if n.kl_where == "reward" else 0.0)
            following = float(last_values[b]) if trajectory.truncated and n.bootstrap else 0.0
            running = 0.0
            for t in reversed(places):
                reward = -float(penalty[t]) + (trajectory.score if t == places[-1] else 0.0)
                delta = reward + n.gamma * following - float(values[b, t])
                running = delta + n.gamma * n.gae_lambda * running
                advantages[b, t], returns[b, t] = running, running + float(values[b, t])
                following = float(values[b, t])
        chosen = advantages[whole.chosen].double()
        whitened = ((advantages.double() - chosen.mean()) / (chosen.var() + 1e-8).sqrt()).float()
        per_trajectory = ((old - reference) * whole.chosen).sum(1)
        self.result.kl.append(float(per_trajectory.mean()))
        self.result.policy.append([])
        self.result.critic.append([])
        stopped = False
        for rows in step.minibatches:
            batch = Batch([step.trajectories[b] for b in rows])
            width = batch.tokens.shape[1]
            cut = [x[rows, :width] for x in (old, reference, whitened, values, returns)]
            if not stopped:
                self.result.policy[-1].append(self.update_policy(batch, *cut[:3]))
                stopped = n.target_kl is not None and self.result.policy[-1][-1]["approx_kl"] > n.target_kl
            self.result.critic[-1].append(self.update_critic(batch, *cut[3:]))
            self.updates += 1
        if n.kl_target is not None:
            error = max(-0.2, min(0.2, self.result.kl[-1] / n.kl_target - 1))
            self.kl_coef *= 1 + error * len(step.trajectories) / n.kl_horizon

    def update_policy(self, batch: Batch, old: Tensor, reference: Tensor, advantages: Tensor) -> dict[str, float]:
        n = self.numbers
        new, entropies = logprobs(self.policy, batch, n.temperature)

        def mean(x: Tensor) -> Tensor:
            x = torch.where(batch.chosen, x, 0.0)
            return (x.sum(1) / batch.chosen.sum(1)).mean() if n.sequence_mean else x.sum() / batch.chosen.sum()

        ratio = (new - old).exp()
        plain, clipped = ratio * advantages, ratio.clamp(1 - n.clip_low, 1 + n.clip_high) * advantages
        objective = torch.minimum(plain, clipped)
        floored = torch.zeros_like(batch.chosen)
        if n.dual_clip is not None:
            floored = (advantages < 0) & (objective < n.dual_clip * advantages)
            objective = torch.where(floored, n.dual_clip * advantages, objective)
        weight: Tensor | float = 1.0
        if n.importance_cap is not None:
            weight = (old - batch.rollout_logprobs).exp().clamp(max=n.importance_cap)
        surrogate, entropy = -mean(objective * weight), mean(entropies)
        loss = surrogate - n.entropy_coef * entropy
        found = {"policy_loss": surrogate, "entropy": entropy, "ratio": mean(ratio)}
        if n.kl_where == "loss" and self.kl_coef > 0:
            found["kl_loss"] = mean(kl(new - reference, n.kl_estimator))
            loss = loss + self.kl_coef * found["kl_loss"]
        found["loss"] = loss
        found["approx_kl"] = mean((new - old).exp() - 1 - (new - old))
        found["clip_frac"], found["dual_clip_frac"] = mean((clipped < plain).float()), mean(floored.float())
        numbers = {name: float(value.detach()) for name, value in found.items()}
        return numbers | {"grad_norm": self.descend(self.policy, self.policy_adam, self.of_policy, loss)}

    def update_critic(self, batch: Batch, old: Tensor, returns: Tensor) -> dict[str, float]:
        values, _ = state_values(self.critic, batch)
        count, error = batch.chosen.sum(), (values - returns) ** 2
        worst, clipped = error, torch.zeros_like(batch.chosen)
        if self.numbers.value_clip is not None:
            clip = self.numbers.value_clip
            clipped = (values - old).abs() > clip
            worst = torch.maximum(error, (old + (values - old).clamp(-clip, clip) - returns) ** 2)
        loss = 0.5 * worst[batch.chosen].sum() / count
        numbers = {
            "value_loss": float(loss.detach()),
            "value": float(values.detach()[batch.chosen].mean()),
            "return": float(returns[batch.chosen].mean()),
            "value_clip_frac": float((clipped & (worst > error))[batch.chosen].float().mean()),
        }
        return numbers | {"grad_norm": self.descend(self.critic, self.critic_adam, self.of_critic, loss)}

    def descend(self, model: nn.Module, adam: torch.optim.AdamW, optimizer: Optimizer, loss: Tensor) -> float:
        adam.zero_grad()
        loss.backward()
        norm = nn.utils.clip_grad_norm_(model.parameters(), optimizer.max_grad_norm)
        for group in adam.param_groups:
            group["lr"] = optimizer.rate(self.updates)
        adam.step()
        return float(norm)


class Batch:
    """Trajectories padded on the right."""

    def __init__(self, trajectories: list[Trajectory]) -> None:
        self.lengths = [len(t.tokens) for t in trajectories]
        width = max(self.lengths)

        def padded(rows: list[list[Any]], fill: float) -> Tensor:
            return torch.tensor([[*row, *[fill] * (width - len(row))] for row in rows])

        self.tokens = padded([t.tokens for t in trajectories], 0)
        self.present = padded([[1] * length for length in self.lengths], 0)
        self.chosen = padded([t.chosen for t in trajectories], False)
        self.rollout_logprobs = padded([t.rollout_logprobs for t in trajectories], 0.0)


def logprobs(model: nn.Module, batch: Batch, temperature: float) -> tuple[Tensor, Tensor]:
    """Log-probability of each token after the first and entropy of its distribution: [B, L] each, 0 where not chosen."""
    logits = model(input_ids=batch.tokens, attention_mask=batch.present, use_cache=False).logits[:, :-1] / temperature
    log_p = logits.log_softmax(-1)
    own = log_p.gather(-1, batch.tokens[:, 1:, None]).squeeze(-1)
    entropy = -(log_p.exp() * log_p).sum(-1)
    return tuple(torch.where(batch.chosen, nn.functional.pad(x, (1, 0)), 0.0) for x in (own, entropy))  # type: ignore[return-value]


def state_values(model: Any, batch: Batch) -> tuple[Tensor, Tensor]:
    """Value of the state before each token [B, L] (0 before the first) and after the last [B]."""
    hidden = model.model(input_ids=batch.tokens, attention_mask=batch.present, use_cache=False).last_hidden_state
    heads = model.score(hidden).squeeze(-1)
    return nn.functional.pad(heads[:, :-1], (1, 0)), heads[torch.arange(len(heads)), torch.tensor(batch.lengths) - 1]


def kl(difference: Tensor, estimator: str) -> Tensor:
    return {"k1": difference, "k2": difference**2 / 2, "k3": (-difference).exp() - 1 + difference}[estimator]


def adam(model: nn.Module, optimizer: Optimizer) -> torch.optim.AdamW:
    matrices = [p for p in model.parameters() if p.dim() > 1]
    vectors = [p for p in model.parameters() if p.dim() < 2]
    groups = [{"params": matrices, "weight_decay": optimizer.weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=optimizer.lr, betas=optimizer.betas, eps=optimizer.eps)
