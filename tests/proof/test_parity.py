"""The gate: three PPO steps of the real parts end where a plain single-process script ends that was given the same trajectories.

Two epochs of two minibatches, KL in the reward, temperature 0.7, three waves, answers that end and answers that are cut off, fp32. Adam's
epsilon is 1e-4: with 1e-8, elements whose gradient is nearly 0 would be moved by their rounding.
"""

from __future__ import annotations

import hashlib
from dataclasses import replace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from actors.tasks import UpdateReport, WrittenFile
from actors.trainer import Trainer
from orchestrator.ledger import LedgerEntry
from orchestrator.metrics import whole_minibatches
from orchestrator.ppo_loop import PPOLoop
from tests.proof.comparison import compare, compare_numbers, note, plain_ppo, relative, stored_step
from tests.proof.parts import Parts, Run, Setting

pytestmark = pytest.mark.slow

NUMBERS, UPDATES = 1e-5, 1e-3
"""Largest relative difference of a loss, KL or gradient norm, and of a tensor's whole update."""

BUDGETS = {0: 64, 1: 100, 2: 40, 3: 48}
"""Tokens of a micro-batch by ZeRO stage: the same trajectories are packed differently."""
GRID = [
    Setting(tied=tied, zero_stage=stage, num_ranks=ranks, micro_batch_tokens=BUDGETS[stage] + 8 * ranks, new_head=tied)
    for tied in (True, False)
    for ranks in (1, 2)
    for stage in (0, 1, 2, 3)
]
OTHER_LOSS = Setting(
    zero_stage=2,
    num_ranks=2,
    new_head=False,
    ppo={
        "kl": {"where": "loss", "estimator": "k3", "controller": {"coef": 0.2}},
        "dual_clip": 1.02,
        "clip_high": 0.1,
        "aggregation": "sequence_mean",
        "entropy_coef": 0.01,
        "truncation": "terminal",
        "importance_cap": None,
    },
    optimizer={"warmup_steps": 3, "decay": "linear", "final_lr_frac": 0.1},
    engine={"activation_checkpointing": True, "logits_chunk_tokens": 5},
)
OTHER_REWARD = Setting(
    tied=False,
    zero_stage=3,
    num_ranks=2,
    micro_batch_tokens=40,
    ppo={
        "kl": {"estimator": "k2", "controller": {"kind": "adaptive", "coef": 0.3, "target": 0.1, "horizon": 50}},
        "gamma": 0.98,
        "gae_lambda": 0.9,
        "value_clip": None,
    },
    optimizer={"decay": "cosine", "warmup_steps": 1},
    engine={"activation_checkpointing": True},
)


def name_of(setting: Setting) -> str:
    return f"{'tied' if setting.tied else 'untied'}-zero{setting.zero_stage}-{setting.num_ranks}-ranks"


def require_parity(run: Run) -> None:
    difference = compare(run)
    note(name_of(run.setting), difference)
    assert difference.worst_number <= NUMBERS, difference
    assert difference.worst_update <= UPDATES, difference


@pytest.mark.parametrize("setting", GRID, ids=name_of)
def test_three_steps_end_where_the_plain_script_ends(parts: Parts, setting: Setting) -> None:
    run = parts.run(setting)

    truncated = [flag for entry in run.entries for wave in entry.waves for flag in wave.truncated]
    assert 5 < sum(truncated) < len(truncated) - 5
    assert [len(entry.waves) for entry in run.entries] == [3, 3, 3]
    assert run.entries[-1].metrics["policy/clip_frac"] > 0.05
    require_parity(run)


def test_kl_in_the_loss_dual_clip_clip_higher_sequence_mean_entropy_warm_up_and_checkpointing(parts: Parts) -> None:
    run = parts.run(OTHER_LOSS)

    for name in (
        "policy/clip_frac",
        "policy/dual_clip_frac",
        "critic/value_clip_frac",
        "policy/kl_loss",
        "policy/entropy",
    ):
        assert max(entry.metrics[name] for entry in run.entries) > 0, name
    require_parity(run)


def test_adaptive_coefficient_discount_and_cosine_decay(parts: Parts) -> None:
    run = parts.run(OTHER_REWARD)

    assert len({entry.kl_coef for entry in run.entries}) > 1
    require_parity(run)


def test_updates_that_remain_are_left_out_above_the_target_kl(parts: Parts) -> None:
    run = parts.run(Setting(zero_stage=2, num_ranks=2, micro_batch_tokens=56, ppo={"target_kl": 3e-3}))

    made = [(len(entry.updates["policy"]), len(entry.updates["critic"])) for entry in run.entries]
    assert any(0 < of_policy < of_critic for of_policy, of_critic in made), made
    require_parity(run)


@pytest.mark.parametrize("where", ["reward", "loss"])
def test_without_a_reference(parts: Parts, where: str) -> None:
    run = parts.run(Setting(ppo={"kl": {"where": where, "controller": {"coef": 0.0}}}))

    assert not any("kl" in entry.metrics or "busy_s/reference" in entry.metrics for entry in run.entries)
    require_parity(run)


def test_stored_trajectories_give_the_same_losses_with_one_rank_and_with_two(parts: Parts) -> None:
    run = parts.run(Setting())
    loop = parts.loop(Setting(zero_stage=2, num_ranks=2, micro_batch_tokens=40), run_dir=run.folder)

    for entry in run.entries:
        again = update_again(loop, entry)
        loop.waiter.wait([call for role in ("policy", "critic") for call in loop.groups[role].call(Trainer.end_step)])
        for role, reports in zip(("policy", "critic"), again, strict=True):
            for one, two in zip(entry.updates[role], whole_minibatches(reports), strict=True):
                assert one.keys() == two.keys()
                worst = max((relative(f"{role}/{name}", two[name], one[name]), name) for name in one)
                assert worst[0] <= NUMBERS, (entry.step, role, worst)


def test_importance_weights_count_where_engine_and_policy_differ(parts: Parts) -> None:
    """On CPU both agree to 1e-6, so the stored log-probabilities of the engine are moved, some beyond the cap, and the step replayed."""
    run = parts.run(Setting())
    entry = move_rollout_logprobs(run)
    loop = parts.loop(Setting(zero_stage=1, num_ranks=2), run_dir=run.folder)
    policy, critic = update_again(loop, entry)
    plain = plain_ppo(run.config)
    result = plain.run([stored_step(run, 1)])

    updates = {"policy": whole_minibatches(policy), "critic": whole_minibatches(critic)}
    assert 0.05 < updates["policy"][0]["importance_capped_frac"] < 0.5
    numbers = compare_numbers([updates], [entry.metrics["kl"]], result)
    assert max(numbers.values()) <= NUMBERS, numbers
    as_sampled = run.entries[0].updates["policy"][0]["loss"]
    assert abs(updates["policy"][0]["loss"] - as_sampled) > 1e-2


def move_rollout_logprobs(run: Run) -> LedgerEntry:
    """Rewrites the engine's log-probabilities of step 1 in its files, and the entry that vouches for them."""
    generator = torch.Generator().manual_seed(0)
    waves = []
    for wave in run.entries[0].trajectory_files:
        files = []
        for file in wave:
            path = run.folder / file.name
            table = pq.read_table(path)
            rows = [
                [
                    value + (0.6 * float(torch.randn((), generator=generator)) if chosen else 0.0)
                    for value, chosen in zip(*row, strict=True)
                ]
                for row in zip(table["rollout_logprobs"].to_pylist(), table["loss_mask"].to_pylist(), strict=True)
            ]
            column = table.schema.get_field_index("rollout_logprobs")
            pq.write_table(table.set_column(column, "rollout_logprobs", pa.array(rows, pa.list_(pa.float32()))), path)
            data = path.read_bytes()
            files.append(WrittenFile(name=file.name, sha256=hashlib.sha256(data).hexdigest(), num_bytes=len(data)))
        waves.append(tuple(files))
    return replace(run.entries[0], trajectory_files=tuple(waves))


def update_again(loop: PPOLoop, entry: LedgerEntry) -> list[list[UpdateReport]]:
    """The updates of a stored step, policy's and critic's."""
    calls = loop.steps.start_updates(entry.step, loop.steps.restore(entry), entry.kl_coef)
    return [loop.waiter.wait(of_role) for of_role in calls]
