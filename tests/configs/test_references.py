"""`${...}` within a config, and lists of bases."""

from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given
from hypothesis import strategies as st

from configs.load import dump_config, environment_overrides, load_config
from configs.references import escape, resolve
from configs.schema import Pipeline
from configs.schema.ppo import PPOStage
from configs.secrets import is_secret
from tests.configs.small_files import PPO, lines, load_ppo, problems, write


def test_a_whole_value_keeps_the_others_type_and_a_text_is_joined(ppo: Path) -> None:
    config = load_ppo(
        ppo,
        "run.dir=runs/${policy.model}-lr${policy.optimizer.lr}-${run.deterministic}",
        "run.seed=${ppo.steps}",
        "reference.model=${policy.model}",
        "policy.optimizer.lr=2.5e-6",
        "run.trackers=[tensorboard]",
    )
    assert config.run.dir == "runs/m-lr2.5e-06-false", "run.deterministic is the schema's default"
    assert config.run.seed == 3
    assert config.reference.model == "m"


def test_a_reference_follows_another_and_sees_overrides(ppo: Path) -> None:
    config = load_ppo(
        ppo, "reference.model=${reward.model.model}", "reward.model.model=${policy.model}", "policy.model=x"
    )
    assert (config.reference.model, config.policy.model) == ("x", "x")


def test_a_list_is_taken_over_and_its_items_are_named_by_number(ppo: Path) -> None:
    config = load_ppo(ppo, "run.wandb_project=${run.trackers.0}", "run.trackers=[tensorboard]")
    assert config.run.wandb_project == "tensorboard"


def test_what_is_escaped_stays_and_survives_the_stored_config(ppo: Path, tmp_path: Path) -> None:
    config = load_ppo(ppo, "run.wandb_project=a $${policy.model} and $$${run.seed}")
    assert config.run.wandb_project == "a ${policy.model} and $${run.seed}"
    assert load_config(write(tmp_path / "stored.yaml", dump_config(config))) == config


@given(st.text("${}ab.", max_size=12))
def test_escaped_text_resolves_to_itself(text: str) -> None:
    values = {"stage": "ppo", "x": [text, {"y": text}]}
    assert resolve(escape(values), {})[0] == values


def test_variables_are_read_as_an_override_is(ppo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SEED", "17")
    monkeypatch.setenv("WHERE", "/data")
    monkeypatch.delenv("UNSET_HERE", raising=False)
    config = load_ppo(
        ppo,
        "run.seed=${env:SEED}",
        "data.path=${env:WHERE}/p.jsonl",
        "ppo.gamma=${env:UNSET_HERE,0.5}",
        "run.wandb_project=p${env:UNSET_HERE,}q",
    )
    assert (config.run.seed, config.data.path, config.ppo.gamma) == (17, "/data/p.jsonl", 0.5)
    assert config.run.wandb_project == "pq"


@given(
    st.text(st.characters(exclude_categories=["Cs", "Cc"], exclude_characters="\x85\u2028\u2029\ufeff"), max_size=12)
)
def test_the_environments_part_of_a_config_is_an_override_elsewhere(text: str) -> None:
    with TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setenv("HERE", text)
        path = write(Path(folder) / "c.yaml", PPO)
        given = [
            "run.wandb_project=x${env:HERE}",
            "data.path=${run.wandb_project}",
            "data.columns={a.b: 'y${env:HERE}'}",
        ]
        here = load_config(path, given)
        fixed = environment_overrides(path, given)
        patch.setenv("HERE", "there")
        assert load_config(path, [*given, *fixed]) == here


def test_what_says_nothing_of_the_environment_is_no_override(ppo: Path) -> None:
    assert environment_overrides(ppo, ["reference.model=${policy.model}", "run.wandb_project=$${env:X}"]) == []


def test_a_pipelines_references_are_named_from_its_root_and_see_what_it_shares(tmp_path: Path) -> None:
    path = write(
        tmp_path / "p.yaml",
        """\
        stage: pipeline
        run: {dir: "runs/${run.seed}", seed: 5}
        stages:
          sft:
            stage: sft
            data: {path: a.jsonl}
            model: {model: "${stages.ppo.reward.model.model}"}
          ppo:
            stage: ppo
            data: {path: "${stages.sft.data.path}.${stages.sft.run.seed}"}
            policy: {model: stage:sft}
            reward: {model: {model: r}}
            ppo: {steps: 1}
        """,
    )
    config = load_config(path)
    assert isinstance(config, Pipeline)
    ppo = config.stages["ppo"]
    assert isinstance(ppo, PPOStage)
    assert (ppo.data.path, ppo.run.dir) == ("a.jsonl.5", "runs/5/ppo")
    assert load_config(write(tmp_path / "stored.yaml", dump_config(config))) == config


@pytest.mark.parametrize(
    ("override", "said"),
    [
        (
            "data.path=${policy.modle}",
            "data.path: got '${policy.modle}', and there is no value at 'policy.modle' (did you mean 'policy.model'?); allowed: "
            "a key of this config, named from its root",
        ),
        (
            "data.path=${policy}",
            "data.path: got '${policy}', and policy is a section; allowed: a key that holds a value",
        ),
        (
            "data.path=${rollout}",
            "data.path: got '${rollout}', and rollout is a section; allowed: a key that holds a value",
        ),
        (
            "data.path=x${run.trackers}",
            "data.path: got 'x${run.trackers}', where '${run.trackers}' is []; allowed: a text, a number, true or false within a text",
        ),
        (
            "data.path=a${b",
            "data.path: got 'a${b', with a '${' that is not closed; allowed: '${key}', or '$${' for a plain '${'",
        ),
        (
            "data.path=${env:UNSET_HERE}",
            "data.path: got '${env:UNSET_HERE}', and UNSET_HERE is not set; allowed: a variable that is set, or "
            "${env:UNSET_HERE,default}",
        ),
        (
            "data.path=${env:a b}",
            "data.path: got '${env:a b}', and 'a b' is no variable's name; allowed: ${env:NAME} or ${env:NAME,default}",
        ),
        (
            "data.path=${env:HF_TOKEN}",
            "data.path: got '${env:HF_TOKEN}', and HF_TOKEN looks like a secret; allowed: names that don't look like a secret: the "
            "resolved config is stored with each run. Libraries read their secrets from the environment themselves",
        ),
    ],
)  # fmt: skip
def test_a_bad_reference_is_one_line_with_its_place(ppo: Path, override: str, said: str) -> None:
    assert problems(ppo, override) == [f"{said} (override {override!r})"]


def test_references_that_lead_back_are_told_with_their_way(ppo: Path) -> None:
    told = problems(ppo, "policy.model=${reference.model}", "reference.model=${policy.model}")
    assert told == [
        f"{one}: got '${{{other}}}', which leads back to itself: {one} -> {other} -> {one}; allowed: references that end in a value "
        f"(override '{one}=${{{other}}}')"
        for one, other in (("policy.model", "reference.model"), ("reference.model", "policy.model"))
    ]


def test_a_bad_value_by_reference_names_the_line_and_the_reference(tmp_path: Path) -> None:
    path = write(tmp_path / "ppo.yaml", PPO + 'rollout:\n  temperature: "${policy.model}"\n')
    assert problems(path) == [
        "rollout.temperature: got 'm'; allowed: a number of at least 0.01 (ppo.yaml line 12, by '${policy.model}')"
    ]


def test_secrets_are_known_by_their_names() -> None:
    secret = [
        "HF_TOKEN",
        "WANDB_API_KEY",
        "AWS_ACCESS_KEY_ID",
        "PGPASSWORD",
        "aws_secret_access_key",
        "PRECEPTOR_REGISTRY",
    ]
    plain = ["MAX_TOKENS", "TOKENIZER", "MONKEY", "HOME", "KEYBOARD", "SEED"]
    assert [name for name in secret + plain if is_secret(name)] == secret


def test_later_bases_win_over_earlier_ones_and_the_file_over_both(tmp_path: Path) -> None:
    write(tmp_path / "a.yaml", PPO)
    write(tmp_path / "more/b.yaml", "ppo: {steps: 4, gamma: 0.5}\nrun: {seed: 1}\n")
    config = load_ppo(write(tmp_path / "c.yaml", "base: [a.yaml, more/b.yaml]\nrun: {seed: 2}\n"))
    assert (config.ppo.steps, config.ppo.gamma, config.run.seed, config.policy.model) == (4, 0.5, 2, "m")


def test_bases_in_a_list_may_share_one_but_not_lead_back(tmp_path: Path) -> None:
    write(tmp_path / "root.yaml", PPO)
    write(tmp_path / "a.yaml", "base: root.yaml\nrun: {seed: 1}\n")
    write(tmp_path / "b.yaml", "base: root.yaml\nppo: {gamma: 0.5}\n")
    config = load_ppo(write(tmp_path / "c.yaml", "base: [a.yaml, b.yaml]\n"))
    assert (config.run.seed, config.ppo.gamma) == (1, 0.5)
    write(tmp_path / "b.yaml", "base: [root.yaml, c.yaml]\n")
    (told,) = lines(tmp_path / "c.yaml")
    assert told.startswith("config files name each other as base without end")
