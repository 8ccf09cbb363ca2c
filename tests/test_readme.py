"""README's commands, run: in its order, in a copy of the repository, by a shell in which the environment is active.

Data-driven: a command that README gains is run too. One that nobody can run here has to be listed below with the reason, or this fails.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.bandit import paying_shares

ROOT = Path(__file__).resolve().parent.parent
README = ROOT / "README.md"
PACKAGES = ("configs", "actors", "orchestrator")

PROGRAMS = ("make ", "preceptor ", "python ", "ray ", "source ")
NO_COMMANDS = ("prompts ─►", "driver  ", "starting Ray", "runs/bandit/")
"""How blocks of README begin that show something else: diagrams, output, a folder."""
MEANING = 25
"""Column of the shown folder at which names end and what they mean begins."""

CI = "what .ci/run itself does, before this test or around it"
LONG = "hours or many minutes; `make -n` shows here that it is a target with what it depends on"
CLUSTER = "needs a cluster's job server; tests/cluster submits to one"
NOT_RUN = {
    "make setup": CI,
    "make setup GPU=1": "installs the CUDA build",
    "source .venv/bin/activate": "every command here runs behind it",
    "make test-fast": "a part of `make test`, which .ci/run runs",
    "make test": CI,
    "make check": CI,
    "make demo": CI,
    "make bench-demo": f"{LONG}. As `make demo`, three times",
    "make real DATA=PAIRS.jsonl.gz": f"{LONG}, and a package from the network. Its stages in small: tests/test_end_to_end.py",
    "make bench": f"{LONG}. Its parts: tests/benchmarks",
    "preceptor resume runs/smollm2-hh": "needs what `make real` leaves behind",
    "ray job submit --address http://127.0.0.1:8265 --working-dir . -- python -m orchestrator run configs/recipes/demo.yaml": CLUSTER,
    "preceptor submit configs/recipes/demo.yaml run.seed=1 --name demo --follow": CLUSTER,
    "ray start --head": "leaves a cluster running; tests/cluster starts one",
    "preceptor plan": "as `preceptor lineage`",
    "preceptor lineage": "the command's name in a sentence; it is run with an argument",
}
PLACEHOLDERS = {
    "preceptor run CONFIG --dry-run": "preceptor run configs/recipes/bandit.yaml run.dir=runs/not-there --dry-run",
    "preceptor plan CONFIG --picture FILE": "preceptor plan configs/recipes/ppo-8b-8gpu.yaml --picture runs/step.png",
    "preceptor plan CONFIG": "preceptor plan configs/recipes/bandit.yaml",
    "preceptor data inspect CONFIG": "preceptor data inspect configs/recipes/bandit.yaml",
}
"""CONFIG stands for a file, and a dry run asks for a run directory that is not taken."""
TYPED = {"preceptor chat runs/bandit": "yes ?\n/quit\n"}
"""What is typed where a command talks with people."""


def fenced_blocks(page: str) -> list[list[str]]:
    return [block.splitlines() for block in re.findall(r"^```[^\n]*\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)]


def commands(page: str) -> Iterator[str]:
    """Every command: of the blocks first, since those in tables and sentences are about what they leave behind."""
    for lines in fenced_blocks(page):
        if not lines[0].startswith(NO_COMMANDS):
            yield from (re.sub(r"\s+#.*", "", line).strip() for line in lines if line.strip())
    prose = re.sub(r"^```.*?^```$", "", page, flags=re.MULTILINE | re.DOTALL)
    yield from (span for span in re.findall(r"`([^`\n]+)`", prose) if span.startswith(PROGRAMS))


def covered(page: str) -> list[str]:
    """The commands to run, each once.

    Raises:
        AssertionError: for a line that is no command of a known program, or a placeholder that nobody fills.
    """
    found = [command for command in dict.fromkeys(commands(page)) if command not in NOT_RUN]
    strange = [one for one in found if not one.startswith(PROGRAMS)]
    assert strange == [], (
        f"not covered: no known program; add it to PROGRAMS, or the block's beginning to NO_COMMANDS: {strange}"
    )
    by_make = [one for one in found if one.startswith("make ")]
    assert by_make == [], f"not covered: add it to NOT_RUN, with the reason: {by_make}"
    unfilled = [one for one in found if re.search(r"\b[A-Z]{3,}\b", PLACEHOLDERS.get(one, one))]
    assert unfilled == [], f"not covered: add what its placeholder stands for to PLACEHOLDERS: {unfilled}"
    return found


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The repository as a clone would have it, with this environment as its own."""
    folder = tmp_path_factory.mktemp("readme") / "preceptor"
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True)
    for name in filter(None, listed.stdout.split("\0")):
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / name)
    (folder / ".venv").symlink_to(sys.prefix)
    # the environment is an editable install of these three packages alone; here of the copy's
    (folder.parent / "installed").mkdir()
    for package in PACKAGES:
        (folder.parent / "installed" / package).symlink_to(folder / package)
    return folder


def shell(copy: Path, command: str, *, typed: str = "", timeout_s: float = 400.0) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["bash", "-c", f"source .venv/bin/activate && {command}"],
        cwd=copy,
        env=os.environ
        | {
            "PYTHONPATH": str(copy.parent / "installed"),
            "PRECEPTOR_REGISTRY": f"sqlite:///{copy.parent}/registry.db",
        },
        input=typed,
        capture_output=True,
        text=True,
        timeout=timeout_s,
        check=False,
    )


def words(line: str) -> list[str]:
    """A line without its numbers, whether time is in seconds or minutes, and where the run was started."""
    line = re.sub(r"/\S*/(?=runs/)", "", line)
    return re.sub(r"-?[\d.]+( (s|min) left)?", "0", line).split()


@pytest.fixture(scope="module")
def told(copy: Path) -> str:
    """What all commands said. Every one ends well."""
    output = ""
    for command in covered(README.read_text("utf-8")):
        done = shell(copy, PLACEHOLDERS.get(command, command), typed=TYPED.get(command, ""))
        assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
        output += done.stdout
    return output


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_every_command_runs_and_leaves_what_is_said(copy: Path, told: str) -> None:
    sample, tree = (
        next(lines for lines in fenced_blocks(README.read_text("utf-8")) if lines[0].startswith(beginning))
        for beginning in ("starting Ray", "runs/bandit/")
    )
    lines = [words(line) for line in told.splitlines()]
    assert [line for line in sample if line != "..." and words(line) not in lines] == [], told
    run = copy / "runs" / "bandit"
    names = [name for line in tree[1:] for name in line[:MEANING].split()]
    assert len(names) > 9
    assert [name for name in names if not (run / name).exists()] == []


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.usefixtures("told")
def test_the_paying_word_becomes_likely(copy: Path) -> None:
    shares = paying_shares(copy / "runs" / "bandit")
    assert shares[0] < 0.1
    assert min(shares[-3:]) > 0.9, shares


def test_what_is_not_run_is_listed_with_a_reason_and_still_stands_in_the_page() -> None:
    page = README.read_text("utf-8")
    covered(page)
    named = set(commands(page))
    ran = (ROOT / ".ci" / "run").read_text("utf-8")
    assert [command for command, reason in NOT_RUN.items() if reason == CI and command not in ran] == []
    assert [command for command in (*NOT_RUN, *PLACEHOLDERS, *TYPED) if command not in named] == []
    for reason in NOT_RUN.values():
        assert all((ROOT / path).exists() for path in re.findall(r"tests/[\w/.]+\w", reason))


@pytest.mark.parametrize("command", [one for one in NOT_RUN if one.startswith("make ")])
def test_what_make_would_run_is_known_to_it(command: str, copy: Path) -> None:
    done = subprocess.run(["make", "-n", *command.split()[1:]], cwd=copy, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "locks/install.sh" in done.stdout


@pytest.mark.parametrize(
    ("page", "said"),
    [
        ("```\nmake setup\nkubectl apply\n```", "no known program"),
        ("```\nmake cake\n```", "add it to NOT_RUN"),
        ("| `preceptor judge CHECKPOINT` | |", "placeholder"),
    ],
)
def test_a_new_command_that_nobody_covers_is_told(page: str, said: str) -> None:
    with pytest.raises(AssertionError, match=said):
        covered(page)
