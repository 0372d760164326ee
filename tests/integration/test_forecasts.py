"""When batches end, as the API says it; what forecasts turn out to have been worth."""

from __future__ import annotations

from datetime import datetime
from typing import Any

import pytest
from starlette.testclient import TestClient
from typer.testing import CliRunner

from farm.api.deps import Services
from farm.cli.main import app
from farm.db import assets, backlog, batches, forecasts, sessions
from farm.db.assets import Asset
from farm.db.database import Database
from farm.db.forecasts import Forecast
from farm.db.sessions import NewSession
from farm.dispatch import outlook
from farm.dispatch.cost import FIRST_LOAD, FIRST_RATE
from farm.dispatch.forecaster import Forecaster
from tests.standin import DEFAULTS, StandIn

JOB = FIRST_RATE * 2.5
"""GPU-seconds of 20 steps at 128x128 with guidance, as long as nothing was measured."""
TOLD = {
    "memory": 3 * 2**30,
    "share": 1.0,
    "bytes_a_weight": 2,
    "families": {"sdxl": {"weights": 2**30, "peaks": [[4096, 2**20], [2**20, 4 * 2**30]]}},
}


@pytest.fixture(autouse=True)
def _attentive(monkeypatch: pytest.MonkeyPatch) -> None:
    """The farm is looked at anew whenever somebody asks."""
    monkeypatch.setattr(outlook, "FRESH", 0.0)
    monkeypatch.setattr(outlook, "LEARN", 0.0)


def submit(api: TestClient, count: int, **fields: Any) -> str:
    body = {"prompt": "a lion", "steps": 20, "count": count, **fields}
    answer = api.post("/v1/batches", json=body)
    assert answer.status_code == 202, answer.text
    return str(answer.json()["id"])


def eta(api: TestClient, batch: str) -> Any:
    return api.get(f"/v1/batches/{batch}").json()["eta"]


def likely(api: TestClient, batch: str) -> float:
    return float(eta(api, batch)["p50_seconds"])


def test_a_batch_says_when_it_ends_while_it_goes_on(api: TestClient, services: Services) -> None:
    batch = submit(api, 100)
    assert eta(api, batch) is None, "nobody works"
    worker = StandIn(services.db, services.images)
    assert likely(api, batch) == pytest.approx(100 * JOB + FIRST_LOAD)
    found = eta(api, batch)
    assert found["p90_seconds"] > found["p50_seconds"]
    assert datetime.fromisoformat(found["p50"]) < datetime.fromisoformat(found["p90"])
    [listed] = api.get("/v1/batches").json()["batches"]
    assert listed["eta"]["p50_seconds"] == pytest.approx(found["p50_seconds"])

    held = worker.claim(int(batch), 50)
    assert likely(api, batch) == pytest.approx(75 * JOB + FIRST_LOAD), "half of those are done"
    worker.finish(held)
    sessions.beat(services.db, worker.session, lease=60, resident=["demo"], stats={})
    assert likely(api, batch) == pytest.approx(50 * JOB), "and the checkpoint is there now"

    api.post(f"/v1/batches/{batch}:pause")
    assert eta(api, batch) is None
    api.post(f"/v1/batches/{batch}:resume")
    worker.render(int(batch))
    assert eta(api, batch) is None


@pytest.mark.usefixtures("worker")
def test_a_users_batches_end_one_after_the_other_and_classes_are_strict(api: TestClient) -> None:
    first, second = submit(api, 10), submit(api, 10)
    urgent = submit(api, 10, priority="interactive")
    ends = {id: likely(api, id) for id in (first, second, urgent)}
    assert ends[urgent] < ends[first] < ends[second]


@pytest.mark.usefixtures("worker")
def test_a_quote_foresees_what_the_batch_then_says(api: TestClient) -> None:
    submit(api, 10)
    body = {"prompt": "a lion", "steps": 20, "count": 30}
    quoted = api.post("/v1/batches:quote", json=body).json()
    assert likely(api, submit(api, 30)) == pytest.approx(quoted["eta"]["p50_seconds"])


def test_listed_jobs_are_foreseen_too(api: TestClient, worker: StandIn) -> None:
    del worker
    jobs = [{"steps": steps} for steps in (10, 20, 30)]
    batch = api.post("/v1/batches", json={"prompt": "a lion", "jobs": jobs}).json()["id"]
    assert likely(api, batch) == pytest.approx(3 * JOB + FIRST_LOAD)


@pytest.mark.usefixtures("worker")
def test_a_batch_that_cannot_be_read_leaves_the_others_their_eta(
    api: TestClient, services: Services
) -> None:
    broken, good = submit(api, 2), submit(api, 2)
    with services.db.connection() as connection:
        connection.execute(
            """UPDATE batches SET spec = jsonb_set(spec, '{template,steps}', '"few"')
               WHERE id = %s""",
            (int(broken),),
        )
    assert [batch["eta"] is None for batch in api.get("/v1/batches").json()["batches"]] == [
        False,
        True,
    ]
    assert likely(api, good) > 0


def timed(services: Services, gpu_seconds: float) -> None:
    """All attempts so far took so long, for 20 steps with guidance."""
    with services.db.connection() as connection:
        connection.execute(
            "UPDATE attempts SET checkpoint = 'demo', units = 2.5, gpu_seconds = %s", (gpu_seconds,)
        )


def test_when_a_batch_ends_is_a_guess_until_a_job_was_timed(
    api: TestClient, services: Services, worker: StandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outlook, "LEARN", 3600.0)
    batch = submit(api, 11)
    assert eta(api, batch)["measured"] is False
    worker.finish(worker.claim(int(batch), 1))
    timed(services, 6.0)
    found = eta(api, batch)
    assert (found["measured"], found["p50_seconds"]) == (True, pytest.approx(60 + FIRST_LOAD))


def test_a_quote_is_no_guess_any_more_once_a_job_was_timed(
    api: TestClient, services: Services, worker: StandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Though costs were learnt a moment ago; what was measured before is not read again."""
    monkeypatch.setattr(outlook, "LEARN", 3600.0)
    body = {"prompt": "a lion", "steps": 20}
    assert not api.post("/v1/batches:quote", json=body).json()["measured"]
    batch = int(submit(api, 1))
    for gpu_seconds, quoted in ((6.0, 6.0), (60.0, 6.0)):
        worker.finish(worker.claim(batch, 1))
        timed(services, gpu_seconds)
        told = api.post("/v1/batches:quote", json=body).json()
        assert (told["measured"], told["gpu_seconds"]) == (True, pytest.approx(quoted))


def test_a_quote_knows_what_an_upscaler_took(
    api: TestClient, services: Services, worker: StandIn
) -> None:
    body = {"prompt": "a lion", "steps": 20, "hires_scale": 2, "hires_upscaler": "4x"}
    small = api.post("/v1/batches:quote", json={**body, "hires_upscaler": "None"}).json()
    guess = api.post("/v1/batches:quote", json=body).json()
    assert guess["gpu_seconds"] > small["gpu_seconds"]
    timed = int(submit(api, 1, **{**body, "hires_upscaler": "None"}))
    worker.finish(worker.claim(timed, 1))
    for told, known in (("{}", False), ('{"upscaler":"4x","upscaled":0.125}', True)):
        with services.db.connection() as connection:
            connection.execute(
                """UPDATE attempts SET checkpoint = 'demo', units = 12.5, gpu_seconds = 9,
                   stats = %s::jsonb || '{"upscale_seconds": 6}'""",
                (told,),
            )
        quoted = api.post("/v1/batches:quote", json=body).json()
        assert quoted["measured"] == known
    assert quoted["gpu_seconds"] == pytest.approx(3 + 6 / 2)
    (spent,) = backlog.spent(services.db, seconds=60)
    assert (spent.upscaler, spent.upscaled, spent.upscale_seconds) == ("4x", 0.125, 6.0)


def test_a_quote_says_what_fits_no_worker_and_what_would(
    api: TestClient, services: Services
) -> None:
    axes = {"width": [256, 1024], "steps": [1, 2, 3]}
    body = {"prompt": "a lion", "axes": axes, "height": 1024}

    def shapes() -> dict[int, Any]:
        told = api.post("/v1/batches:quote", json=body).json()
        return {shape["width"]: shape for shape in told["shapes"]} | {0: told["unfit"]}

    assert shapes()[1024]["fits"] is None, "nobody is there to say"
    new = NewSession("s", "gpu0", "here", 1, {}, "x", 8, fits=TOLD)
    sessions.open(services.db, new, lease=60)
    found = shapes()
    assert found[256]["fits"]
    assert (found[256]["jobs"], found[256]["remedy"]) == (3, None)
    assert 2**29 < found[256]["vram_bytes"] < 2 * 2**30
    assert not found[1024]["fits"]
    assert found[1024]["vram_bytes"] > 4 * 2**30
    assert found[1024]["remedy"] == "The nearest size that fits is 880x880."
    assert found[0] == 3

    sessions.open(services.db, NewSession("older", "gpu1", "here", 1, {}, "x", 8), lease=60)
    assert shapes()[1024]["fits"] is None, "one does not say"


def test_no_worker_with_the_checkpoint_is_said(api: TestClient, services: Services) -> None:
    with services.db.connection() as connection:
        connection.execute(
            """INSERT INTO asset_files (host, path, kind, name, bytes, defaults, metadata)
               VALUES ('there', '/l', 'lora', 'other', 1, '{}', '{}')"""
        )
    sessions.open(services.db, NewSession("s", "gpu0", "there", 1, {}, "x", 8), lease=60)
    told = api.post("/v1/batches:quote", json={"prompt": "a lion"}).json()
    assert (told["workers"], told["eta"], told["unfit"]) == (0, None, 1)
    assert "Give a live worker demo" in told["shapes"][0]["remedy"]


def test_only_workers_with_its_tags_count(api: TestClient, services: Services) -> None:
    body = {"prompt": "a lion", "steps": 20, "tags": ["fast"]}
    plain = NewSession("plain", "gpu0", "here", 1, {}, "x", 8)
    sessions.open(services.db, plain, lease=60)
    tagged = api.post("/v1/batches", json={**body, "wait_for_worker": True}).json()["id"]
    assert eta(api, tagged) is None
    told = api.post("/v1/batches:quote", json=body).json()
    assert (told["workers"], told["eta"], told["unfit"]) == (0, None, 1)

    fast = NewSession("fast", "gpu1", "here", 1, {}, "x", 8, tags=["fast", "new"])
    sessions.open(services.db, fast, lease=60)
    assert likely(api, tagged) > 0
    assert api.post("/v1/batches:quote", json=body).json()["workers"] == 1


def forecast_rows(db: Database) -> dict[tuple[str, str], float | None]:
    rows = db.all("SELECT batch_id, moment, taken FROM forecasts")
    return {(str(row["batch_id"]), row["moment"]): row["taken"] for row in rows}


def test_the_leader_forecasts_each_batch_twice_and_notes_what_came(
    api: TestClient, services: Services, worker: StandIn
) -> None:
    db = services.db
    forecaster = Forecaster(db)
    batch = submit(api, 10)
    for _ in range(2):
        forecaster.note()
        assert forecast_rows(db) == {(batch, "accepted"): None}
    worker.finish(worker.claim(int(batch), 6))
    forecaster.note()
    assert forecast_rows(db) == {(batch, "accepted"): None, (batch, "half"): None}
    worker.render(int(batch))
    with db.connection() as connection:
        connection.execute(
            """UPDATE batches SET state = 'done',
                      ended_at = (SELECT max(made_at) FROM forecasts) + interval '9 s'"""
        )
    forecaster.note()
    taken = forecast_rows(db)
    assert taken[batch, "half"] == pytest.approx(9)
    assert taken[batch, "accepted"] >= 9  # type: ignore[operator]
    Forecaster(db).note()
    assert forecast_rows(db) == taken, "a new leader judges nothing twice"


@pytest.mark.usefixtures("worker")
def test_what_people_hold_up_or_give_up_proves_nothing(api: TestClient, services: Services) -> None:
    forecaster = Forecaster(services.db)
    kept, paused, moved, cancelled = (submit(api, 10) for _ in range(4))
    forecaster.note()
    api.post(f"/v1/batches/{paused}:pause")
    api.patch(f"/v1/batches/{moved}", json={"priority": 10})
    batches.cancel(services.db, int(cancelled))
    with services.db.connection() as connection:
        connection.execute("UPDATE batches SET ended_at = now() WHERE state = 'cancelled'")
    forecaster.note()
    assert forecast_rows(services.db) == {(kept, "accepted"): None}


def test_errors_are_told_and_heeded(
    api: TestClient, services: Services, served: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    db = services.db
    StandIn(db, services.images)
    ids = [submit(api, 1) for _ in range(10)]
    made = [Forecast(int(id), "accepted", 20.0, 20.0, 30.0) for id in ids]
    forecasts.make(db, made)
    with db.connection() as connection:  # nine took half as long again, one far longer
        connection.execute(
            """UPDATE batches SET state = 'done', ended_at = now() + make_interval(
                      secs => CASE WHEN id = %s THEN 100 ELSE 30 END)""",
            (int(ids[0]),),
        )
        connection.execute("UPDATE forecasts SET made_at = now()")
    forecasts.judge(db)
    first, second = api.get("/v1/usage/forecasts").json()["forecasts"]
    assert (first["moment"], first["batches"]) == ("accepted", 10)
    assert first["error"] == first["miss"] == pytest.approx(0.5, abs=0.01)
    assert (second["batches"], second["error"], second["within_p90"]) == (0, None, None)

    body = {"prompt": "a lion", "steps": 20, "count": 40}
    quoted = api.post("/v1/batches:quote", json=body).json()
    assert quoted["eta"]["p50_seconds"] > 1.2 * quoted["seconds_alone"]

    monkeypatch.setenv("FARM_URL", served)
    shown = CliRunner().invoke(app, ["usage", "--forecasts"]).stdout
    assert shown.splitlines()[1].split()[:4] == ["accepted", "10", "+50%", "50%"]


def has(services: Services, host: str, *names: str, upscaler: str | None = None) -> None:
    """A host with a worker has these checkpoints, and a model that enlarges pictures."""
    kinds = dict.fromkeys(names, assets.CHECKPOINT)
    kinds |= {upscaler: assets.UPSCALER} if upscaler else {}
    files = [
        Asset(name, "sdxl", 2**20, f"/models/{name}", DEFAULTS, None, kind=kind)
        for name, kind in kinds.items()
    ]
    assets.register(services.db, host, files)
    sessions.open(services.db, NewSession(host, host, host, 1, {}, "x", 8), lease=60)


def test_a_batch_of_checkpoints_that_lie_on_different_hosts_ends(
    api: TestClient, services: Services
) -> None:
    has(services, "here", "one")
    has(services, "there", "two")
    body = {"prompt": "a lion", "axes": {"checkpoint": ["one", "two"]}}
    told = api.post("/v1/batches:quote", json=body).json()
    assert told["workers"] == 2
    assert told["eta"]
    assert told["refusal"] is None
    batch = api.post("/v1/batches", json=body).json()["id"]
    assert likely(api, batch) > 0


def test_a_batch_whose_upscaler_no_worker_has_does_not_end(
    api: TestClient, services: Services
) -> None:
    has(services, "here", "one")
    body = {
        "prompt": "a lion",
        "checkpoint": "one",
        "hires_scale": 2,
        "hires_upscaler": "4x",
        "wait_for_worker": True,
    }
    assert api.post("/v1/batches:quote", json=body).json()["eta"] is None
    batch = api.post("/v1/batches", json=body).json()["id"]
    assert eta(api, batch) is None
    has(services, "there", upscaler="4x")
    assert eta(api, batch) is None, "no host has both"
    assert api.post("/v1/batches:quote", json=body).json()["workers"] == 0


def test_upscalers_on_an_axis_may_lie_on_different_hosts(
    api: TestClient, services: Services
) -> None:
    has(services, "here", "one", upscaler="4x")
    has(services, "there", "one", upscaler="8x")
    axes = {"hires_upscaler": ["4x", "8x"]}
    body = {"prompt": "p", "checkpoint": "one", "hires_scale": 2, "axes": axes}
    told = api.post("/v1/batches:quote", json=body).json()
    assert (told["refusal"], told["workers"]) == (None, 2)
    assert told["eta"]
    assert api.post("/v1/batches", json=body).status_code == 202
