"""Suggestions: each is tried, so what it says of its effect must be what planning and estimating the changed config gives."""

import re
from functools import cache
from pathlib import Path

import pytest

from configs.load import load_config
from configs.schema import Stage
from orchestrator.estimate.estimate import stages_of
from orchestrator.estimate.records import Estimate, Suggestion
from orchestrator.estimate.steps import Lengths
from orchestrator.estimate.timing import full_estimates, model_works, role_models
from orchestrator.plan import make_plan, num_gpus
from tests.orchestrator.estimate.step_cases import PPO_8B

H100 = "cluster.gpu=h100-80gb"
HEAVY = ("policy.engine.activation_checkpointing=false", "critic.engine.activation_checkpointing=false")


@cache
def estimated(*overrides: str, recipe: str = PPO_8B, lengths: Lengths | None = None) -> Estimate:
    config = load_config(recipe, overrides)
    plans = {name: make_plan(stage, None) for name, stage in stages_of(config).items()}
    [found] = full_estimates(config, plans, lengths=lengths).values()
    return found


def lacking(estimate: Estimate) -> float:
    """Bytes that are too many, over all groups."""
    rooms = [group.headroom_bytes for group in estimate.groups.values()]
    return sum(max(0.0, -room) for room in rooms if room is not None)


def of(suggestion: Suggestion, *overrides: str) -> Estimate:
    """What the suggestion's overrides really give."""
    return estimated(*overrides, *suggestion.change.split(" "))


def test_what_does_not_fit_gets_changes_that_make_it_fit() -> None:
    before = estimated(H100, *HEAVY)
    assert lacking(before) > 0
    assert len(before.suggestions) > 1
    for suggestion in before.suggestions:
        assert "fits" in suggestion.effect
        assert lacking(of(suggestion, H100, *HEAVY)) == 0
        assert suggestion.gain == pytest.approx(lacking(before))


def test_where_no_single_change_is_enough_there_are_several_together() -> None:
    """On 40 GB not even the frozen models' GPU has room for both."""
    small = ("cluster.gpu=a100-40gb", "reference.engine.dtype=fp32", *HEAVY)
    before = estimated(*small)
    best = before.suggestions[0]
    assert best.change.count("=") > 1
    saved = [lacking(before) - lacking(of(each, *small)) for each in before.suggestions]
    assert saved == pytest.approx([each.gain for each in before.suggestions])
    assert saved[0] == max(saved)


def test_more_gpus_come_after_what_fits_without_them_and_are_never_to_save_time() -> None:
    found = estimated(H100, "policy.placement.num_ranks=2").suggestions
    takes_more = ["GPUs" in each.effect for each in found]
    assert takes_more == sorted(takes_more)
    assert not takes_more[0]
    assert any(each.change == "policy.placement.num_ranks=4" and "7 -> 9 GPUs, fits" in each.effect for each in found)
    assert not any("num_ranks=6" in each.change for each in estimated(H100).suggestions)


SFT = """\
stage: sft
run: {dir: r}
cluster: {device: cuda, gpu: l4}
data: {path: d.jsonl, max_rows: 1000}
model: {model: Qwen/Qwen3-8B, engine: {dtype: bf16, zero_stage: 3, activation_checkpointing: true}, placement: {num_ranks: 8}}
"""
RANK = """\
stage: rank
run: {dir: r}
cluster: {device: cuda, gpu: h100-80gb}
data: {path: d.jsonl}
policy: {model: Qwen/Qwen3-32B}
rollout: {dtype: bf16, responses_per_prompt: 4}
annotator: {function: "a:f"}
"""


@pytest.mark.parametrize(
    ("text", "change"),
    [(SFT, "model.placement.num_ranks=16"), (RANK, "rollout.tensor_parallel=2")],
)
def test_stages_without_ppo_get_more_gpus_too(text: str, change: str, tmp_path: Path) -> None:
    """8B on 8 x 24 GB, and an engine of 32B on half a GPU of 80 GB."""
    recipe = tmp_path / "c.yaml"
    recipe.write_text(text, "utf-8")
    before = estimated(recipe=str(recipe))
    [found] = [each for each in before.suggestions if each.change == change]
    assert re.search(r"\d+ -> \d+ GPUs, fits", found.effect)
    assert lacking(estimated(change, recipe=str(recipe))) == 0


def test_frozen_models_that_do_not_fit_are_sharded_over_more_gpus() -> None:
    """No single change makes the reference's and the reward model's GPU of 24 GB hold two models of 8B."""
    small = ("cluster.groups.scorers.gpu=l4", H100)
    found = estimated(*small).suggestions
    parts = {"reference.engine.zero_stage=3", "reward.model.engine.zero_stage=3"}
    assert parts < set(found[0].change.split(" "))
    assert re.search(r"8 -> \d GPUs, fits", found[0].effect)
    assert lacking(of(found[0], *small)) == 0


def test_what_fits_gets_changes_that_save_the_seconds_they_say() -> None:
    before = estimated(H100)
    assert lacking(before) == 0
    assert before.time is not None
    assert before.suggestions
    gains = [suggestion.gain for suggestion in before.suggestions]
    assert gains == sorted(gains, reverse=True)
    for suggestion in before.suggestions:
        after = of(suggestion, H100)
        assert lacking(after) == 0
        assert after.time is not None
        config = load_config(PPO_8B, (H100, *suggestion.change.split(" ")))
        assert isinstance(config, Stage)
        # which the locks do not have
        assert ("flash_attention_2" in suggestion.change) == ("needs the package flash-attn" in suggestion.effect)
        gpus = num_gpus(make_plan(config, None))
        assert gpus <= 8
        assert (before.time.step_s * 8 - after.time.step_s * gpus) / 8 == pytest.approx(suggestion.gain)


def test_ranks_move_from_an_idle_group_to_the_one_that_all_wait_for() -> None:
    """Twelve critics and one engine: with short answers to many prompts the engine would like some of their GPUs."""
    lopsided = (H100, "critic.placement.num_ranks=12", "rollout.prompts_per_wave=8")
    changes = [each.change for each in estimated(*lopsided).suggestions]
    assert any("critic.placement.num_ranks=11" in change for change in changes)


def test_an_engine_whose_cache_holds_no_sequence_gets_more_memory() -> None:
    before = estimated(H100, "rollout.gpu_memory_frac=0.2")
    assert before.time is None
    assert any("does not hold one longest sequence" in text for text in before.unknown)
    assert before.suggestions[0].change.startswith("rollout.gpu_memory_frac=")
    assert of(before.suggestions[0], H100).time is not None


def test_on_a_cpu_there_is_neither_time_nor_suggestion() -> None:
    found = estimated(recipe="configs/recipes/bandit.yaml")
    assert (found.time, found.suggestions) == (None, ())


def test_without_a_kind_of_gpu_or_the_sizes_of_a_model_there_is_no_time() -> None:
    assert estimated("cluster.gpu=null").time is None
    assert estimated(H100, "policy.model=no/such-model").time is None


def test_given_lengths_shorten_the_step() -> None:
    longest, mean = estimated(H100), estimated(H100, lengths=Lengths(prompt_tokens=200, response_tokens=300))
    assert longest.time is not None
    assert mean.time is not None
    assert mean.time.step_s < 0.4 * longest.time.step_s


def test_the_critic_has_the_model_it_starts_from() -> None:
    def models(*overrides: str) -> dict[str, str | None]:
        config = load_config(PPO_8B, overrides)
        assert isinstance(config, Stage)
        return role_models(config)

    assert models()["critic"] == models()["reward"] == "Skywork/Skywork-Reward-V2-Qwen3-8B"
    assert models("critic.init_from=policy")["critic"] == "Qwen/Qwen3-8B"
    assert models("reference.model=Qwen/Qwen3-32B")["reference"] == "Qwen/Qwen3-32B"
    assert models()["rollout"] == models()["reference"] == "Qwen/Qwen3-8B"


def test_critic_and_reward_have_a_scalar_head() -> None:
    [stage] = stages_of(load_config(PPO_8B)).values()
    works = model_works(stage, make_plan(stage, None), {})
    assert works["policy"].total_parameters == works["rollout"].total_parameters == 8_190_735_360
    assert works["critic"].total_parameters == works["reward"].total_parameters == 8_190_735_360 - 151_936 * 4096 + 4096


def test_a_pipelines_stage_has_the_sizes_of_the_model_beneath_its_own(tmp_path: Path) -> None:
    recipe = tmp_path / "pipeline.yaml"
    recipe.write_text(
        "stage: pipeline\nrun: {dir: r}\ncluster: {device: cuda, gpu: h100-80gb}\nstages:\n"
        "  sft: {stage: sft, data: {path: d.jsonl}, model: &m {model: Qwen/Qwen2.5-1.5B, engine: {dtype: bf16, zero_stage: 2}}}\n"
        "  again: {stage: sft, data: {path: d.jsonl}, model: {model: 'stage:sft', engine: {dtype: bf16, zero_stage: 2}}}\n",
        "utf-8",
    )
    config = load_config(recipe)
    plans = {name: make_plan(stage, None) for name, stage in stages_of(config).items()}
    found = full_estimates(config, plans)
    assert found["sft"].time == found["again"].time
    assert found["sft"].time is not None
