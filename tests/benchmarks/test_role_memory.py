"""Predicted memory of real DeepSpeed ranks on CPU, against what they hold: within 15 %."""

from pathlib import Path

import pytest

from benchmarks.role_memory import PHASES, QUICK, Case, make_models, measure, predicted

TOLERANCE = 0.15


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_models(tmp_path_factory.mktemp("role-memory"))


@pytest.mark.slow
@pytest.mark.parametrize("case", QUICK, ids=lambda case: case.name)
def test_prediction_is_within_15_percent_of_what_is_measured(folder: Path, case: Case) -> None:
    expected, found = predicted(folder, case), measure(folder, case)
    off = {phase: expected[phase] / found[phase] - 1 for phase in PHASES}
    assert all(abs(part) <= TOLERANCE for part in off.values()), (off, expected, found)
