"""Runs as a user starts them: a driver in a process of its own, stopped and killed from outside, its processes found by a mark that
they inherit in their environment, Ray's also by the log files that they hold open."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self, TypeVar

import yaml

from tests.tiny_models import make_tiny_causal_lm

ROOT = Path(__file__).resolve().parents[2]
MARK = "PRECEPTOR_TEST_MARK"
START_S = 300.0
"""Longest wait for a run to come to its first steps; machines may be busy."""
GONE_S = 60.0
"""Longest wait for a run to end after something in it was killed."""

T = TypeVar("T")

REWARDS = """
import json
from pathlib import Path

HERE = Path(__file__).parent


def pays(prompt, response):
    bad = HERE / "bad.json"
    if bad.exists():
        order = json.loads(bad.read_text())
        if order["prompt"] == prompt:
            raise ValueError("no reward for this one")
    return response.split().count("yes") / 4 + 0.1 * len(response.split())


def knows_nothing(prompt, response):
    return 0.0
"""


def make_project(folder: Path) -> Path:
    """A folder to start runs from: model, prompts, rankings, reward function."""
    make_tiny_causal_lm(folder / "model", tied=True)
    names = [f"{colour} {animal}" for colour in ("red", "blue") for animal in ("cat", "dog", "fish")]
    asked = [*names, *(f"old {animal}" for animal in ("cat", "dog"))]  # the last two are there to be held out
    prompts = [{"id": name.replace(" ", "-"), "prompt": f"what is the {name} ?"} for name in asked]
    (folder / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in prompts))
    rankings = [
        {"prompt": f"is the {name} good ?", "responses": ["yes it is", "no"], "ranks": [1, 2]} for name in names * 4
    ]
    (folder / "rankings.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rankings))
    (folder / "paying.py").write_text(REWARDS)
    return folder


def ppo_config(**changes: Any) -> dict[str, Any]:
    """The smallest PPO stage in which every state matters: adaptive KL, a learning rate that warms up and decays, prompts that come round
    again in another order, checkpoints rarer than steps."""
    optimizer = {"lr": 1e-3, "warmup_steps": 2, "decay": "linear"}
    small = {"optimizer": optimizer, "engine": {"micro_batch_tokens": 64}, "placement": {"threads_per_rank": 1}}
    config: dict[str, Any] = {
        "stage": "ppo",
        "run": {"dir": "unset", "seed": 3, "deterministic": True, "checkpoint_every": 3},
        "cluster": {"start_timeout_s": START_S},
        "data": {"path": "prompts.jsonl", "id_column": "id", "max_prompt_tokens": 16, "max_rows": 6},
        "policy": {"model": "model", **small},
        "critic": {"init_from": "policy", **small},
        "reference": {"engine": {"micro_batch_tokens": 64}, "placement": {"threads_per_rank": 1}},
        "reward": {"functions": [{"function": "paying:pays", "retries": 0}]},
        "rollout": {
            "responses_per_prompt": 2,
            "max_response_tokens": 6,
            "prompts_per_wave": 2,
            "threads_per_engine": 1,
        },
        "ppo": {
            "steps": 6,
            "prompts_per_step": 4,
            "minibatches": 2,
            "kl": {"controller": {"kind": "adaptive", "coef": 0.1, "target": 0.01, "horizon": 40}},
        },
    }
    return merged(config, changes)


def reward_config(**changes: Any) -> dict[str, Any]:
    """The smallest reward stage."""
    config: dict[str, Any] = {
        "stage": "reward",
        "run": {"dir": "unset", "seed": 3, "deterministic": True, "checkpoint_every": 3},
        "cluster": {"start_timeout_s": START_S},
        "data": {"path": "rankings.jsonl", "format": "ranking", "max_tokens": 24, "held_out_rows": 6},
        "model": {
            "model": "model",
            "optimizer": {"lr": 1e-3, "warmup_steps": 2, "decay": "linear"},
            "engine": {"micro_batch_tokens": 64},
            "placement": {"threads_per_rank": 1},
        },
        "training": {"groups_per_step": 2, "epochs": 2},
    }
    return merged(config, changes)


def merged(config: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """`config` with the values of `changes`, section by section."""
    result = dict(config)
    for key, value in changes.items():
        both = isinstance(value, dict) and isinstance(result.get(key), dict)
        result[key] = merged(result[key], value) if both else value
    return result


def until(look: Callable[[], T], what: str, *, timeout_s: float, every_s: float = 0.01) -> T:
    """What `look` gives, as soon as it is true; fails after `timeout_s`."""
    deadline = time.monotonic() + timeout_s
    while not (found := look()):
        assert time.monotonic() < deadline, f"not within {timeout_s:g} s: {what}"
        time.sleep(every_s)
    return found


def write_config(project: Path, run_dir: Path, config: dict[str, Any]) -> Path:
    path = project / f"{run_dir.name}.yaml"
    path.write_text(yaml.safe_dump(merged(config, {"run": {"dir": str(run_dir)}})))
    return path


def steps_committed(run_dir: Path) -> int:
    return len(list((run_dir / "ledger").glob("[0-9]*.json")))


def digests(run_dir: Path) -> list[str]:
    """Of every committed step."""
    entries = [json.loads(path.read_bytes()) for path in sorted((run_dir / "ledger").glob("[0-9]*.json"), key=str)]
    return [entry["digest"] for entry in entries]


class Driver:
    """`preceptor ...` in a session of its own, as a terminal's foreground process group is."""

    def __init__(self, project: Path, run_dir: Path, *arguments: str) -> None:
        self.run_dir = run_dir
        self.mark = uuid.uuid4().hex[:8]
        self.ray_tmpdir = Path(f"/tmp/test-{self.mark}")  # Ray's sockets want a short path
        self._out = project / f"out-{self.mark}.txt"
        with self._out.open("wb") as out:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "orchestrator", *arguments],
                cwd=project,
                env={**os.environ, "PYTHONPATH": str(ROOT), "RAY_TMPDIR": str(self.ray_tmpdir), MARK: self.mark},
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait(timeout=GONE_S)
        for pid in self.processes():
            os.kill(pid, signal.SIGKILL)
        shutil.rmtree(self.ray_tmpdir, ignore_errors=True)

    @property
    def output(self) -> str:
        return self._out.read_text(errors="replace")

    def ended(self, *, timeout_s: float) -> int:
        """Waits for the driver's end and gives its exit code."""
        return until(
            lambda: [self.process.returncode] if self.process.poll() is not None else [],
            self._still(),
            timeout_s=timeout_s,
        )[0]

    def _still(self) -> str:
        return f"the driver's end; its output:\n{self.output}"

    def processes(self) -> list[int]:
        """Every live process that the driver or one of its children has started."""
        mine, folder = f"{MARK}={self.mark}".encode(), f"{self.ray_tmpdir}/"
        return [
            pid
            for pid in all_processes()
            if pid != os.getpid()
            and (
                mine in _read(f"/proc/{pid}/environ").split(b"\0")
                or any(file.startswith(folder) for file in _open_files(pid))
            )
        ]

    def nothing_left(self, *, timeout_s: float = GONE_S) -> None:
        """Waits until no process of the run is left."""

        def left() -> list[str]:
            return [_read(f"/proc/{pid}/cmdline").replace(b"\0", b" ").decode()[:200] for pid in self.processes()]

        deadline = time.monotonic() + timeout_s
        while orphans := left():
            assert time.monotonic() < deadline, f"left behind after {timeout_s:g} s: {orphans}"
            time.sleep(0.05)

    def committed(self, step: int, *, timeout_s: float = START_S) -> None:
        """Waits until the step counts."""
        self.running_until(lambda: steps_committed(self.run_dir) >= step, f"step {step} committed", timeout_s=timeout_s)

    def says(self, text: str, *, timeout_s: float = START_S) -> None:
        self.running_until(lambda: text in self.output, f"{text!r} in the output", timeout_s=timeout_s)

    def running_until(self, look: Callable[[], bool], what: str, *, timeout_s: float = START_S) -> None:
        """Waits while the driver runs."""

        def looked() -> bool:
            if look():
                return True
            assert self.process.poll() is None, f"the driver ended before {what}:\n{self.output}"
            return False

        until(looked, what, timeout_s=timeout_s)

    def rank(self, role: str, rank: int = 0) -> int:
        """Process id of a rank, once it writes to its log."""
        log = str(self.run_dir / "logs" / f"{role}-{rank}.log")

        def find() -> list[int]:
            assert self.process.poll() is None, f"the driver ended before {role} rank {rank} was there:\n{self.output}"
            return [
                pid for pid in self.processes() if _link(f"/proc/{pid}/fd/1") == log and title(pid).startswith("ray::")
            ]

        return until(find, f"{role} rank {rank}", timeout_s=START_S)[0]

    def caught(self, role: str, method: str, rank: int = 0) -> int:
        """Process id of a rank at a moment at which it is busy with `method`: Ray writes that into its title."""
        pid = self.rank(role, rank)

        def busy() -> bool:
            assert self.process.poll() is None, f"the driver ended before {role}.{method}:\n{self.output}"
            return title(pid).endswith(f".{method}")

        until(busy, f"{role} rank {rank} in {method}", timeout_s=START_S, every_s=0.0005)
        return pid


@contextmanager
def started(project: Path, run_dir: Path, config: dict[str, Any]) -> Iterator[Driver]:
    with Driver(project, run_dir, "run", str(write_config(project, run_dir, config))) as driver:
        yield driver


@contextmanager
def resumed(project: Path, run_dir: Path) -> Iterator[Driver]:
    with Driver(project, run_dir, "resume", str(run_dir)) as driver:
        yield driver


def fails(driver: Driver, text: str, *, timeout_s: float = GONE_S) -> str:
    """Waits for the driver to fail: exit code 1, a message with `text`, nothing left behind. Gives the output as one line."""
    at = time.monotonic()
    code = driver.ended(timeout_s=timeout_s)
    print(
        f"{text}: {time.monotonic() - at:.1f} s to the end, {steps_committed(driver.run_dir)} steps committed",
        flush=True,
    )
    driver.nothing_left(timeout_s=1.0)
    said = " ".join(driver.output.split())
    assert code == 1, driver.output
    assert text in said, driver.output
    assert "Traceback" not in said
    return said


def dies_of(driver: Driver, role: str, method: str, rank: int = 0) -> str:
    """Kills a rank while it is busy with `method`: the run must end by itself, by name, and leave nothing behind."""
    pid = driver.caught(role, method, rank)
    os.kill(pid, signal.SIGKILL)
    said = fails(driver, f"{role} rank {rank} failed")
    assert f"logs/{role}-{rank}.log" in said
    return said


def finish(driver: Driver, *, timeout_s: float = START_S) -> None:
    """Waits for a good end that leaves nothing behind."""
    assert driver.ended(timeout_s=timeout_s) == 0, driver.output
    driver.nothing_left()


def title(pid: int) -> str:
    """What the process calls itself."""
    return _read(f"/proc/{pid}/cmdline").rstrip(b"\0 ").decode(errors="replace")


def all_processes() -> list[int]:
    return [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()]


def _read(path: str) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError:
        return b""


def _open_files(pid: int) -> list[str]:
    try:
        return [_link(str(file)) for file in Path(f"/proc/{pid}/fd").iterdir()]
    except OSError:
        return []


def _link(path: str) -> str:
    try:
        return os.readlink(path)
    except OSError:
        return ""
