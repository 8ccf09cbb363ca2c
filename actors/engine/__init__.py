"""DeepSpeed as the roles use it; nothing outside this folder imports it.

This breaks the rule that an import does nothing but import. DeepSpeed's autotuner, which nobody here calls, imports mlflow wherever that is
installed: two fifths of the CPU time of DeepSpeed's own import, in every rank of every role, at every start. So DeepSpeed is imported here,
before any module of this folder does, with mlflow hidden for as long as that takes.
"""

import sys

_hidden = "mlflow" not in sys.modules
if _hidden:
    sys.modules["mlflow"] = None  # type: ignore[assignment]  # an import then fails as where it is not installed
try:
    import deepspeed  # noqa: F401
finally:
    if _hidden:
        del sys.modules["mlflow"]
