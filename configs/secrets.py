"""Secrets within URLs: found, refused, and never said again. A config is kept with its run, so it must hold none."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

_USER = re.compile(r"(?P<scheme>[A-Za-z][A-Za-z0-9+.-]*://)[^\s@'\"]*:[^\s@'\"]*@")
"""`s3://KEY:SECRET@bucket`. A name alone before the `@` is none: Azure writes `abfs://CONTAINER@ACCOUNT...`."""
_QUERY = re.compile(r"(?i)(?P<name>[?&][^=&\s]*(?:sig|token|secret|password|credential|key)[^=&\s]*=)[^&\s'\"]+")
"""`https://host/file?X-Amz-Signature=...`"""

ALLOWED = "a URL without user, password or signature; credentials come from the environment, such as AWS_ACCESS_KEY_ID"


def holds_secret(text: str) -> bool:
    """Whether the text has a URL with a password, key or signature in it."""
    return "://" in text and without_secrets(text) != text


def without_secrets(text: str) -> str:
    """The text, with `***` where its URLs hold something that nobody may read."""
    return _QUERY.sub(r"\g<name>***", _USER.sub(r"\g<scheme>***@", text)) if "://" in text else text


def secrets_in(value: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Paths of the texts in a config's values that hold one."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from secrets_in(inner, (*path, str(key)))
    elif isinstance(value, list | tuple):
        for index, inner in enumerate(value):
            yield from secrets_in(inner, (*path, str(index)))
    elif isinstance(value, str) and holds_secret(value):
        yield path
