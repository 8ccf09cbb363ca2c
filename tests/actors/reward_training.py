"""What a rank does in the tests of stage `reward`; a module of its own, so that the ranks' processes can import it."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from actors.context import RankContext
from actors.reward_trainer import HeldOutScores, RewardTrainer
from actors.supervised_trainer import SupervisedShard
from configs.schema.reward import RewardStage

WORDS = ("red", "blue", "green", "cat", "dog", "bird", "fish", "house", "tree", "moon")


def ranked_rows(num: int, *, num_answers: int, seed: int) -> list[dict[str, Any]]:
    """Answers of 3 to 6 words; the more of them are `good`, the better. Equal numbers are ties."""
    generator = random.Random(seed)
    rows: list[dict[str, Any]] = []
    while len(rows) < num:
        goods = [generator.randrange(3) for _ in range(num_answers)]
        if len(set(goods)) == 1:
            continue
        responses = []
        for good in goods:
            words = ["good"] * good + generator.choices(WORDS, k=generator.randint(3, 4))
            generator.shuffle(words)
            responses.append(" ".join(words))
        rows.append({"prompt": generator.choice(WORDS), "responses": responses, "ranks": [-good for good in goods]})
    return rows


def stage(model: str, path: str, **sections: Any) -> RewardStage:
    return RewardStage.model_validate(
        {
            "stage": "reward",
            "run": {"dir": "unused"},
            "data": {"path": path, "format": "ranking", "held_out_rows": 24, **sections.get("data", {})},
            "model": {
                "model": model,
                "engine": {"micro_batch_tokens": 256, **sections.get("engine", {})},
                "optimizer": {"lr": 3e-3, "max_grad_norm": 1.0, **sections.get("optimizer", {})},
            },
        }
    )


def shares(groups: Sequence[int], context: RankContext, *, size: int) -> tuple[tuple[int, ...], ...]:
    """This rank's micro-batches of `size` groups: every `world_size`-th group, as many for all ranks, dummies at the end."""
    mine = [groups[i] for i in range(context.rank, len(groups), context.world_size)]
    most = -(-len(groups) // context.world_size)
    return tuple(tuple(mine[start : start + size]) for start in range(0, most, size))


def train(
    context: RankContext, config: RewardStage, num_steps: int, size: int, folders: dict[str, str], take_up: int = 0
) -> dict[str, Any]:
    """Starts (from the checkpoint of step `take_up`, if any), trains to `num_steps`, saves each step, evaluates, exports."""
    role = RewardTrainer(context, config)
    started = role.start()
    report = role.items()
    if take_up:
        role.load(folders["load"])
    updates = []
    for step in range(take_up, num_steps):
        groups = [(16 * step + i) % report.num_train for i in range(16)]
        shard = SupervisedShard(
            step=step + 1, micro_batches=shares(groups, context, size=size), global_count=16, lr=3e-3
        )
        updates.append(asdict(role.update(shard)))
    if "save" in folders:
        role.save(folders["save"])
    held_out = range(report.num_train, len(report.lengths))
    part = role.evaluate(shares(held_out, context, size=size))
    result = {
        "start": asdict(started),
        "report": asdict(report),
        "updates": updates,
        "digest": role.digest(),
        "part": asdict(part),
    }
    if context.world_size == 1:
        evaluation = role.summarise([part])
        result["evaluation"] = asdict(evaluation)
        if "export" in folders:
            role.export_evaluated(folders["export"], evaluation)
    return result


def summarised(context: RankContext, config: RewardStage, parts: list[dict[str, Any]]) -> dict[str, Any]:
    """What one rank makes of all ranks' held-out scores."""
    role = RewardTrainer(context, config)
    role.start()
    return asdict(role.summarise([HeldOutScores(**part) for part in parts]))
