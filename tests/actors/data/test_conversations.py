"""Conversations: which tokens are learned, and what a user is told of bad rows."""

from collections.abc import Callable
from typing import Any

import pytest

from actors.data import conversations as module
from actors.data.chats import split_behind_end
from actors.data.prompts import PromptDataset
from actors.data.sequences import SequenceDataset, TokenSequence, load_conversations
from actors.data.tokenizer import Tokenizer, load_tokenizer
from actors.errors import UserError
from configs.schema.data import ConversationDataConfig, PromptDataConfig
from tests.tiny_models import EOS_ID

Write = Callable[[list[dict[str, Any]]], str]

TURNS = "{% for m in messages %}<{{ m['role'] }}> {{ m['content'] }}{{ eos_token }}\n{% endfor %}"
OPEN = "{% if add_generation_prompt %}<assistant>{% endif %}"


def system(text: str) -> dict[str, str]:
    return {"role": "system", "content": text}


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def assistant(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


TWO_TURNS = [system("you good"), user("hello"), assistant("bye cat"), user("why ?"), assistant("it is hot")]


def load(path: str, tokenizer: Tokenizer, **config: Any) -> SequenceDataset:
    return load_conversations(ConversationDataConfig(path=path, **{"held_out_rows": 0, **config}), tokenizer)


def pairs(path: str, tokenizer: Tokenizer, **config: Any) -> SequenceDataset:
    return load(path, tokenizer, format="prompt-completion", **config)


def marked(tokenizer: Tokenizer, sequence: TokenSequence) -> str:
    """Word by word, those with loss in brackets."""
    tokens = tokenizer.convert_ids_to_tokens(sequence.token_ids)
    return " ".join(f"[{t}]" if m else t for t, m in zip(tokens, sequence.loss_mask, strict=True))


def test_each_answer_and_its_end_token_is_learned_and_nothing_else(write_rows: Write, tokenizer: Tokenizer) -> None:
    path = write_rows([{"messages": TWO_TURNS}])
    dataset = load(path, tokenizer)
    sequence = dataset.sequence(0)
    assert marked(tokenizer, sequence) == (
        "<bos> <system> you good <eos> <user> hello <eos> <assistant> [bye] [cat] [<eos>] "
        "<user> why ? <eos> <assistant> [it] [is] [hot] [<eos>]"
    )
    learned = [t for t, m in zip(sequence.token_ids, sequence.loss_mask, strict=True) if m]
    assert tokenizer.decode(learned) == "bye cat <eos> it is hot <eos>"
    assert (sequence.where, dataset.lengths, dataset.num_loss_tokens) == (f"{path}:1", [21], [7])


def test_the_tokens_are_those_of_the_whole_conversation(write_rows: Write, tokenizer: Tokenizer) -> None:
    whole = tokenizer.apply_chat_template(TWO_TURNS, tokenize=True, return_dict=False)
    assert load(write_rows([{"messages": TWO_TURNS}]), tokenizer).sequence(0).token_ids == whole


def test_an_answer_follows_the_prompt_that_ppo_gives(write_rows: Write, tokenizer: Tokenizer) -> None:
    path = write_rows([{"messages": TWO_TURNS, "prompt": TWO_TURNS[:-1]}])
    prompt = PromptDataset.load(PromptDataConfig(path=path), tokenizer).row(0).token_ids
    assert load(path, tokenizer).sequence(0).token_ids[: len(prompt)] == prompt


def test_the_line_break_behind_an_end_token_is_not_learned(write_rows: Write, tokenizer_folder: str) -> None:
    from tokenizers import AddedToken

    tokenizer = load_tokenizer(tokenizer_folder)
    tokenizer.add_tokens([AddedToken("\n", special=True)])  # the words' tokenizer has no token for it
    tokenizer.chat_template = TURNS + OPEN
    sequence = load(write_rows([{"messages": TWO_TURNS[1:]}]), tokenizer).sequence(0)
    assert marked(tokenizer, sequence) == (
        "<user> hello <eos> \n <assistant> [bye] [cat] [<eos>] \n <user> why ? <eos> \n <assistant> [it] [is] [hot] [<eos>]"
    )


def test_only_behind_the_last_answer_an_end_token_is_added(write_rows: Write, tokenizer_folder: str) -> None:
    tokenizer = load_tokenizer(tokenizer_folder)
    tokenizer.chat_template = TURNS.replace("{{ eos_token }}\n", " ") + OPEN
    sequence = load(write_rows([{"messages": TWO_TURNS[1:]}]), tokenizer).sequence(0)
    assert marked(tokenizer, sequence) == (
        "<user> hello <assistant> [bye] [cat] <user> why ? <assistant> [it] [is] [hot] [<eos>]"
    )


def test_an_end_token_that_also_pads_is_learned(write_rows: Write, tokenizer_folder: str) -> None:
    tokenizer = load_tokenizer(tokenizer_folder)
    tokenizer.pad_token = tokenizer.eos_token
    sequence = load(write_rows([{"messages": TWO_TURNS}]), tokenizer).sequence(0)
    assert (sequence.token_ids[-1], sequence.loss_mask[-1]) == (EOS_ID, True)


def test_what_follows_the_last_answer_is_left_out(write_rows: Write, tokenizer: Tokenizer) -> None:
    dataset = load(write_rows([{"messages": [*TWO_TURNS, user("thanks")]}, {"messages": TWO_TURNS}]), tokenizer)
    assert dataset.sequence(0).token_ids == dataset.sequence(1).token_ids


def test_an_empty_answer_is_its_end_token(write_rows: Write, tokenizer: Tokenizer) -> None:
    sequence = load(write_rows([{"messages": [user("why"), assistant("")]}]), tokenizer).sequence(0)
    assert marked(tokenizer, sequence) == "<bos> <user> why <eos> <assistant> [<eos>]"


COMPLETIONS: dict[str, dict[str, Any]] = {
    "text": {"prompt": "why ?", "completion": "it is hot"},
    "messages": {"prompt": [user("why ?")], "completion": [assistant("it is hot")]},
    "text and messages": {"prompt": "why ?", "completion": [assistant("it is hot")]},
}


@pytest.mark.parametrize("row", COMPLETIONS.values(), ids=COMPLETIONS)
def test_completions_in_every_form_are_the_same_sequence(
    write_rows: Write, tokenizer: Tokenizer, row: dict[str, Any]
) -> None:
    sequence = pairs(write_rows([row]), tokenizer).sequence(0)
    assert marked(tokenizer, sequence) == "<bos> <user> why ? <eos> <assistant> [it] [is] [hot] [<eos>]"


def test_answers_within_a_prompt_are_not_learned(write_rows: Write, tokenizer: Tokenizer) -> None:
    row = {"prompt": TWO_TURNS[:4], "completion": [TWO_TURNS[4], user("who"), assistant("we")]}
    sequence = pairs(write_rows([row]), tokenizer).sequence(0)
    assert marked(tokenizer, sequence) == (
        "<bos> <system> you good <eos> <user> hello <eos> <assistant> bye cat <eos> <user> why ? <eos> "
        "<assistant> [it] [is] [hot] [<eos>] <user> who <eos> <assistant> [we] [<eos>]"
    )


def test_plain_text_needs_no_template_and_gets_an_end_token(write_rows: Write, tokenizer_folder: str) -> None:
    tokenizer = load_tokenizer(tokenizer_folder)
    tokenizer.chat_template = None
    path = write_rows([COMPLETIONS["text"], {"prompt": "why", "completion": "no <eos>"}])
    dataset = pairs(path, tokenizer, chat_template=False)
    assert marked(tokenizer, dataset.sequence(0)) == "why ? [it] [is] [hot] [<eos>]"
    assert marked(tokenizer, dataset.sequence(1)) == "why [no] [<eos>]"
    with pytest.raises(UserError, match=r"data\.chat_template: .* has no chat template"):
        pairs(path, tokenizer)


def test_plain_text_starts_with_the_tokenizers_start_token(write_rows: Write, tokenizer_folder: str) -> None:
    from tokenizers.processors import TemplateProcessing

    tokenizer = load_tokenizer(tokenizer_folder)
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", 1)])
    sequence = pairs(write_rows([COMPLETIONS["text"]]), tokenizer, chat_template=False).sequence(0)
    assert marked(tokenizer, sequence) == "<bos> why ? [it] [is] [hot] [<eos>]"


def test_the_first_token_is_never_learned(write_rows: Write, tokenizer_folder: str) -> None:
    tokenizer = load_tokenizer(tokenizer_folder)
    # of blanks the words' tokenizer makes no token
    sequence = pairs(write_rows([{"prompt": " ", "completion": "it is"}]), tokenizer, chat_template=False).sequence(0)
    assert marked(tokenizer, sequence) == "it [is] [<eos>]"


# two turns are 21 tokens, its last answer with its end token 4; a single one 10
LONG: list[dict[str, Any]] = [{"messages": TWO_TURNS}, {"messages": TWO_TURNS[3:]}]


def test_long_conversations_stop_the_run(write_rows: Write, tokenizer: Tokenizer) -> None:
    path = write_rows(LONG[::-1])
    assert len(load(path, tokenizer, max_tokens=21)) == 2
    with pytest.raises(UserError) as told:
        load(path, tokenizer, max_tokens=20)
    assert str(told.value) == (
        f"{path}:2: the conversation has 21 tokens, allowed are data.max_tokens: 20. "
        "Raise it, or set data.overlong to drop or truncate_left"
    )


def test_long_conversations_are_left_out_and_counted(write_rows: Write, tokenizer: Tokenizer) -> None:
    dataset = load(write_rows(LONG), tokenizer, max_tokens=20, overlong="drop")
    assert (len(dataset), dataset.num_rows, dataset.num_dropped, dataset.lengths) == (1, 2, 1, [10])


def test_long_conversations_lose_their_oldest_tokens(write_rows: Write, tokenizer: Tokenizer) -> None:
    dataset = load(write_rows(LONG), tokenizer, max_tokens=11, overlong="truncate_left")
    # the first token of what is left has nothing before it, though it is the assistant's
    assert marked(tokenizer, dataset.sequence(0)) == (
        "cat [<eos>] <user> why ? <eos> <assistant> [it] [is] [hot] [<eos>]"
    )
    assert [dataset.sequence(i).num_cut_tokens for i in range(2)] == [10, 0]
    assert (dataset.num_cut_tokens, dataset.num_dropped) == (10, 0)


@pytest.mark.parametrize(("max_tokens", "num_kept"), [(5, 2), (4, 0), (3, 0)])
def test_a_conversation_that_would_lose_its_last_answers_start_is_left_out(
    write_rows: Write, tokenizer: Tokenizer, max_tokens: int, num_kept: int
) -> None:
    rows = [*LONG, {"messages": [user("a"), assistant("")]}]
    dataset = load(write_rows(rows), tokenizer, max_tokens=max_tokens, overlong="truncate_left")
    assert len(dataset) == num_kept + 1  # the last one's answer is its end token alone


def test_a_template_that_rewrites_earlier_answers_is_told(write_rows: Write, tokenizer_folder: str) -> None:
    tokenizer = load_tokenizer(tokenizer_folder)
    # as models that think: of all answers but the last the thoughts are left out
    thoughts = "{% if loop.last and m['role'] == 'assistant' %}minus {% endif %}"
    tokenizer.chat_template = TURNS.replace("{{ m['content'] }}", thoughts + "{{ m['content'] }}") + OPEN
    path = write_rows([{"messages": TWO_TURNS[3:]}, {"messages": TWO_TURNS}])
    with pytest.raises(UserError) as told:
        load(path, tokenizer)
    assert str(told.value) == (
        f"{path}:2: column 'messages': the model's chat template writes an earlier turn of the assistant otherwise once message 4 "
        "follows, so the turns can't be learned from one text. Give each turn a row of its own, with data.format: prompt-completion"
    )


def test_a_template_that_rewrites_the_prompt_is_told(write_rows: Write, tokenizer_folder: str) -> None:
    tokenizer = load_tokenizer(tokenizer_folder)
    tokenizer.chat_template = "{{ messages | length }} {% for m in messages %}{{ m['content'] }} {% endfor %}"
    with pytest.raises(UserError, match=r":1: column 'messages': the model's chat template writes another beginning"):
        load(write_rows([{"messages": TWO_TURNS}]), tokenizer)


def test_batches_change_nothing(write_rows: Write, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_rows([*LONG, *LONG, LONG[0]])
    whole = load(path, tokenizer)
    monkeypatch.setattr(module, "BATCH", 2)
    split = load(path, tokenizer)
    assert [split.sequence(i) for i in range(5)] == [whole.sequence(i) for i in range(5)]
    assert split.fingerprint == whole.fingerprint


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("hot<eos>", ("hot<eos>", "")),
        ("hot<eos>\n", ("hot<eos>", "\n")),
        ("a<eos>b<eos> ", ("a<eos>b<eos>", " ")),
        ("a<eos>b", ("a<eos>b", "")),
        ("a \n", ("a \n", "")),
        ("", ("", "")),
    ],
)
def test_an_answer_ends_with_its_end_token(tokenizer: Tokenizer, answer: str, expected: tuple[str, str]) -> None:
    assert split_behind_end(answer, tokenizer) == expected


PAIR: dict[str, Any] = {"format": "prompt-completion"}
PLAIN = {**PAIR, "chat_template": False}
NO_ANSWER = "has no message of the assistant, so there is nothing to learn"
BAD_ROWS: list[tuple[dict[str, Any], dict[str, Any], str]] = [
    ({"text": "x"}, {}, "there is no column 'messages' (data.format: conversation); the columns are 'text'"),
    ({"messages": "x"}, {}, "column 'messages' must be a list, got text 'x'"),
    ({"messages": []}, {}, "column 'messages' is empty"),
    ({"messages": ["x"]}, {}, "column 'messages': message 1 must be an object with role and content, got text 'x'"),
    (
        {"messages": [user("x"), {"role": "assistant", "content": None}]},
        {},
        "column 'messages': message 2: 'content' must be text, got null",
    ),
    (
        {"messages": [user("x"), {**assistant(""), "tool_calls": [{"name": "f"}]}]},
        {},
        "column 'messages': message 2: 'tool_calls' are not supported, allowed are role and content",
    ),
    ({"messages": [user("x")]}, {}, f"column 'messages' {NO_ANSWER}"),
    (
        {"messages": [assistant("x"), user("y"), assistant("z")]},
        {},
        "column 'messages': the first message must not be the assistant's, as it answers nothing",
    ),
    (
        {"prompt": "x"},
        PAIR,
        "there is no column 'completion' (data.format: prompt-completion); the columns are 'prompt'",
    ),
    ({"prompt": "", "completion": "x"}, PAIR, "column 'prompt' is empty"),
    ({"prompt": [], "completion": "x"}, PAIR, "column 'prompt' is empty"),
    ({"prompt": "x", "completion": 3}, PAIR, "column 'completion' must be text or a list, got a number 3"),
    ({"prompt": TWO_TURNS[:3], "completion": [user("x")]}, PAIR, f"column 'completion' {NO_ANSWER}"),
    ({"prompt": "x", "completion": [assistant("y")]}, PLAIN, "chat messages need data.chat_template: true"),
    (
        {"prompt": " ", "completion": ""},
        PLAIN,
        "nothing stands before the answer's only token, so there is nothing to learn",
    ),
]


@pytest.mark.parametrize(("row", "config", "message"), BAD_ROWS)
def test_a_bad_row_is_told_with_its_line(
    write_rows: Write, tokenizer: Tokenizer, row: dict[str, Any], config: dict[str, Any], message: str
) -> None:
    good = {"messages": TWO_TURNS, "prompt": "x", "completion": "y"}
    path = write_rows([good, row])
    with pytest.raises(UserError) as told:
        load(path, tokenizer, **config)
    assert str(told.value) == f"{path}:2: {message}"


def test_a_conversation_that_the_template_refuses_is_told(write_rows: Write, tokenizer_folder: str) -> None:
    tokenizer = load_tokenizer(tokenizer_folder)
    tokenizer.chat_template = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system') }}{% endif %}"
    path = write_rows([{"messages": TWO_TURNS}])
    with pytest.raises(UserError) as told:
        load(path, tokenizer)
    assert str(told.value) == (
        f"{path}:1: column 'messages': the model's chat template refuses this conversation: no system"
    )
