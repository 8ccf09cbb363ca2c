"""The picture of a step: a file of the kind asked for, with the words and numbers of the estimate."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from actors.errors import UserError
from orchestrator.estimate.numbers import duration_text, gib_text, number_text
from orchestrator.estimate.picture import check_picture, write_picture
from tests.orchestrator.estimate.step_cases import TOGETHER, planned, time_of


def words(svg: Path) -> str:
    """matplotlib writes each text of a picture as a comment beside its outlines."""
    return " ".join(re.findall(r"<!-- (.*?) -->", svg.read_text("utf-8")))


def test_an_svg_names_groups_roles_idle_shares_and_the_step(tmp_path: Path) -> None:
    time = time_of()
    gpus = {name: group.num_bundles for name, group in planned()[1].groups.items()}
    write_picture(time, gpus, "my config", tmp_path / "step.svg")
    found = words(tmp_path / "step.svg")
    for group, share in time.idle_frac.items():
        assert group in found
        assert f"{share:.0%}" in found
    for text in ("my config", "3 GPUs", "1 GPU", "critical path", "generate", f"step {duration_text(time.step_s)}"):
        assert text in found
    assert "to and from the host" not in found


def test_a_png_is_one_and_the_same_estimate_gives_the_same_file(tmp_path: Path) -> None:
    time = time_of(*TOGETHER)
    for name in ("a.png", "b.png"):
        write_picture(time, {"all": 4}, "together", tmp_path / name)
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


def test_other_kinds_of_picture_are_refused(tmp_path: Path) -> None:
    assert check_picture(str(tmp_path / "a.SVG")) == tmp_path / "a.SVG"
    with pytest.raises(UserError, match=r"--picture: got 'a.jpg'; allowed: a name that ends in .png or .svg"):
        check_picture("a.jpg")
    with pytest.raises(UserError, match=r"--picture: got 'no/such/a.png'; allowed: a file in a folder that exists"):
        check_picture("no/such/a.png")


def test_matplotlib_is_loaded_for_a_picture_alone() -> None:
    loaded = "print(*(name in sys.modules for name in ('matplotlib', 'torch', 'ray')))"
    code = f"import sys, orchestrator.estimate.picture, orchestrator.estimate.suggest; {loaded}"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert found.stdout.split() == ["False", "False", "False"]


def test_numbers_for_people() -> None:
    assert [duration_text(s) for s in (0.417, 95.4, 1860, 27000, 276480)] == [
        "0.42 s",
        "95 s",
        "31 min",
        "7.5 h",
        "3.2 days",
    ]
    assert [number_text(n) for n in (0.417, 95.34, 12345.6)] == ["0.417", "95.3", "12,346"]
    assert gib_text(3 * 2**29) == "1.5 GiB"
