"""Stages that answered the same prompts: who is compared with whom, and win rates by hand."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from actors.errors import PreceptorError
from configs.schema.rank import RankStage
from orchestrator.report.answers import (
    RankedRow,
    compare,
    distinct_frac,
    read_rankings,
    tied_frac,
)


def row(key: str, scores: Sequence[float], *, prompt: str = "p", responses: Sequence[str] = ()) -> RankedRow:
    texts = tuple(responses) or tuple(f"answer {at}" for at in range(len(scores)))
    order = sorted(set(scores), reverse=True)
    ranks = tuple(float(order.index(score) + 1) for score in scores)
    return RankedRow(id=key, prompt=prompt, responses=texts, ranks=ranks, scores=tuple(scores))


def stage(function: str = "judges:good", tie_margin: float = 0.0) -> RankStage:
    return RankStage.model_validate(
        {
            "stage": "rank",
            "run": {"dir": "runs/x"},
            "data": {"path": "p.jsonl"},
            "policy": {"model": "m"},
            "rollout": {"responses_per_prompt": 2},
            "annotator": {"function": function, "tie_margin": tie_margin},
        }
    )


def test_ties_and_repetitions() -> None:
    rows = [row("a", [1, 1], responses=("x", "x")), row("b", [1, 2], responses=("x", "y"))]
    assert (tied_frac(rows), distinct_frac(rows)) == (0.5, 0.75)


def test_stages_over_the_same_prompts_are_compared() -> None:
    before = [row("a", [0, 1], responses=("one two", "")), row("b", [3, 3])]
    after = [row("b", [4, 4]), row("c", [9, 9]), row("a", [2, 2], responses=("same", "same"))]
    found = compare([("before", stage(), before), ("after", stage(), after)])
    assert found is not None
    assert found.num_prompts == 2
    first, last = found.figures
    assert (first.source, first.mean_score, first.win_frac, first.mean_words) == ("before", 1.75, None, 6 / 4)
    assert (last.source, last.mean_score, last.win_frac, last.distinct_frac) == ("after", 3.0, 1.0, 0.75)
    # in the order of the first stage, whatever that of the others
    assert [[answer.text for answer in exchange.answers] for exchange in found.exchanges] == [
        ["one two", "same"],
        ["answer 0", "answer 0"],
    ]


@pytest.mark.parametrize(
    ("judge", "rows"),
    [
        (stage("judges:other"), [row("a", [1, 2])]),
        (stage(tie_margin=0.5), [row("a", [1, 2])]),
        (stage(), [row("b", [1, 2])]),
        (stage(), [row("a", [1, 2], prompt="another")]),
        (stage(), []),
    ],
    ids=["annotator", "margin", "ids", "prompts", "nothing yet"],
)
def test_what_differs_is_not_compared(judge: RankStage, rows: list[RankedRow]) -> None:
    assert compare([("before", stage(), [row("a", [1, 2])]), ("after", judge, rows)]) is None


def test_a_stage_that_samples_other_prompts_stands_aside() -> None:
    same = [row("a", [1, 2])]
    found = compare([("sample", stage(), [row("z", [1, 2])]), ("before", stage(), same), ("after", stage(), same)])
    assert found is not None
    assert [one.source for one in found.figures] == ["before", "after"]


def test_rankings_are_read_with_prompts_of_both_kinds(tmp_path: Path) -> None:
    file = tmp_path / "r.jsonl"
    rows = [
        {"id": 7, "prompt": "text", "responses": ["x"], "ranks": [1], "scores": [0.5]},
        {
            "id": "8",
            "prompt": [{"role": "user", "content": "hello\u2028there"}],
            "responses": ["x"],
            "ranks": [1],
            "scores": [0],
        },
    ]
    file.write_text("".join(json.dumps(one, ensure_ascii=False) + "\n" for one in rows), "utf-8")
    found = read_rankings([file])
    assert [(one.id, one.prompt) for one in found] == [("7", "text"), ("8", "user: hello\u2028there")]


@pytest.mark.parametrize(
    "line", ["{", "[]", '{"id": "0"}', '{"id": "0", "prompt": "p", "responses": ["x"], "ranks": [], "scores": [1]}']
)
def test_a_damaged_line_is_named(line: str, tmp_path: Path) -> None:
    file = tmp_path / "r.jsonl"
    file.write_text(f"{line}\n", "utf-8")
    with pytest.raises(PreceptorError, match=r"r\.jsonl:1 is no ranking"):
        read_rankings([file])
