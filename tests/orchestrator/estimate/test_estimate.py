"""Estimates of whole stages: who holds what in which phase, what is refused, and with which words."""

import json
import os
import re
import resource
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from configs.errors import ConfigError
from configs.load import load_config
from orchestrator import cli
from orchestrator.estimate.fits import check_fits
from orchestrator.estimate.groups import STORED_BYTES_PER_TOKEN
from orchestrator.estimate.model_files import find_model
from orchestrator.estimate.preflight import check_memory, plan_stages
from orchestrator.estimate.records import Estimate, Item, Suggestion
from orchestrator.estimate.shapes import UnknownModel
from orchestrator.estimate.timing import full_estimates
from orchestrator.plan import make_plan
from orchestrator.plan_records import Plan, PPOPlan

ROOT = Path(__file__).resolve().parents[3]
GIB = 2**30

COLOCATED = """\
stage: ppo
run: {dir: runs/x}
cluster: {device: cuda, gpu: h100-80gb, address: auto}
data: {path: p.jsonl}
policy:
  model: Qwen/Qwen2.5-1.5B-Instruct
  engine: {dtype: bf16, zero_stage: 2, activation_checkpointing: true}
  placement: {group: all}
critic:
  init_from: policy
  engine: {dtype: bf16, zero_stage: 2, activation_checkpointing: true}
  placement: {group: all}
reference: {engine: {dtype: bf16}, placement: {group: all}}
reward: {functions: [{function: "examples.bandit:pays"}]}
rollout: {dtype: bf16, group: all, gpu_memory_frac: 0.4}
ppo: {steps: 3}
"""


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "c.yaml"
    path.write_text(COLOCATED, "utf-8")
    return path


def estimated(path: Path, *overrides: str) -> tuple[Estimate, Plan]:
    (stage,) = plan_stages(load_config(path, overrides)).values()
    return stage.estimate, stage.plan


def refused(path: Path, *overrides: str) -> str:
    with pytest.raises(ConfigError) as error:
        check_memory(load_config(path, overrides))
    return str(error.value)


# --------------------------------------------------------------------------------------------------------------- phases


def test_colocated_roles_take_turns(config: Path) -> None:
    found, _ = estimated(config)
    group, roles = found.groups["all"], found.roles
    phases = {phase.name: phase.amount for phase in group.phases}
    policy, critic, reference, rollout = (roles[role] for role in ("policy", "critic", "reference", "rollout"))
    # while engines generate, policy and critic have left a context each; the frozen reference stays
    assert phases["generate"] == pytest.approx(
        rollout.resident_bytes + reference.resident_bytes + policy.asleep_bytes + critic.asleep_bytes
    )

    def working(role: str, phase: str) -> float:
        return sum(item.amount for item in roles[role].working_by_phase[phase])

    assert phases["update"] == pytest.approx(
        rollout.asleep_bytes
        + reference.resident_bytes
        + policy.resident_bytes
        + critic.resident_bytes
        + working("policy", "update")
        + working("critic", "update")
    )
    assert phases["score"] == pytest.approx(
        rollout.asleep_bytes
        + sum(roles[role].resident_bytes + working(role, "score") for role in ("policy", "critic", "reference"))
    )
    # the policy is awake beside the engines; the critic is not
    assert phases["sync"] == pytest.approx(
        rollout.resident_bytes
        + working("rollout", "sync")
        + policy.resident_bytes
        + working("policy", "sync")
        + critic.asleep_bytes
        + reference.resident_bytes
    )
    assert group.peak.amount == max(phases.values())


def test_groups_of_their_own_never_sleep(config: Path) -> None:
    found, _ = estimated(config, "rollout.group=engines")
    assert {phase.note for phase in found.groups["engines"].phases} == {"rollout works", "rollout waits"}
    assert not found.roles["policy"].sleeps
    # the critic still updates while the policy syncs
    sync = next(phase for phase in found.groups["all"].phases if phase.name == "sync")
    assert sync.note == "policy works, critic works, reference waits"


def test_a_bundle_stores_its_part_of_a_steps_trajectories_and_buckets_of_weights(config: Path) -> None:
    many = ("ppo.prompts_per_step=40", "rollout.prompts_per_wave=8", "rollout.group=e", "rollout.num_engines=2")
    found, plan = estimated(config, *many, "policy.placement.group=p", "policy.placement.num_ranks=4")
    assert isinstance(plan, PPOPlan)
    whole = plan.trajectories_per_step * (512 + 128) * STORED_BYTES_PER_TOKEN
    # 5 waves over 2 engines: 3 and 2
    assert found.groups["e"].shared_bytes_per_bundle == pytest.approx(whole * 3 / 5)
    assert found.groups["p"].shared_bytes_per_bundle == pytest.approx(whole / 4)
    by_store, _ = estimated(config, *many, "weight_sync.channel=cpu")
    # Qwen2.5 1.5B: an embedding of 151,936 x 1,536 in bf16, and two buckets of 256 MiB
    weights = 151_936 * 1536 * 2 + 2 * 256 * 2**20
    assert by_store.groups["e"].shared_bytes_per_bundle == pytest.approx(whole * 3 / 5 + weights)


def test_groups_of_different_gpus_are_held_against_their_own(config: Path) -> None:
    found, _ = estimated(config, "rollout.group=engines", "cluster.groups.engines.gpu=l40s")
    assert {name: group.gpu for name, group in found.groups.items()} == {"all": "h100-80gb", "engines": "l40s"}
    assert found.groups["engines"].limit_bytes == pytest.approx(44.3 * GIB)
    # 0.4 of its own GPU is what the engine takes
    assert found.roles["rollout"].resident_bytes == pytest.approx(0.4 * 44.3 * GIB)


def test_stage_rank_has_engines_alone(tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    path.write_text(
        """\
stage: rank
run: {dir: runs/r}
cluster: {device: cuda, gpu: a100-80gb, address: auto}
data: {path: p.jsonl}
policy: {model: Qwen/Qwen3-8B}
rollout: {dtype: bf16, responses_per_prompt: 4}
annotator: {function: "examples.bandit:pays"}
""",
        "utf-8",
    )
    found, _ = estimated(path)
    assert set(found.roles) == {"rollout"} and set(found.groups) == {"rollout"}
    assert [phase.name for phase in found.groups["rollout"].phases] == ["generate"]
    assert found.engines["rollout"].sequences > 1


def test_a_machine_holds_all_ranks(config: Path) -> None:
    overrides = (
        *("cluster.device=cpu", "cluster.address=null", "cluster.num_cpus=1", "rollout.kv_cache_gib=2.0"),
        *("policy.placement.num_ranks=2", "policy.placement.group=p"),
    )
    loaded = load_config(config, overrides)
    plan = make_plan(loaded, None)  # type: ignore[arg-type]
    found = full_estimates(loaded, {"ppo": plan}, machine_bytes=10.0 * GIB)["ppo"]
    assert found.machine is not None
    update = next(phase for phase in found.machine.phases if phase.name == "update")
    roles = found.roles
    expected = 2 * (roles["policy"].resident_bytes + sum(i.amount for i in roles["policy"].working_by_phase["update"]))
    expected += roles["critic"].resident_bytes + sum(i.amount for i in roles["critic"].working_by_phase["update"])
    expected += roles["reference"].resident_bytes + roles["rollout"].resident_bytes
    assert update.amount == pytest.approx(expected)
    # of the policy's ranks one sends
    sync = next(phase for phase in found.machine.phases if phase.name == "sync")
    working = {role: {i.name: i.amount for i in roles[role].working_by_phase.get("sync", ())} for role in roles}
    sent = working["policy"]["weight sync"]
    of_all = 2 * sum(working["policy"].values()) + sum(working["rollout"].values())
    resident = sum(plan.roles[name].num_ranks * role.resident_bytes for name, role in roles.items())
    critics = sum(i.amount for i in roles["critic"].working_by_phase["update"])
    assert sent > 0
    assert sync.amount == pytest.approx(resident + critics + of_all - sent)
    assert all(group.limit_bytes is None for group in found.groups.values())
    with pytest.raises(ConfigError, match=r"memory of this machine: needs [0-9.]+ GiB in phase \w+ \(2 x policy "):
        check_fits(found, plan, stage="ppo")


def test_a_cluster_that_is_joined_is_not_held_against_this_machines_memory(
    config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether the config names it or RAY_ADDRESS, as in jobs."""
    on_cpu = ("cluster.device=cpu", "cluster.address=null")
    monkeypatch.setattr("orchestrator.estimate.preflight.local_memory_bytes", lambda: 2**20)
    assert "memory of this machine: needs " in refused(config, *on_cpu)
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    check_memory(load_config(config, on_cpu))


def test_stages_of_a_pipeline_have_the_sizes_of_what_they_start_from(tmp_path: Path) -> None:
    path = tmp_path / "p.yaml"
    path.write_text(
        """\
stage: pipeline
run: {dir: runs/p}
stages:
  sft:
    stage: sft
    data: {path: d.jsonl}
    model: {model: Qwen/Qwen2.5-0.5B}
  reward:
    stage: reward
    data: {path: d.jsonl}
    model: {model: stage:sft, engine: {micro_batch_tokens: 4096}}
""",
        "utf-8",
    )
    found = {name: stage.estimate for name, stage in plan_stages(load_config(path)).items()}
    shape = find_model("Qwen/Qwen2.5-0.5B").shape
    parameters = {name: estimate.roles[role].resident[0].amount for name, role, estimate in (
        ("sft", "policy", found["sft"]), ("reward", "reward", found["reward"])
    )}  # fmt: skip
    assert parameters == {"sft": 4 * shape.num_params, "reward": 4 * shape.num_scalar_params}


# -------------------------------------------------------------------------------------------------------------- refusals


def test_what_does_not_fit_is_refused_with_every_number(config: Path) -> None:
    text = refused(config, "cluster.gpu=l4", "policy.engine.micro_batch_tokens=1024", "rollout.gpu_memory_frac=0.5")
    title, *problems = text.splitlines()
    assert title == "stage ppo does not fit (`--skip-memory-check` starts it all the same):"
    assert problems[0].startswith("  memory of group 'all': needs ")
    for part in (
        "GiB a GPU in phase update (policy ",
        "optimizer 11.5",
        "masters 5.8",
        "rollout 0.8, asleep",
        "; allowed: 22.0 GiB, what a l4 has",
    ):
        assert part in problems[0], (part, problems[0])


def test_refusal_ends_with_the_best_suggestions(config: Path) -> None:
    found, plan = estimated(config, "cluster.gpu=l4")
    helped = replace(
        found, suggestions=(Suggestion(change="policy.engine.zero_stage=3", effect="40 -> 20 GiB", gain=1.0),)
    )
    with pytest.raises(ConfigError, match=r"what would help: policy.engine.zero_stage=3 \(40 -> 20 GiB\)$"):
        check_fits(helped, plan, stage="ppo")


def test_engine_without_room_for_one_sequence_is_refused(config: Path) -> None:
    text = refused(config, "cluster.gpu=l4", "rollout.gpu_memory_frac=0.25", "rollout.group=engines")
    assert "rollout.gpu_memory_frac: leaves 0.0 GiB of key-value cache, " in text
    assert "; allowed: room for at least one: 28 KiB a token" in text


def test_unknown_kind_of_gpu_is_refused_by_plan_and_run(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for command in ("plan", "run"):
        assert cli.main([command, str(config), "cluster.gpu=h100"]) == 2
        err = capsys.readouterr().err
        assert err.startswith(
            "preceptor: unknown GPU kind:\n  cluster.gpu: got 'h100' (did you mean 'h100-80gb'?); allowed: "
        )
    assert cli.main(["plan", str(config), "cluster.groups.all.gpu=b20"]) == 2
    assert "cluster.groups.all.gpu: got 'b20' (did you mean 'b200'?)" in capsys.readouterr().err


def test_unknown_model_is_said_and_not_refused(config: Path) -> None:
    found, plan = estimated(config, "policy.model=org/nothing", "critic.init_from=model", "critic.model=Qwen/Qwen3-8B")
    assert found.unknown[0] == (
        "memory of policy: org/nothing: no folder, not among the facts that ship with preceptor (models/), not in the hub's cache"
    )
    assert set(found.roles) == {"critic"} and not found.groups
    check_fits(found, plan, stage="ppo")


def test_gpus_of_no_known_kind_are_said(config: Path) -> None:
    found, _ = estimated(config, "cluster.gpu=null")
    assert "the kind of GPU is not given (cluster.gpu): nothing is held against its memory" in found.unknown
    assert found.groups["all"].limit_bytes is None
    # the workers of reward functions have none
    assert estimated(config)[0].unknown == ()


def test_tight_fit_is_a_warning(config: Path) -> None:
    found, plan = estimated(config)
    group = found.groups["all"]
    limit = group.peak.amount * 1.01
    fits = replace(group, limit_bytes=limit, phases=(Item(name="update", amount=group.peak.amount),))
    from orchestrator.estimate.groups import tight_fits

    (warning,) = tight_fits({"all": fits}, plan, {"all": None})
    assert (
        warning.startswith("group all: ") and "are left in phase update: the allocator's gaps may take that" in warning
    )


def test_run_refuses_before_it_makes_a_folder_and_can_be_overruled(
    config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = ["run", str(config), f"run.dir={tmp_path / 'run'}", "cluster.gpu=l4"]
    assert cli.main(run) == 2
    assert "stage ppo does not fit" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
    started: list[Any] = []
    monkeypatch.setattr("orchestrator.jobs.run", lambda config, **_: started.append(config))
    assert cli.main([*run, "--skip-memory-check"]) == 0
    assert len(started) == 1


# ------------------------------------------------------------------------------------------------------------- the command


def test_plan_shows_memory(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["plan", str(config)]) == 0
    out = capsys.readouterr().out
    for part in (
        "memory of each rank in GiB",
        "policy x 1",
        "1.54e9 parameters x 2 bytes",
        "memory of each GPU in GiB, by phase of a step",
        "79.10",
        "rollout: the key-value cache of an engine, ",
    ):
        assert part in out, part


def test_plan_as_json_has_the_estimate_beside_the_plan(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["plan", str(config), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["trajectories_per_step"] == 64
    group = found["estimate"]["groups"]["all"]
    assert group["gpu"] == "h100-80gb" and group["limit_bytes"] == pytest.approx(79.1 * GIB)
    assert [phase["name"] for phase in group["phases"]] == ["generate", "score", "update", "sync"]


def test_plan_ends_with_the_refusal_of_what_does_not_fit(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for extra in ([], ["--json"]):
        assert cli.main(["plan", str(config), "cluster.gpu=l4", *extra]) == 2
        shown = capsys.readouterr()
        assert ("memory of each GPU in GiB" in shown.out) if not extra else json.loads(shown.out)["estimate"]["groups"]
        assert shown.err.startswith(
            "preceptor: stage ppo does not fit (`--skip-memory-check` starts it all the same):\n"
        )
        assert "memory of group 'all': needs " in shown.err


def test_plan_for_gpus_that_this_machine_has_not(config: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.setattr("orchestrator.machine.NVIDIA_GPUS", Path("/nowhere"))
    none = "`preceptor run` would refuse it on this machine: cluster.device: got 'cuda'; allowed: 'cpu': this machine has no GPU"
    assert cli.main(["plan", str(config), "cluster.address=null"]) == 0
    assert capsys.readouterr().out.startswith(
        f"stage ppo on another machine than this one (GPUs of kind h100-80gb)\n{none}\n"
    )
    assert cli.main(["plan", str(config), "cluster.address=null", "cluster.gpu=null"]) == 0
    assert "stage ppo on another machine than this one (GPUs of kind (not given))" in capsys.readouterr().out
    assert cli.main(["run", str(config), "cluster.address=null"]) == 2
    assert capsys.readouterr().err == (
        "preceptor: stage ppo can't run on this machine:\n"
        "  cluster.device: got 'cuda'; allowed: 'cpu': this machine has no GPU\n"
    )


def test_plan_for_more_gpus_than_this_machine_has(config: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    (config.parent / "gpus" / "one").mkdir(parents=True)
    monkeypatch.setattr("orchestrator.machine.NVIDIA_GPUS", config.parent / "gpus")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert cli.main(["plan", str(config), "cluster.address=null"]) == 0
    assert re.match(r"stage ppo on this machine \(\d+ cores, 1 GPUs\)\nrole ", capsys.readouterr().out)
    two = ["cluster.address=null", "rollout.group=engines"]
    takes = "cluster.device: the groups take 2 GPUs (all 1 + engines 1); allowed: 1: this machine has no more"
    assert cli.main(["plan", str(config), *two]) == 0
    shown = capsys.readouterr().out
    assert shown.startswith("stage ppo on another machine than this one (GPUs of kind h100-80gb)\n")
    assert f"`preceptor run` would refuse it on this machine: {takes}" in shown
    assert cli.main(["plan", str(config), *two, "--json"]) == 0
    assert takes in json.loads(capsys.readouterr().out)["refusal"]
    assert cli.main(["run", str(config), *two]) == 2
    assert takes in capsys.readouterr().err


def test_plan_of_a_cpu_stage_for_more_cores_than_this_machine_has(config: Path, capsys: Any) -> None:
    many = ["cluster.address=null", "cluster.device=cpu", "cluster.num_cpus=9999"]
    assert cli.main(["plan", str(config), *many]) == 0
    shown = capsys.readouterr().out
    assert shown.startswith("stage ppo on a larger machine than this one\n")
    assert "cluster.num_cpus: got 9999; allowed: at most " in shown
    assert re.search(r"all ranks together: generate [^;]+; at most [\d.]+\n", shown)  # held against no machine's memory


def test_only_stages_for_this_machine_are_held_against_its_memory(config: Path, capsys: Any) -> None:
    stage = yaml.safe_load(config.read_text("utf-8"))
    here = {**stage, "cluster": {"device": "cpu"}}
    there = {**stage, "cluster": {"device": "cpu", "num_cpus": 9999}}
    pipeline = {"stage": "pipeline", "run": here.pop("run"), "stages": {"a": here, "b": there}}
    del there["run"]
    path = config.parent / "pipeline.yaml"
    path.write_text(yaml.safe_dump(pipeline), "utf-8")
    cli.main(["plan", str(path)])
    a, b = capsys.readouterr().out.split("stage b ")[:2]
    assert re.search(r"all ranks together: .* of [\d.]+\n", a)
    assert re.search(r"all ranks together: generate [^;]+; at most [\d.]+\n", b)


def test_plan_answers_within_two_seconds_without_torch_or_ray(config: Path) -> None:
    code = (
        "import sys; from orchestrator import cli; code = cli.main(sys.argv[1:]);"
        "print([m for m in ('torch', 'ray', 'transformers', 'vllm', 'deepspeed', 'huggingface_hub') if m in sys.modules], file=sys.stderr);"
        "sys.exit(code)"
    )
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(
        [sys.executable, "-c", code, "plan", str(config)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert (done.returncode, done.stderr.strip()) == (0, "[]")
    # of this process alone: a clock would also count what else the machine does
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 2


# ------------------------------------------------------------------------------------------------------------ model files

LLAMA = {
    "model_type": "llama",
    "vocab_size": 100,
    "hidden_size": 8,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
}


def test_sizes_come_from_a_folder_the_facts_or_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "config.json").write_text(json.dumps(LLAMA), "utf-8")
    assert find_model(str(tmp_path)).origin == str(tmp_path / "config.json")
    assert find_model("Qwen/Qwen3-8B").origin == "facts that ship with preceptor"
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(UnknownModel):
        find_model("org/cached")
    snapshot = tmp_path / "models--org--cached" / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").write_text(json.dumps({**LLAMA, "vocab_size": 200}), "utf-8")
    (tmp_path / "models--org--cached" / "refs").mkdir()
    (tmp_path / "models--org--cached" / "refs" / "main").write_text("abc\n", "utf-8")
    assert find_model("org/cached").shape.vocab_size == 200


@pytest.mark.parametrize(
    ("text", "said"), [("{", "config.json can't be read: "), ("[1]", "config.json is not a JSON object")]
)
def test_damaged_config_is_unknown(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "config.json").write_text(text, "utf-8")
    with pytest.raises(UnknownModel, match=said):
        find_model(str(tmp_path))


def test_folder_without_config_is_unknown(tmp_path: Path) -> None:
    with pytest.raises(UnknownModel, match=r"config.json can't be read: .*No such file"):
        find_model(str(tmp_path))


@pytest.mark.parametrize(
    ("model", "facts"), yaml.safe_load((ROOT / "configs/facts/models.yaml").read_text("utf-8")).items()
)
def test_shipped_models_have_the_published_counts(model: str, facts: dict[str, Any]) -> None:
    shape = find_model(model).shape
    assert facts["parameters"] in (shape.num_params, shape.num_scalar_params)
