"""From a plan to running groups: Ray is started or joined, placement groups are reserved, ranks are spawned, connected and loaded."""

from __future__ import annotations

import math
import os
import signal
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ray
from ray.util.placement_group import PlacementGroup

from actors.context import RankContext
from actors.errors import PreceptorError, UserError
from actors.group import Call, Group, Share, Waiter, connect, kill, spawn
from actors.placement import GroupRequest, give_back, reserve
from actors.role import Role
from actors.rollout import RolloutReport
from actors.tasks import RoleReport
from configs.schema.run import ClusterConfig, RunConfig
from orchestrator.leftovers import MARK, end, ray_folder
from orchestrator.machine import local_machine
from orchestrator.plan import CPUS_PER_RANK, Plan, logical_cpus, num_gpus
from orchestrator.plan_records import GroupPlan, Machine
from orchestrator.surroundings import RAY_ADDRESS, cluster_address, ray_job

START_TRIES = 3
OVERRIDE = "RAY_OVERRIDE_JOB_RUNTIME_ENV"
SUPERVISOR_S = 30.0
"""Longest wait for a job's supervisor to answer."""
RESOURCE_SHARE = 0.001
"""Of a custom resource for each bundle: the least that Ray counts is 0.0001."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RoleSpec:
    """How one role's ranks are made."""

    role_class: type[Role]
    args: tuple[Any, ...]
    """Behind the context."""
    environment: Mapping[str, str] = field(default_factory=dict)


def start_ray(cluster: ClusterConfig, plan: Plan) -> None:
    """Starts Ray on this machine, or joins the cluster that this run belongs to.

    A local Ray counts logical CPUs, which may exceed the cores: roles that wait for each other share them. It has every custom resource
    that a group asks for.

    Raises:
        UserError: where no cluster answers at the address.
    """
    # user code (reward functions) is found from where the run was started, in every worker; our own packages come first
    ours = str(Path(__file__).resolve().parent.parent)
    search = os.pathsep.join(filter(None, [ours, os.getcwd(), os.environ.get("PYTHONPATH")]))
    common: dict[str, Any] = {
        "log_to_driver": False,
        "configure_logging": False,
        "runtime_env": {"env_vars": {"PYTHONPATH": search}},
    }
    address = cluster_address(cluster)
    if address is None:
        spare_cpus = 2
        gpus = num_gpus(plan) if cluster.device == "cuda" else 0
        cpus = math.ceil(logical_cpus(plan)) + spare_cpus
        resources = {group.resource: float(group.num_bundles) for group in plan.groups.values() if group.resource}
        start_local({"num_cpus": cpus, "num_gpus": gpus, "resources": resources, "include_dashboard": False, **common})
        return
    try:
        with _job_and_driver_agree():
            ray.init(address=address, **common)
    except (ConnectionError, ValueError, RuntimeError) as error:
        key = "cluster.address" if cluster.address is not None else RAY_ADDRESS
        raise UserError(f"{key}: no Ray cluster answers at {address!r} ({error})") from error
    if (job := ray_job()) is not None:
        _let_job_end(job, cluster.stop_timeout_s)


@contextmanager
def _job_and_driver_agree() -> Iterator[None]:
    """Within a job, what the driver asks of its workers' environment joins what the job was submitted with, ours first. Ray refuses by
    itself where both name a variable, as they do where a job brings its own PYTHONPATH."""
    before = os.environ.get(OVERRIDE)
    os.environ[OVERRIDE] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ[OVERRIDE]
        else:
            os.environ[OVERRIDE] = before


def _let_job_end(job: str, stop_timeout_s: float) -> None:
    """Gives a job that is stopped the time to end its step.

    Ray sends SIGTERM and kills after 3 s, or what RAY_JOB_STOP_WAIT_TIME_S says in the environment of the job's supervisor when the job
    is stopped (ray/dashboard/modules/job/job_supervisor.py). Set here it holds however the job was submitted and whoever stops it. What
    was set by whoever submitted the job, or runs the cluster, stays.
    """
    from ray.dashboard.modules.job.common import JOB_ACTOR_NAME_TEMPLATE, SUPERVISOR_ACTOR_RAY_NAMESPACE

    supervisor = ray.get_actor(JOB_ACTOR_NAME_TEMPLATE.format(job_id=job), namespace=SUPERVISOR_ACTOR_RAY_NAMESPACE)
    ray.get(supervisor.__ray_call__.remote(_set_stop_wait, math.ceil(stop_timeout_s)), timeout=SUPERVISOR_S)


def _set_stop_wait(_supervisor: object, wait_s: int) -> None:
    os.environ.setdefault("RAY_JOB_STOP_WAIT_TIME_S", str(wait_s))


def start_local(arguments: Mapping[str, Any]) -> str:
    """Starts Ray, within `leftovers.nothing_left`, and returns its dashboard's host and port (empty without one). On a busy machine its own
    30 s for that, which can't be set, may not do: it gets more than one try."""
    mark = os.environ[MARK]
    for _ in range(START_TRIES):
        # what is sent to the driver's whole process group (`timeout`, service managers) must not end Ray under a run that stops politely
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        try:
            context = ray.init(address="local", _temp_dir=str(ray_folder(mark)), **arguments)
        except Exception as error:  # noqa: BLE001 - supervision: a start that took too long is a bare Exception
            failure = error
            ray.shutdown()
            end(mark)
        else:
            return str(context.dashboard_url or "")
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
    raise PreceptorError(f"Ray could not be started on this machine in {START_TRIES} tries: {failure}") from failure


def machine_of(cluster: ClusterConfig) -> Machine:
    """What there is to run on. A cluster must have been joined."""
    address = cluster_address(cluster)
    if address is None:
        return local_machine()
    resources = ray.cluster_resources()
    return Machine(
        num_cpus=int(resources.get("CPU", 0)),
        num_gpus=int(resources.get("GPU", 0)),
        where=f"the Ray cluster at {address}",
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
        self._placements: dict[str, PlacementGroup] = {}

    def spawn(self, plan: Plan, specs: Mapping[str, RoleSpec]) -> None:
        """Places and spawns every role of the plan and connects its ranks. Nothing heavy is loaded yet.

        Raises:
            PreceptorError: where the cluster has no room within `cluster.placement_timeout_s`.
        """
        self._placements = reserve(
            [group_request(group) for group in plan.groups.values()],
            timeout_s=self.cluster.placement_timeout_s,
            autoscaling=self.cluster.autoscaling,
        )
        for group_plan in plan.groups.values():
            placement = self._placements[group_plan.name]
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

    def require_shared(self, file: Path) -> None:
        """UserError for a rank that does not see a file that the driver has written into the run directory."""
        calls = {name: group.call(Role.sees, str(file)) for name, group in self.groups.items()}
        for name, asked in calls.items():
            for rank, (seen, host) in enumerate(self.waiter.wait(asked, timeout_s=self.cluster.start_timeout_s)):
                if not seen:
                    raise UserError(
                        f"run.dir: {name} rank {rank} on {host} does not see {file}; allowed: a folder that all nodes of the cluster "
                        "share, at the same path, or the URL of an object store that all of them reach"
                    )

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
        give_back(list(self._placements.values()))


def group_request(group: GroupPlan) -> GroupRequest:
    """What a group asks of Ray. Of its custom resource each bundle takes next to nothing: the resource says where, and counts nothing."""
    bundle: dict[str, float] = {"CPU": group.cpus_per_bundle}
    if group.gpus_per_bundle:
        bundle["GPU"] = group.gpus_per_bundle
    if group.resource is not None:
        bundle[group.resource] = RESOURCE_SHARE
    return GroupRequest(
        name=group.name, roles=group.roles, bundle=bundle, num_bundles=group.num_bundles, strategy=group.strategy
    )
