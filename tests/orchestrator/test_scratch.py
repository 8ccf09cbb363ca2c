"""Logs of commands without a run directory."""

import shutil
from pathlib import Path

import pytest

from actors.errors import RoleFailed, UserError
from orchestrator.scratch import scratch


@pytest.mark.parametrize(
    ("error", "kept"),
    [(None, False), (UserError("x"), False), (KeyboardInterrupt(), False), (RoleFailed("r", 0, None, "x"), True)],
)
def test_logs_stay_only_where_something_failed(error: BaseException | None, kept: bool) -> None:
    folder = Path()
    try:
        with scratch("compare") as folder:
            (folder / "log").touch()
            if error is not None:
                raise error
    except (UserError, KeyboardInterrupt, RoleFailed):
        pass
    assert folder.exists() == kept
    shutil.rmtree(folder, ignore_errors=True)
