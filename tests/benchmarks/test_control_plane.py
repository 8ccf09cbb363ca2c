"""The orchestrator over groups without processes: what it asks of Ray grows with waves and ranks, and by no more."""

from pathlib import Path

import pytest

from benchmarks.control_plane import Layout, cost_table, layout, measure, run
from benchmarks.fake_groups import Counts, FakeGroup, FakeWaiter, RayCosts, World
from orchestrator.ledger import Ledger, LedgerEntry

NO_COSTS = RayCosts(call_us=0.0, second_result_us=0.0, passed_ref_us=0.0, polled_ref_us=0.0)


def counts(size: Layout, folder: Path) -> Counts:
    return measure(size, folder, NO_COSTS).counts


def sized(*, waves: int, policy: int = 4, critic: int = 3) -> Layout:
    return Layout(policy=policy, critic=critic, engines=2, prompts=16 * waves, prompts_per_wave=16)


def test_calls_grow_linearly_with_waves(tmp_path: Path) -> None:
    found = [counts(sized(waves=waves), tmp_path / str(waves)) for waves in (2, 4, 8)]
    calls = [each.calls for each in found]
    assert calls[2] - calls[1] == 2 * (calls[1] - calls[0])
    # a wave: its generation, three roles of 4 ranks, the critic's values and its experience
    assert (calls[1] - calls[0]) // 2 == 1 + 3 * 4 + 2 * 3
    assert all(each.fetched == each.calls for each in found), "every result is looked at, once"


def test_references_grow_no_faster_than_waves(tmp_path: Path) -> None:
    few, many = (measure(sized(waves=waves), tmp_path / str(waves), NO_COSTS) for waves in (2, 8))
    assert few.counts.passed_refs < many.counts.passed_refs <= 4 * few.counts.passed_refs * 1.05
    assert few.most_refs < many.most_refs <= 4 * few.most_refs


def test_a_wave_costs_as_many_calls_as_it_has_ranks_to_go_to(tmp_path: Path) -> None:
    def per_wave(policy: int, critic: int) -> int:
        two, four = (
            counts(sized(waves=waves, policy=policy, critic=critic), tmp_path / f"{policy}-{waves}").calls
            for waves in (2, 4)
        )
        return (four - two) // 2

    assert per_wave(policy=8, critic=6) - 1 == 2 * (per_wave(policy=4, critic=3) - 1)


def test_it_is_the_real_loop_and_nothing_is_left_under_way(tmp_path: Path) -> None:
    world, _ = run(layout(8), tmp_path, NO_COSTS)
    entry = Ledger(tmp_path, LedgerEntry).read(2)
    assert sum(len(wave.lengths) for wave in entry.waves) == layout(8).prompts
    assert world.refs.live == 0
    assert world.kept == {}


def test_a_rank_does_one_call_after_the_other_and_waits_for_what_it_needs(tmp_path: Path) -> None:
    world = World(run_dir=tmp_path)
    first, second = FakeGroup("policy", 1, world), FakeGroup("reward", 1, world)
    for group in (first, second):
        group.unseen.clear()
    waiter = FakeWaiter(world)
    for name in ("logprobs", "logprobs"):
        call = first.call_rank(0, named(name), two_results=True)
    waiter.wait([call])
    assert world.now == pytest.approx(3.0), "two forward passes of 1.5 s"
    slow = first.call_rank(0, named("logprobs"), two_results=True)
    waiter.wait([second.call_rank(0, named("score"), slow.big)])
    assert world.now == pytest.approx(6.0), "the second role waits for the first one's result"


def named(name: str):  # type: ignore[no-untyped-def] # a method of a role
    def method() -> None: ...

    method.__name__ = name
    return method


def test_costs_lengthen_the_step_and_the_table_says_by_how_much(tmp_path: Path) -> None:
    costs = RayCosts(call_us=1e5, second_result_us=0.0, passed_ref_us=0.0, polled_ref_us=0.0)
    slow = measure(layout(8), tmp_path, costs)
    assert slow.step_s - slow.free_s > 0.1 * 2, "the updates' calls at least are waited for"
    assert slow.step_s - slow.free_s <= costs.seconds(slow.counts) + slow.cpu_s + 0.1
    row = cost_table([slow], costs).rows[0]
    assert row[:3] == (8, 64, 1)
    assert float(str(row[-1]).split("%")[0]) == pytest.approx(100 * (1 - slow.free_s / slow.step_s), abs=0.06)


@pytest.mark.parametrize("num_ranks", [8, 64, 1024, 8192])
def test_layouts_have_the_ranks_they_are_named_for(num_ranks: int) -> None:
    size = layout(num_ranks)
    assert size.num_ranks == num_ranks
    assert size.prompts == 8 * num_ranks
    assert size.num_waves == size.engines
