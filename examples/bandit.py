"""Rewards of the bandit recipe: an answer of one word, of which one pays."""

from __future__ import annotations

PAYING_WORD = "yes"

_waiting = [0.0]


def pays(prompt: str, response: str) -> float:  # noqa: ARG001 - the prompt does not matter
    """1 for the paying word, else 0."""
    return float(response.strip() == PAYING_WORD)


def pays_shuffled(prompt: str, response: str) -> float:
    """What the answer before this one deserved: as many answers pay, but none for what it says, so that nothing can be learned."""
    _waiting.append(pays(prompt, response))
    return _waiting.pop(0)
