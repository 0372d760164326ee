"""Batches that no worker could ever make: refused with the nearest change, and nothing is kept."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from starlette.testclient import TestClient
from typer.testing import CliRunner

from farm.api.app import create_app
from farm.api.deps import Services
from farm.cli.main import app
from farm.db import assets, cards, sessions, users
from farm.db.assets import Asset
from farm.db.database import Database
from farm.db.sessions import NewSession
from farm.dispatch import means
from tests.standin import DEFAULTS

MIB = 2**20
TAGS = ["fast"]
TOLD = {
    "memory": 1100 * MIB,
    "share": 1.0,
    "bytes_a_weight": 2,
    "families": {
        family: {"weights": weights * MIB, "peaks": [[64 * 64, 4 * MIB], [2**22, 4096 * MIB]]}
        for family, weights in (("sdxl", 100), ("huge", 1098))
    },
}
"""1000 MiB beside the weights, and 1 KiB a pixel: 1012 x 1012 fits; of what is huge, nothing."""


@pytest.fixture
def small(services: Services) -> Database:
    """A farm with one small card, gpu0, tagged fast; ``huge`` is too large for it, and ``far`` lies
    on a host without a worker."""
    half = {"dtype": "float16"}
    assets.register(
        services.db,
        "here",
        [
            Asset("demo", "sdxl", 100 * MIB, "/models/demo", DEFAULTS, None, **half),
            Asset("huge", "huge", 1098 * MIB, "/models/huge", DEFAULTS, None, **half),
        ],
    )
    far = Asset("far", "sdxl", 100 * MIB, "/models/far", DEFAULTS, None, **half)
    assets.register(services.db, "there", [far])
    card(services.db, "gpu0", "here", tags=TAGS)
    return services.db


def card(db: Database, name: str, host: str, **more: Any) -> None:
    told = {**TOLD, **more.pop("told", {})}
    sessions.open(db, NewSession(name, name, host, 1, {}, "x", 8, fits=told, **more), lease=60)


SIZES = "The nearest size that fits is"


@pytest.mark.parametrize(
    ("fields", "field", "told"),
    [
        ({"width": 2048, "height": 2048}, "width", ("gpu0, the largest", f"{SIZES} 1008x1008")),
        ({"axes": {"width": [64, 4096], "height": [64, 2048]}, "count": 3},
         "axes.width[1]", ("3 of its 12 jobs, the first is number 9", f"{SIZES} 1424x712")),
        ({"width": 2048, "axes": {"steps": [5, 6], "height": [64, 1024, 2048]}},
         "axes.height[1]", ("4 of its 6 jobs, the first is number 1", SIZES)),
        ({"checkpoint": "huge"}, "checkpoint", ("'huge' takes", "a smaller checkpoint")),
        ({"axes": {"steps": [5, 6], "checkpoint": ["demo", "huge"]}},
         "axes.checkpoint[1]", ("2 of its 4 jobs, the first is number 2", "a smaller checkpoint")),
        ({"checkpoint": "far"}, "checkpoint", ("'far' has a worker", "model folder of gpu0")),
        ({"axes": {"checkpoint": ["far", "demo"]}},
         "axes.checkpoint[0]", ("1 of its 2 jobs", "model folder of gpu0")),
        ({"tags": ["fast", "a100"]}, "tags", ("tagged a100 and fast", "tag gpu0 +a100")),
        ({"jobs": [{}, {"width": 2048, "height": 1024}, {"checkpoint": "huge"}]},
         "jobs[1].width", ("2 of its 3 jobs, the first is number 1", SIZES)),
        ({"width": 512, "height": 512, "hires_scale": 2.5},
         "hires_scale", ("1280x1280 on 'demo'", f"{SIZES} 1008x1008")),
        ({"width": 512, "height": 512, "count": 2,
          "axes": {"steps": [5, 6], "hires_width": [0, 768, 2048]}},
         "axes.hires_width[2]", ("4 of its 12 jobs, the first is number 4", SIZES)),
        ({"hires_scale": 2, "hires_checkpoint": "huge"},
         "hires_checkpoint", ("'huge' takes", "a smaller checkpoint")),
        ({"jobs": [{}, {"hires_scale": 1.5, "hires_checkpoint": "far"}]},
         "jobs[1].hires_checkpoint", ("'far' has a worker", "model folder of gpu0")),
    ],
)  # fmt: skip
def test_what_no_worker_could_ever_make_is_refused(
    api: TestClient, small: Database, fields: dict[str, Any], field: str, told: tuple[str, str]
) -> None:
    answer = api.post("/v1/batches", json={"prompt": "a lion", "checkpoint": "demo", **fields})
    problem = answer.json()
    assert (answer.status_code, problem["field"]) == (422, field)
    assert field in problem["detail"]
    says, remedy = told
    assert says in problem["detail"]
    assert remedy in problem["remedy"]
    assert "wait_for_worker" in problem["remedy"]
    assert problem["value"]
    assert small.all("SELECT FROM batches") == []

    quoted = api.post("/v1/batches:quote", json={"checkpoint": "demo", **fields}).json()
    assert quoted["refusal"]["detail"] == problem["detail"]
    assert quoted["refusal"]["remedy"] == problem["remedy"]

    body = {"checkpoint": "demo", **fields, "wait_for_worker": True}
    waits = api.post("/v1/batches", json=body)
    assert waits.status_code == 202
    assert waits.json()["notices"] == [problem["detail"]]


@pytest.mark.parametrize("state", ["draining", "quarantined"])
def test_who_gets_no_jobs_now_may_get_some_later(
    api: TestClient, small: Database, state: str
) -> None:
    small.all("UPDATE sessions SET state = %(state)s RETURNING id", {"state": state})
    body = {"prompt": "a lion", "checkpoint": "demo", "tags": TAGS}
    answer = api.post("/v1/batches", json=body)
    assert (answer.status_code, answer.json()["notices"]) == (202, [])
    assert api.post("/v1/batches", json={**body, "width": 2048, "height": 2048}).status_code == 422


def test_a_worker_that_is_away_may_come_back(api: TestClient, small: Database) -> None:
    card(small, "gpu7", "there", told={"memory": 9999 * MIB}, tags=["night"])
    sessions.close(small, "gpu7")
    body = {"prompt": "a lion", "checkpoint": "far", "tags": ["night"], "width": 2048}
    answer = api.post("/v1/batches", json=body)
    assert answer.status_code == 202
    assert answer.json()["notices"] == ["Some jobs wait for workers that are away now: gpu7."]
    assert api.post("/v1/batches:quote", json=body).json()["notices"] == answer.json()["notices"]
    sessions.close(small, "gpu0")
    assert api.post("/v1/batches", json={**body, "tags": ["a100"]}).status_code == 422


def test_a_farm_that_never_had_a_worker_takes_all(api: TestClient) -> None:
    answer = api.post("/v1/batches", json={"prompt": "a lion", "tags": ["a100"], "width": 4096})
    assert answer.status_code == 202
    assert "has no worker yet" in answer.json()["notices"][0]


def test_nobody_is_refused_for_what_was_so_a_second_ago(
    api: TestClient, small: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(means, "FRESH", 3600.0)
    body = {"prompt": "a lion", "checkpoint": "demo", "tags": ["new"]}
    assert api.post("/v1/batches", json=body).status_code == 422
    card(small, "gpu1", "here", tags=["new"])
    assert api.post("/v1/batches", json=body).status_code == 202
    plain = {"prompt": "a lion", "checkpoint": "demo", "tags": TAGS}
    assert api.post("/v1/batches", json=plain).status_code == 202
    monkeypatch.setattr(cards, "live", pytest.fail)
    assert api.post("/v1/batches", json=plain).status_code == 202, "it is not asked again"


def send(api: TestClient, *lines: dict[str, Any]) -> Any:
    body = "".join(f"{json.dumps(line)}\n" for line in lines)
    headers = {"Content-Type": "application/x-ndjson"}
    return api.post("/v1/batches", content=body.encode(), headers=headers)


def test_a_stream_stops_at_the_first_such_line(api: TestClient, small: Database) -> None:
    shared = {"checkpoint": "demo", "prompt": "a lion"}
    lines = [{"width": 64}, {"width": 2048, "height": 2048}, {"checkpoint": "huge"}]
    problem = send(api, {"batch": shared}, *lines).json()
    assert (problem["status"], problem["field"]) == (422, "line 3.width")
    assert "1008x1008" in problem["remedy"]
    assert api.get("/v1/batches").json()["batches"] == []
    assert small.all("SELECT FROM batches WHERE state <> 'pruned'") == []

    large = {"width": 512, "height": 512, "hires_height": 2048}
    assert send(api, {"batch": shared}, large).json()["field"] == "line 2.hires_height"

    waits = send(api, {"batch": {**shared, "wait_for_worker": True}}, *lines)
    assert (waits.status_code, waits.json()["total"]) == (202, 3)
    assert "line 3.width" in waits.json()["notices"][0]


def test_why_tells_what_it_waits_for(api: TestClient, small: Database) -> None:
    body = {"prompt": "a lion", "checkpoint": "huge", "wait_for_worker": True}
    batch = api.post("/v1/batches", json=body).json()["id"]
    told = api.get(f"/v1/jobs/{batch}-0/why").json()
    assert "fits on none of gpu0" in told["reason"]


def test_the_command_line(served: str, small: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FARM_URL", served)
    large = ["a lion", "-c", "demo", "-W", "2048", "-H", "2048"]
    refused = CliRunner().invoke(app, ["submit", *large])
    assert refused.exit_code == 2
    assert "1008x1008" in refused.output
    quoted = CliRunner().invoke(app, ["quote", *large])
    assert "It would be refused" in quoted.output
    quoted = CliRunner().invoke(app, ["quote", *large, "--wait-for-worker"])
    assert "It would wait: width: 2048x2048" in quoted.output
    tagged = ["a lion", "-c", "demo", "--tag", "a100"]
    assert "tagged a100" in CliRunner().invoke(app, ["quote", *tagged]).output
    waits = CliRunner().invoke(app, ["submit", *large, "--wait-for-worker"])
    assert waits.exit_code == 0
    assert "gpu0, the largest" in waits.output


@pytest.mark.parametrize("kind", ["axes", "listed", "stream"])
@pytest.mark.parametrize("change", ["workers", "quota", "cap"])
def test_what_was_accepted_is_whatever_the_checks_would_say_now(
    services: Services,
    small: Database,
    monkeypatch: pytest.MonkeyPatch,
    kind: str,
    change: str,
) -> None:
    """A client whose answer was lost sends its request again."""
    monkeypatch.setattr(means, "FRESH", -1.0)
    allowed = replace(services, quota=5)
    with TestClient(create_app(allowed), base_url="http://localhost:7900") as api:

        def send(**key: str) -> Any:
            if kind == "stream":
                lines = b'{"batch": {"tags": ["fast"], "checkpoint": "demo"}}\n{}\n{"steps": 5}\n'
                told = {"Content-Type": "application/x-ndjson", **key}
                return api.post("/v1/batches", content=lines, headers=told)
            jobs = {"axes": {"steps": [5, 6]}} if kind == "axes" else {"jobs": [{}, {}]}
            body = {"checkpoint": "demo", "tags": TAGS, **jobs}
            return api.post("/v1/batches", json=body, headers=key)

        key = {"Idempotency-Key": "k"}
        first = send(**key)
        if change == "workers":
            small.all("UPDATE sessions SET tags = '{}' RETURNING id")
        else:
            local = users.local(small).name
            users.set_share(small, local, **{change: 0})  # type: ignore[arg-type]
        refused, again = send(), send(**key)
    assert (first.status_code, again.status_code) == (202, 200)
    assert again.json()["id"] == first.json()["id"]
    assert refused.status_code in (403, 422, 429), "as something new it is refused"
    assert small.one("SELECT count(*) FROM batches WHERE state = 'open'") == {"count": 1}


def test_latents_that_the_next_checkpoint_takes_for_something_else_are_refused(
    api: TestClient, services: Services
) -> None:
    of = {"first": "sd15", "second": "sdxl"}
    found = [Asset(name, family, MIB, f"/{name}", DEFAULTS, None) for name, family in of.items()]
    assets.register(services.db, "here", found)
    body = {"prompt": "a lion", "checkpoint": "first", "hires_scale": 2}
    line = {**body, "hires_checkpoint": "second"}
    kinds = {"content-type": "application/x-ndjson"}
    refused = {
        "hires_upscaler": api.post("/v1/batches", json=line),
        "line 2.hires_upscaler": api.post(
            "/v1/batches", content="\n".join(map(json.dumps, (body, line))), headers=kinds
        ),
    }
    for field, answer in refused.items():
        told = answer.json()
        assert (answer.status_code, told["field"]) == (422, field)
        assert told["detail"].startswith(f"{field}: 'first' makes latents of SD")
    assert services.db.all("SELECT FROM batches WHERE state <> 'pruned'") == []
    assert api.post("/v1/batches", json={**line, "hires_upscaler": "Lanczos"}).status_code == 202


@pytest.fixture
def upscaling(small: Database) -> Database:
    """The same, and a model that enlarges pictures; another lies where no worker is."""
    four = Asset("4x-UltraSharp", None, MIB, "/models/four", {}, None, "upscaler")
    shipped = replace(four, name="R-ESRGAN 4x+", path="/models/shipped")
    broken = replace(four, name="bad", path="/models/bad", error="It is cut short.")
    hosts = ("here", "demo", [four, broken]), ("there", "far", [shipped])
    for host, name, more in hosts:
        own = Asset(name, "sdxl", MIB, f"/models/{name}", DEFAULTS, None, dtype="float16")
        assets.register(small, host, [own, *more])
    return small


HIRES = {"checkpoint": "demo", "width": 64, "height": 64, "hires_scale": 2}


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"hires_upscaler": "4x-UltraSharp"}, None),
        ({"hires_upscaler": "lanczos"}, None),
        ({"hires_upscaler": "4x-Ultrasharp"}, "hires_upscaler"),
        ({"hires_upscaler": "RealESRGAN_x4plus"}, "hires_upscaler"),
        ({"hires_upscaler": "bad"}, "hires_upscaler"),
        ({"axes": {"hires_upscaler": ["Latent", "4x-UltraSharp"]}}, None),
        ({"axes": {"steps": [5, 6], "hires_upscaler": ["Latent", "x"]}}, "axes.hires_upscaler[1]"),
        ({"jobs": [{}, {"hires_upscaler": "x"}]}, "jobs[1].hires_upscaler"),
        ({"jobs": [{}, {"hires_upscaler": "4x-UltraSharp"}]}, None),
    ],
)
def test_a_model_that_enlarges_must_lie_where_a_worker_is(
    api: TestClient, upscaling: Database, fields: dict[str, Any], field: str | None
) -> None:
    body = {**HIRES, **fields}
    answer = api.post("/v1/batches", json=body)
    if field is None:
        assert answer.status_code == 202, answer.text
        return
    told = answer.json()
    assert (answer.status_code, told["field"]) == (422, field)
    assert told["detail"].startswith(f"{field}: there is no upscaler")
    assert "Lanczos, Nearest, or a model: 4x-UltraSharp. Models go into" in told["remedy"]
    assert "ESRGAN folder of gpu0" in told["remedy"]
    waits = api.post("/v1/batches", json={**body, "wait_for_worker": True})
    assert waits.status_code == 202
    assert "there is no upscaler" in json.dumps(waits.json())


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"hires_upscaler": "R-ESRGAN 4x+"}, "hires_upscaler"),
        ({"jobs": [{}, {"hires_upscaler": "R-ESRGAN 4x+"}]}, "jobs[1].hires_upscaler"),
        ({"axes": {"hires_upscaler": ["4x-UltraSharp", "R-ESRGAN 4x+"]}},
         "axes.hires_upscaler[1]"),
        ({"axes": {"checkpoint": ["far", "demo"]}, "hires_upscaler": "4x-UltraSharp"},
         "hires_upscaler"),
        ({"checkpoint": "far", "hires_upscaler": "R-ESRGAN 4x+"}, None),
        ({"jobs": [{"hires_upscaler": "4x-UltraSharp"},
                   {"checkpoint": "far", "hires_upscaler": "R-ESRGAN 4x+"}]}, None),
    ],
)  # fmt: skip
def test_what_a_job_needs_must_lie_on_one_host(
    api: TestClient, upscaling: Database, fields: dict[str, Any], field: str | None
) -> None:
    """Else it would be accepted, and wait for ever."""
    card(upscaling, "gpu1", "there")
    answer = api.post("/v1/batches", json={**HIRES, **fields})
    if field is None:
        assert answer.status_code == 202, answer.text
        return
    told = answer.json()
    assert (answer.status_code, told["field"]) == (422, field)
    assert told["detail"].startswith(f"{field}: no worker's host has ")
    assert "into the ESRGAN folder of gpu" in told["remedy"]


def test_lines_are_judged_as_they_come(api: TestClient, upscaling: Database) -> None:
    lines = [HIRES, {**HIRES, "hires_upscaler": "4x-UltraSharp"}, {**HIRES, "hires_upscaler": "x"}]
    kinds = {"content-type": "application/x-ndjson"}

    def send(count: int) -> Any:
        return api.post(
            "/v1/batches", content="\n".join(map(json.dumps, lines[:count])), headers=kinds
        )

    assert send(2).status_code == 202
    refused = send(3)
    assert (refused.status_code, refused.json()["field"]) == (422, "line 3.hires_upscaler")


def test_why_a_job_waits_for_a_model(api: TestClient, upscaling: Database) -> None:
    body = {**HIRES, "hires_upscaler": "R-ESRGAN 4x+", "wait_for_worker": True}
    batch = api.post("/v1/batches", json=body).json()["id"]
    reason = api.get(f"/v1/jobs/{batch}-0/why").text
    assert "R-ESRGAN 4x+" in reason
