"""Settings: defaults, the environment, and what is wrong with it."""

from __future__ import annotations

import io
import json
import logging
import os
from pathlib import Path

import pytest

from farm import log
from farm.errors import InvalidInput, SetupError
from farm.settings import Settings, address
from farm.spec.output import PNG, Output


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("FARM_")]:
        monkeypatch.delenv(name)


def test_everything_follows_from_the_home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("FARM_HOME", str(tmp_path))
    settings = Settings()
    assert settings.home == tmp_path
    assert settings.storage_url == str(tmp_path / "images")
    assert settings.models == [tmp_path / "models"]
    assert settings.url == "http://127.0.0.1:7900"
    assert settings.database_url is None


@pytest.mark.parametrize(
    ("variable", "value", "name", "read"),
    [
        ("FARM_HOME", "~/farm", "home", Path.home() / "farm"),
        ("FARM_HOME", "here", "home", Path.cwd() / "here"),
        ("FARM_HOME", "", "database_url", None),
        ("FARM_TAGS", "red, a100,,red", "tags", ["a100", "red"]),
        ("FARM_TAGS", "", "tags", []),
        ("FARM_OUTPUT", "", "output", PNG),
        ("FARM_OUTPUT", "webp 80", "output", Output(format="webp", quality=80)),
        ("FARM_OUTPUT", "webp lossless", "output", Output(format="webp", lossless=True)),
        ("FARM_MODELS", f"/a{os.pathsep}/b c", "models", [Path("/a"), Path("/b c")]),
        ("FARM_DATABASE_URL", "postgresql://u@h/farm", "database_url", "postgresql://u@h/farm"),
        ("FARM_BROKER_URL", "redis+socket:///a/b", "broker_url", "redis+socket:///a/b"),
        ("FARM_STORAGE_URL", "s3://bucket/x", "storage_url", "s3://bucket/x"),
        ("FARM_URL", "https://farm.example/", "url", "https://farm.example"),
        ("FARM_PORT", "8000", "url", "http://127.0.0.1:8000"),
        ("FARM_LOG_LEVEL", "debug", "log_level", "DEBUG"),
        ("FARM_LOG_JSON", "1", "log_json", True),
    ],
)
def test_the_environment_is_read(
    monkeypatch: pytest.MonkeyPatch, variable: str, value: str, name: str, read: object
) -> None:
    monkeypatch.setenv(variable, value)
    assert getattr(Settings(), name) == read


@pytest.mark.parametrize(
    ("variable", "value", "says"),
    [
        ("FARM_PORT", "http", "valid integer"),
        ("FARM_PORT", "0", "greater than or equal to 1"),
        ("FARM_PORT", "65536", "less than or equal to 65535"),
        ("FARM_LOG_LEVEL", "LOUD", "'DEBUG', 'INFO'"),
        ("FARM_LOG_JSON", "maybe", "valid boolean"),
        ("FARM_URL", "farm.example", "http:// or https://"),
        ("FARM_OUTPUT", "gif", "'png', 'webp'"),
    ],
)
def test_a_bad_value_is_named(
    monkeypatch: pytest.MonkeyPatch, variable: str, value: str, says: str
) -> None:
    monkeypatch.setenv(variable, value)
    with pytest.raises(InvalidInput, match=says) as error:
        Settings()
    assert error.value.field == variable
    assert error.value.value == value
    assert variable in str(error.value.remedy)


@pytest.mark.parametrize("variable", ["FARM_DATABASE_URL", "FARM_BROKER_URL"])
def test_a_bad_url_is_named_without_its_password(
    monkeypatch: pytest.MonkeyPatch, variable: str
) -> None:
    monkeypatch.setenv(variable, "mysql://me:secret@host/farm")
    with pytest.raises(InvalidInput, match=f"{variable}.*must start with") as error:
        Settings()
    assert "secret" not in str(error.value.to_dict())


def test_what_must_be_set_says_so() -> None:
    with pytest.raises(SetupError, match=r"FARM_DATABASE_URL is not set.*postgresql://"):
        Settings().required("database_url")
    assert Settings(database_url="postgresql://h/x").required("database_url").endswith("h/x")


@pytest.mark.parametrize(
    ("host", "url"),
    [
        ("127.0.0.1", "http://127.0.0.1:1"),
        ("0.0.0.0", "http://127.0.0.1:1"),
        ("::", "http://[::1]:1"),
        ("rack7", "http://rack7:1"),
    ],
)
def test_an_address_can_be_reached_from_here(host: str, url: str) -> None:
    assert address(host, 1) == url


@pytest.mark.parametrize("as_json", [False, True])
def test_a_record_is_one_line(monkeypatch: pytest.MonkeyPatch, as_json: bool) -> None:
    stream = io.StringIO()
    monkeypatch.setattr("sys.stderr", stream)
    root = logging.getLogger()
    before = root.handlers[:], root.level
    try:
        log.configure("gpu0", as_json=as_json)
        logging.getLogger("farm.worker").info("job %s done", "12-3")
        logging.getLogger("farm.worker").debug("not shown")
    finally:
        root.handlers[:], root.level = before
    (line,) = stream.getvalue().splitlines()
    if as_json:
        record = json.loads(line)
        assert (record["process"], record["level"]) == ("gpu0", "INFO")
        assert record["message"] == "job 12-3 done"
    else:
        assert line.endswith("INFO    gpu0 farm.worker: job 12-3 done")
