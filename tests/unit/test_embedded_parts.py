"""Parts of the one-machine farm that need no server: its folder, its port, its devices."""

from __future__ import annotations

import errno
import importlib.util
import json
import os
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from farm.embedded import home, port, sockets
from farm.embedded.farm import choose_devices, up
from farm.errors import InvalidInput, SetupError
from farm.settings import Settings
from farm.worker import launcher


@pytest.fixture
def taken() -> Iterator[int]:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        yield listening.getsockname()[1]


def test_a_port_in_use_names_its_process_and_offers_another(taken: int) -> None:
    with pytest.raises(
        SetupError, match=rf"Port {taken} is in use by .*process {os.getpid()}"
    ) as e:
        port.check("127.0.0.1", taken)
    offered = int(str(e.value.remedy).split("--port ")[1].split(",")[0])
    port.check("127.0.0.1", offered)


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "0.0.0.0"])
def test_a_free_port_is_fine(taken: int, host: str) -> None:
    port.check(host, port.next_free(host, taken))


@pytest.mark.parametrize(
    ("host", "says"),
    [
        ("192.0.2.1", "no network card of this machine has that address"),
        ("x" * 64, "that is not the name of a host"),
    ],
)
def test_an_address_that_is_not_ours_is_refused(host: str, says: str) -> None:
    with pytest.raises(SetupError, match=says) as error:
        port.check(host, 7900)
    assert (error.value.field, error.value.value) == ("host", host)


@pytest.mark.parametrize(
    ("host", "alone"),
    [
        ("127.0.0.1", True),
        ("127.8.8.8", True),
        ("::1", True),
        ("localhost", True),
        ("0.0.0.0", False),
        ("::", False),
        ("192.168.1.2", False),
        ("rack7", False),
    ],
)
def test_who_can_reach_a_host(host: str, alone: bool) -> None:
    assert port.is_loopback(host) == alone


def a_file(folder: Path) -> Path:
    (folder / "file").touch()
    return folder / "file"


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (a_file, "File exists"),
        (lambda folder: a_file(folder) / "below", "Not a directory"),
        (lambda _: Path("/proc/farm"), "No such file or directory"),
    ],
    ids=["a file", "below a file", "where nothing can be made"],
)
def test_a_folder_that_cannot_be_is_explained(tmp_path: Path, make: object, says: str) -> None:
    folder = make(tmp_path)  # type: ignore[operator]
    with pytest.raises(SetupError, match=f"cannot be used: {says}") as error:
        home.prepare(folder)
    assert (error.value.field, error.value.value) == ("FARM_HOME", str(folder))
    assert error.value.remedy


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS, errno.EACCES, errno.EDQUOT])
def test_a_disk_that_takes_nothing_is_explained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    def fail(_: int) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(SetupError, match=os.strerror(code)):
        home.prepare(tmp_path)


def test_little_space_is_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=300_000_000))
    home.prepare(tmp_path)
    assert f"only 0.3 GB are free in {tmp_path}" in caplog.text


def test_one_farm_holds_a_folder(tmp_path: Path) -> None:
    first = home.lock(tmp_path)
    assert first is not None
    assert home.lock(tmp_path) is None
    assert home.taken(tmp_path)
    os.close(first)
    assert not home.taken(tmp_path)


def test_another_users_farm_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def closed(*_: object) -> int:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(os, "open", closed)
    with pytest.raises(SetupError, match="belongs to another user") as error:
        home.lock(tmp_path)
    assert error.value.value == str(tmp_path)


def test_what_is_announced_is_found_until_withdrawn(tmp_path: Path) -> None:
    home.announce(tmp_path, "http://127.0.0.1:1")
    assert json.loads((tmp_path / "farm.json").read_text()) == {
        "url": "http://127.0.0.1:1",
        "pid": os.getpid(),
    }
    assert home.announced(tmp_path) == ("http://127.0.0.1:1", os.getpid())
    assert home.running(tmp_path) is None  # nothing answers there
    home.withdraw(tmp_path)
    assert home.announced(tmp_path) is None


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"url": "x"}', '{"url": "x", "pid": "y"}'])
def test_a_damaged_announcement_is_none(tmp_path: Path, text: str) -> None:
    (tmp_path / "farm.json").write_text(text)
    assert home.announced(tmp_path) is None


def test_a_key_is_made_once_and_is_private(tmp_path: Path) -> None:
    for made in ("first", "second"):
        home.keep_key(tmp_path, lambda made=made: made)
    assert home.key_file(tmp_path).read_text() == "first\n"
    assert home.key_file(tmp_path).stat().st_mode & 0o777 == 0o600


def test_somebody_elses_socket_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "run").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(SetupError, match="not safe"):
        sockets.prepare(tmp_path)


@pytest.mark.parametrize(
    ("workers", "cards", "names"),
    [
        ("auto", 2, ["gpu0", "gpu1"]),
        ("auto", 0, ["cpu0"]),
        ("1", 2, ["gpu0"]),
        ("0", 2, []),
        ("cpu", 2, ["cpu0"]),
        ("2", 0, ["cpu0", "cpu1"]),
    ],
)
def test_workers_hold_what_there_is(
    monkeypatch: pytest.MonkeyPatch, workers: str, cards: int, names: list[str]
) -> None:
    pretend(monkeypatch, cards)
    assert [device.name for device in choose_devices(workers)] == names


@pytest.mark.parametrize(
    ("workers", "cards", "says"),
    [
        ("3", 2, "3 are too many: this machine has 2"),
        ("9", 0, "9 are too many"),
        ("many", 2, "'many' is not a number"),
        ("-1", 2, "'-1' is not a number"),
        ("", 2, "'' is not a number"),
    ],
)
def test_a_wrong_number_of_workers_is_refused(
    monkeypatch: pytest.MonkeyPatch, workers: str, cards: int, says: str
) -> None:
    pretend(monkeypatch, cards)
    with pytest.raises(InvalidInput, match=says) as error:
        choose_devices(workers)
    assert (error.value.field, error.value.value) == ("workers", workers)


def pretend(monkeypatch: pytest.MonkeyPatch, cards: int) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    found = [launcher.Device(f"gpu{n}", f"GPU-{n}", n, 1 << 34, "card") for n in range(cards)]

    def gpus() -> list[launcher.Device]:
        if not found:
            raise SetupError("no driver.")
        return found

    monkeypatch.setattr(launcher, "gpus", gpus)


def test_without_torch_a_farm_with_workers_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with pytest.raises(SetupError, match="--workers 0"):
        up(Settings(home=tmp_path / "home"), workers="cpu", say=print)
    assert not (tmp_path / "home").exists()
