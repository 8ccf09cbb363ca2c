"""Where prompts and rankings come from."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from configs.schema.base import NonNegativeInt, PositiveInt, Section, refuse


class DataConfig(Section):
    """Files and rows, shared by every kind of data."""

    path: str = Field(min_length=1)
    """JSONL or JSONL.gz file, or the name of a dataset on the Hugging Face hub."""
    split: str = "train"
    """Split of a hub dataset; files have none."""
    skip_rows: NonNegativeInt = 0
    """Rows left out at the start, before shuffling."""
    max_rows: PositiveInt | None = None
    """Rows used after those skipped; all where it is not given."""


class PromptDataConfig(DataConfig):
    """Prompts for PPO, one a row."""

    format: Literal["prompt", "hh-rlhf"] = "prompt"
    """`prompt`: a column with text or with chat messages. `hh-rlhf`: the dialogue in `chosen` up to its last answer."""
    prompt_column: str = "prompt"
    """Column of the prompt (format `prompt`)."""
    id_column: str | None = None
    """Column of the prompt's id; the row's number where it is not given."""
    chat_template: bool = True
    """Wrap prompts in the model's chat template. Plain text is then one user message."""
    max_prompt_tokens: PositiveInt = 512
    """Longest prompt in tokens."""
    overlong: Literal["error", "drop"] = "error"
    """A longer prompt stops the run with its file and line, or is left out (counted in the log)."""
    shuffle: bool = True
    """New order each epoch, from the run's seed."""


class RankingDataConfig(DataConfig):
    """Ranked answers for a reward model, one group a row."""

    format: Literal["preference", "ranking", "hh-rlhf"] = "preference"
    """`preference`: prompt, chosen, rejected. `ranking`: prompt, responses, ranks (lower is better, equal is a tie).
    `hh-rlhf`: dialogues `chosen` and `rejected`."""
    chat_template: bool = True
    """Wrap conversations in the model's chat template."""
    max_tokens: PositiveInt = 1024
    """Longest prompt and answer in tokens."""
    overlong: Literal["error", "drop", "truncate_left"] = "error"
    """A longer one stops the run, its group is left out, or the prompt loses its oldest tokens."""
    held_out_rows: PositiveInt = 64
    """Rows at the end of the selection that are only evaluated on."""

    @model_validator(mode="after")
    def _some_left(self) -> Self:
        if self.max_rows is not None and self.held_out_rows >= self.max_rows:
            raise refuse("held_out_rows", f"got {self.held_out_rows}", f"less than max_rows ({self.max_rows})")
        return self
