"""An S3 server in this process, by moto, for tests: its conditional writes are those of S3."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import fsspec
import pytest
from moto.server import ThreadedMotoServer
from werkzeug.serving import WSGIRequestHandler

from actors.store import run_path

BUCKET = "preceptor-test"


class _Quiet(WSGIRequestHandler):
    def log(self, *_: object) -> None:
        """Nothing: a line for each request would bury a test's own output."""


@contextmanager
def s3_server() -> Iterator[str]:
    """Its address. The environment, which drivers started meanwhile inherit, leads to it and to nowhere else."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    _, port = server.get_host_and_port()
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith("AWS_")]:
            patch.delenv(name)
        url = f"http://127.0.0.1:{port}"
        patch.setenv("AWS_ENDPOINT_URL", url)
        patch.setenv("AWS_ACCESS_KEY_ID", "test")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "not-a-secret")
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        patch.setenv("AWS_EC2_METADATA_DISABLED", "true")
        patch.setenv("AWS_CONFIG_FILE", "/dev/null")
        patch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/dev/null")
        fsspec.filesystem("s3", skip_instance_cache=True).mkdir(BUCKET)
        fsspec.filesystem("s3").clear_instance_cache()
        yield url
    server.stop()
    fsspec.filesystem("memory").clear_instance_cache()


def bucket(name: str) -> Path:
    """A place in the server's bucket."""
    return run_path(f"s3://{BUCKET}/{name}")
