"""Values, bases, overrides and pipelines."""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from configs.errors import ConfigError
from configs.load import Option, dump_config, load_config, load_options
from configs.schema import Pipeline
from configs.schema.compare import CompareConfig
from configs.schema.ppo import AdaptiveKLConfig, PPOStage
from configs.schema.reward import RewardStage
from configs.schema.run import RunConfig
from configs.yaml_file import read_value, read_yaml, write_yaml
from tests.configs.small_files import PPO, lines, load_ppo, problems, write

# ---------------------------------------------------------------------------------------------------------- values


def test_defaults_are_the_schemas_and_files_win_over_them(ppo: Path) -> None:
    config = load_ppo(ppo)
    assert (config.ppo.steps, config.ppo.gamma, config.rollout.temperature) == (3, 1.0, 1.0)
    assert config.reward.model is not None
    assert config.reward.model.model == "r"


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-6", 1e-6),
        ("1E+2", 100.0),
        ("-.5", -0.5),
        ("1.", 1.0),
        ("1_000", 1000),
        ("0", 0),
        ("-3", -3),
        ("true", True),
        ("null", None),
        ("~", None),
        ("", None),
        ("[1, 2.5, x]", [1, 2.5, "x"]),
        ("{a: {b: 1e3}}", {"a": {"b": 1000.0}}),
        ("'1e-6'", "1e-6"),
        # YAML 1.1 would make these False, 8, 90, a date
        ("no", "no"),
        ("010", "010"),
        ("1:30", "1:30"),
        ("2026-11-01", "2026-11-01"),
        ("0x10", "0x10"),
        ("e5", "e5"),
        ("1e", "1e"),
    ],
)
def test_scalars_are_read_as_yaml_1_2_means_them(text: str, value: object) -> None:
    got, _ = read_value(text, ("a",), "here")
    assert got == value
    assert type(got) is type(value)


plain = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=12)
# text that looks like something else must come back as text
tricky = st.sampled_from(
    [
        "1e-6",
        "no",
        "010",
        "2026-11-01",
        "null",
        "true",
        "~",
        "",
        "-",
        ".inf",
        "1:30",
        "a: b",
        "#",
        "*x",
        "&x",
        "!y",
        "{",
    ]
)
trees = st.recursive(
    plain | tricky, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
)


@given(value=st.dictionaries(st.text(max_size=5) | tricky, trees, max_size=4))
def test_what_is_written_is_read_back(value: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.getbasetemp() / "written.yaml"
    path.write_text(write_yaml(value) if value else "{}", "utf-8")
    assert read_yaml(path)[0] == value


def test_a_resolved_config_names_every_field_and_loads_to_itself(ppo: Path, tmp_path: Path) -> None:
    config = load_ppo(
        ppo, "run.dir='1e-6'", "data.id_column='no'", "policy.optimizer.lr=1e-6", "rollout.stop_token_ids=[1, 2]"
    )
    text = dump_config(config)
    assert "gae_lambda: 0.95" in text
    assert load_config(write(tmp_path / "again.yaml", text)) == config
    assert config.run.dir == "1e-6"


# ------------------------------------------------------------------------------------------------- bases and overrides


def test_the_nearest_file_wins_mappings_merge_and_lists_are_replaced(tmp_path: Path) -> None:
    write(tmp_path / "lib/root.yaml", PPO + "rollout: {temperature: 0.5, stop_token_ids: [1, 2, 3], num_engines: 2}\n")
    write(tmp_path / "middle.yaml", "base: lib/root.yaml\nrollout: {temperature: 0.6, stop_token_ids: [9]}\n")
    leaf = write(tmp_path / "leaf.yaml", "base: middle.yaml\nppo: {steps: 7}\n")
    config = load_ppo(leaf)
    assert config.rollout.stop_token_ids == (9,)
    assert (config.rollout.temperature, config.rollout.num_engines, config.ppo.steps) == (0.6, 2, 7)


def test_overrides_win_in_order(ppo: Path) -> None:
    config = load_ppo(
        ppo, "rollout.temperature=0.7", "rollout={temperature: 0.8, num_engines: 2}", "rollout.num_engines=3"
    )
    assert (config.rollout.temperature, config.rollout.num_engines) == (0.8, 3)


def test_an_override_reaches_into_lists_and_into_sections_that_were_null(ppo: Path) -> None:
    config = load_ppo(
        ppo,
        "reward={model: null, functions: [{function: a:f}, {function: b:f}]}",
        "reward.functions.1.weight=2",
        "reward.model.model=back",
    )
    assert [function.weight for function in config.reward.functions] == [1.0, 2.0]
    assert config.reward.model is not None
    assert config.reward.model.model == "back"


def test_a_section_of_another_kind_starts_anew(ppo: Path, tmp_path: Path) -> None:
    write(
        tmp_path / "base.yaml",
        PPO.replace("steps: 3", "steps: 3\n  kl: {controller: {kind: adaptive, target: 6, coef: 0.2}}"),
    )
    child = write(tmp_path / "child.yaml", "base: base.yaml\n")
    config = load_ppo(child, "ppo.kl.controller.target=3")
    assert config.ppo.kl.controller == AdaptiveKLConfig(kind="adaptive", target=3, coef=0.2)
    # `target` belongs to the other kind and would be refused
    assert load_ppo(child, "ppo.kl.controller={kind: fixed}").ppo.kl.controller.coef == 0.05


def test_a_controller_without_kind_is_fixed(ppo: Path) -> None:
    controller = load_ppo(ppo, "ppo.kl.controller.coef=0.2").ppo.kl.controller
    assert (controller.kind, controller.coef) == ("fixed", 0.2)


def test_a_base_that_leads_back_is_refused_with_its_chain(tmp_path: Path) -> None:
    first = write(tmp_path / "a.yaml", "base: b.yaml\n")
    write(tmp_path / "b.yaml", "base: ./a.yaml\n")
    assert lines(first) == ["config files name each other as base without end: a.yaml -> b.yaml -> a.yaml"]


def test_a_missing_base_names_the_file_that_asks_for_it(tmp_path: Path) -> None:
    path = write(tmp_path / "a.yaml", "base: gone.yaml\n")
    assert lines(path) == [f"config file gone.yaml does not exist (looked in {Path.cwd()}) [base of a.yaml]"]


# --------------------------------------------------------------------------------------------------------- pipelines

PIPELINE = """\
stage: pipeline
run: {dir: runs/all/, seed: 4, checkpoint_every: 5}
cluster: {num_cpus: 2, call_timeout_s: 60}
stages:
  judge:
    stage: reward
    data: {path: pairs.jsonl}
    model: {model: m}
  tune:
    stage: ppo
    run: {seed: 9}
    cluster: {call_timeout_s: 90}
    data: {path: prompts.jsonl}
    policy: {model: m}
    reward:
      model: {model: "stage:judge"}
    ppo: {steps: 3}
"""


@pytest.fixture
def pipeline(tmp_path: Path) -> Path:
    return write(tmp_path / "pipeline.yaml", PIPELINE)


def test_stages_take_run_and_cluster_from_the_pipeline(pipeline: Path, tmp_path: Path) -> None:
    config = load_config(pipeline, ["stages.tune.run.checkpoint_every=1"])
    assert isinstance(config, Pipeline)
    judge, tune = config.stages["judge"], config.stages["tune"]
    assert isinstance(judge, RewardStage)
    assert isinstance(tune, PPOStage)
    assert (judge.run.dir, judge.run.seed, judge.run.checkpoint_every) == ("runs/all/judge", 4, 5)
    assert (tune.run.dir, tune.run.seed, tune.run.checkpoint_every) == ("runs/all/tune", 9, 1)
    assert (judge.cluster.num_cpus, judge.cluster.call_timeout_s) == (2, 60)
    assert (tune.cluster.num_cpus, tune.cluster.call_timeout_s) == (2, 90)
    assert load_config(write(tmp_path / "again.yaml", dump_config(config))) == config


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        (
            "stages.tune.run.dir=elsewhere",
            "stages.tune.run.dir: got 'elsewhere'; allowed: not given: it is 'runs/all/tune', the stage's name under run.dir",
        ),
        (
            "stages.tune.reward.model.model=stage:other",
            "stages.tune.reward.model.model: got 'stage:other'; "
            "allowed: stage:NAME of an earlier reward stage, which here is 'stage:judge'",
        ),
        (
            "stages.tune.policy.model=stage:judge",
            "stages.tune.policy.model: got 'stage:judge'; allowed: stage:NAME of an earlier pretrain, sft, dpo or ppo stage, "
            "and there is none here",
        ),
        (
            "stages.judge.model.model=stage:tune",
            "stages.judge.model.model: got 'stage:tune'; allowed: stage:NAME of an earlier pretrain, sft, dpo, ppo or reward stage, "
            "and there is none here",
        ),
        ("stages.tune.ppo.steps=0", "stages.tune.ppo.steps: got 0; allowed: a whole number of at least 1"),
        (
            "stages.tune.rollout.temp=1",
            "stages.tune.rollout.temp: unknown key (did you mean 'temperature'?); allowed: ",
        ),
        (
            "stages.tune.stage=grpo",
            "stages.tune.stage: got 'grpo'; allowed: 'pretrain', 'sft', 'dpo', 'reward', 'ppo' or 'rank'",
        ),
        ("stages.tune=3", "stages.tune: got 3; allowed: a section with stage: pretrain, sft, dpo, reward, ppo or rank"),
        (
            "stages=[1]",
            "stages: got [1]; allowed: a section of names, each a section with stage: pretrain, sft, dpo, reward, ppo or rank",
        ),
    ],
)
def test_a_pipeline_is_checked_stage_by_stage(pipeline: Path, override: str, expected: str) -> None:
    (line,) = problems(pipeline, override)
    assert line.startswith(expected)


def test_a_stages_name_is_a_folders_name(pipeline: Path) -> None:
    write(pipeline, PIPELINE.replace("  tune:", "  ../tune:"))
    (line,) = problems(pipeline)
    assert line.startswith(
        "stages.../tune: got the name '../tune'; allowed: a letter, then letters, digits, - and _, all lower case"
    )


def test_a_pipeline_needs_stages(tmp_path: Path) -> None:
    path = write(tmp_path / "a.yaml", "stage: pipeline\nrun: {dir: x}\nstages: {}\n")
    (line,) = problems(path)
    assert line.startswith("stages: got a section of 0 keys; allowed: a section of names")
    assert line.endswith("not empty (a.yaml line 3)")


def test_options_fill_keys_and_overrides_win_over_them() -> None:
    options = [Option(key="dir", value="x", name="OUT"), Option(key="seed", value=1, name="--seed")]
    assert load_options(RunConfig, options, []).seed == 1
    assert load_options(RunConfig, options, ["seed=2"]).seed == 2
    with pytest.raises(ConfigError) as refused:
        load_options(
            CompareConfig,
            [
                Option(key="models", value=["a", "b"], name=""),
                Option(key="run", value={"dir": "x"}, name=""),
                Option(key="data.path", value="p", name="--prompts"),
                Option(key="rollout.temperature", value=-1, name="--temperature"),
            ],
            ["data.pront_column=q"],
        )
    assert [str(problem) for problem in refused.value.problems][1:] == [
        "rollout.temperature: got -1; allowed: a number of at least 0.01 (--temperature)"
    ]
    assert str(refused.value.problems[0]).startswith(
        "data.pront_column: unknown key (did you mean 'prompt_column'?); allowed: path, split"
    )
