"""README and docs against the project: their commands parse, the configs that they name load, and what they point at exists."""

import argparse
import itertools
import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from configs.errors import ConfigError
from configs.load import load_config
from orchestrator import cli
from orchestrator.sweep.space import read_space

ROOT = Path(__file__).resolve().parent.parent
PAGES = ("README.md", "README.zh.md", *sorted(str(path.relative_to(ROOT)) for path in (ROOT / "docs").glob("*.md")))
CALLS = ("preceptor ", "python -m orchestrator ")
FOLDERS = ("actors", "benchmarks", "configs", "docs", "examples", "k8s", "locks", "orchestrator", "tests", "tools")

FENCE = re.compile(r"^```[^\n]*\n(.*?)^```", re.MULTILINE | re.DOTALL)
SPAN = re.compile(r"`([^`\n]+)`")
LINK = re.compile(r"\[[^\]\n]+\]\(([^)\s]+)\)")
REPO_PATH = re.compile(rf"(?<![\w./-])(?:{'|'.join(FOLDERS)})/[\w./*-]*")
STARTED_MODULE = re.compile(r"python -m ([\w.]+)")
BARE_MODULE = re.compile(r"\w+\.py")
TEST_NAME = re.compile(r"`(test_\w+)`")
OPTIONAL = re.compile(r"(?<![=\[,])\[([^\]]*)\]")  # not a list, as in `key=[1,2]`


@dataclass(frozen=True, slots=True, kw_only=True)
class Snippet:
    """A piece of code on a page: a fenced line or an inline span."""

    text: str
    fenced: bool


def snippets(page: str) -> Iterator[Snippet]:
    for block in FENCE.findall(page):
        for line in block.splitlines():
            yield Snippet(text=line.strip(), fenced=True)
    for span in SPAN.findall(FENCE.sub("", page)):
        # a table's cell cannot hold a bare bar
        yield Snippet(text=span.replace(r"\|", "|"), fenced=False)


def command_lines(page: str) -> Iterator[list[str]]:
    """Arguments of each call of the command line; of one in a usage notation, each way to read it.

    `preceptor run` in prose is the command's name and no call: its help is asked for.
    """
    for snippet in snippets(page):
        for call in CALLS:
            if snippet.text.startswith(call):
                words = shlex.split(OPTIONAL.sub(r"\1", snippet.text.removeprefix(call)), comments=True)
                # `N` is a number, `...` says "and more of these"
                words = ["1" if word == "N" else word for word in words if word != "..."]
                if len(words) == 1 and not snippet.fenced:
                    words.append("--help")
                yield from map(list, itertools.product(*(word.split("|") for word in words)))


def refusal(argv: list[str]) -> str | None:
    """What the command line's own parser says against the arguments, and the loader against a config named among them."""
    try:
        arguments = cli._parse(argv)
    except SystemExit as stop:
        return None if stop.code == 0 else "does not parse"
    config = vars(arguments).get("config")
    if config is None or config.isupper():
        return None
    if not (ROOT / config).is_file():
        return f"there is no {config}"
    try:
        for overrides in trials_of(arguments) if argv[0] == "sweep" else [arguments.overrides]:
            load_config(ROOT / config, overrides)
    except ConfigError as error:
        return str(error)
    return None


def trials_of(arguments: argparse.Namespace) -> list[list[str]]:
    """The overrides of every trial of a sweep."""
    num_drawn = arguments.samples if arguments.search else arguments.random
    space = read_space(arguments.overrides, distributions=num_drawn is not None)
    return [[*space.fixed, *drawn] for drawn in (space.random(num_drawn, 0) if num_drawn else space.grid())]


def refused_commands(page: str) -> list[str]:
    return [f"{' '.join(argv)}: {why}" for argv in command_lines(page) if (why := refusal(argv)) is not None]


def missing_paths(page: str) -> list[str]:
    """Paths of the repository (stars match), modules that `python -m` starts, and bare names of files in spans, that do not exist."""
    named = [path.rstrip(".") for path in REPO_PATH.findall(page)]
    started = [module.replace(".", "/") for module in STARTED_MODULE.findall(page)]
    bare = [s.text for s in snippets(page) if not s.fenced and BARE_MODULE.fullmatch(s.text)]
    return [
        *(path for path in named if not any(ROOT.glob(path))),
        *(path for path in started if not ((ROOT / f"{path}.py").is_file() or (ROOT / path / "__main__.py").is_file())),
        *(name for name in bare if not any(any((ROOT / folder).rglob(name)) for folder in FOLDERS)),
    ]


def anchors(page: str) -> set[str]:
    """What links into a page may name: its headings as GitHub writes them."""
    headings = re.findall(r"^#+ (.+)$", FENCE.sub("", page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def broken_links(page: str, folder: Path) -> list[str]:
    broken = []
    for link in LINK.findall(FENCE.sub("", page)):
        if "://" in link:
            continue
        target, _, anchor = link.partition("#")
        file = folder / target
        text = file.read_text("utf-8") if file.suffix == ".md" and file.is_file() else page
        if (target and not file.exists()) or (anchor and anchor not in anchors(text)):
            broken.append(link)
    return broken


def missing_tests(page: str) -> list[str]:
    defined = {
        name
        for file in (ROOT / "tests").rglob("test_*.py")
        for name in re.findall(r"^def (test_\w+)", file.read_text("utf-8"), re.MULTILINE)
    }
    return [name for name in TEST_NAME.findall(page) if name not in defined]


def unknown_make(page: str) -> list[str]:
    """Calls of make with a target or a variable that the Makefile does not have."""
    makefile = (ROOT / "Makefile").read_text("utf-8")
    unknown = []
    for snippet in snippets(page):
        if snippet.text.startswith("make "):
            for word in shlex.split(snippet.text, comments=True)[1:]:
                name, is_variable, _ = word.partition("=")
                known = rf"\$\((?:\w+ )?{name}\b" if is_variable else rf"^{name}:"
                if not re.search(known, makefile, re.MULTILINE):
                    unknown.append(word)
    return unknown


def text_of(page: str) -> str:
    return (ROOT / page).read_text("utf-8")


@pytest.mark.parametrize("page", PAGES)
def test_every_command_parses_and_its_config_loads(page: str) -> None:
    assert refused_commands(text_of(page)) == []


@pytest.mark.parametrize("page", PAGES)
def test_what_a_page_points_at_exists(page: str) -> None:
    text = text_of(page)
    assert missing_paths(text) == []
    assert broken_links(text, (ROOT / page).parent) == []
    assert missing_tests(text) == []
    assert unknown_make(text) == []


def test_the_pages_have_commands_to_check() -> None:
    found = {name: [tuple(argv) for argv in command_lines(text_of(name))] for name in PAGES}
    assert ("run", "configs/recipes/bandit.yaml") in found["README.md"]
    assert ("export", "RUN_DIR", "OUT", "--step", "1", "--role", "critic") in found["docs/running.md"]
    assert ("plan", "CONFIG", "key=value", "--json") in found["docs/running.md"]
    assert ("schema", "pipeline", "--json") in found["docs/running.md"]


BANDIT = "configs/recipes/bandit.yaml"
PLANTED = [
    (f"```\npreceptor train {BANDIT}\n```", f"train {BANDIT}: does not parse"),
    (f"```\npreceptor run {BANDIT} --dryrun   # a check\n```", f"run {BANDIT} --dryrun: does not parse"),
    ("| `preceptor export RUN OUT --role policy\\|reward` | |", "export RUN OUT --role reward: does not parse"),
    ("see `preceptor replay`", "replay --help: does not parse"),
    ("`python -m orchestrator plan recipe.yaml`", "plan recipe.yaml: there is no recipe.yaml"),
]


@pytest.mark.parametrize(("page", "expected"), PLANTED)
def test_a_planted_mistake_in_a_command_is_found(page: str, expected: str) -> None:
    assert refused_commands(page) == [expected]


def test_an_override_that_the_config_refuses_is_found() -> None:
    (found,) = refused_commands(f"```\npreceptor run {BANDIT} rollout.temperatur=1\n```")
    assert "rollout.temperatur: unknown key" in found


def test_planted_pointers_to_nothing_are_found() -> None:
    page = (
        "# A page\n\n[a](docs/concepts.md#words) [b](docs/concepts.md#verbs) [c](docs/none.md) [d](#a-page) [e](#b)\n"
        "`actors/none.py` `actors/*/losses.py` `none.py` `losses.py` `test_none_of_this`\n\n"
        "```\nmake test T=tests/none\nmake cake\nmake real DATUM=x\npython -m benchmarks.none\n```\n"
    )
    assert missing_paths(page) == ["docs/none.md", "actors/none.py", "tests/none", "benchmarks/none", "none.py"]
    assert broken_links(page, ROOT) == ["docs/concepts.md#verbs", "docs/none.md", "#b"]
    assert missing_tests(page) == ["test_none_of_this"]
    assert unknown_make(page) == ["cake", "DATUM=x"]


def test_the_config_reference_is_the_schemas() -> None:
    from tools.make_config_reference import OUT, page

    assert OUT.read_text("utf-8") == page(), "run: python tools/make_config_reference.py"
