"""Training state out of one engine and into another: other ranks, other ZeRO stage, the same training."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from actors.context import RankContext
from actors.engine.state_files import FORMAT, index_states, share_out
from actors.errors import UserError
from tests.actors.engine.ranks import engine_config, relative_difference, run_ranks
from tests.actors.engine.training import Task, start_engine, train
from tests.tiny_models import make_tiny_causal_lm

# (stage, ranks, dtype) that writes, and that reads. On 3 ranks no tensor of the model divides evenly: stage 3 pads each.
MOVES = [
    ((2, 2, "fp32"), (3, 1, "fp32")),
    ((0, 1, "fp32"), (1, 2, "fp32")),
    ((3, 2, "fp32"), (0, 1, "fp32")),
    ((3, 3, "fp32"), (2, 2, "fp32")),
    ((1, 1, "fp32"), (3, 3, "fp32")),
    ((0, 2, "fp32"), (0, 2, "fp32")),
    ((1, 2, "fp32"), (1, 2, "fp32")),
    ((2, 2, "fp32"), (2, 2, "fp32")),
    ((3, 2, "fp32"), (3, 2, "fp32")),
    ((1, 2, "bf16"), (1, 2, "bf16")),
    ((2, 1, "bf16"), (2, 1, "bf16")),
    ((3, 2, "bf16"), (3, 2, "bf16")),
]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(make_tiny_causal_lm(tmp_path_factory.mktemp("model"), tied=True))


@pytest.mark.slow
@pytest.mark.parametrize(("writer", "reader"), MOVES)
def test_resumed_run_equals_uninterrupted(
    writer: tuple[int, int, str], reader: tuple[int, int, str], model: str, tmp_path: Path
) -> None:
    """Bit for bit where stage and ranks are the same; else the last step's movement to 1e-3 relative (sums in another order)."""
    state = str(tmp_path / "state")
    stage, num_ranks, dtype = writer
    written = run_ranks(
        train, num_ranks, tmp_path, Task(model=model, engine=engine_config(stage, dtype), steps=(0, 1), state_out=state)
    )
    files = [file for result in written for file in result["files"]]
    assert {name for name, _, _ in files} == {path.name for path in Path(state).iterdir()}
    for name, sha256, num_bytes in files:
        data = (Path(state) / name).read_bytes()
        assert (hashlib.sha256(data).hexdigest(), len(data)) == (sha256, num_bytes)

    stage, num_ranks, dtype = reader
    task = Task(model=model, engine=engine_config(stage, dtype), steps=(2,), state_in=state)
    resumed = run_ranks(train, num_ranks, tmp_path, task)[0]
    whole = run_ranks(train, num_ranks, tmp_path, Task(model=model, engine=engine_config(stage, dtype)))[0]
    assert all(torch.equal(resumed["start"][name], value) for name, value in written[0]["end"].items())
    if writer == reader:
        assert resumed["digest"] == whole["digest"]
        assert all(torch.equal(resumed["compute"][name], value) for name, value in whole["compute"].items())
    for name, value in whole["end"].items():
        begin = resumed["start"][name]
        assert relative_difference(resumed["end"][name] - begin, value - begin) <= 1e-3, name


def load_after_training(context: RankContext, task: Task, state: str) -> dict[str, Any]:
    """State into an engine that has already trained: nothing of before may stay."""
    train(context, task)
    engine = start_engine(context, task)
    files = engine.state_out(state)
    fresh = engine.digest()
    trained = start_engine(context, task)
    from tests.actors.engine.training import train_step

    train_step(trained, context, 0)
    trained.state_in(state)
    first = trained.digest()
    train_step(trained, context, 1)
    train_step(engine, context, 1)
    return {"fresh": fresh, "first": first, "after": trained.digest(), "expected": engine.digest(), "files": len(files)}


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_state_replaces_what_was_trained_before(stage: int, model: str, tmp_path: Path) -> None:
    task = Task(model=model, engine=engine_config(stage), steps=(0,))
    (result,) = run_ranks(load_after_training, 1, tmp_path, task, str(tmp_path / "state"))
    assert result["files"] == 1
    assert result["first"] == result["fresh"]
    assert result["after"] == result["expected"]


def save_watched(context: RankContext, task: Task, folder: str) -> dict[str, Any]:
    engine = start_engine(context, task)
    synced: list[int] = []
    real = os.fsync

    def fsync(handle: int) -> None:
        real(handle)
        synced.append(os.fstat(handle).st_ino)

    os.fsync = fsync  # type: ignore[assignment]
    try:
        engine.state_out(Path(folder))
    finally:
        os.fsync = real
    paths = [*Path(folder).iterdir(), Path(folder), Path(folder).parent]
    return {"files": len(paths) - 2, "lost": [str(path) for path in paths if path.stat().st_ino not in synced]}


def test_state_is_on_disk_when_it_is_called_written(model: str, tmp_path: Path) -> None:
    task = Task(model=model, engine=engine_config(0), steps=(0,))
    (result,) = run_ranks(save_watched, 1, tmp_path, task, str(tmp_path / "state"))
    assert result == {"files": 1, "lost": []}


def test_owners_share_the_load_and_agree() -> None:
    sizes = {"a": 7, "b": 5, "c": 4, "d": 1}
    assert share_out(sizes, 2) == {"a": 0, "b": 1, "c": 1, "d": 0}
    assert share_out(dict(reversed(sizes.items())), 2) == share_out(sizes, 2)


def shard(folder: Path, name: str, keys: list[str], **metadata: str) -> None:
    tensors = {key: torch.zeros(1) for key in keys}
    save_file(tensors, folder / f"state-{name}.safetensors", {"format": FORMAT, "num_steps": "3"} | metadata)


def test_bad_folders_are_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no training state"):
        index_states(tmp_path)
    shard(tmp_path, "0", ["master/a"])
    assert index_states(tmp_path)[0] == 3
    shard(tmp_path, "1", ["master/b"], num_steps="4")
    with pytest.raises(UserError, match=r"mixes steps \[3, 4\]"):
        index_states(tmp_path)
    shard(tmp_path, "1", ["master/a"])
    with pytest.raises(UserError, match="two checkpoints in one folder"):
        index_states(tmp_path)
    shard(tmp_path, "1", ["master/b"], format="other")
    with pytest.raises(UserError, match="format other"):
        index_states(tmp_path)


def load_state(context: RankContext, task: Task) -> str:
    engine = start_engine(context, task)
    with pytest.raises(UserError) as error:
        engine.state_in(task.state_in or "")
    return str(error.value)


def test_state_that_does_not_fit_the_model_is_refused(model: str, tmp_path: Path) -> None:
    state = tmp_path / "state"
    task = Task(model=model, engine=engine_config(0), steps=(0,), state_out=str(state), state_in=None)
    run_ranks(train, 1, tmp_path, task)
    (path,) = state.iterdir()
    tensors = load_file(path)
    del tensors["exp_avg/model.norm.weight"]
    save_file(tensors, path, {"format": FORMAT, "num_steps": "1"})
    (message,) = run_ranks(load_state, 1, tmp_path, Task(model=model, engine=engine_config(0), state_in=str(state)))
    assert "lacks ['exp_avg/model.norm.weight']" in message
    tensors["exp_avg/model.norm.weight"] = torch.zeros(63)
    save_file(tensors, path, {"format": FORMAT, "num_steps": "1"})
    (message,) = run_ranks(load_state, 1, tmp_path, Task(model=model, engine=engine_config(0), state_in=str(state)))
    assert message == f"{state}: exp_avg/model.norm.weight has shape (63,), the model's (64,)"
