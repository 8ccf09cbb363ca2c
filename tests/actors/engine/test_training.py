"""The engine's steps against a plain torch loop.

Tolerance: the movement of each tensor over three AdamW steps, ‖Δa - Δb‖ / ‖Δb‖ <= 1e-3. Adam's epsilon is 1e-6 there: with a smaller one, a
gradient that is 0 but for rounding (a token that never occurs) would be scaled up to a whole step of either sign.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from actors.context import RankContext
from actors.engine.distributed import join_process_group
from actors.engine.engine import Engine
from actors.errors import NotFinite, UserError
from actors.models.causal_lm import load_policy
from tests.actors.engine.ranks import engine_config, packed, relative_difference, run_ranks
from tests.actors.engine.training import (
    TEMPERATURE,
    Task,
    reference,
    start_engine,
    step_sequences,
    train,
    train_step,
)
from tests.tiny_models import make_tiny_causal_lm


def largest_difference(got: dict[str, Any], expected: dict[str, Any]) -> tuple[float, str]:
    assert got["end"].keys() == expected["end"].keys()
    return max(
        (relative_difference(got["end"][name] - got["start"][name], value - expected["start"][name]), name)
        for name, value in expected["end"].items()
    )


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[bool, str]:
    folder = tmp_path_factory.mktemp("models")
    return {tied: str(make_tiny_causal_lm(folder / f"tied-{tied}", tied=tied)) for tied in (True, False)}


@pytest.mark.slow
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("num_ranks", [1, 2])
@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_three_steps_equal_plain_torch(
    stage: int, num_ranks: int, tied: bool, models: dict[bool, str], tmp_path: Path
) -> None:
    expected = reference(models[tied])
    ranks = run_ranks(train, num_ranks, tmp_path, Task(model=models[tied], engine=engine_config(stage)))
    for result in ranks:
        assert result["norms"] == pytest.approx(expected["norms"], rel=1e-4)
        assert largest_difference(result, expected)[0] <= 1e-3
        assert result["digest"] == ranks[0]["digest"]
    losses = [sum(result["metrics"][step].get("loss", 0.0) for result in ranks) for step in range(3)]
    assert losses == pytest.approx(expected["losses"], rel=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("stage", [1, 2, 3])
def test_bf16_follows_fp32_with_fp32_masters(stage: int, models: dict[bool, str], tmp_path: Path) -> None:
    """One step from bfloat16 weights against one in float32: direction to 0.95 (cosine), norm to 10 %; masters finer than bfloat16."""
    expected = reference(models[True], steps=(1,))
    task = Task(model=models[True], engine=engine_config(stage, "bf16"), steps=(1,))
    for result in run_ranks(train, 2, tmp_path, task):
        assert result["norms"] == pytest.approx(expected["norms"], rel=0.1)
        for name, end in expected["end"].items():
            moved, wanted = result["end"][name] - result["start"][name], end - expected["start"][name]
            assert torch.nn.functional.cosine_similarity(moved.flatten(), wanted.flatten(), dim=0) > 0.95, name
            assert result["compute"][name].dtype == torch.bfloat16
            assert torch.equal(result["compute"][name], result["end"][name].bfloat16()), name
            assert not torch.equal(result["end"][name].bfloat16().float(), result["end"][name]), name


@pytest.mark.slow
@pytest.mark.parametrize("stage", [0, 2, 3])
def test_activation_checkpointing_changes_nothing(stage: int, models: dict[bool, str], tmp_path: Path) -> None:
    plain, recomputed = (
        run_ranks(
            train, 2, tmp_path, Task(model=models[True], engine=engine_config(stage, activation_checkpointing=on))
        )
        for on in (False, True)
    )
    assert recomputed[0]["norms"] == pytest.approx(plain[0]["norms"], rel=1e-5)
    assert largest_difference(recomputed[0], plain[0])[0] <= 1e-4


@pytest.mark.slow
@pytest.mark.parametrize(
    ("stage", "dtype"), [(1, "fp32"), (2, "fp32"), (3, "fp32"), (1, "bf16"), (2, "bf16"), (3, "bf16")]
)
def test_offloaded_optimizer_takes_the_same_steps(
    stage: int, dtype: str, models: dict[bool, str], tmp_path: Path
) -> None:
    """On a CPU the host's memory is the only one, but DeepSpeed takes its offload path: norm, clipping and sums must be the same."""
    plain, offloaded = (
        run_ranks(
            train, 2, tmp_path, Task(model=models[True], engine=engine_config(stage, dtype, offload_optimizer=on))
        )
        for on in (False, True)
    )
    assert offloaded[0]["norms"] == pytest.approx(plain[0]["norms"], rel=1e-4 if dtype == "fp32" else 0.05)
    if dtype == "fp32":
        assert largest_difference(offloaded[0], plain[0])[0] <= 1e-3


def poisoned(context: RankContext, task: Task) -> dict[str, Any]:
    """A step whose loss is NaN on the last rank alone, then a good one; beside it an engine that only took the good one."""
    engine, spared = start_engine(context, task), start_engine(context, task)
    train_step(engine, context, 0)
    train_step(spared, context, 0)
    before = engine.digest()
    last = context.rank == context.world_size - 1

    def loss_fn(index: int, outputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        return outputs[0].sum() * (math.nan if last else 1.0), {}

    batch = packed(*step_sequences(0))
    engine.forward_backward([batch], loss_fn, temperature=1.0, with_entropy=False)
    message = ""
    try:
        engine.step(1e-2)
    except NotFinite as error:
        message = str(error)
    after = engine.digest()
    norm, _ = train_step(engine, context, 1)
    spared_norm, _ = train_step(spared, context, 1)
    return {
        "message": message,
        "untouched": before == after,
        "norms": (norm, spared_norm),
        "same_after": engine.digest() == spared.digest(),
    }


@pytest.mark.slow
@pytest.mark.parametrize(
    ("stage", "dtype"), [(0, "fp32"), (1, "fp32"), (2, "fp32"), (3, "fp32"), (1, "bf16"), (2, "bf16"), (3, "bf16")]
)
def test_gradient_that_is_not_finite_stops_all_ranks(
    stage: int, dtype: str, models: dict[bool, str], tmp_path: Path
) -> None:
    for result in run_ranks(poisoned, 2, tmp_path, Task(model=models[True], engine=engine_config(stage, dtype))):
        assert "not finite" in result["message"]
        assert result["untouched"]
        assert result["norms"][0] == result["norms"][1]
        assert result["same_after"]


def only_dummies_on_one_rank(context: RankContext, task: Task) -> dict[str, Any]:
    """Gradient of one step where rank 1 has nothing but dummies: must be rank 0's alone, and exactly so."""
    engine = start_engine(context, task)
    batch = packed(*step_sequences(0)) if context.rank == 0 else packed()

    def loss_fn(index: int, outputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        assert context.rank == 0, "a dummy has no loss"
        return outputs[0].sum() / 10, {"loss": outputs[0].sum()}

    metrics = engine.forward_backward([batch, packed()], loss_fn, temperature=1.0, with_entropy=True)
    outputs = engine.forward(packed(), temperature=1.0, with_entropy=True)
    return {
        "metrics": metrics,
        "norm": engine.step(1e-3),
        "digest": engine.digest(),
        "dummy": [output.tolist() for output in outputs],
    }


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_dummies_add_nothing(stage: int, models: dict[bool, str], tmp_path: Path) -> None:
    task = Task(model=models[False], engine=engine_config(stage))
    first, second = run_ranks(only_dummies_on_one_rank, 2, tmp_path, task)
    (alone,) = run_ranks(only_dummies_on_one_rank, 1, tmp_path, task)
    assert first["dummy"] == [[0.0], [0.0]]
    assert second["metrics"] == {}
    assert first["metrics"].keys() == {"loss"}
    assert first["norm"] == second["norm"] == pytest.approx(alone["norm"], rel=1e-6)
    assert first["digest"] == second["digest"]


def frozen_answers(context: RankContext, task: Task) -> dict[str, Any]:
    join_process_group(context)
    module = load_policy(task.model, task.engine, device=context.device)
    engine = Engine(module, engine=task.engine, optimizer=None, context=context)
    logprobs, entropy = engine.forward(packed(*step_sequences(0)), temperature=TEMPERATURE, with_entropy=True)
    return {
        "logprobs": logprobs,
        "entropy": entropy,
        "digest": engine.digest(),
        "names": [name for name, _ in engine.iter_full_parameters()],
        "moved": (engine.offload(), engine.onload()),
    }


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_frozen_engine_replicated_and_sharded_agree(dtype: str, models: dict[bool, str], tmp_path: Path) -> None:
    replicated = run_ranks(frozen_answers, 1, tmp_path, Task(model=models[True], engine=engine_config(0, dtype)))[0]
    for sharded in run_ranks(frozen_answers, 2, tmp_path, Task(model=models[True], engine=engine_config(3, dtype))):
        assert sharded["logprobs"].dtype == torch.float32
        torch.testing.assert_close(sharded["logprobs"], replicated["logprobs"], atol=1e-6, rtol=0)
        torch.testing.assert_close(sharded["entropy"], replicated["entropy"], atol=1e-5, rtol=0)
        assert sharded["digest"] == replicated["digest"]
        assert sharded["names"] == replicated["names"]
        assert sharded["moved"] == (False, False)


def start_frozen(context: RankContext, task: Task) -> str:
    join_process_group(context)
    module = load_policy(task.model, task.engine, device=context.device)
    with pytest.raises(UserError) as error:
        Engine(module, engine=task.engine, optimizer=None, context=context)
    return str(error.value)


def test_models_that_attend_across_a_pack_are_refused(tmp_path: Path) -> None:
    config = transformers.OPTConfig(
        vocab_size=96, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, ffn_dim=48, word_embed_proj_dim=32
    )
    transformers.OPTForCausalLM(config).save_pretrained(tmp_path / "opt")
    (message,) = run_ranks(start_frozen, 1, tmp_path, Task(model=str(tmp_path / "opt"), engine=engine_config(0)))
    assert "opt models let packed sequences see each other" in message
