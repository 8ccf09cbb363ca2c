"""What the engine exports is what transformers loads."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from actors.context import RankContext
from actors.engine.distributed import join_process_group
from actors.engine.engine import Engine, gather_groups
from actors.engine.export import FolderWriter, export_config
from actors.models.scalar_head import load_scalar
from tests.actors.engine.ranks import OPTIMIZER, engine_config, packed, run_ranks, sequences
from tests.actors.engine.training import Task, train
from tests.tiny_models import make_tiny_causal_lm, make_tiny_scalar


@pytest.mark.slow
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize(
    ("stage", "num_ranks", "dtype"), [(0, 1, "fp32"), (2, 2, "bf16"), (3, 2, "fp32"), (3, 2, "bf16")]
)
def test_policy_export(stage: int, num_ranks: int, dtype: str, tied: bool, tmp_path: Path) -> None:
    model = make_tiny_causal_lm(tmp_path / "model", tied=tied)
    folder = tmp_path / "export"
    task = Task(model=str(model), engine=engine_config(stage, dtype), steps=(0,), export=str(folder))
    result = run_ranks(train, num_ranks, tmp_path, task)[0]
    network, report = AutoModelForCausalLM.from_pretrained(folder, dtype="auto", output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    loaded = dict(network.named_parameters())
    assert loaded.keys() == result["compute"].keys()
    assert all(torch.equal(loaded[name], value) for name, value in result["compute"].items())
    with (
        safe_open(folder / "model.safetensors", "pt") as ours,
        safe_open(model / "model.safetensors", "pt") as original,
    ):
        assert sorted(ours.keys()) == sorted(original.keys())
    config = json.loads((folder / "config.json").read_text())
    assert config["architectures"] == ["LlamaForCausalLM"]
    assert config["dtype"] == {"fp32": "float32", "bf16": "bfloat16"}[dtype]
    assert config["tie_word_embeddings"] == tied
    texts = "hello cat, what is 3?"
    assert AutoTokenizer.from_pretrained(folder)(texts) == AutoTokenizer.from_pretrained(model)(texts)
    assert AutoTokenizer.from_pretrained(folder).chat_template == AutoTokenizer.from_pretrained(model).chat_template


def train_scalar(context: RankContext, task: Task, from_causal: bool) -> dict[str, Any]:
    join_process_group(context)
    module = load_scalar(task.model, task.engine, device=context.device, fresh_head_ok=from_causal, seed=1)
    engine = Engine(module, engine=task.engine, optimizer=OPTIMIZER, context=context)
    batch = packed(*sequences(3, seed=context.rank))

    def loss_fn(index: int, outputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        values, last = outputs
        loss = ((values - 1) ** 2).sum() / 50 + ((last - torch.arange(3.0)) ** 2).sum() / 6
        return loss, {}

    batches = [batch] if context.rank == 0 else [packed()]
    for _ in range(2):
        engine.forward_backward(batches, loss_fn)
        engine.step(1e-2)
    engine.export(task.export or "", tokenizer_from=task.model)
    return {"last": engine.forward(packed(*sequences(3, seed=9)))[1], "digest": engine.digest()}


@pytest.mark.slow
@pytest.mark.parametrize("from_causal", [True, False])
@pytest.mark.parametrize(("stage", "num_ranks"), [(0, 1), (2, 2), (3, 2)])
def test_scalar_export_scores_the_last_token(stage: int, num_ranks: int, from_causal: bool, tmp_path: Path) -> None:
    make = (lambda folder: make_tiny_causal_lm(folder, tied=True)) if from_causal else make_tiny_scalar
    model, folder = make(tmp_path / "model"), tmp_path / "export"
    task = Task(model=str(model), engine=engine_config(stage), export=str(folder))
    results = run_ranks(train_scalar, num_ranks, tmp_path, task, from_causal)
    assert len({result["digest"] for result in results}) == 1
    network = AutoModelForSequenceClassification.from_pretrained(folder)
    assert network.config.num_labels == 1
    assert network.config.pad_token_id == 0
    drawn = [torch.tensor(tokens) for tokens, _ in sequences(3, seed=9)]
    padded = torch.nn.utils.rnn.pad_sequence(drawn, batch_first=True, padding_value=0)
    scores = network(padded, attention_mask=padded != 0).logits[:, 0]
    assert scores.abs().max() > 1e-3
    torch.testing.assert_close(results[0]["last"], scores, atol=5e-5, rtol=0)


def test_large_models_are_written_in_several_files(tmp_path: Path) -> None:
    model = make_tiny_causal_lm(tmp_path / "model", tied=True)
    network = AutoModelForCausalLM.from_pretrained(model)
    folder = tmp_path / "export"
    folder.mkdir()
    writer = FolderWriter(folder, file_bytes=50_000)
    for name, value in network.named_parameters():
        writer.add(name, value)
    writer.close()
    export_config(network, dtype=torch.float32, pad_token_id=0).save_pretrained(folder)
    assert len(list(folder.glob("model-*.safetensors"))) > 3
    loaded = dict(AutoModelForCausalLM.from_pretrained(folder).named_parameters())
    assert all(torch.equal(loaded[name], value) for name, value in network.named_parameters())


def test_padding_that_is_the_end_token_is_not_exported(tmp_path: Path) -> None:
    network = AutoModelForSequenceClassification.from_pretrained(make_tiny_scalar(tmp_path))
    assert export_config(network, dtype=torch.float32, pad_token_id=2).pad_token_id is None
    assert export_config(network, dtype=torch.float32, pad_token_id=0).pad_token_id == 0


def test_parameters_are_gathered_in_bounded_groups() -> None:
    parameters = {
        name: torch.nn.Parameter(torch.zeros(size)) for name, size in zip("abcde", (3, 3, 10, 1, 2), strict=True)
    }
    groups = [list(group) for group in gather_groups(parameters, max_bytes=6 * 4)]
    assert groups == [["a", "b"], ["c"], ["d", "e"]]
