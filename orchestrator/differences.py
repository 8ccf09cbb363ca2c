"""What differs between two runs, or two configs: `preceptor diff`.

Where a run is (`run.dir`), when and for how long it ran are no differences. Neither is a key that one side lacks and the other has at its
default: a section that only one has shows by the keys that were set in it. Neither are the digests of steps, unless both runs promise bits
(`run.deterministic`): without that they differ every time.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from configs.errors import ConfigError
from configs.fields import default_keys
from configs.load import load_config, parse_config
from configs.yaml_file import quote
from orchestrator.flat import flat
from orchestrator.registry.records import WholeRun

if TYPE_CHECKING:
    from rich.console import Console

AREAS = ("config", "code", "data", "models", "packages", "machine", "plan", "steps")
RUN_DIR = "RUN_DIR"
"""Stands for a run's own folder within its values."""
ABSENT = "-"
DIGEST = re.compile(r"[0-9a-f]{40,}")
"""Told from another by its first digits."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """One thing that is not the same."""

    area: str
    """One of `AREAS`."""
    key: str
    a: Any
    """None where A has no such key and `a_absent` says so."""
    b: Any
    a_absent: bool = False
    b_absent: bool = False
    a_default: bool = False
    """It is the schema's default."""
    b_default: bool = False

    def texts(self) -> tuple[str, str]:
        """Both values, for people."""
        sides = ((self.a, self.a_absent, self.a_default), (self.b, self.b_absent, self.b_default))
        a, b = (
            ABSENT if absent else f"{_text(value)}{' (default)' if default else ''}" for value, absent, default in sides
        )
        return a, b


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """One side."""

    name: str
    is_run: bool
    facts: dict[str, dict[str, Any]]
    """By area: key to value."""
    defaults: frozenset[str] = frozenset()
    """Keys of the config that have the schema's default."""
    deterministic: bool = False
    digests: dict[str, dict[int, str]] = field(default_factory=dict)
    """Of each stage: step to digest, where there is one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Differences:
    """Of A and B."""

    found: tuple[Difference, ...]
    notes: tuple[str, ...]
    """What else can be said, in words."""


def subject_of_file(path: str) -> Subject:
    """A config file."""
    config = load_config(path)
    values = config.model_dump(mode="json")
    return Subject(name=path, is_run=False, facts={"config": _config(values)}, defaults=frozenset(default_keys(config)))


def subject_of_run(name: str, runs: Sequence[WholeRun]) -> Subject:
    """A run with its stages."""
    root, *stages = runs
    run = root.run
    try:
        defaults = frozenset(default_keys(parse_config(run.config)))
    except ConfigError:
        defaults = frozenset()  # of another version, whose defaults this one does not know
    parts = {f"{one.run.name}.": one for one in stages} or {"": root}
    facts: dict[str, dict[str, Any]] = {
        "config": _config(run.config),
        "code": {key: run.code[key] for key in ("version", "commit", "sources_sha256") if key in run.code},
        "data": {prefix + key: value for prefix, one in parts.items() for key, value in one.run.data.items()},
        "models": {prefix + key: value for prefix, one in parts.items() for key, value in flat(one.run.models).items()},
        "packages": dict(root.packages),
        "machine": dict(run.machine),
        "plan": {
            prefix + key: value
            for prefix, one in parts.items()
            if one.run.plan
            for key, value in flat(one.run.plan).items()
        },
    }
    digests = {
        one.run.name if prefix else "": {step.step: step.digest for step in one.steps if step.kind == "step"}
        for prefix, one in parts.items()
    }
    return Subject(
        name=name,
        is_run=True,
        facts=facts,
        defaults=defaults,
        deterministic=all(one.run.config["run"]["deterministic"] for one in parts.values()),
        digests=digests,
    )


def subject(text: str, registry: str | None) -> Subject:
    """What the user names: a config file, a run directory, or a run's id.

    Raises:
        UserError, ConfigError: where it is none of them.
    """
    if Path(text).is_file() or text.endswith((".yaml", ".yml")):
        return subject_of_file(text)
    from orchestrator.registry.lookup import look_up

    return subject_of_run(text, look_up(text, registry))


def differences(a: Subject, b: Subject) -> Differences:
    """What is not the same. Between a run and a config file only the configs are compared."""
    areas = [area for area in AREAS if area in a.facts and area in b.facts]
    found = [one for area in areas for one in _of_area(area, a, b)]
    notes: list[str] = []
    if a.is_run and b.is_run:
        steps, notes = _of_steps(a, b)
        found += steps
    elif not (a.facts.keys() == {"config"} == b.facts.keys()):
        notes.append("only the configs are compared: not both are runs")
    return Differences(found=tuple(found), notes=tuple(notes))


def _of_area(area: str, a: Subject, b: Subject) -> Iterator[Difference]:
    ours, theirs = a.facts[area], b.facts[area]
    if area == "code" and ours.get("sources_sha256") == theirs.get("sources_sha256"):
        return  # another commit with the same code
    for key in dict.fromkeys((*ours, *theirs)):
        by_default = area == "config" and key in (b.defaults if key not in ours else a.defaults)
        if (key not in ours or key not in theirs) and by_default:
            continue
        if key not in ours or key not in theirs or ours[key] != theirs[key]:
            yield Difference(
                area=area,
                key=key,
                a=ours.get(key),
                b=theirs.get(key),
                a_absent=key not in ours,
                b_absent=key not in theirs,
                a_default=area == "config" and key in a.defaults,
                b_default=area == "config" and key in b.defaults,
            )


def _of_steps(a: Subject, b: Subject) -> tuple[list[Difference], list[str]]:
    """Where deterministic runs part, and what the digests say of all others."""
    if a.digests.keys() != b.digests.keys():
        return [], ["steps are not compared: the runs have other stages"]
    found, notes = [], []
    promised = a.deterministic and b.deterministic
    for stage, ours in a.digests.items():
        theirs, prefix = b.digests[stage], f"{stage}: " if stage else ""
        common = [step for step in ours if step in theirs and (ours[step] or theirs[step])]
        parted = next((step for step in common if ours[step] != theirs[step]), None)
        if parted is not None and promised:
            key = f"{f'{stage}.' if stage else ''}{parted}"
            found.append(Difference(area="steps", key=key, a=ours[parted], b=theirs[parted]))
        if not common:
            notes.append(f"{prefix}no digests to compare")
        elif parted is None:
            notes.append(f"{prefix}the digests of {len(common)} common steps are the same")
        else:
            why = "" if promised else "; not both runs are deterministic, so that says little"
            notes.append(f"{prefix}the digests differ from step {parted} on{why}")
        if len(ours) != len(theirs):
            notes.append(f"{prefix}A has {len(ours)} steps, B has {len(theirs)}")
    return found, notes


def _config(values: Mapping[str, Any]) -> dict[str, Any]:
    """Keys and values, without where the run is."""
    folder = str(values["run"]["dir"])
    kept = {
        key: value for key, value in flat(dict(values)).items() if key != "run.dir" and not key.endswith(".run.dir")
    }
    return {key: _relative(value, folder) for key, value in kept.items()}


def _relative(value: Any, folder: str) -> Any:
    places = [folder, str(Path(folder).absolute())]
    for place in places if isinstance(value, str) else ():
        if value == place or value.startswith(place.rstrip("/") + "/"):
            return RUN_DIR + value[len(place.rstrip("/")) :]
    return value


def _text(value: Any) -> str:
    if isinstance(value, str):
        return f"{value[:12]}…" if DIGEST.fullmatch(value) else value
    return "{}" if value == {} else quote(value)


def print_differences(found: Differences, a: str, b: str, out: Console) -> None:
    """A line for each, both values side by side."""
    from rich.table import Table

    if found.found:
        table = Table(box=None, pad_edge=False)
        table.add_column("", style="dim", no_wrap=True)
        for title in ("", a, b):
            table.add_column(title, overflow="fold")
        for one in found.found:
            table.add_row(one.area, one.key, *one.texts())
        out.print(table)
    else:
        out.print("the same")
    for note in found.notes:
        out.print(note, soft_wrap=True)
