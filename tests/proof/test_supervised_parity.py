"""Stages `pretrain`, `sft` and `dpo` against the plain script: losses, gradient norms and updates, over ranks and ZeRO stages."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from actors.data.rankings import RankingDataset
from actors.data.sequences import SequenceDataset, load_conversations, load_texts
from actors.data.tokenizer import load_tokenizer
from configs.schema.supervised import DPOStage, PretrainStage, SFTStage
from tests.actors.engine.ranks import run_ranks
from tests.proof.plain_ppo import Optimizer
from tests.proof.plain_supervised import PlainSupervised, Sequence
from tests.proof.supervised_parts import STEPS, items_of, train
from tests.tiny_models import WORDS, make_tiny_causal_lm

LR, EPS = 3e-3, 1e-4
"""Epsilon is far above the rounding of gradients near zero, which would decide the update's direction otherwise."""


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("project")
    make_tiny_causal_lm(folder / "model", tied=True)
    words = random.Random(5)

    def text(least: int, most: int) -> str:
        return " ".join(words.choices(WORDS, k=words.randint(least, most)))

    def turns(number: int) -> list[dict[str, str]]:
        roles = ["user", "assistant"] * number
        return [{"role": role, "content": text(1, 6)} for role in roles]

    rows: dict[str, list[dict[str, Any]]] = {
        "pretrain": [{"text": text(2, 40)} for _ in range(18)],
        "sft": [{"messages": turns(words.randint(1, 3))} for _ in range(18)],
        "dpo": [{"prompt": text(2, 6), "chosen": text(1, 9), "rejected": text(1, 9)} for _ in range(18)],
    }
    for name, of_stage in rows.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in of_stage))
    return folder


def config(project: Path, stage: str, zero_stage: int, **dpo: Any) -> dict[str, Any]:
    training = {"groups_per_step": 5} if stage == "dpo" else {"sequences_per_step": 5}
    max_tokens = {"pretrain": 24, "sft": 64, "dpo": 32}[stage]
    return {
        "stage": stage,
        "run": {"dir": "unused"},
        "data": {"path": str(project / f"{stage}.jsonl"), "max_tokens": max_tokens, "held_out_rows": 4},
        "model": {
            "model": str(project / "model"),
            "engine": {"zero_stage": zero_stage, "micro_batch_tokens": 64, "logits_chunk_tokens": 7},
            "optimizer": {"lr": LR, "eps": EPS, "weight_decay": 0.01, "max_grad_norm": 0.5},
        },
        "training": training,
        **({"dpo": dpo} if dpo else {}),
    }


def sequences_of(data: SequenceDataset, items: Any) -> list[Sequence]:
    found = [data.sequence(item) for item in items]
    return [Sequence(tokens=one.token_ids, chosen=one.loss_mask) for one in found]


def answers_of(data: RankingDataset, items: Any) -> tuple[list[Sequence], list[Sequence]]:
    """Better and worse answers."""

    def answer(item: int, number: int) -> Sequence:
        group = data.group(item)
        tokens, length = group.sequences[number], group.answer_lengths[number]
        return Sequence(tokens=tokens, chosen=[False] * (len(tokens) - length) + [True] * length)

    return [answer(item, 0) for item in items], [answer(item, 1) for item in items]


def plain(project: Path, values: dict[str, Any]) -> tuple[list[dict[str, float]], PlainSupervised, float | None]:
    """The same steps by the plain script: losses and norms, the model, the held-out loss."""
    script = PlainSupervised(
        str(project / "model"), Optimizer(lr=LR, total_updates=STEPS, eps=EPS, weight_decay=0.01, max_grad_norm=0.5)
    )
    tokenizer = load_tokenizer(str(project / "model"))
    if values["stage"] == "dpo":
        stage = DPOStage.model_validate(values)
        ranked = RankingDataset.load(stage.data, tokenizer)
        how: dict[str, Any] = {
            "loss": stage.dpo.loss,
            "beta": stage.dpo.beta,
            "smoothing": stage.dpo.label_smoothing,
        }
        found = [script.dpo_step(*answers_of(ranked, items_of(s, len(ranked.train))), **how) for s in range(STEPS)]
        return found, script, None
    if values["stage"] == "pretrain":
        data = load_texts(PretrainStage.model_validate(values).data, tokenizer)
    else:
        data = load_conversations(SFTStage.model_validate(values).data, tokenizer)
    found = [script.next_token_step(sequences_of(data, items_of(s, len(data.train)))) for s in range(STEPS)]
    return found, script, script.held_out_loss(sequences_of(data, data.held_out))


CASES = [("pretrain", {}), ("sft", {}), ("dpo", {}), ("dpo", {"label_smoothing": 0.2}), ("dpo", {"loss": "ipo"})]


@pytest.mark.slow
@pytest.mark.parametrize(("num_ranks", "zero_stage"), [(1, 0), (2, 2), (2, 3)])
@pytest.mark.parametrize(("stage", "dpo"), CASES)
def test_a_stage_is_the_plain_script(
    project: Path, tmp_path: Path, stage: str, dpo: dict[str, Any], num_ranks: int, zero_stage: int
) -> None:
    values = config(project, stage, zero_stage, **dpo)
    expected, script, held_out = plain(project, values)
    ranks = run_ranks(train, num_ranks, tmp_path, values, str(tmp_path / "out"))
    assert ranks[0]["micro_batches"] > 1, "nothing is packed in more than one micro-batch"
    for step, numbers in enumerate(expected):
        reports = [rank["updates"][step] for rank in ranks]
        loss = sum(report["minibatches"][0].get("loss", 0.0) for report in reports)
        assert loss == pytest.approx(numbers["loss"], rel=1e-5), (step, "loss")
        assert reports[0]["grad_norms"][0] == pytest.approx(numbers["grad_norm"], rel=1e-5), (step, "norm")
    before, after = (
        load_file(project / "model" / "model.safetensors"),
        load_file(tmp_path / "out" / "model.safetensors"),
    )
    own = dict(script.model.named_parameters())
    for name in after:
        update, plain_update = after[name] - before[name], own[name].detach() - before[name]
        assert float(torch.linalg.norm(update - plain_update) / torch.linalg.norm(plain_update)) < 1e-3, name
    if held_out is not None:
        parts = [rank["part"] for rank in ranks]
        found = sum(part["nll"] for part in parts) / sum(part["num_tokens"] for part in parts)
        assert found == pytest.approx(held_out, rel=1e-4)
