"""Reward functions in processes of their own: real ones, that raise, hang, crash and lie."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from actors.errors import UserError
from actors.reward_function import CallFailed, RewardFunction, check_function, search_path

HERE = "tests.actors.reward_functions"
ROOT = str(Path(__file__).resolve().parents[2])
DEADLINE_S = 30.0

Make = Callable[..., RewardFunction]


@pytest.fixture
def make() -> Iterator[Make]:
    made = []

    def start(name: str, timeout_s: float = 20.0) -> RewardFunction:
        function = RewardFunction(f"{HERE}:{name}", timeout_s=timeout_s, paths=[ROOT, *sys.path])
        made.append(function)
        function.start()
        return function

    yield start
    for function in made:
        function.stop()


def is_running(process_id: int) -> bool:
    """Not a zombie: in a container nobody may wait for those that were left behind."""
    try:
        stat = Path(f"/proc/{process_id}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return stat.rpartition(")")[2].split()[0] != "Z"


def members(group: int) -> list[int]:
    """Running processes of a process group."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                if os.getpgid(int(entry.name)) == group and is_running(int(entry.name)):
                    found.append(int(entry.name))
            except ProcessLookupError:
                continue
    return found


def wait_until(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline, f"{what} within {DEADLINE_S} s"
        os.sched_yield()


def test_one_process_answers_every_call(make: Make) -> None:
    function = make("process_id")
    assert {function.call("p", "r", {}) for _ in range(3)} == {float(function.process_id or 0)}


def test_score_and_static_method(make: Make) -> None:
    assert make("length").call("four", "x" * 50, {"unknown": 1}) == 4.5
    assert make("Judge.score").call("p", "r", {}) == 0.25


def test_texts_larger_than_a_pipe_holds(make: Make) -> None:
    assert make("length").call("ü" * 3_000_000, "", {}) == 3_000_000


def test_columns_go_to_those_that_name_them(make: Make) -> None:
    takes_answer = make("takes_answer")
    assert takes_answer.required == {"answer"}
    assert takes_answer.call("p", "7", {"answer": 7, "other": 1}) == 1.0
    assert takes_answer.call("p", "7", {"answer": 7, "weight": 0.5}) == 0.5
    takes_any = make("takes_any")
    assert takes_any.required == set()
    assert takes_any.call("p", "r", {"four": 1, "xx": None, "prompt": "not again", "response": "neither"}) == 6.0


@pytest.mark.parametrize(("response", "score"), [("true", 1.0), ("int", 3.0)])
def test_numbers_are_taken(make: Make, response: str, score: float) -> None:
    assert make("returns").call("p", response, {}) == score


@pytest.mark.parametrize(
    ("response", "reason"),
    [
        ("nan", "returned nan"),
        ("inf", "returned -inf"),
        ("huge", "returned 1e+300"),
        ("none", "returned None, which is not a number"),
        ("text", "returned '0.5', which is not a number"),
        ("list", "returned [1.0], which is not a number"),
        ("unknown", "KeyError: 'unknown'"),
    ],
)
def test_anything_else_is_a_failed_call(make: Make, response: str, reason: str) -> None:
    function = make("returns")
    before = function.process_id
    with pytest.raises(CallFailed) as failed:
        function.call("p", response, {})
    assert str(failed.value) == reason
    assert function.call("p", "int", {}) == 3.0
    assert function.process_id == before, "a wrong answer costs no process"


def test_an_exception_is_the_reason(make: Make) -> None:
    with pytest.raises(CallFailed, match=r"^ValueError: cannot read 'rest'$"):
        make("raises").call("p", "rest", {})


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("ends_its_process", "its process exited with 3"),
        ("kills_its_process", "its process was killed by SIGSEGV"),
        ("exits", "its process exited with 1"),
    ],
)
def test_a_process_that_ends_is_the_reason_and_is_started_again(make: Make, name: str, reason: str) -> None:
    function = make(name)
    first = function.process_id
    for _ in range(2):
        with pytest.raises(CallFailed, match=f"^{reason}$"):
            function.call("p", "r", {})
        assert first is not None
        wait_until(lambda: members(first) == [], "its watcher ends too")


@pytest.mark.parametrize("name", ["hangs", "hangs_holding_the_lock"])
def test_a_call_that_hangs_is_killed_with_all_it_started(make: Make, tmp_path: Path, name: str) -> None:
    function = make(name, timeout_s=3.0)
    group = function.process_id
    assert group is not None
    started = time.monotonic()
    with pytest.raises(CallFailed, match=r"^timed out after 3 s$"):
        function.call(str(tmp_path / "ids"), "r", {})
    assert time.monotonic() - started < 10
    host, child = map(int, (tmp_path / "ids").read_text().split())
    assert host == group
    wait_until(lambda: members(group) == [] and not (child and is_running(child)), "all of the group ends")


def test_after_a_timeout_a_new_process_answers(make: Make, tmp_path: Path) -> None:
    function = make("hangs", timeout_s=2.0)
    first = function.process_id
    for number in range(2):
        with pytest.raises(CallFailed, match="timed out"):
            function.call(str(tmp_path / f"ids{number}"), "r", {})
    assert int((tmp_path / "ids1").read_text().split()[0]) != first


@pytest.mark.parametrize("name", ["hangs", "hangs_holding_the_lock"])
def test_nothing_is_left_when_the_worker_is_killed(tmp_path: Path, name: str) -> None:
    script = (
        "import sys\n"
        "from actors.reward_function import RewardFunction\n"
        f"function = RewardFunction('{HERE}:{name}', timeout_s=600)\n"
        "function.start()\n"
        "function.call(sys.argv[1], 'r', {})\n"
    )
    worker = subprocess.Popen([sys.executable, "-c", script, str(tmp_path / "ids")], cwd=ROOT)
    try:
        wait_until((tmp_path / "ids").exists, "the function runs")
        group, child = map(int, (tmp_path / "ids").read_text().split())
        assert len(members(group)) == (3 if child else 2), "host, its watcher and what the function started"
    finally:
        worker.send_signal(signal.SIGKILL)
        worker.wait(DEADLINE_S)
    wait_until(lambda: members(group) == [], "all of the group ends")


def test_stop_leaves_nothing(make: Make) -> None:
    function = make("length")
    group = function.process_id
    assert group is not None
    function.stop()
    wait_until(lambda: members(group) == [], "host and watcher end")
    assert function.call("four", "", {}) == 4.0, "a call starts a new one"


def test_open_files_do_not_pile_up(make: Make, tmp_path: Path) -> None:
    function = make("ends_its_process")
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(3):
        with pytest.raises(CallFailed):
            function.call("p", "r", {})
    assert len(os.listdir("/proc/self/fd")) <= before


def test_what_the_function_prints_goes_to_the_log(tmp_path: Path) -> None:
    script = (
        "from actors.reward_function import RewardFunction\n"
        f"function = RewardFunction('{HERE}:prints', timeout_s=20)\n"
        "function.start()\n"
        "print(function.call('p', 'r', {}), function.call('p', 'r', {}))\n"
        "function.stop()\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout == "1.0 1.0\n"
    assert done.stderr.count("words of the function\n") == done.stderr.count("bytes of the function\n") == 2


# Functions that cannot be used


@pytest.mark.parametrize(
    ("spec", "reason"),
    [
        ("no_such_module:f", "ModuleNotFoundError: No module named 'no_such_module'"),
        (f"{HERE}:no_such_function", f"AttributeError: module '{HERE}' has no attribute 'no_such_function'"),
        (f"{HERE}:NOT_CALLABLE", "TypeError: NOT_CALLABLE must be a function that returns a number, it is 3"),
        (f"{HERE}:sleeps", "TypeError: sleeps must be a function that returns a number, it is async"),
        (
            f"{HERE}:other_names",
            "TypeError: it must take `prompt` and `response`, its signature is (question: str, answer: str) -> float",
        ),
        ("broken:f", "ZeroDivisionError: division by zero"),
        ("leaves:f", "SystemExit: 4"),
        ("dies:f", "its process exited with 5"),
        ("forever:f", "timed out after 3 s"),
    ],
)
def test_a_function_that_cannot_be_used_is_told_before_anything_starts(tmp_path: Path, spec: str, reason: str) -> None:
    bodies = {
        "broken": "1 / 0",
        "leaves": "raise SystemExit(4)",
        "dies": "import os; os._exit(5)",
        "forever": "import time; time.sleep(600)",
    }
    for name, body in bodies.items():
        (tmp_path / f"{name}.py").write_text(body)
    paths = [ROOT, str(tmp_path), *sys.path]
    with pytest.raises(UserError) as told:
        check_function(spec, paths=paths, timeout_s=3.0 if spec == "forever:f" else 30.0)
    assert str(told.value) == f"reward function {spec!r} cannot be used: {reason}. Searched: {', '.join(paths)}"


def test_a_good_function_passes_the_check_and_leaves_no_process() -> None:
    check_function(f"{HERE}:length", paths=[ROOT, *sys.path])
    mine = Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children").read_text().split()
    assert not any(b"reward_function_host" in Path(f"/proc/{pid}/cmdline").read_bytes() for pid in mine)


def test_the_function_is_found_beside_the_run_and_hides_behind_nothing_of_ours(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The host's own folder has an `errors.py` too, and must not be searched."""
    (tmp_path / "errors.py").write_text("def f(prompt, response): return 1.5")
    monkeypatch.chdir(tmp_path)
    assert search_path()[0] == str(tmp_path)
    function = RewardFunction("errors:f", timeout_s=20)
    try:
        assert function.call("p", "r", {}) == 1.5
    finally:
        function.stop()
