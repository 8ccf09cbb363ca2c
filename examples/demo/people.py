"""The demo's simulated annotators: what they care about (a utility that no model ever sees), and their noise.

The utility of an answer is a sum:

    +2.0   it states what was asked, and that is true          -0.5   each sentence said before
    -1.0   each statement in it that is false                  -1.0   each sentence that is none of the grammar's, or has no end
    +1.0   its last sentence is polite                         -0.1   each word (a full stop is one) after the 14th
    -1.0   each rude sentence

An annotator's number for an answer is its utility plus normal noise of deviation `NOISE_STD`, drawn from a hash of annotator, question and
answer: always the same for the same three. Ranks follow the numbers. So even who knows the utility agrees with only some of the pairs; the
share, `noise_ceiling`, is the most that a reward model can reach.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterable, Sequence
from functools import cache
from statistics import NormalDist, fmean

from examples.demo.grammar import FACTS, FILLERS, OPENERS, POLITE, RUDE, questions, statements

TRUE, FALSE, POLITE_END, RUDE_SENTENCE, REPEATED, BROKEN, PER_WORD = 2.0, -1.0, 1.0, -1.0, -0.5, -1.0, -0.1
FREE_WORDS = 14
NOISE_STD = 0.7


def utility(prompt: str, response: str) -> float:
    """What an answer is worth to everybody, without noise."""
    _, known = _world()
    sentences = _sentences(response)
    total = PER_WORD * max(0, len(response.split()) - FREE_WORDS)
    total += REPEATED * (len(sentences) - len(set(sentences)))
    total += RUDE_SENTENCE * sum(sentence in RUDE for sentence in sentences)
    total += POLITE_END * (sentences[-1:] != [] and sentences[-1] in POLITE)
    total += BROKEN * sum(sentence not in known for sentence in sentences)
    said = set(filter(None, map(known.get, sentences)))
    total += FALSE * sum(FACTS[who, what] != value for who, what, value in said)
    total += TRUE * right(prompt, response)
    return round(total, 6)  # equal ones shall be equal, in whatever order they were added up


def right(prompt: str, response: str) -> bool:
    """Whether an answer states what was asked, and that is true."""
    asked, known = _world()
    return (*asked[prompt], FACTS[asked[prompt]]) in map(known.get, _sentences(response))


def noisy_utility(prompt: str, response: str, annotator: str) -> float:
    """What the annotator of that name says of it."""
    digest = hashlib.sha256("\0".join((annotator, prompt, response)).encode()).digest()
    uniform = (int.from_bytes(digest[:8], "big") + 0.5) / 2**64
    return utility(prompt, response) + NormalDist(0.0, NOISE_STD).inv_cdf(uniform)


def noise_ceiling(groups: Iterable[Sequence[float]]) -> float:
    """Expected share of pairs that a perfect ranker has in the annotators' order.

    Args:
        groups: Utilities of the different answers to one prompt, for each prompt. The difference of two answers' noise has deviation
            sqrt(2) `NOISE_STD`; of two answers of the same utility either order is a coin's throw.
    """
    difference = NormalDist(0.0, 2**0.5 * NOISE_STD)
    return fmean(difference.cdf(abs(a - b)) for group in groups for a, b in itertools.combinations(group, 2))


@cache
def _world() -> tuple[dict[str, tuple[str, str]], dict[str, tuple[str, str, str] | None]]:
    """Questions to what they ask, and sentences to what they state: None for those that state nothing."""
    known: dict[str, tuple[str, str, str] | None] = dict.fromkeys((*OPENERS, *POLITE, *RUDE, *FILLERS))
    known.update(statements())
    return dict(questions()), known


def _sentences(text: str) -> list[str]:
    """Split behind each full stop. A rest without one is a sentence too, and so is an empty answer: none that the grammar has."""
    parts = text.split(".")
    ended, rest = [f"{part.strip()} ." for part in parts[:-1]], parts[-1].strip()
    return [*ended, rest] if rest or not ended else ended
