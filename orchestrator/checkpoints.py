"""Checkpoints: which are whole, which may go.

`checkpoints/00000010/` holds each role's shards (written by the ranks) and `manifest.json`, written last: a folder without it is not a
checkpoint. An old one is removed only after a newer one is whole.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from actors.errors import PreceptorError
from actors.store import create_only, make_folder, read_bytes, remove_tree, write_whole
from actors.tasks import WrittenFile

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
        if (folder / MANIFEST).exists():
            raise PreceptorError(
                f"{folder} is a whole checkpoint already: another driver works on this run directory; this one stops"
            )
        remove_tree(folder)
        make_folder(folder)
        return folder

    def commit(
        self,
        step: int,
        files: Mapping[str, Sequence[WrittenFile]],
        state: Mapping[str, Any],
        *,
        spare: Collection[int] = (),
    ) -> None:
        """Writes the manifest, then removes what is older than the newest `keep`, but for the steps to `spare`."""
        listing = {
            role: [{"name": f.name, "sha256": f.sha256, "bytes": f.num_bytes} for f in written]
            for role, written in files.items()
        }
        manifest = {"step": step, "files": listing, "state": dict(state)}
        try:
            create_only(self.folder(step) / MANIFEST, json.dumps(manifest, indent=1, sort_keys=True).encode())
        except FileExistsError:
            raise PreceptorError(
                f"{self.folder(step)} is a whole checkpoint already: another driver works on this run directory; this one stops"
            ) from None
        for old in sorted(set(self.steps()[: -self._keep]) - set(spare)):
            # the manifest goes first, so that a half-removed folder is never taken for a checkpoint
            (self.folder(old) / MANIFEST).unlink()
            remove_tree(self.folder(old))

    def has(self, step: int) -> bool:
        return (self.folder(step) / MANIFEST).exists()

    def steps(self) -> list[int]:
        """Whole checkpoints, oldest first."""
        return sorted(int(path.parent.name) for path in self._folder.glob(f"*/{MANIFEST}"))

    def newest(self, last_committed: int, note: Callable[[str], None]) -> int:
        """Step of the newest checkpoint that is whole, 0 where there is none. Damaged ones on the way are set aside, with a note.

        Raises:
            PreceptorError: where a checkpoint is newer than the last committed step, which never happens by itself.
        """
        found = self.steps()
        if found and found[-1] > last_committed:
            raise PreceptorError(
                f"{self.folder(found[-1])} is of a later step than the ledger's last, {last_committed}: ledger entries were removed. "
                "Put them back"
            )
        for step in reversed(found):
            try:
                self.state(step)
            except PreceptorError as error:
                manifest = self.folder(step) / MANIFEST
                # no rename: a store has none
                if manifest.exists():
                    write_whole(manifest.with_suffix(".damaged"), read_bytes(manifest))
                    manifest.unlink()
                note(f"{error}. It is left out; an older checkpoint and the stored trajectories give the same weights")
            else:
                return step
        return 0

    def can_be_best(self, step: int, note: Callable[[str], None]) -> bool:
        """Whether this step's checkpoint is there and whole. A damaged one is told: an export of it could never be made."""
        if not self.has(step):
            return False
        try:
            self.state(step)
        except PreceptorError as error:
            note(f"{error}. Its evaluation no longer counts for the best")
            return False
        return True

    def state(self, step: int) -> dict[str, Any]:
        """The orchestrator's part of a checkpoint; checks that every file is there, whole.

        Raises:
            PreceptorError: naming a file that is missing or damaged.
        """
        folder = self.folder(step)
        try:
            manifest = json.loads(read_bytes(folder / MANIFEST))
            files = [
                (role, file["name"], file["bytes"], file["sha256"])
                for role in manifest["files"]
                for file in manifest["files"][role]
            ]
            state = dict(manifest["state"])
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise PreceptorError(f"checkpoint file {folder / MANIFEST} is missing or damaged: {error}") from error
        for role, name, num_bytes, sha256 in files:
            path = folder / role / name
            if not path.is_file() or path.stat().st_size != num_bytes or sha256_of(path) != sha256:
                raise PreceptorError(
                    f"checkpoint file {path} is missing or damaged: its manifest says {num_bytes} bytes, sha256 {sha256}"
                )
        return state


def sha256_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
