"""farm doctor: what it finds, what it advises, and how it ends."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
from typer.testing import CliRunner

from farm.cli import checks
from farm.cli.checks import CHECKS, Finding, examine
from farm.cli.main import app
from farm.errors import SetupError
from farm.settings import Settings
from farm.worker import launcher

GIB = 1 << 30
CARD = launcher.Device("gpu0", "GPU-a", 0, 24 * GIB, "RTX 3090")


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    for name in [name for name in os.environ if name.startswith("FARM_")]:
        monkeypatch.delenv(name)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return Settings(home=tmp_path / "home", port=free.getsockname()[1])


def test_a_data_folder_that_can_be_made_is_fine_and_is_not_made(settings: Settings) -> None:
    found = examine("data folder", settings)
    assert (found.state, found.remedy) == ("OK", None)
    assert not settings.home.exists()


@pytest.mark.parametrize(
    ("free", "state"), [(100 << 20, "FAIL"), (1 * GIB, "WARN"), (50 * GIB, "OK")]
)
def test_disk_space(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, free: int, state: str
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=free))
    assert examine("data folder", settings).state == state


def test_a_data_folder_that_is_a_file_or_closed_fails(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings.home.touch()
    assert examine("data folder", settings).state == "FAIL"
    settings.home.unlink()
    monkeypatch.setattr(os, "access", lambda *_: False)
    found = examine("data folder", settings)
    assert found.state == "FAIL"
    assert "cannot be written" in found.detail


@pytest.mark.parametrize(("available", "state"), [(1 * GIB, "WARN"), (16 * GIB, "OK")])
def test_memory(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, available: int, state: str
) -> None:
    memory = SimpleNamespace(total=32 * GIB, available=available)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: memory)
    assert examine("memory", settings).state == state


def test_a_free_port(settings: Settings) -> None:
    assert examine("port", settings).state == "OK"


def test_a_busy_port_names_its_process(settings: Settings) -> None:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", settings.port))
        listening.listen()
        found = examine("port", settings)
    assert found.state == "FAIL"
    assert f"process {os.getpid()}" in found.detail
    assert "--port" in str(found.remedy)


@pytest.mark.parametrize(
    ("name", "content", "state", "says"),
    [
        ("none.txt", b"", "OK", "1 checkpoints that can be used"),
        ("a.ckpt", b"x", "WARN", "1 that cannot"),
        ("a.safetensors", b"x" * 100, "WARN", "1 that cannot"),
    ],
)
def test_model_folders(
    settings: Settings, name: str, content: bytes, state: str, says: str
) -> None:
    (settings.home / "models").mkdir(parents=True)
    (settings.home / "models" / name).write_bytes(content)
    found = examine("models", settings)
    assert (found.state, says in found.detail) == (state, True)
    assert state == "OK" or Path(name).stem in str(found.remedy)


def test_the_servers_that_come_with_farm_are_found(settings: Settings) -> None:
    assert examine("database", settings).state == "OK"
    assert examine("broker", settings).state == "OK"


def test_servers_out_of_reach_fail(settings: Settings) -> None:
    gone = settings.model_copy(
        update={
            "database_url": "postgresql://me:secret@127.0.0.1:1/farm",
            "broker_url": "redis://127.0.0.1:1",
        }
    )
    database = examine("database", gone)
    assert (database.state, examine("broker", gone).state) == ("FAIL", "FAIL")
    assert "secret" not in database.detail


def cards(monkeypatch: pytest.MonkeyPatch, found: list[launcher.Device]) -> None:
    def gpus() -> list[launcher.Device]:
        if not found:
            raise SetupError("No driver.", remedy="Install one.")
        return found

    monkeypatch.setattr(launcher, "gpus", gpus)


def torch_says(monkeypatch: pytest.MonkeyPatch, code: int, out: str, err: str = "") -> None:
    done = subprocess.CompletedProcess([], code, out, err)
    monkeypatch.setattr(checks.subprocess, "run", lambda *_, **__: done)


@pytest.mark.parametrize(
    ("found", "shown", "state", "says"),
    [
        ([CARD], None, "OK", "0: RTX 3090, 24.0 GB"),
        ([CARD], "-1", "WARN", "CUDA_VISIBLE_DEVICES hides"),
        ([], None, "WARN", "No driver. Workers use the CPU."),
    ],
)
def test_gpus(
    settings: Settings,
    monkeypatch: pytest.MonkeyPatch,
    *,
    found: list[launcher.Device],
    shown: str | None,
    state: str,
    says: str,
) -> None:
    cards(monkeypatch, found)
    if shown:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", shown)
    finding = examine("GPUs", settings)
    assert (finding.state, says in finding.detail) == (state, True)


@pytest.mark.parametrize(
    ("found", "answer", "state", "says"),
    [
        ([CARD], (0, '["2.14.1+cu130", "13.0", true, null]'), "OK", "2.14.1+cu130, CUDA 13.0"),
        ([], (0, '["2.14.1+cpu", null, false, null]'), "OK", "on the CPU"),
        ([CARD], (0, '["2.14.1+cpu", null, false, null]'), "FAIL", "is built for the CPU only"),
        (
            [CARD],
            (0, '["2.14.1+cu130", "13.0", true, "CUDA error: no kernel image is available"]'),
            "FAIL",
            "cannot compute on the GPUs: CUDA error: no kernel image",
        ),
        ([CARD], (0, '["2.14.1", "13.0", false, null]'), "FAIL", "needs a driver for CUDA 13.0"),
        ([], (1, "", "Traceback\nImportError: no torch"), "WARN", "ImportError: no torch"),
    ],
)
def test_torch(
    settings: Settings,
    monkeypatch: pytest.MonkeyPatch,
    *,
    found: list[launcher.Device],
    answer: tuple[Any, ...],
    state: str,
    says: str,
) -> None:
    cards(monkeypatch, found)
    torch_says(monkeypatch, *answer)
    finding = examine("torch", settings)
    assert (finding.state, says in finding.detail) == (state, True)
    assert (finding.remedy is None) == (state == "OK")


def test_xformers_is_optional(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(_: str) -> str:
        raise PackageNotFoundError

    monkeypatch.setattr(checks, "version", lambda _: "0.0.35")
    assert "0.0.35" in examine("xformers", settings).detail
    monkeypatch.setattr(checks, "version", missing)
    assert examine("xformers", settings).state == "OK"


def fails(_: Settings) -> Finding:
    raise SetupError("It is broken.", remedy="Mend it.")


@pytest.mark.parametrize(
    ("check", "state", "code"),
    [
        (lambda _: Finding("OK", "all well"), "OK", 0),
        (lambda _: Finding("WARN", "not quite", "Look."), "WARN", 0),
        (fails, "FAIL", 1),
    ],
)
def test_it_ends_with_1_if_anything_fails(
    monkeypatch: pytest.MonkeyPatch,
    settings: Settings,
    check: Callable[[Settings], Finding],
    state: str,
    code: int,
) -> None:
    for name in list(CHECKS):
        monkeypatch.delitem(CHECKS, name)
    monkeypatch.setitem(CHECKS, "it", check)
    shown = CliRunner().invoke(app, ["doctor"])
    told = CliRunner().invoke(app, ["doctor", "--json"])

    assert (shown.exit_code, told.exit_code) == (code, code)
    assert shown.output.startswith(f"{state:4}  it: ")
    document = json.loads(told.output)
    assert document["ok"] == (code == 0)
    assert [(each["name"], each["state"]) for each in document["checks"]] == [("it", state)]
    finding = document["checks"][0]
    assert finding["remedy"] is None or finding["remedy"] in shown.output
