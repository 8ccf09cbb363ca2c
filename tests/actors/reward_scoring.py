"""What a rank does in the tests of the reward role; a module of its own, so that the ranks' processes can import it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from actors.algorithms.records import PackedBatch, Trajectories, VersionSpan, cumulative
from actors.context import RankContext
from actors.data.prompts import read_prompts
from actors.data.tokenizer import load_tokenizer
from actors.reward import Reward
from actors.tasks import WaveShard
from configs.schema.data import PromptDataConfig
from configs.schema.rewards import RewardModelConfig

Answered = tuple[str, str, bool]
"""A prompt's id, the answer to it, and whether it was cut off."""


def trajectories(answered: Sequence[Answered], policy: str, data: PromptDataConfig) -> Trajectories:
    """As the policy of that folder would have given these answers."""
    tokenizer = load_tokenizer(policy)
    prompts = {prompt.id: prompt for prompt in read_prompts(data)[1]}
    pieces = []
    for prompt_id, answer, cut_off in answered:
        text = tokenizer.apply_chat_template(
            prompts[prompt_id].messages, tokenize=False, add_generation_prompt=True
        )  # as a policy with a chat template reads it
        end = [] if cut_off else [tokenizer.eos_token_id]
        pieces.append((tokenizer(text)["input_ids"], [*tokenizer(answer)["input_ids"], *end]))
    mask = [chosen for prompt, answer in pieces for chosen in [False] * len(prompt) + [True] * len(answer)]
    return Trajectories(
        ids=tuple(f"00000001/{i:06d}/000" for i in range(len(answered))),
        prompt_ids=tuple(prompt_id for prompt_id, _, _ in answered),
        tokens=torch.tensor([token for prompt, answer in pieces for token in (*prompt, *answer)]),
        cu_lengths=cumulative([len(prompt) + len(answer) for prompt, answer in pieces]),
        loss_mask=torch.tensor(mask),
        rollout_logprobs=torch.zeros(len(mask)),
        truncated=torch.tensor([cut_off for _, _, cut_off in answered]),
        version_spans=tuple((VersionSpan(start=len(p), end=len(p) + len(a), policy_version=0),) for p, a in pieces),
        turn_offsets=tuple((len(prompt),) for prompt, _ in pieces),
    )


def score(
    context: RankContext,
    reward: RewardModelConfig,
    data: PromptDataConfig,
    policy: str,
    answered: Sequence[Answered],
    shares: Sequence[Sequence[int]],
) -> dict[str, Any]:
    """Scores of the answers numbered `shares[rank]`, as trajectories of a wave and as texts; tokens of each forward."""
    role = Reward(context, reward, data, policy)
    report = role.start()
    forward, sizes = role.engine.forward, []

    def counted(batch: PackedBatch, **kwargs: Any) -> Any:
        sizes.append((batch.num_sequences, len(batch.tokens)))
        return forward(batch, **kwargs)

    role.engine.forward = counted  # type: ignore[method-assign]
    mine = tuple(shares[context.rank])
    shard = WaveShard(step=1, wave=2, indices=mine, micro_batches=(mine,))
    column, _ = role.score(shard, trajectories(answered, policy, data))
    assert (column.wave, column.indices) == (2, mine)
    of_wave = list(sizes)
    prompts = {prompt.id: prompt for prompt in read_prompts(data)[1]}
    rows = [answered[i] for i in mine]
    texts = role.score_texts([prompts[row[0]] for row in rows], [row[1] for row in rows], [row[2] for row in rows])
    return {"facts": report.facts, "scores": column.scores, "texts": texts, "forwards": of_wave}
