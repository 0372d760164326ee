"""A farm whose processes and servers are there to be broken, one for all tests of a process."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.conftest import eventually
from tests.crew import Crew
from tests.disk import Disk
from tests.saboteur import Saboteur
from tests.wholefarm import WholeFarm

_begun = ExitStack()
"""What must be stopped. It would idle beside all other tests until the end of the session."""


@pytest.hookimpl(trylast=True)
def pytest_runtest_teardown(item: pytest.Item, nextitem: pytest.Item | None) -> None:
    if nextitem is None or nextitem.path.parent != item.path.parent:
        _begun.close()


@pytest.fixture(scope="session")
def _disk(short_folder: Path) -> Iterator[Disk | None]:
    """A file system of their own for the images of that farm, where one may be mounted."""
    disk = Disk(short_folder / "faults" / "images")
    _begun.callback(disk.unmount)
    yield disk if disk.mount() else None
    _begun.close()


@pytest.fixture
def disk(_disk: Disk | None) -> Disk | None:
    """The file system on which that farm keeps its images, where it is one of their own."""
    return _disk


@pytest.fixture(scope="session")
def _farm(short_folder: Path, _disk: Disk | None) -> WholeFarm:
    whole = WholeFarm(short_folder / "faults", workers="0")
    whole.start()
    _begun.callback(_stop, whole)
    return whole


def _stop(whole: WholeFarm) -> None:
    assert whole.stop() == 0


@pytest.fixture(scope="session")
def _crew(_farm: WholeFarm) -> Crew:
    crew = Crew(_farm, ["cpu0", "cpu1"], dispatchers=1)
    _begun.callback(crew.stop)
    crew.start()
    return crew


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
