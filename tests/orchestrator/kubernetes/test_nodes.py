"""How groups are laid over nodes: by hand, and for any groups that there could be."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from configs.errors import ConfigError
from configs.schema.ppo import PPOStage
from orchestrator.kubernetes.nodes import Estimated, NodeGroup, Shape, _largest, node_groups, pod_name
from orchestrator.plan import make_plan
from orchestrator.plan_records import GroupPlan
from tests.orchestrator.small_stages import everything_on, stage

GPU = ("cluster.device=cuda",)


def pods(*overrides: str, **more: object) -> dict[str, NodeGroup]:
    config = stage(*overrides, **more)
    return {group.name: group for group in node_groups(config.cluster, [(config, make_plan(config, None))])}


def refusal(*overrides: str, **more: object) -> str:
    with pytest.raises(ConfigError) as caught:
        pods(*overrides, **more)
    title, line = str(caught.value).split("\n")
    assert title in ("the run can't be laid over Kubernetes nodes:", "unknown GPU kind:")
    return line.strip()


def sizes(found: dict[str, NodeGroup]) -> dict[str, tuple[int, int]]:
    """Pods and GPUs of each."""
    return {name: (group.replicas, group.gpus) for name, group in found.items()}


def test_each_group_has_pods_of_its_own() -> None:
    assert sizes(pods(*GPU, "policy.placement.num_ranks=2", "rollout.num_engines=4", "rollout.tensor_parallel=4")) == {
        "head": (1, 0),
        "policy": (1, 2),
        "critic": (1, 1),
        "reference": (1, 1),
        "reward": (1, 1),
        "rollout": (2, 8),
    }


def test_roles_that_share_gpus_share_pods() -> None:
    assert sizes(pods(*everything_on("all", 4), "rollout.num_engines=4")) == {"head": (1, 0), "all": (1, 4)}


def test_a_group_is_spread_evenly_over_no_more_nodes_than_it_needs() -> None:
    # 12 ranks take two nodes of 8, 6 on each; engines of 3 GPUs leave two of a node of 8 alone
    found = sizes(pods(*GPU, "policy.placement.num_ranks=12", "rollout.num_engines=4", "rollout.tensor_parallel=3"))
    assert (found["policy"], found["rollout"]) == ((2, 6), (2, 6))


def test_a_groups_own_nodes_count() -> None:
    found = sizes(pods(*GPU, "policy.placement.num_ranks=8", "cluster.groups.policy.gpus_per_node=4"))
    assert found["policy"] == (2, 4)


def test_roles_without_gpus_share_one_pod() -> None:
    found = pods()
    assert sizes(found) == {"head": (1, 0), "cpu": (1, 0)}
    assert found["cpu"].holds == ("policy", "critic", "reference", "reward", "rollout")
    functions = {"functions": [{"function": "m:f", "num_workers": 3}]}
    found = pods(*GPU, reward=functions)
    assert (found["cpu"].holds, found["cpu"].cpus, found["cpu"].gpus) == (("reward_function_0",), 3, 0)


def test_pods_have_the_threads_that_their_ranks_use() -> None:
    config = stage("cluster.num_cpus=16", "policy.placement.num_ranks=2")
    (_, cpu) = node_groups(config.cluster, [(config, make_plan(config, None))])
    assert cpu.cpus >= 16
    assert pods(*GPU, "policy.placement.threads_per_rank=12")["policy"].cpus == 12
    assert pods(*GPU, "policy.placement.num_ranks=2")["policy"].cpus == 16


def test_a_kind_of_gpu_decides_memory_and_nodes() -> None:
    known, unknown = pods(*GPU, "cluster.gpu=h100-80gb")["policy"], pods(*GPU)["policy"]
    assert known.node_selector == {"nvidia.com/gpu.product": "NVIDIA-H100-80GB-HBM3"}
    assert known.memory_gib == 204, "0.8 of the 256 GiB that a DGX H100 has for each GPU"
    assert (unknown.node_selector, unknown.memory_gib) == ({}, 64)


def test_pods_hold_what_the_estimate_says_that_ranks_hold() -> None:
    config = stage(*GPU, "policy.placement.num_ranks=2")
    plan = make_plan(config, None)
    large = Estimated(
        host_bytes_per_bundle={"policy": 99.5 * 2**30, "critic": 2.0**30}, cpu_bytes=0.0, stored_weights=0.0
    )
    found = {group.name: group for group in node_groups(config.cluster, [(config, plan)], large)}
    assert found["policy"].memory_gib == 199 + found["policy"].shared_gib
    assert found["critic"].memory_gib == 64, "as without an estimate"
    config = stage()
    on_cpu = Estimated(host_bytes_per_bundle={}, cpu_bytes=50.5 * 2**30, stored_weights=0.0)
    (_, cpu) = node_groups(config.cluster, [(config, make_plan(config, None))], on_cpu)
    assert cpu.memory_gib == 51 + cpu.shared_gib


def group(num_bundles: int, gpus: int) -> GroupPlan:
    return GroupPlan(name="g", num_bundles=num_bundles, gpus_per_bundle=gpus, cpus_per_bundle=1, roles=("policy",))


def test_of_a_pipeline_the_largest_stage_counts() -> None:
    two_nodes, one_node, engine = Shape(replicas=2, gpus=6), Shape(replicas=1, gpus=8), Shape(replicas=1, gpus=4)
    assert _largest([one_node, two_nodes], [group(8, 1), group(12, 1)]) == two_nodes
    # two pods of 3 hold no engine of 4 GPUs, one pod of 4 no 6 ranks: both stages want other pods, and get the larger of each
    assert _largest([engine, Shape(replicas=2, gpus=3)], [group(1, 4), group(6, 1)]) == Shape(replicas=2, gpus=4)


@given(
    ranks=st.integers(1, 64),
    engines=st.integers(1, 16),
    parallel=st.sampled_from([1, 2, 4, 8]),
    node=st.integers(1, 16),
)
def test_gpus_are_the_plans_and_pods_fit_nodes(ranks: int, engines: int, parallel: int, node: int) -> None:
    overrides = (*GPU, f"policy.placement.num_ranks={ranks}", "ppo.prompts_per_step=64", "rollout.prompts_per_wave=1")
    config = stage(
        *overrides,
        f"rollout.num_engines={engines}",
        f"rollout.tensor_parallel={parallel}",
        f"cluster.gpus_per_node={node}",
    )
    plan = make_plan(config, None)
    try:
        found = node_groups(config.cluster, [(config, plan)])
    except ConfigError:
        uneven = [(ranks, 1), (engines, parallel)]
        assert any(width > node or count % math.ceil(count / (node // width)) for count, width in uneven), (
            "refused without need"
        )
        return
    for one in found[1:]:
        wanted = plan.groups[one.holds[0]]
        assert one.num_gpus == wanted.num_bundles * wanted.gpus_per_bundle
        assert one.gpus <= node
        assert one.gpus % wanted.gpus_per_bundle == 0, "an engine across two pods"


# ------------------------------------------------------------------------------------------------------------- refusals


def test_an_engine_wider_than_a_node_is_refused() -> None:
    assert refusal(*GPU, "rollout.tensor_parallel=16") == (
        "cluster.gpus_per_node: got 8; allowed: at least 16: an engine of group rollout takes 16 GPUs of one node"
    )
    assert refusal(*GPU, "rollout.tensor_parallel=8", "cluster.groups.rollout.gpus_per_node=4") == (
        "cluster.groups.rollout.gpus_per_node: got 4; allowed: at least 8: an engine of group rollout takes 8 GPUs of one node"
    )


def test_a_group_that_leaves_a_node_half_filled_is_refused() -> None:
    assert refusal(*GPU, "policy.placement.num_ranks=11") == (
        "cluster.gpus_per_node: got 8, and group policy of 11 x 1 GPUs does not fill 2 nodes evenly; "
        "allowed: a group that does, such as 10 or 12 ranks, or other nodes"
    )


def test_an_unknown_kind_of_gpu_is_refused() -> None:
    line = refusal(*GPU, "cluster.gpu=h100")
    assert line.startswith("cluster.gpu: got 'h100' (did you mean 'h100-80gb'?); allowed: a10g, ")
    assert refusal(*GPU, "cluster.groups.critic.gpu=x9").startswith(
        "cluster.groups.critic.gpu: got 'x9'; allowed: a10g, "
    )


def test_more_gpus_than_the_quota_are_refused() -> None:
    assert pods(*GPU, "cluster.kubernetes.gpu_quota=5")
    assert refusal(*GPU, "cluster.kubernetes.gpu_quota=4") == (
        "cluster.kubernetes.gpu_quota: the groups take 5 GPUs (policy 1 + critic 1 + reference 1 + reward 1 + rollout 1); "
        "allowed: at most 4"
    )


def test_pods_of_a_group_that_is_not_there_are_refused() -> None:
    assert refusal(*GPU, "cluster.kubernetes.groups.polisy.cpus=4") == (
        "cluster.kubernetes.groups.polisy: unknown group; allowed: policy, critic, reference, reward, rollout, cpu or head"
    )


def test_memory_holds_the_shared_memory() -> None:
    assert refusal("cluster.kubernetes.groups.cpu.memory_gib=4") == (
        "cluster.kubernetes.groups.cpu.memory_gib: got 4; allowed: at least 5: shared memory counts as memory"
    )
    assert refusal("cluster.kubernetes.groups.head.shared_memory_gib=1") == (
        "cluster.kubernetes.groups.head.shared_memory_gib: got 1; allowed: at least 4: for Ray's object store and NCCL"
    )


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("head", "allowed: another name: its pods are called as the head"),
        ("cpu", "allowed: another name: its pods are called as the pods of all roles without a GPU"),
        ("gpu pool", "allowed: at most 40 letters, digits, - and _: it names pods"),
    ],
)
def test_a_group_whose_name_pods_cannot_have_is_refused(name: str, why: str) -> None:
    assert refusal(*GPU, policy={"model": "m", "placement": {"group": name}}) == f"placement.group: got {name!r}; {why}"


def test_names_of_pods() -> None:
    assert (pod_name("Big_Pool.1"), isinstance(stage(), PPOStage)) == ("big-pool-1", True)
