"""Every formula against its hand values and its twin."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from types import ModuleType

import pytest

from tests.actors.algorithms.checks import CHECKS

CASES = [pytest.param(name, check, id=check.__name__) for name, checks in CHECKS.items() for check in checks]


@pytest.mark.parametrize(("name", "check"), CASES)
def test_formula(name: str, check: Callable[[ModuleType], None]) -> None:
    check(importlib.import_module(f"actors.algorithms.{name}"))
