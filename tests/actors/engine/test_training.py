"""The engine's steps against a plain torch loop.

Tolerance: the movement of each tensor over three AdamW steps, ‖Δa - Δb‖ / ‖Δb‖ <= 1e-3. Adam's epsilon is 1e-6 there: with a smaller one, a
gradient that is 0 but for rounding (a token that never occurs) would be scaled up to a whole step of either sign.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.actors.engine.ranks import engine_config, relative_difference, run_ranks
from tests.actors.engine.training import Task, reference, train
from tests.tiny_models import make_tiny_causal_lm


def largest_difference(got: dict[str, Any], expected: dict[str, Any]) -> tuple[float, str]:
    assert got["end"].keys() == expected["end"].keys()
    return max(
        (relative_difference(got["end"][name] - got["start"][name], value - expected["start"][name]), name)
        for name, value in expected["end"].items()
    )


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[bool, str]:
    folder = tmp_path_factory.mktemp("models")
    return {tied: str(make_tiny_causal_lm(folder / f"tied-{tied}", tied=tied)) for tied in (True, False)}


@pytest.mark.slow
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("num_ranks", [1, 2])
@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_three_steps_equal_plain_torch(stage: int, num_ranks: int, tied: bool, models: dict[bool, str], tmp_path: Path) -> None:
    expected = reference(models[tied])
    ranks = run_ranks(train, num_ranks, tmp_path, Task(model=models[tied], engine=engine_config(stage)))
    for result in ranks:
        assert result["norms"] == pytest.approx(expected["norms"], rel=1e-4)
        assert largest_difference(result, expected)[0] <= 1e-3
        assert result["digest"] == ranks[0]["digest"]
    losses = [sum(result["metrics"][step].get("loss", 0.0) for result in ranks) for step in range(3)]
    assert losses == pytest.approx(expected["losses"], rel=1e-4)
