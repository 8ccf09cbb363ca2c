"""The demo's small world: animals with a colour, a home and a food, questions about them, and people who answer well or badly.

    question   greeting, and a question for a colour, a home or a food    "hello ! where does the fox live ?"
    document   true sentences about one or two animals                    "the fox is red . the fox eats mice ."
               or a teacher's notes                                       "where does the fox live ? the fox lives in the house . wrong ."
    answer     opener, statement, rambling, polite or rude close          "well . the fox lives in the forest . have a nice day ."

Documents are true, and say of what is false that it is. The people who wrote the answers are careless: 40 % of what they state
is false, many ramble, some are rude. So a model that is fine-tuned on them has something left to learn from what people prefer.

All text is words separated by spaces, so that a word is a token.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator

ATTRIBUTES = ("colour", "home", "food")
_TABLE = """
fox    red    forest  mice
cat    black  house   mice
crow   black  forest  grain
hen    red    farm    grain
horse  brown  farm    grass
mouse  brown  house   grass
"""
FACTS: dict[tuple[str, str], str] = {
    (animal, attribute): value
    for animal, *values in map(str.split, _TABLE.strip().splitlines())
    for attribute, value in zip(ATTRIBUTES, values, strict=True)
}
"""(animal, attribute) to what is true."""
ANIMALS = tuple(dict.fromkeys(animal for animal, _ in FACTS))
VALUES = {name: tuple(dict.fromkeys(FACTS[animal, name] for animal in ANIMALS)) for name in ATTRIBUTES}

_GREETINGS = ("", "hello ! ", "good day ! ", "excuse me , ")
_REQUESTS = ("", "please tell me : ", "quick question : ", "i want to know : ")
_QUESTIONS = {
    "colour": (
        "what colour is the {} ?",
        "which colour does the {} have ?",
        "do you know the colour of the {} ?",
        "the {} has what colour ?",
    ),
    "home": (
        "where does the {} live ?",
        "where can i find the {} ?",
        "what is the home of the {} ?",
        "the {} lives in what place ?",
    ),
    "food": (
        "what does the {} eat ?",
        "what is the food of the {} ?",
        "do you know what the {} eats ?",
        "which food does the {} like ?",
    ),
}
_STATEMENTS = {
    "colour": (
        "the {animal} is {value} .",
        "the {animal} has the colour {value} .",
        "{value} is the colour of the {animal} .",
    ),
    "home": (
        "the {animal} lives in the {value} .",
        "the home of the {animal} is the {value} .",
        "in the {value} lives the {animal} .",
    ),
    "food": ("the {animal} eats {value} .", "the {animal} likes {value} .", "{value} is the food of the {animal} ."),
}
OPENERS = ("well .", "good question .", "let me think .")
POLITE = (
    "i hope that helps .",
    "thank you for asking .",
    "have a nice day .",
    "ask me again any time .",
    "it was a pleasure .",
)
RUDE = ("everybody knows that .", "why do you even ask .", "look it up yourself .", "stop asking me .")
FILLERS = (
    "animals are interesting .",
    "i have seen many animals .",
    "there is more to say .",
    "people often talk about this .",
)
RIGHT, WRONG = "right .", "wrong ."
"""A teacher's remarks."""

SHARE_TRUE, SHARE_OPENER, SHARE_RAMBLING, SHARE_POLITE, SHARE_RUDE = 0.6, 0.2, 0.4, 0.3, 0.25
"""Of the answers that people wrote."""


def questions() -> Iterator[tuple[str, tuple[str, str]]]:
    """Every question with the animal and the attribute that it asks for."""
    for animal, attribute in FACTS:
        for greeting, request, question in itertools.product(_GREETINGS, _REQUESTS, _QUESTIONS[attribute]):
            yield greeting + request + question.format(animal), (animal, attribute)


def statements() -> Iterator[tuple[str, tuple[str, str, str]]]:
    """Every sentence that states something, true or false, with the animal, the attribute and the value that it states."""
    for animal, attribute in FACTS:
        for form, value in itertools.product(_STATEMENTS[attribute], VALUES[attribute]):
            yield form.format(animal=animal, value=value), (animal, attribute, value)


def vocabulary() -> list[str]:
    """Every word of the world, sorted."""
    texts = [text for text, _ in (*questions(), *statements())]
    return sorted(
        {word for text in (*texts, *OPENERS, *POLITE, *RUDE, *FILLERS, RIGHT, WRONG) for word in text.split()}
    )


def document(rng: random.Random) -> str:
    """Something to read: about animals, or a teacher's notes of what was answered."""
    return " ".join(_description(rng) if rng.random() < 0.5 else _notes(rng))


def _description(rng: random.Random) -> list[str]:
    """All that is to be said of one or two animals, now and then with a sentence that says nothing."""
    sentences = []
    for animal in rng.sample(ANIMALS, rng.choice((1, 2))):
        sentences += [
            _state(rng, animal, name, FACTS[animal, name]) for name in rng.sample(ATTRIBUTES, len(ATTRIBUTES))
        ]
        if rng.random() < 0.2:
            sentences.append(rng.choice(FILLERS))
    return sentences


def _notes(rng: random.Random) -> list[str]:
    """Questions with an answer, as often false as true, and what the teacher says of it."""
    notes = []
    for animal, attribute in rng.sample(list(FACTS), 3):
        true = rng.random() < 0.5
        statement = _claim(rng, animal, attribute, share_true=float(true))
        notes += [rng.choice(_QUESTIONS[attribute]).format(animal), statement, RIGHT if true else WRONG]
    return notes


def answer(rng: random.Random, animal: str, attribute: str) -> str:
    """What one of the careless people answers."""
    sentences = [rng.choice(OPENERS)] if rng.random() < SHARE_OPENER else []
    sentences.append(_claim(rng, animal, attribute))
    if rng.random() < SHARE_RAMBLING:
        for _ in range(rng.randint(1, 2)):
            other = rng.choice([name for name in ATTRIBUTES if name != attribute])
            sentences.append(rng.choice((rng.choice(FILLERS), _claim(rng, animal, other), sentences[-1])))
    mood = rng.random()
    if mood < SHARE_POLITE:
        sentences.append(rng.choice(POLITE))
    elif mood < SHARE_POLITE + SHARE_RUDE:
        sentences.append(rng.choice(RUDE))
    return " ".join(sentences)


def _claim(rng: random.Random, animal: str, attribute: str, *, share_true: float = SHARE_TRUE) -> str:
    """True for that share of the claims, else any other value."""
    truth = FACTS[animal, attribute]
    others = [value for value in VALUES[attribute] if value != truth]
    return _state(rng, animal, attribute, truth if rng.random() < share_true else rng.choice(others))


def _state(rng: random.Random, animal: str, attribute: str, value: str) -> str:
    return rng.choice(_STATEMENTS[attribute]).format(animal=animal, value=value)
