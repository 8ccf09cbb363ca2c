"""What is shown of two models' answers: figures by hand, the table, the page, the JSON."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from typing import Any

import pytest
from rich.console import Console

from configs.schema.compare import CompareConfig
from orchestrator.report.answers import AnsweredRow, compare_rows
from orchestrator.report.compared import Compared, compared_json, compared_page, print_compared, shortened
from tests.orchestrator.report.pages import HOSTILE, whole_page

Side = tuple[Sequence[str], Sequence[float]]
"""Responses and scores, of one model to one prompt."""


def row(at: int, prompt: str, side: Side) -> AnsweredRow:
    responses, scores = side
    return AnsweredRow(
        id=str(at),
        prompt=prompt,
        responses=tuple(responses),
        scores=tuple(scores),
        num_tokens=tuple(len(text.split()) + 1 for text in responses),
        truncated=tuple("..." in text for text in responses),
    )


def compared(exchanges: Sequence[tuple[str, Side, Side]], **judge: Any) -> Compared:
    rows = (
        tuple(row(at, prompt, side) for at, (prompt, side, _) in enumerate(exchanges)),
        tuple(row(at, prompt, side) for at, (prompt, _, side) in enumerate(exchanges)),
    )
    answers = len(rows[0][0].responses)
    config = CompareConfig.model_validate(
        {
            "models": ("models/first", "models/second"),
            "run": {"dir": "unused", "seed": 5},
            "data": {"path": "prompts.jsonl"},
            "rollout": {"responses_per_prompt": answers, "temperature": 0.5, "max_response_tokens": 8},
            **judge,
        }
    )
    comparison = compare_rows([("A", rows[0]), ("B", rows[1])], tie_margin=0.0, prompts=len(exchanges), answers=answers)
    return Compared(config=config, rows=rows, comparison=comparison, normalised=True)


MODEL = {"reward": {"model": {"model": "judges/r"}}}
ONE_EACH = [
    ("first question", (["yes"], [0.0]), (["no it is"], [1.0])),
    ("second question", (["a b ..."], [2.0]), (["same"], [2.0])),
    ("third question", ([""], [0.5]), (["less"], [-1.5])),
    ("fourth question", (["x"], [-1.0]), ([HOSTILE], [1.25])),
]


def printed(found: Compared, *, width: int = 100) -> list[str]:
    out = io.StringIO()
    print_compared(found, Console(file=out, width=width, highlight=False, markup=False, emoji=False))
    return out.getvalue().splitlines()


def test_figures_by_hand() -> None:
    """B wins 1, ties 1, loses 1, wins 1: 2.5 of 4; the deviations are .375, -.125, -.625, .375."""
    found = compared(ONE_EACH, **MODEL).comparison
    a, b = found.figures
    assert (a.mean_score, b.mean_score) == (1.5 / 4, 2.75 / 4)
    assert (a.win_frac, b.win_frac) == (None, 0.625)
    assert b.win_error == pytest.approx(((2 * 0.375**2 + 0.125**2 + 0.625**2) / 3 / 4) ** 0.5)
    assert (a.mean_tokens, a.truncated_frac) == ((2 + 4 + 1 + 2) / 4, 0.25)
    assert [[answer.better for answer in exchange.answers] for exchange in found.exchanges] == [
        [False, True],
        [False, False],
        [True, False],
        [False, True],
    ]


def test_several_answers_are_compared_in_all_pairs() -> None:
    """2 beats 1, ties 2; 0 loses to both: B wins 1.5 of 4."""
    found = compared([("p", (["a", "b"], [1, 2]), (["c", "d"], [2, 0]))], **MODEL)
    assert found.comparison.figures[1].win_frac == 1.5 / 4
    (exchange,) = found.comparison.exchanges
    assert [(answer.text, answer.better) for answer in exchange.answers] == [
        ("a", True),
        ("b", False),
        ("c", False),
        ("d", False),
    ]
    assert compared_page(found).index(">c<") < compared_page(found).index(">b<"), "first beside first"
    assert "1.5  mean of 2  better" in "\n".join(printed(found))


def test_the_terminal_shows_both_and_who_is_better_at_100_columns() -> None:
    lines = printed(compared(ONE_EACH, **MODEL))
    assert max(map(len, lines)) <= 100
    assert [line.split() for line in lines[:2]] == [["A", "models/first"], ["B", "models/second"]]
    text = "\n".join(lines)
    (first,) = [line for line in lines if "first question" in line]
    assert first.split() == ["first", "question", "0", "1", "better"]
    (second,) = [line for line in lines if "second question" in line]
    assert second.split() == ["second", "question", "2", "cut", "off", "2"]
    assert "(empty)" in text
    assert "1 answer each, temperature 0.5, at most 8 tokens, fp32, seed 5" in lines
    assert "judged by reward model judges/r, scores normalised" in lines
    assert lines[-1] == "B wins 62.5% ± 23.9 against A"


def test_the_terminal_shows_the_first_prompts_and_says_how_many_there_are_more() -> None:
    lines = printed(compared([(f"question {n} .", (["a"], []), (["b"], [])) for n in range(13)]))
    assert sum("question" in line for line in lines) == 10
    assert "and 3 more prompts in what --html and --json write" in lines


def test_long_and_hostile_texts_are_shortened_for_the_terminal() -> None:
    assert shortened("  one\n\ttwo ", 10) == "one two"
    assert shortened("word " * 10, 12) == "word word wo …"
    assert shortened("\x1b[31mred\x07", 20) == "\N{REPLACEMENT CHARACTER}[31mred\N{REPLACEMENT CHARACTER}"
    lines = printed(compared([("start " + "why " * 100 + "end ?", (["a"], []), (["b"], []))]))
    assert "end ?" in "\n".join(lines)
    assert "start" not in "\n".join(lines)


def test_the_page_has_every_answer_and_needs_nothing_else() -> None:
    text = compared_page(compared(ONE_EACH, **MODEL))
    page = whole_page(text)
    for said in ("models/first", "models/second", "62.5% ± 23.9", "reward model judges/r, scores normalised", HOSTILE):
        assert said in page.text
    assert page.text.count("better\n") == 3
    assert "4 tokens, cut off" in page.text
    assert "an empty answer" in page.text
    assert "prefers-color-scheme: dark" in text


def test_without_a_judge_there_is_no_verdict() -> None:
    found = compared([(prompt, (a, []), (b, [])) for prompt, (a, _), (b, _) in ONE_EACH])
    page, out = whole_page(compared_page(found)), "\n".join(printed(found))
    assert found.comparison.figures[1].win_frac is None
    for text in (page.text, out):
        assert "obody judged" in text
        assert "cut off" in text
        assert "better" not in text
        assert "score" not in text
        assert "win" not in text
    whole = json.loads(compared_json(found))
    assert whole["judge"] is None
    assert whole["prompts"][0]["answers"]["A"] == [{"text": "yes", "score": None, "tokens": 2, "cut_off": False}]


def test_the_json_has_what_was_asked_and_answered() -> None:
    whole = json.loads(compared_json(compared(ONE_EACH, annotator={"function": "judges:good"})))
    assert whole["models"] == {"A": "models/first", "B": "models/second"}
    assert whole["judge"] == "function judges:good"
    assert (whole["seed"], whole["rollout"]["temperature"], whole["data"]["path"]) == (5, 0.5, "prompts.jsonl")
    assert whole["figures"]["B"]["win_frac"] == 0.625
    assert [prompt["prompt"] for prompt in whole["prompts"]] == [prompt for prompt, _, _ in ONE_EACH]
    assert whole["prompts"][1]["answers"]["A"] == [{"text": "a b ...", "score": 2.0, "tokens": 4, "cut_off": True}]
