"""What the command line asks for: run, resume, export, dry run."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from actors.errors import UserError
from actors.preflight import PromptFacts, SupervisedFacts
from actors.store import create_only, entries, is_local, make_folder, run_path, write_whole
from configs.load import dump_config
from configs.schema import DATA_KEY, STAGE_PREFIX, Config, Pipeline, Stage, references, stage_models
from configs.schema.ppo import PPOStage
from configs.schema.rank import RankStage
from orchestrator.checkpoints import Checkpoints
from orchestrator.flat import flat
from orchestrator.ledger import num_committed
from orchestrator.lineage import lineage_of, write_lineage
from orchestrator.machine import local_machine
from orchestrator.mirrored import mirrored
from orchestrator.plan import Plan, check_groups, made_by, make_plan, num_gpus, plan_json
from orchestrator.progress import DRIVER_LOG, Progress
from orchestrator.registry.address import address_for_run
from orchestrator.registry.recorder import Recorder, recording
from orchestrator.run_dir import (
    CONFIG_FILE,
    DONE_FILE,
    EXPORT_FOLDER,
    OVERRIDES_FILE,
    RANKINGS_FILE,
    existing_run,
    locked,
    new_run,
    require_run,
    require_writable,
    same_plan,
    stored_config,
)
from orchestrator.sessions import read_sessions
from orchestrator.signals import Stopped, interruptible
from orchestrator.surroundings import cluster_address, place_of_run
from orchestrator.trackers import check_trackers
from orchestrator.tracking import trackers


def run(config: Config, *, overrides_text: Sequence[str], progress: Progress, registry: str | None = None) -> None:
    """Runs a config from its start. Where it is refused before anything has begun, the run directory is left as it was found.

    `registry`: its address, as `--registry` takes it; without one the environment says where it is.

    Raises:
        UserError, ConfigError: for bad input.
        PreceptorError: for a run that failed.
        Stopped: where the user stopped it.
    """
    check_groups(config)
    address = address_for_run(registry, progress.note)
    with (
        interruptible(),
        new_run(place_of_run(config.run.dir), dump_config(config)) as run_dir,
        mirrored(run_dir) as here,
        progress.log_to(here / DRIVER_LOG),
        recording(address, progress.note) as recorder,
    ):
        write_whole(run_dir / OVERRIDES_FILE, json.dumps(list(overrides_text)).encode())
        _run_stages(config, run_dir, progress, recorder)


def run_or_resume(
    config: Config, *, overrides_text: Sequence[str], progress: Progress, registry: str | None = None
) -> None:
    """Runs a config, or goes on where `run.dir` holds its run already: what is tried again by a machine does not know which.

    Raises:
        UserError: where `run.dir` holds the run of another config; and as `run` and `resume` do.
    """
    try:
        folder = require_run(place_of_run(config.run.dir))
    except UserError:
        run(config, overrides_text=overrides_text, progress=progress, registry=registry)
        return
    begun = stored_config(folder)
    if begun != config:
        before, now = flat(begun.model_dump()), flat(config.model_dump())
        keys = [key for key in dict.fromkeys((*before, *now)) if before.get(key) != now.get(key)]
        listed = ", ".join(keys[:5]) + (", ..." if len(keys) > 5 else "")
        raise UserError(
            f"run.dir: {folder} holds the run of another config, which differs in {listed}; allowed: a new or empty folder, or one that "
            "holds the run of this very config"
        )
    progress.note(f"{folder} holds this run: it goes on")
    resume(config.run.dir, progress, registry=registry)


def resume(run_dir: str, progress: Progress, *, registry: str | None = None) -> None:
    """Goes on with a run from its newest whole checkpoint and its ledger. A run that is done says so and does nothing."""
    address = address_for_run(registry, progress.note)
    with interruptible(), existing_run(place_of_run(run_dir), progress.note) as folder:
        config = stored_config(folder)
        if (folder / DONE_FILE).exists():
            progress.note(f"{folder} is finished; nothing is left to do")
            return
        with (
            mirrored(folder) as here,
            progress.log_to(here / DRIVER_LOG),
            recording(address, progress.note) as recorder,
        ):
            _run_stages(config, folder, progress, recorder)


def _run_stages(config: Config, run_dir: Path, progress: Progress, recorder: Recorder) -> None:
    if not isinstance(config, Pipeline):
        finished = _run_stage(config, run_dir, progress, recorder)
    else:
        finished = all(_run_one_of(config, name, run_dir, progress, recorder) for name in config.stages)
        if finished:
            write_whole(run_dir / DONE_FILE, json.dumps({"stages": list(config.stages)}).encode())
    if not finished:
        raise Stopped(f"stopped; everything committed is kept. Go on with: preceptor resume {run_dir}")


def _run_one_of(config: Pipeline, name: str, run_dir: Path, progress: Progress, recorder: Recorder) -> bool:
    """Runs a stage of a pipeline, or goes on with it. True where it came to its end, now or before."""
    stage, folder = config.stages[name], run_dir / name
    if (folder / DONE_FILE).exists():
        progress.note(f"stage {name} is finished already")
        return True
    progress.note(f"stage {name} ({list(config.stages).index(name) + 1} of {len(config.stages)}: {stage.stage})")
    make_folder(folder)
    resolved = resolve_references(stage, run_dir)
    with locked(folder, progress.note), mirrored(folder):
        with suppress(FileExistsError):
            create_only(folder / CONFIG_FILE, dump_config(resolved).encode())
        return _run_stage(resolved, folder, progress, recorder, pipeline=run_dir)


def _run_stage(
    config: Stage, run_dir: Path, progress: Progress, recorder: Recorder, *, pipeline: Path | None = None
) -> bool:
    """True where the stage came to its end, False where it was asked to stop before. `pipeline`: the folder of the one it is part of."""
    from orchestrator.stages import run_ppo, run_rank, run_supervised

    def on_ready(plan: Plan) -> None:
        """Everything that could be checked is right: from here the run directory holds a run."""
        same_plan(run_dir, plan_json(plan), deterministic=config.run.deterministic, note=progress.note)
        if pipeline is not None and not recorder.has(pipeline):
            recorder.begin(pipeline, num_gpus=0)
        recorder.begin(run_dir, num_gpus=num_gpus(plan))

    check_trackers(config.run.trackers)
    last, begun = num_committed(run_dir), bool(read_sessions(pipeline or run_dir))
    with (
        trackers(config.run, run_dir, config.model_dump(), last_step=last, note=progress.note, begun=begun) as watching,
        progress.tracking(watching, recorder),
    ):
        if isinstance(config, PPOStage):
            exported = run_ppo(config, run_dir, progress, on_ready)
        elif isinstance(config, RankStage):
            exported = run_rank(config, run_dir, progress, on_ready)
        else:
            exported = run_supervised(config, run_dir, progress, on_ready)
    if exported is not None:
        write_lineage(run_dir / EXPORT_FOLDER, lineage_of(config, run_dir, role=made_by(config), step=exported))
        write_whole(run_dir / DONE_FILE, json.dumps({"stage": config.stage}).encode())
        recorder.end(run_dir, "finished")
        what = "rankings" if isinstance(config, RankStage) else "model for transformers and vLLM"
        progress.note(f"done: {run_dir / EXPORT_FOLDER} holds the {what}")
    return exported is not None


def resolve_references(stage: Stage, run_dir: Path) -> Stage:
    """The stage with every `stage:NAME` replaced by that stage's export."""
    exports = {key: run_dir / value.removeprefix(STAGE_PREFIX) / EXPORT_FOLDER for key, value in references(stage)}
    return _with_values(
        stage, {key: str(path / RANKINGS_FILE if key == DATA_KEY else path) for key, path in exports.items()}
    )


def _with_values(stage: Stage, changed: Mapping[str, str]) -> Stage:
    """The stage with other values, by key."""
    values = stage.model_dump()
    for key, value in changed.items():
        *sections, last = key.split(".")
        section = values
        for name in sections:
            section = section[name]
        section[last] = value
    return type(stage).model_validate(values)


@dataclass(frozen=True, slots=True, kw_only=True)
class DryRun:
    """What a dry run found right."""

    plans: tuple[Plan, ...]
    """Of each stage."""
    unchecked: tuple[str, ...]
    """In words: what can't be known before an earlier stage has run."""
    facts: dict[str, PromptFacts | SupervisedFacts]
    """Of data and models, by the stage's name, empty where there is only one; without stages whose data is still to be made."""


def dry_run(config: Config) -> DryRun:
    """Everything that `run` checks before it starts: plan, data, models, run directory. Starts nothing and writes nothing."""
    from actors.preflight import check_ppo, check_rank, check_supervised

    check_groups(config)
    folder = run_path(place_of_run(config.run.dir)).absolute()
    require_writable(folder)
    if folder.is_dir() and entries(folder):
        raise UserError(
            f"run.dir: {folder} is not empty; allowed: a new or empty folder. `preceptor resume {config.run.dir}` continues a run"
        )
    stages = dict(config.stages) if isinstance(config, Pipeline) else {"": config}
    plans: list[Plan] = []
    unchecked = [] if is_local(folder) else ["run.dir: whether objects can be created and removed there"]
    facts: dict[str, PromptFacts | SupervisedFacts] = {}
    origins: dict[str, str] = {}
    for name, stage in stages.items():
        check_trackers(stage.run.trackers)
        plans.append(make_plan(stage, local_machine() if cluster_address(stage.cluster) is None else None))
        unmade = dict(references(stage))
        models = {key: origins[value] for key, value in unmade.items() if key != DATA_KEY}
        checked = _with_values(stage, models)
        unchecked += [
            f"stages.{name}.{key}: {unmade[key]} does not exist yet, only tokenizer, sizes and window of what it is made from ({origin})"
            for key, origin in models.items()
        ]
        if DATA_KEY in unmade:
            unchecked.append(f"stages.{name}.{DATA_KEY}: {unmade[DATA_KEY]} does not exist yet")
        try:
            if isinstance(checked, PPOStage):
                facts[name] = check_ppo(checked, unmade=frozenset(unmade))
            elif isinstance(checked, RankStage):
                facts[name] = check_rank(checked)
            elif DATA_KEY not in unmade:
                facts[name] = check_supervised(checked, unmade="model.model" in unmade)
        except UserError as error:
            if not name:
                raise
            raise UserError(f"stages.{name}: {error}") from error
        origins[f"{STAGE_PREFIX}{name}"] = _made_from(checked)
    return DryRun(plans=tuple(plans), unchecked=tuple(unchecked), facts=facts)


def _made_from(stage: Stage) -> str:
    """The model that a stage's export is made from, and which it shares tokenizer and sizes with."""
    return next(iter(stage_models(stage).values()))


def export(run_dir: str, out: str, *, role: str | None, step: int | None, progress: Progress) -> None:
    """Writes a model of a run's checkpoint as a Hugging Face folder `out`, whole or not at all.

    The run is taken meanwhile: a driver that goes on with it would evict checkpoints.

    Raises:
        UserError: for bad input, or where another driver has the run.
        PreceptorError: where it failed.
    """
    from orchestrator.export import export_checkpoint, whole_folder

    folder = require_run(place_of_run(run_dir))
    config = stored_config(folder)
    if isinstance(config, Pipeline):
        raise UserError(
            f"{folder} is a pipeline; allowed: one of its stages' folders: {', '.join(str(folder / name) for name in config.stages)}"
        )
    with interruptible(), locked(folder, progress.note):
        steps = Checkpoints(folder, keep=1).steps()
        if not steps or (step is not None and step not in steps):
            raise UserError(
                f"{folder} has checkpoints of the steps {steps}, got {step if step is not None else 'none'}"
            )
        with (
            whole_folder(run_path(place_of_run(out), "OUT").absolute()) as target,
            mirrored(folder) as here,
            progress.log_to(here / DRIVER_LOG),
        ):
            export_checkpoint(config, folder, step or steps[-1], role, target, progress)
