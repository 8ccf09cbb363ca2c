"""Judges of texts: a reward model or a function, each with the same call, so that whoever asks need not know which.

Legend: `B` answers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from actors.reward import Reward
from actors.reward_worker import ROWS_FINGERPRINT, RewardWorker
from actors.tasks import RoleReport


class ModelJudge(Reward):
    """A reward model that reads every answer as text: those that answer may have different tokenizers."""

    def start(self) -> RoleReport:
        report = super().start()
        return replace(report, facts={**report.facts, ROWS_FINGERPRINT: self._read_prompts()})

    def judge(self, prompt_ids: Sequence[str], responses: Sequence[str], truncated: Sequence[bool]) -> list[float]:
        """[B] scores of the responses to the prompts of these ids (collective; a rank may have no answers).

        Raises:
            RewardFailed: as `Reward.score_texts`.
        """
        assert self.prompts is not None
        return self.score_texts([self.prompts[one] for one in prompt_ids], responses, truncated).tolist()


class FunctionJudge(RewardWorker):
    """A function as it judges in stage `rank`."""

    def judge(self, prompt_ids: Sequence[str], responses: Sequence[str], truncated: Sequence[bool]) -> list[float]:
        """[B] as `ModelJudge.judge`. A function is not told that an answer was truncated."""
        del truncated
        return self.score_texts(prompt_ids, responses)
