"""Ranks from numbers, and rankings put together."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from actors.annotator import Annotator, ranks_of_scores
from actors.errors import PreceptorError
from actors.tasks import WrittenFile
from configs.schema.data import PromptDataConfig
from configs.schema.rank import AnnotatorConfig
from tests.rank_contexts import rank_context


@pytest.mark.parametrize(
    ("scores", "tie_margin", "ranks"),
    [
        ([1.0, 3.0, 2.0], 0.0, [3, 1, 2]),
        ([1.0, 1.0, 2.0], 0.0, [2, 2, 1]),
        ([3.0, 2.9, 1.0], 0.5, [1, 1, 2]),
        # each is near its neighbour; the third is no tie of the first
        ([3.0, 2.6, 2.2], 0.5, [1, 1, 2]),
        ([0.5], 0.0, [1]),
    ],
)
def test_ranks_by_hand(scores: list[float], tie_margin: float, ranks: list[int]) -> None:
    assert ranks_of_scores(scores, tie_margin=tie_margin) == ranks


def test_waves_are_put_together_in_order_and_damage_is_named(tmp_path: Path) -> None:
    worker = Annotator(
        rank_context(tmp_path, role="annotator"),
        AnnotatorConfig(function="m:f"),
        PromptDataConfig(path="p.jsonl"),
        "model",
    )
    files = []
    for name, data in (("rankings/2.jsonl", b"b\n"), ("rankings/1.jsonl", b"a\n")):
        (tmp_path / "rankings").mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(data)
        files.append(WrittenFile(name=name, sha256=hashlib.sha256(data).hexdigest(), num_bytes=2))
    worker.combine(files, str(tmp_path / "export" / "rankings.jsonl"))
    assert (tmp_path / "export" / "rankings.jsonl").read_bytes() == b"b\na\n"
    (tmp_path / "rankings/1.jsonl").write_bytes(b"A\n")
    with pytest.raises(PreceptorError, match=r"rankings/1\.jsonl is missing or damaged"):
        worker.combine(files, str(tmp_path / "again.jsonl"))
    assert not (tmp_path / "again.jsonl").exists()
