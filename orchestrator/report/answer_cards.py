"""Answers beside each other, on the page. Their text comes from models and may be long, empty or hostile."""

from __future__ import annotations

from collections.abc import Sequence

from orchestrator.report.answers import Answer, AnswerFigures, Comparison, Exchange
from orchestrator.report.markup import Markup, element, joined
from orchestrator.report.numbers import counted, percent, short
from orchestrator.report.trajectories import EarlyAndLate

CLIP_CHARACTERS, CLIP_LINES = 420, 9
"""Of an answer or a prompt; the rest unfolds."""
OPEN_EXCHANGES = 4


def comparison_section(found: Comparison) -> Markup:
    """Stages that answered the same prompts."""
    names = [figures.source for figures in found.figures]
    return element(
        "section",
        element("h2", f"Answers: {' and '.join(names)}"),
        element("div", comparison_table(found, linked=True), class_="card wide compared"),
        element(
            "p",
            f"Over the {counted(found.num_prompts, 'prompt')} that all of these stages answered, judged by the same annotator. Win rate: "
            f"share of all pairs of answers to one prompt in which the later stage's has the higher number than that of {names[0]}, ties "
            "half; ± is one standard error over prompts. Below: the first prompts with each stage's first answer; none is picked.",
            class_="note",
        ),
        *folded([exchange_card(exchange) for exchange in found.exchanges]),
        id="answers",
    )


def comparison_table(found: Comparison, *, linked: bool) -> Markup:
    """One row for each source; what is known of none has no column. `linked`: to its stage's section."""
    columns = [(name, texts) for name, texts in figure_columns(found).items() if any(texts)]
    head = element("tr", element("th", "of"), *(element("th", name, class_="number") for name, _ in columns))
    rows = [
        element(
            "tr",
            element("td", element("a", one.source, href=f"#stage-{one.source}") if linked else one.source),
            *(element("td", texts[place], class_="number") for _, texts in columns),
        )
        for place, one in enumerate(found.figures)
    ]
    return element("table", head, *rows)


def figure_columns(found: Comparison) -> dict[str, list[str]]:
    """Figures as they are shown, one text for each source; empty where it is not known, or says nothing."""
    figures = found.figures
    several = any(one.num_answers > found.num_prompts for one in figures)
    with_tokens = any(one.mean_tokens is not None for one in figures)
    return {
        "answers": [f"{one.num_answers:,}" for one in figures],
        "mean score": [short(one.mean_score) for one in figures],
        "win rate": [win_text(one) if any(other.win_frac is not None for other in figures) else "" for one in figures],
        "distinct": [percent(one.distinct_frac) if several else "" for one in figures],
        "words": ["" if with_tokens else short(one.mean_words) for one in figures],
        "tokens": [short(one.mean_tokens) for one in figures],
        "cut off": ["" if one.truncated_frac is None else percent(one.truncated_frac) for one in figures],
    }


def win_text(figures: AnswerFigures) -> str:
    """`62.5% ± 3.1`; a dash for the first stage."""
    if figures.win_frac is None:
        return "–"
    error = "" if figures.win_error is None else f" ± {100 * figures.win_error:.1f}"
    return percent(figures.win_frac) + error


def early_and_late_section(found: EarlyAndLate) -> Markup:
    """PPO's answers, within a stage's section."""
    pairs = list(zip(found.early, found.late, strict=True))
    if found.same_prompts:
        note = "Prompts of the last step with its answers, and those of the first step that had them; the first answer of each."
        if found.held_out:
            note = "The first held-out prompts, with the first answer to each before the first step and in the last evaluation."
        cards = [exchange_card(Exchange(prompt=b.prompt, answers=(*a.answers, *b.answers))) for a, b in pairs]
    else:
        note = "The last step had no prompt that an earlier one had: these are answers to different prompts."
        cards = [element("div", _lone(a, 0), _lone(b, 1), class_="pair alone") for a, b in pairs]
    title = element("h3", "Answers early and late")
    return element("div", title, element("p", note, class_="note"), *folded(cards))


def exchange_card(exchange: Exchange) -> Markup:
    """A prompt, and below it the answers side by side: the first of each source, then the second of each."""
    of_sources: dict[str, list[Answer]] = {}
    for answer in exchange.answers:
        of_sources.setdefault(answer.source, []).append(answer)
    rows = [
        element("div", *(_answer(answer, number) for number, answer in enumerate(row)), class_="pair")
        for row in zip(*of_sources.values(), strict=True)
    ]
    return element("div", _prompt(exchange.prompt), *rows, class_="card exchange")


def _lone(exchange: Exchange, number: int) -> Markup:
    answer = exchange.answers[0]
    return element(
        "div", _prompt(exchange.prompt), element("div", _answer(answer, number), class_="pair"), class_="card"
    )


def _prompt(text: str) -> Markup:
    """Where it is long, its end is shown: that is where the question stands."""
    clip = "\n".join(text.rstrip().splitlines()[-CLIP_LINES:])[-CLIP_CHARACTERS:]
    if len(clip) == len(text.rstrip()):
        return element("div", text.rstrip(), class_="said prompt")
    return _unfolding(f"… {clip}", text, "said prompt")


def _answer(answer: Answer, number: int) -> Markup:
    tokens = "" if answer.num_tokens is None else counted(answer.num_tokens, "token")
    length = ", ".join(filter(None, (tokens, "cut off" if answer.truncated else "")))
    who = element(
        "div",
        element("span", answer.source),
        element("span", "better", class_="badge finished") if answer.better else None,
        element("span", length, class_="length") if length else None,
        element("b", short(answer.score), title="score"),
        class_="who",
    )
    clip = "\n".join(answer.text.splitlines()[:CLIP_LINES])[:CLIP_CHARACTERS]
    if not answer.text.strip():
        said = element("div", "an empty answer", class_="empty")
    elif len(clip) == len(answer.text):
        said = element("div", answer.text, class_="said")
    else:
        said = _unfolding(f"{clip} …", answer.text, "said")
    return element("div", who, said, class_=f"answer s{min(number, 2)}")


def _unfolding(clip: str, text: str, class_: str) -> Markup:
    summary = element("summary", element("span", clip, class_=f"clip {class_}"))
    return element("details", summary, element("div", text, class_=class_), class_="long")


def folded(cards: Sequence[Markup]) -> list[Markup]:
    """The first few, and the others to unfold."""
    rest = cards[OPEN_EXCHANGES:]
    if not rest:
        return list(cards)
    fold = element("details", element("summary", f"{len(rest)} more"), joined(rest), class_="fold")
    return [*cards[:OPEN_EXCHANGES], fold]
