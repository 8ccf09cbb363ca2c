"""The README in both languages: what is not prose must be the same, so that they can't drift apart."""

from __future__ import annotations

import re
from collections import Counter

from tests.test_docs import FENCE, LINK, SPAN, text_of

ENGLISH, CHINESE = text_of("README.md"), text_of("README.zh.md")


def test_each_leads_to_the_other_at_the_top() -> None:
    assert "](README.zh.md)" in ENGLISH.splitlines()[0]
    assert "](README.md)" in CHINESE.splitlines()[0]


def test_blocks_headings_and_tables_are_the_same() -> None:
    assert FENCE.findall(ENGLISH) == FENCE.findall(CHINESE)
    assert shape(ENGLISH) == shape(CHINESE)


def test_links_and_code_in_sentences_are_the_same() -> None:
    assert pointers(ENGLISH) == pointers(CHINESE)


def test_a_row_a_heading_or_a_command_that_one_lacks_is_found() -> None:
    assert shape(ENGLISH) != shape(ENGLISH.replace("| PPO |", "PPO", 1))
    assert shape(ENGLISH) != shape(ENGLISH.replace("\n## Tests", "\n### Tests", 1))
    assert pointers(ENGLISH) != pointers(ENGLISH.replace("`make bench-demo`", "`make bench`", 1))


def shape(page: str) -> list[str]:
    """Headings by level and rows of tables, in their order."""
    return re.findall(r"^(#+ |\|)", FENCE.sub("", page), re.MULTILINE)


def pointers(page: str) -> Counter[str]:
    """Links and code outside of blocks. A sentence may have them in another order; the first line leads to the other language."""
    _, _, rest = FENCE.sub("", page).partition("\n")
    return Counter([*LINK.findall(rest), *SPAN.findall(rest)])
