"""Held-out evaluations: what ranks say, summed up by hand. With real roles: tests/test_end_to_end.py, tests/resilience/test_exact.py."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from actors.errors import PreceptorError
from actors.tasks import AppraisalSummary, Busy, WaveSummary
from orchestrator.evaluation import Evaluation, evaluation_file, merged, read_evaluation


def wave(number: int, *prompt_ids: str) -> WaveSummary:
    return WaveSummary(
        wave=number,
        lengths=(9,) * len(prompt_ids),
        num_loss_tokens=(4,) * len(prompt_ids),
        prompt_ids=prompt_ids,
        truncated=(True,) + (False,) * (len(prompt_ids) - 1),
        token_digest="",
        busy=Busy(started=0.0, seconds=1.0),
    )


def said(prompt_ids: str, scores: tuple[float, ...], kl: tuple[float, ...] | None) -> AppraisalSummary:
    return AppraisalSummary(
        prompt_ids=tuple(prompt_ids), scores=scores, judged=tuple(10 * score for score in scores), kl=kl, file=None
    )


WAVES = [wave(0, "a", "a", "b", "b"), wave(1, "c", "c")]
PARTS = [said("ab", (1.0, 2.0), (0.5, 0.5)), said("ba", (3.0, 4.0), (0.0, 1.0)), said("cc", (0.0, 2.0), (1.0, 3.0))]
"""The first wave is split over two ranks, which have not got its answers in order."""
FIRST = Evaluation(step=0, metrics={}, judged={"a": [40.0, 50.0], "b": [0.0, 0.0], "c": [20.0, 20.0]})


def test_what_ranks_say_is_summed_up_by_prompt() -> None:
    """a: 10 and 40 against 40 and 50 is half a win of 4; b wins 4 of 4; c: 0 and 20 against 20 twice is 1 of 4."""
    found = merged(4, WAVES, PARTS, FIRST, has_judge=True)
    assert found.judged == {"a": [10.0, 40.0], "b": [20.0, 30.0], "c": [0.0, 20.0]}
    assert found.metrics == {
        "held_out/score": 2.0,
        "held_out/judged": 20.0,
        "held_out/response_tokens": 4.0,
        "held_out/truncated_frac": pytest.approx(2 / 6),
        "held_out/kl": 1.0,
        "held_out/win_rate": pytest.approx((0.125 + 1 + 0.25) / 3),
        "held_out/win_rate_error": pytest.approx(0.27322, abs=1e-5),
    }
    assert found.described() == (
        "held out, step 4: score 2.000, judged 20.000, KL 1.000, win rate 0.458 +- 0.273 against the first weights"
    )


def test_the_first_evaluation_has_nothing_to_win_against() -> None:
    parts = [said("aabb", (1.0, 2.0, 3.0, 4.0), None), said("cc", (0.0, 2.0), None)]
    found = merged(0, WAVES, parts, None, has_judge=False)
    assert found.metrics.keys() == {"held_out/score", "held_out/response_tokens", "held_out/truncated_frac"}
    assert found.described() == "held out, step 0: score 2.000"


def test_other_prompts_than_those_of_the_first_evaluation_are_no_comparison() -> None:
    first = Evaluation(step=0, metrics={}, judged={"a": [1.0]})
    with pytest.raises(PreceptorError, match="has other prompts than that of step 2"):
        merged(2, WAVES, PARTS, first, has_judge=True)


@pytest.mark.parametrize("text", [None, "{", json.dumps({"step": 0})])
def test_a_missing_or_damaged_evaluation_is_named(tmp_path: Path, text: str | None) -> None:
    path = evaluation_file(tmp_path, 0)
    if text is not None:
        path.write_text(text)
    with pytest.raises(PreceptorError, match=f"evaluation {path} is missing or damaged"):
        read_evaluation(tmp_path, 0)
