"""Token sequences with a loss mask: what stages `pretrain` and `sft` learn from.

Legend: `N` sequences, `T` tokens of one sequence, or of all, flat.
"""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

from actors.data.conversations import EncodedConversation, encode_conversations
from actors.data.files import read_rows
from actors.data.rows import Rows
from actors.data.tokenizer import BATCH, Tokenizer, encode_rendered, require_chat_template, start_token_ids
from actors.errors import UserError
from configs.schema.data import ConversationDataConfig, TextDataConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenSequence:
    """What the model reads at once, and which of it is learned."""

    token_ids: list[int]
    """[T]"""
    loss_mask: list[bool]
    """[T] token t has loss. Never the first, which nothing stands before."""
    where: str
    """`file:line`; of a document that became several sequences also which piece."""
    num_cut_tokens: int = 0
    """Tokens that the row has lost at its start (`data.overlong: truncate_left`)."""

    def __post_init__(self) -> None:
        assert len(self.token_ids) == len(self.loss_mask) and self.token_ids, self.where
        assert not self.loss_mask[0], f"{self.where}: the first token can't be predicted"


class SequenceDataset:
    """All sequences of a stage, tokenised once: 5 bytes a token."""

    def __init__(self, rows: Iterable[Sequence[TokenSequence]], *, first_held_out: int, fingerprint: str) -> None:
        """`rows` are the sequences of each row, none where it is left out; those of row `first_held_out` and after it are held out."""
        self._tokens = array("i")
        self._mask = bytearray()
        self._bounds = [0]
        self._wheres: list[str] = []
        self._cuts: list[int] = []
        self.num_loss_tokens: list[int] = []
        """[N] tokens of each sequence that have loss."""
        self.num_dropped = 0
        """Rows left out because they were too long."""
        num_train = None
        self.num_rows = 0
        """Rows read, those left out included."""
        for index, sequences in enumerate(rows):
            self.num_rows += 1
            if index == first_held_out:
                num_train = len(self)
            self.num_dropped += not sequences
            for sequence in sequences:
                self._add(sequence)
        num_train = len(self) if num_train is None else num_train
        self.train = range(num_train)
        """Sequences that are trained on."""
        self.held_out = range(num_train, len(self))
        """Sequences that are only evaluated on: those of the last `held_out_rows` rows."""
        digest = hashlib.sha256(fingerprint.encode())
        # as they lie in memory: no copy
        digest.update(self._tokens)
        digest.update(self._mask)
        digest.update(repr((self._bounds, num_train)).encode())
        self.fingerprint = digest.hexdigest()
        """sha256 of the rows read, every token, the loss mask, where sequences end and what is held out."""

    def _add(self, sequence: TokenSequence) -> None:
        self._tokens.extend(sequence.token_ids)
        self._mask.extend(sequence.loss_mask)
        self._bounds.append(len(self._tokens))
        self._wheres.append(sequence.where)
        self._cuts.append(sequence.num_cut_tokens)
        self.num_loss_tokens.append(sum(sequence.loss_mask))

    def __len__(self) -> int:
        return len(self._bounds) - 1

    @property
    def lengths(self) -> list[int]:
        """[N] tokens of each sequence."""
        return [after - before for before, after in pairwise(self._bounds)]

    @property
    def num_cut_tokens(self) -> int:
        """Tokens cut off, of all sequences."""
        return sum(self._cuts)

    def sequence(self, index: int) -> TokenSequence:
        """Sequence `index`."""
        start, end = self._bounds[index], self._bounds[index + 1]
        return TokenSequence(
            token_ids=self._tokens[start:end].tolist(),
            loss_mask=[bool(value) for value in self._mask[start:end]],
            where=self._wheres[index],
            num_cut_tokens=self._cuts[index],
        )


def load_texts(config: TextDataConfig, tokenizer: Tokenizer) -> SequenceDataset:
    """Documents: each behind the tokenizer's start tokens and with an end token; every token but a sequence's first has loss.

    A document that is too long becomes consecutive sequences (`data.overlong: split`): joined they are the document, and only the last one
    has the end token.

    Raises:
        UserError: for anything wrong with the file or a row, with file and line; for a document that is too long where `data.overlong` is
            `error`; where nothing is left to train on, or of what should be held out.
    """
    rows = read_rows(config)
    first_held_out = _first_held_out(rows, config)
    return _with_some_left(
        SequenceDataset(
            _documents(rows, config, tokenizer), first_held_out=first_held_out, fingerprint=rows.fingerprint
        ),
        rows,
        config,
    )


def load_conversations(config: ConversationDataConfig, tokenizer: Tokenizer) -> SequenceDataset:
    """Conversations in the model's chat template, or prompts with their completions as plain text. The assistant's tokens and its end
    tokens have loss (of format `prompt-completion` those of the completion alone), nothing else has.

    Where the oldest tokens are cut off (`data.overlong: truncate_left`), a row whose last answer would lose its start is left out.

    Raises:
        UserError: for anything wrong with the file, a row or its conversation, with file and line; for a conversation that is too long
            where `data.overlong` is `error`; where nothing is left to train on, or of what should be held out.
    """
    rows = read_rows(config)
    first_held_out = _first_held_out(rows, config)
    if config.chat_template:
        require_chat_template(tokenizer, "data.chat_template")
    sequences = (_fitted(row, config) for row in encode_conversations(rows, config, tokenizer))
    dataset = SequenceDataset(sequences, first_held_out=first_held_out, fingerprint=rows.fingerprint)
    return _with_some_left(dataset, rows, config)


def split_document(token_ids: list[int], max_tokens: int) -> list[list[int]]:
    """Consecutive pieces of at most `max_tokens` (>= 2), all but the last as long as may be.

    The last never is a single token, which nothing would predict: it takes one more from the piece before it, where that has two to spare.
    """
    starts = list(range(0, len(token_ids), max_tokens))
    if len(token_ids) % max_tokens == 1 and len(starts) > 1 and max_tokens > 2:
        starts[-1] -= 1
    return [token_ids[start:end] for start, end in pairwise([*starts, len(token_ids)])]


def _documents(rows: Rows, config: TextDataConfig, tokenizer: Tokenizer) -> Iterator[list[TokenSequence]]:
    start = start_token_ids(tokenizer)
    for first in range(0, len(rows), BATCH):
        batch = range(first, min(first + BATCH, len(rows)))
        texts = [rows.value(index, config.text_column, str, key="data.text_column") for index in batch]
        for index, ids in zip(batch, encode_rendered(tokenizer, texts), strict=True):
            if not ids:
                raise UserError(f"{rows.where(index)}: column {config.text_column!r} has no token")
            yield _pieces([*start, *ids, tokenizer.eos_token_id], rows.where(index), config)


def _pieces(token_ids: list[int], where: str, config: TextDataConfig) -> list[TokenSequence]:
    if len(token_ids) > config.max_tokens and config.overlong != "split":
        if config.overlong == "drop":
            return []
        raise UserError(
            f"{where}: the document has {len(token_ids)} tokens, allowed are data.max_tokens: {config.max_tokens}. "
            "Raise it, or set data.overlong to split or drop"
        )
    pieces = split_document(token_ids, config.max_tokens)
    return [
        TokenSequence(
            token_ids=ids,
            loss_mask=[False] + [True] * (len(ids) - 1),
            where=where if len(pieces) == 1 else f"{where}, piece {number} of {len(pieces)}",
        )
        for number, ids in enumerate(pieces, 1)
    ]


def _fitted(row: EncodedConversation, config: ConversationDataConfig) -> list[TokenSequence]:
    """The row within `data.max_tokens`, or nothing where it is left out."""
    excess = max(0, len(row.token_ids) - config.max_tokens)
    if excess and config.overlong == "error":
        raise UserError(
            f"{row.where}: the conversation has {len(row.token_ids)} tokens, allowed are data.max_tokens: {config.max_tokens}. "
            "Raise it, or set data.overlong to drop or truncate_left"
        )
    if excess and (config.overlong == "drop" or excess >= row.last_answer):
        return []
    return [
        TokenSequence(
            token_ids=row.token_ids[excess:],
            # what comes first now is predicted from nothing
            loss_mask=[False, *row.loss_mask[excess + 1 :]],
            where=row.where,
            num_cut_tokens=excess,
        )
    ]


def _first_held_out(rows: Rows, config: TextDataConfig | ConversationDataConfig) -> int:
    if config.held_out_rows >= len(rows):
        raise UserError(
            f"data.held_out_rows: {config.held_out_rows} of the {len(rows)} rows of {rows.paths} leaves none to train on"
        )
    return len(rows) - config.held_out_rows


def _with_some_left(
    dataset: SequenceDataset, rows: Rows, config: TextDataConfig | ConversationDataConfig
) -> SequenceDataset:
    for kind, sequences in (("to train on", dataset.train), ("held out", dataset.held_out)):
        if not sequences and (kind == "to train on" or config.held_out_rows):
            raise UserError(
                f"data.path: no row {kind} is left of {rows.paths}: {dataset.num_dropped} rows are longer than data.max_tokens "
                f"{config.max_tokens}"
            )
    return dataset
