"""From a plan to running groups: Ray is started or joined, placement groups are reserved, ranks are spawned, connected and loaded."""

from __future__ import annotations

import math
import os
import signal
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ray
from ray.util.placement_group import PlacementGroup

from actors.context import RankContext
from actors.errors import PreceptorError, UserError
from actors.group import Call, Group, Share, Waiter, connect, kill, place, spawn
from actors.role import Role
from actors.rollout import RolloutReport
from actors.tasks import RoleReport
from configs.schema.run import ClusterConfig, RunConfig
from orchestrator.leftovers import MARK, end, ray_folder
from orchestrator.machine import local_machine
from orchestrator.plan import CPUS_PER_RANK, Plan, logical_cpus, num_gpus
from orchestrator.plan_records import Machine

START_TRIES = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class RoleSpec:
    """How one role's ranks are made."""

    role_class: type[Role]
    args: tuple[Any, ...]
    """Behind the context."""
    environment: Mapping[str, str] = field(default_factory=dict)


def start_ray(cluster: ClusterConfig, plan: Plan) -> None:
    """Starts Ray on this machine, or joins the cluster at `cluster.address`.

    A local Ray counts logical CPUs, which may exceed the cores: roles that wait for each other share them.
    """
    # user code (reward functions) is found from where the run was started, in every worker; our own packages come first
    ours = str(Path(__file__).resolve().parent.parent)
    search = os.pathsep.join(filter(None, [ours, os.getcwd(), os.environ.get("PYTHONPATH")]))
    common: dict[str, Any] = {
        "log_to_driver": False,
        "configure_logging": False,
        "runtime_env": {"env_vars": {"PYTHONPATH": search}},
    }
    if cluster.address is None:
        spare_cpus = 2
        gpus = num_gpus(plan) if cluster.device == "cuda" else 0
        cpus = math.ceil(logical_cpus(plan)) + spare_cpus
        _start_local({"num_cpus": cpus, "num_gpus": gpus, "include_dashboard": False, **common})
        return
    try:
        ray.init(address=cluster.address, **common)
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise UserError(f"cluster.address: no Ray cluster answers at {cluster.address!r} ({error})") from error


def _start_local(arguments: Mapping[str, Any]) -> None:
    """Starts Ray, within `leftovers.nothing_left`. On a busy machine its own 30 s for that, which can't be set, may not do: it gets more
    than one try."""
    mark = os.environ[MARK]
    for _ in range(START_TRIES):
        # what is sent to the driver's whole process group (`timeout`, service managers) must not end Ray under a run that stops politely
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        try:
            ray.init(address="local", _temp_dir=str(ray_folder(mark)), **arguments)
        except Exception as error:  # noqa: BLE001 - supervision: a start that took too long is a bare Exception
            failure = error
            ray.shutdown()
            end(mark)
        else:
            return
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
    raise PreceptorError(f"Ray could not be started on this machine in {START_TRIES} tries: {failure}") from failure


def machine_of(cluster: ClusterConfig) -> Machine:
    """What there is to run on. For a cluster it must have been joined."""
    if cluster.address is None:
        return local_machine()
    resources = ray.cluster_resources()
    return Machine(
        num_cpus=int(resources.get("CPU", 0)),
        num_gpus=int(resources.get("GPU", 0)),
        where=f"the Ray cluster at {cluster.address}",
    )


class Launched:
    """Running groups by role, and the one that waits for them."""

    def __init__(self, cluster: ClusterConfig, run: RunConfig, run_dir: Path) -> None:
        self.cluster = cluster
        self.run = run
        self.groups: dict[str, Group] = {}
        self.reports: dict[str, list[RoleReport | RolloutReport]] = {}
        """What each rank said when it had started."""
        self.waiter = Waiter(timeout_s=cluster.call_timeout_s, run_dir=run_dir)
        self._run_dir = run_dir
        self._placements: list[PlacementGroup] = []

    def spawn(self, plan: Plan, specs: Mapping[str, RoleSpec]) -> None:
        """Places and spawns every role of the plan and connects its ranks. Nothing heavy is loaded yet."""
        for group_plan in plan.groups.values():
            bundle = {"CPU": group_plan.cpus_per_bundle}
            if group_plan.gpus_per_bundle:
                bundle["GPU"] = group_plan.gpus_per_bundle
            placement = place(
                group_plan.name, [bundle] * group_plan.num_bundles, timeout_s=self.cluster.start_timeout_s
            )
            self._placements.append(placement)
            for name in group_plan.roles:
                role = plan.roles[name]
                contexts = [
                    RankContext(
                        role=name,
                        rank=rank,
                        world_size=role.num_ranks,
                        device=role.device,
                        threads=role.threads,
                        seed=self.run.seed,
                        deterministic=self.run.deterministic,
                        collective_timeout_s=self.cluster.collective_timeout_s,
                        run_dir=str(self._run_dir),
                    )
                    for rank in range(role.num_ranks)
                ]
                share = Share(
                    num_cpus=CPUS_PER_RANK,
                    num_gpus=role.gpus_per_rank / len(group_plan.roles),
                )
                group = spawn(specs[name].role_class, contexts, specs[name].args, placement, share)
                self.groups[name] = group
                self.waiter.watch(group)
        for name, group in self.groups.items():
            device = {"DS_ACCELERATOR": plan.roles[name].device}
            timeout_s = self.cluster.start_timeout_s
            connect(group, {**device, **specs[name].environment}, waiter=self.waiter, timeout_s=timeout_s)

    def load(self, starts: Mapping[str, Callable[[Any], Any]]) -> None:
        """Loads the models of some roles, all at once; `starts` names each one's method."""
        calls: dict[str, list[Call]] = {name: self.groups[name].call(start) for name, start in starts.items()}
        for name, started in calls.items():
            self.reports[name] = self.waiter.wait(started, timeout_s=self.cluster.start_timeout_s)

    def stop(self) -> None:
        """Ends every actor and gives the placement groups back. Raises nothing: whatever ends the run is the error to show."""
        for part in (lambda: kill(list(self.groups.values())), self._give_back):
            # where Ray itself is broken there is nothing left to give back to
            with suppress(ray.exceptions.RayError, ConnectionError, ValueError, RuntimeError):
                part()

    def _give_back(self) -> None:
        for placement in self._placements:
            ray.util.remove_placement_group(placement)
