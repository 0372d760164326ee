"""The life of a batch over HTTP, on a real database."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest
from starlette.testclient import TestClient

from farm.api.app import create_app
from farm.api.deps import Services
from farm.db import leases, sessions
from farm.db.leases import Claim, Ending, Lease
from farm.dispatch import outlook
from farm.dispatch.cost import FIRST_LOAD
from farm.spec.batch import PRIORITIES
from farm.spec.moves import Move
from farm.spec.output import Output
from tests.records import IMAGE
from tests.standin import ERROR, STATS, StandIn

Json = dict[str, Any]


def submit(api: TestClient, **fields: Any) -> Json:
    answer = api.post("/v1/batches", json={"prompt": "a red apple", **fields})
    assert answer.status_code == 202, answer.text
    return answer.json()


def counts(pending: int = 0, **more: int) -> Json:
    return {"pending": pending, "running": 0, "succeeded": 0, "failed": 0, "cancelled": 0, **more}


def test_a_batch_is_accepted_with_what_was_left_out_filled_in(api: TestClient) -> None:
    answer = api.post("/v1/batches", json={"prompt": "a red apple", "seed": 5, "count": 4})
    batch = answer.json()
    assert answer.status_code == 202
    assert answer.headers["location"] == batch["links"]["self"] == f"/v1/batches/{batch['id']}"
    assert batch["state"] == "pending"
    assert batch["total"] == 4
    assert batch["counts"] == counts(4)
    assert batch["spec"]["template"] == {
        "checkpoint": "demo",
        "prompt": "a red apple",
        "negative_prompt": "",
        "width": 128,
        "height": 128,
        "steps": 20,
        "sampler": "Euler a",
        "cfg_scale": 3.0,
        "seed": 5,
        "strict": False,
    }
    assert datetime.fromisoformat(batch["created_at"]).tzinfo == UTC
    assert batch["ended_at"] is None
    assert batch.pop("notices") == ["This farm has no worker yet: the batch waits for the first."]
    assert api.get(batch["links"]["self"]).json() == batch


def test_a_batch_says_in_which_format_its_images_are(api: TestClient) -> None:
    """What is left out of it is filled in, so that it means the same for ever."""
    assert submit(api)["output"] == {"format": "png", "lossless": True, "quality": None}
    batch = submit(api, output={"format": "webp"})
    assert batch["output"] == {"format": "webp", "lossless": False, "quality": 90}
    assert "output" not in batch["spec"]["template"]
    assert api.get("/v1/batches").json()["batches"][0]["output"] == batch["output"]


def test_the_farm_has_a_format_of_its_own(services: Services) -> None:
    ours = replace(services, output=Output.model_validate("webp lossless"))
    with TestClient(create_app(ours), base_url="http://localhost:7900") as api:
        assert Output(**submit(api)["output"]) == ours.output
        assert submit(api, output="jpeg 70")["output"]["quality"] == 70


def test_a_format_that_cannot_be_is_refused(api: TestClient) -> None:
    for where in ("/v1/batches", "/v1/batches:quote"):
        answer = api.post(where, json={"prompt": "a lion", "output": "jpeg 101"})
        assert answer.status_code == 422
        told = answer.json()
        assert (told["field"], told["remedy"]) == ("output.quality", "Use 100 or less.")
    listed = {"jobs": [{"prompt": "a lion", "output": "webp"}]}
    assert api.post("/v1/batches", json=listed).json()["field"] == "jobs[0].output"


def test_a_quote_knows_how_much_smaller_images_become(api: TestClient) -> None:
    sizes = [
        api.post("/v1/batches:quote", json={"prompt": "p", "output": output}).json()["disk_bytes"]
        for output in ("png", "webp lossless", "jpeg", "webp")
    ]
    assert sizes == sorted(sizes, reverse=True)


def test_axes_multiply_and_jobs_come_in_their_order(api: TestClient) -> None:
    axes = {"sampler": ["Euler", "Euler a"], "steps": "5-10 (+5)"}
    batch = submit(api, axes=axes, count=2, seed=7)
    assert batch["total"] == 8
    jobs = api.get(batch["links"]["jobs"]).json()["jobs"]
    made = [(job["spec"]["sampler"], job["spec"]["steps"], job["spec"]["seed"]) for job in jobs]
    assert made == [
        (sampler, steps, seed)
        for sampler in ("Euler", "Euler a")
        for steps in (5, 10)
        for seed in (7, 8)
    ]


def test_listed_jobs_override_the_fields_they_share(api: TestClient) -> None:
    batch = submit(api, jobs=[{"prompt": "a lion"}, {"steps": 3, "seed": 1}])
    assert batch["spec"] is None
    jobs = api.get(batch["links"]["jobs"]).json()["jobs"]
    assert [job["spec"]["prompt"] for job in jobs] == ["a lion", "a red apple"]
    assert (jobs[1]["spec"]["steps"], jobs[1]["spec"]["seed"]) == (3, 1)


def test_a_million_jobs_are_accepted_at_once(api: TestClient) -> None:
    axes = {"seed": "1-1000", "cfg_scale": "1-10 [100]"}
    batch = submit(api, axes=axes, count=10)
    assert batch["total"] == 1_000_000
    last = api.get(f"/v1/jobs/{batch['id']}-999999").json()
    assert (last["spec"]["cfg_scale"], last["spec"]["seed"]) == (10.0, 1009)


def test_images_and_failures_are_told(api: TestClient, worker: StandIn) -> None:
    batch = submit(api, count=3)
    worker.render(int(batch["id"]), failing=[1])

    after = api.get(batch["links"]["self"]).json()
    assert (after["state"], after["ended"]) == ("done", True)
    assert after["counts"] == counts(succeeded=2, failed=1)

    made, failed, _ = api.get(batch["links"]["jobs"]).json()["jobs"]
    assert made["state"] == "succeeded"
    assert made["worker"] == "cpu0"
    assert made["error"] is None
    assert made["stats"] == STATS
    assert made["image"]["url"] == made["links"]["image"] == f"/v1/images/{batch['id']}-0"
    assert made["image"]["infotext"].startswith("a red apple\nSteps: 20, Sampler: Euler a")
    assert failed["state"] == "failed"
    assert failed["image"] is None
    assert failed["error"] == ERROR

    detail = api.get(failed["links"]["self"]).json()
    assert [attempt["result"] for attempt in detail["attempts"]] == ["failed"]
    assert detail["attempts"][0]["error"] == ERROR


def test_the_summary_says_what_images_took(api: TestClient, worker: StandIn) -> None:
    batch = submit(api, count=3)
    empty = api.get(batch["links"]["summary"]).json()
    assert (empty["images"], empty["images_per_minute"]) == (0, None)
    worker.render(int(batch["id"]), failing=[2])
    summary = api.get(batch["links"]["summary"]).json()
    assert summary["images"] == 2
    assert summary["gpu_seconds"] == 3.0
    assert summary["images_per_minute"] > 0
    for measure in ("denoise_seconds", "queue_seconds", "mean_rows", "vram_reserved"):
        assert summary[measure] == STATS[measure]
    assert summary["workers"] == [{"worker": "cpu0", "images": 2, "gpu_seconds": 3.0}]


def test_cancelling_keeps_what_is_made_and_may_be_repeated(
    api: TestClient, worker: StandIn
) -> None:
    batch = submit(api, count=5)
    worker.finish(worker.claim(int(batch["id"]), 2))
    for _ in range(2):
        answer = api.post(batch["links"]["cancel"])
        assert answer.status_code == 200
        assert answer.json()["state"] == "cancelled"
        assert answer.json()["counts"] == counts(succeeded=2, cancelled=3)


def test_jobs_can_be_asked_for_by_state(api: TestClient, worker: StandIn) -> None:
    batch = submit(api, count=6)
    held = worker.claim(int(batch["id"]), 4)
    worker.finish(held[:3], failing=[1])

    def ords(state: str) -> list[int]:
        found = api.get(batch["links"]["jobs"], params={"state": state}).json()["jobs"]
        assert {job["state"] for job in found} <= {state}
        return [job["ord"] for job in found]

    assert ords("succeeded") == [0, 2]
    assert ords("failed") == [1]
    assert ords("running") == [3]
    assert ords("pending") == [4, 5]
    assert ords("cancelled") == []


@pytest.mark.parametrize("limit", [1, 2, 3, 7, 500])
def test_pages_hold_every_job_and_batch_once(api: TestClient, limit: int) -> None:
    last = [submit(api, count=7) for _ in range(3)][-1]

    def walk(address: str, key: str) -> list[str]:
        found, query = [], {"limit": limit}
        while True:
            page = api.get(address, params=query).json()
            assert len(page[key]) <= limit
            found += [entry["id"] for entry in page[key]]
            if page["next_cursor"] is None:
                return found
            query["cursor"] = page["next_cursor"]

    assert walk("/v1/batches", "batches") == ["3", "2", "1"]
    assert walk(last["links"]["jobs"], "jobs") == [f"3-{ord}" for ord in range(7)]


def test_a_cursor_of_another_listing_is_refused(api: TestClient) -> None:
    one, other = submit(api, count=3), submit(api, count=3)
    cursor = api.get(one["links"]["jobs"], params={"limit": 1}).json()["next_cursor"]
    for address, query in (
        (other["links"]["jobs"], {}),
        (one["links"]["jobs"], {"state": "failed"}),
        ("/v1/batches", {}),
    ):
        answer = api.get(address, params={"cursor": cursor, **query})
        assert answer.status_code == 422
        assert answer.json()["field"] == "cursor"


def test_a_repeated_request_makes_one_batch(api: TestClient) -> None:
    headers = {"Idempotency-Key": "k1"}
    request = {"prompt": "a lion", "seed": -1, "count": 2}
    first = api.post("/v1/batches", json=request, headers=headers)
    reordered = dict(reversed(request.items()))
    again = api.post("/v1/batches", json=reordered, headers=headers)
    assert (first.status_code, again.status_code) == (202, 200)
    assert again.json() == first.json()
    assert again.headers["location"] == first.headers["location"]
    assert len(api.get("/v1/batches").json()["batches"]) == 1


def test_a_repeated_request_is_the_same_whatever_a_later_version_makes_of_it(
    api: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    request, headers = {"prompt": "a lion", "priority": "normal"}, {"Idempotency-Key": "k1"}
    first = api.post("/v1/batches", json=request, headers=headers)
    monkeypatch.setitem(PRIORITIES, "normal", 60)
    again = api.post("/v1/batches", json=request, headers=headers)
    assert (again.status_code, again.json()["id"]) == (200, first.json()["id"])


def test_another_request_under_the_same_key_is_a_conflict(api: TestClient) -> None:
    headers = {"Idempotency-Key": "k1"}
    api.post("/v1/batches", json={"prompt": "a lion"}, headers=headers)
    answer = api.post("/v1/batches", json={"prompt": "a tiger"}, headers=headers)
    assert answer.status_code == 409
    assert answer.json()["field"] == "Idempotency-Key"
    assert answer.json()["value"] == "k1"
    assert len(api.get("/v1/batches").json()["batches"]) == 1


def test_workers_and_checkpoints_are_listed(api: TestClient, worker: StandIn) -> None:
    (found,) = api.get("/v1/workers").json()["workers"]
    assert (found["name"], found["session"], found["state"]) == ("cpu0", worker.session, "live")
    demo = {a["name"]: a for a in api.get("/v1/assets").json()["assets"]}
    assert demo["demo"]["defaults"]["width"] == 128
    assert demo["broken"]["error"] == "It is truncated."
    assert "path" not in demo["demo"]


def test_health_and_readiness(api: TestClient) -> None:
    assert api.get("/healthz").json()["status"] == "ok"
    answer = api.get("/readyz")
    assert answer.status_code == 200
    assert answer.json()["parts"] == {"database": "ok", "schema": "ok", "broker": "ok"}


def test_the_openapi_document_names_every_route(api: TestClient) -> None:
    paths = api.get("/openapi.json").json()["paths"]
    assert {
        "/v1/batches",
        "/v1/batches/{batch}",
        "/v1/batches/{batch}:cancel",
        "/v1/batches/{batch}/events",
        "/v1/jobs/{job}",
        "/v1/images/{job}",
        "/readyz",
    } <= set(paths)
    assert api.get("/docs").status_code == 200


def test_a_batch_is_paused_resumed_and_made_more_important(api: TestClient) -> None:
    made = api.post("/v1/batches", json={"prompt": "a lion"}).json()
    paused = api.post(made["links"]["pause"]).json()
    assert (paused["state"], paused["ended"]) == ("paused", False)
    assert api.post(made["links"]["pause"]).json()["state"] == "paused"
    [pending] = api.get(made["links"]["jobs"], params={"state": "pending"}).json()["jobs"]
    assert pending["state"] == "pending"
    assert api.post(made["links"]["resume"]).json()["state"] == "pending"
    changed = api.patch(made["links"]["self"], json={"priority": "interactive"})
    assert changed.json()["priority"] == 90
    cancelled = api.post(made["links"]["cancel"]).json()
    assert cancelled["state"] == "cancelled"
    assert api.post(made["links"]["resume"]).json()["state"] == "cancelled"


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"priority": 101}, "priority"),
        ({"priority": "soon"}, "priority"),
        ({}, "priority"),
        ({"priority": 1, "name": "x"}, "name"),
    ],
)
def test_only_a_sound_priority_can_be_set(
    api: TestClient, body: dict[str, object], field: str
) -> None:
    made = api.post("/v1/batches", json={"prompt": "a lion"}).json()
    answer = api.patch(made["links"]["self"], json=body)
    assert (answer.status_code, answer.json()["field"]) == (422, field)
    assert api.get(made["links"]["self"]).json()["priority"] == 50


def test_a_batch_that_goes_while_one_asks_why_is_not_found(
    api: TestClient, services: Services, monkeypatch: pytest.MonkeyPatch
) -> None:
    batch = api.post("/v1/batches", json={"prompt": "a lion"}).json()["id"]
    look = services.outlook.now

    def look_and_lose() -> outlook.Picture:
        services.db.all("DELETE FROM batches RETURNING id")
        return look()

    monkeypatch.setattr(services.outlook, "now", look_and_lose)
    assert api.get(f"/v1/jobs/{batch}-0/why").status_code == 404


def test_why_a_job_is_where_it_is(api: TestClient, services: Services, worker: StandIn) -> None:
    def why(job: str) -> str:
        return str(api.get(f"/v1/jobs/{job}/why").json()["reason"])

    first = api.post("/v1/batches", json={"prompt": "a lion", "count": 9}).json()["id"]
    second = api.post("/v1/batches", json={"prompt": "a frog", "count": 3}).json()["id"]
    assert why(f"{first}-0") == "A place is free; it is about to be placed."
    assert "1 job of its own batch go before it" in why(f"{first}-1")
    assert "9 jobs of local's other batches and 2 jobs of its own" in why(f"{second}-2")
    api.post(f"/v1/batches/{second}:pause")
    assert why(f"{second}-0") == f"Batch {second} is paused."
    leases.claim(services.db, [Claim(int(first), worker.session, count=8)])
    assert why(f"{first}-7").startswith("It is with cpu0")
    assert "All places of cpu0 are taken" in why(f"{first}-8")
    sessions.close(services.db, worker.session)
    assert why(f"{first}-8") == "No worker is alive."
    missing = api.get(f"/v1/jobs/{first}-9/why")
    assert (missing.status_code, missing.json()["field"]) == (404, "job")


@pytest.fixture
def attentive(monkeypatch: pytest.MonkeyPatch) -> None:
    """The API looks at the farm anew whenever it is asked."""
    monkeypatch.setattr(outlook, "FRESH", 0.0)
    monkeypatch.setattr(outlook, "LEARN", 0.0)


@pytest.mark.usefixtures("attentive")
def test_a_quote_counts_and_stores_nothing(
    api: TestClient, services: Services, worker: StandIn
) -> None:
    body = {"prompt": "a lion", "axes": {"steps": [10, 20]}, "count": 50}
    first = api.post("/v1/batches:quote", json=body).json()
    assert (first["jobs"], first["checkpoints"], first["loads"]) == (100, {"demo": 100}, 1)
    assert (first["workers"], first["measured"]) == (1, False)
    took = first["gpu_seconds"] + FIRST_LOAD
    assert first["seconds_alone"] == pytest.approx(took)
    assert first["eta"]["p50_seconds"] == pytest.approx(took)
    assert first["eta"]["p90_seconds"] > took
    assert first["eta"]["p50"] < first["eta"]["p90"]
    assert first["sheet"] == [200 + 128 * 2, 80 + 128 * 50]
    assert first["disk_bytes"] > 100 * 128 * 128
    assert api.get("/v1/batches").json()["batches"] == []

    made = api.post("/v1/batches", json={"prompt": "a frog", "seed": 1}).json()["id"]
    lease = Lease(int(made), 0, 1, worker.session)
    leases.claim(services.db, [Claim(int(made), worker.session, count=1)])
    leases.start(services.db, lease)
    stats = {"checkpoint": "demo", "units": 2.0, "gpu_seconds": 6.0}
    ending = Ending(int(made), 0, 1, Move.SUCCEED, image=IMAGE, stats=stats)
    leases.end(services.db, worker.session, "cpu0", [ending])
    second = api.post("/v1/batches:quote", json=body).json()
    assert second["measured"]
    # 3 GPU-seconds a unit; a job of n steps at 128x128 with guidance has n / 8 units.
    assert second["gpu_seconds"] == pytest.approx(3 * 50 * (10 + 20) / 8, rel=0.05)

    wrong = api.post("/v1/batches:quote", json={**body, "width": 100})
    assert (wrong.status_code, wrong.json()["field"]) == (422, "width")
