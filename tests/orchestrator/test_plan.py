"""What a config becomes on a machine, with numbers worked out by hand."""

import io
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from configs.errors import ConfigError
from configs.schema import Pipeline
from configs.schema.compare import CompareConfig
from orchestrator.plan import (
    GroupPlan,
    Plan,
    RolePlan,
    SupervisedPlan,
    check_groups,
    describe_plan,
    logical_cpus,
    make_plan,
    num_gpus,
    plan_json,
)
from tests.orchestrator.small_stages import LAPTOP, NODE, REWARD, everything_on, merged, plan_of, reward_stage, stage

# ----------------------------------------------------------------------------------------------------------- on a CPU


def test_the_roles_of_a_run_on_a_laptop() -> None:
    plan = plan_of(stage("policy.placement.num_ranks=2", "rollout.num_engines=4"))
    assert plan.roles == {
        role: RolePlan(role=role, num_ranks=ranks, gpus_per_rank=0, threads=threads, group=role, device="cpu")
        for role, ranks, threads in [
            ("policy", 2, 4),
            ("critic", 1, 8),
            ("reference", 1, 8),
            ("reward", 1, 8),
            ("rollout", 4, 2),
        ]
    }
    assert plan.groups["policy"] == GroupPlan(
        name="policy", num_bundles=2, gpus_per_bundle=0, cpus_per_bundle=0.25, roles=("policy",)
    )
    assert (logical_cpus(plan), num_gpus(plan)) == ((2 + 1 + 1 + 1 + 4) * 0.25, 0)
    assert (plan.sync_channel, plan.rollout_shares_gpu) == ("cpu", False)


def test_threads_come_from_cores_the_cluster_section_or_the_role() -> None:
    assert plan_of(stage("policy.placement.num_ranks=3")).roles["policy"].threads == 2
    assert plan_of(stage("policy.placement.num_ranks=16")).roles["policy"].threads == 1
    assert plan_of(stage("cluster.num_cpus=6")).roles["policy"].threads == 6
    assert plan_of(stage("policy.placement.threads_per_rank=3")).roles["policy"].threads == 3
    assert plan_of(stage(), None).roles["policy"].threads == 1
    assert plan_of(stage("cluster.num_cpus=6"), None).roles["rollout"].threads == 6


def test_a_rank_for_each_worker_of_a_reward_function() -> None:
    functions = [{"function": "a:f", "num_workers": 3}, {"function": "b:g"}]
    plan = plan_of(stage("cluster.device=cuda", reward={"functions": functions}), NODE)
    assert plan.roles["reward_function_0"] == RolePlan(
        role="reward_function_0", num_ranks=3, gpus_per_rank=0, threads=1, group="reward_function_0", device="cpu"
    )
    assert plan.roles["reward_function_1"].num_ranks == 1
    assert plan.groups["reward_function_0"].num_bundles == 3
    assert "judge" not in plan.roles


def test_a_judge_of_held_out_answers_has_workers_of_its_own() -> None:
    judged = {"judge": {"function": "a:f", "num_workers": 2}}
    plan = plan_of(stage("data.held_out_rows=4", evaluation=judged))
    assert plan.roles["judge"] == RolePlan(
        role="judge", num_ranks=2, gpus_per_rank=0, threads=1, group="judge", device="cpu"
    )


def test_without_kl_there_is_no_reference_and_without_a_reward_model_no_reward_role() -> None:
    plan = plan_of(
        stage(
            "critic.init_from=policy",
            reward={"model": None, "functions": [{"function": "a:f"}]},
            ppo={"kl": {"controller": {"coef": 0}}},
        )
    )
    assert list(plan.roles) == ["policy", "critic", "rollout", "reward_function_0"]
    assert not plan.needs_reference
    adaptive = {"kind": "adaptive", "target": 6, "coef": 0.1}
    assert plan_of(stage(ppo={"kl": {"controller": adaptive}})).needs_reference


# ---------------------------------------------------------------------------------------------------------- batches


def test_batch_arithmetic() -> None:
    config = stage(
        "ppo.prompts_per_step=10",
        "rollout.responses_per_prompt=3",
        "ppo.epochs=2",
        "ppo.minibatches=5",
        "critic.warmup_steps=4",
    )
    plan = plan_of(config)
    assert plan.waves == ((0, 1, 2, 3), (4, 5, 6, 7), (8, 9))
    assert (plan.prompts_per_step, plan.trajectories_per_step, plan.trajectories_per_minibatch) == (10, 30, 6)
    assert plan.updates_per_step == 10
    assert plan.total_updates == 100
    assert plan.policy_updates == 60


@given(prompts=st.integers(1, 70), per_wave=st.integers(1, 20))
def test_waves_hold_every_prompt_once_in_order(prompts: int, per_wave: int) -> None:
    plan = plan_of(stage(f"ppo.prompts_per_step={prompts}", f"rollout.prompts_per_wave={per_wave}"))
    assert [slot for wave in plan.waves for slot in wave] == list(range(prompts))
    assert {len(wave) for wave in plan.waves[:-1]} <= {per_wave}
    assert 1 <= len(plan.waves[-1]) <= per_wave


# ------------------------------------------------------------------------------------------------------------ on GPUs


def test_separate_groups_on_eight_gpus() -> None:
    config = stage(
        "cluster.device=cuda",
        "policy.placement.num_ranks=2",
        "critic.placement.num_ranks=2",
        "rollout.tensor_parallel=2",
    )
    plan = plan_of(config, NODE)
    assert num_gpus(plan) == 8
    assert plan.groups["policy"] == GroupPlan(
        name="policy", num_bundles=2, gpus_per_bundle=1, cpus_per_bundle=0.25, roles=("policy",)
    )
    assert plan.groups["rollout"] == GroupPlan(
        name="rollout", num_bundles=1, gpus_per_bundle=2, cpus_per_bundle=0.25, roles=("rollout",), strategy="SPREAD"
    )
    assert (plan.sync_channel, plan.rollout_shares_gpu) == ("nccl", False)
    assert plan.roles["policy"].threads == 32


def test_groups_go_where_the_config_says() -> None:
    groups = {
        "policy": {"resource": "h100", "strategy": "strict_pack"},
        "critic": {"strategy": "spread"},
        "rollout": {"resource": "l40s"},
        "reference": {"strategy": "strict_spread"},
        "reward": {"resource": "l40s", "strategy": "pack"},
    }
    plan = plan_of(stage(cluster={"groups": groups}))
    assert {name: (group.strategy, group.resource) for name, group in plan.groups.items()} == {
        "policy": ("STRICT_PACK", "h100"),
        "critic": ("SPREAD", None),
        "reference": ("STRICT_SPREAD", None),
        "reward": ("PACK", "l40s"),
        "rollout": ("SPREAD", "l40s"),
    }


def test_a_group_that_no_stage_has_is_refused_and_one_that_some_stage_has_is_not() -> None:
    shared = {"groups": {"policy": {"resource": "h100"}, "reward": {"resource": "l40s"}}}
    pipeline = Pipeline.model_validate(
        {
            "stage": "pipeline",
            "run": {"dir": "runs/x"},
            "stages": {
                "tune": merged(REWARD, {"stage": "sft", "cluster": shared}),
                "rm": merged(REWARD, {"cluster": shared}),
            },
        }
    )
    check_groups(pipeline)
    with pytest.raises(
        ConfigError, match=r"cluster.groups.critics: got a group that no role is in; allowed: policy, critic, "
    ):
        check_groups(stage(cluster={"groups": {"critics": {"resource": "h100"}}}))


def test_engines_beside_the_trainers_share_their_bundles() -> None:
    plan = plan_of(
        stage(*everything_on("all", 4), "rollout.num_engines=4"),
        NODE,
    )
    assert plan.groups == {
        "all": GroupPlan(
            name="all",
            num_bundles=4,
            gpus_per_bundle=1,
            cpus_per_bundle=5 * 0.25,
            roles=("policy", "critic", "reference", "reward", "rollout"),
        )
    }
    assert num_gpus(plan) == 4
    assert (plan.sync_channel, plan.rollout_shares_gpu) == ("ipc", True)


def test_engines_that_share_with_another_role_than_the_policy_take_turns_and_sync_over_nccl() -> None:
    plan = plan_of(stage("cluster.device=cuda", "rollout.group=critic"), NODE)
    assert (plan.sync_channel, plan.rollout_shares_gpu, num_gpus(plan)) == ("nccl", True, 4)


# --------------------------------------------------------------------------------------------------- a reward model, words
def test_the_plan_of_a_reward_model() -> None:
    plan = make_plan(reward_stage("model.placement.num_ranks=2", "training.groups_per_step=8"), LAPTOP)
    assert isinstance(plan, SupervisedPlan)
    assert plan.roles == {
        "reward": RolePlan(role="reward", num_ranks=2, gpus_per_rank=0, threads=4, group="reward", device="cpu")
    }
    assert (plan.role, plan.items, plan.items_per_step) == ("reward", "ranked groups", 8)


def shown(plan: Plan) -> list[str]:
    console = Console(width=160, file=io.StringIO())
    console.print(describe_plan(plan))
    assert isinstance(console.file, io.StringIO)
    return [line.rstrip() for line in console.file.getvalue().splitlines()]


def test_a_comparisons_roles_take_turns_on_what_the_largest_needs() -> None:
    section: dict[str, Any] = {
        "models": ("a", "b"),
        "run": {"dir": "x"},
        "data": {"path": "p"},
        "rollout": {"num_engines": 2},
        "cluster": {"device": "cuda"},
        "reward": {"model": {"model": "r"}},
    }
    plan = make_plan(CompareConfig.model_validate(section), NODE)
    assert [(role.role, role.num_ranks, role.gpus_per_rank) for role in plan.roles.values()] == [
        ("rollout_a", 2, 1),
        ("rollout_b", 2, 1),
        ("reward", 1, 1),
    ]
    assert num_gpus(plan) == 2
    section |= {"reward": None, "annotator": {"function": "a:b", "num_workers": 7}}
    assert num_gpus(make_plan(CompareConfig.model_validate(section), NODE)) == 2
    with pytest.raises(ConfigError, match=r"the comparison can't run on this machine:\n  cluster.device: got 'cuda'"):
        make_plan(CompareConfig.model_validate(section), LAPTOP)


def test_a_plan_in_words() -> None:
    config = stage(
        *everything_on("all", 2),
        "rollout.num_engines=2",
        "rollout.responses_per_prompt=2",
        "ppo.epochs=2",
        "ppo.prompts_per_step=10",
    )
    assert shown(plan_of(config, NODE)) == [
        "role       ranks  device  threads    group  shares with",
        "policy     2      2 GPUs  32 a rank  all    critic, reference, reward, rollout",
        "critic     2      2 GPUs  32 a rank  all    policy, reference, reward, rollout",
        "reference  2      2 GPUs  32 a rank  all    policy, critic, reward, rollout",
        "reward     2      2 GPUs  32 a rank  all    policy, critic, reference, rollout",
        "rollout    2      2 GPUs  32 a rank  all    policy, critic, reference, reward",
        "",
        "step: 10 prompts x 2 responses = 20 trajectories in 3 waves of 4 or 2 prompts",
        "update: 20 trajectories a minibatch, 2 updates a step (2 epochs), 20 in the run (20 of the policy)",
        "reference: yes, weight sync: ipc",
        "GPUs 2, placement groups 1: all pack",
    ]
    assert '"sync_channel": "ipc"' in plan_json(plan_of(config, NODE))
