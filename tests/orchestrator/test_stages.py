"""What is compared when all roles have started."""

from __future__ import annotations

from pathlib import Path

import pytest

from actors.errors import UserError
from actors.reward_worker import ROWS_FINGERPRINT
from actors.rollout import RolloutReport
from actors.supervised_trainer import DATA_FINGERPRINT
from actors.tasks import RoleReport
from orchestrator.launch import Launched
from orchestrator.stages import same_rows
from tests.orchestrator.small_stages import stage


def engine(fingerprint: str) -> RolloutReport:
    return RolloutReport(
        num_prompts=3, data_fingerprint=fingerprint, vocab_size=9, end_token_ids=(2,), seconds=1.0, peak_memory_bytes=1
    )


def rank(number: int, **facts: str) -> RoleReport:
    return RoleReport(role="reward", rank=number, num_parameters=1, peak_memory_bytes=1, seconds=1.0, facts=facts)


@pytest.fixture
def launched(tmp_path: Path) -> Launched:
    return Launched(stage().cluster, stage().run, tmp_path)


def test_every_rank_that_read_data_read_what_was_checked(launched: Launched) -> None:
    launched.reports = {
        "rollout": [engine("a" * 64), engine("a" * 64)],
        "policy": [rank(0)],
        "reward": [rank(0, **{DATA_FINGERPRINT: "a" * 64})],
    }
    same_rows(launched, "a" * 64, "p.jsonl")


def test_an_engine_with_other_prompts_is_named(launched: Launched) -> None:
    launched.reports = {"rollout": [engine("a" * 64), engine("b" * 64)]}
    with pytest.raises(UserError, match=r"data\.path: rollout rank 1 read other data from 'p\.jsonl'"):
        same_rows(launched, "a" * 64, "p.jsonl")


def test_a_reward_worker_with_other_rows_is_named(launched: Launched) -> None:
    launched.reports = {"reward_function_0": [rank(0, **{ROWS_FINGERPRINT: "c" * 64})]}
    same_rows(launched, "a" * 64, "p.jsonl", rows_fingerprint="c" * 64)
    with pytest.raises(UserError, match="reward_function_0 rank 0 read other data"):
        same_rows(launched, "a" * 64, "p.jsonl", rows_fingerprint="d" * 64)


def test_a_reward_trainer_with_other_rankings_is_named(launched: Launched) -> None:
    reports = [rank(number, **{DATA_FINGERPRINT: letter * 64}) for number, letter in enumerate("ab")]
    launched.reports = {"reward": [*reports]}
    with pytest.raises(UserError, match="reward rank 1 read other data"):
        same_rows(launched, "a" * 64, "pairs.jsonl")
