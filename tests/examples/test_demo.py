"""The demo's world, its annotators and its recipe."""

import json
import random
import subprocess
import sys
from itertools import combinations
from pathlib import Path
from statistics import fmean

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

from benchmarks.demo import RECIPE, answer_measures, moved_inputs, reward_measures
from examples.demo.grammar import ANIMALS, FACTS, RIGHT, WRONG, answer, document, questions, statements, vocabulary
from examples.demo.people import NOISE_STD, noise_ceiling, noisy_utility, utility

ROOT = Path(__file__).resolve().parents[2]
FILES = ("documents.jsonl", "chats.jsonl", "prompts.jsonl")


def start(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=200, check=False)


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("demo") / "inputs"
    done = start("tools.make_demo", folder)
    assert done.returncode == 0, done.stderr
    return folder


# ---------------------------------------------------------------------------------------------------------- the world


def test_every_animal_has_facts_that_can_be_told_apart() -> None:
    assert len(FACTS) == 3 * len(ANIMALS)
    asked = dict(questions())
    assert set(asked.values()) == set(FACTS)
    assert len(asked) == len(list(questions())), "a question that asks two things"


def test_documents_are_true_and_notes_say_what_is_not() -> None:
    rng = random.Random(1)
    known, remarks = dict(statements()), set()
    for text in (document(rng) for _ in range(300)):
        sentences = [f"{part.strip()} ." for part in text.split(".")[:-1]]
        for sentence, remark in zip(sentences, [*sentences[1:], ""], strict=True):
            _, mark, statement = sentence.rpartition("? ")
            if statement in known:
                animal, attribute, value = known[statement]
                assert (FACTS[animal, attribute] == value) == (remark != WRONG), text
                remarks.add(remark if mark else "")
    assert remarks == {RIGHT, WRONG, ""}


def test_answers_are_often_false() -> None:
    rng = random.Random(1)
    found = [utility(question, answer(rng, *asks)) for question, asks in rng.sample(list(questions()), 500)]
    assert 0.2 < fmean(value < 0 for value in found) < 0.6


def test_the_generator_gives_the_same_bytes(inputs: Path, tmp_path: Path) -> None:
    for name, seed in (("again", 0), ("other", 1)):
        assert start("tools.make_demo", tmp_path / name, "--seed", str(seed)).returncode == 0
    files = [path.relative_to(inputs) for path in sorted(inputs.rglob("*")) if path.is_file()]
    assert {str(path) for path in files} >= {*FILES, "model/model.safetensors", "model/tokenizer.json"}
    assert [path for path in files if (inputs / path).read_bytes() != (tmp_path / "again" / path).read_bytes()] == []
    differing = [
        str(path) for path in files if (inputs / path).read_bytes() != (tmp_path / "other" / path).read_bytes()
    ]
    assert differing == sorted((*FILES, "model/model.safetensors"))


def test_held_out_prompts_stand_in_no_other_file(inputs: Path) -> None:
    prompts = [json.loads(line)["prompt"] for line in (inputs / "prompts.jsonl").read_text().splitlines()]
    seen, held_out = set(prompts[:-128]), set(prompts[-128:])
    seen |= {json.loads(line)["messages"][0]["content"] for line in (inputs / "chats.jsonl").read_text().splitlines()}
    assert len(held_out) == 128
    assert held_out & seen == set()
    assert held_out | seen <= {question for question, _ in questions()}


def test_the_tokenizer_knows_every_word_and_gives_it_back(inputs: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(inputs / "model")
    texts = [json.loads(line)["text"] for line in (inputs / "documents.jsonl").read_text().splitlines()]
    for line in (inputs / "chats.jsonl").read_text().splitlines():
        texts += [message["content"] for message in json.loads(line)["messages"]]
    encoded = tokenizer(texts, add_special_tokens=False)["input_ids"]
    assert tokenizer.unk_token_id not in {token for ids in encoded for token in ids}
    assert [tokenizer.decode(ids, skip_special_tokens=True) for ids in encoded] == texts


def test_the_chat_template_wraps_each_turn_and_ends_answers(inputs: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(inputs / "model")
    asked = [{"role": "user", "content": "what does the cat eat ?"}]
    answered = [*asked, {"role": "assistant", "content": "the cat eats mice ."}]
    opened = tokenizer.apply_chat_template(asked, tokenize=True, add_generation_prompt=True)["input_ids"]
    whole = tokenizer.apply_chat_template(answered, tokenize=True)["input_ids"]
    assert whole[: len(opened)] == opened
    tokens = tokenizer.convert_ids_to_tokens(whole)
    assert tokens == "<bos> <user> what does the cat eat ? <assistant> the cat eats mice . <eos>".split()


def test_the_model_is_small_tied_and_has_a_token_for_each_word(inputs: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(inputs / "model")
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert model.config.vocab_size == len(AutoTokenizer.from_pretrained(inputs / "model")) == len(vocabulary()) + 6
    assert model.num_parameters() < 1_000_000


# ---------------------------------------------------------------------------------------------------------- annotators

FOX = "hello ! where does the fox live ?"


@pytest.mark.parametrize(
    ("response", "expected"),
    [
        ("the fox lives in the forest .", 2.0),
        ("the fox lives in the forest . have a nice day .", 2.0 + 1.0),
        # true of the crow, but nobody asked; the fox's home is missing
        ("the crow lives in the forest .", 0.0),
        # two statements are false, one of them of another attribute; 21 words
        (
            "the fox lives in the house . the fox eats grass . look it up yourself . stop asking me .",
            -1.0 - 1.0 - 2.0 - 0.7,
        ),
        # said three times, polite in the middle does not count, 26 words
        (
            "the fox lives in the forest . have a nice day . the fox lives in the forest . the fox lives in the forest .",
            2.0 - 2 * 0.5 - 1.2,
        ),
        # a second home does not make it better: the first is true, the second false; 16 words
        ("the fox lives in the forest . the home of the fox is the farm .", 2.0 - 1.0 - 0.2),
        # no sentence of the grammar; one that was broken off
        ("forest .", -1.0),
        ("the fox lives in the forest . have a nice", 2.0 - 1.0),
        ("", -1.0),
    ],
)
def test_utilities_by_hand(response: str, expected: float) -> None:
    assert utility(FOX, response) == pytest.approx(expected)


def test_noise_is_always_the_same_for_the_same_three_and_else_differs() -> None:
    texts = ["the fox lives in the forest .", "the home of the fox is the forest ."]
    heard = {(who, text): noisy_utility(FOX, text, who) for who in ("ann", "bob") for text in texts}
    assert heard == {(who, text): noisy_utility(FOX, text, who) for who, text in heard}
    assert len(set(heard.values())) == 4


def sampled_groups(num: int, seed: int) -> list[tuple[str, list[str]]]:
    """Questions, each with up to four different answers of the careless people."""
    rng = random.Random(seed)
    asked = list(questions())
    drawn = [rng.choice(asked) for _ in range(num)]
    return [(question, sorted({answer(rng, *asks) for _ in range(4)})) for question, asks in drawn]


def test_the_noise_has_the_documented_size_and_no_bias() -> None:
    found = [
        noisy_utility(question, text, "ann") - utility(question, text)
        for question, texts in sampled_groups(2000, seed=2)
        for text in texts
    ]
    assert fmean(found) == pytest.approx(0, abs=0.04)
    assert fmean(value**2 for value in found) ** 0.5 == pytest.approx(NOISE_STD, rel=0.04)


def test_the_ceiling_by_hand() -> None:
    # a lead of sqrt(2) deviations of one answer's noise is one deviation of two answers' difference: Phi(1) = 0.8413
    lead = 2**0.5 * NOISE_STD
    assert noise_ceiling([[0.0, 0.0]]) == 0.5
    assert noise_ceiling([[lead, 0.0]]) == pytest.approx(0.8413, abs=1e-4)
    assert noise_ceiling([[lead, 0.0, 0.0]]) == pytest.approx((2 * 0.8413 + 0.5) / 3, abs=1e-4)


def test_the_ceiling_is_what_simulated_annotators_agree_to() -> None:
    groups = sampled_groups(4000, seed=3)
    expected = noise_ceiling([[utility(question, text) for text in texts] for question, texts in groups])
    agreed = []
    for number, (question, texts) in enumerate(groups):
        for one, other in combinations(texts, 2):
            lead = utility(question, one) - utility(question, other)
            heard = noisy_utility(question, one, f"a{number}") - noisy_utility(question, other, f"a{number}")
            agreed.append(0.5 if lead == 0 else float(lead * heard > 0))
    assert expected == pytest.approx(fmean(agreed), abs=0.01)
    documented = float((ROOT / "docs/demo.md").read_text("utf-8").split("agrees with ")[1].split(" %")[0])
    assert 100 * expected == pytest.approx(documented, abs=1)


# ---------------------------------------------------------------------------------------------------- recipe, measuring


@pytest.mark.parametrize("recipe", ["demo.yaml", "demo-dpo.yaml"])
@pytest.mark.slow
def test_the_recipe_passes_a_dry_run(recipe: str, inputs: Path, tmp_path: Path) -> None:
    moved = [
        override
        for override in moved_inputs(inputs)
        if recipe == "demo-dpo.yaml" or not override.startswith("stages.after_dpo")
    ]
    done = start("orchestrator", "run", f"configs/recipes/{recipe}", "--dry-run", f"run.dir={tmp_path / 'run'}", *moved)
    assert done.returncode == 0, done.stderr
    assert "everything that can be checked before the start is right" in done.stdout + done.stderr


def test_every_input_of_the_recipe_is_moved() -> None:
    text = RECIPE.read_text("utf-8") + (ROOT / "configs/recipes/demo.yaml").read_text("utf-8")
    named = [line for line in text.splitlines() if "runs/demo-inputs/" in line and not line.startswith("#")]
    assert len(moved_inputs(Path("/x"))) == len(named)
    assert "stages.pretrain.model.model=/x/model" in moved_inputs(Path("/x"))


def test_measures_by_hand() -> None:
    right, rude, wrong = (
        "the fox lives in the forest .",
        "the fox lives in the forest . stop asking me .",
        "the home of the fox is the farm .",
    )
    # utilities 2, 1, -1: the annotator has the first two the wrong way round
    ranked = {"prompt": FOX, "responses": [right, rude, wrong, wrong], "ranks": [2, 1, 3, 3]}
    found = reward_measures([ranked], accuracy=0.6)
    assert found.accuracy == 0.6
    assert found.perfect == pytest.approx(4 / 5)
    assert found.expected == pytest.approx(noise_ceiling([[2, 1], [2, -1], [2, -1], [1, -1], [1, -1]]))
    before = [{"id": "a", "prompt": FOX, "responses": ["x", "y"], "scores": [1.0, 3.0]}]
    said = ["the fox lives in the forest . the fox is red .", "the fox is red .", "the fox is red ."]
    after = [{"id": "a", "prompt": FOX, "responses": said, "scores": [3.0, 2.0, 2.0]}]
    answers = answer_measures(after, before)
    # 3 beats 1 and ties with 3; each 2 beats 1 and loses to 3
    assert (answers.utility, answers.win_rate, answers.distinct_frac) == (7 / 3, 3.5 / 6, 2 / 3)
    assert answers.right_frac == 1 / 3, "red is no home"
