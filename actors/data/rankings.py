"""People's rankings for a reward model: rows of a file to groups of answers in tokens.

Legend: `N` groups, `K` answers of one group, `G` answers of all groups, `T` tokens of all answers, flat; prompt included.
"""

from __future__ import annotations

import hashlib
import math
import re
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from actors.data.answers import Answer, answer_to, encode_answers
from actors.data.chats import Text, as_messages, check_messages, check_text
from actors.data.files import read_rows
from actors.data.hh import parse_dialogue
from actors.data.rows import Rows, shown
from actors.data.tokenizer import BATCH, Tokenizer, require_chat_template
from actors.errors import UserError
from configs.schema.data import RankingDataConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class RankedRow:
    """The answers [K >= 2] of one row, their ranks [K] (lower is better, equal is a tie) and where the row stands."""

    where: str
    answers: tuple[Answer, ...]
    ranks: tuple[int, ...]
    margin: float | None = None
    annotator: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """One row, tokenised. Every sequence ends with the end token, as an answer sampled by the policy does."""

    sequences: tuple[list[int], ...]
    """[K] token ids of prompt and answer."""
    answer_lengths: tuple[int, ...]
    """[K] tokens of each answer, end token included."""
    ranks: tuple[int, ...]
    """[K] lower is better, equal is a tie."""
    where: str
    """`file:line`"""
    margin: float | None = None
    """By how much the better of two answers is better, at least 0, in the unit of scores; None where the row does not say."""
    annotator: str | None = None
    """Who ranked; None where the row does not say."""
    num_cut_tokens: int = 0
    """Tokens that the prompt has lost at its start (`data.overlong: truncate_left`)."""


class RankingDataset:
    """All groups of a stage, tokenised once: 4 bytes a token."""

    def __init__(
        self, groups: Sequence[Group], *, num_held_out: int, num_dropped: int, num_ties: int, fingerprint: str
    ) -> None:
        self._tokens = array("i")
        self._token_bounds = [0]
        self._group_bounds = [0]
        self._ranks: list[int] = []
        self._answer_lengths: list[int] = []
        self._wheres = tuple(group.where for group in groups)
        self._margins = tuple(group.margin for group in groups)
        self._annotators = tuple(group.annotator for group in groups)
        self._cuts = tuple(group.num_cut_tokens for group in groups)
        for group in groups:
            for sequence in group.sequences:
                self._tokens.extend(sequence)
                self._token_bounds.append(len(self._tokens))
            self._ranks.extend(group.ranks)
            self._answer_lengths.extend(group.answer_lengths)
            self._group_bounds.append(len(self._ranks))
        self.train = range(len(groups) - num_held_out)
        """Groups that are trained on."""
        self.held_out = range(len(groups) - num_held_out, len(groups))
        """Groups that are only evaluated on: those of the last `held_out_rows` rows."""
        self.num_dropped = num_dropped
        """Groups left out because an answer was too long: with its prompt (`data.overlong: drop`) or alone (`truncate_left`)."""
        self.num_ties = num_ties
        """Groups left out because all their answers have the same rank, which says nothing."""
        numbers = (self._ranks, self._answer_lengths, self._group_bounds, self._margins, num_held_out)
        digest = hashlib.sha256(fingerprint.encode())
        digest.update(self._tokens)  # as they lie in memory: no copy
        digest.update(repr(numbers).encode())
        self.fingerprint = digest.hexdigest()
        """sha256 of the file, the selection, every token, rank and margin, where answers start and what is held out."""

    @staticmethod
    def load(config: RankingDataConfig, tokenizer: Tokenizer) -> RankingDataset:
        """Reads, renders, tokenises and checks every group.

        Raises:
            UserError: for anything wrong with the file, a row or its conversations, with file and line; for an answer that is too long
                where `data.overlong` is `error`; where nothing is left to train on or to hold out.
        """
        rows = read_rows(config)
        if config.held_out_rows >= len(rows):
            raise UserError(
                f"data.held_out_rows: {config.held_out_rows} of the {len(rows)} rows of {rows.paths} leaves none to train on"
            )
        if config.chat_template:
            require_chat_template(tokenizer, "data.chat_template")
        first_held_out = len(rows) - config.held_out_rows
        groups: list[Group] = []
        num_held_out = num_dropped = num_ties = 0
        parsed = [PARSERS[config.format](rows, index, config) for index in range(len(rows))]
        for index, (row, group) in enumerate(zip(parsed, _tokenise(parsed, config, tokenizer), strict=True)):
            if len(set(row.ranks)) == 1:
                num_ties += 1
            elif group is None:
                num_dropped += 1
            else:
                groups.append(group)
                num_held_out += index >= first_held_out
        for kind, number in (("to train on", len(groups) - num_held_out), ("held out", num_held_out)):
            if number == 0:
                raise UserError(
                    f"data.path: no group {kind} is left of {rows.paths}: {num_dropped} rows are longer than data.max_tokens "
                    f"{config.max_tokens}, {num_ties} rank all answers the same"
                )
        return RankingDataset(
            groups, num_held_out=num_held_out, num_dropped=num_dropped, num_ties=num_ties, fingerprint=rows.fingerprint
        )

    def __len__(self) -> int:
        return len(self._group_bounds) - 1

    @property
    def lengths(self) -> list[int]:
        """[N] tokens of each group, all its answers together."""
        bounds = [self._token_bounds[answer] for answer in self._group_bounds]
        return [after - before for before, after in pairwise(bounds)]

    @property
    def num_answer_tokens(self) -> int:
        """Tokens of all answers, prompts not counted."""
        return sum(self._answer_lengths)

    @property
    def num_cut_tokens(self) -> int:
        """Tokens that prompts have lost, each prompt counted once."""
        return sum(self._cuts)

    def group(self, index: int) -> Group:
        """Group `index`."""
        answers = slice(self._group_bounds[index], self._group_bounds[index + 1])
        bounds = pairwise(self._token_bounds[answers.start : answers.stop + 1])
        return Group(
            sequences=tuple(self._tokens[start:end].tolist() for start, end in bounds),
            answer_lengths=tuple(self._answer_lengths[answers]),
            ranks=tuple(self._ranks[answers]),
            where=self._wheres[index],
            margin=self._margins[index],
            annotator=self._annotators[index],
            num_cut_tokens=self._cuts[index],
        )


def _preference(rows: Rows, index: int, config: RankingDataConfig) -> RankedRow:
    """prompt, chosen, rejected: texts or messages. Without a prompt, chosen and rejected begin with it."""
    values: list[str | Sequence[Any]] = [
        rows.value(index, column, (str, list), key="data.format: preference") for column in ("chosen", "rejected")
    ]
    wheres = [f"{rows.where(index)}: column {column!r}" for column in ("chosen", "rejected")]
    if "prompt" in rows[index]:
        value: str | Sequence[Any] = rows.value(index, "prompt", (str, list))
        prompt = check_text(value, f"{rows.where(index)}: column 'prompt'")
        texts = [check_text(value, where) for value, where in zip(values, wheres, strict=True)]
        answers = [_with_prompt(prompt, text, where, config) for text, where in zip(texts, wheres, strict=True)]
    elif not config.chat_template and isinstance(values[0], str) and isinstance(values[1], str):
        answers = _split_texts(values[0], values[1], rows.where(index))
    else:
        answers = [_split_conversation(value, where, config) for value, where in zip(values, wheres, strict=True)]
    return _ranked(rows, index, answers, (0, 1))


def _ranking(rows: Rows, index: int, config: RankingDataConfig) -> RankedRow:
    """prompt, responses [K], ranks [K]."""
    key = "data.format: ranking"
    where = rows.where(index)
    value: str | Sequence[Any] = rows.value(index, "prompt", (str, list), key=key)
    prompt = check_text(value, f"{where}: column 'prompt'")
    responses = rows.value(index, "responses", list, key=key)
    ranks = rows.value(index, "ranks", list, key=key)
    if len(responses) < 2 or len(responses) != len(ranks):
        raise UserError(
            f"{where}: columns 'responses' and 'ranks' must be lists of one length >= 2, got {len(responses)} and {len(ranks)}"
        )
    for number, rank in enumerate(ranks, 1):
        if not isinstance(rank, int) or isinstance(rank, bool):
            raise UserError(
                f"{where}: column 'ranks': number {number} must be a whole number (lower is better), got {shown(rank)}"
            )
    answers = []
    for number, response in enumerate(responses, 1):
        place = f"{where}: column 'responses', number {number}"
        if not isinstance(response, str | list):
            raise UserError(f"{place} must be text or a list of messages, got {shown(response)}")
        answers.append(_with_prompt(prompt, check_text(response, place), place, config))
    return _ranked(rows, index, answers, ranks)


def _hh(rows: Rows, index: int, config: RankingDataConfig) -> RankedRow:
    """Two dialogues. Some pairs of hh-rlhf differ before the last answer too: each answer keeps its own prompt."""
    answers = []
    for column in ("chosen", "rejected"):
        where = f"{rows.where(index)}: column {column!r}"
        dialogue = parse_dialogue(rows.value(index, column, str, key="data.format: hh-rlhf"), where)
        *prompt, answer = dialogue
        answers.append(answer_to(prompt, answer["content"], where=where, chat_template=config.chat_template))
    return RankedRow(where=rows.where(index), answers=tuple(answers), ranks=(0, 1))


PARSERS = {"preference": _preference, "ranking": _ranking, "hh-rlhf": _hh}


def _with_prompt(prompt: Text, answer: Text, where: str, config: RankingDataConfig) -> Answer:
    """Both as texts (plain) or both as messages (chat); a text is one turn of its side."""
    if not prompt:
        raise UserError(f"{where}: its prompt is empty")
    if config.chat_template:
        turns = as_messages(prompt, "user")
        return _ends_with_assistant(Answer(where=where, prompt=turns, answer=as_messages(answer, "assistant")))
    if not isinstance(prompt, str) or not isinstance(answer, str):
        raise UserError(f"{where}: chat messages need data.chat_template: true")
    return Answer(where=where, prompt=prompt, answer=answer)


def _ranked(rows: Rows, index: int, answers: Sequence[Answer], ranks: Sequence[int]) -> RankedRow:
    """With the row's optional columns."""
    where, row = rows.where(index), rows[index]
    margin = annotator = None
    if row.get("margin") is not None:
        margin = float(rows.value(index, "margin", (int, float)))
        if not math.isfinite(margin) or margin < 0:
            raise UserError(f"{where}: column 'margin' must be a finite number >= 0, got {shown(row['margin'])}")
        if len(answers) != 2:
            raise UserError(f"{where}: column 'margin' is between two answers, and the row has {len(answers)}")
    if row.get("annotator") is not None:
        annotator = str(rows.value(index, "annotator", (str, int)))
    return RankedRow(where=where, answers=tuple(answers), ranks=tuple(ranks), margin=margin, annotator=annotator)


def _split_texts(chosen: str, rejected: str, where: str) -> list[Answer]:
    """The prompt is what both begin with, up to its last space, which belongs to the answers.

    Deviation from TRL: there it may end within a word with which both answers begin, so that no answer starts as it would be sampled.
    """
    num_equal = next((i for i, (a, b) in enumerate(zip(chosen, rejected, strict=False)) if a != b), None)
    shared = min(chosen, rejected, key=len)[:num_equal]
    prompt = re.sub(r"\s\S*\Z", "", shared)
    if not prompt or chosen == rejected:
        what = "are the same" if chosen == rejected else "begin differently, and there is no column 'prompt'"
        raise UserError(f"{where}: columns 'chosen' and 'rejected' {what}, so there is no prompt with two answers")
    columns = {"chosen": chosen, "rejected": rejected}
    return [
        Answer(where=f"{where}: column {column!r}", prompt=prompt, answer=text[len(prompt) :])
        for column, text in columns.items()
    ]


def _split_conversation(value: str | Sequence[Any], where: str, config: RankingDataConfig) -> Answer:
    if isinstance(value, str):
        raise UserError(
            f"{where} is text, and there is no column 'prompt'. Without one, chosen and rejected must be lists of messages that begin "
            "with the prompt; texts that do need data.chat_template: false"
        )
    messages = check_messages(value, where)
    if not config.chat_template:
        raise UserError(f"{where}: chat messages need data.chat_template: true")
    if len(messages) < 2:
        raise UserError(f"{where}: a conversation needs a prompt and an answer, got 1 message")
    return _ends_with_assistant(Answer(where=where, prompt=messages[:-1], answer=messages[-1:]))


def _ends_with_assistant(answer: Answer) -> Answer:
    last = answer.answer[-1]
    if isinstance(last, str) or last["role"] != "assistant":
        raise UserError(f"{answer.where}: the last message must be the assistant's answer, got {shown(last)}")
    return answer


def _tokenise(parsed: Sequence[RankedRow], config: RankingDataConfig, tokenizer: Tokenizer) -> Iterator[Group | None]:
    """One group for each row; None where one of its answers is too long and such rows are left out."""
    for start in range(0, len(parsed), BATCH):
        batch = parsed[start : start + BATCH]
        answers = [answer for row in batch for answer in row.answers]
        pairs = iter(encode_answers(answers, tokenizer, chat_template=config.chat_template))
        for row in batch:
            yield _group(row, [next(pairs) for _ in row.answers], config)


def _group(row: RankedRow, pairs: Sequence[tuple[list[int], list[int]]], config: RankingDataConfig) -> Group | None:
    """The row's sequences within `data.max_tokens`; None where the row is left out.

    Where prompts are cut, all answers of the group lose the same number of tokens, so that one prompt stays one prompt. A row with an
    answer that does not fit even without its prompt is left out.
    """
    excess = max(0, max(len(prompt) + len(answer) for prompt, answer in pairs) - config.max_tokens)
    if excess and config.overlong == "error":
        raise UserError(
            f"{row.where}: prompt and answer have {excess + config.max_tokens} tokens, allowed are data.max_tokens: {config.max_tokens}. "
            "Raise it, or set data.overlong to drop or truncate_left"
        )
    if excess and (config.overlong == "drop" or excess >= min(len(prompt) for prompt, _ in pairs)):
        return None
    return Group(
        sequences=tuple([*prompt[excess:], *ids] for prompt, ids in pairs),
        answer_lengths=tuple(len(ids) for _, ids in pairs),
        ranks=row.ranks,
        where=row.where,
        margin=row.margin,
        annotator=row.annotator,
        num_cut_tokens=excess,
    )
