"""The reward role on real ranks, against plain transformers: scores of tokens, and of texts where tokenizer or template are its own."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from actors.errors import RewardFailed
from actors.reward_worker import ROWS_FINGERPRINT
from configs.schema.data import PromptDataConfig
from configs.schema.rewards import RewardModelConfig
from tests.actors.engine.ranks import run_ranks
from tests.actors.reward_scoring import Answered, score, trajectories
from tests.tiny_models import make_letter_scalar, make_tiny_causal_lm, make_tiny_scalar

MEAN, STD = 0.5, 2.0
CHAT = [{"role": "system", "content": "be good"}, {"role": "user", "content": "why is it hot ?"}]
PROMPTS = {"a": "what is one plus two ?", "b": CHAT, "c": "who is he ?"}
ANSWERED: list[Answered] = [
    ("a", "three", False),
    ("b", "the sun is hot", False),
    ("b", "the sun is", True),
    ("c", "a good cat", False),
    ("c", "", True),
    ("a", "four and five and six", True),
    ("c", "", False),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A policy and two reward models: of its vocabulary, and of letters."""
    folder = tmp_path_factory.mktemp("models")
    make_tiny_causal_lm(folder / "policy", tied=True)
    for name, make in (("words", make_tiny_scalar), ("letters", make_letter_scalar)):
        make(folder / name)
        stats: dict[str, Any] = {
            "num_groups": 8,
            "num_pairs": 8,
            "pair_accuracy": 0.9,
            "ece": 0.1,
            "length_correlation": 0.0,
        }
        stats |= {"mean": MEAN, "std": STD, "data_fingerprint": "f"}
        (folder / name / "preceptor_reward.json").write_text(json.dumps(stats))
    rows = [{"key": key, "prompt": prompt} for key, prompt in PROMPTS.items()]
    (folder / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def close(found: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(found, expected, atol=5e-5, rtol=0.0)


def prompts_in(folder: Path, **changes: Any) -> PromptDataConfig:
    return PromptDataConfig(path=str(folder / "prompts.jsonl"), id_column="key", **changes)


def reward_model(folder: Path, name: str, **changes: Any) -> RewardModelConfig:
    return RewardModelConfig.model_validate({"model": str(folder / name), **changes})


def expected_scores(model: Path, sequences: Sequence[Sequence[int]]) -> torch.Tensor:
    """One sequence at a time: the classifier's own answer, normalised."""
    network = AutoModelForSequenceClassification.from_pretrained(model, dtype=torch.float32)
    with torch.no_grad():
        raw = [network(torch.tensor([list(ids)])).logits[0, 0] for ids in sequences]
    return (torch.stack(raw) - MEAN) / STD


def chat_texts(answered: Sequence[Answered]) -> list[str]:
    """As LETTER_TEMPLATE and stage `reward` write them, by hand: up to the end of the answer's text, or its end token."""
    texts = []
    for prompt_id, answer, cut_off in answered:
        prompt = PROMPTS[prompt_id]
        messages = prompt if isinstance(prompt, list) else [{"role": "user", "content": prompt}]
        before = "".join(f"<{message['role']}>\n{message['content']}<end>\n" for message in messages)
        texts.append(f"{before}<assistant>\n{answer}{'' if cut_off else '<end>'}")
    return texts


def token_ids(model: Path, texts: Sequence[str]) -> list[list[int]]:
    tokenizer = AutoTokenizer.from_pretrained(model)
    return [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]


def test_the_policys_tokens_are_read_as_they_are(folder: Path, tmp_path: Path) -> None:
    data = prompts_in(folder)
    arguments = (reward_model(folder, "words"), data, str(folder / "policy"), ANSWERED, [range(7)])
    found = run_ranks(score, 1, tmp_path, *arguments)[0]
    wave = trajectories(ANSWERED, str(folder / "policy"), data)
    bounds = wave.cu_lengths.tolist()
    sequences = [wave.tokens[start:end].tolist() for start, end in pairwise(bounds)]
    close(found["scores"], expected_scores(folder / "words", sequences))
    assert ROWS_FINGERPRINT not in found["facts"], "no text is read"
    close(found["texts"], found["scores"])


def test_another_tokenizer_reads_the_texts(folder: Path, tmp_path: Path) -> None:
    order = [5, 0, 1, 6, 2, 3, 4]
    arguments = (reward_model(folder, "letters"), prompts_in(folder), str(folder / "policy"), ANSWERED, [order])
    found = run_ranks(score, 1, tmp_path, *arguments)[0]
    texts = chat_texts([ANSWERED[i] for i in order])
    expected = expected_scores(folder / "letters", token_ids(folder / "letters", texts))
    close(found["scores"], expected)
    close(found["texts"], expected)
    assert ROWS_FINGERPRINT in found["facts"], "its rows are compared with those that were checked"


def test_another_template_over_the_same_vocabulary_reads_the_texts(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder / "words", tmp_path / "other")
    template = "{% for m in messages %}{{ m['content'] }} {{ eos_token }}{% endfor %}"
    (tmp_path / "other" / "chat_template.jinja").write_text(template)
    config = reward_model(tmp_path, "other")
    found = run_ranks(score, 1, tmp_path, config, prompts_in(folder), str(folder / "policy"), ANSWERED[:3], [range(3)])
    texts = [
        f"{PROMPTS['a']} <eos>three <eos>",
        "be good <eos>why is it hot ? <eos>the sun is hot <eos>",
        "be good <eos>why is it hot ? <eos>the sun is",
    ]
    expected = expected_scores(folder / "words", token_ids(folder / "words", texts))
    close(found[0]["scores"], expected)


def test_without_a_template_a_conversation_is_written_as_hh_rlhf_does(folder: Path, tmp_path: Path) -> None:
    config = reward_model(folder, "letters", chat_template=False)
    found = run_ranks(score, 1, tmp_path, config, prompts_in(folder), str(folder / "policy"), ANSWERED[:3], [range(3)])
    dialogue = "\n\nsystem: be good\n\nHuman: why is it hot ?\n\nAssistant: the sun is"
    texts = [f"{PROMPTS['a']}three<end>", f"{dialogue} hot<end>", dialogue]
    expected = expected_scores(folder / "letters", token_ids(folder / "letters", texts))
    close(found[0]["scores"], expected)


@pytest.mark.slow
@pytest.mark.parametrize("zero_stage", [0, 3])
def test_ranks_with_unequal_texts_stay_in_lockstep(folder: Path, tmp_path: Path, zero_stage: int) -> None:
    """The budget takes one or two answers: the first rank has several micro-batches, the second one, then none. Only the ranks of a sharded
    model wait for each other."""
    config = reward_model(folder, "letters", engine={"zero_stage": zero_stage, "micro_batch_tokens": 80})
    texts = chat_texts(ANSWERED)
    expected = expected_scores(folder / "letters", token_ids(folder / "letters", texts))
    for shares in ([[0, 1, 2, 4, 5], [6, 3]], [list(range(7)), []]):
        arguments = (config, prompts_in(folder), str(folder / "policy"), ANSWERED, shares)
        ranks = run_ranks(score, 2, tmp_path, *arguments)
        for mine, found in zip(shares, ranks, strict=True):
            close(found["scores"], expected[mine])
            close(found["texts"], expected[mine])
            assert all(tokens <= 80 for _, tokens in found["forwards"])
        first, second = (found["forwards"] for found in ranks)
        assert len(first) >= 3
        assert (len(second) == len(first)) == (zero_stage == 3)
        assert ((0, 1) in second) == (zero_stage == 3), "dummies fill up"


@pytest.mark.parametrize(
    ("changes", "allowed"),
    [
        ({"engine": {"micro_batch_tokens": 60}}, "reward.model.engine.micro_batch_tokens"),
        ({}, "the window of"),
    ],
)
def test_an_answer_too_long_for_the_model_stops_the_step(
    folder: Path, tmp_path: Path, changes: dict[str, Any], allowed: str
) -> None:
    from actors.data.prompts import read_prompts
    from actors.data.reward_reader import RewardReader

    shutil.copytree(folder / "letters", tmp_path / "letters")
    path = tmp_path / "letters" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"max_position_embeddings": 60}))
    source = folder if changes else tmp_path
    reader = RewardReader(reward_model(source, "letters", **changes), prompts_in(folder))
    prompt = next(prompt for prompt in read_prompts(prompts_in(folder))[1] if prompt.id == "c")
    fits = "x" * (60 - len("who is he ?") - 7)
    assert [len(ids) for ids in reader.encode([prompt], [fits], [False])] == [60]
    with pytest.raises(
        RewardFailed, match="prompt and answer have 61 tokens of the reward model's; allowed: 1 to 60"
    ) as told:
        reader.encode([prompt, prompt], [fits, fits + "x"], [False, False])
    assert told.value.prompt_id == "c"
    assert allowed in told.value.reason
