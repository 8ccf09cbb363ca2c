"""Which runs of a registry: `preceptor runs --where 'ppo.kl.controller.coef>=0.01' --metric 'score>0.5' --sort score`."""

from __future__ import annotations

import difflib
import operator
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from actors.errors import UserError
from configs.errors import ConfigError
from configs.yaml_file import quote, read_value
from orchestrator.flat import flat
from orchestrator.registry.records import RunRecord

CONDITION = re.compile(r"\s*([\w./-]+)\s*(>=|<=|!=|==|=|>|<)\s*(.*?)\s*")
NAME = re.compile(r"[\w./-]+")
TESTS: dict[str, Callable[[Any, Any], bool]] = {
    ">=": operator.ge,
    "<=": operator.le,
    ">": operator.gt,
    "<": operator.lt,
    "!=": operator.ne,
    "=": operator.eq,
    "==": operator.eq,
}
COLUMNS = ("started", "steps", "gpu_hours", "hours", "name")
"""What runs can be sorted by beside metrics and keys."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Condition:
    """`key>=value`; without a test the key is only to be shown."""

    key: str
    test: str | None
    value: Any = None

    def holds(self, values: dict[str, Any]) -> bool:
        """False where there is no such key, or it holds what can't be compared with the value."""
        if self.test is None:
            return True
        if self.key not in values:
            return False
        found = values[self.key]
        numbers = all(isinstance(one, int | float) and not isinstance(one, bool) for one in (found, self.value))
        if self.test in (">=", "<=", ">", "<") and not numbers:
            return False
        return TESTS[self.test](found, self.value)


def condition(text: str, option: str, *, bare: bool) -> Condition:
    """Reads a condition; `bare` allows a name alone.

    Raises:
        UserError: it is none, or orders what is no number.
    """
    match = CONDITION.fullmatch(text)
    if match is None:
        if bare and NAME.fullmatch(text):
            return Condition(key=text, test=None)
        alone = "a name, or " if bare else ""
        raise UserError(
            f"{option}: got {text!r}; allowed: {alone}a name, one of >= <= > < != =, and a value, such as 'run.seed=3'"
        )
    key, test, written = match.groups()
    try:
        value, _ = read_value(written, (key,), option)
    except ConfigError:
        value = written
    if test in (">=", "<=", ">", "<") and (not isinstance(value, int | float) or isinstance(value, bool)):
        raise UserError(f"{option}: got {text!r}, and {written!r} is no number; allowed: a number after {test}")
    return Condition(key=key, test=test, value=value)


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """What to list, beyond what the database itself filters."""

    state: str | None = None
    where: tuple[Condition, ...] = ()
    """On keys of the config."""
    metrics: tuple[Condition, ...] = ()
    """On last values."""
    sort: str = "started"
    ascending: bool = False
    limit: int | None = None


def select(runs: Sequence[RunRecord], wanted: Wanted) -> list[RunRecord]:
    """The runs that are wanted, in order; those without what is sorted by come last.

    Raises:
        UserError: a key or metric that none of the runs has.
    """
    configs = {run.id: flat(run.config) for run in runs}
    if runs:
        _require(
            [one.key for one in wanted.where], {key for keys in configs.values() for key in keys}, "--where", "key"
        )
        metrics = {name for run in runs for name in run.metrics}
        _require([one.key for one in wanted.metrics], metrics, "--metric", "metric")
        sortable = {*COLUMNS, *metrics, *(key for keys in configs.values() for key in keys)}
        _require([wanted.sort], sortable, "--sort", "column, metric or key")
    found = [
        run
        for run in runs
        if (wanted.state is None or run.state == wanted.state)
        and all(one.holds(configs[run.id]) for one in wanted.where)
        and all(one.holds(run.metrics) for one in wanted.metrics)
    ]
    with_value = [(value, run) for run in found if (value := sort_value(run, wanted.sort)) is not None]
    numbers = all(isinstance(value, int | float) for value, _ in with_value)
    with_value.sort(key=lambda pair: pair[0] if numbers else str(pair[0]), reverse=not wanted.ascending)
    listed = [run for _, run in with_value]
    listed += [run for run in found if sort_value(run, wanted.sort) is None]
    return listed[: wanted.limit]


def sort_value(run: RunRecord, name: str) -> Any:
    """What a run has of a column, a metric or a key; None where it has none."""
    columns: dict[str, Any] = {
        "started": run.started_at,
        "steps": run.num_steps,
        "gpu_hours": run.gpu_hours,
        "hours": run.active_s / 3600,
        "name": run.name,
    }
    if name in columns:
        return columns[name]
    if name in run.metrics:
        return run.metrics[name]
    return flat(run.config).get(name)


def _require(names: Sequence[str], known: set[str], option: str, what: str) -> None:
    for name in names:
        if name not in known:
            ends = sorted(one for one in known if one.split(".")[-1] == name.split(".")[-1])
            near = [*difflib.get_close_matches(name, known, n=1, cutoff=0.7), *ends][:1]
            hint = f" (did you mean {near[0]!r}?)" if near else ""
            raise UserError(f"{option}: got {quote(name)}{hint}; allowed: a {what} that one of the runs has")
