"""Digests that do not depend on who held the parts, against the definition by hand."""

from __future__ import annotations

import hashlib

from hypothesis import given
from hypothesis import strategies as st

from actors.digests import digest_of, digest_of_places, sum_of_digests


def by_hand(place: int, content: bytes) -> int:
    return int(hashlib.sha256(place.to_bytes(8, "little") + content).hexdigest(), 16)


def test_the_sum_is_taken_modulo_two_to_the_256() -> None:
    contents = {place: bytes([place]) for place in range(20)}
    total = sum(by_hand(place, content) for place, content in contents.items())
    assert total > 2**256
    assert int(digest_of_places(contents), 16) == total % 2**256
    assert digest_of_places({}) == "0" * 64
    assert digest_of(["a", "b"]) == hashlib.sha256(b"a\nb").hexdigest()


@given(st.dictionaries(st.integers(0, 99), st.binary(max_size=8), max_size=12), st.integers(1, 4), st.randoms())
def test_any_ranks_give_the_digest_of_one(contents: dict[int, bytes], num_ranks: int, chance: object) -> None:
    ranks: list[dict[int, bytes]] = [{} for _ in range(num_ranks)]
    for place, content in contents.items():
        chance.choice(ranks)[place] = content  # type: ignore[attr-defined]
    assert sum_of_digests(digest_of_places(rank) for rank in ranks) == digest_of_places(contents)


def test_places_that_change_contents_show_and_so_does_one_bit() -> None:
    here = digest_of_places({0: b"a", 1: b"b"})
    assert here != digest_of_places({0: b"b", 1: b"a"})
    assert here != digest_of_places({0: b"a", 1: b"c"})
    assert here != digest_of_places({0: b"a", 2: b"b"})
    assert here != digest_of_places({0: b"a"})
