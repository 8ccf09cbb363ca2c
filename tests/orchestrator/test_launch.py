"""Ray started or joined for a plan."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import ray

from actors.errors import UserError
from actors.placement import give_back, reserve
from orchestrator.launch import Launched, group_request, start_ray
from orchestrator.leftovers import nothing_left
from tests.orchestrator.small_stages import plan_of, stage


@pytest.fixture(autouse=True)
def _no_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_on_this_machine_alone_a_clusters_config_finds_its_resources() -> None:
    groups = {"policy": {"resource": "h100"}, "rollout": {"resource": "l40s"}, "critic": {"resource": "h100"}}
    config = stage("policy.placement.num_ranks=2", "rollout.num_engines=2", cluster={"groups": groups})
    plan = plan_of(config)
    with nothing_left():
        start_ray(config.cluster, plan)
        try:
            placed = reserve([group_request(group) for group in plan.groups.values()], timeout_s=30)
            assert list(placed) == list(plan.groups)
            give_back(list(placed.values()))
        finally:
            ray.shutdown()


@pytest.mark.timeout(120)
def test_a_cluster_of_the_environment_that_is_gone_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "no-port")
    config = stage()
    with pytest.raises(UserError, match=r"^RAY_ADDRESS: no Ray cluster answers at 'no-port' \("):
        start_ray(config.cluster, plan_of(config))


def test_a_rank_that_does_not_see_the_run_directory_is_named(tmp_path: Path) -> None:
    launched: Any = Launched(stage().cluster, stage().run, tmp_path)
    launched.groups = {"policy": SimpleNamespace(call=lambda method, path: [path, path])}
    launched.waiter = SimpleNamespace(wait=lambda calls, timeout_s: [(True, "node-a"), (False, "node-b")])
    with pytest.raises(UserError) as told:
        launched.require_shared(tmp_path / "plan.json")
    assert str(told.value) == (
        f"run.dir: policy rank 1 on node-b does not see {tmp_path}/plan.json; allowed: a folder that all nodes of the cluster share, at "
        "the same path, or the URL of an object store that all of them reach"
    )
