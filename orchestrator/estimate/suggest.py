"""What to change in a config, each change with what it would do: found by planning and estimating the config with it.

Where the config does not fit, changes that bring it nearer, by bytes that are then no longer too many on a GPU of each group. Where it
fits, changes that make a step shorter without more GPUs, or that do with fewer, by the GPU-seconds of a step that they save; one that would
only not fit is tried again with less memory for the roles that lack it.

A change that the schema, the plan or a GPU's memory refuses is none.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from configs.errors import ConfigError
from configs.schema import Stage
from orchestrator.estimate.candidates import Change, candidates, more_gpus, trained_section
from orchestrator.estimate.numbers import duration_text, gib_text
from orchestrator.estimate.records import Estimate, Suggestion
from orchestrator.plan import make_plan, num_gpus
from orchestrator.plan_records import Machine, Plan

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
FIRSTS = 6
"""That such combinations begin with."""
LEAST_PART = 0.05
"""Of the bytes that are too many, that a suggestion saves."""


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

    tried = [found for change in candidates(base.config, base.plan) if (found := attempt(base, change)) is not None]
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
    tried = [
        *tried,
        *(
            found
            for change in more_gpus(base.config, base.plan, base.lacking)
            if (found := attempt(base, change)) is not None
        ),
    ]
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
    """Changes on top of each other, each of the best as the first in turn, until it fits; else what saves most."""
    found = []
    for first in useful[:FIRSTS]:
        found.append(_on_top(base, [first, *useful], attempt))
        if not found[-1].lacking:
            break
    return max(found, key=lambda each: _bytes_saved(base, each))


def _on_top(base: _Tried, useful: list[_Tried], attempt: Attempt) -> _Tried:
    """Useful changes, one after the other, until it fits."""
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
    sections = [key for role in roles if (key := trained_section(lacking.config, role)) is not None]
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


def _value_text(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
