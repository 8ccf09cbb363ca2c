"""No process outlives its driver: real processes, ended and killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from orchestrator.leftovers import MARK, marked, nothing_left, ray_folder

ROOT = Path(__file__).resolve().parents[2]
SLEEPER = "import time; time.sleep(300)"
# deaf to everything but SIGKILL, in a session of its own, orphaned at birth
DEAF = """
import subprocess, sys
code = "import signal, time; [signal.signal(n, signal.SIG_IGN) for n in (1, 2, 15)]; print('up', flush=True); time.sleep(300)"
subprocess.Popen([sys.executable, "-c", code], start_new_session=True)
"""
DRIVER = f"""
import subprocess, sys, time; sys.path.insert(0, {str(ROOT)!r})
from orchestrator.leftovers import MARK, nothing_left
import os
with nothing_left():
    subprocess.run([sys.executable, "-c", {DEAF!r}], check=True)
    print(os.environ[MARK], flush=True)
    time.sleep(300)
"""


def test_what_does_not_end_by_itself_is_killed() -> None:
    with nothing_left():
        mark = os.environ[MARK]
        subprocess.run([sys.executable, "-c", DEAF], check=True, stdout=subprocess.DEVNULL)
        stopped = subprocess.Popen([sys.executable, "-c", SLEEPER])
        stopped.send_signal(signal.SIGSTOP)
        assert len(marked(mark)) == 2
    assert marked(mark) == []
    assert stopped.wait(timeout=5) == -signal.SIGKILL
    assert MARK not in os.environ


def test_a_process_without_an_environment_is_known_by_its_log() -> None:
    with nothing_left():
        folder = ray_folder(os.environ[MARK])
        folder.mkdir()
        with (folder / "agent.log").open("w") as log:
            # as an agent of Ray's looks after it has written its title over its environment
            agent = subprocess.Popen([sys.executable, "-c", SLEEPER], env={}, stdout=log)
        with (folder / "agent.log").open() as log:
            reader = subprocess.Popen([sys.executable, "-c", SLEEPER], env={}, stdin=log)
        assert marked(os.environ[MARK]) == [agent.pid]
    assert agent.wait(timeout=5) == -signal.SIGKILL
    assert reader.poll() is None, "who reads a log is no part of the run"
    reader.kill()
    reader.wait(timeout=5)
    assert not folder.exists()


def test_a_driver_that_writes_to_the_log_itself_is_spared() -> None:
    code = f"""
import os, sys; sys.path.insert(0, {str(ROOT)!r})
from orchestrator.leftovers import MARK, nothing_left, ray_folder
with nothing_left():
    folder = ray_folder(os.environ[MARK])
    folder.mkdir()
    log = (folder / "driver.log").open("w")
"""
    assert subprocess.run([sys.executable, "-c", code], timeout=60, check=False).returncode == 0


def test_nothing_to_end_costs_no_time() -> None:
    at = time.monotonic()
    with nothing_left():
        pass
    assert time.monotonic() - at < 2.5, "the seconds of grace are not waited for"


def test_others_are_left_alone() -> None:
    other = subprocess.Popen([sys.executable, "-c", SLEEPER])
    try:
        with nothing_left():
            pass
        assert other.poll() is None
    finally:
        other.kill()
        other.wait(timeout=5)


def test_a_killed_driver_takes_everything_with_it() -> None:
    driver = subprocess.Popen([sys.executable, "-c", DRIVER], stdout=subprocess.PIPE, text=True)
    assert driver.stdout is not None
    lines = {driver.stdout.readline().strip(), driver.stdout.readline().strip()} - {"up"}
    (mark,) = lines
    assert marked(mark)
    driver.kill()
    driver.wait(timeout=5)
    deadline = time.monotonic() + 30
    while marked(mark):
        assert time.monotonic() < deadline, marked(mark)
        time.sleep(0.05)
    driver.stdout.close()
