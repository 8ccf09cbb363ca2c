"""A checkpoint's model as a Hugging Face folder: only the role that holds it is started."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

from actors.durable import make_folder, sync
from actors.errors import PreceptorError, UserError
from actors.store import entries, is_local, reason, remove_tree, require_store
from actors.supervised_trainer import ItemsReport, SupervisedTrainer
from actors.trainer import Trainer
from configs.schema import Stage
from configs.schema.ppo import PPOStage
from configs.schema.rank import RankStage
from orchestrator.checkpoints import Checkpoints
from orchestrator.launch import RoleSpec
from orchestrator.lineage import lineage_of, write_lineage
from orchestrator.plan import CPUS_PER_RANK, Plan, made_by
from orchestrator.plan_records import PPOPlan
from orchestrator.progress import Progress
from orchestrator.stages import TRAINERS, launched_roles, ppo_roles, ray_for
from orchestrator.supervised_loop import evaluate, export_evaluated


def export_checkpoint(
    config: Stage,
    run_dir: Path,
    step: int,
    role: str | None,
    target: Path,
    progress: Progress,
) -> None:
    """Writes the model of `role` (the policy's, or the one that the stage trains, where it is None) as of `step` into the folder `target`.

    Raises:
        UserError: for a role that the stage does not train.
    """
    if isinstance(config, RankStage):
        raise UserError(f"{run_dir} is of stage rank, which trains no model: its rankings are in its folder export")
    roles = ("policy", "critic") if isinstance(config, PPOStage) else (made_by(config),)
    name = role or roles[0]
    if name not in roles:
        raise UserError(f"--role: got {name!r}; allowed for a {config.stage} stage: {', '.join(roles)}")
    tokenizer_from = config.policy.model if isinstance(config, PPOStage) else config.model.model
    assert tokenizer_from is not None
    checkpoints = Checkpoints(run_dir, keep=config.run.keep_checkpoints)
    checkpoints.state(step)
    with ray_for(config, progress) as whole:
        only = only_role(whole, name)
        specs = ppo_roles(config, whole) if isinstance(whole, PPOPlan) and isinstance(config, PPOStage) else {}
        spec = specs.get(name) or RoleSpec(role_class=TRAINERS[config.stage], args=(config,))
        with launched_roles(config, only, {name: spec}, run_dir, progress) as launched:
            group, waiter = launched.groups[name], launched.waiter
            with progress.phase(f"loading the checkpoint of step {step}"):
                waiter.wait(group.call(Trainer.load, str(checkpoints.folder(step))))
            with progress.phase(f"writing the model of {name}"):
                if isinstance(config, PPOStage):
                    waiter.wait(group.call(Trainer.export, str(target), tokenizer_from))
                else:
                    items: ItemsReport = waiter.wait([group.call_rank(0, SupervisedTrainer.items)])[0]
                    evaluation = evaluate(group, waiter, config, items)
                    export_evaluated(group, waiter, str(target), evaluation)
            write_lineage(target, lineage_of(config, run_dir, role=name, step=step))


@contextmanager
def whole_folder(target: Path) -> Iterator[Path]:
    """A folder to write in, which gets the name `target` when the block has ended, and which is gone where the block fails.

    Raises:
        UserError: where `target` is occupied or can't be written.
        PreceptorError: where nothing was written.
    """
    if not is_local(target):
        with _whole_in_store(target):
            yield target
        return
    if target.is_symlink() or (target.exists() and (not target.is_dir() or any(target.iterdir()))):
        raise UserError(f"{target} exists and is not an empty folder; allowed: a new or empty folder")
    new = target.with_name(f".{target.name}.new-{os.getpid()}")
    missing = [one for one in target.parents if not one.exists()]
    try:
        make_folder(new)
    except OSError as error:
        raise UserError(f"{target} can't be written ({reason(error)})") from error
    try:
        yield new
        if not any(new.iterdir()):
            raise PreceptorError(f"nothing came to {target}; is it in a folder that all nodes of the cluster share?")
        new.rename(target)
        sync(target.parent)
    finally:
        shutil.rmtree(new, ignore_errors=True)
        for created in missing:
            # only those that are empty again
            with suppress(OSError):
                created.rmdir()


@contextmanager
def _whole_in_store(target: Path) -> Iterator[None]:
    """A store renames nothing: the files come under their own names, the lineage last, and go again where the block fails."""
    require_store(target, key="OUT")
    if entries(target):
        raise UserError(f"{target} is not empty; allowed: a new or empty place")
    try:
        yield
    except BaseException:
        remove_tree(target)
        raise


def only_role(plan: Plan, name: str) -> Plan:
    """The plan with one role alone, placed as if nobody shared its group."""
    role = plan.roles[name]
    group = replace(
        plan.groups[role.group],
        num_bundles=role.num_ranks,
        gpus_per_bundle=role.gpus_per_rank,
        cpus_per_bundle=CPUS_PER_RANK,
        roles=(name,),
    )
    alone = replace(plan, roles={name: role}, groups={role.group: group})
    # there are no engines to take turns with
    return replace(alone, rollout_shares_gpu=False) if isinstance(alone, PPOPlan) else alone
