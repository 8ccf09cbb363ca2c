"""The schema read as data: which key holds what. It words the errors, and is what `preceptor schema` shows.

Pydantic names a place by the classes it tried on the way (`ppo.kl.controller.fixed.coef`); here a place is the path that a user writes.
"""

from __future__ import annotations

import json
import types
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import annotated_types
from pydantic import TypeAdapter
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from configs.schema import Config
from configs.schema.base import Section
from configs.yaml_file import quote


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """What a place may hold: a type and the bounds on it."""

    annotation: Any
    bounds: tuple[Any, ...] = ()

    @staticmethod
    def of(annotation: Any, bounds: Sequence[Any] = ()) -> Kind:
        """Takes apart `Annotated`."""
        found = list(bounds)
        while get_origin(annotation) is Annotated:
            annotation, *extra = get_args(annotation)
            for item in extra:
                found += item.metadata if isinstance(item, FieldInfo) else [item]
        return Kind(annotation=annotation, bounds=tuple(found))

    @property
    def alternatives(self) -> tuple[Kind, ...]:
        """The members of a union, `null` left out; the kind itself where it is none."""
        if get_origin(self.annotation) not in (Union, types.UnionType):
            return (self,)
        return tuple(Kind.of(arg) for arg in get_args(self.annotation) if arg is not type(None))

    @property
    def optional(self) -> bool:
        return type(None) in get_args(self.annotation)

    @property
    def sections(self) -> tuple[type[Section], ...]:
        """The classes of section that may stand here."""
        found = [alternative.annotation for alternative in self.alternatives]
        return tuple(item for item in found if isinstance(item, type) and issubclass(item, Section))


ROOT = Kind.of(Config)


def tag_of(section: type[Section]) -> tuple[str, str] | None:
    """The key and word by which a section is chosen among others: (`kind`, `fixed`)."""
    for name in ("stage", "kind"):
        if name in section.model_fields:
            return name, get_args(section.model_fields[name].annotation)[0]
    return None


def field_kind(section: type[Section], name: str) -> Kind | None:
    """What a key of a section may hold; None where there is no such key."""
    info = section.model_fields.get(name)
    return Kind.of(info.annotation, info.metadata) if info else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """A place in a config."""

    path: tuple[str, ...]
    kind: Kind | None
    """None where the schema has no such place."""
    section: type[Section] | None
    """The innermost section around it."""


def locate(loc: Sequence[str | int], root: Kind = ROOT) -> Place:
    """The place in `root` that pydantic's location means: names of union members are left out."""
    path: list[str] = []
    kind: Kind | None = root
    section: type[Section] | None = None
    for part in loc:
        if kind is None:
            path.append(str(part))
            continue
        alternatives = kind.alternatives
        if len(alternatives) > 1:
            chosen = [cls for cls in kind.sections if (tag_of(cls) or ("", ""))[1] == part]
            kind = Kind.of(chosen[0]) if chosen else None
            continue
        (only,) = alternatives
        path.append(str(part))
        if only.sections:
            section = only.sections[0]
            kind = field_kind(section, str(part))
        else:
            inner = [arg for arg in get_args(only.annotation) if arg is not Ellipsis]
            index = int(part) if get_origin(only.annotation) is tuple and len(inner) > 1 else -1
            kind = Kind.of(inner[min(index, len(inner) - 1)]) if inner else None
    return Place(path=tuple(path), kind=kind, section=section)


def kind_text(kind: Kind) -> str:
    """What a place may hold, in words: `a whole number of at least 1, or null`."""
    alternatives = kind.alternatives
    text = _sections_text(kind) if len(alternatives) > 1 else _single_text(alternatives[0], kind.bounds)
    return f"{text}, or null" if kind.optional else text


def _sections_text(kind: Kind) -> str:
    tags = [tag for tag in map(tag_of, kind.sections) if tag]
    return f"a section with {tags[0][0]}: {either([word for _, word in tags])}"


def _single_text(kind: Kind, outer_bounds: tuple[Any, ...]) -> str:
    annotation, bounds = kind.annotation, (*kind.bounds, *outer_bounds)
    origin, args = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        return either([quote(arg) for arg in args])
    if annotation is bool:
        return "true or false"
    if annotation is int or annotation is float:
        return _number_text("a whole number" if annotation is int else "a number", bounds)
    if annotation is str:
        patterns = [bound.pattern for bound in bounds if getattr(bound, "pattern", None)]
        return f"text of the form {patterns[0]}" if patterns else "text"
    if origin is tuple:
        items = [arg for arg in args if arg is not Ellipsis]
        if Ellipsis in args:
            return f"a list, each item {kind_text(Kind.of(items[0]))}"
        return f"a list of {len(items)}: " + ", ".join(kind_text(Kind.of(item)) for item in items)
    if origin is dict:
        return f"a section of names, each {kind_text(Kind.of(args[1]))}"
    return "a section of keys"


def _number_text(noun: str, bounds: Sequence[Any]) -> str:
    low = next((b for b in bounds if isinstance(b, annotated_types.Ge | annotated_types.Gt)), None)
    high = next((b for b in bounds if isinstance(b, annotated_types.Le | annotated_types.Lt)), None)
    if isinstance(low, annotated_types.Ge) and isinstance(high, annotated_types.Le):
        return f"{noun} from {low.ge} to {high.le}"
    words = []
    if low is not None:
        words.append(f"of at least {low.ge}" if isinstance(low, annotated_types.Ge) else f"above {low.gt}")
    if high is not None:
        words.append(f"of at most {high.le}" if isinstance(high, annotated_types.Le) else f"below {high.lt}")
    return " ".join([noun, " and ".join(words)]) if words else noun


def either(words: Sequence[str]) -> str:
    """`a`, `a or b`, `a, b or c`."""
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} or {words[-1]}"


@dataclass(frozen=True, slots=True, kw_only=True)
class FieldRow:
    """One key, for people."""

    key: str
    type: str
    default: str
    description: str


STAGES = tuple(tag[1] for tag in map(tag_of, ROOT.sections) if tag)
"""Names of what a config can ask for."""


def describe(stage: str) -> list[FieldRow]:
    """Every key of a stage, in the schema's order. Items of lists are `N`, names are `NAME`, variants stand in brackets.

    Raises:
        KeyError: no such stage.
    """
    return list(_rows({(tag_of(cls) or ("", ""))[1]: cls for cls in ROOT.sections}[stage], ""))


def _rows(section: type[Section], prefix: str) -> Iterator[FieldRow]:
    for name, info in section.model_fields.items():
        kind, key = Kind.of(info.annotation, info.metadata), f"{prefix}{name}"
        default = "required" if info.is_required() else _default_text(info.get_default(call_default_factory=True))
        nested = _nested(kind, key)
        if not nested or info.is_required() or not isinstance(info.default, Section):
            yield FieldRow(key=key, type=kind_text(kind), default=default, description=info.description or "")
        for inner, inner_prefix in nested:
            yield from _rows(inner, inner_prefix)


def default_keys(section: Section, prefix: str = "") -> Iterator[str]:
    """Keys whose value is the schema's default, in sections and their lists and names too."""
    for name, info in type(section).model_fields.items():
        value, key = dict(section)[name], f"{prefix}{name}"
        default = PydanticUndefined if info.is_required() else info.get_default(call_default_factory=True)
        inner = [(key, value)]
        if isinstance(value, tuple) and any(isinstance(one, Section) for one in value):
            inner = [(f"{key}.{at}", one) for at, one in enumerate(value)]
        elif isinstance(value, dict) and value:
            inner = [(f"{key}.{named}", one) for named, one in value.items()]
        for place, one in inner:
            if isinstance(one, Section):
                yield from default_keys(one, f"{place}.")
            elif default is not PydanticUndefined and value == default:
                yield place


def _nested(kind: Kind, key: str) -> list[tuple[type[Section], str]]:
    """The sections inside a place, with the prefix of their keys."""
    alternatives = kind.alternatives
    if len(alternatives) > 1:
        return [(cls, f"{key}[{(tag_of(cls) or ('', ''))[1]}].") for cls in kind.sections]
    annotation = alternatives[0].annotation
    if get_origin(annotation) is tuple:
        return [(cls, f"{key}.N.") for cls in Kind.of(get_args(annotation)[0]).sections]
    if get_origin(annotation) is dict:
        named = Kind.of(get_args(annotation)[1])
        # a pipeline's stages are described one by one
        return [(cls, f"{key}.NAME.") for cls in named.sections] if len(named.alternatives) == 1 else []
    return [(cls, f"{key}.") for cls in kind.sections]


def _default_text(value: object) -> str:
    if value is PydanticUndefined:
        return "required"
    if isinstance(value, Section):
        return "its keys' defaults"
    if value == {}:
        return "{}"
    return quote(list(value) if isinstance(value, tuple) else value)


def schema_json() -> str:
    """JSON schema of every stage."""
    return json.dumps(TypeAdapter(Config).json_schema(), indent=2)
