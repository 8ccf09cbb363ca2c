"""Real engines for the tests of rollout and weight sync: tiny models, prompts, and a plain transformers forward to compare with."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel

from actors.algorithms.records import Trajectories
from actors.context import RankContext
from actors.rollout import Rollout, engine_environment
from actors.tasks import GenerationUnit
from actors.weight_sync.bucket import fill_buckets
from actors.weight_sync.reports import ProbeReport, SyncReceipt
from actors.weight_sync.proof import probe_gap
from configs.schema.data import PromptDataConfig
from configs.schema.rollout import RolloutConfig, WeightSyncConfig

Named = Sequence[tuple[str, Tensor]]

PROMPTS = [
    "hello cat",
    "what is two plus three ?",
    "why the red bird and the blue fish ?",
    "the sun",
    "she is where ?",
    "no",
]
TOLERANCE = 1e-4


def context(run_dir: str | Path, *, role: str = "rollout", seed: int = 0, deterministic: bool = True) -> RankContext:
    return RankContext(
        role=role,
        rank=0,
        world_size=1,
        device="cpu",
        threads=1,
        seed=seed,
        deterministic=deterministic,
        collective_timeout_s=60,
        run_dir=str(run_dir),
    )


def prompt_file(folder: Path) -> PromptDataConfig:
    path = folder / "prompts.jsonl"
    path.write_text("".join(json.dumps({"prompt": prompt}) + "\n" for prompt in PROMPTS), "utf-8")
    return PromptDataConfig(path=str(path), chat_template=False, max_prompt_tokens=300)


def rollout_config(**changes: object) -> RolloutConfig:
    defaults = {"temperature": 0.7, "max_response_tokens": 24, "responses_per_prompt": 2, "kv_cache_gib": 0.05}
    return RolloutConfig.model_validate(defaults | changes)


def in_process_engine(model: Path, folder: Path, config: RolloutConfig) -> Rollout:
    """An engine inside this very process, started, without weights."""
    os.environ.update(engine_environment(config, 1, "cpu"))
    engine = Rollout(context(folder), config, WeightSyncConfig(), prompt_file(folder), str(model))
    engine.start()
    return engine


def load_policy(model: Path) -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()


def named_weights(policy: PreTrainedModel) -> list[tuple[str, Tensor]]:
    """What the policy's rank iterates: every parameter once, under its Hugging Face name."""
    return [(name, parameter.detach()) for name, parameter in policy.named_parameters()]


@torch.no_grad()
def scramble(policy: PreTrainedModel, seed: int) -> None:
    """A large random change of every parameter, embeddings and tied head included."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in policy.parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        parameter.copy_(parameter * 0.6 + 0.2 * noise if parameter.dim() > 1 else 1 + 0.3 * noise)


def sync_by_hand(engine: Rollout, weights: Named, version: int, *, bucket_bytes: int = 20_000) -> SyncReceipt:
    """A whole sync without Ray: the calls that a channel makes, in their order."""
    engine.begin_update(version)
    checksums: dict[str, str] = {}
    for filled in fill_buckets(weights, bucket_bytes, lambda n: torch.empty(n, dtype=torch.uint8)):
        checksums |= filled.checksums
        engine.load_bucket(filled.bucket, filled.payload.numpy())
    return engine.finish_update(version, checksums)


@torch.no_grad()
def plain_logprobs(policy: PreTrainedModel, trajectories: Trajectories, temperature: float) -> Tensor:
    """float32 [T]: one forward pass per trajectory, log-softmax of the logits over the temperature, 0 at the first token."""
    rows = []
    for tokens in trajectories.tokens.split(trajectories.lengths):
        logprobs = (policy(tokens[None]).logits[0, :-1] / temperature).log_softmax(-1)
        rows.append(torch.cat([torch.zeros(1), logprobs.gather(-1, tokens[1:, None])[:, 0]]))
    return torch.cat(rows)


def gap(policy: PreTrainedModel, trajectories: Trajectories, temperature: float) -> ProbeReport:
    return probe_gap(trajectories, plain_logprobs(policy, trajectories, temperature))


def unit(version: int, *, step: int = 3, seed: int = 11, rows: tuple[int, ...] = (0, 2, 1)) -> GenerationUnit:
    return GenerationUnit(
        step=step,
        wave=1,
        prompt_indices=rows,
        prompt_slots=tuple(range(4, 4 + len(rows))),
        seed=seed,
        policy_version=version,
    )
