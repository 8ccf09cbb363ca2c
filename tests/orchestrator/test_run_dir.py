"""The run directory: one driver at a time, and left as it was found where a run never began."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from actors.errors import PreceptorError, UserError
from actors.store import create_only
from configs.errors import ConfigError
from orchestrator.ledger import Ledger, SupervisedEntry
from orchestrator.run_dir import existing_run, locked, new_run, require_writable, same_data, same_models, same_plan

ROOT = Path(__file__).resolve().parents[2]


def tree(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


@pytest.mark.parametrize("exists", [False, True])
@pytest.mark.parametrize("error", [UserError("bad"), ConfigError("bad", []), KeyboardInterrupt(), ValueError("ours")])
def test_nothing_is_left_of_a_run_that_never_began(tmp_path: Path, exists: bool, error: BaseException) -> None:
    folder = tmp_path / "deep" / "run"
    if exists:
        folder.mkdir(parents=True)
    before = tree(tmp_path)

    def begin() -> None:
        with new_run(str(folder), "stage: ppo\n") as run_dir:
            (run_dir / "logs").mkdir()
            (run_dir / "logs" / "driver.log").write_text("x")
            raise error

    with pytest.raises(type(error)):
        begin()
    assert tree(tmp_path) == before


def test_a_link_to_a_folder_stays(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "run").symlink_to(tmp_path / "disk")
    with pytest.raises(UserError), new_run(str(tmp_path / "run"), "x"):
        raise UserError("bad")
    assert (tmp_path / "run").is_symlink()
    assert tree(tmp_path / "disk") == []


@pytest.mark.parametrize("committed", [False, True])
def test_what_has_begun_stays(tmp_path: Path, committed: bool) -> None:
    error = UserError("bad") if committed else PreceptorError("a role failed")

    def begin() -> None:
        with new_run(str(tmp_path / "run"), "stage: ppo\n") as run_dir:
            if committed:
                Ledger(run_dir / "judge", SupervisedEntry).commit(SupervisedEntry(step=1, digest="", metrics={}))
            else:
                (run_dir / "plan.json").write_text("{}")
            raise error

    with pytest.raises(PreceptorError):
        begin()
    with existing_run(str(tmp_path / "run")) as run_dir:
        assert (run_dir / "config.yaml").read_text() == "stage: ppo\n"


def test_an_occupied_folder_is_refused_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match="is not empty"), new_run(str(tmp_path), "x"):
        pass
    assert (tmp_path / "notes.txt").read_text() == "mine"
    assert set(tree(tmp_path)) <= {"notes.txt", "driver.lock"}


@pytest.mark.parametrize("path", ["/proc/preceptor/run", "/dev/null", "/dev/null/run"])
def test_what_can_not_be_written_is_refused(path: str) -> None:
    with pytest.raises(UserError, match=r"run\.dir"), new_run(path, "x"):
        pass


def test_a_folder_without_a_run_can_not_be_gone_on_with(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no run"), existing_run(str(tmp_path)):
        pass
    assert tree(tmp_path) == []


def test_another_driver_is_kept_out_and_named(tmp_path: Path) -> None:
    code = f"""
import sys; sys.path.insert(0, {str(ROOT)!r})
from pathlib import Path
from orchestrator.run_dir import locked
with locked(Path({str(tmp_path)!r})):
    print("locked", flush=True)
    sys.stdin.read()
"""
    (tmp_path / "config.yaml").write_text("x")
    other = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        assert other.stdout is not None
        assert other.stdout.readline() == "locked\n"
        with pytest.raises(UserError, match=f"in use by process {other.pid} on"), existing_run(str(tmp_path)):
            pass
    finally:
        other.kill()
        other.communicate(timeout=30)
    # a killed driver keeps nobody out
    with existing_run(str(tmp_path)):
        assert f"process {os.getpid()} " in (tmp_path / "driver.lock").read_text()


def test_the_lock_ends_with_the_block(tmp_path: Path) -> None:
    for _ in range(2):
        with locked(tmp_path):
            pass


PLAN = {"roles": {"policy": {"threads": 4, "group": "all"}}, "waves": [[0, 1], [2]]}


def planned(threads: int = 4, waves: object = PLAN["waves"]) -> str:
    return json.dumps({"roles": {"policy": {"threads": threads, "group": "all"}}, "waves": waves})


def test_the_plan_that_a_run_was_begun_with_is_kept(tmp_path: Path) -> None:
    notes: list[str] = []
    for _ in range(2):
        same_plan(tmp_path, planned(), deterministic=True, note=notes.append)
    assert notes == []
    same_plan(tmp_path, planned(threads=2), deterministic=False, note=notes.append)
    assert json.loads((tmp_path / "plan.json").read_text()) == PLAN
    assert notes == [
        f"the plan is not the one that this run was begun with ({tmp_path / 'plan.json'}): roles.policy.threads: got 2, was 4. "
        "The run goes on with the new one"
    ]


@pytest.mark.parametrize(
    ("now", "said"),
    [
        (planned(threads=2), "roles.policy.threads: got 2, was 4. run.deterministic"),
        (
            planned(waves=[[0], [1, 2]]),
            r"waves: got \[\[0\], \[1, 2\]\], was \[\[0, 1\], \[2\]\]\.",
        ),
    ],
)
def test_a_deterministic_run_refuses_another_plan(tmp_path: Path, now: str, said: str) -> None:
    notes: list[str] = []
    same_plan(tmp_path, planned(), deterministic=True, note=notes.append)
    with pytest.raises(UserError, match=said):
        same_plan(tmp_path, now, deterministic=True, note=notes.append)
    assert notes == []
    assert json.loads((tmp_path / "plan.json").read_text()) == PLAN


def test_a_damaged_plan_is_told(tmp_path: Path) -> None:
    (tmp_path / "plan.json").write_text('{"roles": {}')
    with pytest.raises(UserError, match=r"plan\.json is damaged"):
        same_plan(tmp_path, planned(), deterministic=False, note=print)


def test_a_run_goes_on_with_the_data_it_was_begun_with(tmp_path: Path) -> None:
    same_data(tmp_path, "a" * 64, "data.path prompts.jsonl")
    same_data(tmp_path, "a" * 64, "data.path prompts.jsonl")
    with pytest.raises(UserError, match=r"prompts\.jsonl is not the data"):
        same_data(tmp_path, "b" * 64, "data.path prompts.jsonl")
    (tmp_path / "data.json").write_text("[]")
    with pytest.raises(UserError, match="is damaged"):
        same_data(tmp_path, "a" * 64, "data.path prompts.jsonl")


def test_a_dry_run_knows_a_folder_that_could_not_be_made(tmp_path: Path) -> None:
    require_writable(tmp_path / "new" / "run")
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"run\.dir: .*file is not a folder"):
        require_writable(tmp_path / "file" / "run")
    with pytest.raises(UserError, match=r"run\.dir: /proc can't be written|run\.dir: /proc"):
        require_writable(Path("/proc/version/run"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file"], "nothing was written"


def test_a_run_goes_on_only_with_the_weights_it_was_begun_with(tmp_path: Path) -> None:
    models = {"reward.model.model": {"hidden_size": 64, "weights": "a"}}
    same_models(tmp_path, models)
    same_models(tmp_path, models)
    with pytest.raises(UserError, match=r"reward\.model\.model has other weights than the model"):
        same_models(tmp_path, {"reward.model.model": {"hidden_size": 64, "weights": "b"}})


def test_a_file_system_without_hard_links_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def link(_source: object, _target: object) -> None:
        raise OSError(errno.ENOTSUP, "not supported")

    monkeypatch.setattr(os, "link", link)
    with pytest.raises(UserError, match="has no hard links"):
        create_only(tmp_path / "a.json", b"{}")
    assert not list(tmp_path.iterdir())


def test_a_run_goes_on_with_models_of_the_shape_it_was_begun_with(tmp_path: Path) -> None:
    models = {"policy.model": {"hidden_size": 64, "num_hidden_layers": 2}, "critic.model": {"hidden_size": 32}}
    same_models(tmp_path, models)
    same_models(tmp_path, models)
    with pytest.raises(
        UserError, match=r"critic\.model is not the model .* hidden_size: 32, 48\. Put the old model back"
    ):
        same_models(tmp_path, models | {"critic.model": {"hidden_size": 48}})
    with pytest.raises(UserError, match="is damaged"):
        same_models(tmp_path, {"policy.model": models["policy.model"]})
