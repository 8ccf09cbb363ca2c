"""The registry on SQLite and on a real PostgreSQL: rows, migrations, many writers, who is lost, what it refuses."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import create_engine, text

from actors.errors import UserError
from orchestrator.registry import store
from orchestrator.registry.address import Address, address_of
from orchestrator.registry.migrate import FOLDER
from orchestrator.registry.records import RunRecord, StepRecord
from orchestrator.registry.store import Registry
from orchestrator.registry.tables import REVISION, Base
from orchestrator.sessions import State
from tests.orchestrator.registry.conftest import new_database

ROOT = Path(__file__).resolve().parents[3]
RUN = RunRecord(
    id="abcdef012345",
    name="a",
    stage="ppo",
    state="running",
    run_dir="/runs/a",
    config_sha256="0" * 64,
    config={"ppo": {"kl": {"coef": 0.05}}, "text": "grün \u2028"},
    overrides=["ppo.steps=3"],
    lock_sha256="1" * 64,
    plan={"roles": {}},
    started_at=1000.25,
    active_s=3600.5,
    gpu_s=7200.0,
)


def step(number: int, value: float, kind: str = "step") -> StepRecord:
    return StepRecord(step=number, kind=kind, metrics={"score": value}, digest=f"d{number}" if kind == "step" else "")


def test_a_run_comes_back_as_it_was_put(address: Address) -> None:
    with Registry(address) as registry:
        registry.put(RUN, packages={"torch": "2.13.0"})
        registry.put_steps(RUN.id, [step(1, 0.5), step(1, 0.25, "evaluation"), step(2, 0.125)])
    with Registry(address) as registry:
        found = registry.find("abcd")
    assert found.run == RUN
    assert found.packages == {"torch": "2.13.0"}
    assert found.steps == (step(1, 0.25, "evaluation"), step(1, 0.5), step(2, 0.125))


def test_what_is_put_twice_is_there_once_and_up_to_date(address: Address) -> None:
    with Registry(address) as registry:
        states: tuple[tuple[float, State], ...] = ((0.5, "running"), (0.75, "finished"))
        for value, state in states:
            registry.put(replace(RUN, state=state, error="a\0b"))
            registry.put_steps(RUN.id, [step(number, value) for number in range(1, 1200)])
        found = registry.find(RUN.id)
        assert len(registry.runs(stages=True)) == 1
    assert (found.run.state, found.run.error) == ("finished", "ab")
    assert [one.metrics["score"] for one in found.steps] == [0.75] * 1199


def test_runs_are_listed_newest_first_and_stages_of_pipelines_on_demand(address: Address) -> None:
    with Registry(address) as registry:
        registry.put(replace(RUN, id="old", stage="pipeline", started_at=1.0, run_dir="/runs/p"))
        registry.put(replace(RUN, id="part", part_of="old", started_at=2.0, run_dir="/runs/p/ppo"))
        registry.put(replace(RUN, id="new", stage="sft", started_at=3.0, run_dir="/runs/p_2"))

        def ids(**wanted: object) -> list[str]:
            return [run.id for run in registry.runs(**wanted)]  # type: ignore[arg-type]

        assert ids(stages=False) == ["new", "old"]
        assert ids(stages=True) == ["new", "part", "old"]
        assert ids(stages=True, stage="ppo") == ["part"]
        assert ids(stages=True, part_of="old") == ["part"]
        assert ids(stages=True, under="/runs/p") == ["part", "old"], (
            "`_` in /runs/p_2 is no joker, p no beginning of p_2"
        )
        assert ids(stages=True, under="/runs/") == ["new", "part", "old"]


def test_a_running_run_whose_driver_is_silent_is_lost(address: Address, monkeypatch: pytest.MonkeyPatch) -> None:
    with Registry(address) as registry:
        registry.put(RUN, alive=True)
        registry.advance(RUN.id, {"score": 1.0}, 7)
        found = registry.find(RUN.id).run
        assert (found.state, found.num_steps, found.metrics) == ("running", 7, {"score": 1.0})
        monkeypatch.setattr(store, "LOST_AFTER_S", -1.0)
        assert registry.find(RUN.id).run.state == "lost"
        assert [run.state for run in registry.runs(stages=False)] == ["lost"]
        registry.put(replace(RUN, state="finished"))
        assert registry.find(RUN.id).run.state == "finished"


def test_no_run_and_several_runs_are_told_apart(address: Address) -> None:
    with Registry(address) as registry:
        for name in ("aa1", "aa2"):
            registry.put(replace(RUN, id=name))
        with pytest.raises(
            UserError, match="RUN: got 'aa', and those of aa1, aa2 begin so; allowed: the beginning of one run's id in"
        ):
            registry.find("aa")
        with pytest.raises(UserError, match="RUN: got 'b%', and no run has it"):
            registry.find("b%")


# ---------------------------------------------------------------------------------------------------------------- many writers

WRITERS = 5
WRITE = """
import os, sys
from orchestrator.registry.address import address_of
from orchestrator.registry.records import RunRecord, StepRecord
from orchestrator.registry.store import Registry

def write(number):
    with Registry(address_of()) as registry:
        run = RunRecord(id=f"run{number}", name="a", stage="ppo", state="running", run_dir="/r", config_sha256="", config={},
                        lock_sha256="same")
        for step in range(1, 9):
            registry.put(run, packages={"torch": "2"}, alive=True)
            registry.put_steps(run.id, [StepRecord(step=step, kind="step", metrics={"score": step / number})])
            registry.advance("run1", {"score": float(step)}, step)

# one import for all; they are let go together
gate, release = os.pipe()
children = []
for number in range(1, int(sys.argv[1]) + 1):
    child = os.fork()
    if not child:
        os.close(release)
        os.read(gate, 1)
        write(number)
        os._exit(0)
    children.append(child)
os.close(release)
sys.exit(sum(os.waitpid(child, 0)[1] != 0 for child in children))
"""


def test_many_processes_make_the_registry_and_write_at_once(address: Address) -> None:
    """All start on an empty registry at the same moment: one of them makes the tables, none fails, no row is lost."""
    done = subprocess.run(
        [sys.executable, "-c", WRITE, str(WRITERS)],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    with Registry(address) as registry:
        for number in range(1, WRITERS + 1):
            steps = registry.find(f"run{number}").steps
            assert [one.metrics["score"] for one in steps] == [at / number for at in range(1, 9)]


# ------------------------------------------------------------------------------------------------------------------ migrations


def test_migrations_give_the_tables_that_the_code_has(address: Address) -> None:
    from alembic.autogenerate import compare_metadata
    from alembic.runtime.migration import MigrationContext
    from alembic.script import ScriptDirectory

    assert ScriptDirectory(str(FOLDER)).get_heads() == [REVISION]
    Registry(address).close()
    engine = create_engine(address.url)
    with engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        assert compare_metadata(context, Base.metadata) == []
    engine.dispose()


def test_a_registry_of_a_newer_version_is_refused_in_one_message(address: Address) -> None:
    Registry(address).close()
    engine = create_engine(address.url)
    with engine.begin() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '0999'"))
    engine.dispose()
    with pytest.raises(UserError) as caught:
        Registry(address)
    assert str(caught.value) == (
        f"registry {address}: got version 0999, which a newer Preceptor made; allowed: versions up to {REVISION}. Upgrade "
        "Preceptor, or use another registry"
    )
    assert "tester:***@" in str(address) or "sqlite" in str(address)


def test_a_registry_that_was_emptied_is_made_again(address: Address) -> None:
    Registry(address).close()
    engine = create_engine(address.url)
    with engine.begin() as connection:
        for table in ("steps", "runs", "locks", "alembic_version"):
            connection.execute(text(f"DROP TABLE {table}"))
    engine.dispose()
    with Registry(address) as registry:
        assert registry.runs(stages=True) == []


# ------------------------------------------------------------------------------------------------------- addresses and refusals


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("runs.db", "PRECEPTOR_REGISTRY: what was got is no address of a database"),
        ("mysql://u:secret@h/d", "PRECEPTOR_REGISTRY: got a database of kind 'mysql'"),
        ("sqlite://", "PRECEPTOR_REGISTRY: got 'sqlite://', which names no file"),
        ("postgresql://u:secret@h", "PRECEPTOR_REGISTRY: got an address without a database's name"),
    ],
)
def test_an_address_that_is_none_is_refused_without_its_password(
    value: str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PRECEPTOR_REGISTRY", value)
    with pytest.raises(UserError) as caught:
        address_of()
    assert str(caught.value) == f"{said}; allowed: sqlite:////folder/file.db, postgresql://user@host/database, or off"


@pytest.mark.parametrize(
    "url", ["postgresql://u:secret@h/d", "postgres://u@h/d?password=secret", "postgres://u@h/d?sslpassword=secret"]
)
def test_a_password_on_the_command_line_is_refused(url: str) -> None:
    with pytest.raises(UserError, match="--registry: got an address with a password") as caught:
        address_of(url)
    assert "secret" not in str(caught.value)


def test_the_address_is_the_options_then_the_environments_then_the_users_own(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PRECEPTOR_REGISTRY", "sqlite:////e/r.db")
    assert str(address_of("postgresql://u@h/d")).startswith("postgresql://u@h/d")
    assert address_of("off") is None
    assert str(address_of()) == "sqlite:////e/r.db"
    monkeypatch.delenv("PRECEPTOR_REGISTRY")
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    assert str(address_of()) == f"sqlite:///{tmp_path}/preceptor/registry.db"


@pytest.mark.parametrize(
    "url", ["postgresql://u:hunter2@h/d", "postgresql://u@h/d?password=hunter2&sslpassword=hunter3"]
)
def test_an_address_is_told_without_what_is_secret_in_it(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PRECEPTOR_REGISTRY", url)
    address = address_of()
    assert address is not None
    assert "hunter" not in str(address)
    assert "hunter" not in address.without_password(f"could not connect with {url}")


def test_a_server_that_does_not_answer_is_told_without_its_password(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PRECEPTOR_REGISTRY", "postgresql://u:secret@127.0.0.1:1/d")
    address = address_of()
    assert address is not None
    with pytest.raises(
        UserError, match=r"registry postgresql://u:\*\*\*@127.0.0.1:1/d.* can't be used: .*refused"
    ) as caught:
        Registry(address)
    assert "secret" not in str(caught.value)


def test_a_server_whose_machine_is_gone_is_noticed(postgres: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """By TCP itself, as nothing else would end the wait for an answer; the address may say otherwise."""
    monkeypatch.setenv("PRECEPTOR_REGISTRY", f"{new_database(postgres)}?tcp_user_timeout=9000")
    address = address_of()
    assert address is not None
    with Registry(address) as registry, registry._engine.connect() as connection:
        driver: Any = connection.connection.driver_connection
        settings = driver.info.get_parameters()
        limits = connection.execute(
            text("SELECT current_setting('statement_timeout'), current_setting('lock_timeout')")
        )
        assert tuple(limits.one()) == ("1min", "30s")
    assert settings["tcp_user_timeout"] == "9000"
    assert int(settings["keepalives_idle"]) + 4 * int(settings["keepalives_interval"]) <= 60


def test_a_wrong_password_is_told_without_it(postgres: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PRECEPTOR_REGISTRY", postgres.replace("tester:", "tester:wrong"))
    address = address_of()
    assert address is not None
    with pytest.raises(UserError, match="password authentication failed") as caught:
        Registry(address)
    assert "wrong" not in str(caught.value)


def test_a_file_that_is_no_database_and_a_folder_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("nothing of the kind " * 100)
    for url, said in (
        (f"sqlite:///{tmp_path}/text", "can't be used: file is not a database"),
        (f"sqlite:///{tmp_path}/text/r.db", f"{tmp_path}/text can't be made"),
    ):
        address = address_of(url)
        assert address is not None
        with pytest.raises(UserError, match=said):
            Registry(address)


def test_looking_makes_no_registry(tmp_path: Path) -> None:
    address = address_of(f"sqlite:///{tmp_path}/none/r.db")
    assert address is not None
    with pytest.raises(UserError, match="there is none yet; the first `preceptor run` makes it"):
        Registry(address, create=False)
    assert not (tmp_path / "none").exists()
