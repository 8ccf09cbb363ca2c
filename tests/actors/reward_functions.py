"""Reward functions as users write them, good and bad, for processes that import them from here."""

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

NOT_CALLABLE = 3


def length(prompt: str, response: str) -> float:
    return len(prompt) + len(response) / 100


def takes_answer(prompt: str, response: str, answer: int, weight: float = 1.0) -> float:
    return weight * (int(response) == answer)


def takes_any(prompt: str, response: str, **columns: Any) -> float:
    return float(sum(len(name) for name in columns))


def num_messages(prompt: str, response: str, *, messages: list[dict[str, str]] | None = None) -> float:
    return float(len(messages or []))


def process_id(prompt: str, response: str) -> int:
    return os.getpid()


def raises(prompt: str, response: str) -> float:
    raise ValueError(f"cannot read {response!r}")


def hangs(prompt: str, response: str) -> float:
    """Starts a process of its own, says who it is in the file named by the prompt, and never ends."""
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    report(Path(prompt), child.pid)
    time.sleep(600)
    return 0.0


def hangs_holding_the_lock(prompt: str, response: str) -> float:
    """As a regular expression that never ends: no other Python thread of the process ever runs again."""
    import re

    report(Path(prompt), 0)
    return float(bool(re.match(r"(a+)+$", "a" * 64 + "b")))


def report(file: Path, child: int) -> None:
    new = file.with_suffix(".new")
    new.write_text(f"{os.getpid()} {child}")
    new.rename(file)


def ends_its_process(prompt: str, response: str) -> float:
    os._exit(3)


def kills_its_process(prompt: str, response: str) -> float:
    os.kill(os.getpid(), 11)
    return 0.0


def exits(prompt: str, response: str) -> float:
    sys.exit("bye")


def returns(prompt: str, response: str) -> Any:
    return {
        "nan": float("nan"),
        "inf": float("-inf"),
        "huge": 1e300,
        "none": None,
        "text": "0.5",
        "true": True,
        "int": 3,
        "list": [1.0],
    }[response]


def returns_nan(prompt: str, response: str) -> float:
    return float("nan")


def fails_at_first(prompt: str, response: str, failures: int) -> float:
    """Fails as often as it is told to, counting in the file that the prompt names."""
    file = Path(prompt)
    tries = int(file.read_text()) if file.exists() else 0
    file.write_text(str(tries + 1))
    if tries < failures:
        raise RuntimeError(f"failure {tries + 1}")
    return tries / 10


def prints(prompt: str, response: str) -> float:
    print("words of the function", flush=True)
    os.write(1, b"bytes of the function\n")
    assert sys.stdin.read() == ""
    return 1.0


async def sleeps(prompt: str, response: str) -> float:
    return 0.0


def other_names(question: str, answer: str) -> float:
    return 0.0


class Judge:
    @staticmethod
    def score(prompt: str, response: str) -> float:
        return 0.25
