"""What holds for every test: no network, one thread, fixed seeds, reproducible property tests."""

import os
import random
import sys

import hypothesis
import numpy as np
import pytest

# No test writes into the registry of whoever runs it: a test that needs one names its own.
os.environ["PRECEPTOR_REGISTRY"] = "off"

# Set before any test module imports a library that reads them; a value given from outside wins.
for name, value in {
    "HF_HUB_OFFLINE": "1",  # a missing file is an error, never a download
    "TRANSFORMERS_OFFLINE": "1",
    "OMP_NUM_THREADS": "1",  # several processes share few cores, and sums keep their order
    "RAY_USAGE_STATS_ENABLED": "0",
    "VLLM_NO_USAGE_STATS": "1",
}.items():
    os.environ.setdefault(name, value)

# The same examples on every run: a failure in CI is a failure at the desk.
hypothesis.settings.register_profile("fixed", derandomize=True, deadline=None, print_blob=True)
hypothesis.settings.load_profile("fixed")


@pytest.fixture(autouse=True)
def _fixed_seeds() -> None:
    random.seed(0)
    np.random.seed(0)
    # torch is seeded only where a test already imported it: the tests of the light layers must not.
    if "torch" in sys.modules:
        sys.modules["torch"].manual_seed(0)
