"""A conversation with a model in this process: one vLLM engine, answers as they are sampled.

Imports of torch and of everything above it stand inside methods: see `actors.role`.
"""

from __future__ import annotations

from collections.abc import Generator
from typing import TYPE_CHECKING

from actors.context import RankContext
from actors.errors import UserError
from configs.schema.rollout import RolloutConfig

if TYPE_CHECKING:
    from actors.data.hh import Message

LONGEST_ANSWER = 256
"""In tokens, where nothing else is asked for."""
UNFINISHED = "\N{REPLACEMENT CHARACTER}"
"""What bytes of a character that is not yet whole are decoded to."""


class Conversation:
    """Turns so far, and the model that answers."""

    def __init__(
        self, model: str, rollout: RolloutConfig, context: RankContext, *, max_model_len: int, max_tokens: int | None
    ) -> None:
        """Loads the model. `max_model_len` is what conversation and answer may have together, in tokens; at most the model's window.
        `max_tokens` is the longest answer; where it is not given, 256 or half of that.

        Raises:
            UserError: for a model that is none, or that vLLM cannot serve.
        """
        from actors.data.tokenizer import end_token_ids, load_tokenizer
        from actors.models.checks import read_model_config, window
        from actors.rollout_backend import Sampling, VLLMBackend

        positions = window(read_model_config(model))
        self.limit = max_model_len if positions is None else min(max_model_len, positions)
        if max_tokens is None:
            max_tokens = min(LONGEST_ANSWER, self.limit // 2)
        if max_tokens >= self.limit:
            raise UserError(f"--max-tokens: got {max_tokens}; allowed: less than {self.limit}, the window of {model}")
        self._tokenizer = load_tokenizer(model)
        self._sampling = Sampling(
            temperature=rollout.temperature,
            max_tokens=max_tokens,
            end_token_ids=end_token_ids(model, self._tokenizer),
        )
        self._seed = context.seed
        self._backend = VLLMBackend(model, rollout, context, max_model_len=self.limit, own_weights=True)
        self.messages: list[Message] = []
        self.forgotten = 0
        """Messages that the last answer had no room for."""

    def answer(self, text: str) -> Generator[str, None, None]:
        """Adds the user's turn and yields the answer piece by piece. What was yielded is the assistant's turn, also where the iterator is
        closed before its end. Oldest turns are forgotten where the window is full (`forgotten` says how many messages)."""
        from actors.rollout_backend import Request

        self.messages.append({"role": "user", "content": text})
        self.forgotten = 0
        while len(prompt := self._prompt()) + self._sampling.max_tokens > self.limit:
            if len(self.messages) == 1:
                self.messages.pop()
                raise UserError(f"this turn alone has {len(prompt)} tokens; the window leaves no room for an answer")
            # a user's turn goes with its answer; what the system says stays
            first = 1 if self.messages[0]["role"] == "system" else 0
            del self.messages[first : first + 2]
            self.forgotten += 2
        self._seed += 1
        said = ""
        tokens: list[int] = []
        try:
            for piece in self._backend.stream(Request(prompt=tuple(prompt), seed=self._seed), self._sampling):
                tokens += piece
                whole = self._tokenizer.decode(tokens, skip_special_tokens=True)
                if len(whole) > len(said) and not whole.endswith(UNFINISHED):
                    new, said = whole[len(said) :], whole
                    yield new
        finally:
            self.messages.append({"role": "assistant", "content": said})

    def _prompt(self) -> list[int]:
        """The conversation in tokens, open for the answer; without a chat template its texts one behind the other."""
        from actors.data.tokenizer import encode_plain, encode_rendered, render_chat

        if self._tokenizer.chat_template:
            text = render_chat(self._tokenizer, self.messages, where="this conversation", open_answer=True)
            return encode_rendered(self._tokenizer, [text])[0]
        return encode_plain(self._tokenizer, [" ".join(message["content"] for message in self.messages)])[0]
