"""docs/troubleshooting.md against the source: every message that it quotes is one that the code has, every metric and phase too."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "troubleshooting.md"
SOURCES = ("configs", "actors", "orchestrator")

HOLE = "…"
MESSAGE = re.compile(r"`(?:preceptor: |> )([^`]+)`")
METRIC = re.compile(r"`((?:policy|critic|sync|held_out|busy_s|peak_memory_bytes)/)([\w<>]+)`")
BARE_METRICS = ("kl", "score", "score_std", "response_tokens", "truncated_frac", "logprob_gap", "pair_accuracy")
PHASES = ("generate", "score", "update", "sync", "digest")


@cache
def texts() -> tuple[str, ...]:
    """Every text in the source; of an f-string with a hole where a value goes."""
    return tuple(text for folder in SOURCES for file in (ROOT / folder).rglob("*.py") for text in texts_of(file))


def texts_of(file: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(file.read_text("utf-8"))):
        if isinstance(node, ast.JoinedStr):
            yield "".join(str(part.value) if isinstance(part, ast.Constant) else HOLE for part in node.values)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value


def unknown_pieces(message: str) -> list[str]:
    """Pieces of a message between its holes, and before and behind a colon (where one text stands within another), that no text has."""
    pieces = [piece.strip() for part in message.split(HOLE) for piece in part.split(": ")]
    return [piece for piece in pieces if re.search(r"\w", piece) and not any(piece in text for text in texts())]


def test_every_quoted_message_is_one_of_the_sources() -> None:
    messages = MESSAGE.findall(PAGE.read_text("utf-8"))
    assert len(messages) > 40
    assert {message: found for message in messages if (found := unknown_pieces(message))} == {}
    vague = [message for message in messages if len(re.findall(r"\w{2,}", message)) < 2 and message != "interrupted"]
    assert vague == [], "says too little to be recognised"


def test_every_metric_and_phase_is_one_of_the_ledgers() -> None:
    page = PAGE.read_text("utf-8")
    whole = set(texts())
    metrics = METRIC.findall(page)
    assert len(metrics) > 8
    missing = [
        f"{prefix}{name}"
        for prefix, name in metrics
        if not ({name, f"{prefix}{name}", f"{prefix}{HOLE}"} & whole if "<" not in name else f"{prefix}{HOLE}" in whole)
    ]
    assert missing == []
    for name in (*BARE_METRICS, *PHASES):
        assert f"`{name}`" in page
        assert name in whole, name


def test_a_message_that_nobody_prints_is_found() -> None:
    assert unknown_pieces("run.dir: … is full; allowed: a new or empty folder") == ["is full; allowed"]
    assert unknown_pieces("run.dir: … is not empty; allowed: a new or empty folder") == []
