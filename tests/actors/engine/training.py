"""One small training task, run by the engine on real ranks and by a plain torch loop."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from actors.context import RankContext
from actors.engine.distributed import join_process_group
from actors.engine.engine import Engine
from actors.models.causal_lm import load_policy
from configs.schema.engine import EngineConfig
from tests.actors.engine.ranks import OPTIMIZER, packed, sequences

TEMPERATURE = 0.7
LEARNING_RATES = (1e-2, 5e-3, 1e-2)
# Micro-batches of each step on each rank, as numbers of sequences; 0 is a dummy. Every step has 6 sequences, split in other ways.
LAYOUTS: dict[int, list[list[list[int]]]] = {
    1: [[[6]], [[2, 3, 1]], [[1, 5]]],
    2: [[[3], [3]], [[2, 2, 1], [1, 0, 0]], [[4, 1], [0, 1]]],
    3: [[[2], [2], [2]], [[2, 1], [0, 2], [1, 0]], [[6], [0], [0]]],
}


@dataclass(frozen=True, kw_only=True)
class Task:
    model: str
    engine: EngineConfig
    steps: tuple[int, ...] = (0, 1, 2)
    state_in: str | None = None
    state_out: str | None = None
    export: str | None = None
    extra: dict[str, Any] = field(default_factory=dict)


def step_sequences(step: int) -> list[tuple[list[int], int]]:
    return sequences(6, seed=100 + step)


def token_weights(step: int) -> Tensor:
    """A weight for each token of the step's sequences, so that no two tokens' gradients can be exchanged unnoticed."""
    total = sum(len(tokens) for tokens, _ in step_sequences(step))
    return torch.randn(total, generator=torch.Generator().manual_seed(7 + step))


def num_loss_tokens(step: int) -> int:
    return sum(len(tokens) - prompt for tokens, prompt in step_sequences(step))


def start_engine(context: RankContext, task: Task) -> Engine:
    join_process_group(context)
    module = load_policy(task.model, task.engine, device=context.device)
    return Engine(module, engine=task.engine, optimizer=OPTIMIZER, context=context)


def train_step(engine: Engine, context: RankContext, step: int) -> tuple[float, dict[str, float]]:
    """Norm and metrics of one step: loss = sum of weighted log-probabilities and entropies over the global token count."""
    drawn, weights = step_sequences(step), token_weights(step)
    bounds = [0]
    for tokens, _ in drawn:
        bounds.append(bounds[-1] + len(tokens))
    layout = LAYOUTS[context.world_size][step]
    first = sum(sum(sizes) for sizes in layout[: context.rank])
    batches, token_slices = [], []
    for size in layout[context.rank]:
        batches.append(packed(*drawn[first : first + size]))
        token_slices.append(weights[bounds[first] : bounds[first + size]])
        first += size

    def loss_fn(index: int, outputs: tuple[Tensor, ...]) -> tuple[Tensor, dict[str, Tensor]]:
        logprobs, entropy = outputs
        loss = (token_slices[index] * logprobs + 0.1 * entropy).sum() / num_loss_tokens(step)
        return loss, {"loss": loss, "max_logprob": logprobs.max()}

    metrics = engine.forward_backward(batches, loss_fn, temperature=TEMPERATURE, with_entropy=True, entropy_grad=True)
    return engine.step(LEARNING_RATES[step]), metrics


def train(context: RankContext, task: Task) -> dict[str, Any]:
    """What a rank sees: norms, metrics, full parameters at the start and the end, digest."""
    engine = start_engine(context, task)
    if task.state_in is not None:
        engine.state_in(task.state_in)
    start = {name: value.clone() for name, value in engine.iter_full_parameters(torch.float32)}
    norms, metrics = zip(*(train_step(engine, context, step) for step in task.steps), strict=True)
    files = engine.state_out(task.state_out) if task.state_out is not None else []
    if task.export is not None:
        engine.export(task.export, tokenizer_from=task.model)
    return {
        "norms": list(norms),
        "metrics": list(metrics),
        "start": start,
        "end": {name: value.clone() for name, value in engine.iter_full_parameters(torch.float32)},
        "compute": {name: value.clone() for name, value in engine.iter_full_parameters()},
        "digest": engine.digest(),
        "files": [(file.name, file.sha256, file.num_bytes) for file in files],
    }


def reference(model: str | Path, steps: tuple[int, ...] = (0, 1, 2)) -> dict[str, Any]:
    """The same task in a plain float32 loop: one sequence at a time, whole logits, AdamW, clip_grad_norm_."""
    network = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    parameters = dict(network.named_parameters())
    groups = [
        {"params": [p for p in parameters.values() if p.dim() >= 2], "weight_decay": OPTIMIZER.weight_decay},
        {"params": [p for p in parameters.values() if p.dim() < 2], "weight_decay": 0.0},
    ]
    adam = torch.optim.AdamW(groups, lr=1.0, betas=OPTIMIZER.betas, eps=OPTIMIZER.eps)
    norms, losses = [], []
    start = {name: p.detach().clone() for name, p in parameters.items()}
    for step in steps:
        total, offset, weights = torch.zeros(()), 0, token_weights(step)
        for tokens, prompt in step_sequences(step):
            ids = torch.tensor(tokens)
            log_p = torch.log_softmax(network(ids[None]).logits[0] / TEMPERATURE, dim=-1)
            chosen = log_p[prompt - 1 : -1].gather(-1, ids[prompt:, None])[:, 0]
            entropy = -(log_p.exp() * log_p).sum(-1)[prompt - 1 : -1]
            total = total + (weights[offset + prompt : offset + len(tokens)] * chosen + 0.1 * entropy).sum()
            offset += len(tokens)
        loss = total / num_loss_tokens(step)
        adam.zero_grad()
        loss.backward()
        norms.append(float(torch.nn.utils.clip_grad_norm_(network.parameters(), OPTIMIZER.max_grad_norm)))
        losses.append(loss.item())
        for group in adam.param_groups:
            group["lr"] = LEARNING_RATES[step]
        adam.step()
    end = {name: p.detach().clone() for name, p in parameters.items()}
    return {"norms": norms, "losses": losses, "start": start, "end": end}
