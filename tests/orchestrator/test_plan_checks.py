"""Every reason to refuse a config before anything starts."""

import pytest

from configs.errors import ConfigError
from orchestrator.plan import Machine, make_plan, num_gpus
from tests.orchestrator.small_stages import LAPTOP, NODE, everything_on, plan_of, reward_stage, stage

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
            "reward.model.placement.threads_per_rank: got 5; allowed: at most 4: 1 rank has 4 cores",
        ),
        (
            ["rollout.threads_per_engine=9"],
            LAPTOP,
            "rollout.threads_per_engine: got 9; allowed: at most 8: 1 rank has 8 cores",
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
            "group 'a': got policy 4, rollout 2; allowed: roles of one group have the same number of ranks",
        ),
        (
            [*everything_on("a", 2), "rollout.tensor_parallel=2"],
            NODE,
            "rollout.tensor_parallel: got 2; allowed: 1 in the group 'a', which others share, or a rollout.group of the engines' own",
        ),
        (
            [*everything_on("a", 1), "policy.engine.zero_stage=1", "policy.engine.dtype=bf16"],
            NODE,
            "policy.engine.zero_stage: got 1 with engine.dtype bf16; allowed: 2: the engines share the GPUs of group 'a', "
            "and this model's memory leaves its GPU in their turn",
        ),
        (
            [*everything_on("a", 1), "critic.engine.zero_stage=3"],
            NODE,
            "critic.engine.zero_stage: got 3; allowed: 2, or a group of its own: the engines share the GPUs of group 'a', "
            "and this model's memory leaves its GPU in their turn",
        ),
        (
            # of all trainers, also one in a group of its own
            [
                "cluster.device=cuda",
                "rollout.group=policy",
                "critic.engine.zero_stage=2",
                "critic.engine.offload_optimizer=true",
            ],
            NODE,
            "critic.engine.offload_optimizer: got true; allowed: false: the engines share the GPUs of group 'policy', "
            "and this model's memory leaves its GPU in their turn",
        ),
        (
            ["critic.placement.group=reward_function_0"],
            LAPTOP,
            "group of critic: got 'reward_function_0'; allowed: another name: groups reward_function_... and judge belong to the "
            "workers of functions",
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


def test_what_cannot_take_turns_may_have_gpus_of_its_own() -> None:
    for moved in (["dtype=bf16", "zero_stage=1"], ["offload_optimizer=true", "zero_stage=2"]):
        engine = [f"policy.engine.{text}" for text in moved]
        assert not plan_of(stage("cluster.device=cuda", "rollout.tensor_parallel=2", *engine), NODE).rollout_shares_gpu
    # no GPU, nothing that is moved
    plan_of(stage("rollout.group=policy", "policy.engine.dtype=bf16", "policy.engine.zero_stage=1"))


@pytest.mark.parametrize(("horizon", "fits"), [(6, False), (7, True)])
def test_a_kl_controller_that_could_reach_zero_is_refused(horizon: int, fits: bool) -> None:
    """16 prompts x 2 answers: the factor is at least 1 - 0.2 x 32 / horizon, at 6.4 it is 0."""
    controller = {"kind": "adaptive", "target": 6, "horizon": horizon}
    config = stage("rollout.responses_per_prompt=2", ppo={"kl": {"controller": controller}})
    if fits:
        plan_of(config)
        return
    with pytest.raises(ConfigError) as caught:
        make_plan(config, None)
    assert str(caught.value) == (
        "stage ppo can't run:\n  ppo.kl.controller.horizon: got 6; allowed: more than 6.4, 0.2 x the step's 32 trajectories: "
        "the KL coefficient could fall to 0 in one step otherwise"
    )


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
    assert (
        num_gpus(
            plan_of(stage("cluster.device=cuda", "policy.placement.num_ranks=500", "ppo.prompts_per_step=500"), None)
        )
        == 504
    )


def test_more_ranks_than_cores_share_them_one_thread_each() -> None:
    machine = Machine(num_cpus=2, num_gpus=0, where="this machine")
    plan = plan_of(stage("policy.placement.num_ranks=4", "policy.placement.threads_per_rank=1"), machine)
    assert plan.roles["policy"].threads == 1


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (
            ["model.placement.num_ranks=4", "training.groups_per_step=3"],
            "training.groups_per_step: got 3; allowed: at least 4, one for each rank (model.placement.num_ranks)",
        ),
        (
            ["model.engine.micro_batch_tokens=2047"],
            "model.engine.micro_batch_tokens: got 2047; allowed: at least 2048, two answers of data.max_tokens: "
            "a group is compared within a micro-batch",
        ),
        (
            ["model.placement.threads_per_rank=9"],
            "model.placement.threads_per_rank: got 9; allowed: at most 8: 1 rank has 8 cores",
        ),
        (["cluster.device=cuda"], "cluster.device: got 'cuda'; allowed: 'cpu': this machine has no GPU"),
    ],
)
def test_what_cannot_train_a_reward_model_is_refused(overrides: list[str], expected: str) -> None:
    with pytest.raises(ConfigError) as caught:
        make_plan(reward_stage(*overrides), LAPTOP)
    assert str(caught.value) == f"stage reward can't run on this machine:\n  {expected}"
