"""The config.json facts that ship with the project: transformers builds from each a model of the parameters that models.yaml says."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from configs.load import load_config
from configs.yaml_file import read_yaml

ROOT = Path(__file__).parents[2]
FACTS = ROOT / "configs/facts"
FILES = {path.stem.replace("--", "/", 1): path for path in sorted((FACTS / "models").glob("*.json"))}
MODELS: dict[str, dict[str, Any]] = read_yaml(FACTS / "models.yaml")[0]
UNITS = {"M": 1e6, "B": 1e9}
ROUNDING = 0.07
"""How far a name such as 8B is from the count (7.5e9 with a scalar head for the output layer), at most."""


def test_every_file_is_listed_and_every_listed_model_has_a_file() -> None:
    assert FILES.keys() == MODELS.keys()


@pytest.mark.parametrize("name", FILES)
def test_a_model_built_from_the_facts_has_the_listed_parameters(name: str) -> None:
    facts = json.loads(FILES[name].read_text())
    config = transformers.AutoConfig.for_model(**{key: value for key, value in facts.items() if key != "architectures"})
    with torch.device("meta"):
        model = getattr(transformers, facts["architectures"][0])._from_config(config)
    assert sum(parameter.numel() for parameter in model.parameters()) == MODELS[name]["parameters"]


@pytest.mark.parametrize("name", MODELS)
def test_the_count_is_the_published_one_as_far_as_it_was_rounded(name: str) -> None:
    published = str(MODELS[name]["published"])
    assert MODELS[name]["parameters"] == pytest.approx(float(published[:-1]) * UNITS[published[-1]], rel=ROUNDING)
    assert all(source.startswith("https://") for source in MODELS[name]["source"].split(", "))


def hub_models(value: Any) -> set[str]:
    """Every hub name that a config gives as a `model`: what is neither a stage's export nor a folder that a recipe has made."""
    if isinstance(value, list | tuple):
        return set().union(*map(hub_models, value))
    if not isinstance(value, dict):
        return set()
    name = value.get("model")
    named = {name} if isinstance(name, str) and not name.startswith(("stage:", "runs/")) else set()
    return named.union(*map(hub_models, value.values()))


@pytest.mark.parametrize("recipe", sorted((ROOT / "configs/recipes").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_hub_model_of_a_recipe_is_among_the_facts(recipe: Path) -> None:
    assert hub_models(load_config(str(recipe), []).model_dump()) <= FILES.keys()


def test_hub_models_sees_those_of_nested_sections() -> None:
    config = {
        "policy": {"model": "a/b"},
        "reward": {"model": {"model": "c/d"}, "functions": ()},
        "x": [{"model": "stage:p"}],
    }
    assert hub_models(config) == {"a/b", "c/d"}
