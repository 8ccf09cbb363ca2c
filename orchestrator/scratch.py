"""Where commands without a run directory keep what libraries say."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from actors.errors import UserError
from configs.errors import ConfigError


@contextmanager
def scratch(command: str) -> Iterator[Path]:
    """A folder for logs. It stays only where something failed that is not the user's to put right: the error's message points into it."""
    folder = Path(tempfile.mkdtemp(prefix=f"preceptor-{command}-"))
    try:
        yield folder
    except (UserError, ConfigError, KeyboardInterrupt):
        shutil.rmtree(folder, ignore_errors=True)
        raise
    shutil.rmtree(folder, ignore_errors=True)
