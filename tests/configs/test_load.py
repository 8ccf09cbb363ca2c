"""Files, bases, overrides and what is said when they are wrong."""

from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from configs.errors import ConfigError
from configs.load import dump_config, load_config
from configs.schema import Pipeline
from configs.schema.ppo import AdaptiveKLConfig, PPOStage
from configs.schema.reward import RewardStage
from configs.yaml_file import read_value, read_yaml, write_yaml

PPO = """\
stage: ppo
run: {dir: runs/x}
data:
  path: prompts.jsonl
policy:
  model: m
reward:
  model: {model: r}
ppo:
  steps: 3
"""


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(dedent(text), "utf-8")
    return path


@pytest.fixture
def ppo(tmp_path: Path) -> Path:
    return write(tmp_path / "ppo.yaml", PPO)


def load_ppo(path: Path, *overrides: str) -> PPOStage:
    config = load_config(path, overrides)
    assert isinstance(config, PPOStage)
    return config


def lines(path: Path, *overrides: str) -> list[str]:
    """The problems of a config that is refused, with the folder left out of their text."""
    with pytest.raises(ConfigError) as caught:
        load_config(path, overrides)
    text = str(caught.value)
    assert "pydantic" not in text and "type=" not in text
    return [line.strip().replace(f"{path.parent}/", "") for line in text.split("\n")]


def problems(path: Path, *overrides: str) -> list[str]:
    title, *rest = lines(path, *overrides)
    assert title == f"{path.name} is not a valid config:"
    return rest


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
tricky = st.sampled_from(["1e-6", "no", "010", "2026-11-01", "null", "true", "~", "", "-", ".inf", "1:30", "a: b", "#", "*x", "&x", "!y", "{"])  # fmt: skip
trees = st.recursive(plain | tricky, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3))  # fmt: skip


@given(value=st.dictionaries(st.text(max_size=5) | tricky, trees, max_size=4))
def test_what_is_written_is_read_back(value: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.getbasetemp() / "written.yaml"
    path.write_text(write_yaml(value) if value else "{}", "utf-8")
    assert read_yaml(path)[0] == value


def test_a_resolved_config_names_every_field_and_loads_to_itself(ppo: Path, tmp_path: Path) -> None:
    config = load_ppo(ppo, "run.dir='1e-6'", "data.id_column='no'", "policy.optimizer.lr=1e-6", "rollout.stop_token_ids=[1, 2]")
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
    config = load_ppo(ppo, "rollout.temperature=0.7", "rollout={temperature: 0.8, num_engines: 2}", "rollout.num_engines=3")
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
    write(tmp_path / "base.yaml", PPO.replace("steps: 3", "steps: 3\n  kl: {controller: {kind: adaptive, target: 6, coef: 0.2}}"))
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


# ----------------------------------------------------------------------------------------------------- wrong values


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("rollout.temperature=-1", "rollout.temperature: got -1; allowed: a number above 0"),
        ("rollout.temperature=.inf", "rollout.temperature: got inf; allowed: a finite number above 0"),
        ("rollout.temperature='1'", "rollout.temperature: got '1'; allowed: a number above 0"),
        ("ppo.steps=true", "ppo.steps: got true; allowed: a whole number of at least 1"),
        ("ppo.steps=3.0", "ppo.steps: got 3.0; allowed: a whole number of at least 1"),
        ("ppo.steps=", "ppo.steps: got null; allowed: a whole number of at least 1"),
        ("ppo.gamma=1.5", "ppo.gamma: got 1.5; allowed: a number from 0 to 1"),
        ("ppo.dual_clip=1", "ppo.dual_clip: got 1; allowed: a number above 1, or null"),
        ("ppo.truncation=cut", "ppo.truncation: got 'cut'; allowed: 'bootstrap', 'penalise' or 'terminal'"),
        ("policy.engine.zero_stage=4", "policy.engine.zero_stage: got 4; allowed: 0, 1, 2 or 3"),
        ("rollout.enforce_eager=maybe", "rollout.enforce_eager: got 'maybe'; allowed: true or false"),
        ("run.dir=5", "run.dir: got 5; allowed: text"),
        ("run.dir=''", "run.dir: got ''; allowed: text, not empty"),
        ("critic=null", "critic: got null; allowed: a section of keys"),
        ("policy.optimizer.betas=[0.9, 1]", "policy.optimizer.betas.1: got 1; allowed: a number of at least 0 and below 1"),
        ("rollout.stop_token_ids=[1, x]", "rollout.stop_token_ids.1: got 'x'; allowed: a whole number"),
        ("ppo.kl.controller.coef=-1", "ppo.kl.controller.coef: got -1; allowed: a number of at least 0"),
        ("ppo.kl.controller.kind=pid", "ppo.kl.controller.kind: got 'pid'; allowed: 'fixed' or 'adaptive'"),
        ("ppo.kl.controller.kind=adaptive", "ppo.kl.controller.target: missing; allowed: a number above 0"),
        ("reward.functions=[{function: f}]", r"reward.functions.0.function: got 'f'; allowed: text of the form ^[\w.]+:[\w.]+$"),
        ("stage=dpo", "stage: got 'dpo'; allowed: 'ppo', 'reward' or 'pipeline'"),
        ("policy.model=null", "policy.model: missing; allowed: a folder or hub name of a Hugging Face model"),
        ("policy.model=stage:a", "policy.model: got 'stage:a'; allowed: a folder or hub name; stage:NAME only within a pipeline"),
        ("reward.model.model=null", "reward.model.model: missing; allowed: a folder or hub name of a reward model"),
        ("critic.init_from=model", "critic.model: missing; allowed: a folder or hub name of a Hugging Face model, as critic.init_from is 'model'"),
        ("critic.model=c", "critic.init_from: got 'reward' beside a critic.model; allowed: 'model'"),
        ("rollout.min_response_tokens=129", "rollout.min_response_tokens: got 129; allowed: at most rollout.max_response_tokens (128)"),
        ("reward.missing_end_penalty=1", "reward.missing_end_penalty: got 1.0; allowed: 0 unless ppo.truncation is 'penalise'"),
        ("ppo.truncation=penalise", "reward.missing_end_penalty: got 0; allowed: a number above 0, as ppo.truncation is 'penalise'"),
        ("reward.length_penalty=1", "reward.length_penalty_from: missing; allowed: a number of tokens, as length_penalty is above 0"),
        ("reward.length_penalty_from=1", "reward.length_penalty: got 0 beside length_penalty_from; allowed: a number above 0"),
        ("reward={length_penalty: 1, length_penalty_from: 128}", "reward.length_penalty_from: got 128; allowed: less than rollout.max_response_tokens (128)"),
        ("policy.engine.dtype=bf16", "policy.engine.zero_stage: got 0 with engine.dtype bf16; allowed: 1, 2 or 3: stage 0 keeps no fp32 master weights"),
        ("policy.engine.offload_optimizer=true", "policy.engine.zero_stage: got 0 with engine.offload_optimizer true; allowed: 1, 2 or 3"),
        ("reference.engine.zero_stage=2", "reference.engine.zero_stage: got 2; allowed: 0 (replicated) or 3 (sharded): the model is frozen"),
        ("reference.engine.offload_optimizer=true", "reference.engine.offload_optimizer: got true; allowed: false: a frozen model has no optimizer"),
        ("reward.model=null", "reward: got neither a model nor functions; allowed: `model`, `functions` or both"),
        ("reward={model: null, functions: [{function: a:f}]}", "critic.init_from: got 'reward' without a reward.model; allowed: 'policy' or 'model'"),
    ],
)  # fmt: skip
def test_a_bad_value_is_named_with_key_got_and_allowed(ppo: Path, override: str, expected: str) -> None:
    (line,) = problems(ppo, override)
    origin = line.removeprefix(expected)
    assert origin in ("", f" (override {override!r})") or origin.startswith(" (ppo.yaml line ")


def test_the_origin_is_the_line_or_the_override(ppo: Path, tmp_path: Path) -> None:
    write(ppo, PPO.replace("steps: 3", "steps: 0"))
    assert problems(ppo) == ["ppo.steps: got 0; allowed: a whole number of at least 1 (ppo.yaml line 10)"]
    child = write(tmp_path / "child.yaml", "base: ppo.yaml\nppo:\n  gamma: 2\n")
    assert problems(child, "ppo.epochs=0") == [
        "ppo.steps: got 0; allowed: a whole number of at least 1 (ppo.yaml line 10)",
        "ppo.epochs: got 0; allowed: a whole number of at least 1 (override 'ppo.epochs=0')",
        "ppo.gamma: got 2; allowed: a number from 0 to 1 (child.yaml line 3)",
    ]


def test_every_missing_section_is_told_at_once(tmp_path: Path) -> None:
    path = write(tmp_path / "a.yaml", "stage: ppo\nppo: {}\n")
    assert problems(path) == [
        "run: missing; allowed: a section of keys",
        "data: missing; allowed: a section of keys",
        "policy: missing; allowed: a section of keys",
        "reward: missing; allowed: a section of keys",
        "ppo.steps: missing; allowed: a whole number of at least 1 (a.yaml line 2)",
    ]
    assert problems(write(path, "run: {}\n")) == ["stage: missing; allowed: 'ppo', 'reward' or 'pipeline'"]


def test_an_unknown_key_is_refused_with_the_nearest_one(ppo: Path) -> None:
    known = "address, device, num_cpus, start_timeout_s, call_timeout_s or collective_timeout_s"
    assert problems(ppo, "cluster.devise=cpu", "cluster.temperature=1", "cluster.zzz=1") == [
        f"cluster.devise: unknown key (did you mean 'device'?); allowed: {known} (override 'cluster.devise=cpu')",
        f"cluster.temperature: unknown key (did you mean 'rollout.temperature'?); allowed: {known} (override 'cluster.temperature=1')",
        f"cluster.zzz: unknown key; allowed: {known} (override 'cluster.zzz=1')",
    ]


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("ppo.steps", ["the overrides can't be read:", "got 'ppo.steps'; allowed: key.path=value, such as rollout.temperature=0.7"]),
        ("ppo..steps=1", ["the overrides can't be read:", "got 'ppo..steps=1'; allowed: key.path=value, such as rollout.temperature=0.7"]),
        ("ppo.steps.x=1", ["the overrides don't fit the config:", "ppo.steps: got 3, which has no keys; allowed: a section (override 'ppo.steps.x=1')"]),
        (
            "ppo.steps=[1",
            [
                "the overrides can't be read:",
                "ppo.steps: got '[1' (while parsing a flow sequence expected ',' or ']', but got '<stream end>'); "
                "allowed: a YAML value (override 'ppo.steps=[1')",
            ],
        ),
    ],
)  # fmt: skip
def test_an_override_that_cannot_be_applied(ppo: Path, override: str, expected: list[str]) -> None:
    assert lines(ppo, override) == expected


def test_an_index_outside_a_list_is_refused(ppo: Path) -> None:
    one = "reward.functions=[{function: a:f}]"
    assert lines(ppo, one, "reward.functions.1.weight=2")[1:] == [
        "reward.functions: got index '1'; allowed: an index from 0 to 0 (override 'reward.functions.1.weight=2')"
    ]
    assert lines(ppo, one, "reward.functions.x=2")[1:] == [
        "reward.functions: got index 'x'; allowed: an index from 0 to 0 (override 'reward.functions.x=2')"
    ]


# ------------------------------------------------------------------------------------------------------- wrong files


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", ["config file a.yaml is empty; allowed: a mapping with a `stage`"]),
        ("# nothing\n", ["config file a.yaml is empty; allowed: a mapping with a `stage`"]),
        ("[1]\n", ["config file a.yaml is not a config:", "got [1]; allowed: a mapping of keys at the top of the file"]),
        (
            "a: 1\nb: [\n",
            [
                "config file a.yaml is not valid YAML:",
                "line 3, column 1: while parsing a flow node expected the node content, but found '<stream end>'; "
                "allowed: valid YAML, each key once",
            ],
        ),
        (
            "run:\n  seed: 1\n  dir: x\n  seed: 2\n",
            [
                "config file a.yaml is not valid YAML:",
                "line 4, column 3: key 'seed' is given twice, first in line 2; allowed: valid YAML, each key once",
            ],
        ),
        (
            "a: !!python/object/apply:os.system [ls]\n",
            [
                "config file a.yaml is not valid YAML:",
                "line 1, column 4: tag 'tag:yaml.org,2002:python/object/apply:os.system' is not known here; allowed: valid YAML, each key once",
            ],
        ),
        (
            "a: &x [*x]\n",
            [
                "config file a.yaml is not valid YAML:",
                "line 1, column 4: an alias that contains itself; allowed: valid YAML, each key once",
            ],
        ),
        (
            "[a]: 1\n",
            [
                "config file a.yaml is not valid YAML:",
                "line 1, column 1: a key must be one word of text; allowed: valid YAML, each key once",
            ],
        ),
        ("base: [a, b]\n", ["a.yaml is not a valid config:", "base: got ['a', 'b']; allowed: one path, relative to this file (a.yaml line 1)"]),
    ],
)  # fmt: skip
def test_a_file_that_is_no_config(tmp_path: Path, text: str, expected: list[str]) -> None:
    assert lines(write(tmp_path / "a.yaml", text)) == expected


def test_a_file_that_is_not_there_or_not_text(tmp_path: Path) -> None:
    assert lines(tmp_path / "none.yaml") == [f"config file none.yaml does not exist (looked in {Path.cwd()})"]
    (tmp_path / "latin.yaml").write_bytes(b"a: \xe9\n")
    (said,) = lines(tmp_path / "latin.yaml")
    assert said.startswith("config file latin.yaml can't be read as UTF-8 text: ")


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
        ("stages.tune.run.dir=elsewhere", "stages.tune.run.dir: got 'elsewhere'; allowed: not given: it is 'runs/all/tune', the stage's name under run.dir"),
        ("stages.tune.reward.model.model=stage:other", "stages.tune.reward.model.model: got 'stage:other'; allowed: stage:NAME of an earlier stage of kind reward, which here is 'stage:judge'"),
        ("stages.tune.policy.model=stage:judge", "stages.tune.policy.model: got 'stage:judge'; allowed: stage:NAME of an earlier stage of kind ppo, and there is none here"),
        ("stages.judge.model.model=stage:tune", "stages.judge.model.model: got 'stage:tune'; allowed: stage:NAME of an earlier stage, and there is none here"),
        ("stages.tune.ppo.steps=0", "stages.tune.ppo.steps: got 0; allowed: a whole number of at least 1"),
        ("stages.tune.rollout.temp=1", "stages.tune.rollout.temp: unknown key (did you mean 'temperature'?); allowed: "),
        ("stages.tune.stage=sft", "stages.tune.stage: got 'sft'; allowed: 'ppo' or 'reward'"),
        ("stages.tune=3", "stages.tune: got 3; allowed: a section with stage: ppo or reward"),
        ("stages=[1]", "stages: got [1]; allowed: a section of names, each a section with stage: ppo or reward"),
    ],
)  # fmt: skip
def test_a_pipeline_is_checked_stage_by_stage(pipeline: Path, override: str, expected: str) -> None:
    (line,) = problems(pipeline, override)
    assert line.startswith(expected)


def test_a_stages_name_is_a_folders_name(pipeline: Path) -> None:
    write(pipeline, PIPELINE.replace("  tune:", "  ../tune:"))
    (line,) = problems(pipeline)
    assert line.startswith("stages.../tune: got the name '../tune'; allowed: a letter, then letters, digits, - and _, all lower case")


def test_a_pipeline_needs_stages(tmp_path: Path) -> None:
    path = write(tmp_path / "a.yaml", "stage: pipeline\nrun: {dir: x}\nstages: {}\n")
    (line,) = problems(path)
    assert line.startswith("stages: got a section of 0 keys; allowed: a section of names")
    assert line.endswith("not empty (a.yaml line 3)")
