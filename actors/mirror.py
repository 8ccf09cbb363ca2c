"""Logs of a run in an object store, which can't be appended to: they grow on this machine and are uploaded whole, again and again."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from actors.errors import PreceptorError
from actors.store import naming, put_file, read_bytes

EVERY_S = 15.0
"""At most so much of a log is lost with a machine."""
LAST_S = 60.0
"""Longest wait for an upload that is under way when the last one is due."""


class Mirror:
    """Keeps the files under the folder `here`, as far as they are `wanted`, in `there` as well."""

    def __init__(self, here: Path, there: Path, wanted: Callable[[Path], bool] = lambda _: True) -> None:
        self._here, self._there, self._wanted = here, there, wanted
        self._sizes: dict[Path, tuple[int, int]] = {}
        self._stop = threading.Event()
        self._told = False
        self._thread = threading.Thread(target=self._loop, name="mirror", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        """Uploads everything that has changed since, wanted or not."""
        self._stop.set()
        self._thread.join(timeout=LAST_S)
        self._wanted = lambda _: True
        self._upload()

    def _loop(self) -> None:
        while not self._stop.wait(EVERY_S):
            self._upload()

    def _upload(self) -> None:
        """A store that is away for a while must not end a run for its logs: the first failure is told, and the next round tries again."""
        for file in sorted(self._here.rglob("*")):
            try:
                found = file.stat()
                version = (found.st_size, found.st_mtime_ns)
                if file.is_file() and self._wanted(file) and self._sizes.get(file) != version:
                    put_file(file, self._there / file.relative_to(self._here).as_posix())
                    self._sizes[file] = version
            except FileNotFoundError:
                pass  # removed meanwhile
            except PreceptorError as error:
                if not self._told:
                    sys.stderr.write(f"a log could not be uploaded: {error}\n")
                    self._told = True


def take_up(log: Path, there: Path) -> None:
    """Puts what an earlier process has uploaded of a log in its place on this machine, so that it goes on behind it."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with naming(there, "read"), suppress(FileNotFoundError):
        log.write_bytes(read_bytes(there))
