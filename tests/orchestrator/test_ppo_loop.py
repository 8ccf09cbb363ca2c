"""Where a PPO run takes up again, and which of its evaluations is the best: the decisions alone, over stand-ins for ledger, checkpoints and
ranks. With real ones: tests/resilience/test_exact.py.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from actors.algorithms.kl_controller import FixedKLController
from orchestrator.checkpoints import Checkpoints, Damaged
from orchestrator.evaluation import Evaluation
from orchestrator.ppo_loop import Position, PPOLoop
from tests.orchestrator.small_stages import stage

WIN_RATES = {0: None, 2: 0.9, 4: 0.6, 6: 0.9}
"""By step: 2 is the best, and of 2 and 6 the first."""


class Stored(Checkpoints):
    """A run directory's checkpoints, without files."""

    def __init__(self, newest: int, whole: Collection[int], damaged: Collection[int]) -> None:
        super().__init__(Path("nowhere"), keep=2)
        self._newest, self._whole, self._damaged = newest, set(whole), set(damaged)

    def newest(self, last_committed: int, note: Callable[[str], None]) -> int:
        return self._newest

    def has(self, step: int) -> bool:
        return step in self._whole | self._damaged

    def state(self, step: int) -> dict[str, Any]:
        if step in self._damaged:
            raise Damaged(f"checkpoint {step} is damaged")
        return {}


def taken_up(*, last: int, newest: int, whole: Collection[int] = (), damaged: Collection[int] = ()) -> Any:
    """A loop behind `_take_up`, with what it has replayed, written and noted."""
    loop: Any = object.__new__(PPOLoop)
    loop.config = stage("data.held_out_rows=4")
    loop.position = Position(step=0, kl=FixedKLController(0.1))
    loop.best, loop._most = 0, float("-inf")
    loop.ledger = SimpleNamespace(
        last_step=lambda: last, read=lambda step: SimpleNamespace(step=step, kl_controller={"coef": 0.1})
    )
    loop.checkpoints = Stored(newest, whole, damaged)
    evaluations = [
        Evaluation(step=step, metrics={} if rate is None else {"held_out/win_rate": rate}, judged={})
        for step, rate in WIN_RATES.items()
        if step <= last
    ]
    loop.held_out = SimpleNamespace(made=lambda last: evaluations)
    loop.notes, loop.replayed, loop.written = [], [], []
    loop.progress = SimpleNamespace(note=loop.notes.append, phase=lambda name: nullcontext())
    loop.waiter = SimpleNamespace(step=None, wait=lambda calls: [])
    loop.groups = {role: SimpleNamespace(call=lambda *_: []) for role in ("policy", "critic")}
    loop._replay = lambda entry: loop.replayed.append(entry.step)
    loop._write_checkpoint = lambda: loop.written.append(loop.position.step)
    loop._take_up()
    return loop


def test_a_best_step_whose_checkpoint_was_never_written_gets_it_when_it_is_replayed() -> None:
    loop = taken_up(last=5, newest=1, whole={1})
    assert loop.replayed == [2, 3, 4, 5]
    assert loop.written == [2]
    assert (loop.best, loop.position.step) == (2, 5)


def test_the_best_evaluation_before_the_checkpoint_is_found_again() -> None:
    loop = taken_up(last=6, newest=5, whole={2, 4, 5})
    assert loop.best == 2
    assert (loop.replayed, loop.written, loop.notes) == ([6], [], [])


@pytest.mark.parametrize(("damaged", "best"), [({2}, 6), ({2, 6}, 4)])
def test_an_evaluation_whose_checkpoint_is_damaged_is_not_the_best(damaged: set[int], best: int) -> None:
    loop = taken_up(last=6, newest=6, whole={2, 4, 6} - damaged, damaged=damaged)
    assert loop.best == best
    assert len(loop.notes) == len(damaged)
    assert "checkpoint 2 is damaged. Its evaluation no longer counts for the best" in loop.notes


def test_a_new_run_has_no_best() -> None:
    assert taken_up(last=0, newest=0).best == 0
