"""A farm whose processes and servers are there to be broken, one for all tests of a process."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import eventually
from tests.crew import Crew
from tests.saboteur import Saboteur
from tests.wholefarm import WholeFarm


@pytest.fixture(scope="session")
def _farm(short_folder: Path) -> Iterator[WholeFarm]:
    whole = WholeFarm(short_folder / "faults", workers="0")
    whole.start()
    yield whole
    assert whole.stop() == 0


@pytest.fixture(scope="session")
def _crew(_farm: WholeFarm) -> Iterator[Crew]:
    crew = Crew(_farm, ["cpu0", "cpu1"], dispatchers=1)
    try:
        crew.start()
        yield crew
    finally:
        crew.stop()


@pytest.fixture(scope="session")
def _saboteur(_farm: WholeFarm, _crew: Crew) -> Saboteur:
    return Saboteur(_farm, _crew)


@pytest.fixture
def farm(_farm: WholeFarm, _crew: Crew) -> WholeFarm:
    """A farm with two stand-in workers and a second dispatcher, all of them well."""
    eventually(_farm.answers)
    _crew.wait_live()
    return _farm


@pytest.fixture
def crew(farm: WholeFarm, _crew: Crew) -> Crew:
    """The stand-in workers of that farm."""
    return _crew


@pytest.fixture
def saboteur(farm: WholeFarm, _saboteur: Saboteur) -> Saboteur:
    """Breaks that farm, and keeps the books."""
    return _saboteur
