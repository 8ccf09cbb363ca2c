"""Ctrl-C and SIGTERM."""

from __future__ import annotations

import signal
import sys
from types import ModuleType

import pytest

from orchestrator.signals import STOPPING, interruptible


class Interrupting(ModuleType):
    """A module that is interrupted while Python words that it lacks a name."""

    def __getattribute__(self, name: str) -> object:
        if name == "__name__":
            signal.raise_signal(signal.SIGINT)
        return super().__getattribute__(name)


@pytest.mark.parametrize("number", STOPPING)
def test_a_signal_interrupts(number: signal.Signals) -> None:
    with pytest.raises(KeyboardInterrupt), interruptible():
        signal.raise_signal(number)


def test_an_interrupt_within_a_failing_import_stays_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "interrupting", Interrupting("interrupting"))
    with pytest.raises(KeyboardInterrupt), interruptible():
        from interrupting import nothing  # type: ignore[import-not-found]  # noqa: F401


def test_an_error_without_a_signal_stays_what_it_is() -> None:
    with pytest.raises(TypeError, match="mine"), interruptible():
        raise TypeError("mine")


def test_handlers_are_put_back() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with interruptible():
        assert signal.getsignal(signal.SIGTERM) is not before
    assert signal.getsignal(signal.SIGTERM) is before
