"""From YAML files and overrides to a frozen config, and back to YAML.

A file may name a `base:` file or a list of them, relative to itself, which may name others: mappings are merged, everything else is
replaced, a later base wins over an earlier one, the nearest file over its bases, overrides over files. A section whose `kind` changes
starts anew, as its other keys belong to another kind. Then references (`configs.references`) are resolved.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from configs.errors import ConfigError, Problem
from configs.fields import ROOT, STAGES, FieldRow, Kind, describe, either, kind_text, locate, schema_json, tag_of
from configs.references import environments, escape, resolve
from configs.schema import Config, Pipeline, references
from configs.schema.base import Section
from configs.secrets import ALLOWED, secrets_in
from configs.yaml_file import Origins, quote, read_value, read_yaml, write_yaml

__all__ = [
    "ConfigError",
    "FieldRow",
    "Option",
    "describe",
    "dump_config",
    "environment_overrides",
    "load_config",
    "load_options",
    "relative_bases",
    "schema_json",
]

_ADAPTER: TypeAdapter[Config] = TypeAdapter(Config)

S = TypeVar("S", bound=Section)


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> Config:
    """The config in a YAML file with its bases, changed by `overrides` such as `rollout.temperature=0.7`.

    Raises:
        ConfigError: every problem with its key, what was got, what is allowed, and the file or override that it came from.
    """
    values, origins = _merged(path, overrides)
    if secret := [_secret_problem(place, origins) for place in secrets_in(values)]:
        raise ConfigError(_title(path), secret)
    problems = _share_sections(values, origins) if values.get("stage") == "pipeline" else []
    values, origins, bad_references = resolve(values, origins)
    if bad_references:
        raise ConfigError(_title(path), bad_references)
    try:
        config = _ADAPTER.validate_python(values)
    except ValidationError as error:
        raise ConfigError(_title(path), problems + _problems(error, origins)) from None
    if not isinstance(config, Pipeline):
        problems += [
            Problem(
                key=key,
                got=f"got {model!r}",
                allowed="a folder or hub name; stage:NAME only within a pipeline",
                origin=_origin(origins, tuple(key.split("."))),
            )
            for key, model in references(config)
        ]
    if problems:
        raise ConfigError(_title(path), problems)
    return config


def environment_overrides(path: str | Path, overrides: Sequence[str] = ()) -> list[str]:
    """Further overrides of a config that say what its `${env:...}` are here, so that it is the same where the environment is another.

    Raises:
        ConfigError: as `load_config` does.
    """
    values, origins = _merged(path, overrides)
    places = list(environments(values))
    if values.get("stage") == "pipeline":
        _share_sections(values, origins)
    resolved, _, _ = resolve(values, origins)
    return [_override(place, resolved) for place in places]


def relative_bases(path: Path) -> Iterator[tuple[str, Path]]:
    """Every base of a file that is found relative to it, and theirs: as it is written, and where it is. One with an absolute path, and what
    that is based on, is elsewhere.

    Raises:
        ConfigError: as `load_config` does, which finds files that name each other without end.
    """
    values, origins = read_yaml(path)
    for base in _bases(values["base"], path, origins) if "base" in values else []:
        if not Path(base).is_absolute():
            yield base, path.parent / base
            yield from relative_bases(path.parent / base)


def parse_config(values: Mapping[str, Any]) -> Config:
    """A config from the values of one that was resolved before, such as a registry's.

    Raises:
        ConfigError: as `load_config` does, where another version made it.
    """
    try:
        return _ADAPTER.validate_python(dict(values))
    except ValidationError as error:
        raise ConfigError("the stored config is not valid for this version", _problems(error, {})) from None


@dataclass(frozen=True, slots=True, kw_only=True)
class Option:
    """A value of a command line's option, and the key that it fills."""

    key: str
    value: Any
    name: str
    """As the user writes it: `--seed`."""


def load_options(section: type[S], options: Sequence[Option], overrides: Sequence[str]) -> S:
    """A section that is in no file: from a command line's options, changed by `overrides` as a config is.

    Raises:
        ConfigError: as `load_config` does; a value's origin is its option.
    """
    values: dict[str, Any] = {}
    origins: Origins = {}
    for option in options:
        *above, last = option.key.split(".")
        parent = values
        for part in above:
            parent = parent.setdefault(part, {})
        parent[last] = option.value
        origins[*above, last] = option.name
    for override in overrides:
        _apply_override(values, origins, override)
    try:
        return section.model_validate(values)
    except ValidationError as error:
        raise ConfigError(
            "the options don't give a valid config", _problems(error, origins, Kind.of(section))
        ) from None


def dump_config(config: Config) -> str:
    """YAML of the resolved config, every field written out. `load_config` reads it back to an equal config."""
    return write_yaml(escape(config.model_dump(mode="json")))


def _title(path: str | Path) -> str:
    return f"{path} is not a valid config"


# ------------------------------------------------------------------------------------------------- files, bases, overrides


def _merged(path: str | Path, overrides: Sequence[str]) -> tuple[dict[str, Any], Origins]:
    """Files and overrides as they are written, references and all."""
    values, origins = _read_chain(Path(path), ())
    for override in overrides:
        _apply_override(values, origins, override)
    return values, origins


def _read_chain(path: Path, below: tuple[Path, ...]) -> tuple[dict[str, Any], Origins]:
    """A file merged over its bases."""
    if path.resolve() in [other.resolve() for other in below]:
        chain = " -> ".join(str(other) for other in (*below, path))
        raise ConfigError(f"config files name each other as base without end: {chain}")
    try:
        values, origins = read_yaml(path)
    except ConfigError as error:
        if not below:
            raise
        raise ConfigError(f"{error.title} [base of {below[-1]}]", error.problems) from None
    if "base" not in values:
        return values, origins
    merged: dict[str, Any] = {}
    merged_origins: Origins = {}
    for base in _bases(values.pop("base"), path, origins):
        one, one_origins = _read_chain(path.parent / base, (*below, path))
        _merge(merged, one, merged_origins, one_origins, ())
    _merge(merged, values, merged_origins, origins, ())
    return merged, merged_origins


def _bases(base: Any, path: Path, origins: Origins) -> list[str]:
    bases = base if isinstance(base, list) else [base]
    if not bases or not all(isinstance(one, str) and one for one in bases):
        problem = Problem(
            key="base",
            got=f"got {quote(base)}",
            allowed="one path, or a list of paths, relative to this file",
            origin=origins[("base",)],
        )
        raise ConfigError(_title(path), [problem])
    return bases


def _merge(
    under: dict[str, Any], over: dict[str, Any], under_origins: Origins, over_origins: Origins, path: tuple[str, ...]
) -> None:
    """Puts `over` into `under`, in place."""
    for key, value in over.items():
        place = (*path, key)
        old = under.get(key)
        if isinstance(value, dict) and isinstance(old, dict) and not _kind_changes(old, value):
            _merge(old, value, under_origins, over_origins, place)
            continue
        for stale in [known for known in under_origins if known[: len(place)] == place]:
            del under_origins[stale]
        under[key] = value
        under_origins |= {known: origin for known, origin in over_origins.items() if known[: len(place)] == place}


def _kind_changes(old: dict[str, Any], new: dict[str, Any]) -> bool:
    return "kind" in old and "kind" in new and old["kind"] != new["kind"]


def _apply_override(values: dict[str, Any], origins: Origins, override: str) -> None:
    key, separator, text = override.partition("=")
    origin = f"override {override!r}"
    path = tuple(key.strip().split("."))
    if not separator or not all(path):
        problem = Problem(key="", got=f"got {override!r}", allowed="key.path=value, such as rollout.temperature=0.7")
        raise ConfigError("the overrides can't be read", [problem])
    value, value_origins = read_value(text, path, origin)
    parent: Any = values
    for depth, part in enumerate(path[:-1]):
        parent = _descend(parent, part, path[: depth + 1], origin)
    if isinstance(parent, list):
        parent[_list_index(parent, path, origin)] = value
        origins |= value_origins
        return
    _merge(parent, {path[-1]: value}, origins, value_origins, path[:-1])


def _override(place: tuple[str, ...], values: Any) -> str:
    """The override that gives the value at a place."""
    for part in place:
        values = values[int(part)] if isinstance(values, list) else values[part]
    # a key with a dot in it can't be named: it is written as part of the section's value, which is merged
    end = next((at for at, part in enumerate(place) if "." in part), len(place))
    value = escape(values)
    for part in reversed(place[end:]):
        value = {part: value}
    return f"{'.'.join(place[:end])}={json.dumps(value, ensure_ascii=False)}"  # JSON is YAML


def _descend(parent: Any, part: str, path: tuple[str, ...], origin: str) -> Any:
    """The section or list at `part`, made where there is none yet."""
    if isinstance(parent, list):
        index: Any = _list_index(parent, path, origin)
    else:
        index = part
        if parent.get(part) is None:
            parent[part] = {}
    if not isinstance(parent[index], dict | list):
        problem = Problem(
            key=".".join(path), got=f"got {quote(parent[index])}, which has no keys", allowed="a section", origin=origin
        )
        raise ConfigError("the overrides don't fit the config", [problem])
    return parent[index]


def _list_index(items: list[Any], path: tuple[str, ...], origin: str) -> int:
    part = path[-1]
    if part.isdecimal() and int(part) < len(items):
        return int(part)
    allowed = f"an index from 0 to {len(items) - 1}" if items else "no index: the list is empty"
    problem = Problem(key=".".join(path[:-1]), got=f"got index {part!r}", allowed=allowed, origin=origin)
    raise ConfigError("the overrides don't fit the config", [problem])


# ---------------------------------------------------------------------------------------------------------------- pipelines


def _share_sections(values: dict[str, Any], origins: Origins) -> list[Problem]:
    """Gives each stage of a pipeline the pipeline's `run` and `cluster`, in place, with a folder of its own."""
    stages, shared_run, cluster = values.get("stages"), values.get("run"), values.get("cluster")
    if not isinstance(stages, dict) or not isinstance(shared_run, dict):
        return []
    problems = []
    for name, stage in stages.items():
        if not isinstance(stage, dict):
            continue
        own_run = stage.get("run") or {}
        run = {**shared_run, **own_run} if isinstance(own_run, dict) else own_run
        if isinstance(run, dict) and isinstance(shared_run.get("dir"), str):
            folder = f"{shared_run['dir'].rstrip('/')}/{name}"
            if own_run.get("dir", folder) != folder:
                path = ("stages", name, "run", "dir")
                problems.append(
                    Problem(
                        key=".".join(path),
                        got=f"got {quote(own_run['dir'])}",
                        allowed=f"not given: it is {folder!r}, the stage's name under run.dir",
                        origin=_origin(origins, path),
                    )
                )
            run["dir"] = folder
        stage["run"] = run
        own_cluster = stage.get("cluster") or {}
        if isinstance(cluster, dict) and isinstance(own_cluster, dict):
            stage["cluster"] = {**cluster, **own_cluster}
    return problems


# ------------------------------------------------------------------------------------------------------------------- errors


def _origin(origins: Origins, path: tuple[str, ...]) -> str:
    """Where a place, or the nearest section around it that is written down, came from."""
    for length in range(len(path), 0, -1):
        if path[:length] in origins:
            return origins[path[:length]]
    return ""


def _secret_problem(place: tuple[str, ...], origins: Origins) -> Problem:
    got = "got a URL that holds a password, key or signature"
    return Problem(key=".".join(place), got=got, allowed=ALLOWED, origin=_origin(origins, place))


def _problems(error: ValidationError, origins: Origins, root: Kind = ROOT) -> list[Problem]:
    return [_problem(item, origins, root) for item in error.errors(include_url=False)]


def _problem(item: Any, origins: Origins, root: Kind) -> Problem:
    """One of pydantic's errors, in our words."""
    place, value, context = locate(item["loc"], root), item["input"], item.get("ctx", {})
    path, got = place.path, f"got {quote(value)}"
    allowed = kind_text(place.kind) if place.kind else "valid input"
    match item["type"]:
        case "missing":
            got = "missing"
        case "extra_forbidden":
            assert place.section is not None
            got, allowed = _unknown_key(path, list(place.section.model_fields))
        case "refused":
            path = (*path, *context["key"].split(".")) if context["key"] else path
            got, allowed = context["got"], context["allowed"]
        case "union_tag_not_found" | "union_tag_invalid":
            assert place.kind is not None
            tags = [tag for tag in map(tag_of, place.kind.sections) if tag]
            path = (*path, tags[0][0])
            got = f"got {quote(context['tag'])}" if "tag" in context else "missing"
            allowed = either([quote(word) for _, word in tags])
        case "finite_number":
            allowed = allowed.replace("number", "finite number", 1)
        case "too_short" | "string_too_short":
            allowed = f"{allowed}, not empty"
        case "string_too_long":
            allowed = f"{allowed}, at most {context['max_length']} characters"
        case "string_pattern_mismatch":
            allowed = f"text of the form {context['pattern']}"
        case "value_error":
            got = str(context["error"])
    return Problem(key=".".join(path), got=got, allowed=allowed, origin=_origin(origins, path))


def _num_shared(a: Sequence[str], b: Sequence[str]) -> int:
    """Parts that two paths begin with together."""
    return next((at for at, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


def _unknown_key(path: tuple[str, ...], known: Sequence[str]) -> tuple[str, str]:
    near = difflib.get_close_matches(path[-1], known, n=1, cutoff=0.6) or [k for k in known if k.startswith(path[-1])]
    if not near:
        # a variant's name is no part of a key, and a pipeline's keys are a stage's
        keys = {re.sub(r"\[\w+\]", "", row.key) for stage in STAGES for row in describe(stage)}
        within = path[2:] if path[0] == "stages" else path
        near = sorted(
            (key for key in keys if key.split(".")[-1] == path[-1]),
            key=lambda key: (-_num_shared(key.split("."), within), len(key), key),
        )[:1]
    hint = f" (did you mean {near[0]!r}?)" if near else ""
    return f"unknown key{hint}", either(list(known))
