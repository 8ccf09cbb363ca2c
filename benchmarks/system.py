"""One PPO run of the whole system, and rollouts against bare vLLM while it is still up.

The loop, the roles and the run directory are those of `preceptor run`; only the end is put off until the rollouts are compared.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import yaml

from actors.durable import write_whole
from actors.preflight import PromptFacts, check_ppo
from benchmarks.ledger_tables import busy_table, memory_table, phase_table, sync_table
from benchmarks.models import make_scorer, make_small_model, write_prompts
from benchmarks.rollout_speed import InSystem, bare_process, compare
from benchmarks.table import Table, write_tables
from configs.load import dump_config, load_config
from configs.schema.ppo import PPOStage
from orchestrator.plan import plan_json
from orchestrator.plan_records import PPOPlan
from orchestrator.ppo_loop import PPOLoop
from orchestrator.progress import DRIVER_LOG, Progress
from orchestrator.run_dir import CONFIG_FILE, EXPORT_FOLDER, PLAN_FILE, new_run
from orchestrator.signals import interruptible
from orchestrator.stages import in_cluster, launched_roles, ppo_roles, ray_for

ROUNDS = 5


def write_config(work: Path, model: Path | None, run_dir: Path) -> Path:
    """The stage that is measured: every role, fp32 for the small model, bf16 for a given one."""
    small = model is None
    policy = make_small_model(work / "model") if model is None else model
    scorer = make_scorer(work / "scorer", policy)
    max_prompt, answer, prompts, wave, steps = (64, 64, 32, 16, 5) if small else (64, 48, 16, 8, 4)
    engine = {"dtype": "fp32" if small else "bf16"}
    trained = {**engine, "zero_stage": 0 if small else 1}
    # room for the rounds after the run: no prompt comes twice
    num_prompts = prompts * (steps + 4 * ROUNDS)
    data = write_prompts(work / "prompts.jsonl", policy, num_prompts=num_prompts, max_tokens=max_prompt)
    stage = {
        "stage": "ppo",
        "run": {"dir": str(run_dir), "seed": 1, "deterministic": True, "checkpoint_every": 1000},
        "data": {"path": str(data), "chat_template": False, "max_prompt_tokens": max_prompt, "overlong": "drop"},
        "policy": {"model": str(policy), "engine": trained},
        "critic": {"engine": trained},
        "reference": {"engine": engine},
        "reward": {"model": {"model": str(scorer), "normalise": False, "engine": engine}},
        "rollout": {
            **engine,
            "max_response_tokens": answer,
            "prompts_per_wave": wave,
        },
        "ppo": {"steps": steps, "prompts_per_step": prompts, "minibatches": 2},
    }
    path = work / "stage.yaml"
    path.write_text(yaml.safe_dump(stage, sort_keys=False), "utf-8")
    return path


def run(config: PPOStage) -> list[Table]:
    """Runs the stage, then compares rollouts, then ends everything."""
    with Progress() as progress, interruptible(), new_run(config.run.dir, dump_config(config)) as run_dir:
        with progress.log_to(run_dir / DRIVER_LOG), ray_for(config, progress) as plan:
            assert isinstance(plan, PPOPlan)
            write_whole(run_dir / PLAN_FILE, plan_json(plan).encode())
            facts: PromptFacts = in_cluster(check_ppo, config, timeout_s=config.cluster.start_timeout_s)
            with launched_roles(config, plan, ppo_roles(config, plan), run_dir, progress) as launched:
                loop = PPOLoop(config, plan, launched, run_dir, facts.num_prompts, progress)
                loop.run()
                steps = config.ppo.steps
                system = InSystem(config, plan, launched, num_prompts=facts.num_prompts, policy_version=steps)
                log = run_dir / "logs" / "bare-vllm.log"
                with (
                    progress.phase("rollouts against bare vLLM"),
                    bare_process(config, plan, run_dir / CONFIG_FILE, run_dir / EXPORT_FOLDER, log) as bare,
                ):
                    speed = compare(system, bare, first_step=steps + 1, rounds=ROUNDS)
        entries = [loop.ledger.read(step) for step in range(1, steps + 1)]
    tables = [
        phase_table(entries, config),
        busy_table(entries),
        sync_table(entries),
        memory_table(entries[-1].metrics),
        speed,
    ]
    return [table for table in tables if table is not None]


def main() -> None:
    """`python -m benchmarks.system OUT --work DIR [--model DIR]`: the tables as JSON."""
    parser = argparse.ArgumentParser(prog="benchmarks.system")
    parser.add_argument("out", type=Path)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--model", type=Path, default=None)
    arguments = parser.parse_args()
    config = load_config(str(write_config(arguments.work, arguments.model, arguments.work / "run")))
    assert isinstance(config, PPOStage)
    write_tables(arguments.out, run(config))


if __name__ == "__main__":
    main()
