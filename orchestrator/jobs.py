"""What the command line asks for: run, resume, export, dry run."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from actors.errors import PreceptorError, UserError
from configs.load import dump_config, load_config
from configs.schema import STAGE_PREFIX, Config, Pipeline, model_references
from configs.schema.ppo import PPOStage
from configs.schema.reward import RewardStage
from orchestrator.checkpoints import Checkpoints
from orchestrator.ledger import create_only, write_whole
from orchestrator.machine import local_machine
from orchestrator.plan import Plan, make_plan, plan_json
from orchestrator.progress import DRIVER_LOG, Progress
from orchestrator.run_dir import (
    CONFIG_FILE,
    DONE_FILE,
    EXPORT_FOLDER,
    existing_run,
    locked,
    new_run,
    require_run,
    same_plan,
)
from orchestrator.signals import interruptible


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
        same_plan(run_dir, plan_json(plan), deterministic=config.run.deterministic, note=progress.note)

    if isinstance(config, PPOStage):
        finished = run_ppo(config, run_dir, progress, on_ready)
    else:
        finished = run_reward(config, run_dir, progress, on_ready)
    if finished:
        write_whole(run_dir / DONE_FILE, json.dumps({"stage": config.stage}).encode())
        progress.note(f"done: {run_dir / EXPORT_FOLDER} holds the model for transformers and vLLM")
    return finished


def resolve_models(stage: PPOStage | RewardStage, run_dir: Path) -> PPOStage | RewardStage:
    """The stage with every model `stage:NAME` replaced by that stage's export."""
    exports = {
        key: str(run_dir / model.removeprefix(STAGE_PREFIX) / EXPORT_FOLDER) for key, model in model_references(stage)
    }
    return _with_models(stage, exports)


def _with_models(stage: PPOStage | RewardStage, models: Mapping[str, str]) -> PPOStage | RewardStage:
    """The stage with other models, by key."""
    values = stage.model_dump()
    for key, model in models.items():
        *sections, last = key.split(".")
        section = values
        for name in sections:
            section = section[name]
        section[last] = model
    return type(stage).model_validate(values)


@dataclass(frozen=True, slots=True, kw_only=True)
class DryRun:
    """What a dry run found right."""

    plans: tuple[Plan, ...]
    """Of each stage."""
    unchecked: tuple[str, ...]
    """In words: what can't be known before an earlier stage has run."""


def dry_run(config: Config) -> DryRun:
    """Everything that `run` checks before it starts: plan, data, models, run directory. Starts nothing and writes nothing."""
    from actors.preflight import check_ppo, check_reward

    folder = Path(config.run.dir).absolute()
    if folder.is_dir() and any(folder.iterdir()):
        raise UserError(
            f"run.dir: {folder} is not empty; allowed: a new or empty folder. `preceptor resume {config.run.dir}` continues a run"
        )
    stages = dict(config.stages) if isinstance(config, Pipeline) else {"": config}
    plans: list[Plan] = []
    unchecked: list[str] = []
    origins: dict[str, str] = {}
    for name, stage in stages.items():
        plans.append(make_plan(stage, local_machine() if stage.cluster.address is None else None))
        references = dict(model_references(stage))
        checked = _with_models(stage, {key: origins[model] for key, model in references.items()})
        unchecked += [
            f"stages.{name}.{key}: {model} does not exist yet, only tokenizer, sizes and window of what it is made from ({origins[model]})"
            for key, model in references.items()
        ]
        try:
            if isinstance(checked, PPOStage):
                check_ppo(checked, unmade=frozenset(references))
            else:
                check_reward(checked)
        except UserError as error:
            if not name:
                raise
            raise UserError(f"stages.{name}: {error}") from error
        origins[f"{STAGE_PREFIX}{name}"] = _made_from(checked)
    return DryRun(plans=tuple(plans), unchecked=tuple(unchecked))


def _made_from(stage: PPOStage | RewardStage) -> str:
    """The model that a stage's export is made from, and which it shares tokenizer and sizes with."""
    model = stage.policy.model if isinstance(stage, PPOStage) else stage.model.model
    assert model is not None
    return model


def export(run_dir: str, out: str, *, role: str | None, step: int | None, progress: Progress) -> None:
    """Writes a model of a run's checkpoint as a Hugging Face folder `out`, whole or not at all.

    The run is taken meanwhile: a driver that goes on with it would evict checkpoints.

    Raises:
        UserError: for bad input, or where another driver has the run.
        PreceptorError: where it failed.
    """
    from orchestrator.export import export_checkpoint, whole_folder

    folder = require_run(run_dir)
    config = load_config(folder / CONFIG_FILE)
    if isinstance(config, Pipeline):
        raise UserError(
            f"{folder} is a pipeline; allowed: one of its stages' folders: {', '.join(str(folder / name) for name in config.stages)}"
        )
    with interruptible(), locked(folder):
        steps = Checkpoints(folder, keep=1).steps()
        if not steps or (step is not None and step not in steps):
            raise UserError(
                f"{folder} has checkpoints of the steps {steps}, got {step if step is not None else 'none'}"
            )
        with whole_folder(Path(out).absolute()) as target, progress.log_to(folder / DRIVER_LOG):
            export_checkpoint(config, folder, step or steps[-1], role, target, progress)
