"""Errors that end a run with one readable message. All travel through Ray: their arguments rebuild them."""

from __future__ import annotations


class PreceptorError(Exception):
    """Anything that we tell the user in one message, without a stack trace."""


class UserError(PreceptorError):
    """Bad input: names the key or file, what was got and what is allowed."""


class NoAnswer(UserError):
    """A server at an address that the user gave is silent: now, which may be for a while, or for good."""


class RewardFailed(PreceptorError):
    """A reward could not be had within its retries. It never becomes zero: the step stops."""

    def __init__(self, prompt_id: str, reason: str) -> None:
        super().__init__(prompt_id, reason)
        self.prompt_id = prompt_id
        self.reason = reason

    def __str__(self) -> str:
        return f"no reward for prompt {self.prompt_id!r}: {self.reason}"


class SyncFailed(PreceptorError):
    """A weight sync went wrong or could not be proved. The engine is half-loaded and must not be used again."""


class NotFinite(PreceptorError):
    """A loss, gradient or reward is NaN or infinite. Weights are those before the update."""


class RoleFailed(PreceptorError):
    """A Ray actor died, raised, or did not answer in time."""

    def __init__(self, role: str, rank: int, step: int | None, what: str) -> None:
        super().__init__(role, rank, step, what)
        self.role, self.rank, self.step, self.what = role, rank, step, what

    def __str__(self) -> str:
        where = "at start" if self.step is None else f"in step {self.step}"
        return f"{self.role} rank {self.rank} failed {where}: {self.what}"
