"""An S3 server in this process, by moto, for tests: its conditional writes are those of S3."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import fsspec
import pytest
from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
from moto.s3.models import s3_backends
from werkzeug.serving import WSGIRequestHandler, make_server

from actors.store import run_path

BUCKET = "preceptor-test"
ERRORS = {
    403: ("AccessDenied", "Access Denied"),
    409: ("ConditionalRequestConflict", "A conflicting conditional operation is currently in progress."),
    500: ("InternalError", "We encountered an internal error."),
    503: ("SlowDown", "Please reduce your request rate."),
}
"""As S3 words them."""


class Server:
    """The server, which fails on request."""

    def __init__(self) -> None:
        self._app = DomainDispatcherApplication(create_backend_app)
        self._fail: list[int] = []
        self.lose_answers = 0
        """That many writes happen, and are then answered by 503."""
        self.closed = ""
        """Objects with this in their names are nobody's to read."""
        self.requests: list[str] = []
        """Method and path of each."""

    def fail(self, status: int, times: int) -> None:
        """The next requests get this status."""
        self._fail = [status] * times

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        self.requests.append(f"{environ['REQUEST_METHOD']} {environ['PATH_INFO']}")
        if self._fail:
            return self._failed(start_response, self._fail.pop())
        if self.closed and self.closed in environ["PATH_INFO"]:
            return self._failed(start_response, 403)
        if self.lose_answers and environ["REQUEST_METHOD"] == "PUT":
            self.lose_answers -= 1
            b"".join(self._app(environ, lambda *_: None))
            return self._failed(start_response, 503)
        answer: Iterable[bytes] = self._app(environ, start_response)
        return answer

    def _failed(self, start_response: Any, status: int) -> list[bytes]:
        start_response(f"{status} Failed", [("Content-Type", "application/xml")])
        code, message = ERRORS[status]
        return [f"<Error><Code>{code}</Code><Message>{message}</Message></Error>".encode()]


class _Quiet(WSGIRequestHandler):
    def log(self, *_: object) -> None:
        """Nothing: a line for each request would bury a test's own output."""


@contextmanager
def s3_server() -> Iterator[Server]:
    """With a bucket. The environment, which drivers started meanwhile inherit, leads to it and to nowhere else."""
    app = Server()
    s3_backends.reset()  # moto keeps what an earlier server of this process had
    server = make_server("127.0.0.1", 0, app, threaded=True, request_handler=_Quiet)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith("AWS_")]:
            patch.delenv(name)
        patch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.port}")
        patch.setenv("AWS_ACCESS_KEY_ID", "test")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "not-a-secret")
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        patch.setenv("AWS_EC2_METADATA_DISABLED", "true")
        patch.setenv("AWS_CONFIG_FILE", os.devnull)
        patch.setenv("AWS_SHARED_CREDENTIALS_FILE", os.devnull)
        forget_clients()
        fsspec.filesystem("s3").mkdir(BUCKET)
        try:
            yield app
        finally:
            forget_clients()
            server.shutdown()
            thread.join(timeout=30)
            server.server_close()


def forget_clients() -> None:
    """fsspec keeps clients, and with them what the environment said when they were made."""
    fsspec.get_filesystem_class("s3").clear_instance_cache()


def bucket(name: str) -> Path:
    """A place in the server's bucket."""
    return run_path(f"s3://{BUCKET}/{name}")
