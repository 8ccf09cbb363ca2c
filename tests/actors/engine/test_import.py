"""What a rank loads for DeepSpeed, and what it does not."""

from __future__ import annotations

import subprocess
import sys

SCRIPT = """
import sys
import actors.engine.engine
loaded = sorted(name for name in ("mlflow", "fastapi", "pandas") if name in sys.modules)
import mlflow  # hidden no longer
print(loaded, mlflow.__name__)
"""


def test_mlflow_is_left_out_and_can_be_had_afterwards() -> None:
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout.splitlines()[-1] == "[] mlflow"
