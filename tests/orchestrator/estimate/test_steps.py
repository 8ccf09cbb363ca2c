"""The time of whole steps: what the flow of each stage makes of the times of its parts."""

from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from configs.schema.ppo import PPOStage
from orchestrator.estimate.efficiencies import Efficiencies
from orchestrator.estimate.records import PhaseTime, StepTime
from orchestrator.estimate.steps import Given, Lengths, tasks_of_ppo
from orchestrator.plan_records import PPOPlan
from tests.orchestrator.estimate.step_cases import EIGHT_B, TOGETHER, gpu, hardware, planned, time_of


def spans(time: StepTime, role: str, phase: str) -> list[PhaseTime]:
    return [each for each in time.phases if (each.role, each.phase) == (role, phase)]


def seconds(time: StepTime, role: str, phase: str) -> float:
    """Of all spans; of a sync, that of one side."""
    found = spans(time, role, phase)
    return sum(each.end_s - each.start_s for each in found if each.group == found[0].group)


# ---------------------------------------------------------------------------------------------------------------- the flow


def test_where_roles_have_their_own_gpus_a_wave_is_scored_while_the_next_is_generated() -> None:
    time = time_of()
    waves = seconds(time, "rollout", "generate") / 4
    first = spans(time, "critic", "score")[0]
    assert first.start_s == pytest.approx(waves)
    assert [each.start_s for each in spans(time, "critic", "score")] == pytest.approx([waves * n for n in (1, 2, 3, 4)])
    [update] = spans(time, "policy", "update")
    assert update.start_s == max(each.end_s for each in time.phases if each.phase == "score")
    assert spans(time, "critic", "update")[0].start_s == update.start_s
    assert {each.group for each in spans(time, "policy", "sync")} == {"policy", "rollout"}
    assert spans(time, "policy", "sync")[0].start_s == update.end_s


def test_the_step_of_a_slow_critic_ends_with_its_update_and_the_sync_does_not_wait_for_it() -> None:
    time = time_of("critic.engine.activation_checkpointing=true", "policy.engine.activation_checkpointing=false")
    [update] = spans(time, "critic", "update")
    assert time.step_s == update.end_s
    assert spans(time, "policy", "sync")[0].start_s == spans(time, "policy", "update")[0].end_s < update.end_s


def test_where_engines_share_gpus_phases_follow_each_other() -> None:
    time = time_of(*TOGETHER)
    order = [(each.role, each.phase) for each in time.phases if each.bundle is None]
    turns = [("rollout", "turn"), ("policy", "turn"), ("critic", "turn")]
    scores = [(role, "score") for role in ("policy", "reference", "critic", "reward")] * 4
    end = [
        ("policy", "update"),
        ("critic", "update"),
        ("critic", "turn"),
        ("rollout", "turn"),
        ("policy", "sync"),
        ("policy", "turn"),
    ]
    assert order == [*turns, *scores, *end]
    assert time.idle_frac == {"all": pytest.approx(0, abs=1e-9)}
    assert [each.bundle for each in spans(time, "rollout", "generate")] == [0, 1, 2, 3]


def test_waves_go_to_their_engines_in_turn() -> None:
    one, two = time_of("rollout.num_engines=1"), time_of("rollout.num_engines=2")
    assert seconds(two, "rollout", "generate") == pytest.approx(seconds(one, "rollout", "generate"))
    ends = [max(each.end_s for each in spans(time, "rollout", "generate")) for time in (one, two)]
    assert ends[0] == pytest.approx(2 * ends[1])


def test_the_number_of_tasks_grows_with_the_waves_and_not_with_their_square() -> None:
    """A wave's scoring waits for all waves before it, through one chain."""
    config, plan = planned("ppo.prompts_per_step=1024", "rollout.prompts_per_wave=1", "ppo.minibatches=1")
    assert isinstance(config, PPOStage)
    assert isinstance(plan, PPOPlan)
    given_all = Given(
        works=dict.fromkeys(plan.roles, EIGHT_B), hardware=dict.fromkeys(plan.groups, hardware()), kv_tokens=3e5
    )
    tasks = tasks_of_ppo(config, plan, given_all)
    assert len(tasks) == 1024 * (1 + 1 + 4) + 3
    assert sum(len(task.after) for task in tasks) < 20 * len(tasks)


def test_epochs_repeat_the_updates_and_minibatches_divide_them() -> None:
    once, twice = time_of(), time_of("ppo.epochs=2")
    assert seconds(twice, "policy", "update") == pytest.approx(2 * seconds(once, "policy", "update"))
    # 256 trajectories in 4 minibatches: 64 over 3 ranks are 22, in micro-batches of 4 that is 6
    assert spans(twice, "policy", "update")[0].note == "8 updates, each: 6 micro-batches of up to 8,192 tokens"


def test_scalar_roles_and_missing_ones() -> None:
    time = time_of("ppo.kl.controller.coef=0")
    assert spans(time, "reference", "score") == []
    assert seconds(time, "critic", "score") < seconds(time, "policy", "score")


# ------------------------------------------------------------------------------------------------------------- what it sums to


def test_the_runs_time_hours_and_cost() -> None:
    time = time_of("cluster.gpu_hour_price=2.5")
    assert time.num_steps == 200
    assert time.run_s == pytest.approx(200 * time.step_s)
    assert time.gpu_hours == pytest.approx(8 * 200 * time.step_s / 3600)
    assert time.cost == pytest.approx(2.5 * 8 * 200 * time.step_s / 3600)
    assert time.tokens_per_s == pytest.approx(256 * 2048 / time.step_s)
    assert time_of().cost is None


def test_what_is_assumed_is_said_with_its_value() -> None:
    said = time_of(on=hardware(Efficiencies())).assumptions
    assert said[0].startswith("every prompt and answer is as long as the config allows")
    assert any(text.startswith("training 0.4: of the bf16 peak") for text in said)
    given_one = time_of(lengths=Lengths(response_tokens=300)).assumptions[0]
    assert given_one.startswith("every prompt is as long as the config allows, every answer has 300 tokens; a wave")


def test_the_critical_path_is_named_in_its_order() -> None:
    assert time_of().critical_path[0] == "generate (rollout)"
    assert time_of().critical_path[-2:] == ("update (policy)", "sync (policy)")


# ------------------------------------------------------------------------------------------------------------- other stages


def test_a_supervised_step_is_one_update_and_the_run_as_long_as_its_rows(tmp_path: object) -> None:
    recipe = f"{tmp_path}/sft.yaml"
    with open(recipe, "w", encoding="utf-8") as file:
        file.write(
            "stage: sft\nrun: {dir: r}\ncluster: {device: cuda}\ndata: {path: d.jsonl, max_tokens: 1000, max_rows: 164}\n"
            "model: {model: m, engine: {dtype: bf16, zero_stage: 2}, placement: {num_ranks: 4}}\n"
            "training: {sequences_per_step: 40, epochs: 3}\n"
        )
    time = time_of(recipe=recipe)
    assert [(each.role, each.phase) for each in time.phases] == [("policy", "update")]
    assert (time.num_steps, time.idle_frac) == (9, {"policy": 0})  # 100 rows in steps of 40: 3 of them, 3 times
    assert time.tokens_per_s == pytest.approx(40 * 1000 / time.step_s)
    shorter = time_of(recipe=recipe, lengths=Lengths(prompt_tokens=100, response_tokens=150))
    assert shorter.tokens_per_s == pytest.approx(40 * 250 / shorter.step_s)
    # an answer of unknown length may be as long as what the stage allows
    assert time_of(recipe=recipe, lengths=Lengths(prompt_tokens=100)).step_s == time.step_s


def test_a_step_of_ranking_is_a_wave_shared_by_the_engines(tmp_path: object) -> None:
    recipe = f"{tmp_path}/rank.yaml"
    with open(recipe, "w", encoding="utf-8") as file:
        file.write(
            "stage: rank\nrun: {dir: r}\ncluster: {device: cuda}\ndata: {path: d.jsonl}\npolicy: {model: m}\n"
            "rollout: {responses_per_prompt: 4, dtype: bf16}\nannotator: {function: 'a:f'}\n"
        )
    one, two = time_of(recipe=recipe), time_of("rollout.num_engines=2", recipe=recipe)
    assert (one.num_steps, one.run_s, one.gpu_hours) == (None, None, None)
    assert two.step_s == pytest.approx(one.step_s / 2)
    assert two.tokens_per_s == pytest.approx(2 * one.tokens_per_s)


# -------------------------------------------------------------------------------------------------- what must always hold

LAYOUTS = st.sampled_from([(), TOGETHER, ("rollout.num_engines=2", "policy.engine.zero_stage=2")])
REAL = hardware(Efficiencies())


@settings(max_examples=40)
@given(
    layout=LAYOUTS,
    prompt=st.floats(1, 1024),
    response=st.floats(1, 1024),
    kv_tokens=st.floats(1e3, 1e6),
    minibatches=st.sampled_from([1, 2, 4, 8]),
)
def test_of_any_step(
    layout: tuple[str, ...], prompt: float, response: float, kv_tokens: float, minibatches: int
) -> None:
    lengths = Lengths(prompt_tokens=prompt, response_tokens=response)
    time = time_of(*layout, f"ppo.minibatches={minibatches}", on=REAL, kv_tokens=kv_tokens, lengths=lengths)
    assert all(0 <= share <= 1 for share in time.idle_frac.values())
    assert max(each.end_s for each in time.phases) == pytest.approx(time.step_s)
    covered = sorted({(each.start_s, each.end_s) for each in time.phases if each.critical})
    assert sum(end - start for start, end in covered) == pytest.approx(time.step_s)
    for group in time.idle_frac:
        of_group = [each for each in time.phases if each.group == group]
        for bundle in {each.bundle for each in of_group} | {None}:
            mine = sorted((each.start_s, each.end_s) for each in of_group if each.bundle in (bundle, None))
            assert all(first[1] <= second[0] + 1e-9 for first, second in pairwise(mine))


@settings(max_examples=30)
@given(
    layout=LAYOUTS,
    rate=st.sampled_from(
        ["bf16_flops", "memory_bytes_per_s", "nvlink_bytes_per_s", "pcie_bytes_per_s", "network_bytes_per_s"]
    ),
    factor=st.floats(1.01, 50),
)
def test_a_faster_gpu_never_takes_longer(layout: tuple[str, ...], rate: str, factor: float) -> None:
    fast = replace(REAL, kind=gpu(**{rate: REAL.kind.model_dump()[rate] * factor}))
    assert time_of(*layout, on=fast).step_s <= time_of(*layout, on=REAL).step_s * (1 + 1e-12)


@settings(max_examples=30)
@given(layout=LAYOUTS, shorter=st.floats(1, 1000), more=st.floats(1, 1000), kv_tokens=st.floats(1e4, 1e6))
def test_longer_answers_are_never_faster(
    layout: tuple[str, ...], shorter: float, more: float, kv_tokens: float
) -> None:
    of = [Lengths(prompt_tokens=500, response_tokens=tokens) for tokens in (shorter, shorter + more)]
    times = [time_of(*layout, on=REAL, kv_tokens=kv_tokens, lengths=each).step_s for each in of]
    assert times[0] <= times[1] * (1 + 1e-12)


@settings(max_examples=20)
@given(engines=st.integers(1, 15), response=st.integers(1, 1024))
def test_another_engine_never_makes_the_same_waves_slower(engines: int, response: int) -> None:
    """Of waves that stay as they are; on one node, so that the sync's way stays the same."""
    wide = replace(REAL, gpus_per_node=64)
    lengths = Lengths(prompt_tokens=500, response_tokens=response)
    times = [
        time_of(f"rollout.num_engines={count}", "rollout.prompts_per_wave=16", on=wide, lengths=lengths).step_s
        for count in (engines, engines + 1)
    ]
    assert times[1] <= times[0] * (1 + 1e-12)


@settings(max_examples=20)
@given(ranks=st.integers(1, 30), role=st.sampled_from(["policy", "critic"]))
def test_another_rank_never_computes_longer(ranks: int, role: str) -> None:
    """Where links cost nothing: gathers over more ranks move a little more, which can outweigh what is saved."""
    free = replace(REAL, gpus_per_node=1000, kind=gpu(nvlink_bytes_per_s=1e18))
    times = [time_of(f"{role}.placement.num_ranks={count}", on=free).step_s for count in (ranks, ranks + 1)]
    assert times[1] <= times[0] * (1 + 1e-12)


def test_the_8b_recipe_is_what_these_tests_take_it_for() -> None:
    config, plan = planned()
    assert isinstance(config, PPOStage)
    assert (config.ppo.minibatches, len(plan.groups), EIGHT_B.num_layers) == (4, 4, 32)
