"""A rank of the frozen reward model. Imports of torch and of everything above it stand inside methods: see `actors.role`.

Legend: `B` answers.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from actors.context import RankContext
from actors.errors import RewardFailed
from actors.reward_worker import ROWS_FINGERPRINT
from actors.tasks import Busy, RoleReport, WaveShard
from actors.trainer import Trainer
from configs.schema.data import PromptDataConfig
from configs.schema.rewards import RewardModelConfig

if TYPE_CHECKING:
    from torch import Tensor

    from actors.algorithms.records import PackedBatch, ScoreColumn, Trajectories
    from actors.data.prompts import Prompt
    from actors.data.tokenizer import Tokenizer


class Reward(Trainer):
    """Scores whole answers: the head read at the last token.

    It reads the policy's tokens. Where its tokenizer or chat template is another, it reads texts: the row's own prompt and the decoded
    answer, written and tokenised as stage `reward` did with its rankings.
    """

    def __init__(self, context: RankContext, reward: RewardModelConfig, data: PromptDataConfig, policy: str) -> None:
        """`policy`: its folder or hub name, whose tokenizer wrote the answers."""
        super().__init__(context)
        self.config = reward
        self.data = data
        self.policy = policy
        self.policy_tokenizer: Tokenizer = None
        self.prompts: dict[str, Prompt] | None = None
        """By id, where answers are read as text."""

    def start(self) -> RoleReport:
        """Loads the model (collective), the statistics of its scores and what it reads texts with."""
        from actors.data.reward_reader import RewardReader
        from actors.data.tokenizer import load_tokenizer
        from actors.engine.distributed import join_process_group
        from actors.engine.engine import Engine
        from actors.models.scalar_head import load_scalar
        from actors.reward_trainer import load_reward_stats

        started = time.monotonic()
        assert self.config.model is not None
        self.reader = RewardReader(self.config, self.data)
        self.policy_tokenizer = load_tokenizer(self.policy)
        facts = {}
        if self.reader.why_text(self.policy_tokenizer) is not None:
            facts[ROWS_FINGERPRINT] = self._read_prompts()
        join_process_group(self.context)  # a sharded model is loaded shard by shard
        module = load_scalar(
            self.config.model,
            self.config.engine,
            device=self.context.device,
            fresh_head_ok=False,
            seed=self.context.seed,
        )
        self.engine = Engine(module, engine=self.config.engine, optimizer=None, context=self.context)
        stats = load_reward_stats(self.config.model) if self.config.normalise else None
        self.mean, self.std = (stats.mean, stats.std) if stats is not None else (0.0, 1.0)
        return self.report(started, mean=f"{self.mean:.6g}", std=f"{self.std:.6g}", **facts)

    def score(self, shard: WaveShard, trajectories: Trajectories) -> tuple[ScoreColumn, Busy]:
        """Scores of this rank's trajectories of the wave, normalised by the statistics stored with the model.

        Raises:
            RewardFailed: for a score that is not finite, or an answer that as text is too long or refused by the chat template.
        """
        from actors.algorithms.records import ScoreColumn

        started = time.time()
        mine = trajectories.select(shard.indices)
        if self.prompts is None:
            scores = self._normalised(mine.prompt_ids, self._scores_of_tokens(shard, mine))
        else:
            scores = self._scores_of_texts(mine)
        return ScoreColumn(wave=shard.wave, indices=shard.indices, scores=scores), Busy.since(started)

    def score_texts(self, prompts: Sequence[Prompt], responses: Sequence[str], truncated: Sequence[bool]) -> Tensor:
        """Scores of answers given as text, normalised: float32 [B]. Collective where the model is sharded; a rank may have no answers.

        Micro-batches are packed here, since nobody else knows the lengths. The ranks of a sharded model run equally many, dummies at the
        end.

        Raises:
            RewardFailed: as `score`.
        """
        import torch

        from actors.algorithms.packing import pack

        sequences = self.reader.encode(prompts, responses, truncated)
        lengths = {i: len(sequence) for i, sequence in enumerate(sequences)}
        micro_batches = pack(lengths, self.config.engine.micro_batch_tokens)
        most = len(micro_batches)
        if self.config.engine.zero_stage == 3:
            most = self.engine.max_over_ranks(most)
        found = torch.zeros(len(sequences))
        for micro in [*micro_batches, *[()] * (most - len(micro_batches))]:
            _, last = self.engine.forward(_packed([sequences[i] for i in micro]))
            found[list(micro)] = last.cpu()
        return self._normalised([prompt.id for prompt in prompts], found)

    def _scores_of_tokens(self, shard: WaveShard, mine: Trajectories) -> Tensor:
        import torch

        self.kept.add_wave(shard.wave, shard.indices, mine)
        found: dict[int, float] = {}
        for micro in shard.micro_batches:
            _, last = self.engine.forward(self.kept.batch([(shard.wave, i) for i in micro]))
            found.update(zip(micro, last.tolist(), strict=False))
        self.kept.clear()
        return torch.tensor([found[i] for i in shard.indices], dtype=torch.float32)

    def _scores_of_texts(self, mine: Trajectories) -> Tensor:
        from actors.data.answers import response_texts

        assert self.prompts is not None
        responses = response_texts(mine, range(len(mine.ids)), self.policy_tokenizer)
        return self.score_texts([self.prompts[i] for i in mine.prompt_ids], responses, mine.truncated.tolist())

    def _normalised(self, prompt_ids: Sequence[str], scores: Tensor) -> Tensor:
        from actors.algorithms.rewards import normalise_scores

        for prompt_id, score in zip(prompt_ids, scores.tolist(), strict=True):
            if not abs(score) < float("inf"):
                raise RewardFailed(prompt_id, f"the reward model gave {score}")
        return normalise_scores(scores, mean=self.mean, std=self.std)

    def _read_prompts(self) -> str:
        """The fingerprint of the rows."""
        from actors.data.prompts import read_prompts

        fingerprint, prompts = read_prompts(self.data)
        self.prompts = {prompt.id: prompt for prompt in prompts}
        return fingerprint


def _packed(sequences: Sequence[list[int]]) -> PackedBatch:
    """The sequences as one micro-batch; none give the dummy."""
    import torch

    from actors.algorithms.records import PackedBatch, cumulative

    tokens = torch.tensor([token for sequence in sequences for token in sequence], dtype=torch.int64)
    cu_lengths = cumulative([len(sequence) for sequence in sequences])
    return PackedBatch.from_flat(tokens, cu_lengths, torch.zeros(len(tokens), dtype=torch.bool))
