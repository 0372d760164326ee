"""An API on real servers, with a stand-in for its workers."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from farm.api.app import create_app
from farm.api.deps import Services
from farm.db.database import Database
from farm.storage import ImageStore
from tests.serving import serving
from tests.standin import StandIn, register_demo


@pytest.fixture
def services(db: Database, broker_url: str, tmp_path: Path) -> Services:
    register_demo(db)
    images = ImageStore(str(tmp_path / "images"))
    return Services(db=db, images=images, broker_url=broker_url, local=True)


@pytest.fixture
def api(services: Services) -> Iterator[TestClient]:
    """A client of a local farm that knows the checkpoint ``demo``."""
    with TestClient(create_app(services), base_url="http://localhost:7900") as client:
        yield client


@pytest.fixture
def worker(services: Services) -> StandIn:
    return StandIn(services.db, services.images)


@pytest.fixture
def served(services: Services) -> Iterator[str]:
    """The URL of that farm on a real port."""
    with serving(create_app(services)) as url:
        yield url
