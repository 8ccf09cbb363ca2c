"""What a user sees of a run, on a terminal and in a file, and where the libraries' noise goes."""

import os
import pty
import re
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from rich.text import Text

from orchestrator.machine import local_cores, local_machine
from orchestrator.progress import Progress, duration

ROOT = Path(__file__).resolve().parents[2]

SCRIPT = """
import os, subprocess, sys
from pathlib import Path
from orchestrator.progress import Progress

with Progress() as progress:
    with progress.log_to(Path(sys.argv[1])):
        print("noise from python")
        print("noise on stderr", file=sys.stderr)
        subprocess.run(["bash", "-c", "echo noise from C; echo more of it >&2"], check=True)
        with progress.phase("loading the models"):
            os.write(1, b"noise, unbuffered\\n")
            with progress.phase("loading the policy"):
                pass
        progress.note("data: 12 prompts")
        progress.begin(2)
        for step in (1, 2):
            with progress.phase("update"):
                pass
            progress.step(step, {"score": 0.5, "kl": 0.25, "tokens_per_s": 190.4, "policy/loss": 3.0})
        with progress.phase("export"):
            pass
print("after")
"""

NOISE = [
    "noise from python",
    "noise on stderr",
    "noise from C",
    "more of it",
    "noise, unbuffered",
]


def test_elsewhere_than_on_a_terminal_lines_are_plain(tmp_path: Path) -> None:
    log = tmp_path / "logs" / "driver.log"
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(log)], cwd=ROOT, capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stderr == ""
    assert done.stdout.splitlines() == [
        "loading the models ...",
        "loading the policy ...",
        "data: 12 prompts",
        "step 1/2  reward 0.500  KL 0.250  tokens/s 190  0 s left",
        "step 2/2  reward 0.500  KL 0.250  tokens/s 190",
        "export ...",
        "after",
    ]
    assert sorted(log.read_text().splitlines()) == sorted(NOISE)


def read_all(terminal: int, seconds: float) -> str:
    """What a process wrote to a pseudo-terminal until it closed it."""
    pieces, end = [], time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            piece = os.read(terminal, 4096)
        except OSError:  # Linux's way to say that the other side has closed
            break
        if not piece:
            break
        pieces.append(piece)
    return b"".join(pieces).decode()


def test_on_a_terminal_there_is_a_live_line_and_the_steps_stay(tmp_path: Path) -> None:
    log = tmp_path / "driver.log"
    terminal, other = pty.openpty()
    script = SCRIPT.replace(
        'with progress.phase("update"):\n                pass',
        "with progress.phase('update'):\n                time.sleep(0.6)",
    )
    script = "import time" + script
    process = subprocess.Popen(
        [sys.executable, "-c", script, str(log)],
        cwd=ROOT,
        env={**os.environ, "TERM": "xterm", "COLUMNS": "100"},
        stdout=other,
        stderr=other,
    )
    os.close(other)
    try:
        shown = read_all(terminal, seconds=60)
        assert process.wait(timeout=60) == 0
    finally:
        process.kill()
        os.close(terminal)
    plain = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", shown).replace("\r", "\n")
    lines = [line.strip() for line in plain.split("\n")]
    assert "step 1/2  reward 0.500  KL 0.250  tokens/s 190  1 s left" in lines
    assert "step 2/2  reward 0.500  KL 0.250  tokens/s 190" in lines
    assert any(re.fullmatch(r"step 1/2  update \(\d s\)", line) for line in lines)
    live = r"step 2/2  update \(\d s\)  1 s left  last step: reward 0\.500  KL 0\.250  tokens/s 190"
    assert any(re.fullmatch(live, line) for line in lines)
    assert "\x1b[?25h" in shown  # the cursor is given back
    assert not any(noise in plain for noise in NOISE)
    assert sorted(log.read_text().splitlines()) == sorted(NOISE)


class Printing(Progress):
    """While it prints, the live line's thread asks for the line."""

    asked: list[Text]

    def _print(self, text: str) -> None:
        thread = threading.Thread(target=lambda: self.asked.append(self._live_line()), daemon=True)
        thread.start()
        thread.join(timeout=10)
        assert not thread.is_alive(), "the line's thread waits for the printing one, which waits for the line's lock"


def test_printing_does_not_wait_for_the_live_line() -> None:
    with Printing() as progress:
        progress.asked = []
        with progress.phase("loading"):
            progress.note("a note")
        progress.begin(2)
        progress.step(1, {})
        progress.step(2, {})
    assert len(progress.asked) == 4


STAGES = """
from orchestrator import progress as module
from orchestrator.progress import Progress

class Clock:
    now = 0.0
    def monotonic(self):
        return self.now

clock = module.time = Clock()

def step(number, seconds):
    clock.now += seconds
    progress.step(number, {})

with Progress() as progress:
    progress.begin(4)
    for number in (1, 2, 3, 4):
        step(number, 50.0)
    clock.now += 1000.0  # evaluation, export, the next stage's start
    with progress.phase("loading"):
        pass
    progress.begin(13, done=10)
    step(11, 4.0)
    step(12, 14.0)
"""


def test_each_stage_has_its_own_step_time(tmp_path: Path) -> None:
    """Seconds a step: 50 in the first stage; then 4, and 0.9 * 4 + 0.1 * 14 = 5."""
    done = subprocess.run(
        [sys.executable, "-c", STAGES], cwd=ROOT, capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout.splitlines() == [
        "step 1/4  3 min left",
        "step 2/4  2 min left",
        "step 3/4  50 s left",
        "step 4/4",
        "loading ...",
        "step 11/13  8 s left",
        "step 12/13  5 s left",
    ]


def test_a_reader_that_leaves_does_not_end_the_run(tmp_path: Path) -> None:
    script = (
        "import sys\nfrom orchestrator.progress import Progress\n"
        "with Progress() as progress:\n    progress.note('first')\n    sys.stdin.read()\n"
        "    progress.note('second')\n    progress.begin(1)\n    progress.step(1, {})\n"
        "print('finished', file=sys.stderr)\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", script],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout and process.stdin and process.stderr
    assert process.stdout.readline() == "first\n"
    process.stdout.close()
    process.stdin.close()
    assert (process.wait(timeout=60), process.stderr.read()) == (0, "finished\n")
    process.stderr.close()


def test_the_terminal_is_given_back_when_the_run_raises(tmp_path: Path) -> None:
    script = (
        "import sys\nfrom pathlib import Path\nfrom orchestrator.progress import quiet_process\n"
        "try:\n    with quiet_process(Path(sys.argv[1])):\n        print('hidden')\n        1 / 0\n"
        "except ZeroDivisionError:\n    print('told', file=sys.stderr)\n"
    )
    log = tmp_path / "driver.log"
    log.write_text("kept\n")
    done = subprocess.run(
        [sys.executable, "-c", script, str(log)], cwd=ROOT, capture_output=True, text=True, timeout=60, check=True
    )
    assert (done.stdout, done.stderr) == ("", "told\n")
    assert log.read_text() == "kept\nhidden\n"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.4, "0 s"),
        (59.4, "59 s"),
        (59.7, "1 min"),
        (60, "1 min"),
        (61, "2 min"),
        (3600, "1 h 00 min"),
        (7500, "2 h 05 min"),
    ],
)
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_cores_are_those_of_the_affinity_and_of_the_containers_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    limit = tmp_path / "cpu.max"
    monkeypatch.setattr("orchestrator.machine.CPU_LIMIT", limit)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 2, 3})
    assert local_cores() == 4
    for text, cores in [("max 100000", 4), ("250000 100000", 3), ("50000 100000", 1), ("900000 100000", 4)]:
        limit.write_text(text + "\n")
        assert local_cores() == cores


def test_gpus_are_the_drivers_unless_fewer_are_visible(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("orchestrator.machine.NVIDIA_GPUS", tmp_path)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    for name in ("0000:01:00.0", "0000:02:00.0"):
        (tmp_path / name).mkdir()
    assert local_machine().num_gpus == 2
    for visible, gpus in [("", 0), ("-1", 0), ("1", 1), ("0,1,2", 2)]:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
        assert local_machine().num_gpus == gpus
