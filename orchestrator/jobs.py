"""What the command line asks for: run, resume, export, dry run."""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from actors.errors import PreceptorError, UserError
from configs.load import dump_config, load_config
from configs.schema import Config, Pipeline
from configs.schema.ppo import PPOStage
from configs.schema.reward import RewardStage
from orchestrator.checkpoints import Checkpoints
from orchestrator.ledger import create_only, write_whole
from orchestrator.machine import local_machine
from orchestrator.plan import Plan, make_plan, plan_json
from orchestrator.progress import DRIVER_LOG, Progress
from orchestrator.run_dir import CONFIG_FILE, DONE_FILE, PLAN_FILE, existing_run, locked, new_run, require_run
from orchestrator.signals import interruptible

EXPORT = "export"


class Stopped(PreceptorError):
    """The user asked a run to stop before its end."""


def run(config: Config, *, overrides_text: Sequence[str], progress: Progress) -> None:
    """Runs a config from its start. Where it is refused before anything has begun, the run directory is left as it was found.

    Raises:
        UserError, ConfigError: for bad input.
        PreceptorError: for a run that failed.
        Stopped: where the user stopped it.
    """
    with (
        interruptible(),
        new_run(config.run.dir, dump_config(config)) as run_dir,
        progress.log_to(run_dir / DRIVER_LOG),
    ):
        write_whole(run_dir / "overrides.json", json.dumps(list(overrides_text)).encode())
        _run_stages(config, run_dir, progress)


def resume(run_dir: str, progress: Progress) -> None:
    """Goes on with a run from its newest whole checkpoint and its ledger. A run that is done says so and does nothing."""
    with interruptible(), existing_run(run_dir) as folder:
        config = load_config(folder / CONFIG_FILE)
        if (folder / DONE_FILE).exists():
            progress.note(f"{folder} is finished; nothing is left to do")
            return
        with progress.log_to(folder / DRIVER_LOG):
            _run_stages(config, folder, progress)


def _run_stages(config: Config, run_dir: Path, progress: Progress) -> None:
    if not isinstance(config, Pipeline):
        finished = _run_stage(config, run_dir, progress)
    else:
        finished = all(_run_one_of(config, name, run_dir, progress) for name in config.stages)
        if finished:
            write_whole(run_dir / DONE_FILE, json.dumps({"stages": list(config.stages)}).encode())
    if not finished:
        raise Stopped(f"stopped; everything committed is kept. Go on with: preceptor resume {run_dir}")


def _run_one_of(config: Pipeline, name: str, run_dir: Path, progress: Progress) -> bool:
    """Runs a stage of a pipeline, or goes on with it. True where it came to its end, now or before."""
    stage, folder = config.stages[name], run_dir / name
    if (folder / DONE_FILE).exists():
        progress.note(f"stage {name} is finished already")
        return True
    progress.note(f"stage {name} ({list(config.stages).index(name) + 1} of {len(config.stages)}: {stage.stage})")
    folder.mkdir(exist_ok=True)
    resolved = resolve_models(stage, run_dir)
    with locked(folder):
        with suppress(FileExistsError):
            create_only(folder / CONFIG_FILE, dump_config(resolved).encode())
        return _run_stage(resolved, folder, progress)


def _run_stage(config: PPOStage | RewardStage, run_dir: Path, progress: Progress) -> bool:
    """True where the stage came to its end, False where it was asked to stop before."""
    from orchestrator.stages import run_ppo, run_reward

    def on_ready(plan: Plan) -> None:
        """Everything that could be checked is right: from here the run directory holds a run."""
        write_whole(run_dir / PLAN_FILE, plan_json(plan).encode())

    if isinstance(config, PPOStage):
        finished = run_ppo(config, run_dir, progress, on_ready)
    else:
        finished = run_reward(config, run_dir, progress, on_ready)
    if finished:
        write_whole(run_dir / DONE_FILE, json.dumps({"stage": config.stage}).encode())
        progress.note(f"done: {run_dir / EXPORT} holds the model for transformers and vLLM")
    return finished


def resolve_models(stage: PPOStage | RewardStage, run_dir: Path) -> PPOStage | RewardStage:
    """The stage with every model `stage:NAME` replaced by that stage's export."""

    def resolved(value: object) -> object:
        if isinstance(value, dict):
            return {key: resolved(inner) for key, inner in value.items()}
        if isinstance(value, list | tuple):
            return [resolved(inner) for inner in value]
        if isinstance(value, str) and value.startswith("stage:"):
            return str(run_dir / value.removeprefix("stage:") / EXPORT)
        return value

    return type(stage).model_validate(resolved(stage.model_dump()))


def dry_run(config: Config) -> list[Plan]:
    """Everything that `run` checks before it starts: plan, data, models, run directory. Starts nothing and writes nothing."""
    from actors.preflight import check_ppo, check_reward

    folder = Path(config.run.dir).absolute()
    if folder.is_dir() and any(folder.iterdir()):
        raise UserError(
            f"run.dir: {folder} is not empty; allowed: a new or empty folder. `preceptor resume {config.run.dir}` continues a run"
        )
    stages = list(config.stages.values()) if isinstance(config, Pipeline) else [config]
    plans = []
    for stage in stages:
        plans.append(make_plan(stage, local_machine() if stage.cluster.address is None else None))
        if "stage:" in stage.model_dump_json():
            continue  # its models do not exist before the earlier stage has run
        if isinstance(stage, PPOStage):
            check_ppo(stage)
        else:
            check_reward(stage)
    return plans


def export(run_dir: str, out: str, *, role: str | None, step: int | None, progress: Progress) -> None:
    """Writes a model of a run's checkpoint as a Hugging Face folder."""
    from orchestrator.export import export_checkpoint

    folder = require_run(run_dir)
    config = load_config(folder / CONFIG_FILE)
    if isinstance(config, Pipeline):
        raise UserError(
            f"{folder} is a pipeline; allowed: one of its stages' folders: {', '.join(str(folder / name) for name in config.stages)}"
        )
    target = Path(out).absolute()
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise UserError(f"{target} exists and is not an empty folder")
    checkpoints = Checkpoints(folder, keep=1)
    steps = checkpoints.steps()
    if not steps or (step is not None and step not in steps):
        raise UserError(f"{folder} has checkpoints of the steps {steps}, got {step if step is not None else 'none'}")
    export_checkpoint(config, checkpoints, step if step is not None else steps[-1], role, target, progress)
