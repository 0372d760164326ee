"""``python -m farm.api`` as a process: without torch and Celery, and ending in good order."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from farm.client import Farm
from farm.db.database import Database
from tests.conftest import eventually
from tests.standin import register_demo

# None in sys.modules makes an import fail, as if the package were not installed.
WITHOUT = """
import runpy, sys
for name in ("torch", "diffusers", "transformers", "celery", "kombu"):
    sys.modules[name] = None
runpy.run_module("farm.api", run_name="__main__")
"""


@pytest.fixture
def process(
    database_url: str, broker_url: str, tmp_path: Path
) -> Iterator[tuple[subprocess.Popen[bytes], str]]:
    """A running API without torch and Celery, and its URL."""
    with Database(database_url) as db:
        register_demo(db)
    with socket.create_server(("127.0.0.1", 0)) as unused:
        port = unused.getsockname()[1]
    told = {
        "FARM_DATABASE_URL": database_url,
        "FARM_BROKER_URL": broker_url,
        "FARM_HOME": str(tmp_path),
        "FARM_PORT": str(port),
        "FARM_LOCAL": "1",
    }
    started = subprocess.Popen(
        [sys.executable, "-c", WITHOUT], env={**os.environ, **told}, stderr=subprocess.PIPE
    )
    url = f"http://127.0.0.1:{port}"
    try:
        eventually(lambda: started.poll() is not None or ready(url))
        assert ready(url), started.stderr and started.stderr.read()
        yield started, url
    finally:
        started.kill()
        started.communicate()


def ready(url: str) -> bool:
    try:
        return httpx.get(f"{url}/readyz", trust_env=False).is_success
    except httpx.TransportError:
        return False


def test_it_serves_without_torch_and_celery(process: tuple[subprocess.Popen[bytes], str]) -> None:
    with Farm(process[1]) as farm:
        batch = farm.submit(prompt="a lion", count=3)
        assert farm.batch(batch.id).cancel().state == "cancelled"


def test_sigterm_ends_it_though_clients_listen(
    process: tuple[subprocess.Popen[bytes], str],
) -> None:
    started, url = process
    with Farm(url) as farm:
        events = farm.submit(prompt="a lion").events()
        assert next(events)[0] == "batch"
        started.send_signal(signal.SIGTERM)
        _, log = started.communicate(timeout=30)
    assert started.returncode in (0, -signal.SIGTERM)
    assert b"Traceback" not in log


def test_without_a_database_setting_it_says_what_to_set(tmp_path: Path) -> None:
    clean = {name: value for name, value in os.environ.items() if not name.startswith("FARM_")}
    ended = subprocess.run(
        [sys.executable, "-m", "farm.cli.main", "api"],
        env={**clean, "FARM_HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert ended.returncode != 0
    assert "FARM_DATABASE_URL is not set" in ended.stderr
    assert "Traceback" not in ended.stderr
