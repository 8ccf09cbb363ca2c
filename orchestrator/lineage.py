"""Lineage: what an artefact was made from, back to the data. An export holds its own and its parents': it tells all by itself."""

from __future__ import annotations

import hashlib
import json
import subprocess
from collections.abc import Mapping
from contextlib import suppress
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from actors.errors import UserError
from actors.store import is_local, read_bytes, require_listed, run_path, write_whole
from configs.schema import Pipeline, Stage, stage_models
from orchestrator.checkpoints import MANIFEST
from orchestrator.plan import made_by
from orchestrator.run_dir import CONFIG_FILE, DATA_FILE, stored_config

if TYPE_CHECKING:
    from rich.tree import Tree

LINEAGE_FILE = "lineage.json"
FORMAT = 1
PACKAGES = ("configs", "actors", "orchestrator")
GIT_TIMEOUT_S = 10.0
NO_RUNS = ("http://", "https://", "hf://")
"""URLs under which no run keeps anything."""

Lineage = dict[str, Any]
"""As the file holds it: stage, step, run_dir, config_sha256, data, models (each with its own lineage, where it has one), code, made."""


def lineage_of(config: Stage, run_dir: Path, *, role: str, step: int) -> Lineage:
    """Of the model that `role` of the run in `run_dir` is after `step`, from what the run directory holds."""
    fingerprint = json.loads(read_bytes(run_dir / DATA_FILE))["fingerprint"]
    return {
        "format": FORMAT,
        "stage": config.stage,
        "role": role,
        "step": step,
        "run_dir": str(run_dir),
        "config_sha256": hashlib.sha256(read_bytes(run_dir / CONFIG_FILE)).hexdigest(),
        "data": {
            "fingerprint": fingerprint,
            "sources": [
                {"path": source.path, "lineage": lineage_beside(source.path)}
                for source in (config.data, *config.data.mix)
            ],
        },
        "models": {
            key: {"model": model, "lineage": lineage_of_model(model)} for key, model in stage_models(config).items()
        },
        "code": code_version(),
        "made": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def write_lineage(folder: Path, lineage: Lineage) -> None:
    """Puts it into an export."""
    write_whole(folder / LINEAGE_FILE, json.dumps(lineage, indent=1).encode())


def read_lineage(artefact: str) -> Lineage:
    """Of an export's folder, a file beside one's lineage, a run directory or a checkpoint's folder in it.

    Raises:
        UserError: where there is none, or it is damaged.
    """
    path = run_path(artefact, "ARTEFACT").absolute()
    if not is_local(path):
        require_listed(path, key="ARTEFACT")
    if not path.exists():
        raise UserError(f"ARTEFACT: there is no {artefact!r}")
    if (path / MANIFEST).exists():
        return _of_run(path.parent.parent, step=int(path.name))
    found = _within(path) if path.is_dir() else _within(path.parent)
    if found is not None:
        return found
    if (path / CONFIG_FILE).exists():
        return _of_run(path, step=None)
    raise UserError(
        f"{artefact!r} has no {LINEAGE_FILE}; allowed: an export's folder, a run directory, or a checkpoint's folder in one"
    )


def _of_run(run_dir: Path, *, step: int | None) -> Lineage:
    config = stored_config(run_dir)
    if isinstance(config, Pipeline):
        stages = ", ".join(str(run_dir / name) for name in config.stages)
        raise UserError(f"{run_dir} is a pipeline; allowed: one of its stages' folders: {stages}")
    if not (run_dir / DATA_FILE).exists():
        raise UserError(f"{run_dir} has not begun: it has no {DATA_FILE}")
    return lineage_of(config, run_dir, role=made_by(config), step=_last_step(run_dir) if step is None else step)


def _last_step(run_dir: Path) -> int:
    return max((int(path.stem) for path in run_dir.glob("ledger/[0-9]*.json")), default=0)


def _within(folder: Path) -> Lineage | None:
    """The lineage that a folder holds."""
    try:
        found = json.loads(read_bytes(folder / LINEAGE_FILE))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except ValueError as error:
        raise UserError(f"{folder / LINEAGE_FILE} is damaged: {error}") from error
    if not isinstance(found, dict) or found.get("format") != FORMAT:
        raise UserError(f"{folder / LINEAGE_FILE} is damaged, or of another version")
    return found


def lineage_beside(source: str) -> Lineage | None:
    """Of a data file that lies in an export. Data of the web and of the hub has none."""
    if source.startswith(NO_RUNS):
        return None
    file = run_path(source, "data.path")
    return _within(file.parent) if file.is_file() else None


def lineage_of_model(model: str) -> Lineage | None:
    """Of a model in a folder or store; None of one that is no export."""
    return None if model.startswith(NO_RUNS) else _within(run_path(model, "model"))


def code_version() -> dict[str, str]:
    """Version of the package, sha256 of its sources, and the commit where they are a git checkout's."""
    root = Path(__file__).resolve().parent.parent
    digest = hashlib.sha256()
    for path in sorted(file for package in PACKAGES for file in (root / package).rglob("*.py")):
        digest.update(str(path.relative_to(root)).encode() + b"\0" + path.read_bytes() + b"\0")
    found = {"sources_sha256": digest.hexdigest()}
    with suppress(metadata.PackageNotFoundError):
        found["version"] = metadata.version("preceptor")
    if (root / ".git").exists():
        with suppress(OSError, subprocess.SubprocessError):
            said = subprocess.run(
                ["git", "rev-parse", "HEAD"],
                cwd=root,
                capture_output=True,
                text=True,
                check=True,
                timeout=GIT_TIMEOUT_S,
            )
            found["commit"] = said.stdout.strip()
    return found


def tree_of(lineage: Lineage) -> Tree:
    """For people: the artefact at the root, what it was made from below it, back to the data."""
    from rich.tree import Tree

    tree = Tree(_title(lineage))
    _grow(tree, lineage)
    return tree


def _grow(tree: Tree, lineage: Lineage) -> None:
    tree.add(f"run: {lineage['run_dir']}")
    tree.add(f"config: {lineage['config_sha256'][:12]}")
    code: Mapping[str, str] = lineage["code"]
    commit = f", commit {code['commit'][:12]}" if "commit" in code else ""
    tree.add(f"code: {code.get('version', 'no version')}, sources {code['sources_sha256'][:12]}{commit}")
    tree.add(f"data fingerprint: {lineage['data']['fingerprint'][:12]}")
    parents = [(f"data: {source['path']}", source["lineage"]) for source in lineage["data"]["sources"]]
    parents += [(f"{key}: {model['model']}", model["lineage"]) for key, model in lineage["models"].items()]
    for name, parent in parents:
        branch = tree.add(name)
        if parent is not None:
            _grow(branch.add(_title(parent)), parent)


def _title(lineage: Lineage) -> str:
    return f"{lineage['role']} of stage {lineage['stage']}, step {lineage['step']}, made {lineage['made']}"
