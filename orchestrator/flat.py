"""Nested sections as keys and values."""

from __future__ import annotations

from typing import Any


def flat(value: Any, key: str = "") -> dict[str, Any]:
    """The values in nested sections and lists by their keys' paths: `ppo.kl.controller.coef`, `reward.functions.0.weight`."""
    if isinstance(value, dict) and value:
        inner = list(value.items())
    elif isinstance(value, list | tuple) and any(isinstance(one, dict) for one in value):
        inner = [(str(at), one) for at, one in enumerate(value)]
    else:
        return {key: value}
    return {
        path: leaf for name, one in inner for path, leaf in flat(one, f"{key}.{name}" if key else str(name)).items()
    }
