"""What a config becomes on a machine, with numbers worked out by hand, and every reason to refuse it."""

import io
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from configs.errors import ConfigError
from configs.schema.ppo import PPOStage
from configs.schema.reward import RewardStage
from orchestrator.plan import (
    GroupPlan,
    Machine,
    PPOPlan,
    RewardPlan,
    RolePlan,
    describe_plan,
    logical_cpus,
    make_plan,
    num_gpus,
    plan_json,
)

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


@pytest.mark.parametrize(
    ("where", "coef", "epochs", "minibatches", "needed"),
    [
        ("reward", 0.05, 1, 1, True),
        ("loss", 0.05, 1, 1, False),
        ("reward", 0.0, 1, 1, False),
        ("loss", 0.05, 2, 1, True),
        ("loss", 0.05, 1, 2, True),
        ("reward", 0.0, 1, 2, True),
    ],
)
def test_old_logprobs_need_their_own_pass(
    where: str, coef: float, epochs: int, minibatches: int, needed: bool
) -> None:
    kl = {"where": where, "controller": {"coef": coef}}
    config = stage(ppo={"kl": kl, "epochs": epochs, "minibatches": minibatches})
    assert plan_of(config).needs_old_logprobs is needed


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
        name="rollout", num_bundles=1, gpus_per_bundle=2, cpus_per_bundle=0.25, roles=("rollout",)
    )
    assert (plan.sync_channel, plan.rollout_shares_gpu) == ("nccl", False)
    assert plan.roles["policy"].threads == 32


def everything_on(group: str, ranks: int) -> list[str]:
    models = ("policy", "critic", "reference", "reward.model")
    placed = [
        text
        for model in models
        for text in (f"{model}.placement.group={group}", f"{model}.placement.num_ranks={ranks}")
    ]
    return ["cluster.device=cuda", f"rollout.group={group}", *placed]


def test_engines_beside_the_trainers_share_their_bundles() -> None:
    plan = plan_of(
        stage(*everything_on("all", 8), "rollout.num_engines=4", "rollout.tensor_parallel=2"),
        NODE,
    )
    assert plan.groups == {
        "all": GroupPlan(
            name="all",
            num_bundles=4,
            gpus_per_bundle=2,
            cpus_per_bundle=(4 * 2 + 1) * 0.25,
            roles=("policy", "critic", "reference", "reward", "rollout"),
        )
    }
    assert num_gpus(plan) == 8
    assert (plan.sync_channel, plan.rollout_shares_gpu) == ("ipc", True)
    group, policy, rollout = plan.groups["all"], plan.roles["policy"], plan.roles["rollout"]
    assert [group.bundle_of(policy, rank) for rank in range(8)] == [0, 0, 1, 1, 2, 2, 3, 3]
    assert [group.bundle_of(rollout, rank) for rank in range(4)] == [0, 1, 2, 3]


def test_engines_that_share_with_another_role_than_the_policy_take_turns_and_sync_over_nccl() -> None:
    plan = plan_of(stage("cluster.device=cuda", "rollout.group=critic"), NODE)
    assert (plan.sync_channel, plan.rollout_shares_gpu, num_gpus(plan)) == ("nccl", True, 4)


# ------------------------------------------------------------------------------------------------------------ refusals

SMALL = Machine(num_cpus=8, num_gpus=4, where="this machine")


@pytest.mark.parametrize(
    ("overrides", "machine", "expected"),
    [
        (["cluster.num_cpus=9"], LAPTOP, "cluster.num_cpus: got 9; allowed: at most 8: this machine has 8 CPU cores"),
        (["cluster.device=cuda"], LAPTOP, "cluster.device: got 'cuda'; allowed: 'cpu': this machine has no GPU"),
        (
            ["cluster.device=cuda", "policy.placement.num_ranks=2"],
            SMALL,
            "cluster.device: the groups take 6 GPUs (policy 2 + critic 1 + reference 1 + reward 1 + rollout 1); "
            "allowed: 4: this machine has no more; roles that name the same placement.group share GPUs",
        ),
        (
            ["policy.placement.num_ranks=2", "policy.placement.threads_per_rank=5"],
            LAPTOP,
            "policy.placement.threads_per_rank: got 5; allowed: at most 4: 2 ranks share 8 cores",
        ),
        (
            ["reward.model.placement.threads_per_rank=5", "cluster.num_cpus=4"],
            LAPTOP,
            "reward.model.placement.threads_per_rank: got 5; allowed: at most 4: 1 ranks share 4 cores",
        ),
        (
            ["rollout.threads_per_engine=9"],
            LAPTOP,
            "rollout.threads_per_engine: got 9; allowed: at most 8: 1 ranks share 8 cores",
        ),
        (
            ["ppo.minibatches=5", "rollout.responses_per_prompt=2"],
            LAPTOP,
            "ppo.minibatches: got 5; allowed: a divisor of the step's 32 trajectories "
            "(ppo.prompts_per_step 16 x rollout.responses_per_prompt 2)",
        ),
        (
            ["ppo.minibatches=8", "critic.placement.num_ranks=3"],
            LAPTOP,
            "critic.placement.num_ranks: got 3; allowed: at most 2, the trajectories of a minibatch: "
            "16 trajectories (ppo.prompts_per_step 16 x rollout.responses_per_prompt 1) in 8 minibatches",
        ),
        *(
            (
                [f"{model}.engine.micro_batch_tokens=63"],
                LAPTOP,
                f"{model}.engine.micro_batch_tokens: got 63; allowed: at least 64, the longest sequence: "
                "data.max_prompt_tokens 32 + rollout.max_response_tokens 32",
            )
            for model in ("policy", "critic", "reference", "reward.model")
        ),
        (
            ["policy.placement.group=a", "policy.placement.num_ranks=4", "rollout.group=a", "rollout.num_engines=2"],
            LAPTOP,
            "group 'a': got policy 4, rollout 2; allowed: roles of one group have the same number of ranks "
            "(an engine counts rollout.tensor_parallel times)",
        ),
        (
            [*everything_on("a", 2), "rollout.tensor_parallel=4"],
            NODE,
            "group 'a': got policy 2, critic 2, reference 2, reward 2, rollout 1 x 4 GPUs; allowed: roles of one group have the "
            "same number of ranks (an engine counts rollout.tensor_parallel times)",
        ),
        (
            ["critic.placement.group=reward_function_0"],
            LAPTOP,
            "group of critic: got 'reward_function_0'; allowed: another name: groups reward_function_... belong to the workers "
            "of reward.functions",
        ),
        (
            ["critic.warmup_steps=10"],
            LAPTOP,
            "critic.warmup_steps: got 10; allowed: less than ppo.steps (10): the policy learns in none otherwise",
        ),
        (
            ["policy.optimizer.warmup_steps=8", "critic.optimizer.warmup_steps=9", "critic.warmup_steps=2"],
            LAPTOP,
            "policy.optimizer.warmup_steps: got 8; allowed: less than 8, the optimizer steps of the run",
        ),
        (
            ["rollout.num_engines=5"],
            LAPTOP,
            "rollout.num_engines: got 5; allowed: at most 4: 16 prompts a step in waves of 4 (rollout.prompts_per_wave)",
        ),
        (
            ["rollout.tensor_parallel=2"],
            LAPTOP,
            "rollout.tensor_parallel: got 2; allowed: 1 with cluster.device cpu",
        ),
        (
            ["weight_sync.channel=nccl"],
            LAPTOP,
            "weight_sync.channel: got 'nccl'; allowed: 'auto' or 'cpu' with cluster.device cpu",
        ),
        (
            ["weight_sync.channel=ipc"],
            LAPTOP,
            "weight_sync.channel: got 'ipc'; allowed: 'auto' or 'cpu' with cluster.device cpu",
        ),
        (
            ["cluster.device=cuda", "weight_sync.channel=ipc"],
            NODE,
            "weight_sync.channel: got 'ipc'; allowed: 'auto', 'nccl' or 'cpu': rollout and policy are in different groups",
        ),
        (
            [*everything_on("a", 1), "weight_sync.channel=nccl"],
            NODE,
            "weight_sync.channel: got 'nccl'; allowed: 'auto', 'ipc' or 'cpu': rollout and policy share the GPUs of one group",
        ),
        (
            ["policy.engine.offload_optimizer=true", "policy.engine.zero_stage=1"],
            LAPTOP,
            "policy.engine.offload_optimizer: got true; allowed: false with cluster.device cpu",
        ),
        (
            ["reference.engine.attention=flash_attention_2"],
            LAPTOP,
            "reference.engine.attention: got 'flash_attention_2'; allowed: 'sdpa' or 'eager' with cluster.device cpu",
        ),
    ],
)
def test_what_cannot_run_is_refused(overrides: list[str], machine: Machine, expected: str) -> None:
    with pytest.raises(ConfigError) as caught:
        make_plan(stage(*overrides), machine)
    assert str(caught.value) == f"stage ppo can't run on {machine.where}:\n  {expected}"


def test_all_problems_are_told_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        make_plan(stage("ppo.minibatches=3", "critic.warmup_steps=10", "rollout.tensor_parallel=2"), None)
    assert [problem.key for problem in caught.value.problems] == [
        "ppo.minibatches",
        "critic.warmup_steps",
        "rollout.tensor_parallel",
    ]
    assert str(caught.value).startswith("stage ppo can't run:\n")


def test_nothing_is_checked_against_a_machine_that_is_not_known() -> None:
    assert num_gpus(plan_of(stage("cluster.device=cuda", "policy.placement.num_ranks=500", "ppo.prompts_per_step=500"), None)) == 504


def test_more_ranks_than_cores_share_them_one_thread_each() -> None:
    machine = Machine(num_cpus=2, num_gpus=0, where="this machine")
    plan = plan_of(stage("policy.placement.num_ranks=4", "policy.placement.threads_per_rank=1"), machine)
    assert plan.roles["policy"].threads == 1


# --------------------------------------------------------------------------------------------------- reward, in words

REWARD: dict[str, Any] = {
    "stage": "reward",
    "run": {"dir": "runs/x"},
    "data": {"path": "p.jsonl"},
    "model": {"model": "m"},
}


def reward_stage(*overrides: str) -> RewardStage:
    return RewardStage.model_validate(merged(REWARD, changes(*overrides)))


def test_the_plan_of_a_reward_model() -> None:
    plan = make_plan(reward_stage("model.placement.num_ranks=2", "training.groups_per_step=8"), LAPTOP)
    assert isinstance(plan, RewardPlan)
    assert plan.roles == {
        "reward": RolePlan(role="reward", num_ranks=2, gpus_per_rank=0, threads=4, group="reward", device="cpu")
    }
    assert plan.groups_per_step == 8


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (
            ["model.placement.num_ranks=4", "training.groups_per_step=3"],
            "training.groups_per_step: got 3; allowed: at least 4, one group for each rank (model.placement.num_ranks)",
        ),
        (
            ["model.engine.micro_batch_tokens=2047"],
            "model.engine.micro_batch_tokens: got 2047; allowed: at least 2048, two answers of data.max_tokens: "
            "a group is compared within a micro-batch",
        ),
        (
            ["model.placement.threads_per_rank=9"],
            "model.placement.threads_per_rank: got 9; allowed: at most 8: 1 ranks share 8 cores",
        ),
        (["cluster.device=cuda"], "cluster.device: got 'cuda'; allowed: 'cpu': this machine has no GPU"),
    ],
)
def test_what_cannot_train_a_reward_model_is_refused(overrides: list[str], expected: str) -> None:
    with pytest.raises(ConfigError) as caught:
        make_plan(reward_stage(*overrides), LAPTOP)
    assert str(caught.value) == f"stage reward can't run on this machine:\n  {expected}"


def shown(plan: PPOPlan | RewardPlan) -> list[str]:
    console = Console(width=160, file=io.StringIO())
    console.print(describe_plan(plan))
    assert isinstance(console.file, io.StringIO)
    return [line.rstrip() for line in console.file.getvalue().splitlines()]


def test_a_plan_in_words() -> None:
    config = stage(
        *everything_on("all", 2),
        "rollout.tensor_parallel=2",
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
        "rollout    1      2 GPUs  64 a rank  all    policy, critic, reference, reward",
        "",
        "step: 10 prompts x 2 responses = 20 trajectories in 3 waves of 4 or 2 prompts",
        "update: 20 trajectories a minibatch, 2 updates a step (2 epochs), 20 in the run (20 of the policy)",
        "reference: yes, own forward pass for old log-probabilities: yes, weight sync: ipc",
        "GPUs 2, placement groups 1",
    ]
    assert '"sync_channel": "ipc"' in plan_json(plan_of(config, NODE))
