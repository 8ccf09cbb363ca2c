"""Dialogues as Anthropic's hh-rlhf writes them: `\\n\\nHuman: ...\\n\\nAssistant: ...` (Bai et al. 2022)."""

from __future__ import annotations

import re
from typing import TypedDict

from actors.errors import UserError

START = "\n\nHuman:"
ROLES = {"Human": "user", "Assistant": "assistant"}
_TURN = re.compile(r"\n\n(Human|Assistant):")


class Message(TypedDict):
    """One turn, as chat templates take it."""

    role: str
    content: str


def parse_dialogue(text: str, where: str) -> list[Message]:
    """The dialogue's turns, in turn from the user and the assistant, contents without surrounding space.

    Some dialogues have the same speaker twice in a row; chat templates ask for alternation, so these become one turn, a blank line between.

    Raises:
        UserError: where the text does not start with `\\n\\nHuman:` or has no assistant turn at its end. `where` leads the message.
    """
    if not text.startswith(START):
        raise UserError(f"{where}: a dialogue must start with {START!r}, got {text[:40]!r}")
    speakers_and_contents = _TURN.split(text)[1:]
    messages: list[Message] = []
    for speaker, content in zip(speakers_and_contents[::2], speakers_and_contents[1::2], strict=True):
        role = ROLES[speaker]
        if messages and messages[-1]["role"] == role:
            messages[-1]["content"] = f"{messages[-1]['content']}\n\n{content.strip()}".strip()
        else:
            messages.append({"role": role, "content": content.strip()})
    if messages[-1]["role"] != "assistant":
        raise UserError(
            f"{where}: a dialogue must end with an answer ('\\n\\nAssistant: ...'), it ends with {text[-40:]!r}"
        )
    return messages


def plain_text(messages: list[Message]) -> str:
    """The dialogue as hh-rlhf writes it; of a prompt, up to the answer: `\\n\\nAssistant:`. Other roles (`system`) keep their name."""
    speakers = {role: speaker for speaker, role in ROLES.items()}
    text = "".join(f"\n\n{speakers.get(turn['role'], turn['role'])}: {turn['content']}" for turn in messages)
    return text if messages[-1]["role"] == "assistant" else f"{text}\n\nAssistant:"
