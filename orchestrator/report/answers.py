"""Answers to the same prompts, of stages `rank` or of models that are compared, and what they say of those that answered.

Legend: `K` answers of one source to one prompt.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice, zip_longest
from pathlib import Path
from typing import Any

from actors.errors import PreceptorError
from actors.store import read_bytes
from configs.schema.rank import RankStage
from orchestrator.wins import win_frac

SHOWN_PROMPTS = 12


@dataclass(frozen=True, slots=True, kw_only=True)
class AnsweredRow:
    """One prompt, answered."""

    id: str
    prompt: str
    responses: tuple[str, ...]
    """[K]"""
    scores: tuple[float, ...]
    """[K] what the judge said; empty where nobody judged."""
    num_tokens: tuple[int, ...] = ()
    """[K] end token included; empty where it was not kept."""
    truncated: tuple[bool, ...] = ()
    """[K] cut off by the length limit; empty where it was not kept."""

    @property
    def key(self) -> tuple[str, str]:
        """Where ids are row numbers, other data has the same ones."""
        return self.id, self.prompt


@dataclass(frozen=True, slots=True, kw_only=True)
class RankedRow(AnsweredRow):
    """One prompt of stage `rank`."""

    ranks: tuple[float, ...]
    """[K] 1 is the best."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """One answer. What is None is not known."""

    source: str
    """Whose."""
    text: str
    score: float | None
    num_tokens: int | None = None
    truncated: bool | None = None
    better: bool = False
    """It is the first of the source that, of two, wins more of the pairs of answers that are shown."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Exchange:
    """A prompt and answers of each of several, source by source."""

    prompt: str
    answers: tuple[Answer, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class AnswerFigures:
    """One source in a comparison, over the prompts that all of them answered."""

    source: str
    num_answers: int
    mean_score: float | None
    """None where nobody judged."""
    win_frac: float | None
    """Share of pairs (its answer, the first source's answer to the same prompt) that it wins, ties half; None for the first source."""
    win_error: float | None
    """Standard error of that, over prompts; None for the first source and for a single prompt."""
    distinct_frac: float
    """Share of answers that differ from the earlier ones to the same prompt."""
    mean_words: float
    mean_tokens: float | None
    truncated_frac: float | None
    """Share of answers that the length limit cut off."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """Several sources' answers to the same prompts, judged by the same judge."""

    num_prompts: int
    figures: tuple[AnswerFigures, ...]
    exchanges: tuple[Exchange, ...]
    """In the order of the prompts: nothing is picked."""


def read_rankings(files: Iterable[Path]) -> tuple[RankedRow, ...]:
    """All rows of files that stage `rank` wrote.

    Raises:
        PreceptorError: naming file and line, where one is damaged.
    """
    rows = []
    for path in files:
        # not `splitlines`: what a model wrote may hold other line ends than those of the file
        for number, line in enumerate(read_bytes(path).removesuffix(b"\n").split(b"\n"), start=1):
            try:
                rows.append(_row(json.loads(line)))
            except (ValueError, TypeError, KeyError) as error:
                raise PreceptorError(f"{path}:{number} is no ranking: {type(error).__name__}: {error}") from error
    return tuple(rows)


def prompt_text(content: str | Sequence[Mapping[str, Any]]) -> str:
    """A prompt as it is shown: its text, or the messages before the answer with who says them."""
    if isinstance(content, str):
        return content
    return "\n\n".join(f"{message['role']}: {message['content']}" for message in content)


def _row(found: dict[str, Any]) -> RankedRow:
    row = RankedRow(
        id=str(found["id"]),
        prompt=prompt_text(found["prompt"]),
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


def distinct_frac(rows: Sequence[AnsweredRow]) -> float:
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
            return compare_rows(found, tie_margin=judged.annotator.tie_margin, prompts=SHOWN_PROMPTS, answers=1)
    return None


def _judge(config: RankStage) -> tuple[str, float]:
    return config.annotator.function, config.annotator.tie_margin


def compare_rows(
    sources: Sequence[tuple[str, Sequence[AnsweredRow]]], *, tie_margin: float, prompts: int, answers: int
) -> Comparison:
    """Sources with rows of the same prompts in the same order, at least one. Exchanges have the first `prompts` and `answers` of each."""
    _, first = sources[0]
    judged = bool(first[0].scores)
    wins: list[tuple[float | None, float | None]] = [(None, None)]
    for _, rows in sources[1:]:
        numbers = ([row.scores for row in first], [row.scores for row in rows])
        wins.append(win_frac(*numbers, tie_margin=tie_margin) if judged else (None, None))
    return Comparison(
        num_prompts=len(first),
        figures=tuple(_figures(name, rows, win) for (name, rows), win in zip(sources, wins, strict=True)),
        exchanges=tuple(
            _exchange([(name, rows[at]) for name, rows in sources], most=answers, tie_margin=tie_margin)
            for at in range(min(prompts, len(first)))
        ),
    )


def _exchange(sides: Sequence[tuple[str, AnsweredRow]], *, most: int, tie_margin: float) -> Exchange:
    scores = [row.scores[:most] for _, row in sides]
    share = win_frac(scores[:1], scores[1:], tie_margin=tie_margin)[0] if len(sides) == 2 and all(scores) else 0.5
    better = {0: share < 0.5, 1: share > 0.5}
    return Exchange(
        prompt=sides[0][1].prompt,
        answers=tuple(
            Answer(
                source=name,
                text=text,
                score=score,
                num_tokens=num_tokens,
                truncated=truncated,
                better=at == 0 and better.get(place, False),
            )
            for place, (name, row) in enumerate(sides)
            for at, (text, score, num_tokens, truncated) in enumerate(
                islice(zip_longest(row.responses, row.scores, row.num_tokens, row.truncated), most)
            )
        ),
    )


def _figures(name: str, rows: Sequence[AnsweredRow], win: tuple[float | None, float | None]) -> AnswerFigures:
    return AnswerFigures(
        source=name,
        num_answers=sum(len(row.responses) for row in rows),
        mean_score=_mean([score for row in rows for score in row.scores]),
        win_frac=win[0],
        win_error=win[1],
        distinct_frac=distinct_frac(rows),
        mean_words=_mean([len(response.split()) for row in rows for response in row.responses]) or 0.0,
        mean_tokens=_mean([number for row in rows for number in row.num_tokens]),
        truncated_frac=_mean([truncated for row in rows for truncated in row.truncated]),
    )


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None
