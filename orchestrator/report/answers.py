"""Answers of stages `rank`, and what two such stages that answered the same prompts say of the models that answered.

Legend: `K` answers of one stage to one prompt.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from actors.errors import PreceptorError
from configs.schema.rank import RankStage
from orchestrator.wins import win_frac

SHOWN_PROMPTS = 12


@dataclass(frozen=True, slots=True, kw_only=True)
class RankedRow:
    """One prompt of stage `rank`."""

    id: str
    prompt: str
    responses: tuple[str, ...]
    """[K]"""
    ranks: tuple[float, ...]
    """[K] 1 is the best."""
    scores: tuple[float, ...]
    """[K] what the annotator said."""

    @property
    def key(self) -> tuple[str, str]:
        """Where ids are row numbers, other data has the same ones."""
        return self.id, self.prompt


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """One answer."""

    source: str
    """Whose."""
    text: str
    score: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Exchange:
    """A prompt and one answer of each of several."""

    prompt: str
    answers: tuple[Answer, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class AnswerFigures:
    """One `rank` stage in a comparison, over the prompts that all of its stages answered."""

    stage: str
    num_answers: int
    mean_score: float
    win_frac: float | None
    """Share of pairs (its answer, the first stage's answer to the same prompt) that it wins, ties half; None for the first stage."""
    win_error: float | None
    """Standard error of that, over prompts; None for the first stage and for a single prompt."""
    distinct_frac: float
    """Share of answers that differ from the earlier ones to the same prompt."""
    mean_words: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """`rank` stages that had the same annotator judge answers to the same prompts."""

    num_prompts: int
    figures: tuple[AnswerFigures, ...]
    exchanges: tuple[Exchange, ...]
    """The first prompts, with each stage's first answer: nothing is picked."""


def read_rankings(files: Iterable[Path]) -> tuple[RankedRow, ...]:
    """All rows of files that stage `rank` wrote.

    Raises:
        PreceptorError: naming file and line, where one is damaged.
    """
    rows = []
    for path in files:
        # not `splitlines`: what a model wrote may hold other line ends than those of the file
        for number, line in enumerate(path.read_bytes().removesuffix(b"\n").split(b"\n"), start=1):
            try:
                rows.append(_row(json.loads(line)))
            except (ValueError, TypeError, KeyError) as error:
                raise PreceptorError(f"{path}:{number} is no ranking: {type(error).__name__}: {error}") from error
    return tuple(rows)


def _row(found: dict[str, Any]) -> RankedRow:
    prompt = found["prompt"]
    if not isinstance(prompt, str):
        prompt = "\n\n".join(f"{message['role']}: {message['content']}" for message in prompt)
    row = RankedRow(
        id=str(found["id"]),
        prompt=prompt,
        responses=tuple(str(response) for response in found["responses"]),
        ranks=tuple(float(rank) for rank in found["ranks"]),
        scores=tuple(float(score) for score in found["scores"]),
    )
    if not len(row.responses) == len(row.ranks) == len(row.scores) > 0:
        raise ValueError(f"{len(row.responses)} answers, {len(row.ranks)} ranks, {len(row.scores)} scores")
    return row


def tied_frac(rows: Sequence[RankedRow]) -> float:
    """Share of prompts whose answers are all tied."""
    return sum(len(set(row.ranks)) == 1 for row in rows) / len(rows)


def distinct_frac(rows: Sequence[RankedRow]) -> float:
    """Share of answers that differ from the earlier ones to the same prompt."""
    return sum(len(set(row.responses)) for row in rows) / sum(len(row.responses) for row in rows)


def compare(stages: Sequence[tuple[str, RankStage, Sequence[RankedRow]]]) -> Comparison | None:
    """The first `rank` stage that a later one can be compared with, and all those; None where there are no two."""
    for at, (_, judged, rows) in enumerate(stages):
        first = {row.key for row in rows}
        alike = [
            (name, {row.key: row for row in later})
            for name, config, later in stages[at:]
            if _judge(config) == _judge(judged) and not first.isdisjoint(row.key for row in later)
        ]
        keys = [row.key for row in rows if all(row.key in by_key for _, by_key in alike)]
        if len(alike) > 1 and keys:
            found = [(name, [by_key[key] for key in keys]) for name, by_key in alike]
            return _comparison(found, judged.annotator.tie_margin)
    return None


def _judge(config: RankStage) -> tuple[str, float]:
    return config.annotator.function, config.annotator.tie_margin


def _comparison(stages: Sequence[tuple[str, list[RankedRow]]], tie_margin: float) -> Comparison:
    _, first = stages[0]
    wins: list[tuple[float | None, float | None]] = [(None, None)]
    for _, rows in stages[1:]:
        wins.append(win_frac([row.scores for row in first], [row.scores for row in rows], tie_margin=tie_margin))
    return Comparison(
        num_prompts=len(first),
        figures=tuple(_figures(name, rows, win) for (name, rows), win in zip(stages, wins, strict=True)),
        exchanges=tuple(
            Exchange(
                prompt=of_prompt[0].prompt,
                answers=tuple(
                    Answer(source=name, text=row.responses[0], score=row.scores[0])
                    for (name, _), row in zip(stages, of_prompt, strict=True)
                ),
            )
            for of_prompt in zip(*(rows[:SHOWN_PROMPTS] for _, rows in stages), strict=True)
        ),
    )


def _figures(name: str, rows: Sequence[RankedRow], win: tuple[float | None, float | None]) -> AnswerFigures:
    scores = [score for row in rows for score in row.scores]
    words = [len(response.split()) for row in rows for response in row.responses]
    return AnswerFigures(
        stage=name,
        num_answers=len(scores),
        mean_score=sum(scores) / len(scores),
        win_frac=win[0],
        win_error=win[1],
        distinct_frac=distinct_frac(rows),
        mean_words=sum(words) / len(words),
    )
