"""What a sweep varies: from `key=value` on the command line to each trial's overrides. Pure.

A list is an axis: each of its values in turn. Where the key itself holds a list, an axis is a list of lists. With random search a value may
be a distribution too: `log(1e-6,1e-4)`, `uniform(0,1)`, `int(1,8)` (both ends included), `choice(a,b)`.
"""

from __future__ import annotations

import itertools
import json
import math
import random
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, get_args, get_origin

from configs.errors import ConfigError, Problem
from configs.fields import ROOT, Kind, field_kind
from configs.yaml_file import read_value

OWN_KEYS = ("run.dir",)
"""The sweep's to give."""
DISTRIBUTION = re.compile(r"(?P<name>[a-z]+)\((?P<arguments>.*)\)")
DIGITS = 6
"""Of a number that is drawn: what can be read off a table and typed again."""
MAX_TRIALS = 10_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Axis:
    """A key that differs between trials."""

    key: str
    values: tuple[Any, ...] | None
    """The choices; None where it is drawn from a distribution."""
    draw: Callable[[random.Random], Any]
    """One value."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Space:
    """All trials that could be."""

    fixed: tuple[str, ...]
    """Overrides that all trials share, as written."""
    axes: tuple[Axis, ...]

    def grid(self) -> list[tuple[str, ...]]:
        """Every combination's overrides of the axes, the last axis varying fastest."""
        choices = [[override(axis.key, value) for value in axis.values or ()] for axis in self.axes]
        if math.prod(map(len, choices)) > MAX_TRIALS:
            raise _refused(
                "", f"got {math.prod(map(len, choices))} trials", f"at most {MAX_TRIALS}, or --random N of them"
            )
        return list(itertools.product(*choices))

    def random(self, num_trials: int, seed: int) -> list[tuple[str, ...]]:
        """Drawn overrides. A trial's values depend on the seed, its number and its keys alone: asking for more trials keeps the first, and
        another axis keeps the others' values."""
        return [
            tuple(override(axis.key, axis.draw(random.Random(f"{seed}/{number}/{axis.key}"))) for axis in self.axes)
            for number in range(num_trials)
        ]


def override(key: str, value: Any) -> str:
    """`key=value` as `load_config` reads it back: JSON is YAML."""
    return f"{key}={value if isinstance(value, str) and read_value(value, (), '')[0] == value else json.dumps(value)}"


def read_space(arguments: Sequence[str], *, distributions: bool) -> Space:
    """What the command line says.

    Args:
        arguments: `key=value` each.
        distributions: Values are drawn (random search), so that distributions may stand for them.

    Raises:
        ConfigError: naming the key, what was got, what is allowed. That keys exist is for the config's loader to see.
    """
    fixed: list[str] = []
    axes: list[Axis] = []
    for argument in arguments:
        key, separator, text = argument.partition("=")
        key = key.strip()
        if not separator or not all(key.split(".")):
            raise _refused("", f"got {argument!r}", "key.path=value, such as policy.optimizer.lr=[1e-6,3e-6]")
        if key in OWN_KEYS:
            raise _refused(key, f"got {text!r}", "not given: each trial has a folder of its own in the sweep's --dir")
        if key in {axis.key for axis in axes} | {other.partition("=")[0].strip() for other in fixed}:
            raise _refused(key, "given twice", "once")
        axis = _axis(key, text.strip(), distributions)
        if axis is None:
            fixed.append(f"{key}={text}")
        else:
            axes.append(axis)
    if not axes:
        more = ", or a distribution such as log(1e-6,1e-4)" if distributions else ""
        raise _refused("", "no key has several values", f"at least one axis, such as run.seed=[0,1,2]{more}")
    return Space(fixed=tuple(fixed), axes=tuple(axes))


def _axis(key: str, text: str, distributions: bool) -> Axis | None:
    """None where the value is one value."""
    found = DISTRIBUTION.fullmatch(text)
    if found and found["name"] in DISTRIBUTIONS:
        if not distributions:
            raise _refused(key, f"got {text!r}", "a value or a list; distributions need --random N or --search")
        arguments = read_value(f"[{found['arguments']}]", tuple(key.split(".")), f"axis {key!r}")[0]
        values, draw = DISTRIBUTIONS[found["name"]](key, text, arguments)
        return Axis(key=key, values=values, draw=draw)
    value = read_value(text, tuple(key.split(".")), f"axis {key!r}")[0]
    if not isinstance(value, list):
        return None
    if holds_list(key) and not (value and all(isinstance(one, list) for one in value)):
        return None
    values, draw = _choice(key, text, value)
    return Axis(key=key, values=values, draw=draw)


def holds_list(key: str) -> bool:
    """Whether the key's own value is a list, in any stage that has it. False for a key that there is not."""
    kinds = [ROOT]
    for part in key.split("."):
        kinds = [inner for kind in kinds for alternative in kind.alternatives for inner in _inner(alternative, part)]
    return any(get_origin(alternative.annotation) is tuple for kind in kinds for alternative in kind.alternatives)


def _inner(kind: Kind, part: str) -> Iterator[Kind]:
    """What stands at `part` of a section, a section of names or a list."""
    for section in kind.sections:
        found = field_kind(section, part)
        if found is not None:
            yield found
    items = [argument for argument in get_args(kind.annotation) if argument is not Ellipsis]
    if get_origin(kind.annotation) is dict:
        yield Kind.of(items[1])
    elif get_origin(kind.annotation) is tuple and part.isdecimal():
        yield Kind.of(items[0])


# ------------------------------------------------------------------------------------------------------------- distributions

Drawn = tuple[tuple[Any, ...] | None, Callable[[random.Random], Any]]


def _choice(key: str, text: str, values: list[Any]) -> Drawn:
    if not values:
        raise _refused(key, f"got {text!r}", "at least one value")
    if len({json.dumps(value) for value in values}) < len(values):
        raise _refused(key, f"got {text!r}", "each value once")
    return tuple(values), lambda dice: dice.choice(values)


def _bounds(
    key: str, text: str, values: list[Any], form: str, kinds: tuple[type, ...] = (int, float)
) -> tuple[Any, Any]:
    numbers: list[Any] = [one for one in values if isinstance(one, kinds) and not isinstance(one, bool)]
    if len(values) != 2 or len(numbers) != 2 or not -math.inf < numbers[0] < numbers[1] < math.inf:
        raise _refused(key, f"got {text!r}", form)
    return numbers[0], numbers[1]


def _uniform(key: str, text: str, values: list[Any]) -> Drawn:
    low, high = _bounds(key, text, values, "uniform(a,b) with numbers a < b")
    return None, lambda dice: _rounded(dice.uniform(low, high))


def _log(key: str, text: str, values: list[Any]) -> Drawn:
    form = "log(a,b) with numbers 0 < a < b"
    low, high = _bounds(key, text, values, form)
    if low <= 0:
        raise _refused(key, f"got {text!r}", form)
    return None, lambda dice: _rounded(math.exp(dice.uniform(math.log(low), math.log(high))))


def _int(key: str, text: str, values: list[Any]) -> Drawn:
    low, high = _bounds(key, text, values, "int(a,b) with whole numbers a < b", (int,))
    return None, lambda dice: dice.randint(low, high)


DISTRIBUTIONS: dict[str, Callable[[str, str, list[Any]], Drawn]] = {
    "choice": _choice,
    "int": _int,
    "log": _log,
    "uniform": _uniform,
}


def _rounded(value: float) -> float:
    return float(f"{value:.{DIGITS}g}")


def _refused(key: str, got: str, allowed: str) -> ConfigError:
    return ConfigError("the sweep can't be read", [Problem(key=key, got=got, allowed=allowed)])
