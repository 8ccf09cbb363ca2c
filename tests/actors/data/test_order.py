"""The stream of prompts: every row once per epoch, in an order that the seed alone decides."""

import hashlib
import itertools
import random
import subprocess
import sys
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors.data.order import prompt_order, prompts_of_step


def stream(num_steps: int, *, per_step: int, num: int, seed: int = 0, shuffle: bool = True) -> list[int]:
    steps = (
        prompts_of_step(s, prompts_per_step=per_step, num_prompts=num, seed=seed, shuffle=shuffle)
        for s in range(num_steps)
    )
    return list(itertools.chain.from_iterable(steps))


def test_unshuffled_rows_come_in_their_order_across_an_epochs_end() -> None:
    assert stream(4, per_step=2, num=3, shuffle=False) == [0, 1, 2, 0, 1, 2, 0, 1]


def test_a_step_may_be_larger_than_the_dataset() -> None:
    assert prompts_of_step(1, prompts_per_step=5, num_prompts=2, seed=0, shuffle=False) == [1, 0, 1, 0, 1]


@given(per_step=st.integers(1, 7), num=st.integers(1, 9), seed=st.integers(0, 5))
def test_each_row_comes_once_per_epoch(per_step: int, num: int, seed: int) -> None:
    found = stream(2 * num, per_step=per_step, num=num, seed=seed)
    for start in range(0, len(found) - num + 1, num):
        assert sorted(found[start : start + num]) == list(range(num))


@given(per_step=st.integers(1, 7), other=st.integers(1, 7), num=st.integers(1, 9))
def test_the_stream_does_not_depend_on_the_size_of_steps(per_step: int, other: int, num: int) -> None:
    assert stream(other, per_step=per_step, num=num) == stream(per_step, per_step=other, num=num)


def test_epochs_and_seeds_have_orders_of_their_own() -> None:
    orders = [prompt_order(50, epoch, seed, True) for epoch in range(3) for seed in range(3)]
    assert len(set(orders)) == 9


def test_neighbouring_epochs_and_seeds_do_not_share_an_order() -> None:
    assert prompt_order(20, 1, 0, True) != prompt_order(20, 0, 1, True)
    assert prompt_order(20, 11, 1, True) != prompt_order(20, 1, 11, True)


def test_first_places_are_spread_evenly() -> None:
    counts = Counter(prompt_order(4, epoch, 7, True)[0] for epoch in range(4000))
    # 1000 expected each, deviation 27
    assert all(abs(count - 1000) < 140 for count in counts.values()), counts


def test_another_process_finds_the_same_order() -> None:
    script = "from actors.data.order import prompt_order; print(prompt_order(30, 2, 5, True))"
    # Hash randomisation is what makes processes differ
    for hash_seed in ("1", "2"):
        done = subprocess.run(
            [sys.executable, "-c", script],
            capture_output=True,
            text=True,
            timeout=60,
            check=True,
            env={"PYTHONHASHSEED": hash_seed},
        )
        assert done.stdout.strip() == str(prompt_order(30, 2, 5, True))


def test_the_order_leaves_the_global_generator_alone() -> None:
    random.seed(3)
    expected = random.random()
    random.seed(3)
    prompt_order(10, 0, 0, True)
    assert random.random() == expected


def test_the_order_is_the_one_documented() -> None:
    digest = hashlib.sha256(b"prompt order 5 2").digest()
    expected = list(range(6))
    random.Random(int.from_bytes(digest, "big")).shuffle(expected)
    assert prompt_order(6, 2, 5, True) == tuple(expected)


@pytest.mark.parametrize(("num", "per_step", "step"), [(0, 1, 0), (1, 0, 0), (1, 1, -1)])
def test_nonsense_is_refused(num: int, per_step: int, step: int) -> None:
    with pytest.raises(ValueError, match="need num_prompts >= 1"):
        prompts_of_step(step, prompts_per_step=per_step, num_prompts=num, seed=0, shuffle=True)
