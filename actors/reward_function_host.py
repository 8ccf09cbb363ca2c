"""The process that runs a user's reward function: `python -P reward_function_host.py ...`, started by `actors/reward_function.py`.

Standard library alone: it starts in the user's environment, and a function that hangs, eats memory or crashes takes nothing with it.

Protocol: frames of a little-endian uint32 length and that much JSON. First the host sends {"required": [...], "optional": [...] or null
(any)}, names of columns, or {"error": reason}; then each request {"prompt", "response", "columns"} is answered by {"score": number} or
{"error": reason}. The function's own input and output are kept away from it: stdin is empty, stdout goes where stderr goes, the log.
"""

from __future__ import annotations

import importlib
import inspect
import json
import os
import struct
import sys
import traceback
from collections.abc import Callable
from typing import Any

HEADER = struct.Struct("<I")


def main() -> None:
    spec, request_fd, reply_fd, lifeline_fd, paths = sys.argv[1], *map(int, sys.argv[2:5]), json.loads(sys.argv[5])
    _die_with_parent(lifeline_fd, request_fd, reply_fd)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(2, 1)
    sys.path[:] = paths
    try:
        function = load(spec)
        columns = columns_of(function)
    except BaseException as error:  # noqa: BLE001 - whatever the user's module raises while it is imported is the answer
        _send(reply_fd, {"error": _reason(error)})
        return
    _send(reply_fd, columns)
    while (request := _receive(request_fd)) is not None:
        _send(reply_fd, answer(function, request))


def _die_with_parent(lifeline_fd: int, *others: int) -> None:
    """Forks a watcher that sleeps until the parent's end of the lifeline is closed, however the parent ended, and then kills the group.

    A process of its own, because a thread here would never run while the function holds the interpreter's lock.
    """
    if os.fork() == 0:
        for fd in others:
            os.close(fd)
        os.read(lifeline_fd, 1)
        os.killpg(0, 9)
    os.close(lifeline_fd)


def load(spec: str) -> Callable[..., Any]:
    """The object `module:function`.

    Raises:
        TypeError: where it is no plain callable; AttributeError and whatever importing the module raises.
    """
    module, _, name = spec.partition(":")
    found: Any = importlib.import_module(module)
    for part in name.split("."):
        found = getattr(found, part)
    if not callable(found) or inspect.iscoroutinefunction(found):
        raise TypeError(
            f"{name} must be a function that returns a number, it is {'async' if callable(found) else repr(found)[:80]}"
        )
    return found


def columns_of(function: Callable[..., Any]) -> dict[str, Any]:
    """Names of the columns that the function needs beside `prompt` and `response`, and of those that it may take (None: any).

    Raises:
        TypeError: where it cannot be called with `prompt` and `response`.
    """
    parameters = inspect.signature(function).parameters.values()
    named = [p for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters)
    names = {p.name for p in named} - {"prompt", "response"}
    if not takes_any and len(named) - len(names) < 2:
        raise TypeError(f"it must take `prompt` and `response`, its signature is {inspect.signature(function)}")
    required = names & {p.name for p in named if p.default is p.empty}
    return {"required": sorted(required), "optional": None if takes_any else sorted(names - required)}


def answer(function: Callable[..., Any], request: dict[str, Any]) -> dict[str, Any]:
    """Calls the function; its exception is an answer too."""
    try:
        result = function(prompt=request["prompt"], response=request["response"], **request["columns"])
    except Exception as error:  # noqa: BLE001 - supervision: the parent counts it as a failed try
        traceback.print_exc()
        return {"error": _reason(error)}
    try:
        if isinstance(result, str | bytes):  # float() would read "0.5", and hide a function that forgot to
            raise TypeError
        return {"score": float(result)}
    except Exception:  # noqa: BLE001 - a returned object's own __float__ runs here
        return {"error": f"returned {repr(result)[:80]}, which is not a number"}


def _reason(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__


def _send(fd: int, message: dict[str, Any]) -> None:
    body = json.dumps(message).encode()
    data = memoryview(HEADER.pack(len(body)) + body)
    while data:
        data = data[os.write(fd, data) :]


def _receive(fd: int) -> dict[str, Any] | None:
    """The next request, or None once the parent has closed its end."""
    header = _read(fd, HEADER.size)
    return json.loads(_read(fd, HEADER.unpack(header)[0])) if header else None


def _read(fd: int, size: int) -> bytes:
    data = b""
    while len(data) < size:
        block = os.read(fd, min(size - len(data), 1 << 20))
        if not block:
            return b""
        data += block
    return data


if __name__ == "__main__":
    main()
