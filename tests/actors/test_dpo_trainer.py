"""The reference of stage `dpo`: computed once, found again, and never taken for that of other data."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from actors.context import RankContext
from actors.dpo_trainer import DPOTrainer
from actors.errors import UserError
from configs.schema.supervised import DPOStage
from tests.actors.engine.ranks import run_ranks
from tests.tiny_models import make_tiny_causal_lm


def config(folder: Path, rows: int) -> DPOStage:
    path = folder / "pairs.jsonl"
    pairs = [{"prompt": "what ?", "chosen": f"yes {n % 10}", "rejected": "no no"} for n in range(rows)]
    path.write_text("".join(json.dumps(row) + "\n" for row in pairs))
    values = {
        "stage": "dpo",
        "run": {"dir": "unused"},
        "data": {"path": str(path), "max_tokens": 24, "held_out_rows": 2},
        "model": {"model": str(folder / "model"), "engine": {"micro_batch_tokens": 64}},
    }
    return DPOStage.model_validate(values)


def start_twice(context: RankContext, stage: DPOStage) -> dict[str, Any]:
    """A rank that scores the reference, and the next driver's, which finds it."""
    first = DPOTrainer(context, stage)
    first.start()
    had = first.has_reference()
    items = tuple((item,) for item in range(len(first.items().lengths)))
    part, _ = first.reference_logprobs(items)
    first.keep_reference(part)
    second = DPOTrainer(context, stage)
    second.start()
    return {"had": had, "has": second.has_reference(), "same": first.reference == second.reference}


def start(context: RankContext, stage: DPOStage) -> str:
    try:
        DPOTrainer(context, stage).start()
    except UserError as error:
        return str(error)
    return ""


def test_the_reference_is_kept_and_belongs_to_its_data(tmp_path: Path) -> None:
    make_tiny_causal_lm(tmp_path / "model", tied=True)
    assert run_ranks(start_twice, 1, tmp_path, config(tmp_path, 8)) == [{"had": False, "has": True, "same": True}]
    (said,) = run_ranks(start, 1, tmp_path, config(tmp_path, 9))
    assert "reference_logprobs.json is of other data" in said
    (path,) = tmp_path.rglob("reference_logprobs.json")
    path.write_text("[")
    (said,) = run_ranks(start, 1, tmp_path, config(tmp_path, 8))
    assert "is damaged" in said
