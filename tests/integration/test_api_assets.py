"""/v1/assets and `farm model`: what files there are, where they are held, and orders."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from starlette.testclient import TestClient
from typer.testing import CliRunner, Result

from farm.api.deps import Services
from farm.cli.main import app
from farm.db import assets, orders, sessions
from farm.db.assets import Asset
from farm.worker.models.catalogue import builtin_folder
from tests.standin import StandIn


@pytest.fixture
def lora(services: Services) -> None:
    path = "/models/Lora/detail.safetensors"
    made = {"ss_output_name": "detail", "ss_network_dim": "16"}
    file = Asset("detail", "sdxl", 99, path, {}, None, "lora", "F16", made, "99:1:1")
    assets.register(services.db, "here", [file], folders=["/models/Lora"])
    taken = assets.take_unhashed(services.db, "here")
    assert taken is not None
    assets.record_hashes(
        services.db, "here", taken, sha256="a" * 64, weights_sha256="0123456789abcdef"
    )


def test_kinds_hashes_and_holders_are_shown(
    api: TestClient, services: Services, worker: StandIn, lora: None
) -> None:
    stats = {"models": {"in_host": ["broken"]}}
    sessions.beat(services.db, worker.session, lease=60, resident=["demo"], stats=stats)
    found = {a["name"]: a for a in api.get("/v1/assets").json()["assets"]}
    assert found.keys() == {"demo", "broken", "detail"}
    assert found["demo"]["held_by"] == [{"worker": "cpu0", "where": "device"}]
    assert found["broken"]["held_by"] == [{"worker": "cpu0", "where": "host"}]
    assert found["detail"]["short_hash"] == "0123456789ab"
    assert found["demo"]["short_hash"] is None
    [only] = api.get("/v1/assets?kind=lora").json()["assets"]
    assert only["name"] == "detail"


def test_one_asset_shows_its_makers_metadata_and_no_paths(api: TestClient, lora: None) -> None:
    shown = api.get("/v1/assets/lora/detail").json()
    assert shown["metadata"]["ss_network_dim"] == "16"
    assert [file["host"] for file in shown["files"]] == ["here"]
    assert "/models" not in json.dumps(shown)


@pytest.mark.parametrize("path", ["lora/none", "nonsense/demo", "checkpoint/de%2Fmo"])
def test_an_unknown_asset_is_not_found(api: TestClient, path: str) -> None:
    answer = api.get(f"/v1/assets/{path}")
    assert (answer.status_code, answer.json()["field"]) == (404, "name")


def test_an_order_reaches_the_worker(api: TestClient, services: Services, worker: StandIn) -> None:
    answer = api.post("/v1/assets/checkpoint/demo:warm")
    assert (answer.status_code, answer.json()["workers"]) == (202, ["cpu0"])
    assert orders.take(services.db, worker.session) == [("warm", "demo")]
    answer = api.post("/v1/assets/checkpoint/demo:evict", json={"worker": "cpu0"})
    assert answer.json() == {"checkpoint": "demo", "action": "evict", "workers": ["cpu0"]}
    assert orders.take(services.db, worker.session) == [("evict", "demo")]


@pytest.mark.parametrize(
    ("name", "body", "status", "field"),
    [
        ("none", None, 404, "name"),
        ("broken", None, 422, "checkpoint"),
        ("demo", {"worker": "gpu9"}, 404, "worker"),
        ("demo", {"wrker": "cpu0"}, 422, "wrker"),
    ],
)
def test_an_order_that_nobody_can_follow_is_refused(
    api: TestClient,
    services: Services,
    worker: StandIn,
    *,
    name: str,
    body: dict[str, str] | None,
    status: int,
    field: str,
) -> None:
    answer = api.post(f"/v1/assets/checkpoint/{name}:warm", json=body)
    assert (answer.status_code, answer.json()["field"]) == (status, field)
    assert orders.take(services.db, worker.session) == []


@pytest.fixture
def shell(served: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A command line that speaks to the farm; the home of its host."""
    monkeypatch.setenv("FARM_URL", served)
    monkeypatch.setenv("FARM_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("COLUMNS", "160")
    return tmp_path / "home"


def farm(*words: str, code: int = 0) -> Result:
    result = CliRunner().invoke(app, ["model", *words])
    assert result.exit_code == code, result.output
    return result


def test_the_command_line_lists_shows_warms_and_evicts(
    shell: Path, services: Services, worker: StandIn, lora: None
) -> None:
    sessions.beat(services.db, worker.session, lease=60, resident=["demo"], stats={})
    listed = farm("ls").stdout
    rows = [line.split() for line in listed.splitlines()]
    assert ["lora", "detail", "0123456789ab", "sdxl", "99", "B", "F16"] in rows
    [held] = [row for row in rows if row[:2] == ["checkpoint", "demo"]]
    assert "cpu0" in held
    assert "broken cannot be used: It is truncated." in listed
    assert json.loads(farm("ls", "lora", "--json").stdout)["assets"][0]["name"] == "detail"
    assert "ss_network_dim" in farm("show", "lora", "detail").stdout
    assert "cpu0 will load demo" in farm("warm", "demo").stdout
    assert "cpu0 will let go of demo" in farm("evict", "demo", "-w", "cpu0").stdout
    assert "There is no checkpoint none" in farm("warm", "none", code=3).output


def test_a_file_is_checked_before_it_is_added(shell: Path, tmp_path: Path) -> None:
    demo = builtin_folder() / "demo.safetensors"
    assert "checkpoint, sdxl, F16" in farm("add", str(demo), "--name", "sub/new").stdout
    added = shell / "models" / "Stable-diffusion" / "sub" / "new.safetensors"
    assert added.read_bytes() == demo.read_bytes()
    assert (added.parent / "new.config" / "unet" / "config.json").is_file()
    assert "already there" in farm("add", str(demo), "--name", "sub/new", code=1).output

    cut = tmp_path / "cut.safetensors"
    cut.write_bytes(demo.read_bytes()[:9999])
    for words, complaint in (
        ([str(cut)], "cut short"),
        ([str(tmp_path / "none.safetensors")], "There is no"),
        ([str(demo), "--name", "../../x"], "leads out of the model folder"),
        ([str(demo), "--kind", "pony"], "no kind of file"),
    ):
        assert complaint in farm("add", *words, code=2).output.replace("\n", " ")
    assert {path.name for path in added.parent.iterdir()} == {
        "new.safetensors",
        "new.config",
        "new.json",
    }
    assert not (shell / "x.safetensors").exists()
