"""Where groups go: reserve the bundles of all groups at once, or say in words which role lacks what and what the cluster has."""

from __future__ import annotations

import time
import uuid
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import ray
from ray.util.placement_group import PlacementGroup

from actors.errors import PreceptorError

Strategy = Literal["PACK", "SPREAD", "STRICT_PACK", "STRICT_SPREAD"]
"""In Ray's words."""

POLL_S = 1.0
"""How often a wait gives Ctrl-C a chance."""
MEMORY = ("memory", "object_store_memory")
OWN = "preceptor-"
"""What the names of our placement groups begin with, for whoever looks at a cluster."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupRequest:
    """One placement group to be."""

    name: str
    roles: tuple[str, ...]
    bundle: Mapping[str, float]
    """Ray resource to amount: of each bundle."""
    num_bundles: int
    strategy: Strategy


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """A live node of the cluster."""

    name: str
    """Address and the beginning of its id: several may run on one host."""
    total: Mapping[str, float]
    free: Mapping[str, float]


def reserve(
    requests: Sequence[GroupRequest], *, timeout_s: float, autoscaling: bool = False
) -> dict[str, PlacementGroup]:
    """Reserves all groups, with one deadline for them together; by name.

    With `autoscaling` nodes may come that are not there yet. Without, what the nodes could not hold if they were empty fails at once.

    Raises:
        PreceptorError: naming roles, what they lack and what the cluster has. Nothing stays reserved then.
    """
    if not autoscaling:
        _require_possible(requests)
    placed = {request.name: _ask(request) for request in requests}
    try:
        deadline = time.monotonic() + timeout_s
        while late := [request for request in requests if not _there(placed[request.name], deadline)]:
            if time.monotonic() >= deadline:
                raise PreceptorError(_not_placed(late, requests, placed, timeout_s))
    except BaseException:
        give_back(list(placed.values()))
        raise
    return placed


def give_back(placements: Sequence[PlacementGroup]) -> None:
    """Ends reservations, also those that are not there yet."""
    for placement in placements:
        ray.util.remove_placement_group(placement)


def nodes() -> list[Node]:
    """The live nodes of the cluster that this process has joined."""
    # no public call gives what is free by node without the dashboard: `ray.util.state` asks it
    from ray._private.state import available_resources_per_node

    free = available_resources_per_node()
    return [
        Node(
            name=f"{node['NodeManagerAddress']} ({node['NodeID'][:8]})",
            total=_plain(node["Resources"]),
            free=_plain(free[node["NodeID"]]) if node["NodeID"] in free else {},
        )
        for node in ray.nodes()
        if node["Alive"]
    ]


def _plain(resources: Mapping[str, float]) -> dict[str, float]:
    """Without what Ray adds by itself: memory, node addresses, placement groups' own names for what they hold."""
    return {
        key: amount
        for key, amount in resources.items()
        if key not in MEMORY and ":" not in key and "_group_" not in key
    }


def _ask(request: GroupRequest) -> PlacementGroup:
    # a name must be the only one of its kind in a cluster, and others may run there
    unique = f"{OWN}{request.name}-{uuid.uuid4().hex[:8]}"
    bundles = [dict(request.bundle) for _ in range(request.num_bundles)]
    return ray.util.placement_group(bundles, strategy=request.strategy, name=unique)


def _there(placement: PlacementGroup, deadline: float) -> bool:
    return bool(placement.wait(timeout_seconds=max(0.0, min(POLL_S, deadline - time.monotonic()))))


def _require_possible(requests: Sequence[GroupRequest]) -> None:
    """PreceptorError for what the cluster could not hold if it were empty: of each group alone, and of all groups together."""
    there = nodes()
    impossible = [f"{_wish(request)}: {why}" for request in requests if (why := lack(request, there, now=False))]
    needed: Counter[str] = Counter()
    for request in requests:
        needed.update({key: amount * request.num_bundles for key, amount in request.bundle.items()})
    if not impossible:
        for key, amount in needed.items():
            has = sum(_amount(node.total, key) for node in there)
            if amount > has:
                groups = ", ".join(f"{one.name} ({', '.join(one.roles)})" for one in requests if key in one.bundle)
                impossible.append(f"groups {groups} together need {amount:g} {key}, the whole cluster has {has:g}")
    if impossible:
        raise PreceptorError(
            f"the cluster can't hold the run: {'; '.join(impossible)}. {_has(there)}. Where an autoscaler would start nodes for it, "
            "cluster.autoscaling says so"
        )


def _not_placed(
    late: Sequence[GroupRequest],
    requests: Sequence[GroupRequest],
    placed: Mapping[str, PlacementGroup],
    timeout_s: float,
) -> str:
    there = nodes()
    reasons = [
        f"{_wish(one)}: {lack(one, there, now=True) or 'there is room now, but it was not given'}" for one in late
    ]
    done = [request.name for request in requests if request not in late]
    beside = f". Placed beside: {', '.join(done)}" if done else ""
    others = _others({placement.id.hex() for placement in placed.values()})
    held = f". Held by others: {', '.join(others)}" if others else ""
    return (
        f"the run could not be placed within {timeout_s:g} s (cluster.placement_timeout_s): {'; '.join(reasons)}{beside}. "
        f"{_has(there)}{held}"
    )


def lack(request: GroupRequest, there: Sequence[Node], *, now: bool) -> str:
    """In words what keeps a group from being placed: `now`, or ever, on nodes that nobody else uses; empty where nothing does."""
    have = [node.free if now else node.total for node in there]
    for key, amount in request.bundle.items():
        if (most := max((_amount(node.total, key) for node in there), default=0.0)) < amount:
            return f"no node has {amount:g} {key}" + (f", the most is {most:g}" if most else "")
    for key, amount in request.bundle.items():
        if (most := max(_amount(node, key) for node in have)) < amount:
            return f"no node has {amount:g} {key} free, the most is {most:g}"
    fits = [min(int((_amount(node, key) + 1e-9) // amount) for key, amount in request.bundle.items()) for node in have]
    if not any(fits):
        return "no node has all of it together" + (" free" if now else "")
    room = {
        "STRICT_PACK": (max(fits), "the node with most room"),
        "STRICT_SPREAD": (sum(fit > 0 for fit in fits), "with one on each node, the cluster"),
    }
    count, where = room[request.strategy] if request.strategy in room else (sum(fits), "the cluster")
    return f"{where} has room for {count} of {request.num_bundles} bundles" if count < request.num_bundles else ""


def _amount(resources: Mapping[str, float], key: str) -> float:
    # Ray leaves out what there is none of
    return resources.get(key, 0.0)


def _wish(request: GroupRequest) -> str:
    bundle = ", ".join(f"{amount:g} {key}" for key, amount in request.bundle.items())
    many = f"{request.num_bundles} bundles" if request.num_bundles > 1 else "1 bundle"
    return f"group {request.name!r} ({', '.join(request.roles)}) needs {many} of {bundle}, {request.strategy}"


def _has(there: Sequence[Node]) -> str:
    def one(node: Node) -> str:
        kinds = ", ".join(
            f"{_amount(node.free, key):g} of {total:g} {key}" for key, total in sorted(node.total.items())
        )
        return f"{node.name}: {kinds or 'nothing'}"

    return f"The cluster's nodes, free of total: {'; '.join(map(one, there))}"


def _others(own: set[str]) -> list[str]:
    """Placement groups that are not this run's and hold something, with what they hold."""
    found = []
    for group, facts in ray.util.placement_group_table().items():
        if group in own or facts["state"] != "CREATED":
            continue
        total: Counter[str] = Counter()
        for bundle in facts["bundles"].values():
            total.update(_plain(bundle))
        # sorted: Ray gives a bundle's resources in an order that differs from process to process
        held = " + ".join(f"{amount:g} {key}" for key, amount in sorted(total.items()))
        found.append(f"placement group {facts['name'] or group[:8]!r} ({held})")
    return found
