"""Ports for the ranks of a role to meet on."""

from __future__ import annotations

import socket

import pytest

from actors.errors import PreceptorError
from actors.role import EPHEMERAL_PORTS, LEAST_PORT, unused_port


def test_a_port_is_none_that_outgoing_connections_get() -> None:
    first_ephemeral = int(EPHEMERAL_PORTS.read_text().split()[0])
    ports = {unused_port() for _ in range(50)}
    assert all(LEAST_PORT <= port < first_ephemeral for port in ports)
    assert len(ports) > 40, "two roles that ask at the same time get different ones"


def test_a_port_that_is_listened_on_is_not_given(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as taken:
        taken.bind(("", 0))
        taken.listen()
        port = taken.getsockname()[1]

        class Fixed:
            def sample(self, _ports: range, *, k: int) -> list[int]:
                return [port] * k

        monkeypatch.setattr("random.SystemRandom", Fixed)
        with pytest.raises(PreceptorError, match=r"no port of 20000 to .* is free on"):
            unused_port()
