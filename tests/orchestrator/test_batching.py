"""Who computes what: each trajectory once, everywhere in lockstep, and the same minibatches however many ranks there are."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from actors.algorithms.packing import pack
from orchestrator.batching import Balancer, lockstep, minibatches_of, permutation

LENGTHS = st.lists(st.integers(1, 64), min_size=1, max_size=40)


def test_longest_first_to_the_rank_with_least() -> None:
    # 9 to rank 0, 7 to rank 1, 5 to rank 1 (7 < 9), 4 to rank 0 (9 < 12): 13 and 12
    assert Balancer(2).assign([4, 9, 5, 7], [0, 0, 0, 0]) == [(0, 1), (2, 3)]


def test_each_minibatch_is_balanced_for_itself() -> None:
    # by tokens alone, both of a minibatch could go to one rank, and the other would wait in its every collective
    ranks = Balancer(2).assign([10, 10, 2, 2], [0, 1, 0, 1])
    minibatches = [Counter([0, 1, 0, 1][i] for i in rank) for rank in ranks]
    assert minibatches == [{0: 1, 1: 1}, {0: 1, 1: 1}]


def test_loads_carry_over_from_wave_to_wave() -> None:
    balancer = Balancer(2)
    assert balancer.assign([9], [0]) == [(0,), ()]
    assert balancer.assign([3, 3], [0, 0]) == [(), (0, 1)]


@given(lengths=LENGTHS, num_ranks=st.integers(1, 5), num_minibatches=st.integers(1, 3), data=st.data())
def test_every_trajectory_has_one_rank(
    lengths: list[int], num_ranks: int, num_minibatches: int, data: st.DataObject
) -> None:
    minibatches = [data.draw(st.integers(0, num_minibatches - 1)) for _ in lengths]
    ranks = Balancer(num_ranks).assign(lengths, minibatches)
    assert sorted(i for rank in ranks for i in rank) == list(range(len(lengths)))
    assert all(list(rank) == sorted(rank) for rank in ranks)


@given(lengths=LENGTHS, num_ranks=st.integers(1, 5))
def test_no_rank_has_more_than_its_share_and_one_trajectory(lengths: list[int], num_ranks: int) -> None:
    """Graham's bound for greedy assignment: the fullest rank exceeds the mean by less than the longest."""
    ranks = Balancer(num_ranks).assign(lengths, [0] * len(lengths))
    fullest = max(sum(lengths[i] for i in rank) for rank in ranks)
    assert fullest <= sum(lengths) / num_ranks + max(lengths)


@given(
    waves=st.lists(
        st.lists(st.tuples(st.integers(1, 9), st.integers(0, 3)), min_size=1, max_size=20), min_size=1, max_size=4
    ),
    num_ranks=st.integers(1, 7),
)
def test_the_rank_is_the_one_that_looking_at_all_of_them_finds(
    waves: list[list[tuple[int, int]]], num_ranks: int
) -> None:
    """Short lengths and few minibatches make ties and entries that lag behind."""
    balancer, tokens = Balancer(num_ranks), [0] * num_ranks
    loads = {minibatch: [0] * num_ranks for minibatch in range(4)}
    for wave in waves:
        ranks: list[list[int]] = [[] for _ in range(num_ranks)]
        for i in sorted(range(len(wave)), key=lambda i: (-wave[i][0], i)):
            length, minibatch = wave[i]
            _, _, rank = min((loads[minibatch][r], tokens[r], r) for r in range(num_ranks))
            ranks[rank].append(i)
            loads[minibatch][rank] += length
            tokens[rank] += length
        assigned = balancer.assign([length for length, _ in wave], [minibatch for _, minibatch in wave])
        assert assigned == [tuple(sorted(indices)) for indices in ranks]


@given(st.lists(st.lists(st.tuples(st.integers()), max_size=5), min_size=1, max_size=5))
def test_lockstep(ranks: list[list[tuple[int, ...]]]) -> None:
    filled = lockstep(ranks)
    assert {len(batches) for batches in filled} == {max(1, *(len(rank) for rank in ranks), 0)}
    for before, after in zip(ranks, filled, strict=True):
        assert after[: len(before)] == tuple(before)
        assert set(after[len(before) :]) <= {()}


def test_permutations_are_pinned_and_differ_by_label() -> None:
    """Resumed runs and other machines must draw the same: these are part of a run's digest."""
    assert permutation(8, seed=1, label="a") == permutation(8, seed=1, label="a")
    assert permutation(8, seed=1, label="a") != permutation(8, seed=1, label="b")
    assert permutation(8, seed=1, label="a") != permutation(8, seed=2, label="a")
    assert permutation(8, seed=0, label="minibatches/1/0") == [6, 0, 3, 4, 2, 5, 1, 7]


@given(size=st.integers(1, 8), num=st.integers(1, 6), step=st.integers(1, 5), epoch=st.integers(0, 3))
def test_minibatches_are_equally_large(size: int, num: int, step: int, epoch: int) -> None:
    minibatches = minibatches_of(size * num, num, seed=7, step=step, epoch=epoch)
    assert Counter(minibatches) == dict.fromkeys(range(num), size)


@given(
    lengths=st.lists(st.integers(1, 64), min_size=4, max_size=24),
    ranks=st.lists(st.integers(1, 4), min_size=2, max_size=2),
)
def test_what_a_minibatch_holds_does_not_depend_on_ranks(lengths: list[int], ranks: list[int]) -> None:
    lengths = lengths[: len(lengths) // 2 * 2]
    minibatches = minibatches_of(len(lengths), 2, seed=0, step=1, epoch=0)
    seen = []
    for num_ranks in ranks:
        placed = Balancer(num_ranks).assign(lengths, minibatches)
        members: dict[int, set[int]] = {0: set(), 1: set()}
        for rank in placed:
            for minibatch in members:
                mine = {i: lengths[i] for i in rank if minibatches[i] == minibatch}
                members[minibatch] |= {i for batch in pack(mine, 64) for i in batch}
        seen.append(members)
    assert seen[0] == seen[1] == {m: {i for i, of in enumerate(minibatches) if of == m} for m in (0, 1)}
