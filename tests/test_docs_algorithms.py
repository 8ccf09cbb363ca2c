"""docs/algorithms.md against the code: what it names is there, and its examples come to what it says."""

from __future__ import annotations

import ast
import doctest
import importlib
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

from configs.load import describe
from orchestrator.commands.training import STAGES

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "algorithms.md"

FUNCTION = re.compile(r"\[`([\w.]+)`\]\(\.\./([\w/]+\.py)\)")
EXAMPLE = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)
FORMULA = re.compile(r"^```math\n(.*?)^```$", re.MULTILINE | re.DOTALL)
SYMBOL_ROW = re.compile(r"^\| \$?[^|`]+\| ([^|]*`[^|]*)\|", re.MULTILINE)
SPAN = re.compile(r"`([\w.]+)`")


@dataclass(frozen=True, slots=True)
class Section:
    title: str
    text: str

    @property
    def functions(self) -> list[tuple[str, str]]:
        """(name, file) of each function that the section links."""
        return FUNCTION.findall(self.text)


def sections(page: str) -> Iterator[Section]:
    for part in re.split(r"^## ", page, flags=re.MULTILINE)[1:]:
        title, _, text = part.partition("\n")
        yield Section(title, text)


SECTIONS = tuple(sections(PAGE.read_text("utf-8")))
STATED = [section for section in SECTIONS if section.title != "Papers"]


@cache
def defined_in(file: str) -> frozenset[str]:
    """Functions, classes and methods (`Class.method`) of a file."""
    names = set()
    for node in ast.parse((ROOT / file).read_text("utf-8")).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.add(node.name)
        if isinstance(node, ast.ClassDef):
            names |= {f"{node.name}.{one.name}" for one in node.body if isinstance(one, ast.FunctionDef)}
    return frozenset(names)


def undefined(section: Section) -> list[str]:
    return [name for name, file in section.functions if not (ROOT / file).is_file() or name not in defined_in(file)]


def unknown_symbols(section: Section) -> list[str]:
    """Names in the column "in the code" of its table that are no word of a file that the section links."""
    code = "\n".join((ROOT / file).read_text("utf-8") for _, file in section.functions)
    code += (ROOT / "actors" / "algorithms" / "moments.py").read_text("utf-8")
    words = set(re.findall(r"\w+", code))
    return [name for cell in SYMBOL_ROW.findall(section.text) for name in SPAN.findall(cell) if name not in words]


@pytest.mark.parametrize("section", STATED, ids=lambda section: section.title)
def test_every_section_has_a_formula_a_function_and_an_example_and_they_exist(section: Section) -> None:
    assert FORMULA.search(section.text)
    assert section.functions
    assert EXAMPLE.search(section.text)
    assert SYMBOL_ROW.search(section.text)
    assert undefined(section) == []
    assert unknown_symbols(section) == []


@pytest.mark.parametrize("section", STATED, ids=lambda section: section.title)
def test_every_example_comes_to_what_it_says(section: Section) -> None:
    names: dict[str, Any] = {"t": torch.tensor, "exp": math.exp, "log": math.log}
    for name, file in section.functions:
        module = importlib.import_module(file.removesuffix(".py").replace("/", "."))
        names[name.partition(".")[0]] = getattr(module, name.partition(".")[0])
    parser = doctest.DocTestParser()
    said: list[str] = []
    for number, example in enumerate(EXAMPLE.findall(section.text)):
        test = parser.get_doctest(example, names, f"{section.title} {number}", str(PAGE), 0)
        assert test.examples
        doctest.DocTestRunner().run(test, out=said.append)
    assert "".join(said) == ""


def test_every_key_that_the_page_names_is_in_the_schema() -> None:
    keys = {row.key for stage in STAGES for row in describe(stage)}
    sections = {key[: dot.start()] for key in keys for dot in re.finditer(r"[.\[]", key)}
    named = re.findall(r"`((?:ppo|dpo|reward|rollout)\.[a-z_.]+)", PAGE.read_text("utf-8"))
    assert named
    assert [key for key in named if key not in keys | sections] == []


def test_every_paper_is_listed_and_every_one_listed_is_cited() -> None:
    papers = SECTIONS[-1]
    assert papers.title == "Papers"
    rows = re.findall(r"^\| (\w+)\b[^|]*?(\d{4}) \|", papers.text, re.MULTILINE)
    text = " ".join(" ".join(section.text.split()) for section in STATED)
    assert len(rows) > 10
    assert [row for row in rows if not re.search(rf"{row[0]}\b.{{0,40}}?{row[1]}", text)] == []
    for year in re.finditer(r"\b(?:19|20)\d\d\b", text):
        before = text[max(0, year.start() - 60) : year.start()]
        assert any(name in before for name, of in rows if of == year.group()), before + year.group()


def test_planted_mistakes_are_found() -> None:
    planted = Section(
        "x",
        "[`gae`](../actors/algorithms/losses.py) [`policy_loss`](../actors/algorithms/losses.py)\n\n"
        "| $a$ | `no_such_name`, `clip_low` | |\n",
    )
    assert undefined(planted) == ["gae"]
    assert unknown_symbols(planted) == ["no_such_name"]
