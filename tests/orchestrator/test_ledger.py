"""The ledger: immutable, created only if absent, damage and gaps told by name."""

from __future__ import annotations

import json
import stat
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from actors.algorithms.moments import Moments
from actors.digests import digest_of
from actors.errors import PreceptorError
from actors.store import create_only
from actors.tasks import Busy, WaveSummary, WrittenFile
from orchestrator.ledger import Ledger, LedgerEntry, StepDigests, SupervisedEntry


def entry(step: int) -> LedgerEntry:
    return LedgerEntry(
        step=step,
        policy_version=step,
        waves=(
            WaveSummary(
                wave=0,
                lengths=(3, 4),
                num_loss_tokens=(1, 2),
                prompt_ids=("a", "b"),
                truncated=(False, True),
                token_digest="t",
                busy=Busy(started=1.5, seconds=0.25),
            ),
        ),
        advantage_moments=Moments(count=3, mean=0.1, m2=0.3),
        kl_coef=0.1,
        kl_controller={"coef": 0.1 + 1e-17 * step},
        trajectory_files=((WrittenFile(name="trajectories/1/w.parquet", sha256="ab", num_bytes=7),),),
        digests=StepDigests(tokens="t", rewards="r", advantages="a", policy="p", critic="c"),
        updates={"policy": ({"loss": 1 / 3},), "critic": ()},
        metrics={"score": float("inf")},
        seconds={"update": 0.5},
    )


def test_what_is_read_is_what_was_committed(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path, LedgerEntry)
    ledger.commit(entry(1))
    assert ledger.read(1) == entry(1)
    assert ledger.last_step() == 1
    supervised = Ledger(tmp_path / "s", SupervisedEntry)
    supervised.commit(SupervisedEntry(step=1, digest="d", metrics={"loss": 0.1}))
    assert supervised.read(1) == SupervisedEntry(step=1, digest="d", metrics={"loss": 0.1})


def test_a_committed_step_cannot_be_committed_again(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path, LedgerEntry)
    ledger.commit(entry(1))
    before = (tmp_path / "ledger" / "00000001.json").read_bytes()
    with pytest.raises(PreceptorError, match="another driver"):
        ledger.commit(replace(entry(1), kl_coef=0.2))
    assert (tmp_path / "ledger" / "00000001.json").read_bytes() == before
    assert [path.name for path in (tmp_path / "ledger").iterdir()] == ["00000001.json"], "nothing half-written stays"


def test_of_many_that_create_a_file_one_does(tmp_path: Path) -> None:
    def attempt(number: int) -> bool:
        try:
            create_only(tmp_path / "one", str(number).encode() * 1000)
        except FileExistsError:
            return False
        return True

    with ThreadPoolExecutor(8) as pool:
        won = [number for number, did in zip(range(8), pool.map(attempt, range(8)), strict=True) if did]
    assert len(won) == 1
    assert (tmp_path / "one").read_text() == str(won[0]) * 1000
    assert stat.S_IMODE((tmp_path / "one").stat().st_mode) == 0o644


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: data[: len(data) // 2],
        lambda data: b"",
        lambda data: b"[]",
        lambda data: data.replace(b'"kl_coef": 0.1', b'"kl_coef": 0.3'),
        lambda data: json.dumps({key: value for key, value in json.loads(data).items() if key != "waves"}).encode(),
    ],
)
def test_damage_is_told_with_the_file(tmp_path: Path, damage: Callable[[bytes], bytes]) -> None:
    ledger = Ledger(tmp_path, LedgerEntry)
    ledger.commit(entry(1))
    path = tmp_path / "ledger" / "00000001.json"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(PreceptorError, match=f"{path} is damaged"):
        ledger.read(1)


def test_an_entry_under_another_step_is_damage(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path, LedgerEntry)
    ledger.commit(entry(1))
    (tmp_path / "ledger" / "00000001.json").rename(tmp_path / "ledger" / "00000002.json")
    with pytest.raises(PreceptorError, match="speaks of step 1"):
        ledger.read(2)
    with pytest.raises(PreceptorError, match=r"lacks the steps \[1\]"):
        ledger.last_step()


def test_other_files_are_no_steps(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path, LedgerEntry)
    assert ledger.last_step() == 0
    ledger.commit(entry(1))
    for name in (".new-xyz", "00000002 (copy).json", "1.json", "notes.json"):
        (tmp_path / "ledger" / name).write_text("x")
    assert ledger.last_step() == 1


def test_a_steps_digest_covers_its_five_parts() -> None:
    parts = {"tokens": "t", "rewards": "r", "advantages": "a", "policy": "p", "critic": "c"}
    whole = StepDigests(**parts).step
    assert whole == digest_of(["t", "r", "a", "p", "c"])
    for name in parts:
        assert StepDigests(**{**parts, name: "x"}).step != whole
    assert digest_of(["ab", "c"]) != digest_of(["a", "bc"])
