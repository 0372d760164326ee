"""Tags: what workers are told apart by, and batches may ask for."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

MAX_TAGS = 16

Tag = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._-]{0,39}$")]
"""Small letters, digits, dots, dashes and underscores, such as ``a100`` or ``team-red``."""
