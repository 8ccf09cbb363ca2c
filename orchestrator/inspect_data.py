"""`preceptor data inspect`: rows as the model will see them, and what was cut or left out.

Text that is learned (a prompt's answers, where answers are ranked) is bold, all other dim; where the output is no terminal it stands in «».
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from statistics import median
from typing import TYPE_CHECKING, Any

from actors.errors import UserError
from configs.schema import STAGE_PREFIX, Config, Pipeline
from configs.schema.data import ConversationDataConfig, PromptDataConfig, RankingDataConfig, TextDataConfig

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

LEARNED, GIVEN = "bold green", "dim"


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One token sequence to show."""

    title: str
    """Where it is from, and what it is of there."""
    token_ids: Sequence[int]
    """[T]"""
    loss_mask: Sequence[bool]
    """[T]"""
    num_cut_tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Inspected:
    """What a stage's data came to."""

    entries: tuple[Entry, ...]
    """Of the first rows."""
    facts: tuple[tuple[str, str], ...]
    """Name and value, of the whole data."""


def inspect(config: Config, stage: str | None, rows: int, console: Console) -> None:
    """Prints the first `rows` sequences (prompts, groups of answers) of a stage's data, and a summary of all of it.

    Args:
        stage: Its name in a pipeline; None for a config of one stage.

    Raises:
        UserError: for a stage that there is not, and for anything wrong with the data or the tokenizer.
    """
    from actors.data.tokenizer import load_tokenizer

    name = _stage_name(config, stage)
    data = _stages(config)[name].data
    tokenizer = load_tokenizer(_model(config, name))
    inspected = _inspect(data, tokenizer, rows)
    for entry in inspected.entries:
        console.print(_heading(entry), soft_wrap=True)
        console.print(_text(entry, tokenizer, marked=not console.is_terminal), soft_wrap=True)
        console.print()
    width = max(len(name) for name, _ in inspected.facts)
    for name, value in inspected.facts:
        console.print(f"{name:<{width}}  {value}", soft_wrap=True, markup=False, highlight=False)


# ----------------------------------------------------------------------------------------------------------- stage and model


def _stages(config: Config) -> dict[str, Any]:
    return dict(config.stages) if isinstance(config, Pipeline) else {str(config.stage): config}


def _stage_name(config: Config, stage: str | None) -> str:
    """The stage that is meant."""
    names = list(_stages(config))
    if stage is None and len(names) == 1:
        return names[0]
    if stage not in names:
        got = "missing" if stage is None else f"got {stage!r}"
        raise UserError(f"--stage: {got}; allowed: {' or '.join(names)}")
    return stage


def _model(config: Config, name: str) -> str:
    """The model whose tokenizer the stage reads with. A stage's export has the tokenizer of what the stage started from."""
    values = _stages(config)[name].model_dump()
    model: str | None = values["policy" if "policy" in values else "model"]["model"]
    assert model is not None, "the schema asks every stage for its model"
    return _model(config, model.removeprefix(STAGE_PREFIX)) if model.startswith(STAGE_PREFIX) else model


# ------------------------------------------------------------------------------------------------------------- kinds of data


def _inspect(data: Any, tokenizer: Any, rows: int) -> Inspected:
    if isinstance(data, PromptDataConfig):
        return _prompts(data, tokenizer, rows)
    if isinstance(data, RankingDataConfig):
        return _rankings(data, tokenizer, rows)
    assert isinstance(data, TextDataConfig | ConversationDataConfig), data
    return _sequences(data, tokenizer, rows)


def _sequences(data: TextDataConfig | ConversationDataConfig, tokenizer: Any, rows: int) -> Inspected:
    from actors.data.sequences import load_conversations, load_texts

    found = load_texts(data, tokenizer) if isinstance(data, TextDataConfig) else load_conversations(data, tokenizer)
    sequences = [found.sequence(index) for index in range(min(rows, len(found)))]
    entries = tuple(
        Entry(title=one.where, token_ids=one.token_ids, loss_mask=one.loss_mask, num_cut_tokens=one.num_cut_tokens)
        for one in sequences
    )
    num_tokens, num_learned = sum(found.lengths), sum(found.num_loss_tokens)
    facts = (
        ("rows", f"{found.num_rows}, {found.num_dropped} left out for length"),
        ("sequences", f"{len(found)}: {len(found.train)} to train on, {len(found.held_out)} held out"),
        ("tokens of a sequence", _spread(found.lengths)),
        ("tokens", f"{num_tokens}, {num_learned} with loss ({num_learned / num_tokens:.1%})"),
        ("tokens cut off", str(found.num_cut_tokens)),
    )
    return Inspected(entries=entries, facts=facts)


def _rankings(data: RankingDataConfig, tokenizer: Any, rows: int) -> Inspected:
    from actors.data.rankings import Group, RankingDataset

    def entries(group: Group) -> Iterator[Entry]:
        answers = zip(group.sequences, group.answer_lengths, group.ranks, strict=True)
        for number, (ids, length, rank) in enumerate(answers, 1):
            of = f", margin {group.margin:g}" if group.margin is not None else ""
            of += f", by {group.annotator}" if group.annotator is not None else ""
            yield Entry(
                title=f"{group.where}, answer {number} of {len(group.ranks)}, rank {rank}{of}",
                token_ids=ids,
                loss_mask=[False] * (len(ids) - length) + [True] * length,
                num_cut_tokens=group.num_cut_tokens,
            )

    found = RankingDataset.load(data, tokenizer)
    groups = [found.group(index) for index in range(min(rows, len(found)))]
    num_rows = len(found) + found.num_dropped + found.num_ties
    facts = (
        (
            "rows",
            f"{num_rows}, {found.num_dropped} left out for length, {found.num_ties} for ranking all answers alike",
        ),
        ("groups", f"{len(found)}: {len(found.train)} to train on, {len(found.held_out)} held out"),
        ("tokens of a group", _spread(found.lengths)),
        ("tokens", f"{sum(found.lengths)}, {found.num_answer_tokens} of answers"),
        ("tokens cut off", str(found.num_cut_tokens)),
    )
    return Inspected(entries=tuple(entry for group in groups for entry in entries(group)), facts=facts)


def _prompts(data: PromptDataConfig, tokenizer: Any, rows: int) -> Inspected:
    from actors.data.prompts import PromptDataset

    found = PromptDataset.load(data, tokenizer)
    prompts = [found.row(index) for index in range(min(rows, len(found)))]
    entries = tuple(
        Entry(
            title=f"{prompt.where}, id {prompt.id}",
            token_ids=prompt.token_ids,
            loss_mask=[False] * len(prompt.token_ids),
            num_cut_tokens=0,
        )
        for prompt in prompts
    )
    facts = (
        ("rows", f"{len(found) + found.num_dropped}, {found.num_dropped} left out for length"),
        ("prompts", f"{len(found)}: {found.num_train} to learn from, {found.num_held_out} held out"),
        ("tokens of a prompt", _spread(found.lengths)),
        ("tokens", str(sum(found.lengths))),
    )
    return Inspected(entries=entries, facts=facts)


def _spread(lengths: Sequence[int]) -> str:
    return f"shortest {min(lengths)}, median {median(lengths):g}, longest {max(lengths)}"


# ---------------------------------------------------------------------------------------------------------------------- text


def _heading(entry: Entry) -> Text:
    from rich.text import Text

    num_learned = sum(entry.loss_mask)
    learned = f", {num_learned} learned" if num_learned else ""
    cut = f", {entry.num_cut_tokens} cut off at the start" if entry.num_cut_tokens else ""
    return Text(f"{entry.title}: {len(entry.token_ids)} tokens{learned}{cut}", style="cyan")


def _text(entry: Entry, tokenizer: Any, *, marked: bool) -> Text:
    """The tokens as text, in stretches that are learned or not. `marked` puts marks around the learned ones too."""
    from rich.text import Text

    text = Text()
    masked = zip(entry.loss_mask, entry.token_ids, strict=True)
    for learned, stretch in groupby(masked, key=lambda pair: pair[0]):
        decoded = printable(tokenizer.decode([token for _, token in stretch]))
        text.append(f"«{decoded}»" if learned and marked else decoded, style=LEARNED if learned else GIVEN)
    return text


def printable(text: str) -> str:
    """The text with escapes for what a terminal would obey; line breaks stay."""
    return "".join(char if char.isprintable() or char in "\n\t" else repr(char)[1:-1] for char in text)
