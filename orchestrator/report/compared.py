"""Two models' answers beside each other: on the terminal, as a page, as JSON."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from itertools import zip_longest
from typing import TYPE_CHECKING, Any

from configs.schema.compare import CompareConfig
from orchestrator.report.answer_cards import comparison_table, exchange_card, folded, win_text
from orchestrator.report.answers import Answer, AnsweredRow, Comparison, Exchange
from orchestrator.report.document import document, tile
from orchestrator.report.markup import Markup, element
from orchestrator.report.numbers import counted, short
from orchestrator.report.summary import comparison_table as text_table

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

SOURCES = ("A", "B")
SHOWN_ROWS = 10
"""Prompts on the terminal."""
PROMPT_CHARACTERS, SHOWN_CHARACTERS = 120, 200
"""Of a prompt and of an answer on the terminal."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Compared:
    """What came of a comparison."""

    config: CompareConfig
    rows: tuple[tuple[AnsweredRow, ...], ...]
    """Of each of `SOURCES`, in the order of the prompts."""
    comparison: Comparison
    normalised: bool
    """The reward model's scores are normalised by the statistics stored with it."""

    @property
    def judge(self) -> str | None:
        """In words."""
        if self.config.reward is not None:
            scores = "normalised" if self.normalised else "not normalised"
            return f"reward model {self.config.reward.model.model}, scores {scores}"
        return f"function {self.config.annotator.function}" if self.config.annotator is not None else None

    @property
    def sampling(self) -> str:
        """In words."""
        rollout = self.config.rollout
        answers = counted(rollout.responses_per_prompt, "answer")
        return (
            f"{answers} each, temperature {rollout.temperature:g}, at most {rollout.max_response_tokens} tokens, {rollout.dtype}, "
            f"seed {self.config.run.seed}"
        )


# ----------------------------------------------------------------------------------------------------------------- terminal


def print_compared(found: Compared, console: Console) -> None:
    """The first prompts with the first answers, and the figures of all."""
    exchanges = found.comparison.exchanges
    for source, model in zip(SOURCES, found.config.models, strict=True):
        console.print(f"{source}  {model}", soft_wrap=True)
    console.print(exchanges_table(exchanges[:SHOWN_ROWS]), "")
    if len(exchanges) > SHOWN_ROWS:
        console.print(f"and {counted(len(exchanges) - SHOWN_ROWS, 'more prompt')} in what --html and --json write\n")
    console.print(text_table(found.comparison), "")
    console.print(found.sampling, soft_wrap=True)
    console.print(f"judged by {found.judge}" if found.judge else "nobody judged", soft_wrap=True)
    last = found.comparison.figures[-1]
    if last.win_frac is not None:
        console.print(f"{SOURCES[1]} wins {win_text(last)} against {SOURCES[0]}", style="bold")


def exchanges_table(exchanges: tuple[Exchange, ...]) -> Table:
    """One row for each prompt, one column for each source: its score, the better one marked, and the beginning of its first answer."""
    from rich import box
    from rich.table import Table

    table = Table(box=box.HORIZONTALS, show_lines=True, pad_edge=False, expand=True)
    table.add_column("prompt", ratio=2, overflow="fold", style="dim")
    for source in SOURCES:
        table.add_column(source, ratio=3, overflow="fold")
    for exchange in exchanges:
        sides = [[answer for answer in exchange.answers if answer.source == source] for source in SOURCES]
        # where it is long, the question stands at its end
        prompt = shortened(exchange.prompt[::-1], PROMPT_CHARACTERS)[::-1]
        table.add_row(prompt, *(_cell(answers) for answers in sides))
    return table


def _cell(answers: list[Answer]) -> Text:
    """The mean of the scores, where there are several answers, over the first of them."""
    from rich.text import Text

    first = answers[0]
    scores = [answer.score for answer in answers if answer.score is not None]
    head = [short(sum(scores) / len(scores))] if scores else []
    if len(answers) > 1:
        head.append(f"mean of {len(answers)}")
    if first.better:
        head.append("better")
    text = Text("  ".join(head), style="bold green" if first.better else "bold")
    if first.truncated:
        text.append("  cut off" if head else "cut off", style="not bold dim")
    said = Text(shortened(first.text, SHOWN_CHARACTERS) or "(empty)")
    return Text("\n").join([text, said]) if text else said


def shortened(text: str, most: int) -> str:
    """A text in one paragraph of about `most` characters, without what would steer a terminal."""
    flat = "".join(one if one.isprintable() else "\N{REPLACEMENT CHARACTER}" for one in " ".join(text.split()))
    return flat if len(flat) <= most else f"{flat[:most].rstrip()} …"


# --------------------------------------------------------------------------------------------------------------------- page


def compared_page(found: Compared) -> str:
    """Every prompt with every answer."""
    comparison, last = found.comparison, found.comparison.figures[-1]
    tiles = [tile("prompts", f"{comparison.num_prompts:,}")]
    if last.win_frac is not None:
        tiles.insert(0, tile("B wins against A", win_text(last)))
    tiles += [tile(source, model, broad=True) for source, model in zip(SOURCES, found.config.models, strict=True)]
    if found.judge:
        tiles.append(tile("judge", found.judge, broad=True))
    head = element("div", element("h1", "A and B compared"), class_="head")
    header = element("header", head, element("p", found.sampling, class_="soft"), element("dl", *tiles, class_="tiles"))
    return document(
        "A and B compared",
        [header, _answers_section(found)],
        made_by="preceptor compare",
        source=found.config.data.path,
    )


def _answers_section(found: Compared) -> Markup:
    cards = [exchange_card(exchange) for exchange in found.comparison.exchanges]
    note = (
        "Win rate: share of all pairs of answers to one prompt in which B's has the higher score than A's, ties half; ± is one standard "
        "error over prompts. Marked is who wins more of a prompt's pairs."
        if found.judge
        else "Nobody judged these answers."
    )
    return element(
        "section",
        element("h2", "Answers"),
        element("div", comparison_table(found.comparison, linked=False), class_="card wide compared"),
        element("p", note, class_="note"),
        *folded(cards),
    )


# --------------------------------------------------------------------------------------------------------------------- JSON


def compared_json(found: Compared) -> str:
    """Every prompt with every answer; keys that nobody judged are null."""
    prompts: list[dict[str, Any]] = []
    for at, row in enumerate(found.rows[0]):
        answers = {
            source: [
                {"text": text, "score": score, "tokens": number, "cut_off": truncated}
                for text, score, number, truncated in zip_longest(
                    of_source[at].responses, of_source[at].scores, of_source[at].num_tokens, of_source[at].truncated
                )
            ]
            for source, of_source in zip(SOURCES, found.rows, strict=True)
        }
        prompts.append({"id": row.id, "prompt": row.prompt, "answers": answers})
    whole = {
        "models": dict(zip(SOURCES, found.config.models, strict=True)),
        "judge": found.judge,
        "seed": found.config.run.seed,
        **found.config.model_dump(mode="json", include={"data", "rollout"}),
        "figures": {one.source: asdict(one) for one in found.comparison.figures},
        "prompts": prompts,
    }
    return json.dumps(whole, indent=1, ensure_ascii=False) + "\n"
