"""The facts of GPU kinds: complete, plausible against each other, and a name that is none of them answers with the nearest."""

import json

import pytest

from configs.errors import ConfigError
from configs.gpus import gpu_kind, gpu_kinds
from orchestrator import cli


def test_numbers_of_two_kinds_are_those_of_the_data_sheets() -> None:
    # NVIDIA's H100 SXM data sheet: 80 GB, 3.35 TB/s, 1,979 TFLOP/s bf16 with sparsity, NVLink 900 GB/s both ways
    h100 = gpu_kind("h100-80gb")
    assert (h100.bf16_flops, h100.memory_bytes_per_s, h100.nvlink_bytes_per_s) == (989.4e12, 3.35e12, 450e9)
    # NVIDIA's L4 data sheet: 24 GB, 300 GB/s, 242 TFLOP/s bf16 with sparsity, no NVLink
    l4 = gpu_kind("l4")
    assert (l4.bf16_flops, l4.memory_bytes_per_s, l4.nvlink_bytes_per_s) == (121e12, 300e9, 0)


@pytest.mark.parametrize("name", gpu_kinds())
def test_kind_is_plausible(name: str) -> None:
    kind = gpu_kind(name)
    sold_as = {"a10g": 24, "l4": 24, "rtx4090": 24, "l40s": 48, "b200": 192}.get(name)
    sold_as = sold_as or int(name.split("-")[1].removesuffix("gb"))
    assert 0.9 * sold_as * 1e9 < kind.memory_bytes < 1.08 * sold_as * 1e9
    assert kind.network_bytes_per_s < max(kind.nvlink_bytes_per_s, kind.pcie_bytes_per_s) < kind.memory_bytes_per_s
    assert kind.kubernetes_product.startswith("NVIDIA-")
    assert all("http" in source or "assumed" in source for source in kind.sources)


def test_unknown_kind_answers_with_the_nearest_and_all() -> None:
    with pytest.raises(ConfigError) as error:
        gpu_kind("h100", "cluster.groups.trainers.gpu")
    assert str(error.value).splitlines() == [
        "unknown GPU kind:",
        "  cluster.groups.trainers.gpu: got 'h100' (did you mean 'h100-80gb'?); allowed: a10g, l4, rtx4090, a100-40gb, "
        "a100-80gb, l40s, h100-80gb, h200-141gb, b200",
    ]


def test_command_lists_them(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["gpus"]) == 0
    table = capsys.readouterr().out
    assert "kind" in table
    assert "h100-80gb" in table and "989.4" in table and "3,350" in table
    assert cli.main(["gpus", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["l4"]["kubernetes_product"] == "NVIDIA-L4"
