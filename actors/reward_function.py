"""A user's reward function behind a process boundary: started once, asked many times, killed when it takes too long."""

from __future__ import annotations

import json
import math
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from actors import reward_function_host
from actors.errors import UserError

START_TIMEOUT_S = 120.0
"""Longest time for importing the user's module. Generous: it may load a model."""


LARGEST_SCORE = 3.4e38
"""Scores travel as float32."""


class CallFailed(Exception):
    """One try of a call failed; the reason is one line."""


class _Deadline:
    def __init__(self, limit_s: float) -> None:
        self.limit_s = limit_s
        self._end = time.monotonic() + limit_s

    def wait(self, fd: int, event: int) -> None:
        """Until `fd` is ready for `event` or its other end is closed; CallFailed after the limit."""
        poll = select.poll()
        poll.register(fd, event)
        if not poll.poll(max(0.0, self._end - time.monotonic()) * 1000):
            raise CallFailed(f"timed out after {self.limit_s:g} s")


def search_path() -> tuple[str, ...]:
    """Where the function's module is looked for: the working directory, then this process's own path."""
    return tuple(dict.fromkeys([os.getcwd(), *(os.path.abspath(entry or ".") for entry in sys.path)]))


def check_function(spec: str, *, paths: Sequence[str] | None = None, timeout_s: float = START_TIMEOUT_S) -> None:
    """Imports `module:function` in a process of its own, so that a bad one is known before anything starts.

    Raises:
        UserError: naming the function, the reason and the path that was searched.
    """
    function = RewardFunction(spec, timeout_s=timeout_s, paths=paths, start_timeout_s=timeout_s)
    try:
        function.start()
    finally:
        function.stop()


class RewardFunction:
    """A host process and the pipes to it. Not thread-safe: one call at a time."""

    def __init__(
        self,
        spec: str,
        *,
        timeout_s: float,
        paths: Sequence[str] | None = None,
        start_timeout_s: float = START_TIMEOUT_S,
    ) -> None:
        """`timeout_s` is for one call, `start_timeout_s` for importing the module, `paths` where to look for it (see `search_path`)."""
        self.spec = spec
        self._timeout_s = timeout_s
        self._start_timeout_s = start_timeout_s
        self._paths = tuple(paths) if paths is not None else search_path()
        self._process: subprocess.Popen[bytes] | None = None
        self._fds: dict[str, int] = {}
        self.required: frozenset[str] = frozenset()
        """Columns without which the function cannot be called; known once it is started."""
        self._optional: frozenset[str] | None = None

    @property
    def process_id(self) -> int | None:
        """Of the host, which leads its process group; None while there is none."""
        return self._process.pid if self._process else None

    def start(self) -> None:
        """Starts the host and imports the function.

        Raises:
            UserError: where it cannot be imported, or not within the start timeout.
        """
        assert self._process is None, "started twice"
        try:
            self._launch()
            ready = self._receive(_Deadline(self._start_timeout_s))
        except CallFailed as error:
            self.stop()
            raise self._unusable(str(error)) from error
        if "error" in ready:
            self.stop()
            raise self._unusable(ready["error"])
        self.required = frozenset(ready["required"])
        self._optional = None if ready["optional"] is None else frozenset(ready["optional"])

    def call(self, prompt: str, response: str, columns: Mapping[str, Any]) -> float:
        """The function's score. Of the columns it gets those that it takes; dates and the like arrive as text, as in JSON.

        Raises:
            CallFailed: where it raised, took longer than its timeout, ended its process, or returned something that is no finite number.
                After a timeout the whole process group is killed; the next call starts a new one.
            UserError: where a new process cannot import the function any more.
        """
        if self._process is None:
            self.start()
        taken = {
            name: value for name, value in columns.items() if name not in ("prompt", "response") and self._takes(name)
        }
        deadline = _Deadline(self._timeout_s)
        try:
            self._send({"prompt": prompt, "response": response, "columns": taken}, deadline)
            reply = self._receive(deadline)
        except CallFailed:
            self.stop()
            raise
        if "error" in reply:
            raise CallFailed(reply["error"])
        score = float(reply["score"])
        if not math.isfinite(score) or abs(score) > LARGEST_SCORE:
            raise CallFailed(f"returned {score}")
        return score

    def stop(self) -> None:
        """Kills the host and everything that it started, and waits for it."""
        if self._process is not None:
            self._kill(self._process)
            self._process = None
        for fd in self._fds.values():
            os.close(fd)
        self._fds = {}

    @staticmethod
    def _kill(process: subprocess.Popen[bytes]) -> int:
        """Kills the process group and waits for its leader; how the leader ended, which may have been before.

        The leader is waited for only after the group is killed: until then nobody else can have its id.
        """
        if process.returncode is None:
            os.killpg(process.pid, signal.SIGKILL)
        return process.wait()

    def _takes(self, name: str) -> bool:
        return self._optional is None or name in self._optional or name in self.required

    def _launch(self) -> None:
        request_read, request_write = os.pipe()
        reply_read, reply_write = os.pipe()
        lifeline_read, lifeline_write = os.pipe()
        theirs = (request_read, reply_write, lifeline_read)
        self._fds = {"request": request_write, "reply": reply_read, "lifeline": lifeline_write}
        # -P: the folder of the host's file holds our modules, which must not hide the user's
        command = [sys.executable, "-P", str(Path(reward_function_host.__file__).resolve()), self.spec]
        try:
            self._process = subprocess.Popen(
                [*command, *map(str, theirs), json.dumps(self._paths)],
                stdin=subprocess.DEVNULL,
                pass_fds=theirs,
                start_new_session=True,
            )
        finally:
            for fd in theirs:
                os.close(fd)
        os.set_blocking(request_write, False)

    def _send(self, message: Mapping[str, Any], deadline: _Deadline) -> None:
        body = json.dumps(message, default=str).encode()
        data = memoryview(reward_function_host.HEADER.pack(len(body)) + body)
        while data:
            deadline.wait(self._fds["request"], select.POLLOUT)
            try:
                data = data[os.write(self._fds["request"], data) :]
            except BrokenPipeError as error:
                raise CallFailed(self._ending()) from error

    def _receive(self, deadline: _Deadline) -> dict[str, Any]:
        (size,) = reward_function_host.HEADER.unpack(self._read(reward_function_host.HEADER.size, deadline))
        return json.loads(self._read(size, deadline))

    def _read(self, size: int, deadline: _Deadline) -> bytes:
        data = b""
        while len(data) < size:
            deadline.wait(self._fds["reply"], select.POLLIN)
            block = os.read(self._fds["reply"], size - len(data))
            if not block:
                raise CallFailed(self._ending())
            data += block
        return data

    def _ending(self) -> str:
        """How the host ended, once its pipe is closed."""
        assert self._process is not None
        code = self._kill(self._process)
        return (
            f"its process was killed by {signal.Signals(-code).name}" if code < 0 else f"its process exited with {code}"
        )

    def _unusable(self, reason: str) -> UserError:
        return UserError(f"reward function {self.spec!r} cannot be used: {reason}. Searched: {', '.join(self._paths)}")
