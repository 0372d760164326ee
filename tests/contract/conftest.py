"""What several contract tests stand on. Torch is imported where it is wanted."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from farm.worker.models.catalogue import AssetFile
    from tests.pretended_card import Card


@pytest.fixture
def card() -> Iterator[Card]:
    """A pretended card, on which nothing may have raced in the end."""
    from tests.pretended_card import pretended

    with pretended() as card:
        yield card
    assert card.races == []


@pytest.fixture(scope="module")
def sd15(tmp_path_factory: pytest.TempPathFactory) -> AssetFile:
    """A tiny SD1 checkpoint with random weights."""
    from tests.checkpoints import tiny_file

    return tiny_file(tmp_path_factory.mktemp("sd15"), "sd15")
