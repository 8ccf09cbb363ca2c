"""Files that a command writes where the user says: a page, a JSON file. What was there before is replaced, whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path

from actors.errors import PreceptorError, UserError
from actors.store import is_local, reason, require_listed, run_path, write_whole

ALLOWED = "allowed: a file in a folder that can be written"


def check_target(path: str, option: str) -> Path:
    """The file's place, where it could be written; missing folders would be made. Writes nothing.

    Raises:
        UserError: naming the option.
    """
    target = run_path(path, option).absolute()
    if not is_local(target):
        require_listed(target.parent, key=option)
        return target
    folder = next(one for one in target.parents if one.exists() or one.is_symlink())
    if target.is_dir():
        raise UserError(f"{option}: {target} is a folder; {ALLOWED}")
    if not folder.is_dir():
        raise UserError(f"{option}: {target} can't be written: {folder} is no folder; {ALLOWED}")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise UserError(f"{option}: {target} can't be written: {folder} is not writable; {ALLOWED}")
    return target


def write_target(target: Path, content: str | bytes, option: str) -> None:
    """Writes the file. What models wrote may be no text: it is written all the same.

    Raises:
        UserError: naming the option.
    """
    try:
        write_whole(target, content.encode("utf-8", "replace") if isinstance(content, str) else content)
    except PreceptorError as error:
        raise UserError(f"{option}: {error}; {ALLOWED}") from error
    except OSError as error:
        raise UserError(f"{option}: {target} can't be written ({reason(error)}); {ALLOWED}") from error
