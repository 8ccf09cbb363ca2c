"""What every section of a config shares: frozen, unknown keys refused, and the numbers' names with their ranges."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field
from pydantic_core import PydanticCustomError

# Strict: `true` is not 1, `"3"` is not 3, 4.0 is not a count. A whole number is still allowed where any number is.
PositiveInt = Annotated[int, Field(ge=1, strict=True)]
NonNegativeInt = Annotated[int, Field(ge=0, strict=True)]
PositiveFloat = Annotated[float, Field(gt=0, allow_inf_nan=False, strict=True)]
NonNegativeFloat = Annotated[float, Field(ge=0, allow_inf_nan=False, strict=True)]
Fraction = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False, strict=True)]
ProperFraction = Annotated[float, Field(ge=0, lt=1, allow_inf_nan=False, strict=True)]
FiniteFloat = Annotated[float, Field(allow_inf_nan=False, strict=True)]


class Section(BaseModel):
    """A part of the config. Nothing writes to it after it is loaded."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, strict=False)


def refuse(key: str, got: str, allowed: str) -> PydanticCustomError:
    """What a validator raises where keys do not go together.

    Args:
        key: Path of the key to change, from the section that the validator belongs to. Empty: the section itself.
        got: What was got, as a phrase: `got 5`, `missing`.
        allowed: What is allowed, as a phrase.
    """
    context = {"key": key, "got": got, "allowed": allowed}
    return PydanticCustomError("refused", "{key}: {got}; allowed: {allowed}", context)
