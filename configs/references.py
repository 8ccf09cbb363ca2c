"""`${...}` within a config's values: `${policy.model}` is another key's value, `${env:NAME}` or `${env:NAME,default}` the environment's.

They are resolved when files and overrides are merged, and before anything is checked. A key is named from the root, whoever refers to it. A
value that is one reference and nothing else keeps the other's type; within a text it is joined to the rest. `$${` is a plain `${`.
"""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Iterator, Mapping
from typing import Any, get_args, get_origin

from configs.errors import Problem
from configs.fields import ROOT, STAGES, Kind, describe, field_kind, tag_of
from configs.schema.base import Section
from configs.secrets import is_secret
from configs.yaml_file import Origins, quote, read_value

TOKEN = re.compile(r"(?P<plain>\$\$\{)|\$\{(?P<name>[^{}]*)\}|(?P<open>\$\{)")
ENVIRONMENT = "env:"
VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
Path = tuple[str, ...]


def resolve(values: dict[str, Any], origins: Origins) -> tuple[dict[str, Any], Origins, list[Problem]]:
    """The values with every reference replaced, where each came from, and what is wrong with references; the arguments stay as they are."""
    resolver = _Resolver(values, origins)
    resolved = resolver.tree(values, ())
    return resolved, resolver.origins, list(dict.fromkeys(resolver.problems))


def environments(value: Any, path: Path = ()) -> Iterator[Path]:
    """Paths of the texts in values before they are resolved that refer to the environment."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from environments(inner, (*path, key))
    elif isinstance(value, list):
        for at, inner in enumerate(value):
            yield from environments(inner, (*path, str(at)))
    elif isinstance(value, str):
        names = [match["name"] for match in TOKEN.finditer(value)]
        if any(name and name.startswith(ENVIRONMENT) for name in names):
            yield path


def escape(value: Any) -> Any:
    """The value with `${` in its texts written so that `resolve` gives them back."""
    if isinstance(value, str):
        return value.replace("${", "$${")
    if isinstance(value, dict):
        return {key: escape(inner) for key, inner in value.items()}
    return [escape(inner) for inner in value] if isinstance(value, list) else value


class _Bad(Exception):
    """A reference that can't be resolved."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem)
        self.problem = problem


class _Missing(Exception):
    """No value at a path, neither given nor by default."""


class _Resolver:
    def __init__(self, values: dict[str, Any], origins: Origins) -> None:
        self._values, self._given = values, origins
        self._under_way: list[Path] = []
        self.origins = dict(origins)
        self.problems: list[Problem] = []

    def tree(self, value: Any, path: Path) -> Any:
        """A copy of what stands at `path`, resolved."""
        if isinstance(value, dict):
            return {key: self.tree(inner, (*path, key)) for key, inner in value.items()}
        if isinstance(value, list):
            return [self.tree(inner, (*path, str(at))) for at, inner in enumerate(value)]
        if not isinstance(value, str) or "${" not in value:
            return value
        try:
            found = self._text(value, path)
        except _Bad as bad:
            self.problems.append(bad.problem)
            return None
        if TOKEN.search(value.replace("$${", "")):
            origin = _origin(self._given, path)
            self.origins[path] = f"{origin}, by {value!r}" if origin else repr(value)
        return found

    def _text(self, text: str, path: Path) -> Any:
        """What a text at `path` stands for."""
        if path in self._under_way:
            chain = " -> ".join(".".join(one) for one in (*self._under_way[self._under_way.index(path) :], path))
            raise self._bad(path, text, f"which leads back to itself: {chain}", "references that end in a value")
        self._under_way.append(path)
        try:
            whole = TOKEN.fullmatch(text)
            if whole and whole["name"] is not None:
                value = self._value(whole["name"], path, text)
                if not whole["name"].startswith(ENVIRONMENT):
                    return value
                # as an override's value is read; a section is no value
                read, _ = read_value(value, path, text)
                return value if isinstance(read, dict) else read
            return TOKEN.sub(lambda match: self._part(match, path, text), text)
        finally:
            self._under_way.pop()

    def _part(self, match: re.Match[str], path: Path, text: str) -> str:
        """A reference within a text."""
        if match["plain"]:
            return "${"
        if match["open"]:
            raise self._bad(path, text, "with a '${' that is not closed", "'${key}', or '$${' for a plain '${'")
        value = self._value(match["name"], path, text)
        if isinstance(value, str):
            return value
        if value is None or isinstance(value, list):
            what = f"where {match[0]!r} is {quote(value)}"
            raise self._bad(path, text, what, "a text, a number, true or false within a text")
        return quote(value)

    def _value(self, name: str, path: Path, text: str) -> Any:
        if name.startswith(ENVIRONMENT):
            return self._variable(name.removeprefix(ENVIRONMENT), path, text)
        target = tuple(name.strip().split("."))
        try:
            found, given = self._at(target)
        except _Missing:
            near = difflib.get_close_matches(name.strip(), self._known(), n=1, cutoff=0.6)
            hint = f" (did you mean {near[0]!r}?)" if near else ""
            what = f"and there is no value at {name.strip()!r}{hint}"
            raise self._bad(path, text, what, "a key of this config, named from its root") from None
        if isinstance(found, dict | Section):
            raise self._bad(path, text, f"and {name.strip()} is a section", "a key that holds a value")
        return self._inner(found, target) if given else found

    def _inner(self, value: Any, path: Path) -> Any:
        """A value that is referred to, itself resolved. Unlike in `tree`, what is wrong with it ends the reference too."""
        if isinstance(value, list):
            return [self._inner(inner, (*path, str(at))) for at, inner in enumerate(value)]
        if isinstance(value, dict):
            return {key: self._inner(inner, (*path, key)) for key, inner in value.items()}
        return self._text(value, path) if isinstance(value, str) and "${" in value else value

    def _variable(self, asked: str, path: Path, text: str) -> str:
        name, comma, default = asked.partition(",")
        name = name.strip()
        if not VARIABLE.fullmatch(name):
            raise self._bad(path, text, f"and {name!r} is no variable's name", "${env:NAME} or ${env:NAME,default}")
        if is_secret(name):
            allowed = (
                "names that don't look like a secret: the resolved config is stored with each run. Libraries read their secrets "
                "from the environment themselves"
            )
            raise self._bad(path, text, f"and {name} looks like a secret", allowed)
        if name not in os.environ and not comma:
            raise self._bad(path, text, f"and {name} is not set", f"a variable that is set, or ${{env:{name},default}}")
        return os.environ.get(name, default)

    def _at(self, path: Path) -> tuple[Any, bool]:
        """What stands at a path, and whether it is given; else it is a default."""
        kind: Kind | None = ROOT
        node: Any = self._values
        for depth, part in enumerate(path):
            section = _section_of(kind, node)
            if isinstance(node, dict) and part in node:
                node = node[part]
            elif isinstance(node, list) and part.isdecimal() and int(part) < len(node):
                node = node[int(part)]
            else:
                return _default(section, path[depth:]), False
            kind = _kind_below(kind, section, part)
        return node, True

    def _known(self) -> list[str]:
        stage = self._values.get("stage")
        described = [row.key for row in describe(stage)] if isinstance(stage, str) and stage in STAGES else []
        return [*(".".join(path) for path in self._given if path), *described]

    def _bad(self, path: Path, text: str, what: str, allowed: str) -> _Bad:
        problem = Problem(
            key=".".join(path), got=f"got {text!r}, {what}", allowed=allowed, origin=_origin(self._given, path)
        )
        return _Bad(problem)


def _origin(origins: Mapping[Path, str], path: Path) -> str:
    above: Iterator[Path] = (path[:length] for length in range(len(path), 0, -1))
    return next((origins[one] for one in above if one in origins), "")


def _section_of(kind: Kind | None, node: Any) -> type[Section] | None:
    """The section that `node` is written for."""
    sections = kind.sections if kind else ()
    if len(sections) == 1:
        return sections[0]
    if not isinstance(node, dict):
        return None
    tags = {section: tag_of(section) for section in sections}
    return next((section for section, tag in tags.items() if tag and node.get(tag[0]) == tag[1]), None)


def _kind_below(kind: Kind | None, section: type[Section] | None, part: str) -> Kind | None:
    if section is not None:
        return field_kind(section, part)
    if kind is None:
        return None
    annotation = kind.alternatives[0].annotation
    if get_origin(annotation) in (tuple, dict):
        inner = [arg for arg in get_args(annotation) if arg is not Ellipsis]
        return Kind.of(inner[-1])
    return None


def _default(section: type[Section] | None, path: Path) -> Any:
    """What the schema gives where nothing is written."""
    name, *rest = path
    info = section.model_fields.get(name) if section is not None else None
    if info is None or info.is_required():
        raise _Missing
    value = info.get_default(call_default_factory=True)
    for part in rest:
        if not isinstance(value, Section) or part not in type(value).model_fields:
            raise _Missing
        value = dict(value)[part]
    return list(value) if isinstance(value, tuple) else value
