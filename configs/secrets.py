"""Secrets within URLs, and names of variables that hold one: found, refused, and never said again. A config is kept with its run, so it
must hold none."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

_SCHEME = r"(?P<scheme>[A-Za-z][A-Za-z0-9+.-]*://)"
_PASSWORD = re.compile(_SCHEME + r"[^\s/?#@'\"\[]*:(?!\d{1,5}(?:[/?#'\"\s]|$))[^\s'\"]*@")
"""`s3://KEY:SECRET@bucket`. A secret may have slashes in it, where the text before the first one still is no host and port."""
_USER = re.compile(_SCHEME + r"(?i:(?<!\babfs://)(?<!\babfss://)(?<!\baz://))[^\s/?#'\"]*@")
"""`https://TOKEN@host`. With Azure's schemes a name before the `@` is a container: `abfs://CONTAINER@ACCOUNT...`."""
_QUERY = re.compile(
    r"(?i)(?P<name>[?&#](?:[^=&\s]*(?:sig|token|secret|passw|passphrase|pwd|credential|key|auth(?!or))[^=&\s]*|sas)=)[^&\s'\"]+"
)
"""`https://host/file?X-Amz-Signature=...`, `https://host/file#access_token=...`"""

SECRET_WORDS = {
    "KEY",
    "KEYS",
    "TOKEN",
    "SECRET",
    "SECRETS",
    "PASSWORD",
    "PASSWD",
    "CREDENTIAL",
    "CREDENTIALS",
    "APIKEY",
}
SECRET_ENDS = ("PASSWORD", "PASSWD", "SECRET", "TOKEN", "APIKEY", "CREDENTIALS")
SECRET_NAMES = {"PRECEPTOR_REGISTRY"}
"""Variables that hold a secret beside other things: an address with a password in it."""

ALLOWED = "a URL without user, password or signature; credentials come from the environment, such as AWS_ACCESS_KEY_ID"


def holds_secret(text: str) -> bool:
    """Whether the text has a URL with a password, key or signature in it."""
    return "://" in text and without_secrets(text) != text


def without_secrets(text: str) -> str:
    """The text, with `***` where its URLs hold something that nobody may read."""
    if "://" not in text:
        return text
    for user in (_PASSWORD, _USER):
        text = user.sub(r"\g<scheme>***@", text)
    return _QUERY.sub(r"\g<name>***", text)


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


def is_secret(variable: str) -> bool:
    """Whether a variable of this name looks like a secret: `HF_TOKEN` does, `MAX_TOKENS` does not."""
    words = variable.upper().split("_")
    return (
        variable.upper() in SECRET_NAMES
        or bool(SECRET_WORDS & set(words))
        or any(word.endswith(SECRET_ENDS) for word in words)
    )
