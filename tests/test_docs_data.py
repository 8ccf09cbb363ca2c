"""Every example of docs/data.md is read by the real readers, through the command that users have for that."""

from __future__ import annotations

import gzip
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml

from configs.schema import Stage
from configs.schema.data import DataConfig
from orchestrator import cli
from orchestrator.commands.base import BAD_INPUT, FINE
from tests.tiny_models import make_tiny_tokenizer

PAGE = Path(__file__).resolve().parent.parent / "docs" / "data.md"
BLOCK = re.compile(r"^## ([^\n]+)$|^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)

MODEL = {"model": "tokenizer"}
REST: dict[str, dict[str, Any]] = {
    **{name: {"model": MODEL} for name in ("pretrain", "sft", "reward", "dpo")},
    "rank": {
        "policy": MODEL,
        "rollout": {"responses_per_prompt": 2},
        "annotator": {"function": "rewards:any"},
    },
    "ppo": {
        "policy": MODEL,
        "critic": {"init_from": "policy"},
        "reward": {"functions": [{"function": "rewards:any"}]},
        "ppo": {"steps": 1},
    },
}
"""What a config of each stage needs beside its data."""

SAME_DATA = {"reward": ("dpo",), "dpo": ("reward",), "ppo": ("rank",), "rank": ("ppo",)}
"""Stages whose data has the same schema: an example of one is one of the other."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Example:
    """Rows, the config that reads them, and what comes of it."""

    section: str
    files: tuple[str, ...]
    """JSONL text of each source, in the config's order."""
    config: str
    expected: str
    """Lines that `preceptor data inspect` shows together; of a refusal, its whole message."""
    refused: bool


def examples(page: str) -> list[Example]:
    """A block of `text` or `error` closes an example. Rows without a config of their own are read by the one before them."""
    found: list[Example] = []
    files: list[str] = []
    section = config = ""
    for heading, kind, body in BLOCK.findall(page):
        if heading:
            section = heading
            assert not files, f"{section}: rows that no block says anything of"
        elif kind == "jsonl":
            files.append(body)
        elif kind == "yaml":
            config = body
        elif kind in ("text", "error"):
            refused = kind == "error"
            found.append(
                Example(section=section, files=tuple(files), config=config, expected=body.strip(), refused=refused)
            )
            files = []
    assert not files
    return found


def write_source(path: Path, text: str) -> None:
    """The rows as the kind of file that the path names; a name without a suffix is a folder that the `datasets` library reads."""
    if path.suffix == ".gz":
        path.write_bytes(gzip.compress(text.encode()))
    elif path.suffix == ".parquet":
        import pyarrow as pa
        import pyarrow.parquet as pq

        pq.write_table(pa.Table.from_pylist([json.loads(line) for line in text.splitlines()]), path)
    elif path.suffix:
        path.write_text(text, "utf-8")
    else:
        path.mkdir()
        (path / "train.jsonl").write_text(text, "utf-8")


def paths_of(data: dict[str, Any]) -> list[str]:
    return [data["path"], *(source["path"] for source in data.get("mix", ()))]


EXAMPLES = examples(PAGE.read_text("utf-8"))


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda example: example.section)
def test_every_example_is_read_as_the_page_says(
    example: Example, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    make_tiny_tokenizer("tokenizer")
    snippet = yaml.safe_load(example.config)
    for name, text in zip(paths_of(snippet["data"]), example.files, strict=True):
        write_source(Path(name), text)
    rest = {"run": {"dir": "run"}, **REST[snippet["stage"]]}
    Path("rest.yaml").write_text(yaml.safe_dump(rest))
    Path("recipe.yaml").write_text(f"base: rest.yaml\n{example.config}")
    code = cli.main(["data", "inspect", "recipe.yaml"])
    shown = capsys.readouterr()
    if example.refused:
        assert code == BAD_INPUT
        assert shown.err == f"preceptor: {example.expected}\n"
    else:
        assert code == FINE, shown.err
        lines = [line.rstrip() for line in shown.out.splitlines()]
        assert f"\n{example.expected}\n" in "\n".join(["", *lines, ""])


def test_every_format_of_every_stage_has_an_example() -> None:
    shown: set[tuple[str, str]] = set()
    for example in EXAMPLES:
        snippet = yaml.safe_load(example.config)
        stage = snippet["stage"]
        name = snippet["data"].get("format", data_of(stage).model_fields["format"].default)
        shown |= {(one, name) for one in (stage, *SAME_DATA.get(stage, ()))}
    assert shown == {(stage, name) for stage in REST for name in formats_of(stage)}


def data_of(stage: str) -> type[DataConfig]:
    (model,) = [one for one in get_args(Stage) if get_args(one.model_fields["stage"].annotation) == (stage,)]
    found: type[DataConfig] = model.model_fields["data"].annotation
    return found


def formats_of(stage: str) -> tuple[str, ...]:
    return get_args(data_of(stage).model_fields["format"].annotation)


def test_stages_that_are_said_to_share_their_data_do() -> None:
    for stage, others in SAME_DATA.items():
        assert all(data_of(stage) is data_of(other) for other in others)
