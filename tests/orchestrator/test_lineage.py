"""What an artefact was made from, back to the data: from run directories made by hand."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

import pytest
import yaml
from rich.console import Console

from actors.errors import UserError
from configs.load import load_config
from configs.schema.supervised import SFTStage
from orchestrator.lineage import code_version, lineage_of, read_lineage, tree_of, write_lineage


def begun(folder: Path, config: Mapping[str, object], fingerprint: str) -> Path:
    """A run directory as far as lineage reads it."""
    folder.mkdir()
    (folder / "config.yaml").write_text(yaml.safe_dump(dict(config)))
    (folder / "data.json").write_text(json.dumps({"fingerprint": fingerprint}))
    (folder / "ledger").mkdir()
    for step in (1, 2):
        (folder / "ledger" / f"{step:08d}.json").touch()
    return folder


@pytest.fixture
def flow(tmp_path: Path) -> Path:
    """A model fine-tuned on two files, its answers ranked, and DPO on them."""
    chats = tmp_path / "chats.jsonl"
    chats.touch()
    sft = {
        "stage": "sft",
        "run": {"dir": "r"},
        "data": {"path": str(chats), "mix": [{"path": "hub/other"}]},
        "model": {"model": "hub/base"},
    }
    run = begun(tmp_path / "sft", sft, "a" * 64)
    config = load_config(run / "config.yaml")
    assert isinstance(config, SFTStage)
    (run / "export").mkdir()
    write_lineage(run / "export", lineage_of(config, run, role="policy", step=2))
    rankings = tmp_path / "ranked"
    rankings.mkdir()
    (rankings / "rankings.jsonl").touch()
    write_lineage(rankings, lineage_of(config, run, role="policy", step=1))
    dpo = {
        "stage": "dpo",
        "run": {"dir": "r"},
        "data": {"path": str(rankings / "rankings.jsonl"), "format": "ranking"},
        "model": {"model": str(run / "export")},
    }
    begun(tmp_path / "dpo", dpo, "b" * 64)
    return tmp_path


def test_a_run_is_traced_to_its_first_model_and_data(flow: Path) -> None:
    found = read_lineage(str(flow / "dpo"))
    assert (found["stage"], found["role"], found["step"]) == ("dpo", "policy", 2)
    assert found["config_sha256"] == hashlib.sha256((flow / "dpo" / "config.yaml").read_bytes()).hexdigest()
    assert found["data"]["fingerprint"] == "b" * 64
    (rankings,) = found["data"]["sources"]
    assert rankings["lineage"]["step"] == 1, "data that lies in an export has its lineage"
    base = found["models"]["model.model"]["lineage"]
    assert (base["stage"], base["step"]) == ("sft", 2)
    assert [source["path"] for source in base["data"]["sources"]] == [str(flow / "chats.jsonl"), "hub/other"]
    assert base["models"] == {"model.model": {"model": "hub/base", "lineage": None}}


def test_a_checkpoint_and_a_file_beside_a_lineage_have_one_too(flow: Path) -> None:
    checkpoint = flow / "dpo" / "checkpoints" / "00000001"
    checkpoint.mkdir(parents=True)
    (checkpoint / "manifest.json").write_text("{}")
    assert read_lineage(str(checkpoint))["step"] == 1
    assert read_lineage(str(flow / "ranked" / "rankings.jsonl"))["stage"] == "sft"


def test_the_tree_names_every_ancestor(flow: Path) -> None:
    console = Console(width=200, record=True, file=(flow / "shown.txt").open("w"))
    console.print(tree_of(read_lineage(str(flow / "dpo"))))
    shown = console.export_text()
    for part in ("policy of stage dpo, step 2", "policy of stage sft, step 2", "hub/base", "hub/other", "bbbbbbbbbbbb"):
        assert part in shown, shown


def test_what_has_no_lineage_is_told(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="there is no '/nowhere'"):
        read_lineage("/nowhere")
    with pytest.raises(UserError, match=r"has no lineage\.json; allowed: an export's folder"):
        read_lineage(str(tmp_path))
    (tmp_path / "lineage.json").write_text("{")
    with pytest.raises(UserError, match=r"lineage\.json is damaged"):
        read_lineage(str(tmp_path))
    (tmp_path / "lineage.json").write_text('{"format": 0}')
    with pytest.raises(UserError, match="damaged, or of another version"):
        read_lineage(str(tmp_path))


def test_the_code_is_known_by_its_sources() -> None:
    found = code_version()
    assert len(found["sources_sha256"]) == 64
    assert found == code_version()
