"""What to change in a config, each change with what it would do: found by planning and estimating the config with it.

Where the config does not fit, changes that bring it nearer, by bytes that are then no longer too many on a GPU of each group. Where it
fits, changes that make a step shorter without more GPUs, or that do with fewer, by the GPU-seconds of a step that they save; one that would
only not fit is tried again with less memory for the roles that lack it.

A change that the schema, the plan or a GPU's memory refuses is none.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from configs.errors import ConfigError
from configs.schema import Stage
from configs.schema.engine import EngineConfig, FrozenConfig, TrainerConfig
from configs.schema.ppo import PPOStage
from configs.schema.rank import RankStage
from configs.schema.rollout import RolloutConfig
from orchestrator.estimate.numbers import duration_text, gib_text
from orchestrator.estimate.records import Estimate, Suggestion
from orchestrator.plan import make_plan, num_gpus
from orchestrator.plan_records import Machine, Plan, PPOPlan

Change = dict[str, object]
"""Keys of the stage to their new values."""
Attempt = Callable[["_Tried", Change], "_Tried | None"]
"""A config with a further change; None where it is refused."""
Estimator = Callable[[Stage, Plan], Estimate]
"""What a config needs, without suggestions."""

MOST = 6
"""Suggestions shown."""
LEAST_GAIN_FRAC = 0.02
"""Of a step's GPU-seconds; less is within what an estimate can tell."""
MOST_TOGETHER = 4
"""Changes combined where none alone makes it fit."""
LEAST_PART = 0.05
"""Of the bytes that are too many, that a suggestion saves."""
MICRO_BATCH_LIMIT = 65536
"""Tokens of a micro-batch that a suggestion goes up to."""
MEMORY_FRAC_LIMIT = 0.9
"""Of a GPU, that a suggestion gives to an engine."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Tried:
    """A config with a change, and what it needs."""

    change: Change
    config: Stage
    plan: Plan
    estimate: Estimate

    @property
    def lacking(self) -> dict[str, float]:
        """Group to bytes that one of its GPUs has too few of, and engines to those that one sequence lacks; what fits is not in it."""
        found = {}
        for name, group in self.estimate.groups.items():
            headroom = group.headroom_bytes
            if headroom is not None and headroom < 0:
                found[name] = -headroom
        for role, engine in self.estimate.engines.items():
            if engine.sequences < 1:
                each = engine.kv_cache_bytes / engine.sequences if engine.sequences else engine.kv_bytes_per_token
                found[f"engine of {role}"] = each - engine.kv_cache_bytes
        return found

    @property
    def gpu_seconds(self) -> float | None:
        """Of a step."""
        return None if self.estimate.time is None else self.estimate.time.step_s * num_gpus(self.plan)

    @property
    def text(self) -> str:
        """As overrides; what is only said again is left out."""
        return " ".join(f"{key}={_value_text(value)}" for key, value in self.change.items())


def suggest(
    config: Stage, plan: Plan, estimate: Estimate, estimator: Estimator, machine: Machine | None
) -> tuple[Suggestion, ...]:
    """The best changes first. None on CPU, where nothing but the schema's own limits is known."""
    if config.cluster.device == "cpu":
        return ()
    base = _Tried(change={}, config=config, plan=plan, estimate=estimate)

    def attempt(on: _Tried, change: Change) -> _Tried | None:
        return _try(on, change, estimator, machine)

    tried = [found for change in _candidates(base) if (found := attempt(base, change)) is not None]
    if base.lacking:
        return _to_fit(base, tried, attempt)
    fitting = [each for each in tried if not each.lacking]
    fitting += [found for each in tried if each.lacking and (found := _leaner(base, each, attempt)) is not None]
    return _to_save(base, fitting)


def _try(base: _Tried, change: Change, estimator: Estimator, machine: Machine | None) -> _Tried | None:
    """None where schema or plan refuse it, or it changes nothing."""
    values, new = base.config.model_dump(mode="json"), {}
    for key, value in change.items():
        *above, last = key.split(".")
        section: dict[str, Any] = values
        for part in above:
            section = section[part]
        if section[last] != value:
            new[key] = section[last] = value
    try:
        config = type(base.config).model_validate(values)
        plan = make_plan(config, machine)
    except (ConfigError, ValidationError):
        return None
    if not new:
        return None
    return _Tried(change=base.change | new, config=config, plan=plan, estimate=estimator(config, plan))


# ----------------------------------------------------------------------------------------------------------- does not fit


def _to_fit(base: _Tried, tried: list[_Tried], attempt: Attempt) -> tuple[Suggestion, ...]:
    tried = [*tried, *(found for change in _more_gpus(base) if (found := attempt(base, change)) is not None)]
    useful = [each for each in tried if _helps(base, each, base)]
    # what fits with the GPUs that there are comes before what takes more; what only helps counts where nothing fits
    useful.sort(
        key=lambda each: (bool(each.lacking), num_gpus(each.plan), -_bytes_saved(base, each), each.gpu_seconds or 0.0)
    )
    if useful and all(each.lacking for each in useful):
        together = _together(base, useful, attempt)
        if len(together.change) > 1:
            useful.insert(0, together)
    enough = [each for each in useful if not each.lacking]
    return tuple(
        Suggestion(change=each.text, effect=_memory_effect(base, each), gain=_bytes_saved(base, each))
        for each in _of_their_own(enough or useful)[:MOST]
    )


def _more_gpus(base: _Tried) -> Iterator[Change]:
    """Twice the ranks for the roles of groups that lack memory."""
    lacking = [group for name, group in base.plan.groups.items() if name in base.lacking]
    for group in lacking:
        yield {_num_ranks_key(role): 2 * group.num_bundles for role in group.roles}


def _of_their_own(tried: list[_Tried]) -> list[_Tried]:
    """Without those that are a part of one before them, have it as a part, or change the same keys."""
    kept: list[_Tried] = []
    for each in tried:
        parts = each.change.items()
        if not any(
            parts <= other.change.items() or parts >= other.change.items() or each.change.keys() == other.change.keys()
            for other in kept
        ):
            kept.append(each)
    return kept


def _bytes_saved(base: _Tried, other: _Tried) -> float:
    return sum(base.lacking.values()) - sum(other.lacking.values())


def _helps(before: _Tried, after: _Tried, base: _Tried) -> bool:
    """Whether it saves a part worth naming of what `base` has too few of, or makes another group fit."""
    saved = _bytes_saved(before, after)
    return saved >= LEAST_PART * sum(base.lacking.values()) or (saved > 0 and len(after.lacking) < len(before.lacking))


def _together(base: _Tried, useful: list[_Tried], attempt: Attempt) -> _Tried:
    """Useful changes on top of each other, the best first, until it fits."""
    best, used = base, 0
    for each in useful:
        if used == MOST_TOGETHER or not best.lacking:
            break
        found = attempt(best, each.change)
        if found is not None and _helps(best, found, base):
            best, used = found, used + 1
    return best


def _memory_effect(base: _Tried, other: _Tried) -> str:
    texts = []
    for name in base.lacking:
        if name in base.estimate.groups and name in other.estimate.groups:
            before, after = base.estimate.groups[name].peak.amount, other.estimate.groups[name].peak.amount
            if before != after:
                texts.append(f"{name}: {gib_text(before)} -> {gib_text(after)} a GPU")
    lacking = other.lacking
    most = max(lacking, key=lambda name: lacking[name], default="")
    if num_gpus(other.plan) != num_gpus(base.plan):
        texts.append(f"{num_gpus(base.plan)} -> {num_gpus(other.plan)} GPUs")
    verdict = f"{most} still {gib_text(lacking[most])} too much" if lacking else "fits"
    slower = _step_text(base, other) if base.estimate.time and other.estimate.time else ""
    return ", ".join(filter(None, (*texts, verdict, slower, _lacking_package(other))))


# ---------------------------------------------------------------------------------------------------------------- is slow


def _to_save(base: _Tried, tried: list[_Tried]) -> tuple[Suggestion, ...]:
    """Only changes that take no more GPUs, and no longer a step than the GPUs that they free are worth."""
    found = sorted((each for each in tried if _worth(base, each)), key=lambda each: -_seconds_saved(base, each))
    return tuple(
        Suggestion(change=each.text, effect=_time_effect(base, each), gain=_seconds_saved(base, each))
        for each in _of_their_own(found)[:MOST]
    )


def _seconds_saved(base: _Tried, other: _Tried) -> float:
    """Of a step; GPUs that are freed count as much as those that are left."""
    if base.gpu_seconds is None or other.gpu_seconds is None:
        return 0.0
    return (base.gpu_seconds - other.gpu_seconds) / num_gpus(base.plan)


def _worth(base: _Tried, other: _Tried) -> bool:
    if base.estimate.time is None or num_gpus(other.plan) > num_gpus(base.plan):
        return False
    return _seconds_saved(base, other) >= LEAST_GAIN_FRAC * base.estimate.time.step_s


def _leaner(base: _Tried, lacking: _Tried, attempt: Attempt) -> _Tried | None:
    """What would be worth it but does not fit, with less memory for the trained roles that lack it; None where that does not do."""
    if not _worth(base, lacking):
        return None
    roles = [
        role for group in lacking.lacking if group in lacking.plan.groups for role in lacking.plan.groups[group].roles
    ]
    sections = [SECTIONS[role] for role in roles if role in TRAINED]
    if not sections:
        return None
    for saving in ({"activation_checkpointing": True}, {"offload_optimizer": True, "activation_checkpointing": True}):
        found = attempt(lacking, {f"{key}.engine.{name}": value for key in sections for name, value in saving.items()})
        if found is not None and not found.lacking:
            return found
    return None


def _time_effect(base: _Tried, other: _Tried) -> str:
    assert base.estimate.time is not None
    assert other.estimate.time is not None
    before, after = num_gpus(base.plan), num_gpus(other.plan)
    fewer = f"{before} -> {after} GPUs" if after != before else ""
    hours = (base.estimate.time.gpu_hours, other.estimate.time.gpu_hours)
    saved = (
        f"{hours[0] - hours[1]:,.0f} GPU-hours less in the run"
        if hours[0] and hours[1] and hours[0] - hours[1] >= 1
        else ""
    )
    return ", ".join(filter(None, (_step_text(base, other), fewer, saved, _lacking_package(other))))


def _lacking_package(other: _Tried) -> str:
    return "needs the package flash-attn" if "flash_attention_2" in other.change.values() else ""


def _step_text(base: _Tried, other: _Tried) -> str:
    assert base.estimate.time is not None
    assert other.estimate.time is not None
    before, after = base.estimate.time.step_s, other.estimate.time.step_s
    if abs(after / before - 1) < 0.005:
        return "a step as long as before"
    return f"step {duration_text(before)} -> {duration_text(after)} ({after / before - 1:+.0%})"


# ------------------------------------------------------------------------------------------------------------- candidates


SECTIONS = {"policy": "policy", "critic": "critic", "reference": "reference", "reward": "reward.model"}
"""Role of a PPO run to the section of its model."""
TRAINED = ("policy", "critic")


def _candidates(base: _Tried) -> Iterator[Change]:
    config = base.config
    if isinstance(config, PPOStage):
        sections: dict[str, TrainerConfig | FrozenConfig] = {"policy": config.policy, "critic": config.critic}
        if "reference" in base.plan.roles:
            sections["reference"] = config.reference
        if config.reward.model is not None:
            sections["reward"] = config.reward.model
        every = [
            list(_engine_changes(f"{SECTIONS[role]}.engine", section.engine, trained=role in TRAINED))
            for role, section in sections.items()
        ]
        for changes in every:
            yield from changes
        yield from _of_all(every)
        yield from _rollout_changes(config.rollout)
        yield from _moves(base)
        yield from _joint(base)
        assert isinstance(base.plan, PPOPlan)
        yield _everything_together(config, base.plan)
    elif isinstance(config, RankStage):
        yield from _rollout_changes(config.rollout)
    else:
        yield from _engine_changes("model.engine", config.model.engine, trained=True)


def _of_all(every: list[list[Change]]) -> Iterator[Change]:
    """The same change of every section that it is known for."""
    alike: dict[tuple[str, object], Change] = {}
    for changes in every:
        for change in changes:
            for key, value in change.items():
                alike.setdefault((key.rpartition(".")[2], value), {})[key] = value
    yield from (change for change in alike.values() if len(change) > 1)


def _engine_changes(key: str, engine: EngineConfig, *, trained: bool) -> Iterator[Change]:
    for stage in (0, 1, 2, 3) if trained else (0, 3):
        yield {f"{key}.zero_stage": stage}
    if trained:
        yield {f"{key}.activation_checkpointing": not engine.activation_checkpointing}
        yield {f"{key}.offload_optimizer": not engine.offload_optimizer}
    if engine.attention != "flash_attention_2":
        yield {f"{key}.attention": "flash_attention_2"}
    for tokens in (engine.micro_batch_tokens // 4, engine.micro_batch_tokens // 2, engine.micro_batch_tokens * 2):
        if 0 < tokens <= MICRO_BATCH_LIMIT:
            yield {f"{key}.micro_batch_tokens": tokens}
    if trained and engine.dtype == "fp32" and engine.zero_stage > 0:
        yield {f"{key}.dtype": "bf16"}


def _rollout_changes(rollout: RolloutConfig) -> Iterator[Change]:
    if rollout.enforce_eager:
        yield {"rollout.enforce_eager": False}
    for step in (-0.2, -0.1, 0.1, 0.2):
        share = round(rollout.gpu_memory_frac + step, 2)
        if 0 < share <= MEMORY_FRAC_LIMIT:
            yield {"rollout.gpu_memory_frac": share}
    for prompts in (rollout.prompts_per_wave // 2, rollout.prompts_per_wave * 2):
        if prompts:
            yield {"rollout.prompts_per_wave": prompts}
    engines, size = rollout.num_engines, rollout.tensor_parallel
    if engines % 2 == 0:
        yield {"rollout.num_engines": engines // 2, "rollout.tensor_parallel": size * 2}
    if size % 2 == 0:
        yield {"rollout.num_engines": engines * 2, "rollout.tensor_parallel": size // 2}


def _num_ranks_key(role: str) -> str:
    return "rollout.num_engines" if role == "rollout" else f"{SECTIONS[role]}.placement.num_ranks"


def _group_key(role: str) -> str:
    return "rollout.group" if role == "rollout" else f"{SECTIONS[role]}.placement.group"


def _moves(base: _Tried) -> Iterator[Change]:
    """GPUs from one group to another: as many as the other's next rank takes; and groups one bundle smaller."""
    groups = [group for group in base.plan.groups.values() if group.gpus_per_bundle]
    for giver in groups:
        if giver.num_bundles == 1:
            continue
        smaller: Change = {_num_ranks_key(role): giver.num_bundles - 1 for role in giver.roles}
        yield dict(smaller)
        for taker in groups:
            if taker != giver and taker.gpus_per_bundle == giver.gpus_per_bundle:
                yield smaller | {_num_ranks_key(role): taker.num_bundles + 1 for role in taker.roles}


def _joint(base: _Tried) -> Iterator[Change]:
    """One group's roles on another's GPUs, with as many ranks as that has."""
    groups = [group for group in base.plan.groups.values() if group.gpus_per_bundle]
    for guest in groups:
        for host in groups:
            if guest != host and "rollout" not in guest.roles:
                joined: Change = {_group_key(role): host.name for role in guest.roles}
                yield joined | {_num_ranks_key(role): host.num_bundles for role in guest.roles}


def _everything_together(config: PPOStage, plan: PPOPlan) -> Change:
    """All roles on all GPUs, taking turns; what leaves its GPU must be of a stage that can."""
    count = num_gpus(plan)
    on_gpus = [role for role, placed in plan.roles.items() if placed.gpus_per_rank]
    change: Change = {_group_key(role): "all" for role in on_gpus}
    change |= {_num_ranks_key(role): count for role in on_gpus}
    for role in TRAINED:
        change |= {f"{role}.engine.zero_stage": 2, f"{role}.engine.offload_optimizer": False}
    waves = min(config.rollout.prompts_per_wave, max(1, plan.prompts_per_step // count))
    return change | {"rollout.tensor_parallel": 1, "rollout.prompts_per_wave": waves}


def _value_text(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
