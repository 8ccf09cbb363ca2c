"""Where texts, conversations, prompts and rankings come from."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from configs.schema.base import NonNegativeInt, PositiveFloat, PositiveInt, Section, refuse


class SourceConfig(Section):
    """The rows of one file or dataset."""

    path: str = Field(min_length=1)
    """JSONL, JSONL.gz or Parquet file, or the name of a dataset on the Hugging Face hub."""
    split: str = "train"
    """Split of a hub dataset; files have none."""
    skip_rows: NonNegativeInt = 0
    """Rows left out at the start, before shuffling."""
    max_rows: PositiveInt | None = None
    """Rows used after those skipped; all where it is not given."""
    columns: dict[str, str] = Field(default_factory=dict)
    """Where the source names its columns otherwise: the name that the format asks for, and the source's own."""
    streaming: bool = False
    """Fetch no more of a hub dataset than the rows that are used; needs `max_rows`."""
    weight: PositiveFloat = 1.0
    """Share of the rows, against the weights of the other sources in `mix`."""

    @model_validator(mode="after")
    def _streaming_ends(self) -> Self:
        if self.streaming and self.max_rows is None:
            raise refuse("max_rows", "missing", "a whole number of at least 1, where streaming is true")
        return self


class MixedSource(SourceConfig):
    """A further source of a mixture."""


class DataConfig(SourceConfig):
    """Sources and rows, shared by every kind of data."""

    mix: tuple[MixedSource, ...] = ()
    """Further sources. Rows are drawn by `weight`, evenly interleaved, until one source has given all its rows; the rest is unused."""

    @property
    def column_names(self) -> tuple[str, ...] | None:
        """The columns that the format asks for; None where any name may be asked for."""
        return None

    @model_validator(mode="after")
    def _columns_known(self) -> Self:
        known = self.column_names
        places = [("columns", self.columns), *((f"mix.{n}.columns", one.columns) for n, one in enumerate(self.mix))]
        for key, columns in places:
            for name in columns:
                if known is not None and name not in known:
                    raise refuse(f"{key}.{name}", "no column of this format", ", ".join(known))
        return self


def check_some_left(data: DataConfig, held_out_rows: int) -> None:
    """Refuses to hold out every row. How many rows a mixture has is known when it is read."""
    if data.max_rows is not None and not data.mix and held_out_rows >= data.max_rows:
        raise refuse("held_out_rows", f"got {held_out_rows}", f"less than max_rows ({data.max_rows})")


class TextDataConfig(DataConfig):
    """Documents for pretraining, one a row."""

    format: Literal["text"] = "text"
    """`text`: a column with the document."""
    text_column: str = "text"
    """Column of the document."""
    max_tokens: Annotated[int, Field(ge=2, strict=True)] = 1024
    """Longest sequence in tokens, start and end token included."""
    overlong: Literal["split", "drop", "error"] = "split"
    """A longer document becomes several sequences, is left out (counted in the log), or stops the run with its file and line."""
    held_out_rows: NonNegativeInt = 64
    """Rows at the end of the selection that are only evaluated on."""

    @property
    def column_names(self) -> tuple[str, ...]:
        return (self.text_column,)

    @model_validator(mode="after")
    def _some_left(self) -> Self:
        check_some_left(self, self.held_out_rows)
        return self


class ConversationDataConfig(DataConfig):
    """Conversations for supervised fine-tuning, one a row. The loss is on the assistant's tokens and its end token."""

    format: Literal["conversation", "prompt-completion"] = "conversation"
    """`conversation`: chat messages in `messages`, every turn of the assistant is learned. `prompt-completion`: columns `prompt` and
    `completion`, both text or chat messages; the completion is learned."""
    chat_template: bool = True
    """Wrap conversations in the model's chat template. Plain text is then one message of its side."""
    max_tokens: Annotated[int, Field(ge=2, strict=True)] = 1024
    """Longest conversation in tokens."""
    overlong: Literal["error", "drop", "truncate_left"] = "error"
    """A longer one stops the run with its file and line, is left out (counted in the log), or loses its oldest tokens."""
    held_out_rows: NonNegativeInt = 64
    """Rows at the end of the selection that are only evaluated on."""

    @property
    def column_names(self) -> tuple[str, ...]:
        return ("messages",) if self.format == "conversation" else ("prompt", "completion")

    @model_validator(mode="after")
    def _some_left(self) -> Self:
        check_some_left(self, self.held_out_rows)
        return self

    @model_validator(mode="after")
    def _messages_have_a_template(self) -> Self:
        if self.format == "conversation" and not self.chat_template:
            raise refuse("chat_template", "got false", "true for format conversation: messages need a template")
        return self


class PromptDataConfig(DataConfig):
    """Prompts for PPO and stage `rank`, one a row. Every other column is handed to the reward functions, so `columns` may name any."""

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
    held_out_rows: NonNegativeInt = 0
    """Rows at the end of the selection that PPO is only evaluated on, and that stage `rank` leaves out."""

    @model_validator(mode="after")
    def _some_left(self) -> Self:
        check_some_left(self, self.held_out_rows)
        return self


class RankingDataConfig(DataConfig):
    """Ranked answers for a reward model or DPO, one group a row."""

    format: Literal["preference", "ranking", "hh-rlhf"] = "preference"
    """`preference`: prompt, chosen, rejected; the prompt may be left out where both begin with it. `ranking`: prompt, responses, ranks
    (lower is better, equal is a tie). Both: optionally `annotator` and, of two answers, `margin`. `hh-rlhf`: dialogues `chosen` and
    `rejected`."""
    chat_template: bool = True
    """Wrap conversations in the model's chat template."""
    max_tokens: PositiveInt = 1024
    """Longest prompt and answer in tokens."""
    overlong: Literal["error", "drop", "truncate_left"] = "error"
    """A longer one stops the run, its group is left out, or the prompt loses its oldest tokens."""
    held_out_rows: PositiveInt = 64
    """Rows at the end of the selection that are only evaluated on."""

    @property
    def column_names(self) -> tuple[str, ...]:
        return {
            "preference": ("prompt", "chosen", "rejected", "margin", "annotator"),
            "ranking": ("prompt", "responses", "ranks", "margin", "annotator"),
            "hh-rlhf": ("chosen", "rejected"),
        }[self.format]

    @model_validator(mode="after")
    def _some_left(self) -> Self:
        check_some_left(self, self.held_out_rows)
        return self
