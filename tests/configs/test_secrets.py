"""Which URLs hold a secret, and that nobody says it again."""

from __future__ import annotations

import pytest

from configs.errors import ConfigError, Problem
from configs.secrets import holds_secret, secrets_in, without_secrets


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("s3://KEY:se/c+ret@bucket/run", "s3://***@bucket/run"),
        ("override 'run.dir=s3://KEY:se/cret@bucket/run'", "override 'run.dir=s3://***@bucket/run'"),
        ("https://host/a.jsonl?X-Amz-Signature=ab12&x=1", "https://host/a.jsonl?X-Amz-Signature=***&x=1"),
        ("https://host/a.jsonl?x=1&sig=ab", "https://host/a.jsonl?x=1&sig=***"),
        ("https://hf_abcdef@huggingface.co/x", "https://***@huggingface.co/x"),
        ("http://u:12345@host:8265", "http://***@host:8265"),
        ("abfs://container:secret@account.dfs.core.windows.net/run", "abfs://***@account.dfs.core.windows.net/run"),
        *(
            (f"https://host/a.jsonl{name}=ab", f"https://host/a.jsonl{name}=***")
            for name in ("?auth", "?pwd", "?passwd", "?sas", "#access_token", "?x=1#access_token")
        ),
    ],
)
def test_a_secret_is_found_and_not_shown(text: str, shown: str) -> None:
    assert holds_secret(text)
    assert without_secrets(text) == shown
    assert not holds_secret(shown.replace("***@", ""))


@pytest.mark.parametrize(
    "text",
    [
        "s3://bucket/run",
        "abfs://container@account.dfs.core.windows.net/run",
        "abfss://container@account.dfs.core.windows.net/run",
        "az://container@account/run",
        "s3://b/keys/a:b@c.jsonl",
        "http://host:8265/x@v1",
        "http://[::1]:8265/x@v1",
        "https://host/a.jsonl?author=me",
        "ray://head:10001",
        "https://host:8080/a.jsonl?download=true",
        "a:b@c",
        "module:function",
    ],
)
def test_what_holds_none(text: str) -> None:
    assert not holds_secret(text)
    assert without_secrets(text) == text


def test_they_are_found_at_any_depth() -> None:
    values = {"run": {"dir": "s3://k:s@b"}, "data": {"mix": [{"path": "a"}, {"path": "s3://k:s@b"}]}, "n": 1}
    assert list(secrets_in(values)) == [("run", "dir"), ("data", "mix", "1", "path")]


def test_an_error_that_quotes_one_hides_it() -> None:
    problem = Problem(key="a", got="got 's3://k:secret@b'", allowed="text", origin="override 'a=s3://k:secret@b'")
    assert "secret" not in str(ConfigError("bad", [problem]))
