"""What is wrong with a config, in one readable block."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from configs.secrets import without_secrets


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """One thing that is wrong: where, what was got, what is allowed."""

    key: str
    """Path of the key, as an override names it: `rollout.temperature`. Empty for the file as a whole."""
    got: str
    """What was got, as a phrase: `got -1`, `missing`, `unknown key`."""
    allowed: str
    """What is allowed, as a phrase: `a number above 0`."""
    origin: str = ""
    """File and line, or the override, that it came from."""

    def __str__(self) -> str:
        key = f"{self.key}: " if self.key else ""
        origin = f" ({self.origin})" if self.origin else ""
        # an override is quoted as it was given
        return without_secrets(f"{key}{self.got}; allowed: {self.allowed}{origin}")


class ConfigError(Exception):
    """A config that can't be run. Its text is complete: every problem with its key, what was got and what is allowed."""

    def __init__(self, title: str, problems: Sequence[Problem] = ()) -> None:
        super().__init__(title, tuple(problems))
        self.title = title
        self.problems = tuple(problems)

    def __str__(self) -> str:
        if not self.problems:
            return self.title
        return "\n".join([f"{self.title}:", *(f"  {problem}" for problem in self.problems)])
