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
from actors.store import create_only, entries, make_folder, naming, read_bytes, remove_tree, size_of, write_whole
from actors.tasks import WrittenFile

MANIFEST = "manifest.json"


class Damaged(PreceptorError):
    """A file of a checkpoint is not there, or was read whole and is not what the manifest says. A store that fails is neither."""


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
        if self.has(step):
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
            _remove(self.folder(old) / MANIFEST)
            remove_tree(self.folder(old))

    def has(self, step: int) -> bool:
        return size_of(self.folder(step) / MANIFEST) is not None

    def steps(self) -> list[int]:
        """Whole checkpoints, oldest first."""
        return sorted(int(path.name) for path in entries(self._folder) if size_of(path / MANIFEST) is not None)

    def newest(self, last_committed: int, note: Callable[[str], None]) -> int:
        """Step of the newest checkpoint that is whole, 0 where there is none. Damaged ones on the way are set aside, with a note.

        Raises:
            PreceptorError: where a checkpoint is newer than the last committed step, which never happens by itself; where one can't be
                read: a store that fails now and then must not cost a good checkpoint.
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
            except Damaged as error:
                manifest = self.folder(step) / MANIFEST
                # no rename: a store has none
                if self.has(step):
                    write_whole(manifest.with_suffix(".damaged"), read_bytes(manifest))
                    _remove(manifest)
                note(f"{error}. It is left out; an older checkpoint and the stored trajectories give the same weights")
            else:
                return step
        return 0

    def can_be_best(self, step: int, note: Callable[[str], None]) -> bool:
        """Whether this step's checkpoint is there and whole. A damaged one is told: an export of it could never be made.

        Raises:
            PreceptorError: where it can't be read.
        """
        if not self.has(step):
            return False
        try:
            self.state(step)
        except Damaged as error:
            note(f"{error}. Its evaluation no longer counts for the best")
            return False
        return True

    def state(self, step: int) -> dict[str, Any]:
        """The orchestrator's part of a checkpoint; checks that every file is there, whole.

        Raises:
            Damaged: naming a file that is missing or damaged.
            PreceptorError: naming a file that can't be read.
        """
        folder = self.folder(step)
        if size_of(folder / MANIFEST) is None:
            raise Damaged(f"checkpoint file {folder / MANIFEST} is missing or damaged: there is none")
        with naming(folder / MANIFEST, "read"):
            data = read_bytes(folder / MANIFEST)
        try:
            manifest = json.loads(data)
            files = [
                (role, file["name"], file["bytes"], file["sha256"])
                for role in manifest["files"]
                for file in manifest["files"][role]
            ]
            state = dict(manifest["state"])
        except (ValueError, TypeError, KeyError) as error:
            raise Damaged(f"checkpoint file {folder / MANIFEST} is missing or damaged: {error}") from error
        for role, name, num_bytes, sha256 in files:
            path = folder / role / name
            if size_of(path) != num_bytes or sha256_of(path) != sha256:
                raise Damaged(
                    f"checkpoint file {path} is missing or damaged: its manifest says {num_bytes} bytes, sha256 {sha256}"
                )
        return state


def sha256_of(path: Path) -> str:
    """Raises PreceptorError where the file can't be read to its end."""
    with naming(path, "read"), path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _remove(path: Path) -> None:
    with naming(path, "removed"):
        path.unlink()
