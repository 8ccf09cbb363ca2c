"""Groups on the nodes of a real cluster, and what is said where they do not fit."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator

import pytest
import ray
from ray.util.placement_group import PlacementGroup

from actors.errors import PreceptorError
from actors.placement import GroupRequest, give_back, nodes, reserve
from orchestrator.launch import group_request
from orchestrator.plan_records import GroupPlan, Strategy
from tests.cluster.conftest import ENGINES, TRAIN, Started, joined

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


@pytest.fixture(scope="module", autouse=True)
def _member(cluster: Started) -> Iterator[None]:
    with joined(cluster):
        until_all_free()
        yield


def group(
    name: str, num_bundles: int, resource: str | None, strategy: Strategy = "PACK", cpus: float = 0.5
) -> GroupRequest:
    return group_request(
        GroupPlan(
            name=name,
            num_bundles=num_bundles,
            gpus_per_bundle=0,
            cpus_per_bundle=cpus,
            roles=(name,),
            strategy=strategy,
            resource=resource,
        )
    )


def nodes_of(placement: PlacementGroup) -> list[str]:
    placed = ray.util.placement_group_table(placement)["bundles_to_node_id"]
    return [placed[index] for index in sorted(placed)]


def all_free() -> bool:
    return all(node.free == node.total for node in nodes())


def until_all_free() -> None:
    deadline = time.monotonic() + 30
    while not all_free():
        assert time.monotonic() < deadline, nodes()
        time.sleep(0.1)


def test_groups_of_different_sizes_land_on_their_resources(cluster: Started) -> None:
    wanted = [
        group("policy", 4, TRAIN),
        group("critic", 2, TRAIN, "STRICT_SPREAD"),
        group("rollout", 2, ENGINES, "SPREAD", cpus=2),
        group("reward", 3, ENGINES, "STRICT_PACK", cpus=0.25),
    ]
    placed = reserve(wanted, timeout_s=30)
    try:
        where = {name: nodes_of(placement) for name, placement in placed.items()}
    finally:
        give_back(list(placed.values()))
    assert len(where["policy"]) == 4
    assert len(set(where["policy"])) == 1
    assert set(where["policy"]) < cluster.train
    assert set(where["critic"]) == cluster.train
    assert set(where["rollout"]) == cluster.engines
    assert len(set(where["reward"])) == 1
    assert set(where["reward"]) < cluster.engines
    until_all_free()


def test_what_the_cluster_can_never_hold_is_refused_at_once(cluster: Started) -> None:
    began = time.monotonic()
    with pytest.raises(PreceptorError) as told:
        reserve(
            [group("policy", 2, TRAIN), group("critic", 9, TRAIN, cpus=1), group("reward", 1, "h100")], timeout_s=60
        )
    assert time.monotonic() - began < 30  # long before its time is over
    said = str(told.value)
    assert said.startswith(
        "the cluster can't hold the run: group 'critic' (critic) needs 9 bundles of 1 CPU, 0.001 gpus_to_train, PACK: the cluster has "
        "room for 8 of 9 bundles; group 'reward' (reward) needs 1 bundle of 0.5 CPU, 0.001 h100, PACK: no node has 0.001 h100. "
        "The cluster's nodes, free of total: "
    )
    assert len(re.findall(r"4 of 4 CPU, 1 of 1 gpus_to_train", said)) == 2
    assert len(re.findall(r"4 of 4 CPU, 1 of 1 gpus_to_generate", said)) == 2
    assert said.endswith("Where an autoscaler would start nodes for it, cluster.autoscaling says so")


def test_groups_that_fit_alone_but_not_together_are_refused_at_once(cluster: Started) -> None:
    wanted = [group(name, 10, None, cpus=1) for name in ("policy", "critic")]
    with pytest.raises(
        PreceptorError,
        match=r"groups policy \(policy\), critic \(critic\) together need 20 CPU, the whole cluster has 18",
    ):
        reserve(wanted, timeout_s=60)


def test_what_others_hold_is_said_within_the_time_and_nothing_stays_reserved(cluster: Started) -> None:
    theirs = reserve([group("theirs", 2, TRAIN, "STRICT_SPREAD", cpus=3)], timeout_s=30)
    began = time.monotonic()
    try:
        with pytest.raises(PreceptorError) as told:
            reserve([group("rollout", 2, ENGINES), group("policy", 1, TRAIN, cpus=2)], timeout_s=2)
        took_s = time.monotonic() - began
    finally:
        give_back(list(theirs.values()))
    assert 2 <= took_s < 40
    said = str(told.value)
    assert said.startswith(
        "the run could not be placed within 2 s (cluster.placement_timeout_s): group 'policy' (policy) needs 1 bundle of 2 CPU, 0.001 "
        "gpus_to_train, PACK: no node has all of it together free. Placed beside: rollout. The cluster's nodes, free of total: "
    )
    assert len(re.findall(r"1 of 4 CPU, [\d.]+ of 1 gpus_to_train", said)) == 2
    assert re.search(
        r"Held by others: placement group 'preceptor-theirs-\w{8}' \(6 CPU \+ 0\.002 gpus_to_train\)$", said
    )
    until_all_free()


def test_an_autoscaler_is_waited_for(cluster: Started) -> None:
    began = time.monotonic()
    with pytest.raises(
        PreceptorError, match=r"within 1 s .* needs 1 bundle of 99 CPU, PACK: no node has 99 CPU, the most is 4"
    ):
        reserve([group("policy", 1, None, cpus=99)], timeout_s=1, autoscaling=True)
    assert time.monotonic() - began >= 1
