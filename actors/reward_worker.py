"""The role that asks a user's Python function for rewards. On CPU, one host process a worker.

Legend: `B` trajectories scored.

Heavy libraries are imported inside methods: the driver imports this module for its method names alone.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from actors.context import RankContext
from actors.errors import RewardFailed, UserError
from actors.reward_function import CallFailed, RewardFunction, check_function
from actors.role import Role
from actors.tasks import Busy, RoleReport, WaveShard
from configs.schema.data import PromptDataConfig
from configs.schema.rewards import FunctionConfig

__all__ = ["RewardWorker", "check_function"]

if TYPE_CHECKING:
    from actors.algorithms.records import ScoreColumn, Trajectories
    from actors.data.prompts import Prompt


ROWS_FINGERPRINT = "rows_fingerprint"
"""Of the facts that a worker reports."""


class RewardWorker(Role):
    """Scores answers with `module:function`, called as `f(prompt=..., response=..., **columns)`.

    `prompt` is the row's text (`actors.data.prompts.prompt_text`), `response` what the policy wrote, special tokens left out. Of the
    row's other columns the function gets those that its signature names, all with `**columns`; of a conversation also `messages`,
    where the row has no such column. A score that cannot be had stops the step: it never becomes zero.
    """

    def __init__(self, context: RankContext, function: FunctionConfig, data: PromptDataConfig, model: str) -> None:
        """`model`: the policy's folder or hub name, whose tokenizer reads the answers."""
        super().__init__(context)
        self._config = function
        self._data = data
        self._model = model
        self._function = RewardFunction(function.function, timeout_s=function.timeout_s)
        self._prompts: dict[str, Prompt] = {}

    def start(self) -> RoleReport:
        """Loads tokenizer and prompts, starts the host process and imports the function there.

        Raises:
            UserError: for bad data, a function that cannot be used, or a row without a column that it needs.
        """
        from actors.data.prompts import read_prompts
        from actors.data.tokenizer import load_tokenizer

        started = time.monotonic()
        self._tokenizer = load_tokenizer(self._model)
        fingerprint, prompts = read_prompts(self._data)
        self._prompts = {prompt.id: prompt for prompt in prompts}
        self._function.start()
        self._require_columns()
        return RoleReport(
            role=self.context.role,
            rank=self.context.rank,
            num_parameters=0,
            peak_memory_bytes=self.peak_memory_bytes(),
            seconds=time.monotonic() - started,
            facts={"function": self._config.function, ROWS_FINGERPRINT: fingerprint},
        )

    def score(self, shard: WaveShard, trajectories: Trajectories) -> tuple[ScoreColumn, Busy]:
        """Scores this worker's trajectories of the wave, unweighted. `trajectories`: the whole wave.

        Raises:
            RewardFailed: with the prompt's id, where a call failed more often than `retries` allows.
        """
        import torch

        from actors.algorithms.records import ScoreColumn

        started = time.time()
        scores = self.numbers(shard, trajectories, self.responses(shard, trajectories))
        column = ScoreColumn(wave=shard.wave, indices=shard.indices, scores=torch.tensor(scores, dtype=torch.float32))
        return column, Busy.since(started)

    def numbers(self, shard: WaveShard, trajectories: Trajectories, texts: Sequence[str]) -> list[float]:
        """What the function says of each text."""
        return self.score_texts([trajectories.prompt_ids[i] for i in shard.indices], texts)

    def score_texts(self, prompt_ids: Sequence[str], responses: Sequence[str]) -> list[float]:
        """[B] what the function says of each response to the prompt of that id.

        Raises:
            RewardFailed: as `score` does.
        """
        return [self._score_one(self._prompts[one], text) for one, text in zip(prompt_ids, responses, strict=True)]

    def responses(self, shard: WaveShard, trajectories: Trajectories) -> list[str]:
        """What the policy wrote in the shard's trajectories, special tokens left out."""
        from actors.data.answers import response_texts

        return response_texts(trajectories, shard.indices, self._tokenizer)

    def stop(self) -> None:
        """Ends the host process. It also ends by itself when this process does, however that ends."""
        self._function.stop()

    def _require_columns(self) -> None:
        for prompt in self._prompts.values():
            if missing := self._function.required - set(_columns(prompt)):
                raise UserError(
                    f"reward function {self._config.function!r} needs {', '.join(map(repr, sorted(missing)))}, {prompt.where} has "
                    f"{', '.join(map(repr, sorted(_columns(prompt)))) or 'no columns'} beside the prompt"
                )

    def _score_one(self, prompt: Prompt, response: str) -> float:
        from actors.data.prompts import prompt_text

        tries = 1 + self._config.retries
        for number in range(1, tries + 1):
            try:
                return self._function.call(prompt_text(prompt), response, _columns(prompt))
            except CallFailed as error:
                reason = f"{self._config.function}: {error} (try {number} of {tries})"
                # The worker's own log, where the function's output goes too
                sys.stderr.write(f"prompt {prompt.id}: {reason}\n")
        raise RewardFailed(prompt.id, reason)


def _columns(prompt: Prompt) -> Mapping[str, Any]:
    """What a function may be given beside prompt and response."""
    if isinstance(prompt.content, str):
        return prompt.columns
    return {"messages": prompt.content, **prompt.columns}
