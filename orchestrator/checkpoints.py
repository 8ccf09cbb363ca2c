"""Checkpoints: which are whole, which may go.

`checkpoints/00000010/` holds each role's shards (written by the ranks) and `manifest.json`, written last: a folder without it is not a
checkpoint. An old one is removed only after a newer one is whole.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from actors.errors import PreceptorError
from actors.tasks import WrittenFile
from orchestrator.ledger import create_only

MANIFEST = "manifest.json"


class Checkpoints:
    """The checkpoints of one run."""

    def __init__(self, run_dir: Path, *, keep: int) -> None:
        self._folder = run_dir / "checkpoints"
        self._keep = keep

    def folder(self, step: int) -> Path:
        return self._folder / f"{step:08d}"

    def prepare(self, step: int) -> Path:
        """An empty folder for this step; what an interrupted attempt left there goes."""
        folder = self.folder(step)
        assert not (folder / MANIFEST).exists(), f"{folder} is whole already"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        return folder

    def commit(self, step: int, files: Mapping[str, Sequence[WrittenFile]], state: Mapping[str, Any]) -> None:
        """Writes the manifest, then removes what is older than the newest `keep`."""
        listing = {
            role: [{"name": f.name, "sha256": f.sha256, "bytes": f.num_bytes} for f in written]
            for role, written in files.items()
        }
        manifest = {"step": step, "files": listing, "state": dict(state)}
        create_only(self.folder(step) / MANIFEST, json.dumps(manifest, indent=1, sort_keys=True).encode())
        for old in self.steps()[: -self._keep]:
            # the manifest goes first, so that a half-removed folder is never taken for a checkpoint
            (self.folder(old) / MANIFEST).unlink()
            shutil.rmtree(self.folder(old))

    def has(self, step: int) -> bool:
        return (self.folder(step) / MANIFEST).exists()

    def steps(self) -> list[int]:
        """Whole checkpoints, oldest first."""
        return sorted(int(path.parent.name) for path in self._folder.glob(f"*/{MANIFEST}"))

    def state(self, step: int) -> dict[str, Any]:
        """The orchestrator's part of a checkpoint; checks that every file is there, whole. PreceptorError names one that is not."""
        folder = self.folder(step)
        manifest = json.loads((folder / MANIFEST).read_bytes())
        for role, files in manifest["files"].items():
            for file in files:
                path = folder / role / file["name"]
                if not path.exists() or path.stat().st_size != file["bytes"] or sha256_of(path) != file["sha256"]:
                    raise PreceptorError(
                        f"checkpoint file {path} is missing or damaged: its manifest says {file['bytes']} bytes, sha256 {file['sha256']}"
                    )
        return dict(manifest["state"])


def sha256_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
