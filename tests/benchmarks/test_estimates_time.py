"""The page's tables are what the estimates give today, misses included."""

import pytest

from benchmarks.estimates_time import BEGIN, DECODED, END, MODELS, PAGE, TRAINED, tables


def test_the_page_has_the_tables_of_today() -> None:
    """`python -m benchmarks.estimates_time` renews them."""
    shown = PAGE.read_text("utf-8").partition(BEGIN)[2].partition(END)[0]
    assert shown.strip() == tables().strip()


@pytest.mark.parametrize(
    ("model", "parameters"),
    [
        ("MPT 7B", 6.659e9),
        ("MPT 13B", 12.854e9),
        ("MPT 30B", 29.975e9),
        ("MPT 70B", 64.862e9),
        ("Llama 2 7B", 6.738e9),
        ("Llama 2 70B", 68.977e9),
        ("Llama 3 8B", 8.030e9),
        ("Llama 3 70B", 70.554e9),
    ],
)
def test_the_models_have_their_published_sizes(model: str, parameters: float) -> None:
    assert MODELS[model].total_parameters == pytest.approx(parameters, rel=2e-3)


def test_one_sequence_takes_what_its_share_of_the_bandwidth_was_taken_from() -> None:
    """`Efficiencies.decode` comes from these: what is counted as read, and what a step costs beside, must be the same in both."""
    single = [each for each in DECODED if each.response == 0 and each.batch == 1]
    assert [each.estimated() / each.published for each in single] == pytest.approx([1, 1], abs=0.02)


def test_most_published_figures_are_met_within_a_factor_of_two() -> None:
    ratios = [each.estimated() / each.published for each in (*TRAINED, *DECODED)]
    assert len(ratios) == 30
    assert sum(0.5 <= ratio <= 2 for ratio in ratios) >= 28
