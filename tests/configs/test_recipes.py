"""Every recipe loads and has a plan; those for GPUs take the GPUs, and of the kind, that docs/recipes.md says."""

import re
from dataclasses import dataclass
from pathlib import Path

import pytest

from configs.errors import ConfigError
from configs.gpus import gpu_kind
from configs.load import load_config
from configs.schema import Pipeline, Stage
from configs.schema.ppo import PPOStage
from orchestrator.estimate.estimate import estimate
from orchestrator.estimate.fits import check_fits
from orchestrator.plan import Machine, make_plan

ROOT = Path(__file__).parents[2]
RECIPES = sorted((ROOT / "configs/recipes").glob("*.yaml"))


@dataclass(frozen=True)
class Size:
    nodes: int
    gpus_per_node: int
    gpu: str


SIZES = {
    "ppo-1.5b-1gpu": Size(1, 1, "h100-80gb"),
    "ppo-8b-4x24gb": Size(1, 4, "rtx4090"),
    "ppo-8b-8gpu": Size(1, 8, "h100-80gb"),
    "ppo-32b-16gpu": Size(2, 8, "h100-80gb"),
    "ppo-70b-64gpu": Size(8, 8, "h100-80gb"),
    "ppo-30b-moe-64gpu": Size(8, 8, "h200-141gb"),
}
HEADROOM = 0.06
"""Of a GPU's memory, left at the estimated peak."""
ON_GPUS = [path for path in RECIPES if path.stem in SIZES]


def stages(path: Path) -> list[Stage]:
    config = load_config(path)
    return list(config.stages.values()) if isinstance(config, Pipeline) else [config]


def on_gpus(path: Path) -> PPOStage:
    config = load_config(path)
    assert isinstance(config, PPOStage)
    return config


def cluster(size: Size, *, missing: int = 0) -> Machine:
    return Machine(num_cpus=64, num_gpus=size.nodes * size.gpus_per_node - missing, where="a cluster")


def test_recipes_are_found() -> None:
    assert {path.stem for path in RECIPES} >= {"bandit", "demo", "smollm2-hh", *SIZES}


@pytest.mark.parametrize("path", [path for path in RECIPES if path not in ON_GPUS], ids=lambda path: path.stem)
def test_a_recipe_for_a_laptop_has_a_plan_there(path: Path) -> None:
    for stage in stages(path):
        assert stage.cluster.device == "cpu"
        make_plan(stage, Machine(num_cpus=2, num_gpus=0, where="a laptop"))


@pytest.mark.parametrize("path", ON_GPUS, ids=lambda path: path.stem)
def test_a_recipe_for_gpus_takes_all_of_them_and_no_more(path: Path) -> None:
    config, size = on_gpus(path), SIZES[path.stem]
    assert (config.cluster.gpu, config.cluster.gpus_per_node) == (size.gpu, size.gpus_per_node)
    gpu_kind(size.gpu)
    plan = make_plan(config, cluster(size))
    assert sum(group.num_bundles * group.gpus_per_bundle for group in plan.groups.values()) == cluster(size).num_gpus
    assert config.cluster.groups.keys() <= plan.groups.keys()
    with pytest.raises(ConfigError, match="GPU"):
        make_plan(config, cluster(size, missing=1))


@pytest.mark.parametrize("path", ON_GPUS, ids=lambda path: path.stem)
def test_no_engine_needs_more_gpus_than_a_node_has(path: Path) -> None:
    config, size = on_gpus(path), SIZES[path.stem]
    assert size.gpus_per_node % config.rollout.tensor_parallel == 0
    for name, group in make_plan(config, cluster(size)).groups.items():
        in_one_node = name in config.cluster.groups and config.cluster.groups[name].strategy == "strict_pack"
        assert not in_one_node or group.num_bundles * group.gpus_per_bundle <= size.gpus_per_node


@pytest.mark.parametrize("path", ON_GPUS, ids=lambda path: path.stem)
def test_a_recipe_for_gpus_fits_with_room_to_be_wrong(path: Path) -> None:
    config = on_gpus(path)
    plan = make_plan(config, cluster(SIZES[path.stem]))
    found = estimate(config, plan, None, {})
    check_fits(found, plan, stage="ppo")
    for name, group in found.groups.items():
        assert group.limit_bytes is not None and group.headroom_bytes is not None, name
        assert group.headroom_bytes >= HEADROOM * group.limit_bytes, (name, group.peak)


@pytest.mark.parametrize("path", ON_GPUS, ids=lambda path: path.stem)
def test_only_several_nodes_need_a_cluster(path: Path) -> None:
    assert (on_gpus(path).cluster.address is None) == (SIZES[path.stem].nodes == 1)


def test_the_page_lists_every_recipe_for_gpus_with_its_size() -> None:
    page = (ROOT / "docs/recipes.md").read_text()
    listed = re.findall(r"^\| `configs/recipes/([\w.-]+)\.yaml` \| (\d+) x (\S+) \| (\d+) \|", page, re.MULTILINE)
    sizes = {name: (size.nodes * size.gpus_per_node, size.gpu, size.nodes) for name, size in SIZES.items()}
    assert {name: (int(gpus), kind, int(nodes)) for name, gpus, kind, nodes in listed} == sizes


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_normalises_only_by_what_its_own_stages_have_measured(path: Path) -> None:
    for stage in stages(path):
        if isinstance(stage, PPOStage) and stage.reward.model is not None and stage.reward.model.normalise:
            assert str(stage.reward.model.model).startswith("stage:"), "no statistics come with a model from elsewhere"
