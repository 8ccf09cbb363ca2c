"""The schema as it is shown: every key has a description, and types are in words."""

import json

import pytest

from configs.fields import STAGES, FieldRow, describe, locate, schema_json


@pytest.mark.parametrize("stage", STAGES)
def test_every_key_is_described_in_a_sentence(stage: str) -> None:
    rows = describe(stage)
    assert len({row.key for row in rows}) == len(rows)
    for row in rows:
        assert row.description.endswith("."), row
        assert row.type, row
        assert row.default, row


@pytest.mark.parametrize(
    "row",
    [
        FieldRow(
            key="rollout.temperature",
            type="a number of at least 0.01",
            default="1.0",
            description="Logits are divided by it, here and in training. vLLM would take a smaller one for 0.01.",
        ),
        FieldRow(
            key="ppo.dual_clip",
            type="a number above 1, or null",
            default="null",
            description="Bound of the loss for negative advantages, as a factor of the advantage; off where it is not given.",
        ),
        FieldRow(
            key="reward.functions.N.num_workers",
            type="a whole number of at least 1",
            default="1",
            description="Worker processes.",
        ),
        FieldRow(
            key="ppo.kl.controller[adaptive].horizon",
            type="a whole number of at least 1",
            default="10000",
            description="Trajectories over which the coefficient moves.",
        ),
        FieldRow(
            key="ppo.steps",
            type="a whole number of at least 1",
            default="required",
            description="PPO steps of the run: one batch of prompts each, from generation to weight sync.",
        ),
    ],
    ids=lambda row: row.key,
)
def test_rows_worked_out_by_hand(row: FieldRow) -> None:
    assert row in describe("ppo")


def test_a_place_is_the_path_that_a_user_writes() -> None:
    place = locate(("pipeline", "stages", "tune", "ppo", "reward", "functions", 2, "weight"))
    assert place.path == ("stages", "tune", "reward", "functions", "2", "weight")
    assert locate(("ppo", "ppo", "kl", "controller", "adaptive", "coef")).path == ("ppo", "kl", "controller", "coef")


def test_the_json_schema_has_every_stage() -> None:
    schema = json.loads(schema_json())
    assert set(schema["discriminator"]["mapping"]) == {"pretrain", "sft", "rank", "reward", "dpo", "ppo", "pipeline"}
    temperature = schema["$defs"]["RolloutConfig"]["properties"]["temperature"]
    assert temperature["minimum"] == 0.01
    assert temperature["description"].startswith("Logits are divided by it, here and in training.")
