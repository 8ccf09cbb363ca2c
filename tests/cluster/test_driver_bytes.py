"""What a PPO step brings to the driver, counted: the real orchestrator over real Ray actors on several nodes, whose roles make up tensors
of the right sizes instead of computing them.

Everything that the driver hears goes through `ray.get`, everything that it says is an argument of a call: both are measured pickled.
"""

from __future__ import annotations

import pickle
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import ray

from actors.group import Call, Group
from orchestrator.launch import Launched, RoleSpec
from orchestrator.ppo_records import Timeline
from orchestrator.ppo_step import PPOStep
from tests.cluster.conftest import Started, joined
from tests.cluster.fake_roles import Fake, FakeCritic, FakeRollout, FakeScorer
from tests.orchestrator.small_stages import plan_of, stage

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

ROLES: dict[str, type[Fake]] = {
    "policy": FakeScorer,
    "reference": FakeScorer,
    "reward": FakeScorer,
    "critic": FakeCritic,
    "rollout": FakeRollout,
}


@dataclass(slots=True)
class Counted:
    """Bytes at the driver."""

    heard: int = 0
    said: int = 0
    calls: int = 0


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> Counted:
    counted = Counted()
    get, submit = ray.get, Group._submit

    def counting_get(ref: Any, **options: Any) -> Any:
        result = get(ref, **options)
        counted.heard += len(pickle.dumps(result))
        return result

    def counting_submit(self: Group, rank: int, method: Any, args: tuple[Any, ...], *, two_results: bool) -> Call:
        plain = [one for one in args if not isinstance(one, ray.ObjectRef)]
        counted.said += len(pickle.dumps(plain))
        counted.calls += 1
        return submit(self, rank, method, args, two_results=two_results)

    monkeypatch.setattr(ray, "get", counting_get)
    monkeypatch.setattr(Group, "_submit", counting_submit)
    return counted


def one_step(num_prompts: int, tokens: int, counted: Counted, run_dir: Path) -> Counted:
    """Generation, scoring, experience and updates of a step."""
    config = stage(
        f"ppo.prompts_per_step={num_prompts}",
        f"rollout.prompts_per_wave={num_prompts // 4}",
        "rollout.num_engines=2",
        "policy.placement.num_ranks=2",
        "critic.placement.num_ranks=2",
        # a budget that a long trajectory fits: what it is packed into is not what is measured
        *(f"{role}.engine.micro_batch_tokens=8192" for role in ("policy", "critic", "reference", "reward.model")),
    )
    plan = plan_of(config, None)
    launched = Launched(config.cluster, config.run, run_dir)
    try:
        launched.spawn(plan, {name: RoleSpec(role_class=ROLES[name], args=(tokens,)) for name in plan.roles})
        step = PPOStep(config, plan, launched, num_prompts)
        before = Counted(heard=counted.heard, said=counted.said, calls=counted.calls)
        timeline = Timeline()
        collected = step.collect(1, step.generate(1, 0), 0.1, timeline)
        policy, critic = step.start_updates(1, collected, 0.1)
        step.finish_updates(policy, "policy", timeline)
        step.finish_updates(critic, "critic", timeline)
    finally:
        launched.stop()
    assert collected.moments.count == num_prompts * tokens
    return Counted(
        heard=counted.heard - before.heard, said=counted.said - before.said, calls=counted.calls - before.calls
    )


def test_tokens_do_not_come_to_the_driver(cluster: Started, counted: Counted, tmp_path: Path) -> None:
    with joined(cluster):
        small = one_step(16, 64, counted, tmp_path)
        longer = one_step(16, 64 * 64, counted, tmp_path)
        more = one_step(16 * 64, 64, counted, tmp_path)
    print(f"\n16 of 64 tokens {small}\n16 of 4096 tokens {longer}\n1024 of 64 tokens {more}")
    # 64 times the tokens: only the numbers that count them have more digits
    assert longer.calls == small.calls
    assert longer.heard + longer.said < 1.05 * (small.heard + small.said)
    # 64 times the trajectories: what each is dealt to its ranks by, a few dozen bytes whatever its length
    assert more.calls == small.calls
    assert (more.heard - small.heard) / (1024 - 16) < 32
    assert (more.said - small.said) / (1024 - 16) < 64
