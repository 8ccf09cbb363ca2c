"""The table of published figures: its numbers are pinned, misses included, and the docs show it as it is made."""

from pathlib import Path

import pytest

from benchmarks.estimates import figures, table

ROOT = Path(__file__).resolve().parents[2]

PREDICTED = {
    "7.5B on 64 GPUs, ZeRO 0: states a GPU": 120.0,
    "7.5B on 64 GPUs, ZeRO 1: states a GPU": 61.41,
    "7.5B on 64 GPUs, ZeRO 2: states a GPU": 16.88,
    "7.5B on 64 GPUs, ZeRO 3: states a GPU": 2.109,
    "OPT-13B: key-value cache a token, bf16": 800.0,
    "DeepSeek-V3: key-value cache a token, bf16": 70.27,
    "Qwen2.5-72B: key-value cache a token, bf16": 327.7,
    "Llama-3.1-405B: key-value cache a token, bf16": 516.1,
    "OPT-13B: weights in an engine": 25.71,
    "Llama-3.1-8B: weights in an engine": 14.96,
    "Llama-3.1-8B: cache that 0.9 of the GPU leaves": 3.514,
    "Llama-3.1-8B: sequences of 20,000 tokens in that cache": 1.44,
    "GPT 22B: what one layer saves of a sequence of 2,048, eager": 2.038,
    "GPT 22B: what one layer saves of a sequence of 2,048, flash_attention_2": 0.4278,
    "DeepSeek-V3: parameters": 671.0,
    "DeepSeek-V3: of them met by a token": 36.63,
    "Mixtral 8x7B: parameters": 46.7,
    "Mixtral 8x7B: of them met by a token": 12.75,
    "Qwen3-30B-A3B: of them met by a token": 3.042,
    "Llama-3.1-8B on 8 H100, a sequence of 32,768, full checkpointing: peak a GPU": 81.68,
}


def test_predictions_are_these() -> None:
    assert {figure.what: float(f"{figure.predicted:.4g}") for figure in figures()} == PREDICTED


def test_published_figures_are_those_of_their_sources() -> None:
    published = {figure.what: figure.published for figure in figures()}
    # ZeRO (arXiv 1910.02054), figure 1: with 2 + 2 + 12 bytes a parameter over 64 GPUs
    for stage, whole, shared in ((0, 16, 0), (1, 4, 12), (2, 2, 14), (3, 0, 16)):
        by_formula = 7.5 * (whole + shared / 64)
        assert published[f"7.5B on 64 GPUs, ZeRO {stage}: states a GPU"] == pytest.approx(by_formula, rel=0.01)
    # PagedAttention (arXiv 2309.06180), section 3: 2 x 5120 x 40 x 2 bytes
    assert published["OPT-13B: key-value cache a token, bf16"] * 1024 == 2 * 5120 * 40 * 2


def test_docs_show_the_table_as_it_is_made() -> None:
    rows = [line for line in table().markdown().splitlines() if line.startswith("| ")]
    text = (ROOT / "docs" / "estimates.md").read_text("utf-8")
    missing = [row for row in rows if row not in text]
    assert not missing, "make it again: python -m benchmarks.estimates"
