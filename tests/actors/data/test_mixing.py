"""Mixtures: which rows of which source, in what order."""

import re
from collections import Counter
from collections.abc import Callable
from itertools import accumulate
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors.data.files import read_rows
from actors.data.mixing import draw
from actors.data.prompts import PromptDataset
from actors.data.rows import Rows
from actors.data.tokenizer import Tokenizer
from actors.errors import UserError
from configs.schema.data import DataConfig, PromptDataConfig

WriteFile = Callable[[str, list[dict[str, Any]]], str]


def mixed(first: str, *others: dict[str, Any], **config: Any) -> Rows:
    return read_rows(DataConfig.model_validate({"path": first, "mix": others, **config}))


def numbered(name: str, num: int) -> list[dict[str, Any]]:
    return [{"prompt": f"{name} {i}", "n": i} for i in range(num)]


def test_the_documented_example() -> None:
    assert draw([4, 9], [2, 1]) == [(0, 0), (1, 0), (0, 1), (0, 2), (1, 1), (0, 3)]


def test_equal_weights_alternate_until_the_smaller_source_ends() -> None:
    assert draw([5, 2], [1, 1]) == [(0, 0), (1, 0), (0, 1), (1, 1)]


def test_a_rare_source_stands_in_the_middle() -> None:
    assert draw([1, 3], [1, 3]) == [(1, 0), (0, 0), (1, 1), (1, 2)]


def test_weights_are_the_decimals_that_were_written() -> None:
    # as binary fractions 0.7 and 0.3 are not as 7 to 3, and one row would be lost to rounding
    assert Counter(source for source, _ in draw([70, 30], [0.7, 0.3])) == {0: 70, 1: 30}
    assert Counter(source for source, _ in draw([10, 10, 10], [0.1, 0.2, 0.3])) == {0: 3, 1: 6, 2: 10}


@given(
    sources=st.lists(
        st.tuples(st.integers(1, 40), st.sampled_from([0.1, 0.3, 0.5, 1.0, 2.0, 3.5])), min_size=1, max_size=4
    )
)
def test_proportions_hold_to_one_row_and_over_every_stretch(sources: list[tuple[int, float]]) -> None:
    sizes, weights = [size for size, _ in sources], [weight for _, weight in sources]
    picks = draw(sizes, weights)
    passes = min(size / weight for size, weight in sources)
    for number, (size, weight) in enumerate(sources):
        rows = [row for source, row in picks if source == number]
        assert rows == list(range(len(rows)))  # in order, from the first, each once
        assert len(rows) <= size
        assert abs(len(rows) - passes * weight) < 1 + 1e-9
        share = len(rows) / len(picks)
        for length, so_far in enumerate(accumulate(source == number for source, _ in picks), 1):
            assert abs(so_far - share * length) <= len(sources)
    smallest = min(range(len(sources)), key=lambda i: sizes[i] / weights[i])
    assert sum(source == smallest for source, _ in picks) == sizes[smallest]


def test_rows_of_a_mixture_know_their_file_and_line(write_file: WriteFile) -> None:
    a, b = write_file("a.jsonl", numbered("a", 4)), write_file("b.jsonl", numbered("b", 9))
    rows = mixed(a, {"path": b, "skip_rows": 3, "max_rows": 2}, weight=2)
    assert [row["prompt"] for row in rows] == ["a 0", "b 3", "a 1", "a 2", "b 4", "a 3"]
    assert [rows.where(i) for i in range(3)] == [f"{a}:1", f"{b}:4", f"{a}:2"]
    with pytest.raises(UserError, match=re.escape(f"{b}:5: column 'prompt' must be a list, got text 'b 4'")):
        rows.value(4, "prompt", list)


def test_ids_of_prompts_differ_between_sources_and_stay_those_of_the_file(
    write_file: WriteFile, tokenizer: Tokenizer
) -> None:
    a, b = write_file("a.jsonl", numbered("cat", 2)), write_file("b.jsonl", numbered("dog", 2))
    config = {"path": a, "mix": [{"path": b}]}
    dataset = PromptDataset.load(PromptDataConfig.model_validate(config), tokenizer)
    assert [dataset.row(i).id for i in range(4)] == ["0", "1:0", "1", "1:1"]
    assert dataset.row(1).where == f"{b}:1"


def test_sources_may_name_their_columns_differently(write_file: WriteFile) -> None:
    a = write_file("a.jsonl", [{"question": "why"}])
    b = write_file("b.jsonl", [{"text": "who"}])
    rows = mixed(a, {"path": b, "columns": {"prompt": "text"}}, columns={"prompt": "question"})
    assert list(rows) == [{"prompt": "why"}, {"prompt": "who"}]


def test_errors_name_the_sources_key(write_file: WriteFile, tmp_path: Path) -> None:
    a = write_file("a.jsonl", numbered("a", 2))
    with pytest.raises(UserError, match=r"data\.mix\.1\.path: there is no file '.*none\.jsonl'"):
        mixed(a, {"path": a}, {"path": str(tmp_path / "none.jsonl")})
    with pytest.raises(UserError, match=r"data\.mix\.0\.skip_rows: 2 leaves no row of "):
        mixed(a, {"path": a, "skip_rows": 2})
    with pytest.raises(UserError, match=r"\(data\.mix\.0\.columns\.prompt\); the columns are 'prompt', 'n'"):
        mixed(a, {"path": a, "columns": {"prompt": "question"}})[1]


def test_a_weight_that_gives_no_row_is_told(write_file: WriteFile) -> None:
    a, b = write_file("a.jsonl", numbered("a", 5)), write_file("b.jsonl", numbered("b", 500))
    with pytest.raises(UserError) as told:
        mixed(a, {"path": b, "weight": 0.1})
    assert str(told.value) == f"data.mix.0.weight: 0.1 gives no row of {b!r} beside the other sources"


def test_the_fingerprint_knows_sources_their_order_and_weights_but_not_paths(write_file: WriteFile) -> None:
    a, b = write_file("a.jsonl", numbered("a", 6)), write_file("b.jsonl", numbered("b", 6))
    copy = write_file("copy.jsonl", numbered("b", 6))
    first = mixed(a, {"path": b}).fingerprint
    assert mixed(a, {"path": copy}).fingerprint == first
    others = [
        mixed(a),
        mixed(b, {"path": a}),
        mixed(a, {"path": b, "weight": 2}),
        mixed(a, {"path": b}, weight=2),
        mixed(a, {"path": b, "max_rows": 3}),
    ]
    assert len({first, *(rows.fingerprint for rows in others)}) == 6
