"""Stage `reward` on real ranks: it learns what it is shown, and says how far it can be believed."""

import json
import math
from collections.abc import Callable
from dataclasses import asdict
from itertools import permutations
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from actors.algorithms.losses import plackett_luce_loss
from actors.data.rankings import Group, RankingDataset
from actors.data.tokenizer import load_tokenizer
from actors.errors import NotFinite, UserError
from actors.reward_trainer import (
    STATS_FILE,
    RewardEvaluation,
    batch_of,
    check_group_lengths,
    evaluation_of,
    load_reward_stats,
    margins_of,
    ranks_of,
)
from actors.supervised_trainer import write_evaluation
from tests.actors.engine.ranks import run_ranks
from tests.actors.reward_training import ranked_rows, stage, summarised, train
from tests.tiny_models import make_tiny_causal_lm

STEPS = 12


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(make_tiny_causal_lm(tmp_path_factory.mktemp("model"), tied=True))


@pytest.fixture(scope="module")
def write(tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], str]:
    def write_rows(num_answers: int) -> str:
        path = tmp_path_factory.mktemp("data") / "rows.jsonl"
        rows = ranked_rows(216, num_answers=num_answers, seed=num_answers)
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return str(path)

    return write_rows


@pytest.fixture(scope="module")
def pairs(write: Callable[[int], str]) -> str:
    return write(2)


@pytest.fixture(scope="module")
def trained(model: str, pairs: str, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Path]:
    """One rank, pairs, and the folder of its export and checkpoint."""
    folder = tmp_path_factory.mktemp("trained")
    folders = {"save": str(folder / "checkpoint"), "export": str(folder / "export")}
    return run_ranks(train, 1, folder, stage(model, pairs), STEPS, 16, folders)[0], folder


def test_it_learns_pairs(trained: tuple[dict[str, Any], Path]) -> None:
    result, _ = trained
    losses = [update["minibatches"][0]["loss"] for update in result["updates"]]
    assert losses[0] == pytest.approx(math.log(2), abs=1e-6), "a head of zeros takes both answers for equally good"
    assert losses[-1] < 0.3
    assert result["evaluation"]["pair_accuracy"] > 0.9
    assert result["evaluation"]["num_groups"] == result["evaluation"]["num_pairs"] == 24


def test_it_learns_rankings_of_four_with_ties(model: str, write: Callable[[int], str], tmp_path: Path) -> None:
    result = run_ranks(train, 1, tmp_path, stage(model, write(4)), STEPS, 3, {})[0]
    assert result["evaluation"]["num_groups"] == 24
    assert 24 * 3 <= result["evaluation"]["num_pairs"] < 24 * 6, "tied pairs are not compared"
    assert result["evaluation"]["pair_accuracy"] > 0.9
    assert result["updates"][-1]["minibatches"][0]["pair_accuracy"] > 0.9


def test_micro_batches_do_not_change_the_update(
    model: str, pairs: str, tmp_path: Path, trained: tuple[dict[str, Any], Path]
) -> None:
    whole, _ = trained
    split = run_ranks(train, 1, tmp_path, stage(model, pairs), 3, 3, {})[0]
    for a, b in zip(whole["updates"], split["updates"], strict=False):
        assert b["grad_norms"] == pytest.approx(a["grad_norms"], rel=1e-4)
        assert b["minibatches"][0] == pytest.approx(a["minibatches"][0], rel=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("zero_stage", [0, 3])
def test_ranks_do_not_change_the_update(
    model: str, pairs: str, tmp_path: Path, trained: tuple[dict[str, Any], Path], zero_stage: int
) -> None:
    """Three groups a micro-batch: the second rank has a dummy where the first has held-out groups left."""
    config = stage(model, pairs, engine={"zero_stage": zero_stage}, data={"held_out_rows": 25})
    alone, *_ = run_ranks(train, 1, tmp_path, config, 3, 16, {})
    first, second = run_ranks(train, 2, tmp_path, config, 3, 3, {})
    assert first["digest"] == second["digest"]
    for a, one, two in zip(alone["updates"], first["updates"], second["updates"], strict=True):
        assert one["grad_norms"] == two["grad_norms"] == pytest.approx(a["grad_norms"], rel=1e-4)
        for name, value in a["minibatches"][0].items():
            assert one["minibatches"][0][name] + two["minibatches"][0][name] == pytest.approx(value, rel=1e-4)
    evaluation = run_ranks(summarised, 1, tmp_path, config, [second["part"], first["part"]])[0]
    assert evaluation.pop("data_fingerprint") == alone["evaluation"].pop("data_fingerprint")
    found, expected = evaluation.pop("bins"), alone["evaluation"].pop("bins")
    assert [one["count"] for one in found] == [one["count"] for one in expected]
    assert evaluation == pytest.approx(alone["evaluation"], rel=1e-3)


def test_a_resumed_run_ends_in_the_same_bits(model: str, pairs: str, tmp_path: Path) -> None:
    config = stage(model, pairs)
    straight = run_ranks(train, 1, tmp_path, config, 4, 16, {})[0]
    run_ranks(train, 1, tmp_path, config, 2, 16, {"save": str(tmp_path)})
    resumed = run_ranks(train, 1, tmp_path, config, 4, 16, {"load": str(tmp_path)}, 2)[0]
    assert resumed["digest"] == straight["digest"]
    assert resumed["evaluation"] == straight["evaluation"]


def test_the_export_scores_in_transformers_as_here(trained: tuple[dict[str, Any], Path], pairs: str) -> None:
    result, folder = trained
    exported = AutoModelForSequenceClassification.from_pretrained(folder / "export").eval()
    data = RankingDataset.load(stage("unused", pairs).data, load_tokenizer(str(folder / "export")))
    with torch.no_grad():
        for index, scores in list(zip(result["part"]["groups"], result["part"]["scores"], strict=True))[:5]:
            for sequence, score in zip(data.group(index).sequences, scores, strict=True):
                assert float(exported(torch.tensor([sequence])).logits) == pytest.approx(score, abs=1e-4)
    assert AutoTokenizer.from_pretrained(folder / "export").chat_template is not None


def test_the_export_carries_its_evaluation(trained: tuple[dict[str, Any], Path]) -> None:
    result, folder = trained
    stats = load_reward_stats(str(folder / "export"))
    assert stats == RewardEvaluation.from_json(result["evaluation"])
    scores = torch.tensor(result["part"]["scores"], dtype=torch.float64).flatten()
    assert (stats.mean, stats.std) == pytest.approx((float(scores.mean()), float(scores.std())))
    assert stats.data_fingerprint == result["report"]["data_fingerprint"]


def test_the_report_says_what_there_is(trained: tuple[dict[str, Any], Path], pairs: str) -> None:
    result, folder = trained
    data = RankingDataset.load(stage("unused", pairs).data, load_tokenizer(str(folder / "export")))
    report = result["report"]
    assert list(report["lengths"]) == data.lengths
    assert (report["num_train"], len(report["lengths"]), report["num_dropped"]) == (192, 216, 0)
    assert result["start"]["num_parameters"] > 0


# Without a model


def test_a_margin_is_what_the_better_answer_has_to_lead_by() -> None:
    def pair(margin: float | None, ranks: tuple[int, int]) -> Group:
        return Group(
            sequences=([1], [1]),
            answer_lengths=(1, 1),
            ranks=ranks,
            where="",
            margin=margin,
            annotator=None,
            num_cut_tokens=0,
        )

    groups = [pair(0.5, (0, 1)), pair(None, (1, 0)), pair(2.0, (3, 1))]
    assert margins_of(groups).tolist() == [0.5, 0.0, 0.0, 0.0, 0.0, 2.0]
    scores = torch.tensor([1.0, 0.2, -0.3, 0.4, 0.0, 1.5])
    ranks, cu_groups = ranks_of(groups)
    ours, _ = plackett_luce_loss(scores - margins_of(groups), ranks, cu_groups, global_count=3)
    better, worse = torch.tensor([1.0, 0.4, 1.5]), torch.tensor([0.2, -0.3, 0.0])
    plain = -torch.nn.functional.logsigmoid(better - worse - torch.tensor([0.5, 0.0, 2.0])).mean()
    assert float(ours) == pytest.approx(float(plain))


def group(ranks: tuple[int, ...], lengths: tuple[int, ...]) -> Group:
    sequences = tuple([9] + [7] * length for length in lengths)
    return Group(sequences=sequences, answer_lengths=lengths, ranks=ranks, where="file:1")


def evaluate(groups: list[Group], scores: list[list[float]]) -> RewardEvaluation:
    return evaluation_of(groups, scores, data_fingerprint="f")


def test_an_evaluation_by_hand() -> None:
    """Two pairs: differences ln 3 (probability 0.75, right) and -ln 3 (0.25, wrong)."""
    found = evaluate([group((0, 1), (4, 2)), group((0, 1), (2, 4))], [[math.log(3), 0.0], [0.0, math.log(3)]])
    assert (found.num_groups, found.num_pairs, found.pair_accuracy) == (2, 2, 0.5)
    # said 0.75 twice and was right once; the other way round likewise
    assert found.ece == pytest.approx(0.25)
    assert found.bins is not None
    filled = {at: one for at, one in enumerate(found.bins) if one.count}
    assert [(at, one.count, one.observed_frac) for at, one in filled.items()] == [(2, 2, 0.5), (7, 2, 0.5)]
    assert [one.mean_prob for one in filled.values()] == pytest.approx([0.25, 0.75])
    assert found.mean == pytest.approx(math.log(3) / 2)
    assert found.std == pytest.approx(math.log(3) / 2 * math.sqrt(4 / 3))
    assert found.length_correlation == pytest.approx(1.0)


def test_ties_are_no_pairs_and_order_within_a_group_does_not_matter() -> None:
    """Ranks 1, 0, 1: the second beats the two others."""
    found = evaluate([group((1, 0, 1), (1, 2, 3))], [[0.0, 1.0, 2.0]])
    assert (found.num_pairs, found.pair_accuracy) == (2, 0.5)


def test_perfect_confidence_is_perfectly_calibrated() -> None:
    found = evaluate([group((0, 1), (1, 2))] * 4, [[100.0, -100.0]] * 4)
    assert found.pair_accuracy == 1.0
    assert found.ece == pytest.approx(0.0, abs=1e-12)


def test_a_model_that_says_nothing_is_calibrated_and_useless() -> None:
    found = evaluate([group((0, 1), (1, 2))] * 4, [[0.5, 0.5]] * 4)
    assert (found.pair_accuracy, found.ece, found.std, found.length_correlation) == (0.5, 0.0, 0.0, None)


def test_calibration_is_that_of_a_slow_count() -> None:
    generator = torch.Generator().manual_seed(3)
    scores = torch.randn(60, 3, generator=generator, dtype=torch.float64).tolist()
    groups = [group(tuple(torch.randperm(3, generator=generator).tolist()), (1, 2, 3)) for _ in scores]
    bins: dict[int, list[tuple[float, float]]] = {}
    for one, of_group in zip(groups, scores, strict=True):
        for a, b in permutations(range(3), 2):
            prob = 1 / (1 + math.exp(of_group[b] - of_group[a]))
            bins.setdefault(min(int(prob * 10), 9), []).append((prob, float(one.ranks[a] < one.ranks[b])))
    total = sum(len(found) for found in bins.values())
    expected = sum(abs(sum(p for p, _ in found) - sum(o for _, o in found)) for found in bins.values()) / total
    assert total == 60 * 6
    assert evaluate(groups, scores).ece == pytest.approx(expected)


def test_a_score_that_is_not_finite_is_told() -> None:
    with pytest.raises(NotFinite, match="held-out"):
        evaluate([group((0, 1), (1, 2))], [[0.0, math.nan]])


def test_batches_hold_each_answer_with_its_own_positions() -> None:
    batch = batch_of([group((0, 1), (2, 1)), group((0, 1, 2), (1, 1, 1))])
    assert batch.tokens.tolist() == [9, 7, 7, 9, 7, 9, 7, 9, 7, 9, 7]
    assert batch.position_ids.tolist() == [0, 1, 2, 0, 1, 0, 1, 0, 1, 0, 1]
    assert batch.cu_lengths.tolist() == [0, 3, 5, 7, 9, 11]
    ranks, cu_groups = ranks_of([group((0, 1), (2, 1)), group((4, 1, 2), (1, 1, 1))])
    assert (ranks.tolist(), cu_groups.tolist()) == ([0, 1, 4, 1, 2], [0, 2, 5])
    assert batch_of([]).num_sequences == 0


def test_a_group_larger_than_a_micro_batch_is_told(model: str, pairs: str) -> None:
    data = RankingDataset.load(stage(model, pairs).data, load_tokenizer(model))
    check_group_lengths(data, max(data.lengths))
    with pytest.raises(UserError) as told:
        check_group_lengths(data, max(data.lengths) - 1)
    longest = data.group(data.lengths.index(max(data.lengths)))
    assert str(told.value) == (
        f"model.engine.micro_batch_tokens: got {max(data.lengths) - 1}; the answers of {longest.where} have {max(data.lengths)} tokens "
        "together, and must fit in one micro-batch. Raise it, or lower data.max_tokens"
    )


STATS = RewardEvaluation(
    num_groups=2,
    num_pairs=2,
    pair_accuracy=1.0,
    ece=0.1,
    length_correlation=None,
    mean=0.5,
    std=2.0,
    data_fingerprint="f",
)


def test_stats_come_back_as_written(tmp_path: Path) -> None:
    write_evaluation(tmp_path / STATS_FILE, STATS)
    assert load_reward_stats(str(tmp_path)) == STATS
    assert [path.name for path in tmp_path.iterdir()] == [STATS_FILE]


def test_bins_come_back_as_written(tmp_path: Path) -> None:
    found = evaluate([group((0, 1), (4, 2)), group((0, 1), (2, 4))], [[2.0, 0.0], [0.0, 1.0]])
    assert found.bins is not None
    assert len(found.bins) == 10
    write_evaluation(tmp_path / STATS_FILE, found)
    assert load_reward_stats(str(tmp_path)) == found


def test_an_evaluation_from_before_there_were_bins_is_read(tmp_path: Path) -> None:
    stored = asdict(STATS)
    del stored["bins"]
    (tmp_path / STATS_FILE).write_text(json.dumps(stored))
    assert load_reward_stats(str(tmp_path)) == STATS


@pytest.mark.parametrize("bins", [3, [3], [{"count": 1}]])
def test_bins_that_are_none_are_told(tmp_path: Path, bins: Any) -> None:
    (tmp_path / STATS_FILE).write_text(json.dumps({**asdict(STATS), "bins": bins}))
    with pytest.raises(UserError, match="bins are not those of an evaluation"):
        load_reward_stats(str(tmp_path))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, f"has no {STATS_FILE} with the mean and deviation of its scores"),
        ("{", "is not JSON"),
        ("[]", "must have exactly the keys data_fingerprint, ece, "),
        ('{"mean": 0, "std": 1}', "must have exactly the keys data_fingerprint, ece, "),
    ],
)
def test_stats_that_are_none_are_told(tmp_path: Path, content: str | None, message: str) -> None:
    if content is not None:
        (tmp_path / STATS_FILE).write_text(content)
    with pytest.raises(UserError, match=rf"reward\.model\.model: .*{message}.*set reward\.model\.normalise: false"):
        load_reward_stats(str(tmp_path))


def test_a_model_without_spread_cannot_be_normalised(tmp_path: Path) -> None:
    write_evaluation(
        tmp_path / STATS_FILE, RewardEvaluation(**{**{f: getattr(STATS, f) for f in STATS.__slots__}, "std": 0.0})
    )
    with pytest.raises(UserError, match=r"std must be > 0, got 0\.0: this model gives every answer one score"):
        load_reward_stats(str(tmp_path))
