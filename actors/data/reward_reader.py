"""How a reward model reads answers that reach it as text: with its own tokenizer and chat template, as stage `reward` wrote its rankings.

Legend: `B` answers.
"""

from __future__ import annotations

from collections.abc import Sequence

from actors.data.answers import answer_to, encode_answers
from actors.data.prompts import Prompt
from actors.data.tokenizer import BATCH, Tokenizer, difference, load_tokenizer, require_chat_template
from actors.errors import RewardFailed, UserError
from actors.models.checks import read_model_config, window
from configs.schema.data import PromptDataConfig
from configs.schema.rewards import RewardModelConfig

KEY = "reward.model.model"
"""What errors name."""
STAND_IN = "."
"""The answer with which prompts are checked before there are answers."""


class RewardReader:
    """Texts to the reward model's tokens."""

    def __init__(self, reward: RewardModelConfig, data: PromptDataConfig) -> None:
        """Reads tokenizer and `config.json` of the model.

        Raises:
            UserError: for a model without a tokenizer that can be used.
        """
        assert reward.model is not None
        self.tokenizer = load_tokenizer(reward.model)
        self._cuts = reward.overlong == "truncate_left"
        self._policy_wraps = data.chat_template
        self._wraps = data.chat_template if reward.chat_template is None else reward.chat_template
        positions = window(read_model_config(reward.model))
        self._longest, self._limit = reward.engine.micro_batch_tokens, "reward.model.engine.micro_batch_tokens"
        if positions is not None and positions <= self._longest:
            self._longest, self._limit = positions, f"the window of {reward.model!r}"

    def why_text(self, policy: Tokenizer) -> str | None:
        """Why answers have to reach this model as text; None where it reads the policy's tokens as they are.

        Two chat templates over one vocabulary are enough: the policy's writes conversations that the reward model has never seen. A reward
        model that has no template reads the policy's.
        """
        what = difference(policy, self.tokenizer)
        if what is not None:
            return f"its tokenizer is not the policy's: {what}"
        if self._wraps != self._policy_wraps:
            return "reward.model.chat_template is not data.chat_template"
        if self._wraps and self.tokenizer.chat_template not in (None, policy.chat_template):
            return "its chat template is not the policy's"
        return None

    def encode(self, prompts: Sequence[Prompt], responses: Sequence[str], truncated: Sequence[bool]) -> list[list[int]]:
        """[B] token ids of prompt and answer; an answer that was truncated gets no end token.

        Raises:
            RewardFailed: with the prompt's id, for an answer that the chat template refuses or that is too long. Nothing is cut unless
                `reward.model.overlong` says so.
        """
        sequences = []
        for prompt, response, cut_off in zip(prompts, responses, truncated, strict=True):
            try:
                (sequence,) = self._encode([prompt], [response], [cut_off])
            except UserError as error:
                raise RewardFailed(prompt.id, str(error)) from error
            if len(sequence) > self._longest and self._cuts:
                sequence = sequence[-self._longest :]
            if misfit := self._misfit(sequence):
                raise RewardFailed(prompt.id, f"prompt and answer {misfit}")
            sequences.append(sequence)
        return sequences

    def check(self, prompts: Sequence[Prompt]) -> None:
        """Every prompt with a stand-in for its answer, as far as can be known before there are answers.

        Raises:
            UserError: for a chat template that is missing or refuses a prompt, with file and line; for a prompt that is too long.
        """
        if self._wraps:
            require_chat_template(self.tokenizer, "reward.model.chat_template", key="reward.model.chat_template")
        for start in range(0, len(prompts), BATCH):
            batch = prompts[start : start + BATCH]
            sequences = self._encode(batch, [STAND_IN] * len(batch), [False] * len(batch))
            for prompt, sequence in zip(batch, sequences, strict=True):
                if not self._cuts and (misfit := self._misfit(sequence)):
                    raise UserError(f"{KEY}: {prompt.where}: the prompt and the shortest answer {misfit}")

    def _misfit(self, sequence: Sequence[int]) -> str | None:
        if 1 <= len(sequence) <= self._longest:
            return None
        return f"have {len(sequence)} tokens of the reward model's; allowed: 1 to {self._longest}, {self._limit}"

    def _encode(self, prompts: Sequence[Prompt], responses: Sequence[str], cut_off: Sequence[bool]) -> list[list[int]]:
        answers = [
            answer_to(prompt.content, response, where=f"{KEY}: {prompt.where}", chat_template=self._wraps, cut_off=cut)
            for prompt, response, cut in zip(prompts, responses, cut_off, strict=True)
        ]
        pairs = encode_answers(answers, self.tokenizer, chat_template=self._wraps)
        return [[*prompt, *answer] for prompt, answer in pairs]
