"""`farm up` as people run it: a process of its own, on real servers. Most need no worker."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from psycopg.conninfo import conninfo_to_dict
from typer.testing import CliRunner

from farm.cli import main
from farm.embedded import background, home, postgres, sockets
from farm.settings import Settings
from tests.conftest import eventually

FARM = [sys.executable, "-m", "farm.cli.main"]


class Ups:
    """The `farm up` processes of one test, with one folder for all."""

    def __init__(self, folder: Path) -> None:
        self.home = folder
        self.port = free_port()
        self.env = {k: v for k, v in os.environ.items() if not k.startswith("FARM_")}
        self.env |= {"FARM_HOME": str(folder), "FARM_PORT": str(self.port)}
        self.begun: list[subprocess.Popen[str]] = []

    def begin(self, *options: str, **env: str) -> subprocess.Popen[str]:
        up = subprocess.Popen(
            [*FARM, "up", *options],
            env={**self.env, **env},
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        self.begun.append(up)
        return up

    def end(self) -> None:
        for up in self.begun:
            up.kill()
            up.communicate()
        eventually(self.all_gone, within=40, every=0.2)

    def until_ready(self, up: subprocess.Popen[str]) -> str:
        eventually(lambda: up.poll() is not None or self.told(), within=200)
        told = self.told()
        assert told, f"it ended: {up.communicate()}"
        assert told["pid"] == up.pid
        return str(told["url"])

    def told(self) -> dict[str, Any] | None:
        try:
            return dict(json.loads((self.home / "farm.json").read_text()))
        except FileNotFoundError:
            return None

    def processes(self) -> list[psutil.Process]:
        """All that run for this folder: those that name it, or were told it."""
        return [each for each in psutil.process_iter() if self._is_ours(each)]

    def _is_ours(self, process: psutil.Process) -> bool:
        try:
            if process.pid == os.getpid() or process.status() == psutil.STATUS_ZOMBIE:
                return False
            command = process.cmdline()
            return process.environ().get("FARM_HOME") == str(self.home) or any(
                str(self.home) in part for part in command
            )
        except psutil.Error:
            return False

    def process(self, module: str) -> psutil.Process:
        (found,) = (each for each in self.processes() if module in each.cmdline())
        return found

    def all_gone(self) -> bool:
        return not self.processes()


def free_port() -> int:
    with socket.socket() as probing:
        probing.bind(("127.0.0.1", 0))
        return int(probing.getsockname()[1])


@pytest.fixture
def ups(tmp_path: Path) -> Iterator[Ups]:
    ups = Ups(tmp_path / "home")
    yield ups
    ups.end()


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ups]:
    """A farm that runs already, without workers."""
    ups = Ups(tmp_path_factory.mktemp("shared"))
    ups.until_ready(ups.begin("--workers", "0"))
    yield ups
    ups.end()


def test_it_is_ready_says_where_and_ctrl_c_leaves_nothing_behind(ups: Ups) -> None:
    up = ups.begin("--workers", "0")
    url = ups.until_ready(up)

    assert url == f"http://127.0.0.1:{ups.port}"
    assert httpx.get(f"{url}/readyz").json()["status"] == "ready"
    assert httpx.get(f"{url}/v1/batches").json()["batches"] == []

    up.send_signal(signal.SIGINT)
    out, err = up.communicate(timeout=60)

    assert up.returncode == 0, err
    assert f"Farm is ready: {url}" in out
    assert ups.all_gone()
    assert not (ups.home / "farm.json").exists()


def test_a_second_start_in_the_same_folder_says_where_the_first_is(shared: Ups) -> None:
    url, pid = home.announced(shared.home) or ("", 0)

    second = shared.begin("--workers", "0")
    out, err = second.communicate(timeout=60)

    assert f"Farm is already running: {url} (process {pid}" in out
    assert second.returncode == 0, err
    assert shared.begun[0].poll() is None
    assert httpx.get(f"{url}/healthz").is_success


@pytest.mark.parametrize(
    "module", ["farm.api", "farm.dispatch", "farm.embedded.valkey", "farm.embedded.postgres"]
)
def test_what_dies_comes_back(shared: Ups, module: str) -> None:
    url, _ = home.announced(shared.home) or ("", 0)
    first = shared.process(module)

    first.kill()

    def is_back() -> bool:
        return any(
            module in each.cmdline() and each.pid != first.pid for each in shared.processes()
        ) and home.answers(f"{url}/readyz")

    eventually(is_back, within=60, every=0.2)


def test_a_worker_of_another_process_joins_and_leaves(shared: Ups) -> None:
    url, _ = home.announced(shared.home) or ("", 0)
    database, broker = sockets.urls(shared.home)
    servers = {"FARM_DATABASE_URL": database, "FARM_BROKER_URL": broker}
    assert run("migrate", **servers) == (0, "The database is up to date.\n", "")

    host = subprocess.Popen([*FARM, "worker", "--gpus", "cpu"], env={**shared.env, **servers})
    try:
        eventually(lambda: live_sessions(url), within=120)
    finally:
        host.send_signal(signal.SIGINT)
        assert host.wait(60) == 0
    eventually(lambda: not live_sessions(url))
    assert not any("farm.worker" in each.cmdline() for each in shared.processes())


@pytest.mark.parametrize("command", ["api", "dispatcher", "worker", "migrate"])
def test_a_single_process_needs_to_be_told_its_servers(command: str) -> None:
    code, _, err = run(command)
    assert code == 1
    assert "FARM_DATABASE_URL is not set" in err
    assert "postgresql://" in err


def test_servers_of_ones_own_are_used_instead(ups: Ups, database_url: str, broker_url: str) -> None:
    parts = conninfo_to_dict(database_url)
    url = f"postgresql://{parts['user']}@/{parts['dbname']}?host={parts['host']}"
    ups.until_ready(ups.begin("--workers", "0", FARM_DATABASE_URL=url, FARM_BROKER_URL=broker_url))
    assert not postgres.data_folder(ups.home).exists()
    assert sorted(log.stem for log in (ups.home / "logs").iterdir()) == ["api", "dispatcher"]


def run(command: str, **env: str) -> tuple[int, str, str]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith("FARM_")}
    done = subprocess.run(
        [*FARM, command],
        env={**clean, **env},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    return done.returncode, done.stdout, done.stderr


def test_of_two_at_once_one_runs_and_the_other_says_so(ups: Ups) -> None:
    first, second = ups.begin("--workers", "0"), ups.begin("--workers", "0")
    eventually(lambda: first.poll() is not None or second.poll() is not None, within=120)
    ended, stays = (first, second) if first.poll() is not None else (second, first)
    out, err = ended.communicate()
    assert ended.returncode == 0, err
    assert "already running" in out
    assert ups.told() == {"url": f"http://127.0.0.1:{ups.port}", "pid": stays.pid}


def test_a_port_in_use_is_explained_and_nothing_stays(ups: Ups) -> None:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", ups.port))
        listening.listen()
        up = ups.begin("--workers", "0")
        _, err = up.communicate(timeout=60)
    assert up.returncode == 1
    assert f"Port {ups.port} is in use by" in err
    assert f"(process {os.getpid()})" in err
    assert "--port" in err
    assert ups.all_gone()
    assert not postgres.data_folder(ups.home).exists()


@pytest.mark.parametrize(
    ("options", "env", "code", "says"),
    [
        (["--workers", "many"], {}, 2, "'many' is not a number of workers"),
        (["--port", "0"], {}, 2, "greater than or equal to 1"),
        ([], {"FARM_PORT": "http"}, 2, "FARM_PORT=http"),
        ([], {"FARM_HOME": "/dev/null/farm"}, 1, "cannot be used: Not a directory"),
        (["--host", "192.0.2.1"], {}, 1, "no network card of this machine has that address"),
    ],
)
def test_what_is_wrong_is_explained(
    ups: Ups, options: list[str], env: dict[str, str], code: int, says: str
) -> None:
    up = ups.begin(*options, **env)
    _, err = up.communicate(timeout=60)
    assert up.returncode == code
    assert says in " ".join(err.replace("│", " ").split())
    assert "Traceback" not in err
    assert ups.all_gone()


def test_a_process_that_cannot_start_ends_it_with_the_reason(ups: Ups) -> None:
    up = ups.begin("--workers", "0", FARM_STORAGE_URL="nosuch://bucket")
    _, err = up.communicate(timeout=120)
    assert up.returncode == 1
    assert "keeps dying" in err
    assert "nosuch" in err
    assert ups.all_gone()
    assert not (ups.home / "farm.json").exists()


def test_others_need_the_key_that_the_first_start_made(
    ups: Ups, monkeypatch: pytest.MonkeyPatch
) -> None:
    up = ups.begin("--host", "0.0.0.0", "--workers", "0")
    url = ups.until_ready(up)
    file = ups.home / "api_key"
    key = file.read_text().strip()

    def submit(headers: dict[str, str]) -> int:
        return httpx.post(f"{url}/v1/batches", json={}, headers=headers).status_code

    assert file.stat().st_mode & 0o777 == 0o600
    assert submit({}) == 401
    assert submit({"Authorization": f"Bearer {key}x"}) == 401
    assert submit({"Authorization": f"Bearer {key}"}) == 422

    monkeypatch.setenv("FARM_HOME", str(ups.home))
    issued = CliRunner().invoke(main.app, ["key", "bob"]).stdout.strip()
    assert submit({"Authorization": f"Bearer {issued}"}) == 422

    up.terminate()
    out, err = up.communicate(timeout=60)
    assert str(file) in out
    assert key not in out + err


def test_a_farm_in_the_background_is_started_found_and_stopped(
    ups: Ups, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in os.environ if name.startswith("FARM_")]:
        monkeypatch.delenv(name)
    settings = Settings(home=ups.home, port=ups.port)
    try:
        url = background.start(settings, workers="0")
        assert httpx.get(f"{url}/readyz").is_success
        assert background.start(settings, workers="0") == url
        (farm,) = (each for each in ups.processes() if "up" in each.cmdline())
        assert os.getsid(farm.pid) == farm.pid  # the terminal's Ctrl-C does not reach it
    finally:
        stopped, again = (
            CliRunner().invoke(main.app, ["down", "--home", str(ups.home)]) for _ in range(2)
        )
    assert stopped.output == "The farm has stopped.\n"
    assert ups.all_gone()
    assert again.output.startswith("No farm runs in")


def test_kill_9_leaves_nothing_behind_and_the_next_start_has_a_worker_of_its_own(
    ups: Ups,
) -> None:
    first = ups.begin("--workers", "cpu")
    url = ups.until_ready(first)
    earlier = live_sessions(url)
    assert len(earlier) == 1
    children = ups.processes()

    first.kill()
    first.wait()
    second = ups.begin("--workers", "cpu")  # at once: it waits for what is left of the first

    eventually(lambda: not any(each.is_running() for each in children), within=30)
    eventually(lambda: (ups.told() or {}).get("pid") == second.pid, within=200)
    # The killed worker's session may still be listed; it is not what made the farm ready.
    assert live_sessions(url) - earlier


def live_sessions(url: str) -> set[str]:
    found = httpx.get(f"{url}/v1/workers").json()["workers"]
    return {each["session"] for each in found if each["state"] == "live"}
