"""Tags: what workers are told apart by, and batches may ask for."""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import AfterValidator, Field

from farm.errors import InvalidInput
from farm.spec.problems import refusal

MAX_TAGS = 16
PATTERN = "^[a-z0-9][a-z0-9._-]{0,39}$"


def _sound(tag: str) -> str:
    if not re.fullmatch(PATTERN, tag):
        raise refusal(
            InvalidInput(
                f"{tag!r} is no tag.",
                field="tags",
                value=tag,
                remedy="Use up to 40 small letters, digits, dots, dashes and underscores, such as "
                "a100 or team-red.",
            )
        )
    return tag


Tag = Annotated[str, AfterValidator(_sound), Field(json_schema_extra={"pattern": PATTERN})]
"""Small letters, digits, dots, dashes and underscores, such as ``a100`` or ``team-red``."""
