"""The reward worker: answers to scores, by a real function in a process of its own."""

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from actors.algorithms.records import Trajectories, VersionSpan, cumulative
from actors.errors import RewardFailed, UserError
from actors.reward_worker import RewardWorker
from actors.tasks import WaveShard
from configs.schema.data import PromptDataConfig
from configs.schema.rewards import RewardFunctionConfig
from tests.rank_contexts import rank_context
from tests.tiny_models import EOS_ID, make_tiny_tokenizer

HERE = "tests.actors.reward_functions"
ROOT = str(Path(__file__).resolve().parents[2])
DEADLINE_S = 30.0


@pytest.fixture(scope="session")
def tokenizer_folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("tokenizer")
    make_tiny_tokenizer(folder)
    return str(folder)


@pytest.fixture
def worker(tmp_path: Path, tokenizer_folder: str) -> Iterator[Callable[..., RewardWorker]]:
    made = []

    def start(name: str, rows: list[dict[str, Any]], **function: Any) -> RewardWorker:
        path = tmp_path / "rows.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        context = rank_context(tmp_path, role="reward_function_0")
        config = RewardFunctionConfig(function=f"{HERE}:{name}", **{"timeout_s": 20.0, **function})
        role = RewardWorker(context, config, PromptDataConfig(path=str(path), id_column="key"), tokenizer_folder)
        made.append(role)
        role.start()
        return role

    yield start
    for role in made:
        role.stop()


def trajectories(answers: list[tuple[str, str]], folder: str) -> Trajectories:
    """Of (prompt's id, answer as words): the prompt is three tokens, the end token closes the answer."""
    from actors.data.tokenizer import load_tokenizer

    tokenizer = load_tokenizer(folder)
    prompts = tokenizer.convert_tokens_to_ids(["<user>", "cat", "<assistant>"])
    responses = [[*tokenizer(text)["input_ids"], EOS_ID] for _, text in answers]
    tokens = [token for response in responses for token in (*prompts, *response)]
    mask = [chosen for response in responses for chosen in (False, False, False, *[True] * len(response))]
    return Trajectories(
        ids=tuple(f"00000001/{i:06d}/000" for i in range(len(answers))),
        prompt_ids=tuple(prompt_id for prompt_id, _ in answers),
        tokens=torch.tensor(tokens),
        cu_lengths=cumulative([3 + len(response) for response in responses]),
        loss_mask=torch.tensor(mask),
        rollout_logprobs=torch.zeros(len(tokens)),
        truncated=torch.zeros(len(answers), dtype=torch.bool),
        version_spans=tuple((VersionSpan(start=3, end=3 + len(response), policy_version=0),) for response in responses),
        turn_offsets=((3,),) * len(answers),
    )


def shard(*indices: int) -> WaveShard:
    return WaveShard(step=1, wave=4, indices=indices, micro_batches=(indices,))


ROWS = [{"key": "a", "prompt": "cat", "answer": 3}, {"key": "b", "prompt": "dog cat", "answer": 5}]


def test_answers_are_scored_in_their_order_with_their_rows(
    worker: Callable[..., RewardWorker], tokenizer_folder: str
) -> None:
    role = worker("takes_answer", ROWS)
    wave = trajectories([("b", "5"), ("a", "5"), ("a", "3"), ("b", "3")], tokenizer_folder)
    column, busy = role.score(shard(3, 0, 2), wave)
    assert (column.wave, column.indices) == (4, (3, 0, 2))
    assert column.scores.tolist() == [0.0, 1.0, 1.0]
    assert column.scores.dtype == torch.float32
    assert busy.seconds > 0


def test_the_function_reads_prompt_and_answer_without_special_tokens(
    worker: Callable[..., RewardWorker], tokenizer_folder: str
) -> None:
    role = worker("length", ROWS)
    wave = trajectories([("b", "red sun"), ("a", "")], tokenizer_folder)
    assert role.score(shard(0, 1), wave)[0].scores.tolist() == pytest.approx([len("dog cat") + 0.07, len("cat")])


def test_a_conversation_comes_with_its_messages(worker: Callable[..., RewardWorker], tokenizer_folder: str) -> None:
    chat = [{"role": "system", "content": "good"}, {"role": "user", "content": "cat"}]
    role = worker("num_messages", [{"key": "a", "prompt": chat}, {"key": "b", "prompt": "cat"}])
    wave = trajectories([("a", "red"), ("b", "red")], tokenizer_folder)
    assert role.score(shard(0, 1), wave)[0].scores.tolist() == [2.0, 0.0]


def test_a_call_succeeds_within_its_retries(
    worker: Callable[..., RewardWorker], tokenizer_folder: str, tmp_path: Path
) -> None:
    rows = [{"key": "a", "prompt": str(tmp_path / "count"), "failures": 2}]
    wave = trajectories([("a", "red")], tokenizer_folder)
    assert worker("fails_at_first", rows, retries=2).score(shard(0), wave)[0].scores.tolist() == pytest.approx([0.2])


def test_a_call_beyond_its_retries_stops_the_step(
    worker: Callable[..., RewardWorker], tokenizer_folder: str, tmp_path: Path
) -> None:
    rows = [{"key": "a", "prompt": str(tmp_path / "count"), "failures": 2}]
    wave = trajectories([("a", "red")], tokenizer_folder)
    with pytest.raises(RewardFailed) as failed:
        worker("fails_at_first", rows, retries=1).score(shard(0), wave)
    assert failed.value.prompt_id == "a"
    assert str(failed.value) == f"no reward for prompt 'a': {HERE}:fails_at_first: RuntimeError: failure 2 (try 2 of 2)"
    assert (tmp_path / "count").read_text() == "2"


def test_a_number_that_is_none_never_becomes_zero(worker: Callable[..., RewardWorker], tokenizer_folder: str) -> None:
    rows = [{"key": "a", "prompt": "cat"}]
    wave = trajectories([("a", "red")], tokenizer_folder)
    with pytest.raises(RewardFailed, match=r"returned nan \(try 1 of 1\)"):
        worker("returns_nan", rows, retries=0).score(shard(0), wave)


def test_a_hanging_call_is_tried_again_and_named(
    worker: Callable[..., RewardWorker], tokenizer_folder: str, tmp_path: Path
) -> None:
    role = worker("hangs", [{"key": "a", "prompt": str(tmp_path / "ids")}], retries=1, timeout_s=2.0)
    wave = trajectories([("a", "red")], tokenizer_folder)
    with pytest.raises(RewardFailed, match=re.escape("prompt 'a'") + r".*timed out after 2 s \(try 2 of 2\)"):
        role.score(shard(0), wave)


def test_a_column_that_a_row_lacks_is_told_at_start(worker: Callable[..., RewardWorker], tmp_path: Path) -> None:
    rows = [ROWS[0], {"key": "b", "prompt": "dog"}]
    with pytest.raises(UserError) as told:
        worker("takes_answer", rows)
    assert str(told.value) == (
        f"reward function '{HERE}:takes_answer' needs 'answer', {tmp_path / 'rows.jsonl'}:2 has 'key' beside the prompt"
    )
