"""A worker of stage `rank`: reads a wave's answers, has a user's function say how good each is, and writes them down as rankings.

Legend: `K` answers to one prompt.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from actors.context import RankContext
from actors.errors import PreceptorError
from actors.reward_worker import RewardWorker
from actors.store import read_bytes, run_path, write_whole
from actors.tasks import WaveShard, WrittenFile
from configs.schema.data import PromptDataConfig
from configs.schema.rank import AnnotatorConfig

if TYPE_CHECKING:
    from actors.algorithms.records import Trajectories


@dataclass(frozen=True, slots=True, kw_only=True)
class RankedFile:
    """What became of a wave."""

    file: WrittenFile
    mean: float
    """Of all answers' numbers."""
    tied_frac: float
    """Share of prompts whose answers are all tied: they teach nothing."""
    distinct_frac: float
    """Share of answers that differ from the earlier ones to the same prompt."""


class Annotator(RewardWorker):
    """Ranks the answers to each prompt."""

    def __init__(self, context: RankContext, annotator: AnnotatorConfig, data: PromptDataConfig, model: str) -> None:
        super().__init__(context, annotator, data, model)
        self._tie_margin = annotator.tie_margin

    def rank(self, shard: WaveShard, num_answers: int, name: str, trajectories: Trajectories) -> RankedFile:
        """Writes the wave's rankings to the file `name` under the run directory, one JSON line a prompt.

        `num_answers` consecutive trajectories of the wave answer one prompt.

        Raises:
            RewardFailed: with the prompt's id, where a call failed more often than `retries` allows.
        """
        texts = self.responses(shard, trajectories)
        scores = self.numbers(shard, trajectories, texts)
        lines, ties, distinct = [], 0, 0
        for start in range(0, len(shard.indices), num_answers):
            answers = slice(start, start + num_answers)
            prompt = self._prompts[trajectories.prompt_ids[shard.indices[start]]]
            ranks = ranks_of_scores(scores[answers], tie_margin=self._tie_margin)
            ties += len(set(ranks)) == 1
            distinct += len(set(texts[answers]))
            row = {
                "id": prompt.id,
                "prompt": prompt.content,
                "responses": texts[answers],
                "ranks": ranks,
                "scores": scores[answers],
            }
            lines.append(json.dumps(row, ensure_ascii=False) + "\n")
        data = "".join(lines).encode()
        write_whole(run_path(self.context.run_dir) / name, data)
        return RankedFile(
            file=WrittenFile(name=name, sha256=hashlib.sha256(data).hexdigest(), num_bytes=len(data)),
            mean=sum(scores) / len(scores),
            tied_frac=ties / len(lines),
            distinct_frac=distinct / len(scores),
        )

    def combine(self, files: Sequence[WrittenFile], out: str) -> None:
        """Writes the rankings of all waves into one file.

        Raises:
            PreceptorError: for a wave's file that is not what the ledger says.
        """
        parts = []
        for file in files:
            path = run_path(self.context.run_dir) / file.name
            data = read_bytes(path) if path.exists() else b""
            if hashlib.sha256(data).hexdigest() != file.sha256:
                raise PreceptorError(f"{path} is missing or damaged: its content is not what the ledger says")
            parts.append(data)
        write_whole(run_path(out), b"".join(parts))


def ranks_of_scores(scores: Sequence[float], *, tie_margin: float) -> list[int]:
    """[K] ranks from 1, which is the best. Walking down from the best, an answer opens the next rank where it lies more than `tie_margin`
    below the one that opened the last: 3, 2.9, 1 with a margin of 0.5 give 1, 1, 2."""
    ranks = [0] * len(scores)
    rank, opened = 0, float("inf")
    for index in sorted(range(len(scores)), key=lambda i: -scores[i]):
        if opened - scores[index] > tie_margin:
            rank, opened = rank + 1, scores[index]
        ranks[index] = rank
    return ranks
