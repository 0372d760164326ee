"""Jobs that have failed: why, and trying them again, over HTTP and on the command line."""

from __future__ import annotations

from typing import Any

import pytest
from starlette.testclient import TestClient
from typer.testing import CliRunner, Result

from farm.api.deps import Services
from farm.cli.main import app
from farm.db import backlog, batches, leases, queries
from farm.db.leases import Claim, Ending
from farm.spec.moves import Move
from tests.standin import ERROR, StandIn

Json = dict[str, Any]


def made(api: TestClient, worker: StandIn, count: int, failing: tuple[int, ...]) -> str:
    """A batch that has ended with these jobs failed."""
    batch = api.post("/v1/batches", json={"prompt": "a lion", "count": count}).json()["id"]
    worker.render(int(batch), failing=failing)
    backlog.finish(worker.db)
    return str(batch)


def retried(worker: StandIn, batch: str, ord: int) -> None:
    """A worker makes the image of a job that waits to be tried again."""
    held = leases.claim(worker.db, [Claim(int(batch), worker.session, ords=[ord])])
    for lease in held:
        leases.start(worker.db, lease)
    worker.finish(held)


def test_failed_jobs_of_a_batch_are_tried_again(api: TestClient, worker: StandIn) -> None:
    batch = made(api, worker, 4, failing=(1, 2))
    assert api.get(f"/v1/batches/{batch}").json()["state"] == "done"

    answer = api.post(f"/v1/batches/{batch}:retry").json()
    assert (answer["retried"], answer["state"], answer["ended"]) == (2, "running", False)
    assert (answer["counts"]["failed"], answer["counts"]["pending"]) == (0, 2)
    assert answer["ended_at"] is None
    again = api.post(f"/v1/batches/{batch}:retry").json()
    assert (again["retried"], again["counts"]) == (0, answer["counts"])

    for ord in (1, 2):
        retried(worker, batch, ord)
    assert backlog.finish(worker.db) == [int(batch)]
    ended = api.get(f"/v1/batches/{batch}").json()
    assert (ended["state"], ended["counts"]["succeeded"]) == ("done", 4)
    attempts = api.get(f"/v1/jobs/{batch}-1").json()["attempts"]
    assert [attempt["result"] for attempt in attempts] == ["failed", "succeeded"]


def test_one_failed_job_is_tried_again(api: TestClient, worker: StandIn) -> None:
    batch = made(api, worker, 3, failing=(0, 1))
    for _ in range(2):
        answer = api.post(f"/v1/jobs/{batch}-1:retry")
        assert (answer.status_code, answer.json()["state"]) == (200, "waiting")
    assert api.get(f"/v1/batches/{batch}").json()["counts"]["failed"] == 1
    # A budget of its own: it failed for good, and now may fail softly again.
    assert worker.db.one("SELECT failures, crashes FROM requeue") == {"failures": 0, "crashes": 0}


def test_a_paused_batch_stays_paused(api: TestClient, worker: StandIn) -> None:
    batch = api.post("/v1/batches", json={"prompt": "a lion", "count": 3}).json()["id"]
    worker.finish(worker.claim(int(batch), 1), failing=(0,))
    batches.pause(worker.db, int(batch))
    assert api.post(f"/v1/batches/{batch}:retry").json()["state"] == "paused"
    assert leases.claim(worker.db, [Claim(int(batch), worker.session, ords=[0])]) == []


def test_a_job_repeated_while_its_batch_is_being_closed_is_not_lost(
    api: TestClient, worker: StandIn
) -> None:
    batch = api.post("/v1/batches", json={"prompt": "a lion"}).json()["id"]
    worker.render(int(batch), failing=(0,))
    with worker.db.connection() as owner:
        owner.execute(queries.REPEAT, {"batch_id": int(batch), "ord": None})
        # Nor does its closing wait: it could be a million jobs that are repeated.
        assert backlog.finish(worker.db) == []
    assert backlog.finish(worker.db) == []
    found = api.get(f"/v1/batches/{batch}").json()
    assert (found["ended_at"], found["counts"]["pending"]) == (None, 1)


@pytest.mark.parametrize(
    ("job", "status", "told"),
    [
        ("1-0", 409, "succeeded"),
        ("1-9", 404, "no job 1-9"),
        ("7-0", 404, "no job 7-0"),
        ("x", 404, "no job x"),
    ],
)
def test_what_has_not_failed_is_not_tried_again(
    api: TestClient, worker: StandIn, job: str, status: int, told: str
) -> None:
    made(api, worker, 2, failing=(1,))
    answer = api.post(f"/v1/jobs/{job}:retry")
    assert (answer.status_code, answer.json()["field"]) == (status, "job")
    assert told in answer.json()["detail"]
    assert api.get("/v1/batches/1").json()["counts"]["failed"] == 1


def test_a_cancelled_batch_stays_cancelled(api: TestClient, worker: StandIn) -> None:
    batch = api.post("/v1/batches", json={"prompt": "a lion", "count": 5}).json()["id"]
    worker.finish(worker.claim(int(batch), 1), failing=(0,))
    cancelled = api.post(f"/v1/batches/{batch}:cancel").json()
    for address in (f"/v1/batches/{batch}:retry", f"/v1/jobs/{batch}-0:retry"):
        answer = api.post(address)
        assert (answer.status_code, answer.json()["title"]) == (409, "Conflict")
    assert api.get(f"/v1/batches/{batch}").json()["counts"] == cancelled["counts"]
    assert api.post(f"/v1/batches/{batch}:cancel").json()["counts"] == cancelled["counts"]


def test_failures_are_listed_by_batch_and_cause(
    api: TestClient, services: Services, worker: StandIn
) -> None:
    first = made(api, worker, 3, failing=(0, 2))
    made(api, worker, 2, failing=())
    last = made(api, worker, 2, failing=(0,))
    other = {"class": "input", "detail": "No such LoRA.", "remedy": None}
    api.post(f"/v1/batches/{first}:retry")
    for ord, error in ((0, ERROR), (2, other)):
        held = leases.claim(services.db, [Claim(int(first), worker.session, ords=[ord])])
        leases.start(services.db, held[0])
        ending = Ending(int(first), ord, 2, Move.FAIL, error=error)
        leases.end(services.db, worker.session, "gpu7", [ending])

    page = api.get("/v1/failures", params={"limit": 1}).json()
    assert [batch["batch"] for batch in page["batches"]] == [last]
    page = api.get("/v1/failures", params={"cursor": page["next_cursor"]}).json()
    (found,) = page["batches"]
    assert (found["batch"], found["failed"], page["next_cursor"]) == (first, 2, None)
    assert [(c["detail"], c["first"], c["workers"]) for c in found["causes"]] == [
        (ERROR["detail"], f"{first}-0", ["gpu7"]),
        ("No such LoRA.", f"{first}-2", ["gpu7"]),
    ]


def farm(*words: str, code: int = 0) -> Result:
    result = CliRunner().invoke(app, list(words))
    assert result.exit_code == code, result.output
    return result


def test_the_command_line(
    served: str, api: TestClient, worker: StandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FARM_URL", served)
    assert "No job has failed" in farm("failed").stdout
    batch = made(api, worker, 4, failing=(1, 3))
    shown = farm("failed").stdout
    assert f"batch {batch} of local: 2 failed" in shown
    assert f"2 x numeric on cpu0, first {batch}-1: {ERROR['detail']}" in shown
    assert f"{batch}-3 on cpu0: {ERROR['detail']}" in farm("failed", batch).stdout
    assert f"job {batch}-1: waiting" in farm("retry", f"{batch}-1").stdout
    assert f"batch {batch}: jobs tried again: 1" in farm("retry", "--failed", batch).stdout
    assert "succeeded" in farm("retry", f"{batch}-0", code=1).output
    assert f"--failed {batch}" in farm("retry", batch, code=2).output
    assert "is a job" in farm("retry", "--failed", f"{batch}-1", code=2).output
