"""The direction of imports, and who owns which heavy library.

`configs <- actors <- orchestrator`. The rules are the tables below; the checker reads import statements, so a violation is found
even in a module that no test imports. What a process really loads is checked beside it, in fresh interpreters.
"""

import ast
import subprocess
import sys
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

# A package may import itself and these packages of ours.
LAYERS = {
    "configs": set(),
    "actors": {"configs"},
    "orchestrator": {"actors", "configs"},
}

# Inside these files nothing beyond the standard library, the file's own package tree and the names listed may be imported.
ONLY = {
    "configs/**": {"annotated_types", "configs", "pydantic", "pydantic_core", "yaml"},
    "actors/algorithms/**": {"actors.algorithms", "torch"},
}

# A heavy library is imported, at whatever depth of the code, by its owners alone.
OWNERS = {
    "deepspeed": {"actors/engine/**"},
    "ray": {
        "actors/group.py",
        "actors/policy.py",  # the handles of the engines that it sends to
        "actors/role.py",
        "actors/weight_sync/**",
        "orchestrator/launch.py",
        "orchestrator/stages.py",
    },
    "vllm": {"actors/rollout_backend.py", "actors/weight_sync/**"},
}

# Importing one of the modules below must not load any of HEAVY: the driver imports the roles' classes for typed calls, and the roles
# import what they need inside their own processes.
HEAVY = {"deepspeed", "torch", "transformers", "vllm"}
LIGHT = {"configs/**", "orchestrator/**", "actors/*.py"}
NOT_LIGHT = {"actors/rollout_backend.py"}

# These answer before anything starts (a bad config, --help, a plan), so they load Ray no more than torch.
INSTANT = ("configs.load", "configs.gpus", "orchestrator.plan", "orchestrator.estimate.describe", "orchestrator.cli")


@dataclass(frozen=True, slots=True, kw_only=True)
class Import:
    """One imported module: `import a.b` gives `a.b`, `from a import b` gives `a.b` and thereby `a`."""

    file: str
    line: int
    name: str
    level: int  # dots of a relative import
    at_load: bool  # runs when the file is imported: not inside a function, not under TYPE_CHECKING

    @property
    def top(self) -> str:
        return self.name.partition(".")[0]

    @property
    def place(self) -> str:
        return f"{self.file}:{self.line}"


def is_type_checking(test: ast.expr) -> bool:
    return (isinstance(test, ast.Name) and test.id == "TYPE_CHECKING") or (
        isinstance(test, ast.Attribute) and test.attr == "TYPE_CHECKING"
    )


def imports_in(node: ast.AST, file: str, at_load: bool = True) -> Iterator[Import]:
    if isinstance(node, ast.Import):
        for alias in node.names:
            yield Import(file=file, line=node.lineno, name=alias.name, level=0, at_load=at_load)
    elif isinstance(node, ast.ImportFrom):
        for alias in node.names:
            name = f"{node.module}.{alias.name}" if node.module else alias.name
            yield Import(file=file, line=node.lineno, name=name, level=node.level, at_load=at_load)
    elif isinstance(node, ast.If) and is_type_checking(node.test):
        for statement in node.body:
            yield from imports_in(statement, file, at_load=False)
        for statement in node.orelse:
            yield from imports_in(statement, file, at_load)
    else:
        inner = at_load and not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        for child in ast.iter_child_nodes(node):
            yield from imports_in(child, file, inner)


def read_imports(root: Path) -> dict[str, list[Import]]:
    """Every import of our packages, by file path relative to `root`."""
    files = sorted(path for package in LAYERS for path in (root / package).rglob("*.py"))
    return {
        file: list(imports_in(ast.parse(path.read_text("utf-8"), file), file))
        for path in files
        for file in [path.relative_to(root).as_posix()]
    }


def matches(file: str, patterns: set[str]) -> bool:
    """`a/**` is everything below `a`; in other patterns `*` stays within one folder."""
    folder, _, name = file.rpartition("/")
    for pattern in patterns:
        above, _, last = pattern.rpartition("/")
        if file.startswith(f"{above}/") if last == "**" else (folder == above and fnmatch(name, last)):
            return True
    return False


def is_light(file: str) -> bool:
    return matches(file, LIGHT) and not matches(file, NOT_LIGHT)


def direction_violations(imports: dict[str, list[Import]]) -> Iterator[str]:
    for file, found in imports.items():
        package = file.partition("/")[0]
        for one in found:
            if one.level:
                yield f"{one.place}: relative import"
            elif one.top in LAYERS and one.top != package and one.top not in LAYERS[package]:
                yield f"{one.place}: {package} imports {one.name}"
            elif one.top in {"tests", "benchmarks", "tools"}:
                yield f"{one.place}: the product imports {one.name}"


def prefixes(name: str) -> set[str]:
    """`a.b.c` gives `a`, `a.b` and `a.b.c`."""
    parts = name.split(".")
    return {".".join(parts[:end]) for end in range(1, len(parts) + 1)}


def only_violations(imports: dict[str, list[Import]]) -> Iterator[str]:
    for pattern, allowed in ONLY.items():
        for file in filter(lambda file: matches(file, {pattern}), imports):
            for one in imports[file]:
                if one.top not in sys.stdlib_module_names and not prefixes(one.name) & allowed:
                    yield f"{one.place}: {pattern} may not import {one.name}"


def owner_violations(imports: dict[str, list[Import]]) -> Iterator[str]:
    for file, found in imports.items():
        for one in found:
            if one.top in OWNERS and not matches(file, OWNERS[one.top]):
                yield f"{one.place}: {one.top} belongs to {', '.join(sorted(OWNERS[one.top]))}"


def files_loaded_by(one: Import, imports: dict[str, list[Import]]) -> Iterator[str]:
    """Our files that run when this import does: the module itself and the `__init__.py` of every package above it."""
    parts = one.name.split(".")
    for end in range(1, len(parts) + 1):
        base = "/".join(parts[:end])
        for file in (f"{base}/__init__.py", f"{base}.py"):
            if file in imports:
                yield file


def chain_to_heavy(start: str, imports: dict[str, list[Import]]) -> list[Import]:
    """The module-level imports that lead from a file through our own files to a heavy library, that library first; or none."""
    came_by: dict[str, list[Import]] = {start: []}
    queue = deque([start])
    while queue:
        file = queue.popleft()
        for one in imports[file]:
            if not one.at_load:
                continue
            chain = [one, *came_by[file]]
            if one.top in HEAVY:
                return chain
            for loaded in files_loaded_by(one, imports):
                if loaded not in came_by:
                    came_by[loaded] = chain
                    queue.append(loaded)
    return []


def light_violations(imports: dict[str, list[Import]]) -> Iterator[str]:
    for file in filter(is_light, imports):
        if chain := chain_to_heavy(file, imports):
            yield f"{file} loads {chain[0].top}: {' <- '.join(one.place for one in chain)}"


RULES = {
    "direction": direction_violations,
    "only": only_violations,
    "owners": owner_violations,
    "light": light_violations,
}


@pytest.mark.parametrize("rule", RULES)
def test_the_project_keeps_the_rule(rule: str) -> None:
    imports = read_imports(ROOT)
    assert {file.partition("/")[0] for file in imports} == set(LAYERS)
    assert list(RULES[rule](imports)) == []


PLANTED = [
    ("direction", "configs/x.py", "import actors.group", "configs/x.py:1: configs imports actors.group"),
    (
        "direction",
        "actors/x.py",
        "def f():\n    from orchestrator import plan",
        "actors/x.py:2: actors imports orchestrator.plan",
    ),
    ("direction", "actors/data/x.py", "from .. import tasks", "actors/data/x.py:1: relative import"),
    ("direction", "actors/x.py", "from tests import conftest", "actors/x.py:1: the product imports tests.conftest"),
    ("only", "configs/schema/x.py", "import torch", "configs/schema/x.py:1: configs/** may not import torch"),
    ("only", "configs/x.py", "import yaml\nimport rich", "configs/x.py:2: configs/** may not import rich"),
    (
        "only",
        "actors/algorithms/x.py",
        "from actors.data import files",
        "actors/algorithms/x.py:1: actors/algorithms/** may not import actors.data.files",
    ),
    (
        "only",
        "actors/algorithms/x.py",
        "import numpy",
        "actors/algorithms/x.py:1: actors/algorithms/** may not import numpy",
    ),
    (
        "owners",
        "actors/policy.py",
        "def f():\n    import deepspeed.comm",
        "actors/policy.py:2: deepspeed belongs to actors/engine/**",
    ),
    (
        "owners",
        "orchestrator/x.py",
        "if TYPE_CHECKING:\n    from vllm import LLM",
        "orchestrator/x.py:2: vllm belongs to actors/rollout_backend.py, actors/weight_sync/**",
    ),
    ("light", "orchestrator/x.py", "import torch", "orchestrator/x.py loads torch: orchestrator/x.py:1"),
    (
        "light",
        "actors/x.py",
        "try:\n    import vllm.utils\nfinally:\n    pass",
        "actors/x.py loads vllm: actors/x.py:2",
    ),
    ("light", "actors/policy.py", "class A:\n    import torch.nn", "actors/policy.py loads torch: actors/policy.py:2"),
]


def plant(root: Path, files: dict[str, str]) -> dict[str, list[Import]]:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text + "\n", "utf-8")
    return read_imports(root)


@pytest.mark.parametrize(("rule", "file", "text", "expected"), PLANTED)
def test_a_planted_violation_is_found(tmp_path: Path, rule: str, file: str, text: str, expected: str) -> None:
    assert list(RULES[rule](plant(tmp_path, {file: text}))) == [expected]


def test_a_chain_of_our_own_modules_to_a_heavy_library_is_found(tmp_path: Path) -> None:
    imports = plant(
        tmp_path,
        {
            "orchestrator/plan.py": "import json\nfrom actors.data import files",
            "actors/data/__init__.py": "import actors.models.hidden",  # runs although only a module below it was asked for
            "actors/data/files.py": "",
            "actors/models/hidden.py": "\n\nfrom torch import nn",
        },
    )
    assert list(light_violations(imports)) == [
        "orchestrator/plan.py loads torch: actors/models/hidden.py:3 <- actors/data/__init__.py:1 <- orchestrator/plan.py:2"
    ]


def test_what_is_allowed_is_not_reported(tmp_path: Path) -> None:
    imports = plant(
        tmp_path,
        {
            "configs/load.py": "import json\nimport yaml\nfrom pydantic import Field\nfrom configs.schema import run",
            "configs/schema/run.py": "",
            "actors/algorithms/losses.py": "import torch\nfrom actors.algorithms.records import Trajectories",
            "actors/algorithms/records.py": "from __future__ import annotations",
            "actors/engine/engine.py": "import deepspeed\nfrom configs.schema import run",
            "actors/rollout_backend.py": "from vllm import LLM",
            "actors/weight_sync/nccl.py": "from vllm.distributed import weight_transfer",
            "actors/policy.py": (
                "import typing\nif typing.TYPE_CHECKING:\n    import torch\n"
                "class Policy:\n    def start(self):\n        from actors.engine import engine"
            ),
            "orchestrator/launch.py": "import ray\nfrom actors.policy import Policy",
        },
    )
    assert [violation for rule in RULES.values() for violation in rule(imports)] == []


def load_in_fresh_process(modules: list[str], forbidden: set[str]) -> str:
    """Imports the modules in turn and returns a line for each forbidden library, with the module that first loaded it."""
    script = (
        "import importlib, sys\n"
        f"forbidden = {sorted(forbidden)!r}\n"
        f"for module in {modules!r}:\n"
        "    importlib.import_module(module)\n"
        "    for name in [name for name in forbidden if name in sys.modules]:\n"
        "        forbidden.remove(name)\n"
        "        print(f'{module} loads {name}')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("module", INSTANT)
def test_an_instant_module_loads_neither_ray_nor_a_heavy_library(module: str) -> None:
    assert (ROOT / module.replace(".", "/")).with_suffix(".py").exists(), f"there is no {module}"
    assert load_in_fresh_process([module], HEAVY | {"ray"}) == ""


def test_light_modules_load_no_heavy_library() -> None:
    files = [file for file in read_imports(ROOT) if is_light(file)]
    modules = [file.removesuffix(".py").removesuffix("/__init__").replace("/", ".") for file in files]
    assert load_in_fresh_process(modules, HEAVY) == ""


def test_the_fresh_process_notices_a_load() -> None:
    assert load_in_fresh_process(["json", "fractions"], {"decimal"}) == "fractions loads decimal\n"
