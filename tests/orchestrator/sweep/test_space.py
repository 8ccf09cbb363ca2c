"""What a sweep varies, read from the command line."""

from __future__ import annotations

import math
import random

import hypothesis.strategies as st
import pytest
from hypothesis import given

from configs.errors import ConfigError
from configs.yaml_file import read_value
from orchestrator.sweep.space import holds_list, override, read_space


def test_a_grid_is_every_combination_and_other_keys_hold_for_all() -> None:
    space = read_space(
        ["policy.optimizer.lr=[1e-6, 3e-6]", "ppo.steps=5", "run.seed=[0,1,2]", "policy.model=m"], distributions=False
    )
    assert space.fixed == ("ppo.steps=5", "policy.model=m")
    assert space.grid() == [
        ("policy.optimizer.lr=1e-06", "run.seed=0"),
        ("policy.optimizer.lr=1e-06", "run.seed=1"),
        ("policy.optimizer.lr=1e-06", "run.seed=2"),
        ("policy.optimizer.lr=3e-06", "run.seed=0"),
        ("policy.optimizer.lr=3e-06", "run.seed=1"),
        ("policy.optimizer.lr=3e-06", "run.seed=2"),
    ]


@pytest.mark.parametrize(
    ("key", "expected"),
    [
        ("policy.optimizer.betas", True),
        ("policy.optimizer.lr", False),
        ("rollout.stop_token_ids", True),
        ("ppo.kl.controller.coef", False),
        ("reward.functions", True),
        ("reward.functions.0.weight", False),
        ("stages.ppo.policy.optimizer.betas", True),
        ("stages.ppo.ppo.gamma", False),
        ("cluster.groups.all.gpu", False),
        ("no.such.key", False),
    ],
)
def test_the_schema_says_which_keys_hold_lists(key: str, expected: bool) -> None:
    assert holds_list(key) is expected


def test_a_key_that_holds_a_list_varies_by_a_list_of_lists() -> None:
    one = read_space(["policy.optimizer.betas=[0.9,0.95]", "run.seed=[1,2]"], distributions=False)
    assert one.fixed == ("policy.optimizer.betas=[0.9,0.95]",)
    two = read_space(["policy.optimizer.betas=[[0.9,0.95],[0.9,0.99]]"], distributions=False)
    assert two.grid() == [("policy.optimizer.betas=[0.9, 0.95]",), ("policy.optimizer.betas=[0.9, 0.99]",)]


DRAWN = ["a.log=log(1e-6,1e-4)", "b.uniform=uniform(-1,1)", "c.int=int(1,3)", "d.choice=choice(x, 2)", "e.list=[5,6]"]


def test_random_values_keep_to_their_distributions() -> None:
    rows = [dict(text.split("=") for text in row) for row in read_space(DRAWN, distributions=True).random(2000, 0)]
    logs = sorted(math.log10(float(row["a.log"])) for row in rows)
    assert logs[0] >= -6
    assert logs[-1] <= -4
    # uniform in the logarithm: half of them below the middle, not 1 in 11 as of a uniform value
    assert sum(log < -5 for log in logs) / 2000 == pytest.approx(0.5, abs=0.05)
    uniform = [float(row["b.uniform"]) for row in rows]
    assert sum(uniform) / 2000 == pytest.approx(0, abs=0.05)
    assert sum(value**2 for value in uniform) / 2000 == pytest.approx(1 / 3, abs=0.03)
    for key, expected in (("c.int", "123"), ("d.choice", "x2"), ("e.list", "56")):
        assert {row[key] for row in rows} == set(expected)
        counts = [sum(row[key] == one for row in rows) for one in expected]
        assert min(counts) > 2000 / len(expected) * 0.8


def test_a_trials_values_depend_on_seed_number_and_key_alone() -> None:
    rows = read_space(DRAWN, distributions=True).random(5, 3)
    assert read_space(DRAWN, distributions=True).random(9, 3)[:5] == rows
    fewer = read_space([DRAWN[4], DRAWN[0]], distributions=True).random(5, 3)
    assert [(row[1], row[0]) for row in fewer] == [(row[0], row[4]) for row in rows]
    assert read_space(DRAWN, distributions=True).random(5, 4) != rows


@given(
    st.recursive(
        st.none()
        | st.booleans()
        | st.integers()
        | st.floats(allow_nan=False, allow_infinity=False)
        | st.text(st.characters(min_codepoint=32, max_codepoint=126)),
        st.lists,
        max_leaves=5,
    )
)
def test_an_override_reads_back_as_its_value(value: object) -> None:
    key, _, text = override("a.b", value).partition("=")
    assert key == "a.b"
    assert read_value(text, ("a", "b"), "test")[0] == value


@pytest.mark.parametrize(
    ("arguments", "distributions", "message"),
    [
        (["a"], False, "got 'a'; allowed: key.path=value, such as policy.optimizer.lr=[1e-6,3e-6]"),
        (
            ["run.dir=[a,b]"],
            False,
            "run.dir: got '[a,b]'; allowed: not given: each trial has a folder of its own in the sweep's --dir",
        ),
        (["a=[1,2]", "a=3"], False, "a: given twice; allowed: once"),
        (["a=1"], False, "no key has several values; allowed: at least one axis, such as run.seed=[0,1,2]"),
        (["a=[]"], False, "a: got '[]'; allowed: at least one value"),
        (["a=[1,1]"], False, "a: got '[1,1]'; allowed: each value once"),
        (
            ["a=log(1e-6,1e-4)"],
            False,
            "a: got 'log(1e-6,1e-4)'; allowed: a value or a list; distributions need --random N or --search",
        ),
        (["a=log(0,1)"], True, "a: got 'log(0,1)'; allowed: log(a,b) with numbers 0 < a < b"),
        (["a=uniform(2,1)"], True, "a: got 'uniform(2,1)'; allowed: uniform(a,b) with numbers a < b"),
        (["a=int(1,2.5)"], True, "a: got 'int(1,2.5)'; allowed: int(a,b) with whole numbers a < b"),
        (["a=uniform(1)"], True, "a: got 'uniform(1)'; allowed: uniform(a,b) with numbers a < b"),
        (["a=choice()"], True, "a: got 'choice()'; allowed: at least one value"),
    ],
)
def test_bad_input_is_one_message(arguments: list[str], distributions: bool, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read_space(arguments, distributions=distributions)
    assert str(caught.value) == f"the sweep can't be read:\n  {message}"


def test_a_grid_of_too_many_trials_is_refused() -> None:
    space = read_space([f"{key}={list(range(40))}" for key in "abc"], distributions=False)
    with pytest.raises(ConfigError, match=r"got 64000 trials; allowed: at most 10000, or --random N of them"):
        space.grid()


def test_drawing_leaves_the_global_dice_alone() -> None:
    before = random.getstate()
    read_space(DRAWN, distributions=True).random(3, 0)
    assert random.getstate() == before
