"""One stage from its config to its end: check, launch, loop, and everything ended again whatever happens."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import ray

from actors.annotator import Annotator
from actors.critic import Critic
from actors.dpo_trainer import DPOTrainer
from actors.errors import PreceptorError, RoleFailed, UserError
from actors.language_trainer import LanguageTrainer
from actors.policy import Policy
from actors.preflight import PromptFacts, SupervisedFacts, check_ppo, check_rank, check_supervised
from actors.reference import Reference
from actors.reward import Reward
from actors.reward_trainer import RewardTrainer
from actors.reward_worker import ROWS_FINGERPRINT, RewardWorker
from actors.rollout import Rollout, RolloutReport, engine_environment
from actors.supervised_trainer import DATA_FINGERPRINT, SupervisedTrainer
from actors.trainer import Trainer
from configs.schema import Stage, SupervisedStage
from configs.schema.compare import CompareConfig
from configs.schema.ppo import PPOStage
from configs.schema.rank import RankStage
from configs.schema.rewards import FunctionConfig
from orchestrator.evaluation import JUDGE
from orchestrator.launch import Launched, RoleSpec, machine_of, start_ray
from orchestrator.leftovers import nothing_left
from orchestrator.machine import local_machine
from orchestrator.plan import Plan, make_plan
from orchestrator.plan_records import PPOPlan, SupervisedPlan
from orchestrator.ppo_loop import PPOLoop
from orchestrator.ppo_step import TRAINED
from orchestrator.progress import Progress
from orchestrator.rank_loop import RankLoop
from orchestrator.run_dir import PLAN_FILE, same_data, same_models
from orchestrator.signals import interruptible, stop_between_steps, undisturbed
from orchestrator.supervised_loop import SupervisedLoop
from orchestrator.surroundings import cluster_address


def run_ppo(config: PPOStage, run_dir: Path, progress: Progress, on_ready: Callable[[Plan], None]) -> int | None:
    """Runs or goes on with a PPO stage. The step of the exported weights, None where it was asked to stop before its end."""
    with ray_for(config, progress) as plan:
        assert isinstance(plan, PPOPlan)
        with progress.phase("checking data and models"):
            facts: PromptFacts = in_cluster(check_ppo, config, timeout_s=config.cluster.start_timeout_s)
        progress.note(
            f"{facts.num_prompts} prompts, longest {facts.longest_tokens} tokens, {facts.num_dropped} left out for length"
            + (f", {facts.num_held_out} held out" if facts.num_held_out else "")
        )
        if facts.why_text is not None:
            progress.note(f"answers are handed to the reward model as text: {facts.why_text}")
        same_models(run_dir, facts.models)
        same_data(run_dir, facts.fingerprint, config.data.path)
        on_ready(plan)
        with launched_roles(config, plan, ppo_roles(config, plan), run_dir, progress) as launched:
            same_rows(launched, facts.fingerprint, config.data.path, rows_fingerprint=facts.rows_fingerprint)
            loop = PPOLoop(
                config, plan, launched, run_dir, facts.num_prompts, progress, num_held_out=facts.num_held_out
            )
            with stop_between_steps(loop, progress):
                loop.run()
            return loop.exported


TRAINERS: dict[str, type[SupervisedTrainer]] = {
    "pretrain": LanguageTrainer,
    "sft": LanguageTrainer,
    "dpo": DPOTrainer,
    "reward": RewardTrainer,
}
"""Who learns in which supervised stage."""


def run_supervised(
    config: SupervisedStage, run_dir: Path, progress: Progress, on_ready: Callable[[Plan], None]
) -> int | None:
    """Runs or goes on with a supervised stage. The step of the exported weights, None where it was asked to stop before its end."""
    with ray_for(config, progress) as plan:
        assert isinstance(plan, SupervisedPlan)
        with progress.phase("checking data and model"):
            facts: SupervisedFacts = in_cluster(check_supervised, config, timeout_s=config.cluster.start_timeout_s)
        progress.note(
            f"{facts.num_train} {plan.items} to train on, {facts.num_held_out} held out; left out: {facts.num_dropped} for length"
            + (f", {facts.num_ties} that rank all answers the same" if facts.num_ties is not None else "")
        )
        same_models(run_dir, facts.models)
        same_data(run_dir, facts.fingerprint, config.data.path)
        on_ready(plan)
        specs = {plan.role: RoleSpec(role_class=TRAINERS[config.stage], args=(config,))}
        with launched_roles(config, plan, specs, run_dir, progress) as launched:
            same_rows(launched, facts.fingerprint, config.data.path)
            loop = SupervisedLoop(config, plan, launched, run_dir, progress)
            with stop_between_steps(loop, progress):
                loop.run()
            return loop.exported


def run_rank(config: RankStage, run_dir: Path, progress: Progress, on_ready: Callable[[Plan], None]) -> int | None:
    """Runs or goes on with a rank stage. Its number of waves, None where it was asked to stop before its end."""
    with ray_for(config, progress) as plan:
        with progress.phase("checking data and model"):
            facts: PromptFacts = in_cluster(check_rank, config, timeout_s=config.cluster.start_timeout_s)
        held_out = f", {facts.num_held_out} held out and left out" if facts.num_held_out else ""
        progress.note(f"{facts.num_prompts} prompts, {facts.num_dropped} left out for length{held_out}")
        same_models(run_dir, facts.models)
        same_data(run_dir, facts.fingerprint, config.data.path)
        on_ready(plan)
        model, rollout = config.policy.model, config.rollout
        specs = {
            "rollout": RoleSpec(
                role_class=Rollout,
                args=(rollout, None, config.data, model),
                environment=engine_environment(rollout, plan.roles["rollout"].threads, config.cluster.device),
            ),
            "annotator": RoleSpec(role_class=Annotator, args=(config.annotator, config.data, model)),
        }
        with launched_roles(config, plan, specs, run_dir, progress) as launched:
            same_rows(launched, facts.fingerprint, config.data.path, rows_fingerprint=facts.rows_fingerprint)
            loop = RankLoop(config, launched, run_dir, facts.num_prompts, progress)
            with stop_between_steps(loop, progress):
                loop.run()
            return loop.step if loop.finished else None


def ppo_roles(config: PPOStage, plan: PPOPlan) -> dict[str, RoleSpec]:
    """How each role of a PPO stage is made."""
    policy_model, temperature = config.policy.model, config.rollout.temperature
    assert policy_model is not None
    reward = config.reward.model
    critic_model = {
        "reward": reward.model if reward is not None else None,
        "policy": policy_model,
        "model": config.critic.model,
    }[config.critic.init_from]
    specs = {
        "policy": RoleSpec(role_class=Policy, args=(config.policy, config.ppo, config.weight_sync, temperature)),
        "critic": RoleSpec(
            role_class=Critic,
            args=(
                config.critic,
                config.ppo,
                config.reward,
                config.rollout.max_response_tokens,
                critic_model,
                policy_model,
            ),
        ),
        "reference": RoleSpec(
            role_class=Reference, args=(config.reference, config.reference.model or policy_model, temperature)
        ),
        "rollout": RoleSpec(
            role_class=Rollout,
            args=(config.rollout, config.weight_sync, config.data, policy_model),
            environment=engine_environment(config.rollout, plan.roles["rollout"].threads, config.cluster.device),
        ),
    }
    if reward is not None:
        specs["reward"] = RoleSpec(role_class=Reward, args=(reward, config.data, policy_model))
    functions: dict[str, FunctionConfig] = {
        f"reward_function_{number}": function for number, function in enumerate(config.reward.functions)
    }
    if config.evaluation.judge is not None:
        functions[JUDGE] = config.evaluation.judge
    for name, function in functions.items():
        specs[name] = RoleSpec(role_class=RewardWorker, args=(function, config.data, policy_model))
    return specs


@contextmanager
def ray_for(config: Stage | CompareConfig, progress: Progress) -> Iterator[Plan]:
    """Ray started or joined, and the plan for what it has. Ray of this machine alone ends with the context, and all its actors with it."""
    address = cluster_address(config.cluster)
    local = address is None
    with nothing_left() if local else nullcontext():
        try:
            if local:
                plan = make_plan(config, local_machine())
                with progress.phase("starting Ray"):
                    start_ray(config.cluster, plan)
            else:
                with progress.phase(f"joining Ray at {address}"):
                    start_ray(config.cluster, make_plan(config, None))
                # what an autoscaler will have started is not known yet
                plan = make_plan(config, None if config.cluster.autoscaling else machine_of(config.cluster))
            # Ray has put its own handler for SIGTERM in place of ours
            with interruptible():
                yield plan
        finally:
            with undisturbed():
                ray.shutdown()


@contextmanager
def launched_roles(
    config: Stage | CompareConfig, plan: Plan, specs: dict[str, RoleSpec], run_dir: Path, progress: Progress
) -> Iterator[Launched]:
    """Every role placed, loaded and connected; all of them ended with the context."""
    launched = Launched(config.cluster, config.run, run_dir)
    try:
        with progress.phase("loading " + ", ".join(plan.roles)):
            launched.spawn(plan, specs)
            if not isinstance(config, CompareConfig):
                launched.require_shared(run_dir / PLAN_FILE)
            starts = {name: specs[name].role_class.start for name in plan.roles}
            if isinstance(plan, PPOPlan) and plan.rollout_shares_gpu:
                _load_in_turns(launched, starts)
            else:
                launched.load(starts)
        yield launched
    finally:
        with undisturbed():
            launched.stop()


def _load_in_turns(launched: Launched, starts: Mapping[str, Callable[[Any], Any]]) -> None:
    """Engines on a shared GPU come last and alone: vLLM measures what is free, and nobody else may take or give memory meanwhile."""
    launched.load({name: start for name, start in starts.items() if name != "rollout"})
    for role in TRAINED:
        launched.waiter.wait(launched.groups[role].call(Trainer.offload))
    launched.load({"rollout": starts["rollout"]})


def same_rows(launched: Launched, fingerprint: str, source: str, *, rows_fingerprint: str | None = None) -> None:
    """Refuses a rank that read other data than was checked: the orchestrator names rows by their numbers. `rows_fingerprint` is for those
    that read rows without a tokenizer.

    Raises:
        UserError: naming the rank.
    """
    for role, reports in launched.reports.items():
        for rank, report in enumerate(reports):
            facts = {} if isinstance(report, RolloutReport) else report.facts
            tokens = report.data_fingerprint if isinstance(report, RolloutReport) else facts.get(DATA_FINGERPRINT)
            for found, expected in ((tokens, fingerprint), (facts.get(ROWS_FINGERPRINT), rows_fingerprint)):
                if found is not None and expected is not None and found != expected:
                    raise UserError(
                        f"data.path: {role} rank {rank} read other data from {source!r} than was checked at the start: its fingerprint is "
                        f"{found[:12]}, expected {expected[:12]}; allowed: the same files on every node"
                    )


def in_cluster(function: Callable[..., Any], *args: Any, timeout_s: float) -> Any:
    """Runs a short function where the roles will run."""
    ref = ray.remote(function).options(num_cpus=0, max_retries=0).remote(*args)
    try:
        return ray.get(ref, timeout=timeout_s)
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, PreceptorError):
            raise error.cause from error
        raise RoleFailed("preflight", 0, None, f"{type(error.cause).__name__}: {error.cause}") from error
    except ray.exceptions.GetTimeoutError as error:
        raise RoleFailed("preflight", 0, None, f"{function.__name__} did not answer within {timeout_s:g} s") from error
    except ray.exceptions.RayError as error:
        raise RoleFailed("preflight", 0, None, f"{type(error).__name__}: {error}") from error
