"""What a rank does in the parity of the supervised stages; a module of its own, so that the ranks' processes can import it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from actors.context import RankContext
from actors.dpo_trainer import DPOTrainer
from actors.language_trainer import LanguageTrainer
from actors.supervised_trainer import SupervisedShard, SupervisedTrainer
from configs.schema.supervised import DPOStage, PretrainStage, SFTStage
from orchestrator.supervised_loop import split

STAGES = {"pretrain": PretrainStage, "sft": SFTStage, "dpo": DPOStage}
STEPS, ITEMS = 3, 5


def items_of(step: int, num_train: int) -> list[int]:
    """Items of a step (from 0); the last step comes round to the first again."""
    return [(step * ITEMS + i) % num_train for i in range(ITEMS)]


def train(context: RankContext, values: Mapping[str, Any], out: str) -> dict[str, Any]:
    """Three steps as the loop makes them, then evaluation and export."""
    config: PretrainStage | SFTStage | DPOStage = STAGES[values["stage"]].model_validate(values)  # type: ignore[assignment]
    role: SupervisedTrainer = (
        DPOTrainer(context, config) if isinstance(config, DPOStage) else LanguageTrainer(context, config)
    )
    role.start()
    items, budget = role.items(), config.model.engine.micro_batch_tokens

    def mine(chosen: Any) -> Any:
        return split(chosen, items.lengths, context.world_size, budget)[context.rank]

    if isinstance(role, DPOTrainer):
        # every rank needs all; between ranks the orchestrator hands the parts round
        everything = range(len(items.lengths))
        scored, _ = role.reference_logprobs(split(everything, items.lengths, 1, budget)[0])
        role.keep_reference(scored)
    updates = []
    for step in range(STEPS):
        chosen = items_of(step, items.num_train)
        count = sum(items.weights[item] for item in chosen)
        shard = SupervisedShard(
            step=step + 1, micro_batches=mine(chosen), global_count=count, lr=config.model.optimizer.lr
        )
        updates.append(asdict(role.update(shard)))
    part = role.evaluate(mine(range(items.num_train, len(items.lengths))))
    role.export_evaluated(out, None)
    return {"updates": updates, "part": asdict(part), "micro_batches": len(mine(range(items.num_train)))}  # type: ignore[call-overload]
