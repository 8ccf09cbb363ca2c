"""Which rows of several sources make a mixture: a function of sizes and weights alone."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from fractions import Fraction

from actors.data.rows import Rows, Source
from actors.errors import UserError


def mixed(sources: Sequence[Source], weights: Sequence[float]) -> Rows:
    """The sources' rows, drawn by weight and evenly interleaved (`draw`).

    Raises:
        UserError: for a source whose weight is too small to give one row.
    """
    picks = draw([len(source.rows) for source in sources], weights)
    drawn = {source for source, _ in picks}
    for number, source in enumerate(sources):
        if number not in drawn:
            key = f"data.mix.{number - 1}.weight" if number else "data.weight"
            raise UserError(f"{key}: {weights[number]:g} gives no row of {source.path!r} beside the other sources")
    text = " ".join(f"{source.fingerprint} {weight!r}" for source, weight in zip(sources, weights, strict=True))
    return Rows(sources=tuple(sources), picks=picks, fingerprint=hashlib.sha256(text.encode()).hexdigest())


def draw(sizes: Sequence[int], weights: Sequence[float]) -> list[tuple[int, int]]:
    """(source, row) of each row of the mixture.

    One pass lasts as long as the source that is smallest for its weight. That one gives all its rows, every other its first ones, as many
    as its weight asks for (rounded down: the proportions hold to one row); their rest is not used, in no epoch. Each source's rows stand
    in their order and evenly spread, so that every stretch of the mixture has the proportions, the held-out rows at its end too.

    Sizes 4 and 9 with weights 2 and 1 give 4 and 2 rows: (0, 0), (1, 0), (0, 1), (0, 2), (1, 1), (0, 3).
    """
    # of the decimals that the user wrote: 0.7 and 0.3 in binary would lose a row of 70 and 30
    shares = [Fraction(repr(weight)) for weight in weights]
    passes = min(Fraction(size) / share for size, share in zip(sizes, shares, strict=True))
    counts = [int(passes * share) for share in shares]
    # row i of n stands in the middle of its n-th part; where two stand at one place the earlier source is first
    places = [((2 * row + 1) / (2 * count), source, row) for source, count in enumerate(counts) for row in range(count)]
    return [(source, row) for _, source, row in sorted(places)]
