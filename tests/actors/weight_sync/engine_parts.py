"""Real engines for the tests of rollout and weight sync: tiny models, prompts, and a plain transformers forward to compare with."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ray
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel

from actors.algorithms.records import Trajectories
from actors.context import RankContext
from actors.rollout import Rollout, RolloutReport, engine_environment
from actors.tasks import GenerationUnit
from actors.weight_sync.channel import Engines
from actors.weight_sync.cpu import CpuChannel
from actors.weight_sync.proof import probe_gap
from actors.weight_sync.reports import ProbeReport, SentReport
from actors.weight_sync.sender import WeightSender
from configs.schema.data import PromptDataConfig
from configs.schema.rollout import RolloutConfig, WeightSyncConfig
from tests.rank_contexts import rank_context

ROOT = Path(__file__).resolve().parents[3]
PROMPTS = ["hello cat", "what is two plus three ?", "why the red bird and the blue fish ?", "the sun", "she is where ?"]
TOLERANCE = 1e-4
WAIT_S = 240.0
VOCAB_SIZE = 4001
"""Makes the tiny models' embedding large enough for more than one bucket of 1 MiB; no multiple of 64, to which vLLM pads it."""


@contextmanager
def local_ray() -> Iterator[None]:
    """A Ray of this process alone, whose workers find our packages."""
    paths = {"PYTHONPATH": str(ROOT), "RAY_DEDUP_LOGS": "0"}
    ray.init(
        address="local", num_cpus=16, include_dashboard=False, log_to_driver=False, runtime_env={"env_vars": paths}
    )
    try:
        yield
    finally:
        ray.shutdown()


class OpenRollout(Rollout):
    """The role with a door for tests: a function that runs inside the engine's process."""

    def run(self, function: Callable[..., Any], *args: Any) -> Any:
        return function(self, *args)


def context(run_dir: str | Path, *, role: str = "rollout", seed: int = 0, deterministic: bool = True) -> RankContext:
    return rank_context(run_dir, role=role, seed=seed, deterministic=deterministic)


def prompt_file(folder: Path) -> PromptDataConfig:
    path = folder / "prompts.jsonl"
    path.write_text("".join(json.dumps({"prompt": prompt}) + "\n" for prompt in PROMPTS), "utf-8")
    return PromptDataConfig(path=str(path), chat_template=False, max_prompt_tokens=300)


def rollout_config(**changes: Any) -> RolloutConfig:
    defaults = {"temperature": 0.7, "max_response_tokens": 24, "responses_per_prompt": 2, "kv_cache_gib": 0.05}
    return RolloutConfig.model_validate(defaults | changes)


@dataclass(kw_only=True)
class Pair:
    """A policy in this process and an engine in another, with a sender between them."""

    engine: Any
    policy: PreTrainedModel
    sender: WeightSender
    temperature: float
    report: RolloutReport
    version: int = 0
    seeds: Iterator[int] = field(default_factory=lambda: iter(range(100, 1000)))

    def call(self, method: Callable[..., Any], *args: Any) -> Any:
        return ray.get(getattr(self.engine, method.__name__).remote(*args), timeout=WAIT_S)

    def probe(self, version: int, num_tokens: int) -> Trajectories:
        """The engine's answers to the probe."""
        answers, _ = self.call(Rollout.probe, version, num_tokens)
        return answers

    def run(self, function: Callable[..., Any], *args: Any) -> Any:
        """Runs `function(rollout, ...)` in the engine's process."""
        return self.call(OpenRollout.run, function, *args)

    def named(self) -> list[tuple[str, Tensor]]:
        """What the policy's rank iterates: every parameter once, under its Hugging Face name."""
        return [(name, parameter.detach()) for name, parameter in self.policy.named_parameters()]

    def scramble(self) -> None:
        scramble(self.policy, next(self.seeds))

    def sync(self, named: Sequence[tuple[str, Tensor]] | None = None) -> SentReport:
        self.version += 1
        sent = self.sender.send(iter(self.named() if named is None else named), self.version)
        assert sent is not None
        return sent

    def gap(self, trajectories: Trajectories) -> ProbeReport:
        return probe_gap(trajectories, plain_logprobs(self.policy, trajectories, self.temperature))

    def heal(self) -> None:
        """Only for tests, which would wait long for so many new engines: forgets that this one is broken and loads everything anew."""
        self.run(_forget)
        self.sender.connect_by(CpuChannel(Engines([self.engine])))
        self.scramble()
        self.sync()


def _forget(rollout: Rollout) -> None:
    rollout.state, rollout.policy_version = "unsynced", None
    for worker in rollout._backend._llm.collective_rpc(lambda worker: worker):
        if worker._receiver_update is not None:
            worker.receiver_finish()  # whatever is missing gets its old values back


def start_pair(model: Path, folder: Path, config: RolloutConfig, **sync: Any) -> Pair:
    """Starts the engine; it has no weights until the first sync."""
    environment: Mapping[str, str] = engine_environment(config, 1, "cpu")
    weight_sync = WeightSyncConfig.model_validate({"bucket_mib": 1, "timeout_s": 120, **sync})
    engine = (
        ray.remote(OpenRollout)
        .options(num_cpus=1, runtime_env={"env_vars": dict(environment)})
        .remote(context(folder), config, weight_sync, prompt_file(folder), str(model))
    )
    report = ray.get(engine.start.remote(), timeout=WAIT_S)
    sender = WeightSender(weight_sync, context(folder, role="policy"))
    sender.connect([engine], "cpu")
    policy = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
    return Pair(engine=engine, policy=policy, sender=sender, temperature=config.temperature, report=report)


@torch.no_grad()
def scramble(policy: PreTrainedModel, seed: int) -> None:
    """A large random change of every parameter, embeddings and tied head included."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in policy.parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        parameter.copy_(parameter * 0.6 + 0.2 * noise if parameter.dim() > 1 else 1 + 0.3 * noise)


@torch.no_grad()
def plain_logprobs(policy: PreTrainedModel, trajectories: Trajectories, temperature: float) -> Tensor:
    """float32 [T]: one forward pass per trajectory, log-softmax of the logits over the temperature, 0 at the first token."""
    rows = []
    for tokens in trajectories.tokens.split(trajectories.lengths):
        logprobs = (policy(tokens[None]).logits[0, :-1] / temperature).log_softmax(-1)
        rows.append(torch.cat([torch.zeros(1), logprobs.gather(-1, tokens[1:, None])[:, 0]]))
    return torch.cat(rows)


def unit(
    version: int, *, step: int = 3, seed: int = 11, rows: tuple[int, ...] = (0, 2, 1), responses: int = 2
) -> GenerationUnit:
    return GenerationUnit(
        step=step,
        wave=1,
        prompt_indices=rows,
        prompt_slots=tuple(range(4, 4 + len(rows))),
        responses_per_prompt=responses,
        seed=seed,
        policy_version=version,
    )
