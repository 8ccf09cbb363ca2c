"""Groups and the one who waits for them, with real Ray actors: whoever dies, hangs or raises is named."""

from __future__ import annotations

import os
import re
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import ray

from actors.context import RankContext
from actors.errors import PreceptorError, RewardFailed, RoleFailed, SyncFailed
from actors.group import Group, Share, Waiter, connect, kill, spawn
from actors.placement import GroupRequest, reserve
from actors.role import Role

ROOT = Path(__file__).resolve().parents[2]
BIG_BYTES = 2**20
pytestmark = pytest.mark.timeout(300)


class Worker(Role):
    """Does what a test asks."""

    def pid(self) -> int:
        return os.getpid()

    def rank_squared(self, plus: int) -> int:
        return self.context.rank**2 + plus

    def hang(self) -> None:
        time.sleep(600)

    def lose_peer(self, pid: int) -> None:
        """What a collective does when a peer dies: fails, at once."""
        os.kill(pid, signal.SIGKILL)
        raise RuntimeError("Connection closed by peer")

    def lose_engine(self, pid: int) -> None:
        os.kill(pid, signal.SIGKILL)
        raise SyncFailed("an engine did not answer")

    def unlucky(self) -> None:
        raise RewardFailed("prompt-7", "no")

    def two(self, fail: bool) -> tuple[bytes, int]:
        if fail:
            raise RewardFailed("prompt-8", "no")
        return b"big", 5

    def big(self) -> bytes:
        return bytes(BIG_BYTES)

    def size(self, data: bytes) -> int:
        return len(data)

    def environment(self) -> dict[str, str]:
        names = ("RANK", "WORLD_SIZE", "MASTER_PORT", "OMP_NUM_THREADS", "EXTRA")
        return {name: os.environ[name] for name in names}


class Stillborn(Role):
    """Can't be made."""

    def __init__(self, context: RankContext) -> None:
        raise ImportError("no such library")


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    environment = {"env_vars": {"PYTHONPATH": str(ROOT)}}
    ray.init(address="local", num_cpus=16, include_dashboard=False, log_to_driver=False, runtime_env=environment)
    yield
    ray.shutdown()


class Crew:
    """Groups of a test, all watched."""

    def __init__(self, run_dir: Path) -> None:
        self.run_dir = run_dir
        self.waiter = Waiter(timeout_s=60.0, run_dir=run_dir)
        self.groups: list[Group] = []

    def add(self, role: str, num_ranks: int, role_class: type[Role] = Worker) -> Group:
        request = GroupRequest(name=role, roles=(role,), bundle={"CPU": 0.25}, num_bundles=num_ranks, strategy="PACK")
        placement = reserve([request], timeout_s=60.0)[role]
        contexts = [
            RankContext(
                role=role,
                rank=rank,
                world_size=num_ranks,
                device="cpu",
                threads=3,
                seed=0,
                deterministic=True,
                collective_timeout_s=60.0,
                run_dir=str(self.run_dir),
            )
            for rank in range(num_ranks)
        ]
        share = Share(num_cpus=0.25, num_gpus=0)
        group = spawn(role_class, contexts, (), placement, share)
        self.groups.append(group)
        self.waiter.watch(group)
        return group


@pytest.fixture
def crew(cluster: None, tmp_path: Path) -> Iterator[Crew]:
    crew = Crew(tmp_path)
    yield crew
    kill(crew.groups)


def test_results_come_in_the_order_of_ranks(crew: Crew) -> None:
    group = crew.add("policy", 3)
    assert crew.waiter.wait(group.call(Worker.rank_squared, 1)) == [1, 2, 5]
    assert crew.waiter.wait(group.call_each(Worker.rank_squared, [(0,), (10,), (20,)])) == [0, 11, 24]
    assert crew.waiter.wait([]) == []


def test_every_rank_knows_its_place_and_logs_to_its_file(crew: Crew) -> None:
    group = crew.add("policy", 2)
    connect(group, {"EXTRA": "x"}, waiter=crew.waiter, timeout_s=60.0)
    first, second = crew.waiter.wait(group.call(Worker.environment))
    assert first == {**second, "RANK": "0"}
    assert (second["RANK"], second["WORLD_SIZE"], second["OMP_NUM_THREADS"], second["EXTRA"]) == ("1", "2", "3", "x")
    assert {path.name for path in (crew.run_dir / "logs").iterdir()} == {"policy-0.log", "policy-1.log"}


def test_who_does_not_answer_is_named_with_all_others_that_do_not(crew: Crew) -> None:
    policy, critic = crew.add("policy", 2), crew.add("critic", 1)
    crew.waiter.step = 12
    crew.waiter.wait([*policy.call(Worker.pid), *critic.call(Worker.pid)])
    calls = [policy.call_rank(0, Worker.pid), policy.call_rank(1, Worker.hang), critic.call_rank(0, Worker.hang)]
    at = time.monotonic()
    with pytest.raises(RoleFailed) as caught:
        crew.waiter.wait(calls, timeout_s=2.5)
    assert 2.5 <= time.monotonic() - at < 4.0
    error = caught.value
    assert (error.role, error.rank, error.step) == ("policy", 1, 12)
    expected = "policy rank 1 failed in step 12: hang did not answer within 2.5 s; neither did critic rank 0"
    assert str(error) == expected


def test_a_death_that_nobody_waits_for_ends_the_wait(crew: Crew) -> None:
    policy, reward = crew.add("policy", 1), crew.add("reward", 2)
    pids = crew.waiter.wait(reward.call(Worker.pid))
    crew.waiter.wait(policy.call(Worker.pid))
    calls = policy.call(Worker.hang)
    os.kill(pids[1], signal.SIGKILL)
    at = time.monotonic()
    with pytest.raises(RoleFailed, match=f"reward rank 1 failed at start: its process {pids[1]} died"):
        crew.waiter.wait(calls)
    assert time.monotonic() - at < 10.0


@pytest.mark.parametrize("method", [Worker.lose_peer, Worker.lose_engine])
def test_the_dead_one_is_named_not_the_one_that_lost_it(crew: Crew, method: Callable[..., None]) -> None:
    policy, rollout = crew.add("policy", 2), crew.add("rollout", 1)
    pid = crew.waiter.wait(rollout.call(Worker.pid))[0]
    crew.waiter.wait(policy.call(Worker.pid))
    with pytest.raises(RoleFailed, match="rollout rank 0 failed at start: its process"):
        crew.waiter.wait(policy.call(method, pid))


def test_a_roles_own_errors_come_as_they_are(crew: Crew) -> None:
    group = crew.add("reward", 1)
    with pytest.raises(RewardFailed, match="no reward for prompt 'prompt-7': no") as caught:
        crew.waiter.wait(group.call(Worker.unlucky))
    assert isinstance(caught.value, PreceptorError)
    assert caught.value.prompt_id == "prompt-7"


def test_anything_else_names_the_rank_the_call_and_the_log(crew: Crew) -> None:
    group = crew.add("policy", 1)
    connect(group, {}, waiter=crew.waiter, timeout_s=60.0)
    log = re.escape(str(crew.run_dir / "logs" / "policy-0.log"))
    with pytest.raises(
        RoleFailed, match=rf"policy rank 0 failed at start: rank_squared: TypeError: .*; its log: {log}"
    ):
        crew.waiter.wait(group.call(Worker.rank_squared, "text"))


def test_an_actor_that_can_not_be_made_says_why(crew: Crew) -> None:
    group = crew.add("rollout", 1, Stillborn)
    with pytest.raises(RoleFailed, match=r"rollout rank 0 failed at start: .*ImportError: no such library"):
        connect(group, {}, waiter=crew.waiter, timeout_s=60.0)


def test_a_failure_in_the_background_ends_the_wait(crew: Crew) -> None:
    reward, rollout = crew.add("reward", 2), crew.add("rollout", 1)
    crew.waiter.wait([*reward.call(Worker.pid), *rollout.call(Worker.pid)])
    fine, broken = reward.call_each(Worker.two, [(False,), (True,)], two_results=True)
    at = time.monotonic()
    with pytest.raises(RewardFailed, match="prompt-8"):
        crew.waiter.wait(rollout.call(Worker.hang))
    assert time.monotonic() - at < 10.0
    assert crew.waiter.wait([fine]) == [5]
    assert reward.unseen == {}, "what was seen is let go"
    del broken


def test_every_call_counts_until_its_result_is_looked_at(crew: Crew) -> None:
    critic, policy = crew.add("critic", 2), crew.add("policy", 1)
    crew.waiter.wait([*critic.call(Worker.pid), *policy.call(Worker.pid)])
    later = critic.call_each(Worker.rank_squared, [(1,), (2,)])
    assert len(critic.unseen) == 2
    assert crew.waiter.wait(later) == [1, 3]
    assert critic.unseen == {}
    critic.call_rank(1, Worker.unlucky)
    at = time.monotonic()
    with pytest.raises(RewardFailed, match="prompt-7"):
        crew.waiter.wait(policy.call(Worker.hang))
    assert time.monotonic() - at < 10.0
    assert policy.unseen == {}, "the run has failed: nothing else is awaited"


def test_what_travels_between_actors_never_comes_to_the_driver(crew: Crew) -> None:
    rollout, policy = crew.add("rollout", 1), crew.add("policy", 1)
    crew.waiter.wait([*rollout.call(Worker.pid), *policy.call(Worker.pid)])
    [answers] = rollout.call_for_actors(Worker.big)
    assert crew.waiter.wait(policy.call(Worker.size, answers.ref)) == [BIG_BYTES]
    [answers] = rollout.call_for_actors(Worker.unlucky)
    assert rollout.unseen == {}
    with pytest.raises(RewardFailed, match="prompt-7"):
        crew.waiter.wait(policy.call(Worker.size, answers.ref))
