"""Who runs when, what failures and kills come to. Over a job server that runs nothing, in time that does not pass by itself."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest

from actors.errors import PreceptorError, UserError
from orchestrator.sweep.trial_jobs import AGENT_TRIES, OUTAGE_S, reason
from tests.orchestrator.sweep.cluster import SPEC, Cluster, commit, runner_of, small_sweep


def statuses(path: Path) -> list[str]:
    from orchestrator.sweep.records import SweepFolder

    return [trial.status for trial in SweepFolder(path).trials()]


def test_all_trials_run_in_their_order_and_no_more_at_once_than_allowed(tmp_path: Path) -> None:
    folder = small_sweep(tmp_path / "s", 5)
    cluster = Cluster(folder, takes_s={"0001": 9.0})
    runner_of(folder, cluster).run()
    assert cluster.begun() == ["0001", "0002", "0003", "0004", "0005"]
    assert cluster.most_running == 2
    assert statuses(folder.path) == ["finished"] * 5
    # beside the long first one the others take turns
    assert cluster.now_s == 12.0


def test_running_trials_hold_no_more_gpus_than_allowed(tmp_path: Path) -> None:
    spec = replace(SPEC, parallel=8, gpus=8)
    folder = small_sweep(tmp_path / "s", 4, gpus=[4, 4, 8, 2], spec=spec)
    cluster = Cluster(folder, takes_s={"0001": 9.0})
    together: list[list[str]] = []
    cluster.on_pause = lambda _: together.append(cluster.running())
    runner_of(folder, cluster).run()
    # the large one is not passed over by the small one behind it
    assert [now for n, now in enumerate(together) if n == 0 or now != together[n - 1]] == [
        ["0001", "0002"],
        ["0001"],
        ["0003"],
        ["0004"],
    ]


def test_a_failure_ends_only_its_trial_and_keeps_its_log(tmp_path: Path) -> None:
    folder = small_sweep(tmp_path / "s", 3)
    log = "step 1/9\npreceptor: policy rank 0 failed in step 2: it died; more in x.log\n"
    cluster = Cluster(folder, plans={"0002": [("FAILED", 1, log)]})
    runner_of(folder, cluster).run()
    assert statuses(folder.path) == ["finished", "failed", "finished"]
    failed = folder.trials()[1]
    assert failed.reason == "policy rank 0 failed in step 2: it died; more in x.log"
    assert folder.log_file(failed).read_text() == log


def test_a_failed_trial_is_tried_again_from_where_it_stands(tmp_path: Path) -> None:
    spec = replace(SPEC, retries=2)
    folder = small_sweep(tmp_path / "s", 1, spec=spec)
    cluster = Cluster(folder, plans={"0001": [("FAILED", 1, ""), ("FAILED", -9, ""), ("SUCCEEDED", 0, "")]})
    runner_of(folder, cluster).run()
    commands = [job.entrypoint.removeprefix("exec python -m orchestrator ") for job in cluster.jobs_by_id.values()]
    run_dir = str(folder.path / "trials" / "0001")
    assert commands == [f"run {folder.path}/inputs/0001.yaml", f"resume {run_dir}", f"resume {run_dir}"]
    (trial,) = folder.trials()
    assert (trial.status, trial.attempts, trial.failures) == ("finished", 3, 2)


def test_trials_note_themselves_where_they_are_told_and_start_unchecked(tmp_path: Path) -> None:
    spec = replace(SPEC, retries=1, registry="postgresql://u@db/runs", skip_memory_check=True)
    folder = small_sweep(tmp_path / "s", 1, spec=spec)
    cluster = Cluster(folder, plans={"0001": [("FAILED", 1, ""), ("SUCCEEDED", 0, "")]})
    runner_of(folder, cluster).run()
    commands = [job.entrypoint.removeprefix("exec python -m orchestrator ") for job in cluster.jobs_by_id.values()]
    assert commands == [
        f"run --skip-memory-check --registry postgresql://u@db/runs {folder.path}/inputs/0001.yaml",
        f"resume --registry postgresql://u@db/runs {folder.path}/trials/0001",
    ]


def test_bad_input_is_not_tried_again(tmp_path: Path) -> None:
    folder = small_sweep(tmp_path / "s", 1, spec=replace(SPEC, retries=5))
    cluster = Cluster(folder, plans={"0001": [("FAILED", 2, "preceptor: data.path: no such file\n")]})
    runner_of(folder, cluster).run()
    runner_of(folder, cluster).run()
    assert len(cluster.jobs_by_id) == 1
    assert folder.trials()[0].reason == "data.path: no such file"


def test_more_retries_at_a_resume_take_up_what_failed_and_nothing_that_finished(tmp_path: Path) -> None:
    folder = small_sweep(tmp_path / "s", 2)
    cluster = Cluster(folder, plans={"0002": [("FAILED", 1, ""), ("SUCCEEDED", 0, "")]})
    runner_of(folder, cluster).run()
    runner_of(folder, cluster).run()
    assert cluster.begun() == ["0001", "0002"]
    runner_of(folder, cluster, replace(SPEC, retries=1)).run()
    assert cluster.begun() == ["0001", "0002", "0002"]
    assert statuses(folder.path) == ["finished", "finished"]


def test_a_killed_sweep_finds_its_running_jobs_again(tmp_path: Path) -> None:
    folder = small_sweep(tmp_path / "s", 3)
    cluster = Cluster(folder)

    def kill(now_s: float) -> None:
        if now_s == 1.0:
            raise ZeroDivisionError

    cluster.on_pause = kill
    with pytest.raises(ZeroDivisionError):
        runner_of(folder, cluster).run()
    assert statuses(folder.path) == ["running", "running", "waiting"]
    # killed between the submission and the note of it
    folder.save(replace(folder.trials()[1], job=None))
    cluster.on_pause = lambda _: None
    runner_of(folder, cluster).run()
    assert cluster.begun() == ["0001", "0002", "0003"]
    assert statuses(folder.path) == ["finished"] * 3


def test_jobs_that_nobody_knows_any_more_go_on_and_count_for_no_failure(tmp_path: Path) -> None:
    folder = small_sweep(tmp_path / "s", 2)
    cluster = Cluster(folder)

    def restart(now_s: float) -> None:
        if now_s == 1.0:
            cluster.jobs_by_id.clear()

    cluster.on_pause = restart
    runner_of(folder, cluster).run()
    assert [job.entrypoint.split()[-2] for job in cluster.jobs_by_id.values()] == ["resume", "resume"]
    assert [(trial.status, trial.attempts, trial.failures) for trial in folder.trials()] == [("finished", 2, 0)] * 2


def test_a_stopped_sweep_asks_each_running_trial_once_and_begins_no_more(tmp_path: Path) -> None:
    folder = small_sweep(tmp_path / "s", 4)
    cluster = Cluster(folder, takes_s={"0001": 90.0, "0002": 90.0})
    runner = runner_of(folder, cluster)

    def interrupt(now_s: float) -> None:
        runner.stop_requested = runner.stop_requested or now_s == 2.0

    cluster.on_pause = interrupt
    runner.run()
    assert cluster.asked == ["0001", "0002"]
    assert statuses(folder.path) == ["stopped", "stopped", "waiting", "waiting"]
    runner_of(folder, cluster).run()
    assert statuses(folder.path) == ["finished"] * 4
    assert cluster.begun() == ["0001", "0002", "0001", "0002", "0003", "0004"]


def test_a_silent_job_server_is_waited_for(tmp_path: Path) -> None:
    folder = small_sweep(tmp_path / "s", 2)
    cluster = Cluster(folder)

    def outage(now_s: float) -> None:
        cluster.silent = 1.0 <= now_s < OUTAGE_S

    cluster.on_pause = outage
    runner_of(folder, cluster).run()
    assert statuses(folder.path) == ["finished"] * 2
    assert cluster.begun() == ["0001", "0002"]


def test_a_job_whose_submission_got_no_answer_is_found_and_not_begun_twice(tmp_path: Path) -> None:
    folder = small_sweep(tmp_path / "s", 3)
    cluster = Cluster(folder, lost_answers=2, late_s=5.0)
    runner_of(folder, cluster).run()
    assert statuses(folder.path) == ["finished"] * 3
    assert cluster.begun() == ["0001", "0002", "0003"]


def test_a_stop_that_got_no_answer_is_asked_for_again(tmp_path: Path) -> None:
    folder = small_sweep(tmp_path / "s", 1)
    cluster = Cluster(folder, takes_s={"0001": 1000.0})
    runner = runner_of(folder, cluster)

    def stop_in_an_outage(now_s: float) -> None:
        runner.stop_requested = now_s >= 3.0
        cluster.silent = 3.0 <= now_s < 6.0

    cluster.on_pause = stop_in_an_outage
    runner.run()
    assert statuses(folder.path) == ["stopped"]
    assert len(cluster.asked) > 1
    assert cluster.now_s < 20.0


def test_a_job_server_that_stays_silent_ends_the_sweep_with_what_to_do(tmp_path: Path) -> None:
    folder = small_sweep(tmp_path / "s", 2)
    cluster = Cluster(folder)

    def outage(now_s: float) -> None:
        cluster.silent = now_s >= 1.0

    cluster.on_pause = outage
    with pytest.raises(PreceptorError) as caught:
        runner_of(folder, cluster).run()
    assert str(caught.value) == (
        "address: no Ray job server answers. No answer for 300 s; trials that run go on by themselves. Go on with: preceptor sweep "
        f"--resume {folder.path}"
    )


def test_a_server_that_refuses_a_job_ends_the_sweep_and_the_trial_waits(tmp_path: Path) -> None:
    folder = small_sweep(tmp_path / "s", 1)
    cluster = Cluster(folder, refusals=["the job server refuses: the working directory is too large"])
    with pytest.raises(UserError, match="too large"):
        runner_of(folder, cluster).run()
    assert statuses(folder.path) == ["waiting"]
    runner_of(folder, cluster).run()
    assert statuses(folder.path) == ["finished"]


def test_one_refused_job_does_not_leave_those_that_run_alone(tmp_path: Path) -> None:
    folder = small_sweep(tmp_path / "s", 3, spec=replace(SPEC, retries=1))
    refusals = ["", "the server has hiccups", "", "once", "twice"]
    cluster = Cluster(folder, takes_s={"0001": 20.0}, refusals=refusals)
    runner_of(folder, cluster).run()
    assert [(trial.status, trial.failures) for trial in folder.trials()] == [
        ("finished", 0),
        ("finished", 1),
        ("failed", 2),
    ]
    assert folder.trials()[2].reason == "twice"
    assert cluster.begun() == ["0001", "0002"]


def test_a_server_whose_agent_is_not_up_yet_is_waited_for(tmp_path: Path) -> None:
    said = "the job server at x refuses: Request failed with status code 500: No available agent to submit job, please try again later."
    folder = small_sweep(tmp_path / "s", 1)
    cluster = Cluster(folder, refusals=[said] * (AGENT_TRIES - 1))
    runner_of(folder, cluster).run()
    assert [(trial.status, trial.attempts, trial.failures) for trial in folder.trials()] == [("finished", 1, 0)]
    folder = small_sweep(tmp_path / "t", 1)
    with pytest.raises(UserError, match="No available agent"):
        runner_of(folder, Cluster(folder, refusals=[said] * AGENT_TRIES)).run()


def test_an_attempt_took_what_the_cluster_says_and_not_until_somebody_looks(tmp_path: Path) -> None:
    folder = small_sweep(tmp_path / "s", 1)
    cluster = Cluster(folder, takes_s={"0001": 7.0})
    runner_of(folder, cluster).run()
    # no second passes on this machine's clock
    assert folder.trials()[0].seconds == 7.0


def test_an_attempt_that_nobody_knows_any_more_took_until_its_last_step(tmp_path: Path) -> None:
    folder = small_sweep(tmp_path / "s", 1)
    commit(folder.run_dir(folder.trials()[0]), 1, score=1.0)
    ledger = folder.run_dir(folder.trials()[0]) / "ledger"
    os.utime(ledger, (3000.0, 3000.0))
    # killed with its Ray in 1970
    folder.save(replace(folder.trials()[0], status="running", attempts=1, job="gone", begun_s=2000.0))
    cluster = Cluster(folder, takes_s={"0001": 5.0})
    runner_of(folder, cluster).run()
    assert folder.trials()[0].seconds == 1000.0 + 5.0


def test_who_watches_is_told_once_of_a_job_whose_answer_was_lost(tmp_path: Path) -> None:
    folder = small_sweep(tmp_path / "s", 1)
    told: list[tuple[str, bool]] = []
    runner = runner_of(folder, Cluster(folder, lost_answers=1))
    runner._changed = lambda trial: told.append((trial.status, trial.job is None))
    runner.run()
    assert told == [("running", True), ("finished", False)]


@pytest.mark.parametrize(
    ("log", "message", "expected"),
    [
        ("a\npreceptor: first\npreceptor: second\n", "m", "second"),
        ("Traceback\nMemoryError\n\n", "m", "MemoryError"),
        ("", "Job failed\ndue to x", "Job failed due to x"),
        ("", "", "it gave no reason"),
    ],
)
def test_the_reason_is_what_the_driver_said_last(log: str, message: str, expected: str) -> None:
    assert reason(log, message) == expected
