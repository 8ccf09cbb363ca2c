"""Small stages and machines to plan for."""

from typing import Any

from configs.schema.ppo import PPOStage
from configs.schema.reward import RewardStage
from orchestrator.plan import Machine, PPOPlan, make_plan

LAPTOP = Machine(num_cpus=8, num_gpus=0, where="this machine")
NODE = Machine(num_cpus=64, num_gpus=8, where="the Ray cluster at head:6379")

PPO: dict[str, Any] = {
    "stage": "ppo",
    "run": {"dir": "runs/x"},
    "data": {"path": "p.jsonl", "max_prompt_tokens": 32},
    "policy": {"model": "m"},
    "reward": {"model": {"model": "r"}},
    "rollout": {"max_response_tokens": 32, "prompts_per_wave": 4},
    "ppo": {"steps": 10, "prompts_per_step": 16},
}


def merged(under: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    result = dict(under)
    for key, value in over.items():
        old = result.get(key)
        result[key] = merged(old, value) if isinstance(value, dict) and isinstance(old, dict) else value
    return result


def changes(*overrides: str) -> dict[str, Any]:
    """`a.b=1` as a nested dictionary; numbers are whole numbers, the rest is text."""
    result: dict[str, Any] = {}
    for override in overrides:
        key, _, text = override.partition("=")
        value: Any = int(text) if text.isdecimal() else {"true": True, "false": False}.get(text, text)
        for part in reversed(key.split(".")):
            value = {part: value}
        result = merged(result, value)
    return result


def stage(*overrides: str, **more: Any) -> PPOStage:
    return PPOStage.model_validate(merged(merged(PPO, changes(*overrides)), more))


def plan_of(config: PPOStage, machine: Machine | None = LAPTOP) -> PPOPlan:
    plan = make_plan(config, machine)
    assert isinstance(plan, PPOPlan)
    return plan


def everything_on(group: str, ranks: int) -> list[str]:
    models = ("policy", "critic", "reference", "reward.model")
    placed = [
        text
        for model in models
        for text in (f"{model}.placement.group={group}", f"{model}.placement.num_ranks={ranks}")
    ]
    return ["cluster.device=cuda", f"rollout.group={group}", *placed]


REWARD: dict[str, Any] = {
    "stage": "reward",
    "run": {"dir": "runs/x"},
    "data": {"path": "p.jsonl"},
    "model": {"model": "m"},
}


def reward_stage(*overrides: str) -> RewardStage:
    return RewardStage.model_validate(merged(REWARD, changes(*overrides)))
