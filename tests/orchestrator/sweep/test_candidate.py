"""A trial of a search: what it hands out, and how it ends. Over a job server that runs nothing."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest

from actors.errors import PreceptorError
from orchestrator.sweep.candidate import STOPPING_FILE, Candidate
from orchestrator.sweep.records import SweepFolder, SweepSpec
from orchestrator.sweep.trial_jobs import Place, TrialJobs
from tests.orchestrator.sweep.cluster import SPEC, Cluster, commit, small_sweep

MINUTE = 60.0


def candidate_of(folder: SweepFolder, cluster: Cluster, spec: SweepSpec = SPEC) -> Candidate:
    place = Place(python="python", folder=None, working_dir=None, env={})
    return Candidate(spec, folder.trials()[0], TrialJobs(folder, spec, cluster, place), pause=cluster.pause)


@pytest.fixture
def cluster(tmp_path: Path) -> Cluster:
    return Cluster(small_sweep(tmp_path / "s", 1), takes_s={"0001": MINUTE})


def test_each_step_with_the_metric_comes_once_and_the_end_last(cluster: Cluster) -> None:
    run_dir = cluster.folder.path / "trials" / "0001"

    def train(now_s: float) -> None:
        step = int(now_s / 10)
        if now_s % 10 == 0 and step <= 4:
            commit(run_dir, step, **({"score": math.nan if step == 4 else step / 2} if step != 2 else {"loss": 1.0}))

    cluster.on_pause = train
    candidate = candidate_of(cluster.folder, cluster)
    found = [candidate.next_point() for _ in range(4)]
    assert [(one.step, one.over) for one in found] == [(1, False), (3, False), (4, False), (4, True)]
    assert [one.value for one in found[:2]] == [0.5, 1.5]
    assert found[2].value < -1e300  # no number: worse than any
    candidate.end()
    assert candidate.trial.status == "finished"
    assert cluster.asked == []


def test_a_trial_that_is_taken_up_again_tells_its_ledger_without_reading_it_at_each_step(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_dir = cluster.folder.path / "trials" / "0001"
    for step in range(1, 41):
        commit(run_dir, step, **({"score": float(step)} if step % 2 else {"loss": 1.0}))
    read: list[Path] = []
    read_bytes = Path.read_bytes

    def counted(path: Path) -> bytes:
        read.append(path)
        return read_bytes(path)

    monkeypatch.setattr(Path, "read_bytes", counted)
    candidate = candidate_of(cluster.folder, cluster)
    found = [candidate.next_point() for _ in range(21)]
    assert [one.step for one in found] == [*range(1, 41, 2), 39]
    assert found[-1].over
    assert len([path for path in read if path.parent.name == "ledger"]) == 40


def test_a_trial_of_which_no_more_is_wanted_is_pruned_and_not_taken_up_again(cluster: Cluster) -> None:
    commit(cluster.folder.path / "trials" / "0001", 1, score=1.0)
    candidate = candidate_of(cluster.folder, cluster)
    assert candidate.next_point().step == 1
    candidate.end()
    assert cluster.asked == ["0001"]
    assert cluster.folder.trials()[0].status == "pruned"
    again = candidate_of(cluster.folder, cluster)
    # its ledger is told again, then it is over
    assert [(again.next_point().step, again.next_point().over)] == [(1, True)]
    assert len(cluster.jobs_by_id) == 1


def test_who_is_ended_while_the_user_stops_the_sweep_goes_on_later(cluster: Cluster) -> None:
    commit(cluster.folder.path / "trials" / "0001", 1, score=1.0)
    candidate = candidate_of(cluster.folder, cluster)
    candidate.next_point()
    (cluster.folder.path / STOPPING_FILE).touch()
    candidate.end()
    assert cluster.folder.trials()[0].status == "stopped"
    candidate_of(cluster.folder, cluster).next_point()
    assert [job.entrypoint.split()[-2] for job in cluster.jobs_by_id.values()] == ["run", "resume"]


def test_a_failure_is_raised_when_its_retries_are_used_up(cluster: Cluster) -> None:
    cluster.plans["0001"] = [("FAILED", 1, "preceptor: it broke\n")]
    with pytest.raises(PreceptorError, match=r"^it broke$"):
        candidate_of(cluster.folder, cluster, replace(SPEC, retries=1)).next_point()
    assert cluster.begun() == ["0001", "0001"]
    assert cluster.folder.trials()[0].status == "failed"


def test_a_trial_without_the_metric_ends_without_a_value(cluster: Cluster) -> None:
    found = candidate_of(cluster.folder, cluster).next_point()
    assert (found.step, found.over) == (0, True)
    assert found.value < -1e300


def test_a_job_whose_submission_got_no_answer_is_found_and_not_begun_twice(cluster: Cluster) -> None:
    cluster.lost_answers, cluster.late_s = 1, 5.0
    commit(cluster.folder.path / "trials" / "0001", 1, score=1.0)
    candidate = candidate_of(cluster.folder, cluster)
    assert candidate.next_point().step == 1
    # of no further use before its job is known
    candidate.end()
    assert cluster.asked == cluster.begun() == ["0001"]
    assert cluster.folder.trials()[0].status == "pruned"


def test_a_stop_that_got_no_answer_is_asked_for_again(cluster: Cluster) -> None:
    commit(cluster.folder.path / "trials" / "0001", 1, score=1.0)
    candidate = candidate_of(cluster.folder, cluster)
    candidate.next_point()
    begun_s = cluster.now_s

    def outage(now_s: float) -> None:
        cluster.silent = now_s < begun_s + 5.0

    cluster.silent, cluster.on_pause = True, outage
    candidate.end()
    assert len(cluster.asked) > 1
    assert cluster.folder.trials()[0].status == "pruned"
    assert cluster.now_s < begun_s + 15.0


def test_a_refused_job_is_a_failure_of_its_trial(cluster: Cluster) -> None:
    cluster.refusals = ["the server has hiccups", "again"]
    with pytest.raises(PreceptorError, match=r"^again$"):
        candidate_of(cluster.folder, cluster, replace(SPEC, retries=1)).next_point()
    assert cluster.folder.trials()[0].status == "failed"


def test_a_trial_whose_ledger_can_not_be_read_is_stopped_and_not_called_one_of_the_worse(cluster: Cluster) -> None:
    commit(cluster.folder.path / "trials" / "0001", 1, score=1.0)
    candidate = candidate_of(cluster.folder, cluster)
    candidate.next_point()
    (cluster.folder.path / "trials" / "0001" / "ledger" / "00000002.json").write_text("{")
    with pytest.raises(ValueError, match="property name"):
        candidate.next_point()
    candidate.end()
    assert cluster.folder.trials()[0].status == "stopped"
