"""Answers of a PPO stage early and late: of its evaluations, or of its stored trajectories."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from actors.store import read_bytes
from orchestrator.evaluation import Evaluation, read_answers
from orchestrator.ledger import LedgerEntry
from orchestrator.report.answers import SHOWN_PROMPTS, Answer, Exchange

COLUMNS = ("prompt_id", "prompt", "response", "score")


@dataclass(frozen=True, slots=True, kw_only=True)
class EarlyAndLate:
    """Exchanges of one answer each, as many early as late."""

    early: tuple[Exchange, ...]
    late: tuple[Exchange, ...]
    same_prompts: bool
    """Of the two at one place; otherwise the two have nothing to do with each other."""
    held_out: bool = False
    """Nothing was learned from these prompts."""


def held_out_answers(folder: Path, evaluations: Sequence[Evaluation]) -> EarlyAndLate | None:
    """Answers to the first held-out prompts in the first evaluation and in the last; None where there are no two, and where the answers
    have been removed.

    Raises:
        PreceptorError: naming a file of answers that is damaged.
    """
    shown = (*evaluations[:1], *evaluations[-1:])
    if len(evaluations) < 2 or not all((folder / name).exists() for one in shown for name in one.files):
        return None
    early, late = (_evaluated(folder, evaluation) for evaluation in shown)
    common = [prompt_id for prompt_id in early if prompt_id in late][:SHOWN_PROMPTS]
    return EarlyAndLate(
        early=tuple(early[one] for one in common),
        late=tuple(late[one] for one in common),
        same_prompts=True,
        held_out=True,
    )


def _evaluated(folder: Path, evaluation: Evaluation) -> dict[str, Exchange]:
    """An evaluation's prompts by id, in their order, each with its first answer."""
    source = f"step {evaluation.step}" if evaluation.step else "before step 1"
    found: dict[str, Exchange] = {}
    for row in read_answers(folder, evaluation):
        answer = Answer(source=source, text=row["response"], score=row["judged"])
        found.setdefault(row["prompt_id"], Exchange(prompt=row["prompt"], answers=(answer,)))
    return {one: found[one] for one in evaluation.judged if one in found}


def early_and_late(run_dir: Path, entries: Sequence[LedgerEntry]) -> EarlyAndLate | None:
    """Prompts of the last step with the answers of that step and of the first one that had them. Where the last step's prompts were all
    new, the first prompts of the first step and of the last, each with its own answer. None for less than two steps, and where the
    trajectories have been removed.
    """
    if len(entries) < 2:
        return None
    first, last = entries[0], entries[-1]
    had = {prompt_id: entry for entry in reversed(entries[:-1]) for prompt_id in _prompt_ids(entry)}
    common = [prompt_id for prompt_id in dict.fromkeys(_prompt_ids(last)) if prompt_id in had][:SHOWN_PROMPTS]
    needed = {entry.step: entry for entry in (had[one] for one in common)} if common else {first.step: first}
    steps = {entry.step: _exchanges(run_dir, entry) for entry in (*needed.values(), last)}
    if not all(steps.values()):
        return None
    late = steps[last.step]
    if common:
        early = tuple(steps[had[one].step][one] for one in common)
        return EarlyAndLate(early=early, late=tuple(late[one] for one in common), same_prompts=True)
    # each place takes the room of two prompts
    pairs = list(zip(steps[first.step].values(), late.values(), strict=False))[: SHOWN_PROMPTS // 2]
    return EarlyAndLate(early=tuple(a for a, _ in pairs), late=tuple(b for _, b in pairs), same_prompts=False)


def _prompt_ids(entry: LedgerEntry) -> list[str]:
    return [prompt_id for wave in entry.waves for prompt_id in wave.prompt_ids]


def _table(path: Path) -> list[dict[str, Any]]:
    import pyarrow.parquet as pq

    rows: list[dict[str, Any]] = pq.read_table(io.BytesIO(read_bytes(path)), columns=list(COLUMNS)).to_pylist()
    return rows


def _exchanges(run_dir: Path, entry: LedgerEntry) -> dict[str, Exchange]:
    """A step's prompts by id, each with its first answer, in the order of waves and places in them; none where a file is missing."""
    paths = [run_dir / file.name for of_wave in entry.trajectory_files for file in of_wave]
    if not all(path.exists() for path in paths):
        return {}
    found: dict[str, Exchange] = {}
    for row in (row for path in paths for row in _table(path)):
        answer = Answer(source=f"step {entry.step}", text=row["response"], score=row["score"])
        found.setdefault(row["prompt_id"], Exchange(prompt=row["prompt"], answers=(answer,)))
    return found
