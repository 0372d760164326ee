"""The supervisor, with children that are a few lines of Python."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import threading
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from farm.errors import SetupError
from farm.supervisor import Backoff, Process, Supervisor
from tests.conftest import eventually

ROOT = Path(__file__).parents[2]
GOOD_CHILD = """
    import os, pathlib, signal, sys, threading, time
    from farm.supervisor import watch_lifeline
    here = pathlib.Path(sys.argv[1])
    watch_lifeline(grace=1)
    def end(*_):
        with (here / "ended").open("a") as file:
            file.write(sys.argv[2] + "\\n")
        os._exit(0)
    signal.signal(signal.SIGTERM, end)
    (here / f"{sys.argv[2]}.pid.new").write_text(str(os.getpid()))
    (here / f"{sys.argv[2]}.pid.new").rename(here / f"{sys.argv[2]}.pid")
    while True:
        time.sleep(0.05)
"""
STUBBORN_CHILD = GOOD_CHILD.replace("signal.signal(signal.SIGTERM, end)", "").replace(
    "watch_lifeline(grace=1)",
    "signal.signal(signal.SIGTERM, signal.SIG_IGN); watch_lifeline(grace=0.2)",
)


def child(here: Path, name: str, code: str = GOOD_CHILD, **more: object) -> Process:
    argv = [sys.executable, "-c", textwrap.dedent(code), str(here), name]
    env = {"PYTHONPATH": str(ROOT)}
    return Process(name, argv, env, ready=(here / f"{name}.pid").exists, **more)  # type: ignore[arg-type]


def pid_of(here: Path, name: str) -> int:
    return int((here / f"{name}.pid").read_text())


@pytest.fixture
def supervisor(tmp_path: Path) -> Iterator[Supervisor]:
    supervisor = Supervisor(tmp_path / "logs")
    yield supervisor
    supervisor.stop()


@pytest.mark.parametrize(
    ("lives", "waits"),
    [
        ([0, 0, 0, 0], [0.2, 0.4, 0.8, 1.6]),
        ([1] * 8, [0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 10, 10]),
        ([0, 0, 30, 0], [0.2, 0.4, 0.2, 0.4]),
        ([29.9, 29.9], [0.2, 0.4]),
        ([0] * 2000, None),
    ],
)
def test_the_wait_doubles_and_a_healthy_life_resets_it(
    lives: list[float], waits: list[float] | None
) -> None:
    backoff = Backoff()
    got = [backoff.delay(lived) for lived in lives]
    assert got == (waits if waits is not None else [*got[:6], *[10.0] * (len(lives) - 6)])


def test_what_dies_is_started_again(tmp_path: Path, supervisor: Supervisor) -> None:
    supervisor.start(child(tmp_path, "a"))
    assert supervisor.wait_ready(20)
    first = pid_of(tmp_path, "a")

    os.kill(first, signal.SIGKILL)

    assert supervisor.wait_ready(20, until=lambda: pid_of(tmp_path, "a") != first)
    assert psutil.pid_exists(pid_of(tmp_path, "a"))


def test_later_groups_stop_first(tmp_path: Path, supervisor: Supervisor) -> None:
    supervisor.start(child(tmp_path, "database"))
    supervisor.wait_ready(20)
    supervisor.start(child(tmp_path, "api"))
    supervisor.wait_ready(20)

    supervisor.stop()

    assert (tmp_path / "ended").read_text().split() == ["api", "database"]


def test_one_that_ignores_the_request_is_killed(tmp_path: Path) -> None:
    supervisor = Supervisor(tmp_path / "logs")
    supervisor.start(child(tmp_path, "deaf", STUBBORN_CHILD, grace=0.3))
    supervisor.wait_ready(20)

    supervisor.stop()

    assert not psutil.pid_exists(pid_of(tmp_path, "deaf"))


def test_a_crash_loop_is_reported_with_the_last_lines(
    tmp_path: Path, supervisor: Supervisor
) -> None:
    supervisor.start(child(tmp_path, "broken", "import sys; sys.exit('no such card')"))
    with pytest.raises(SetupError, match=r"(?s)broken keeps dying.*no such card") as error:
        supervisor.wait_ready(30)
    assert "broken.log" in str(error.value.remedy)


def test_a_crash_loop_later_on_is_told_once(
    tmp_path: Path, supervisor: Supervisor, caplog: pytest.LogCaptureFixture
) -> None:
    log = tmp_path / "logs" / "broken.log"
    supervisor.start(child(tmp_path, "broken", "import sys; sys.exit('no such card')"))
    stopper = threading.Thread(
        target=lambda: (
            eventually(lambda: log.exists() and log.read_text().count("card") >= 4),
            supervisor.request_stop(),
        )
    )
    stopper.start()
    supervisor.run()
    stopper.join()
    told = [record.getMessage() for record in caplog.records if record.levelname == "ERROR"]
    assert len(told) == 1
    assert "no such card" in told[0]


def test_a_command_that_does_not_exist_is_reported(
    tmp_path: Path, supervisor: Supervisor, caplog: pytest.LogCaptureFixture
) -> None:
    supervisor.start(Process("ghost", ["/no/such/program"], ready=lambda: False))
    with pytest.raises(SetupError, match="ghost keeps dying"):
        supervisor.wait_ready(30)
    assert "/no/such/program" in caplog.text


def test_what_is_not_ready_in_time_is_named(tmp_path: Path, supervisor: Supervisor) -> None:
    supervisor.start(Process("slow", ["sleep", "60"], ready=lambda: False))
    with pytest.raises(SetupError, match=r"slow is not ready after 0\.2 s"):
        supervisor.wait_ready(0.2)


def test_a_large_log_is_put_aside(tmp_path: Path, supervisor: Supervisor) -> None:
    log = tmp_path / "logs" / "a.log"
    log.parent.mkdir()
    log.write_bytes(b"x" * 10_000_001)
    supervisor.start(child(tmp_path, "a"))
    assert log.with_suffix(".log.1").stat().st_size == 10_000_001
    assert log.stat().st_size < 10_000_001


PARENT = """
    import pathlib, signal, sys
    from farm.supervisor import Process, Supervisor
    here = pathlib.Path(sys.argv[1])
    signal.signal(signal.SIGHUP, signal.SIG_IGN if "nohup" in sys.argv else signal.SIG_DFL)
    supervisor = Supervisor(here / "logs")
    children = [
        Process(name, [sys.executable, "-c", sys.argv[2], str(here), name])
        for name in ("a", "b")
    ]
    with supervisor.signals():
        supervisor.start(*children)
        supervisor.run()
        supervisor.stop()
"""


@pytest.mark.parametrize(
    ("how", "code"),
    [
        pytest.param(signal.SIGINT, GOOD_CHILD, id="Ctrl-C"),
        pytest.param(signal.SIGTERM, GOOD_CHILD, id="terminated"),
        pytest.param(signal.SIGHUP, GOOD_CHILD, id="hung up"),
        pytest.param(signal.SIGKILL, GOOD_CHILD, id="killed"),
        pytest.param(signal.SIGKILL, STUBBORN_CHILD, id="killed, stubborn children"),
    ],
)
def test_however_the_parent_ends_no_child_stays(
    tmp_path: Path, how: signal.Signals, code: str
) -> None:
    parent = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(PARENT), str(tmp_path), textwrap.dedent(code)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    eventually(lambda: (tmp_path / "a.pid").exists() and (tmp_path / "b.pid").exists())
    pids = [pid_of(tmp_path, "a"), pid_of(tmp_path, "b")]

    parent.send_signal(how)
    code_of_parent = parent.wait(30)

    eventually(lambda: not any(psutil.pid_exists(pid) for pid in pids))
    assert code_of_parent == (-how if how == signal.SIGKILL else 0)


def test_under_nohup_nothing_ends_when_the_terminal_does(tmp_path: Path) -> None:
    code = [textwrap.dedent(PARENT), str(tmp_path), textwrap.dedent(GOOD_CHILD), "nohup"]
    parent = subprocess.Popen(
        [sys.executable, "-c", *code], env={**os.environ, "PYTHONPATH": str(ROOT)}
    )
    eventually(lambda: (tmp_path / "a.pid").exists() and (tmp_path / "b.pid").exists())
    parent.send_signal(signal.SIGHUP)
    ignored = int(_status(parent.pid, "SigIgn"), 16)
    assert ignored & (1 << (signal.SIGHUP - 1))
    assert not (tmp_path / "ended").exists()

    parent.send_signal(signal.SIGTERM)
    assert parent.wait(30) == 0


def _status(pid: int, field: str) -> str:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(line.split()[1] for line in lines if line.startswith(f"{field}:"))
