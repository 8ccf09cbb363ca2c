"""A run once more: what is no longer as it was then, and the config of the new run."""

from __future__ import annotations

import copy
import json
from collections.abc import Sequence
from typing import Any

from actors.errors import UserError
from actors.store import entries, is_local, require_listed, run_path
from configs.load import parse_config
from configs.schema import Config, Pipeline, references
from orchestrator.differences import Difference, Differences, Subject, differences, subject_of_run
from orchestrator.flat import flat
from orchestrator.jobs import DryRun, dry_run
from orchestrator.lineage import code_version
from orchestrator.plan import plan_json
from orchestrator.registry.records import WholeRun
from orchestrator.sessions import installed_packages, machine_facts
from orchestrator.surroundings import cluster_address

SUFFIX = "-again"


def config_for(found: Sequence[WholeRun], folder: str | None) -> Config:
    """The run's resolved config, for a new run directory.

    Raises:
        UserError: the directory is not new, or its store can't be used.
        ConfigError: the config is of another version and no longer valid.
    """
    values = copy.deepcopy(found[0].run.config)
    values["run"]["dir"] = folder or f"{found[0].run.run_dir}{SUFFIX}"
    place = run_path(values["run"]["dir"], "--dir").absolute()
    if not is_local(place):
        require_listed(place, key="--dir")
    if place.exists() and (not place.is_dir() or entries(place)):
        raise UserError(f"--dir: {place} is not empty; allowed: a new or empty folder, such as --dir {place}-2")
    for name, stage in values.get("stages", {}).items():
        stage["run"]["dir"] = f"{values['run']['dir'].rstrip('/')}/{name}"
    return parse_config(values)


def not_the_same(found: Sequence[WholeRun], config: Config) -> Differences:
    """What would not be as it was then: code, packages, data, models, machine, plan. Starts nothing and writes nothing."""
    then = subject_of_run("then", found)
    facts: dict[str, dict[str, Any]] = {
        "config": then.facts["config"],  # the same by construction
        "code": dict(code_version()),
        "packages": installed_packages(),
        "machine": machine_facts(),
    }
    notes: list[str] = []
    for area in ("code", "packages", "machine"):
        if not then.facts[area]:
            notes.append(f"{area}: not known of then, the run was made by a version that did not note it")
            del facts[area]
    trouble: list[Difference] = []
    try:
        checked = dry_run(config)
    except UserError as error:
        trouble = [Difference(area="data", key="check", a="passed", b=str(error))]
    else:
        facts |= _inputs(checked, config, then)
        notes += [f"not checked: {text}" for text in checked.unchecked]
    if not then.deterministic:
        notes.append("models: only their shapes are compared; weights are noted where run.deterministic is true")
        notes.append("the run was not deterministic: the same inputs give other numbers, within noise")
    else:
        notes.append("the run was deterministic: with everything the same its digests are, on the same kind of machine")
    # what was made here and now has no steps to compare
    now = Subject(name="now", is_run=False, facts=facts, defaults=then.defaults)
    result = differences(then, now)
    return Differences(found=(*result.found, *trouble), notes=tuple(notes))


def _inputs(checked: DryRun, config: Config, then: Subject) -> dict[str, dict[str, Any]]:
    """Data, models and plan as they are now; of what an earlier stage has yet to make, as it was then."""
    stages = dict(config.stages) if isinstance(config, Pipeline) else {"": config}
    plan: dict[str, Any] = {}
    for (name, stage), planned in zip(stages.items(), checked.plans, strict=True):
        prefix = f"{name}." if name else ""
        if cluster_address(stage.cluster) is None:
            plan |= {prefix + key: value for key, value in flat(json.loads(plan_json(planned))).items()}
        else:  # what a cluster has is known when it is joined
            plan |= {key: value for key, value in then.facts["plan"].items() if key.startswith(prefix)}
    data, models = dict(then.facts["data"]), dict(then.facts["models"])
    for name, found in checked.facts.items():
        prefix = f"{name}." if name else ""
        unmade = tuple(f"{prefix}{key}." for key, _ in references(stages[name]))
        data[f"{prefix}data.path"] = found.fingerprint
        now = {prefix + key: value for key, value in flat({k: dict(v) for k, v in found.models.items()}).items()}
        models |= {key: value for key, value in now.items() if not key.startswith(unmade)}
    # a run that stopped early has noted nothing of its later stages
    return {
        "data": {key: data[key] for key in then.facts["data"]},
        "models": {key: models[key] for key in then.facts["models"]},
        "plan": {key: value for key, value in plan.items() if _begun(key, then, stages)},
    }


def _begun(key: str, then: Subject, stages: dict[str, Any]) -> bool:
    """Whether the stage that a key of the plan is of had a plan then."""
    name = key.partition(".")[0]
    return name not in stages or any(one.startswith(f"{name}.") for one in then.facts["plan"])
