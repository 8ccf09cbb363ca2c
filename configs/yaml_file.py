"""YAML in and out, with the traps of YAML 1.1 closed.

Scalars follow the YAML 1.2 core schema: `1e-6` is a number, `no` is text, `010` and `2026-11-01` are text, `12:30` is text. A key given
twice is refused. Every value remembers its file and line.
"""

from __future__ import annotations

import re
from collections.abc import Hashable
from pathlib import Path
from typing import Any

import yaml

from configs.errors import ConfigError, Problem

Origins = dict[tuple[str, ...], str]
"""Where the value at a path came from, in words."""

_PREFIX = "tag:yaml.org,2002:"
_SCALARS = {
    "null": (re.compile(r"^(?:~|null|Null|NULL|)$"), ["~", "n", "N", ""]),
    "bool": (re.compile(r"^(?:true|True|TRUE|false|False|FALSE)$"), list("tTfF")),
    "int": (re.compile(r"^[-+]?(?:0|[1-9][0-9]*(?:_[0-9]+)*)$"), list("-+0123456789")),
    "float": (
        re.compile(r"^[-+]?(?:[0-9]+\.[0-9]*|\.[0-9]+|[0-9]+(?=[eE]))(?:[eE][-+]?[0-9]+)?$|^[-+]?\.(?:inf|Inf|INF)$|^\.(?:nan|NaN|NAN)$"),
        list("-+0123456789."),
    ),
}  # fmt: skip

_TAGS = {*_SCALARS, "str", "seq", "map"}


class _Loader(yaml.SafeLoader):
    yaml_implicit_resolvers: dict[Any, Any] = {}  # noqa: RUF012 - PyYAML's own name for it


class _Dumper(yaml.SafeDumper):
    yaml_implicit_resolvers: dict[Any, Any] = {}  # noqa: RUF012

    def ignore_aliases(self, data: Any) -> bool:  # noqa: ARG002 - equal sections are written out, not as `*id001`
        return True


for _name, (_pattern, _first) in _SCALARS.items():
    _Loader.add_implicit_resolver(_PREFIX + _name, _pattern, _first)
    _Dumper.add_implicit_resolver(_PREFIX + _name, _pattern, _first)


def _scalar(node: yaml.ScalarNode) -> Any:
    text = node.value
    match node.tag.removeprefix(_PREFIX):
        case "null":
            return None
        case "bool":
            return text.lower() == "true"
        case "int":
            return int(text)
        case "float":
            return float(text.lower().replace(".inf", "inf").replace(".nan", "nan"))
    return text


class _Builder:
    """Turns nodes into values and notes each value's line."""

    def __init__(self, source: str) -> None:
        self.source = source
        self.origins: Origins = {}

    def build(self, node: yaml.Node, path: tuple[str, ...], above: tuple[yaml.Node, ...] = ()) -> Any:
        if node in above:
            raise yaml.constructor.ConstructorError(None, None, "an alias that contains itself", node.start_mark)
        self.origins[path] = self.source.format(line=node.start_mark.line + 1)
        if not node.tag.startswith(_PREFIX) or node.tag.removeprefix(_PREFIX) not in _TAGS:
            raise yaml.constructor.ConstructorError(None, None, f"tag {node.tag!r} is not known here", node.start_mark)
        if isinstance(node, yaml.MappingNode):
            return self._mapping(node, path, (*above, node))
        if isinstance(node, yaml.SequenceNode):
            return [self.build(item, (*path, str(i)), (*above, node)) for i, item in enumerate(node.value)]
        assert isinstance(node, yaml.ScalarNode)
        return _scalar(node)

    def _mapping(self, node: yaml.MappingNode, path: tuple[str, ...], above: tuple[yaml.Node, ...]) -> dict[str, Any]:
        result: dict[str, Any] = {}
        lines: dict[Hashable, int] = {}
        for key_node, value_node in node.value:
            mark = key_node.start_mark
            key = key_node.value if isinstance(key_node, yaml.ScalarNode) else None
            if key is None:
                raise yaml.constructor.ConstructorError(None, None, "a key must be one word of text", mark)
            if key in result:
                what = f"key {key!r} is given twice, first in line {lines[key]}"
                raise yaml.constructor.ConstructorError(None, None, what, mark)
            lines[key] = mark.line + 1
            result[key] = self.build(value_node, (*path, key), above)
            self.origins[(*path, key)] = self.source.format(line=mark.line + 1)
        return result


def read_yaml(path: Path) -> tuple[dict[str, Any], Origins]:
    """The mapping in a YAML file, and where each value stands.

    Raises:
        ConfigError: no such file, not UTF-8, empty, not YAML, a key given twice, not a mapping at the top.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ConfigError(f"config file {path} does not exist (looked in {Path.cwd()})") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"config file {path} can't be read as UTF-8 text: {error}") from None
    source = f"{path} line {{line}}" if "{" not in str(path) else "line {line}"
    try:
        node = yaml.compose(text, Loader=_Loader)
        if node is None:
            raise ConfigError(f"config file {path} is empty; allowed: a mapping with a `stage`")
        builder = _Builder(source)
        value = builder.build(node, ())
    except yaml.YAMLError as error:
        raise ConfigError(f"config file {path} is not valid YAML", [_syntax_problem(error)]) from None
    if not isinstance(value, dict):
        problem = Problem(key="", got=f"got {quote(value)}", allowed="a mapping of keys at the top of the file")
        raise ConfigError(f"config file {path} is not a config", [problem])
    return value, builder.origins


def read_value(text: str, path: tuple[str, ...], origin: str) -> tuple[Any, Origins]:
    """The value of an override, as YAML.

    Raises:
        ConfigError: not YAML.
    """
    builder = _Builder(origin.replace("{", "{{").replace("}", "}}"))
    try:
        node = yaml.compose(text, Loader=_Loader)
        value = builder.build(node, path) if node is not None else None
    except yaml.YAMLError as error:
        found = _syntax_problem(error)
        problem = Problem(key=".".join(path), got=f"got {text!r} ({found.got})", allowed="a YAML value", origin=origin)
        raise ConfigError("the overrides can't be read", [problem]) from None
    builder.origins[path] = origin
    return value, builder.origins


def _syntax_problem(error: yaml.YAMLError) -> Problem:
    if not isinstance(error, yaml.MarkedYAMLError):
        return Problem(key="", got=" ".join(str(error).split()), allowed="YAML text")
    mark = error.problem_mark or error.context_mark
    where = f"line {mark.line + 1}, column {mark.column + 1}" if mark else ""
    what = " ".join(part for part in (error.context, error.problem) if part)
    return Problem(key=where, got=what, allowed="valid YAML, each key once")


def _represent_text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    # YAML counts these as line ends, and folds them into blanks unless they are escaped
    style = '"' if any(character in text for character in "\x85\u2028\u2029") else None
    return dumper.represent_scalar(f"{_PREFIX}str", text, style=style)


_Dumper.add_representer(str, _represent_text)


def write_yaml(value: dict[str, Any]) -> str:
    """YAML text that `read_yaml` reads back to the same value, in the same order."""
    return yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120)


def quote(value: object) -> str:
    """A value as an error message shows it: as YAML would be written, cut where it is long."""
    if value is None or isinstance(value, bool):
        return "null" if value is None else str(value).lower()
    text = f"a section of {len(value)} keys" if isinstance(value, dict) else repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
