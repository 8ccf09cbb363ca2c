"""What is said of a config that is wrong: key, what was got, what is allowed, and where it came from."""

from pathlib import Path

import pytest

from configs.schema.run import ClusterConfig
from tests.configs.small_files import PPO, lines, problems, write

# ----------------------------------------------------------------------------------------------------- wrong values


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("rollout.temperature=-1", "rollout.temperature: got -1; allowed: a number of at least 0.01"),
        ("rollout.temperature=.inf", "rollout.temperature: got inf; allowed: a finite number of at least 0.01"),
        ("rollout.temperature='1'", "rollout.temperature: got '1'; allowed: a number of at least 0.01"),
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
        (
            "policy.optimizer.betas=[0.9, 1]",
            "policy.optimizer.betas.1: got 1; allowed: a number of at least 0 and below 1",
        ),
        ("rollout.stop_token_ids=[1, x]", "rollout.stop_token_ids.1: got 'x'; allowed: a whole number"),
        ("ppo.kl.controller.coef=-1", "ppo.kl.controller.coef: got -1; allowed: a number of at least 0"),
        ("ppo.kl.controller.kind=pid", "ppo.kl.controller.kind: got 'pid'; allowed: 'fixed' or 'adaptive'"),
        ("ppo.kl.controller.kind=adaptive", "ppo.kl.controller.target: missing; allowed: a number above 0"),
        (
            "reward.functions=[{function: f}]",
            r"reward.functions.0.function: got 'f'; allowed: text of the form ^[\w.]+:[\w.]+$",
        ),
        ("stage=grpo", "stage: got 'grpo'; allowed: 'pretrain', 'sft', 'dpo', 'reward', 'ppo', 'rank' or 'pipeline'"),
        ("policy.model=null", "policy.model: missing; allowed: a folder or hub name of a Hugging Face model"),
        (
            "policy.model=stage:a",
            "policy.model: got 'stage:a'; allowed: a folder or hub name; stage:NAME only within a pipeline",
        ),
        ("reward.model.model=null", "reward.model.model: missing; allowed: a folder or hub name of a reward model"),
        (
            "critic.init_from=model",
            "critic.model: missing; allowed: a folder or hub name of a Hugging Face model, as critic.init_from is 'model'",
        ),
        ("critic.model=c", "critic.init_from: got 'reward' beside a critic.model; allowed: 'model'"),
        (
            "reward.missing_end_penalty=1",
            "reward.missing_end_penalty: got 1.0; allowed: 0 unless ppo.truncation is 'penalise'",
        ),
        (
            "ppo.truncation=penalise",
            "reward.missing_end_penalty: got 0; allowed: a number above 0, as ppo.truncation is 'penalise'",
        ),
        (
            "reward.length_penalty=1",
            "reward.length_penalty_from: missing; allowed: a number of tokens, as length_penalty is above 0",
        ),
        (
            "reward.length_penalty_from=1",
            "reward.length_penalty: got 0 beside length_penalty_from; allowed: a number above 0",
        ),
        (
            "reward={length_penalty: 1, length_penalty_from: 128}",
            "reward.length_penalty_from: got 128; allowed: less than rollout.max_response_tokens (128)",
        ),
        (
            "policy.engine.dtype=bf16",
            "policy.engine.zero_stage: got 0 with engine.dtype bf16; allowed: 1, 2 or 3: stage 0 keeps no fp32 master weights",
        ),
        (
            "policy.engine.offload_optimizer=true",
            "policy.engine.zero_stage: got 0 with engine.offload_optimizer true; allowed: 1, 2 or 3",
        ),
        (
            "reference.engine.zero_stage=2",
            "reference.engine.zero_stage: got 2; allowed: 0 (replicated) or 3 (sharded): the model is frozen",
        ),
        (
            "reference.engine.offload_optimizer=true",
            "reference.engine.offload_optimizer: got true; allowed: false: a frozen model has no optimizer",
        ),
        ("reward.model=null", "reward: got neither a model nor functions; allowed: `model`, `functions` or both"),
        (
            "reward={model: null, functions: [{function: a:f}]}",
            "critic.init_from: got 'reward' without a reward.model; allowed: 'policy' or 'model'",
        ),
        (
            "evaluation.every=5",
            "data.held_out_rows: got 0 beside a section evaluation; allowed: a whole number of at least 1",
        ),
        (
            "evaluation.best=judged",
            "evaluation.best: got 'judged' without evaluation.judge; allowed: 'win_rate' or 'score'",
        ),
        (
            "data={path: p.jsonl, max_rows: 5, held_out_rows: 5}",
            "data.held_out_rows: got 5; allowed: less than max_rows (5)",
        ),
    ],
)
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
    assert problems(write(path, "run: {}\n")) == [
        "stage: missing; allowed: 'pretrain', 'sft', 'dpo', 'reward', 'ppo', 'rank' or 'pipeline'"
    ]


def test_an_unknown_key_is_refused_with_the_nearest_one(ppo: Path) -> None:
    *first, last = ClusterConfig.model_fields
    known = f"{', '.join(first)} or {last}"
    assert problems(ppo, "cluster.devise=cpu", "cluster.temperature=1", "cluster.zzz=1") == [
        f"cluster.devise: unknown key (did you mean 'device'?); allowed: {known} (override 'cluster.devise=cpu')",
        f"cluster.temperature: unknown key (did you mean 'rollout.temperature'?); allowed: {known} (override 'cluster.temperature=1')",
        f"cluster.zzz: unknown key; allowed: {known} (override 'cluster.zzz=1')",
    ]


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        (
            "ppo.steps",
            [
                "the overrides can't be read:",
                "got 'ppo.steps'; allowed: key.path=value, such as rollout.temperature=0.7",
            ],
        ),
        (
            "ppo..steps=1",
            [
                "the overrides can't be read:",
                "got 'ppo..steps=1'; allowed: key.path=value, such as rollout.temperature=0.7",
            ],
        ),
        (
            "ppo.steps.x=1",
            [
                "the overrides don't fit the config:",
                "ppo.steps: got 3, which has no keys; allowed: a section (override 'ppo.steps.x=1')",
            ],
        ),
        (
            "ppo.steps=[1",
            [
                "the overrides can't be read:",
                "ppo.steps: got '[1' (while parsing a flow sequence expected ',' or ']', but got '<stream end>'); "
                "allowed: a YAML value (override 'ppo.steps=[1')",
            ],
        ),
    ],
)
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
        (
            "[1]\n",
            ["config file a.yaml is not a config:", "got [1]; allowed: a mapping of keys at the top of the file"],
        ),
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
                "line 1, column 4: tag 'tag:yaml.org,2002:python/object/apply:os.system' is not known here; "
                "allowed: valid YAML, each key once",
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
        (
            "base: [a, 2]\n",
            [
                "a.yaml is not a valid config:",
                "base: got ['a', 2]; allowed: one path, or a list of paths, relative to this file (a.yaml line 1)",
            ],
        ),
    ],
)
def test_a_file_that_is_no_config(tmp_path: Path, text: str, expected: list[str]) -> None:
    assert lines(write(tmp_path / "a.yaml", text)) == expected


def test_a_file_that_is_not_there_or_not_text(tmp_path: Path) -> None:
    assert lines(tmp_path / "none.yaml") == [f"config file none.yaml does not exist (looked in {Path.cwd()})"]
    (tmp_path / "latin.yaml").write_bytes(b"a: \xe9\n")
    (said,) = lines(tmp_path / "latin.yaml")
    assert said.startswith("config file latin.yaml can't be read as UTF-8 text: ")


def test_a_key_that_is_deeper_is_named_from_the_root(ppo: Path) -> None:
    found = problems(ppo, "policy.lr=1e-6", "ppo.kl.coef=0.1")
    hints = [problem.partition("?")[0] for problem in found]
    assert hints == [
        "policy.lr: unknown key (did you mean 'policy.optimizer.lr'",
        "ppo.kl.coef: unknown key (did you mean 'ppo.kl.controller.coef'",
    ]
