"""The real PostgreSQL and Valkey from the wheels, under their guards, in a folder of the test's."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import kombu
import psutil
import psycopg
import pytest
import redis

from farm.db.database import POOLS
from farm.embedded import postgres, sockets, valkey
from farm.errors import SetupError
from farm.supervisor import Process, Supervisor
from tests.conftest import eventually

ROOT = Path(__file__).parents[2]
SERVERS = {"postgres": postgres, "valkey": valkey}
ENV = {"PYTHONPATH": str(ROOT)}


def guard(name: str, home: Path) -> Process:
    argv = [sys.executable, "-m", f"farm.embedded.{name}", str(home)]
    return Process(name, argv, ENV, ready=lambda: SERVERS[name].ready(home))


@contextmanager
def running(home: Path, *names: str) -> Iterator[Supervisor]:
    supervisor = Supervisor(home / "logs")
    try:
        supervisor.start(*(guard(name, home) for name in names))
        supervisor.wait_ready(60)
        yield supervisor
    finally:
        supervisor.stop()
        assert servers_of(home) == []


def servers_of(home: Path, name: str = "") -> list[psutil.Process]:
    """Every guard and server of this home that runs."""
    found = []
    for process in psutil.process_iter(["cmdline"]):
        command = process.info["cmdline"] or []
        if any(str(home) in part for part in command) and name in " ".join(command):
            found.append(process)
    return found


def guard_of(home: Path, name: str) -> psutil.Process:
    (found,) = servers_of(home, f"farm.embedded.{name}")
    return found


def server_of(home: Path, program: str) -> psutil.Process:
    (found,) = (each for each in servers_of(home) if each.name() == program)
    return found


def query(home: Path, sql: str) -> object:
    with psycopg.connect(sockets.urls(home)[0], connect_timeout=10) as connection:
        found = connection.execute(sql)
        row = found.fetchone() if found.description else None
        return row[0] if row else None


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Data as the first start makes it, to be copied: making it takes a second."""
    home = tmp_path_factory.mktemp("made")
    with running(home, "postgres"):
        pass
    return postgres.data_folder(home)


def copy(made: Path, home: Path) -> None:
    home.mkdir()
    subprocess.run(["cp", "-a", made, home], check=True)  # shutil would lose the owner


@pytest.fixture
def home(made: Path) -> Iterator[Path]:
    """Of a path short enough for sockets to lie in it, however many processes test."""
    with tempfile.TemporaryDirectory(prefix="farm-test-", dir="/tmp") as folder:
        home = Path(folder) / "a farm"
        copy(made, home)
        yield home


def test_what_was_written_is_there_after_a_restart(tmp_path: Path) -> None:
    home = tmp_path / "new farm"
    with running(home, "postgres"):
        query(home, "create table kept as select 'Äpfel' as word")
        assert query(home, "select current_database()") == "farm"
    with running(home, "postgres"):
        assert query(home, "select upper(word) from kept") == "ÄPFEL"


def test_nobody_else_can_connect(home: Path) -> None:
    with running(home, "postgres", "valkey"):
        for folder in (sockets.postgres(home), postgres.data_folder(home)):
            assert folder.stat().st_mode & 0o077 == 0
        assert sockets.valkey(home).stat().st_mode & 0o077 == 0
        for program in ("postgres", "valkey-server"):
            assert server_of(home, program).net_connections("inet") == []


def test_as_many_workers_as_any_machine_has_cards_are_let_in(home: Path) -> None:
    """At once with all their connections, two dispatchers, an API, and people beside them."""
    workers, people = 64, 10
    wanted = workers * POOLS["worker"] + 2 * (POOLS["dispatcher"] + 1) + POOLS["api"] + people
    with running(home, "postgres"):
        kept = query(home, "select current_setting('superuser_reserved_connections')::int")
        most = query(home, "select current_setting('max_connections')::int")
    assert isinstance(most, int)
    assert isinstance(kept, int)
    assert most - kept >= wanted


def test_a_path_too_long_for_a_socket_is_no_obstacle(tmp_path: Path, made: Path) -> None:
    home = tmp_path / ("long " * 25)
    copy(made, home)
    try:
        with running(home, "postgres", "valkey"):
            assert query(home, "select 1") == 1
            assert sockets.folder(home).parent == Path("/tmp")
    finally:
        shutil.rmtree(sockets.folder(home))


def test_celery_and_redis_reach_valkey_by_its_url(home: Path) -> None:
    with running(home, "valkey"):
        url = sockets.urls(home)[1]
        with kombu.Connection(url) as connection, connection.SimpleQueue("w.test") as queue:
            queue.put({"batch": 1})
            assert queue.get(timeout=10).payload == {"batch": 1}
        client = redis.Redis.from_url(url.replace("redis+socket://", "unix://"))
        assert client.config_get("maxmemory-policy") == {"maxmemory-policy": "noeviction"}
        assert client.config_get("save") == {"save": ""}
        listener = client.pubsub()
        listener.subscribe("progress")
        assert listener.get_message(timeout=10)["type"] == "subscribe"
        client.publish("progress", "1")
        assert listener.get_message(timeout=10)["data"] == b"1"
        listener.close()
        client.close()


@pytest.mark.parametrize(
    ("name", "program"), [("postgres", "postgres"), ("valkey", "valkey-server")]
)
def test_a_server_outlives_its_guard_and_the_next_takes_it_over(
    home: Path, name: str, program: str
) -> None:
    with running(home, name) as supervisor:
        server, first = server_of(home, program), guard_of(home, name)

        first.kill()

        def taken_over() -> bool:
            log = (home / "logs" / f"{name}.log").read_text()
            return log.count(f"{name} runs as process {server.pid}") == 2

        assert supervisor.wait_ready(30, until=taken_over)

        assert guard_of(home, name).pid != first.pid
        assert server_of(home, program).pid == server.pid
    assert not server.is_running()


@pytest.mark.parametrize(
    ("name", "program"), [("postgres", "postgres"), ("valkey", "valkey-server")]
)
def test_a_server_that_dies_is_started_again(home: Path, name: str, program: str) -> None:
    with running(home, name) as supervisor:
        first = server_of(home, program)

        first.kill()

        def another() -> bool:
            return any(each.name() == program and each != first for each in servers_of(home))

        assert supervisor.wait_ready(30, until=another)
        assert SERVERS[name].ready(home)


@pytest.mark.parametrize("pid", ["999999", str(os.getpid())], ids=["gone", "somebody else's"])
def test_a_stale_process_file_is_no_obstacle(home: Path, pid: str) -> None:
    lines = [pid, str(postgres.data_folder(home)), "1700000000", "5432", "/tmp", "", "", "ready"]
    (postgres.data_folder(home) / "postmaster.pid").write_text("\n".join(lines) + "\n")
    assert not postgres.ready(home)
    with running(home, "postgres"):
        assert query(home, "select 1") == 1


def test_a_first_start_cut_short_is_done_again(tmp_path: Path) -> None:
    partial = postgres.data_folder(tmp_path).with_name(f"{postgres.data_folder(tmp_path).name}.new")
    partial.mkdir()
    (partial / "PG_VERSION").write_text("18\n")
    with running(tmp_path, "postgres"):
        assert query(tmp_path, "select current_database()") == "farm"
    assert not partial.exists()


def test_data_of_an_older_major_version_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "postgres-15").mkdir()
    (tmp_path / "postgres-15" / "PG_VERSION").write_text("15\n")
    with pytest.raises(SetupError, match=r"written by PostgreSQL 15.*cannot read it") as error:
        postgres.start(tmp_path)
    assert "pg_dump" in str(error.value.remedy)
    assert [path.name for path in (tmp_path / "postgres-15").iterdir()] == ["PG_VERSION"]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can restore a backup as root")
def test_data_restored_by_root_is_given_to_the_servers_account(tmp_path: Path, made: Path) -> None:
    home = tmp_path / "restored"
    shutil.copytree(made, home / made.name)
    assert postgres.data_folder(home).stat().st_uid == 0
    with running(home, "postgres"):
        assert query(home, "select 1") == 1


def test_a_folder_that_cannot_be_used_is_explained(tmp_path: Path, made: Path) -> None:
    home = tmp_path / "home"
    copy(made, home)
    (postgres.data_folder(home) / "global" / "pg_control").unlink()
    supervisor = Supervisor(home / "logs")
    try:
        supervisor.start(guard("postgres", home))
        with pytest.raises(SetupError, match=r"(?s)postgres keeps dying.*database system"):
            supervisor.wait_ready(60)
    finally:
        supervisor.stop()


PARENT = """
    import sys
    from pathlib import Path
    from farm.embedded import postgres, valkey
    from farm.supervisor import Process, Supervisor
    home = Path(sys.argv[1])
    supervisor = Supervisor(home / "logs")
    supervisor.start(*[
        Process(name, [sys.executable, "-m", f"farm.embedded.{name}", str(home)])
        for name in ("postgres", "valkey")
    ])
    supervisor.run()
"""


def test_kill_9_of_the_parent_leaves_no_server(home: Path) -> None:
    parent = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(PARENT), str(home)], env={**os.environ, **ENV}
    )
    eventually(lambda: postgres.ready(home) and valkey.ready(home))
    assert len(servers_of(home)) >= 5  # the parent, two guards, two servers

    parent.send_signal(signal.SIGKILL)
    parent.wait(10)

    eventually(lambda: not servers_of(home), within=20)
    with running(home, "postgres"):
        assert query(home, "select 1") == 1
