"""What the checks of formulas compare by."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

F64 = torch.float64


def same(got: Tensor | float, wanted: Any, tolerance: float = 1e-9) -> None:
    got = torch.as_tensor(got, dtype=F64)
    torch.testing.assert_close(got, torch.as_tensor(wanted, dtype=F64), rtol=tolerance, atol=tolerance)
