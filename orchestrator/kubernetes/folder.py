"""A folder of manifests. Only files that were made here are replaced or removed."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import yaml

from actors.durable import write_whole
from actors.errors import UserError
from orchestrator.kubernetes.pods import Object

MARK = "# Made by `preceptor k8s render`: render again to change it."


def check_folder(path: str) -> Path:
    """The folder, where it could be written. Writes nothing.

    Raises:
        UserError: where it is none, holds files that were not made here, or can't be written.
    """
    folder = Path(path).absolute()
    there = next(one for one in (folder, *folder.parents) if one.exists() or one.is_symlink())
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        raise UserError(
            f"-o: {folder} can't be written: {there} is no folder that can be; allowed: a new or empty folder"
        )
    foreign = [entry.name for entry in sorted(folder.iterdir()) if not _is_ours(entry)] if folder.is_dir() else []
    if foreign:
        listed = ", ".join(foreign[:3]) + (", ..." if len(foreign) > 3 else "")
        raise UserError(
            f"-o: {folder} holds what `preceptor k8s render` did not make ({listed}); allowed: a new or empty folder, or one that it made"
        )
    return folder


def write_folder(folder: Path, files: dict[str, list[Object]]) -> None:
    """Writes the files, in a folder that `check_folder` has found right, and removes those of an earlier rendering."""
    for name, objects in files.items():
        write_whole(folder / name, text_of(objects).encode())
    for entry in folder.iterdir():
        if entry.name not in files:
            entry.unlink()


def text_of(objects: list[Object]) -> str:
    """A file's text. Kubernetes reads YAML 1.1, so that is what is written: `"yes"` and `"8080"` keep their quotes."""
    documents = yaml.dump_all(objects, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120)
    return f"{MARK}\n{documents}"


def _is_ours(entry: Path) -> bool:
    if not entry.is_file() or entry.suffix != ".yaml":
        return False
    with entry.open("rb") as file:
        return file.readline().rstrip() == MARK.encode()


class _Dumper(yaml.SafeDumper):
    def ignore_aliases(self, data: Any) -> bool:  # noqa: ARG002 - equal parts are written out, not as `*id001`
        return True

    def increase_indent(self, flow: bool = False, indentless: bool = False) -> None:  # noqa: ARG002 - lists stand in, as kubectl writes them
        super().increase_indent(flow, False)


def _represent_text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None)


_Dumper.add_representer(str, _represent_text)
