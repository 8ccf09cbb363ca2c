"""The rollout role: records and seeds by hand, and a real engine's answers.

Legend: `T` tokens.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator
from pathlib import Path

import pytest
import ray
import torch
from transformers import AutoModelForCausalLM

from actors.algorithms.records import Trajectories
from actors.data.prompts import PromptRow
from actors.errors import UserError
from actors.rollout import Rollout, engine_environment, make_trajectories, request_seed, summarise
from actors.rollout_backend import Response
from actors.tasks import Busy
from actors.weight_sync.proof import probe_gap
from actors.weight_sync.reports import check_probe
from configs.schema.rollout import RolloutConfig, WeightSyncConfig
from tests.actors.weight_sync.engine_parts import (
    TOLERANCE,
    VOCAB_SIZE,
    Pair,
    context,
    local_ray,
    plain_logprobs,
    prompt_file,
    rollout_config,
    start_pair,
    unit,
)
from tests.tiny_models import EOS_ID, make_tiny_causal_lm

# ---- records


def test_trajectories_and_summary_by_hand() -> None:
    rows = [
        PromptRow(id="p", text="", token_ids=[5, 6, 7], columns={}),
        PromptRow(id="q", text="", token_ids=[5], columns={}),
    ]
    responses = [
        Response(tokens=(8, 2), logprobs=(-0.5, -1.5), truncated=False, num_cached_tokens=0),
        Response(tokens=(9,), logprobs=(-2.0,), truncated=True, num_cached_tokens=0),
    ]
    made = make_trajectories(("a", "b"), rows, responses, 4)
    assert made.tokens.tolist() == [5, 6, 7, 8, 2, 5, 9]
    assert made.cu_lengths.tolist() == [0, 5, 7]
    assert made.loss_mask.tolist() == [False, False, False, True, True, False, True]
    assert made.rollout_logprobs.tolist() == [0.0, 0.0, 0.0, -0.5, -1.5, 0.0, -2.0]
    assert made.truncated.tolist() == [False, True]
    assert [[(s.start, s.end, s.policy_version) for s in spans] for spans in made.version_spans] == [
        [(3, 5, 4)],
        [(1, 2, 4)],
    ]
    assert made.turn_offsets == ((3,), (1,))
    summary = summarise(made, wave=7, busy=Busy(started=0.0, seconds=1.0))
    assert (summary.wave, summary.lengths, summary.num_loss_tokens) == (7, (5, 2), (2, 1))
    assert (summary.prompt_ids, summary.truncated) == (("p", "q"), (False, True))
    each = [b"".join(token.to_bytes(8, "little") for token in one) for one in ((5, 6, 7, 8, 2), (5, 9))]
    lines = "\n".join(hashlib.sha256(one).hexdigest() for one in each)
    assert summary.token_digest == hashlib.sha256(lines.encode()).hexdigest()


def test_seeds_are_pinned_and_differ_in_every_part() -> None:
    digest = hashlib.sha256(b"11/3/4/0").digest()
    assert request_seed(11, 3, 4, 0) == int.from_bytes(digest[:8], "big") // 2
    seeds = {
        request_seed(run, step, slot, sample)
        for run in (0, 11)
        for step in (1, 11)
        for slot in (1, 2)
        for sample in (0, 1)
    }
    assert len(seeds) == 16
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_environment_of_an_engine() -> None:
    on_cpu = engine_environment(RolloutConfig(), 3, "cpu")
    assert on_cpu["OMP_NUM_THREADS"] == "3"
    assert on_cpu["VLLM_ENABLE_V1_MULTIPROCESSING"] == "0"
    assert on_cpu["VLLM_CPU_OMP_THREADS_BIND"] == "nobind"
    on_gpus = engine_environment(RolloutConfig(tensor_parallel=2), 3, "cuda")
    assert on_gpus["VLLM_WORKER_MULTIPROC_METHOD"] == "spawn"
    assert "VLLM_CPU_OMP_THREADS_BIND" not in on_gpus


# ---- a real engine


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    folder = tmp_path_factory.mktemp("rollout")
    model = make_tiny_causal_lm(folder / "model", tied=True, vocab_size=VOCAB_SIZE)
    with local_ray():
        pair = start_pair(model, folder, rollout_config(max_response_tokens=12))
        pair.sync()
        yield pair


def generate(pair: Pair, **changes: object) -> Trajectories:
    return pair.call(Rollout.generate, unit(pair.version, responses=3, **changes))[0]  # type: ignore[arg-type]


@pytest.mark.slow
def test_an_engine_says_what_it_started_with(pair: Pair) -> None:
    assert pair.report.num_prompts == 5
    assert pair.report.vocab_size == VOCAB_SIZE
    assert pair.report.end_token_ids == (EOS_ID,)
    assert pair.report.peak_memory_bytes > 1 << 28


@pytest.mark.slow
def test_answers_are_prompt_major_with_ids_of_step_slot_and_sample(pair: Pair) -> None:
    made, summary = pair.call(Rollout.generate, unit(pair.version, step=3, rows=(0, 2), responses=3))
    assert made.ids == tuple(f"00000003/{slot:06d}/{sample:03d}" for slot in (4, 5) for sample in range(3))
    assert made.prompt_ids == ("0", "0", "0", "2", "2", "2")
    starts = [made.tokens.split(made.lengths)[i][: made.turn_offsets[i][0]].tolist() for i in range(6)]
    assert starts[0] == starts[1] == starts[2] != starts[3]
    assert {span.policy_version for spans in made.version_spans for span in spans} == {pair.version}
    assert summary.lengths == tuple(made.lengths)
    assert len({tuple(tokens.tolist()) for tokens in made.tokens.split(made.lengths)}) == 6, (
        "samples of one prompt differ"
    )


@pytest.mark.slow
def test_the_same_unit_gives_the_same_bits_whatever_ran_before(pair: Pair) -> None:
    first = generate(pair)
    generate(pair, step=9, rows=(1, 0, 3, 4))  # fills the prefix cache with the same prompts
    again = generate(pair)
    assert torch.equal(first.tokens, again.tokens)
    assert torch.equal(first.rollout_logprobs, again.rollout_logprobs)
    assert not torch.equal(first.tokens, generate(pair, seed=12).tokens[: len(first.tokens)])
    assert not torch.equal(first.tokens, generate(pair, step=4).tokens[: len(first.tokens)])


@pytest.mark.slow
def test_ends_and_truncation_agree_with_the_tokens(pair: Pair) -> None:
    """Enough answers that some end by themselves: an end token closes a response, is part of it, and stands nowhere else."""
    with torch.no_grad():  # a policy that likes to end: its head's row of the end token along the mean hidden state
        before = pair.policy.model.embed_tokens.weight[EOS_ID].clone()
        pair.policy.model.embed_tokens.weight[EOS_ID] = 1.5 * before
        pair.sync()
        made = [generate(pair, step=step, rows=(0, 1, 2, 3, 4)) for step in range(20)]
        check_probe(pair.gap(made[0]), TOLERANCE)
        pair.policy.model.embed_tokens.weight[EOS_ID] = before
        pair.sync()
    ended = 0
    for one in made:
        for i, tokens in enumerate(one.tokens.split(one.lengths)):
            response = tokens[one.turn_offsets[i][0] :].tolist()
            assert EOS_ID not in response[:-1]
            assert bool(one.truncated[i]) == (response[-1] != EOS_ID)
            assert len(response) == 12 or not one.truncated[i]
            ended += not one.truncated[i]
    assert 0 < ended < 300


@pytest.mark.slow
def test_the_first_token_may_be_the_end_token(pair: Pair) -> None:
    """Nothing is masked before some least length: log-probabilities are of the whole vocabulary."""
    made = pair.probe(0, 1)
    mask = made.loss_mask
    assert int(mask.sum()) == 4
    expected = plain_logprobs(pair.policy, made, pair.temperature)[mask]
    assert torch.allclose(made.rollout_logprobs[mask], expected, atol=1e-5)


@pytest.mark.slow
def test_samples_follow_the_policys_distribution(pair: Pair) -> None:
    """First tokens over many seeds against the policy's own probabilities: chi-squared over the ten likeliest tokens and the rest."""
    draws: list[int] = []
    for step in range(40):
        made = generate(pair, step=step, rows=(0, 0, 0, 0, 0))
        draws += [int(tokens[made.turn_offsets[i][0]]) for i, tokens in enumerate(made.tokens.split(made.lengths))]
    prompt = made.tokens[: made.turn_offsets[0][0]]
    with torch.no_grad():
        probabilities = (pair.policy(prompt[None]).logits[0, -1] / pair.temperature).softmax(-1)
    top = probabilities.topk(10)
    expected = [float(p) * len(draws) for p in top.values]
    counts = [draws.count(int(token)) for token in top.indices]
    expected.append(len(draws) - math.fsum(expected))
    counts.append(len(draws) - sum(counts))
    chi2 = math.fsum((c - e) ** 2 / e for c, e in zip(counts, expected, strict=True))
    assert len(draws) == 600
    assert chi2 < 29.6, "the 99.9th percentile of chi-squared with 10 degrees of freedom"


@pytest.mark.slow
def test_the_probe_is_fixed_by_its_step(pair: Pair) -> None:
    first, again, other = (pair.probe(step, 8) for step in (5, 5, 6))
    assert torch.equal(first.tokens, again.tokens)
    assert first.tokens.shape != other.tokens.shape or not torch.equal(first.tokens, other.tokens)
    assert len(first.ids) == 4
    check_probe(pair.gap(first), TOLERANCE)


@pytest.mark.slow
def test_sleep_on_cpu_does_nothing_and_says_so(pair: Pair) -> None:
    assert pair.call(Rollout.sleep) is False
    assert pair.call(Rollout.wake) is False
    check_probe(pair.gap(pair.probe(0, 4)), TOLERANCE)


@pytest.mark.slow
def test_a_prompt_and_answer_longer_than_the_model_are_refused(pair: Pair, tmp_path: Path) -> None:
    folder = tmp_path
    model = make_tiny_causal_lm(folder / "model", tied=True)
    config = rollout_config(max_response_tokens=512)
    engine = ray.remote(Rollout).remote(context(folder), config, WeightSyncConfig(), prompt_file(folder), str(model))
    with pytest.raises(UserError, match=r"the longest prompt .* make 5\d\d tokens, but .* has 512 positions"):
        ray.get(engine.start.remote(), timeout=60)


@pytest.mark.slow
def test_an_engine_with_a_models_own_weights_answers_as_the_model_does(pair: Pair, tmp_path: Path) -> None:
    """As stage `rank` uses it: an exported model in vLLM gives the log-probabilities that it gives in transformers."""
    model = make_tiny_causal_lm(tmp_path / "model", tied=False, vocab_size=VOCAB_SIZE, seed=3)
    config = rollout_config(max_response_tokens=12, temperature=1.3)
    environment = {"env_vars": engine_environment(config, 1, "cpu")}
    arguments = (context(tmp_path), config, None, prompt_file(tmp_path), str(model))
    engine = ray.remote(Rollout).options(runtime_env=environment).remote(*arguments)
    ray.get(engine.start.remote(), timeout=120)
    made, _ = ray.get(engine.generate.remote(unit(0, responses=3)), timeout=120)
    plain = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
    check_probe(probe_gap(made, plain_logprobs(plain, made, 1.3)), TOLERANCE)
    ray.kill(engine)
