"""Weight syncs into real vLLM engines: that they are right, and that each way in which they can be wrong is caught.

The engines live in Ray actors, the policy is a plain transformers model in this process. Tests leave the pair synced.

Legend: `T` tokens.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import pytest
import ray
import torch
from torch import Tensor

from actors.errors import SyncFailed
from actors.rollout import Rollout
from actors.weight_sync.bucket import Bucket
from actors.weight_sync.channel import Deadline, Engines
from actors.weight_sync.cpu import CpuChannel
from actors.weight_sync.nccl import NcclChannel
from actors.weight_sync.proof import probe_gap
from actors.weight_sync.reports import check_drill, check_probe
from tests.actors.weight_sync.engine_parts import (
    TOLERANCE,
    VOCAB_SIZE,
    Pair,
    local_ray,
    plain_logprobs,
    rollout_config,
    start_pair,
    unit,
)
from tests.tiny_models import make_tiny_causal_lm

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    with local_ray():
        yield


@pytest.fixture(scope="module")
def tied(cluster: None, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    folder = tmp_path_factory.mktemp("tied")
    model = make_tiny_causal_lm(folder / "model", tied=True, vocab_size=VOCAB_SIZE)
    return start_pair(model, folder, rollout_config(temperature=0.7))


@pytest.fixture(scope="module")
def untied(cluster: None, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    folder = tmp_path_factory.mktemp("untied")
    model = make_tiny_causal_lm(folder / "model", tied=False, vocab_size=VOCAB_SIZE)
    return start_pair(model, folder, rollout_config(temperature=1.0))


@pytest.fixture(params=["tied", "untied"])
def pair(request: pytest.FixtureRequest) -> Pair:
    return request.getfixturevalue(request.param)


# ---- right


def test_after_each_of_several_syncs_the_engine_answers_with_the_policys_weights(pair: Pair) -> None:
    for _ in range(3):
        before = pair.policy
        pair.scramble()
        sent = pair.sync()
        assert (sent.policy_version, sent.num_tensors) == (pair.version, len(pair.named()))
        assert sent.num_bytes == sum(tensor.nbytes for _, tensor in pair.named())
        assert sent.num_buckets > 1, "the test is to cross a bucket's border"
        trajectories, summary = pair.call(Rollout.generate, unit(pair.version))
        check_probe(pair.gap(trajectories), TOLERANCE)
        check_probe(pair.gap(pair.probe(0, 16)), TOLERANCE)
        assert sum(summary.num_loss_tokens) > 30
        assert before is pair.policy


def test_drill(pair: Pair) -> None:
    """Halved weights: the answers become the halved policy's, far from the real one's; then the real ones go in again, bit for bit."""
    pair.scramble()
    real = {name: tensor.clone() for name, tensor in pair.named()}
    with torch.no_grad():
        for _, parameter in pair.policy.named_parameters():
            parameter.mul_(0.5)
    pair.sync()
    probe = pair.probe(0, 16)
    with_perturbed = pair.gap(probe)
    with torch.no_grad():
        for _, parameter in pair.policy.named_parameters():
            parameter.mul_(2.0)
    with_real = pair.gap(probe)
    check_drill(with_perturbed, with_real, TOLERANCE)
    assert with_real.max_gap_scaled > 1000 * TOLERANCE
    assert all(torch.equal(real[name], tensor) for name, tensor in pair.named())
    pair.sync()
    check_probe(pair.gap(pair.probe(0, 16)), TOLERANCE)


def test_by_broadcast_the_engine_gets_the_same_weights(tied: Pair) -> None:
    """The whole of the NCCL channel but NCCL itself: gloo carries the bytes."""
    channel = NcclChannel(Engines([tied.engine]), workers_per_engine=1, device=torch.device("cpu"), backend="gloo")
    tied.sender.connect_by(channel)
    for _ in range(2):
        tied.scramble()
        sent = tied.sync()
        assert sent.num_buckets > 1
        check_probe(tied.gap(tied.probe(0, 16)), TOLERANCE)
    tied.sender.connect([tied.engine], "cpu")
    tied.scramble()
    tied.sync()
    check_probe(tied.gap(tied.probe(0, 16)), TOLERANCE)


# ---- wrong, and caught


def test_an_engine_that_was_never_synced_does_not_answer(cluster: None, tied: Pair) -> None:
    state = tied.run(_swap_state, "unsynced")
    with pytest.raises(SyncFailed, match="answers only after a whole weight sync"):
        tied.probe(0, 4)
    tied.run(_swap_state, state)


def _swap_state(rollout: Rollout, state: str) -> str:
    old, rollout.state = rollout.state, state  # type: ignore[assignment]
    return old


def test_a_stale_version_is_refused(tied: Pair) -> None:
    tied.scramble()
    tied.sync()
    for version in (tied.version - 1, tied.version + 1):
        with pytest.raises(
            SyncFailed, match=f"holds policy version {tied.version}, the unit asks for version {version}"
        ):
            tied.call(Rollout.generate, unit(version))
    tied.call(Rollout.generate, unit(tied.version))


@pytest.mark.parametrize(
    ("dropped", "named"),
    [
        ("model.layers.0.self_attn.k_proj.weight", "model.layers.0.self_attn.qkv_proj.weight"),
        ("model.layers.1.mlp.gate_proj.weight", "model.layers.1.mlp.gate_up_proj.weight"),
        ("model.layers.1.mlp.down_proj.weight", "model.layers.1.mlp.down_proj.weight"),
        ("model.norm.weight", "model.norm.weight"),
        ("model.embed_tokens.weight", "model.embed_tokens.weight"),
    ],
)
def test_a_tensor_that_the_sender_leaves_out_is_named(untied: Pair, dropped: str, named: str) -> None:
    """Checksums can't see it: sent and received agree. The engine's own list of parameters does, a part of a fused one included."""
    untied.scramble()
    with pytest.raises(SyncFailed, match=f"{named}: not, or not wholly, overwritten"):
        untied.sync([(name, tensor) for name, tensor in untied.named() if name != dropped])
    with pytest.raises(SyncFailed, match="'broken'"):
        untied.call(Rollout.generate, unit(untied.version))
    untied.heal()


def test_a_missing_untied_head_is_named(untied: Pair) -> None:
    with pytest.raises(SyncFailed, match=r"lm_head\.weight: not, or not wholly, overwritten"):
        untied.sync([(name, tensor) for name, tensor in untied.named() if name != "lm_head.weight"])
    untied.heal()


class FlippingChannel(CpuChannel):
    """Flips one bit of one bucket in transit."""

    def push(self, bucket: Bucket, payload: Tensor, deadline: Deadline) -> None:
        if bucket.index == 1:
            payload[bucket.slots[0].offset + 5] ^= 4
        super().push(bucket, payload, deadline)


class LosingChannel(CpuChannel):
    """Loses one bucket in transit."""

    def push(self, bucket: Bucket, payload: Tensor, deadline: Deadline) -> None:
        if bucket.index != 1:
            super().push(bucket, payload, deadline)


class DoublingChannel(CpuChannel):
    """Delivers one bucket twice."""

    def push(self, bucket: Bucket, payload: Tensor, deadline: Deadline) -> None:
        super().push(bucket, payload, deadline)
        if bucket.index == 0:
            super().push(bucket, payload, deadline)


@pytest.mark.parametrize(
    ("channel", "message"),
    [
        (FlippingChannel, "changed on the way"),
        (LosingChannel, "sent but not received"),
        (DoublingChannel, "came twice in one weight sync"),
    ],
)
def test_a_channel_that_harms_a_bucket_is_caught(untied: Pair, channel: type[CpuChannel], message: str) -> None:
    untied.scramble()
    untied.sender.connect_by(channel(Engines([untied.engine])))
    with pytest.raises(SyncFailed, match=message):
        untied.sync()
    with pytest.raises(SyncFailed, match="'broken'"):
        untied.probe(0, 4)
    with pytest.raises(SyncFailed, match="of no more use"):
        untied.sender.connect([untied.engine], "cpu")
    untied.heal()


def test_an_old_tied_head_is_caught_by_the_probe(tied: Pair) -> None:
    """Every checksum agrees and every parameter is overwritten, yet vLLM computes with the packed copy of the old head."""
    tied.scramble()
    tied.run(_patch, "actors.weight_sync.worker", "refresh_followers", "do_nothing")
    sent = tied.sync()
    assert sent.policy_version == tied.version
    report = tied.gap(tied.probe(0, 16))
    assert report.max_gap_scaled > 0.1
    with pytest.raises(SyncFailed, match="disagree on the probe"):
        check_probe(report, TOLERANCE)
    tied.run(_unpatch, "actors.weight_sync.worker", "refresh_followers")
    tied.sync()
    check_probe(tied.gap(tied.probe(0, 16)), TOLERANCE)


def test_a_prefix_cache_that_is_not_reset_is_caught(tied: Pair) -> None:
    """vLLM is made to answer that it reset the cache without doing so."""
    tied.scramble()
    tied.run(_keep_prefix_cache)
    with pytest.raises(SyncFailed, match="tokens of a known prompt were answered from old weights"):
        tied.sync()
    tied.run(_reset_prefix_cache_again)
    tied.heal()


def test_a_prefix_cache_that_refuses_the_reset_is_caught(tied: Pair) -> None:
    tied.run(_refuse_prefix_cache_reset)
    with pytest.raises(SyncFailed, match="did not reset its prefix cache"):
        tied.sync()
    tied.run(_reset_prefix_cache_again)
    tied.heal()


def test_raw_log_probabilities_are_caught_by_the_probe(tied: Pair) -> None:
    """vLLM's default reports log-probabilities before the temperature; at 0.7 they are not those sampled from."""
    tied.run(_set_logprobs_mode, "raw_logprobs")
    report = tied.gap(tied.probe(0, 16))
    with pytest.raises(SyncFailed, match="disagree on the probe"):
        check_probe(report, TOLERANCE)
    trajectories = tied.probe(0, 16)
    raw = probe_gap(trajectories, plain_logprobs(tied.policy, trajectories, 1.0))
    assert raw.max_gap_scaled < TOLERANCE, "the patched engine does report raw ones"
    tied.run(_set_logprobs_mode, "processed_logprobs")
    check_probe(tied.gap(tied.probe(0, 16)), TOLERANCE)


def test_an_answer_in_the_middle_of_a_sync_breaks_the_engine(untied: Pair) -> None:
    untied.call(Rollout.begin_update, 99)
    with pytest.raises(SyncFailed, match="'broken'"):
        untied.call(Rollout.generate, unit(untied.version))
    untied.heal()


def test_a_sync_that_ends_for_another_version_is_refused(untied: Pair) -> None:
    untied.call(Rollout.begin_update, 7)
    with pytest.raises(SyncFailed, match="began for policy version 7 and ends for 8"):
        untied.call(Rollout.finish_update, 8, {})
    untied.heal()


def test_an_engine_that_stops_answering_fails_the_sync_in_time(untied: Pair) -> None:
    """The engine's process is alive and hangs inside a bucket; the policy's iteration is still exhausted, for its peers' sake."""
    untied.run(_patch, "actors.weight_sync.worker", "checksum", "wait_long")
    untied.sender._config = untied.sender._config.model_copy(update={"timeout_s": 2.0})
    named = iter(untied.named())
    start = time.monotonic()
    with pytest.raises(SyncFailed, match="engine 0: load_bucket: no answer within the 2 s"):
        untied.sender.send(named, 50)
    assert time.monotonic() - start < 6
    assert list(named) == []
    ray.kill(untied.engine)


# ---- what runs inside the engine's process


def _patch(rollout: Rollout, module: str, name: str, by: str) -> None:
    import importlib

    loaded = importlib.import_module(module)
    setattr(loaded, f"kept_{name}", getattr(loaded, name))
    setattr(loaded, name, {"do_nothing": lambda *args: None, "wait_long": lambda *args: threading.Event().wait(60)}[by])


def _unpatch(rollout: Rollout, module: str, name: str) -> None:
    import importlib

    loaded = importlib.import_module(module)
    setattr(loaded, name, getattr(loaded, f"kept_{name}"))


def _keep_prefix_cache(rollout: Rollout) -> None:
    rollout._backend._llm.reset_prefix_cache = lambda: True


def _refuse_prefix_cache_reset(rollout: Rollout) -> None:
    rollout._backend._llm.reset_prefix_cache = lambda: False


def _reset_prefix_cache_again(rollout: Rollout) -> None:
    del rollout._backend._llm.reset_prefix_cache
    assert rollout._backend._llm.reset_prefix_cache()


def _set_logprobs_mode(rollout: Rollout, mode: str) -> None:
    for worker in rollout._backend._llm.collective_rpc(lambda worker: worker):
        sampler = worker.model_runner.sampler
        sampler.logprobs_mode = sampler.topk_topp_sampler.logprobs_mode = mode
