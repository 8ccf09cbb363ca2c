"""An engine that answers with a model's own weights and hands out texts, for people to read and judges to judge.

Legend: `K` answers to one prompt.
"""

from __future__ import annotations

from dataclasses import dataclass

from actors.rollout import Rollout, RolloutReport
from actors.tasks import GenerationUnit


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptAnswers:
    """What one model answered to one prompt."""

    texts: tuple[str, ...]
    """[K] special tokens left out."""
    num_tokens: tuple[int, ...]
    """[K] end token included."""
    truncated: tuple[bool, ...]
    """[K] cut off by the length limit."""


class Answerer(Rollout):
    """One engine without weight syncs."""

    def start(self) -> RolloutReport:
        from actors.data.tokenizer import load_tokenizer

        self._tokenizer = load_tokenizer(self._model)
        return super().start()

    def answer(self, unit: GenerationUnit) -> list[PromptAnswers]:
        """Answers to each of the unit's prompts, in their order."""
        from actors.data.answers import response_texts

        trajectories, summary = self.generate(unit)
        texts = response_texts(trajectories, range(len(summary.lengths)), self._tokenizer)
        num_answers = unit.responses_per_prompt
        of_prompts = [slice(start, start + num_answers) for start in range(0, len(texts), num_answers)]
        return [
            PromptAnswers(
                texts=tuple(texts[answers]),
                num_tokens=summary.num_loss_tokens[answers],
                truncated=summary.truncated[answers],
            )
            for answers in of_prompts
        ]
