"""What keeps a group from being placed, in words; against a real cluster: tests/cluster/test_placing.py."""

from __future__ import annotations

from typing import Any

import pytest

from actors.placement import GroupRequest, Node, Strategy, lack

NODES = [
    Node(name="one", total={"CPU": 8, "GPU": 4, "a100": 1}, free={"CPU": 8, "GPU": 1, "a100": 1}),
    Node(name="two", total={"CPU": 8, "GPU": 4, "a100": 1}, free={"CPU": 2, "GPU": 4, "a100": 1}),
    Node(name="head", total={"CPU": 64}, free={"CPU": 64}),
]


def request(num_bundles: int, strategy: Strategy = "PACK", **bundle: float) -> GroupRequest:
    return GroupRequest(name="g", roles=("policy",), bundle=bundle, num_bundles=num_bundles, strategy=strategy)


@pytest.mark.parametrize(
    ("wanted", "ever", "now"),
    [
        (request(5, GPU=1, CPU=0.5), "", ""),
        (request(6, GPU=1, CPU=0.5), "", "the cluster has room for 5 of 6 bundles"),
        (request(9, GPU=1), "the cluster has room for 8 of 9 bundles", "the cluster has room for 5 of 9 bundles"),
        (request(1, GPU=8), "no node has 8 GPU, the most is 4", "no node has 8 GPU, the most is 4"),
        (request(1, GPU=1, h100=0.001), "no node has 0.001 h100", "no node has 0.001 h100"),
        (request(2, GPU=4), "", "the cluster has room for 1 of 2 bundles"),
        (request(1, GPU=1, CPU=16), "no node has all of it together", "no node has all of it together free"),
        (request(1, GPU=4, CPU=4), "", "no node has all of it together free"),
        (request(2, "STRICT_SPREAD", GPU=1), "", ""),
        (
            request(3, "STRICT_SPREAD", GPU=1),
            "with one on each node, the cluster has room for 2 of 3 bundles",
            "with one on each node, the cluster has room for 2 of 3 bundles",
        ),
        (request(4, "STRICT_PACK", GPU=1), "", ""),
        (
            request(5, "STRICT_PACK", GPU=1),
            "the node with most room has room for 4 of 5 bundles",
            "the node with most room has room for 4 of 5 bundles",
        ),
    ],
)
def test_what_is_lacking_is_said(wanted: GroupRequest, ever: str, now: str) -> None:
    assert lack(wanted, NODES, now=False) == ever
    assert lack(wanted, NODES, now=True) == now


def test_what_others_hold_is_told_from_what_nobody_has() -> None:
    taken = [Node(name="one", total={"CPU": 4, "GPU": 2}, free={"CPU": 4})]
    assert lack(request(1, GPU=1), taken, now=False) == ""
    assert lack(request(1, GPU=1), taken, now=True) == "no node has 1 GPU free, the most is 0"


def test_hundredths_of_a_core_add_up() -> None:
    """0.3 / 0.1 is less than 3 in floating point."""
    there = [Node(name="one", total={"CPU": 0.3}, free={"CPU": 0.3})]
    assert lack(request(3, CPU=0.1), there, now=True) == ""


def test_no_node_at_all() -> None:
    wanted: Any = request(1, CPU=1)
    assert lack(wanted, [], now=True) == "no node has 1 CPU"
