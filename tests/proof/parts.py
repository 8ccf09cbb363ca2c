"""Real runs on tiny models whose processes are started once: engines, reference and trainers take up one run after the other.

Starting a role costs some ten seconds of imports, a run of three steps one or two.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ray

from actors.context import RankContext
from actors.critic import Critic
from actors.policy import Policy
from actors.reference import Reference
from actors.rollout import Rollout
from actors.tasks import MinibatchShard, WaveShard
from actors.trainer import Trainer
from configs.schema.ppo import PPOStage
from orchestrator.launch import Launched
from orchestrator.ledger import LedgerEntry
from orchestrator.machine import local_machine
from orchestrator.plan import make_plan
from orchestrator.plan_records import PPOPlan
from orchestrator.ppo_loop import PPOLoop
from orchestrator.progress import Progress
from orchestrator.stages import ppo_roles

if TYPE_CHECKING:
    from actors.algorithms.records import Trajectories

STEPS, TEMPERATURE = 3, 0.7
CLIPS = {"clip_low": 0.05, "clip_high": 0.05, "value_clip": 0.05}
"""Narrow, so that they bite within a few updates."""
END_TOKENS = tuple(range(60, 76))
"""Beside the model's own: about one token in eight ends an answer, so that some answers end and some are cut off."""


class Again:
    """A role whose process can take up another run; `fault` plants a mistake in it."""

    fault: str | None = None

    def stand_by(self) -> None:
        """In place of `start`: nothing is loaded until a run begins."""

    def begin_again(self, run_dir: str, fault: str | None, args: tuple[Any, ...]) -> None:
        context: RankContext = self.context  # type: ignore[attr-defined]
        self.__init__(replace(context, run_dir=run_dir), *args)  # type: ignore[misc]
        self.fault = fault
        self.start()  # type: ignore[attr-defined]


class PolicyAgain(Again, Policy):
    def logprobs(self, shard: WaveShard, trajectories: Trajectories) -> tuple[Any, Any]:
        if self.fault == "end token masked":
            ends = trajectories.cu_lengths[1:] - 1
            mask = trajectories.loss_mask.clone()
            mask[ends] &= trajectories.truncated
            trajectories = replace(trajectories, loss_mask=mask)
        return super().logprobs(shard, trajectories)

    def _loss(self, batch: Any, keys: Any, minibatch: MinibatchShard, kl_coef: float, outputs: Any) -> Any:
        if self.fault == "count of the rank":
            own = [key for micro in minibatch.micro_batches for key in micro]
            num_tokens = int(self.kept.batch(own).loss_mask.sum())
            # each rank's own mean, and the mean of the ranks': what plain data parallelism makes of it
            minibatch = replace(minibatch, num_tokens=num_tokens * self.context.world_size)
        return super()._loss(batch, keys, minibatch, kl_coef, outputs)


class CriticAgain(Again, Critic):
    def _experience(self, order: Any, columns: Any) -> Any:
        rewards: Any = importlib.import_module("actors.algorithms.rewards")
        right = rewards.last_unmasked
        if self.fault == "reward one token early":
            rewards.last_unmasked = lambda mask, cu_lengths: right(mask, cu_lengths) - 1
        try:
            return super()._experience(order, columns)
        finally:
            rewards.last_unmasked = right


class ReferenceAgain(Again, Reference):
    pass


class RolloutAgain(Rollout):
    def sample_at(self, temperature: float) -> None:
        self._rollout = self._rollout.model_copy(update={"temperature": temperature})

    def logprobs_mode(self, mode: str) -> None:
        def change(worker: Any) -> None:
            worker.model_runner.sampler.logprobs_mode = mode
            worker.model_runner.sampler.topk_topp_sampler.logprobs_mode = mode

        self._backend._llm.collective_rpc(change)


@dataclass(frozen=True, kw_only=True)
class Setting:
    """One way to run the three steps."""

    tied: bool = True
    zero_stage: int = 0
    num_ranks: int = 1
    micro_batch_tokens: int = 64
    new_head: bool = True
    """The critic starts from the policy with a head of zeros; else from a value model with a head."""
    ppo: Mapping[str, Any] = field(default_factory=dict)
    optimizer: Mapping[str, Any] = field(default_factory=dict)
    engine: Mapping[str, Any] = field(default_factory=dict)
    temperature: float = TEMPERATURE
    steps: int = STEPS


@dataclass(frozen=True, kw_only=True)
class Run:
    """What a run left."""

    setting: Setting
    config: PPOStage
    folder: Path
    entries: list[LedgerEntry]


class Parts:
    """Models, prompts and running processes."""

    def __init__(self, folder: Path, progress: Progress) -> None:
        from tests.tiny_models import make_tiny_causal_lm, make_tiny_scalar

        self.folder = folder
        self.progress = progress
        self.policies = {tied: str(make_tiny_causal_lm(folder / f"tied-{tied}", tied=tied)) for tied in (True, False)}
        self.critic = str(make_tiny_scalar(folder / "critic", seed=1))
        self.prompts = folder / "prompts.jsonl"
        animals, colours = "cat dog bird fish house tree".split(), ("red", "blue and green", "old", "big hot small")
        rows = [f'{{"prompt": "what is the {colour} {animal} ?"}}\n' for animal in animals for colour in colours]
        self.num_prompts = len(rows)
        self.prompts.write_text("".join(rows))
        self._launched: list[Launched] = []
        self._engines: dict[bool, Launched] = {}
        self._trainers: dict[int, Launched] = {}
        self._reference: Launched | None = None
        self._num_runs = 0

    # -- configs

    def config(self, setting: Setting, run_dir: Path) -> PPOStage:
        model = self.policies[setting.tied]
        engine = {"zero_stage": setting.zero_stage, "micro_batch_tokens": setting.micro_batch_tokens, **setting.engine}
        # eps well above the rounding of a gradient: else, where a gradient is nearly 0, Adam divides rounding by rounding
        optimizer = {"lr": 1e-4, "eps": 1e-4, "weight_decay": 0.01, "max_grad_norm": 1.0, **setting.optimizer}
        trainer = {
            "engine": engine,
            "optimizer": optimizer,
            "placement": {"num_ranks": setting.num_ranks, "threads_per_rank": 1},
        }
        critic = {"init_from": "policy"} if setting.new_head else {"init_from": "model", "model": self.critic}
        return PPOStage.model_validate(
            {
                "stage": "ppo",
                "run": {"dir": str(run_dir), "seed": 1, "deterministic": True, "checkpoint_every": 100},
                "data": {"path": str(self.prompts), "max_prompt_tokens": 32},
                "policy": {"model": model, **trainer},
                "critic": {
                    **critic,
                    **trainer,
                    "optimizer": {**optimizer, "lr": optimizer["lr"] * (1.0 if setting.new_head else 0.3)},
                },
                "reference": {"placement": {"threads_per_rank": 1}},
                "reward": {"functions": [{"function": "tests.proof.rewards:score"}]},
                "rollout": {
                    "responses_per_prompt": 2,
                    "max_response_tokens": 8,
                    "prompts_per_wave": 3,
                    "temperature": setting.temperature,
                    "stop_token_ids": END_TOKENS,
                    "threads_per_engine": 1,
                },
                "ppo": {
                    "steps": setting.steps,
                    "prompts_per_step": 8,
                    "minibatches": 2,
                    "epochs": 2,
                    **CLIPS,
                    **setting.ppo,
                },
            }
        )

    # -- runs

    def run(self, setting: Setting, *, faults: Mapping[str, str] | None = None) -> Run:
        """All steps of a setting through the orchestrator's own loop, every tensor in the roles' own processes."""
        loop = self.loop(setting, faults=faults)
        loop.run()
        loop.waiter.wait(
            loop.groups["critic"].call(Trainer.export, str(loop.run_dir / "critic"), loop.config.policy.model)
        )
        entries = [loop.ledger.read(step) for step in range(1, loop.config.ppo.steps + 1)]
        return Run(setting=setting, config=loop.config, folder=loop.run_dir, entries=entries)

    def loop(
        self, setting: Setting, *, faults: Mapping[str, str] | None = None, run_dir: Path | None = None
    ) -> PPOLoop:
        """The loop over freshly loaded models, not yet run, in a new folder or in that of an earlier run."""
        self._num_runs += 1
        run_dir = run_dir or self.folder / f"run-{self._num_runs}"
        config = self.config(setting, run_dir)
        plan = make_plan(config, local_machine())
        assert isinstance(plan, PPOPlan)
        launched = self._assemble(setting, config, plan)
        specs, calls = ppo_roles(config, plan), []
        for role in ("policy", "critic", "reference"):
            if role in launched.groups:
                args = (str(run_dir), (faults or {}).get(role), specs[role].args)
                calls += launched.groups[role].call(Again.begin_again, *args)
        calls += launched.groups["rollout"].call(RolloutAgain.sample_at, setting.temperature)
        launched.waiter.wait(calls)
        return PPOLoop(config, plan, launched, run_dir, self.num_prompts, self.progress)

    def _assemble(self, setting: Setting, config: PPOStage, plan: PPOPlan) -> Launched:
        """The groups of a setting, started where this is the first that needs them."""
        if setting.tied not in self._engines:
            self._engines[setting.tied] = self._start(config, plan, ["rollout", "reward_function_0"])
        if setting.num_ranks not in self._trainers:
            self._trainers[setting.num_ranks] = self._start(config, plan, ["policy", "critic"])
        if self._reference is None:
            self._reference = self._start(config, plan, ["reference"])
        launched = Launched(config.cluster, config.run, Path(config.run.dir))
        for part in (self._engines[setting.tied], self._trainers[setting.num_ranks], self._reference):
            launched.groups |= {name: group for name, group in part.groups.items() if name in plan.roles}
        for group in launched.groups.values():
            launched.waiter.watch(group)
        return launched

    def _start(self, config: PPOStage, plan: PPOPlan, names: list[str]) -> Launched:
        kinds = {"policy": PolicyAgain, "critic": CriticAgain, "reference": ReferenceAgain, "rollout": RolloutAgain}
        specs = ppo_roles(config, plan)
        again = {name: replace(specs[name], role_class=kinds.get(name, specs[name].role_class)) for name in names}
        number = len(self._launched)  # in the names of placement groups, which Ray wants unique
        only = replace(
            plan,
            roles={name: plan.roles[name] for name in names},
            groups={name: replace(plan.groups[name], name=f"{name}-{number}") for name in names},
        )
        launched = Launched(config.cluster, config.run, Path(config.run.dir))
        self._launched.append(launched)
        launched.spawn(only, again)
        launched.load(
            {
                name: Again.stand_by if issubclass(spec.role_class, Again) else spec.role_class.start
                for name, spec in again.items()
            }
        )
        return launched

    def stop(self) -> None:
        for launched in self._launched:
            launched.stop()


@contextmanager
def running_parts(folder: Path) -> Iterator[Parts]:
    """Ray of this process alone, and parts that start as they are needed; all ended with the block."""
    root = str(Path(__file__).absolute().parents[2])
    search = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))
    ray.init(
        address="local",
        num_cpus=16,
        include_dashboard=False,
        log_to_driver=False,
        configure_logging=False,
        runtime_env={"env_vars": {"PYTHONPATH": search}},
    )
    parts = None
    try:
        with Progress() as progress:
            parts = Parts(folder, progress)
            yield parts
    finally:
        if parts is not None:
            parts.stop()
        ray.shutdown()
