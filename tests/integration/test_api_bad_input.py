"""Whatever is sent, the answer says what is wrong; it is never a fault, and nothing is written."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from starlette.testclient import TestClient

from farm.spec.axes import AXIS_FIELDS
from farm.spec.batch import BatchRequest
from tests.standin import StandIn

BAD = [
    ({"checkpoint": "nowhere"}, "checkpoint"),
    ({"checkpoint": "broken"}, "checkpoint"),
    ({"checkpoint": "../../etc/passwd"}, "checkpoint"),
    ({"width": 100}, "width"),
    ({"width": 0}, "width"),
    ({"height": -8}, "height"),
    ({"width": 10**9}, "width"),
    *(({name: 10**400 + 1}, name) for name in ("width", "hires_width", "seed", "priority", "eta")),
    ({"width": 4096, "height": 4104}, "height"),
    ({"steps": 0}, "steps"),
    ({"steps": 10_000}, "steps"),
    ({"steps": "many"}, "steps"),
    ({"steps": 2.5}, "steps"),
    ({"steps": None, "count": None}, "count"),
    ({"sampler": "Magic"}, "sampler"),
    ({"cfg_scale": -1}, "cfg_scale"),
    ({"seed": -2}, "seed"),
    ({"seed": 2**63}, "seed"),
    ({"count": 0}, "count"),
    ({"count": 10**9}, "count"),
    ({"priority": "urgent"}, "priority"),
    ({"prompt": 5}, "prompt"),
    ({"prompt": "x" * 10_000_000}, "prompt"),
    ({"prompt": "a\0b"}, "prompt"),
    ({"name": "a\0b"}, "name"),
    ({"negativ_prompt": "x"}, "negativ_prompt"),
    ({"axes": []}, "axes"),
    ({"axes": {"colour": [1]}}, "axes.colour"),
    ({"axes": {"steps": []}}, "axes.steps"),
    ({"axes": {"steps": [5, 0]}}, "axes.steps[1]"),
    ({"axes": {"steps": "5-1 (+1)"}}, "axes.steps"),
    ({"axes": {"steps": "5, banana"}}, "axes.steps"),
    ({"axes": {"steps": [[5]]}}, "axes.steps[0]"),
    ({"axes": {"checkpoint": ["demo", "nowhere"]}}, "axes.checkpoint[1]"),
    ({"axes": {"checkpoint": [["demo"]]}}, "axes.checkpoint[0]"),
    ({"axes": {"prompt_sr": ["cat", "dog"]}}, "axes.prompt_sr[0]"),
    ({"axes": {"prompt_sr": [1]}}, "axes.prompt_sr[0]"),
    ({"axes": {"seed": [2**63 - 1]}, "count": 2}, "axes.seed[0]"),
    ({"axes": {"seed": "1-10000", "steps": "1-100", "cfg_scale": "1-20"}}, "axes"),
    ({"axes": {"steps": "1-99999999999999999999"}}, "axes.steps"),
    ({"axes": {"steps": "1-" + "9" * 400}}, "axes.steps"),
    ({"axes": {"cfg_scale": "1-" + "9" * 400}}, "axes.cfg_scale"),
    ({"axes": {"cfg_scale": "nan"}}, "axes.cfg_scale[0]"),
    ({"axes": {"seed": ["5"]}}, "axes.seed[0]"),
    ({"axes": {"prompt": "x" * 200_000}}, "axes.prompt"),
    ({"jobs": []}, "jobs"),
    ({"jobs": [{"steps": 0}]}, "jobs[0].steps"),
    ({"jobs": [{}, {"stepz": 1}]}, "jobs[1].stepz"),
    ({"jobs": [{}], "count": 2}, "jobs"),
    ({"jobs": [{}], "axes": {"steps": [1]}}, "jobs"),
    ({"jobs": [5]}, "jobs.0"),
]


@pytest.mark.parametrize(("fields", "field"), BAD)
def test_the_wrong_field_is_named_with_a_remedy(
    api: TestClient, fields: dict[str, Any], field: str
) -> None:
    answer = api.post("/v1/batches", json={"prompt": "a red apple", **fields})
    problem = answer.json()
    assert answer.status_code == 422, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    assert problem["field"] == field
    assert field in problem["detail"]
    assert len(answer.content) < 2000
    assert api.get("/v1/batches").json()["batches"] == []


def test_a_number_of_too_many_digits_is_named_as_such(api: TestClient) -> None:
    headers = {"content-type": "application/json"}
    for method, address in (("POST", "/v1/batches"), ("PATCH", "/v1/batches/1")):
        body = b'{"priority": ' + b"9" * 5000 + b"}"
        answer = api.request(method, address, content=body, headers=headers)
        assert (answer.status_code, answer.json()["field"]) == (422, "body")
        assert "a number has more than 4300 digits" in answer.json()["detail"]


def test_a_body_over_the_limit_is_refused_however_it_comes(api: TestClient) -> None:
    body = b'{"prompt": "' + b"x" * (32 * 1024 * 1024) + b'"}'

    def chunks() -> Iterator[bytes]:
        yield from (body[start : start + 2**20] for start in range(0, len(body), 2**20))

    headers = {"content-type": "application/json"}
    for content in (body, chunks()):
        answer = api.post("/v1/batches", content=content, headers=headers)
        assert answer.status_code == 413
        assert answer.headers["content-type"] == "application/problem+json"


@pytest.mark.parametrize("id", ["abc", "12-", "0", "-1", "1.5", str(10**30), "9" * 17, "%00", "é"])
@pytest.mark.parametrize("tail", ["", "/jobs", "/summary", "/events", ":cancel"])
def test_an_unknown_batch_is_not_found(api: TestClient, id: str, tail: str) -> None:
    method = "POST" if tail == ":cancel" else "GET"
    answer = api.request(method, f"/v1/batches/{id}{tail}")
    assert answer.status_code == 404
    assert answer.json()["title"] == "Not found"


@pytest.mark.parametrize("id", ["12-", "-", "1-1", f"1-{10**30}", f"{10**30}-1", "1-1-1", "x"])
def test_an_unknown_job_is_not_found(api: TestClient, id: str) -> None:
    answer = api.get(f"/v1/jobs/{id}")
    assert answer.status_code == 404
    assert answer.json()["field"] == "job"


@pytest.mark.parametrize(
    ("address", "field"),
    [
        ("/v1/batches?limit=0", "limit"),
        ("/v1/batches?limit=501", "limit"),
        ("/v1/batches?limit=x", "limit"),
        ("/v1/batches?cursor=!!", "cursor"),
        ("/v1/batches?cursor=", "cursor"),
        ("/v1/batches/1/jobs?state=lost", "state"),
        ("/v1/batches/1/jobs?cursor=%ff", "cursor"),
    ],
)
def test_a_wrong_query_is_named(api: TestClient, address: str, field: str) -> None:
    api.post("/v1/batches", json={"prompt": "a red apple"})
    answer = api.get(address)
    assert answer.status_code == 422
    assert answer.json()["field"] == field


@pytest.mark.parametrize("key", ["", "x" * 201])
def test_an_unusable_idempotency_key_is_refused(api: TestClient, key: str) -> None:
    answer = api.post("/v1/batches", json={}, headers={"Idempotency-Key": key})
    assert answer.status_code == 422


SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-(10**30), 10**30)
    | st.sampled_from([10**400, 2**63, 0, 1, 64, 512, -1])
    | st.floats()
    | st.text()
    | st.sampled_from(["1-5", "1-10 [4]", "1-9e9", "Euler", "demo", "\ud800", "a\0b", '"', "1,,2"])
)
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=8
)
AXES = st.dictionaries(
    st.sampled_from(sorted(AXIS_FIELDS)) | st.text(), SCALARS | st.lists(SCALARS) | VALUES
)
JOBS = st.lists(st.dictionaries(st.sampled_from(sorted(BatchRequest.model_fields)), VALUES))
# Mostly sane, so that what is wrong is not always found at the same first check.
BODIES = VALUES | st.fixed_dictionaries(
    {},
    optional={
        "axes": AXES,
        "jobs": JOBS,
        "count": st.integers(1, 3),
        "checkpoint": st.just("demo") | st.text(),
        "prompt": st.text(),
        "steps": SCALARS,
        "width": SCALARS,
        "seed": st.just(-1) | SCALARS,
        "cfg_scale": st.just(3) | SCALARS,
        "sampler": st.just("Euler") | SCALARS,
        "name": st.text(),
        "priority": st.just("normal") | SCALARS,
        "other": VALUES,
    },
)


# The database lives through all examples: a batch more or less changes nothing here.
@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(body=BODIES)
def test_no_body_is_a_fault(api: TestClient, body: Any) -> None:
    answer = api.post(
        "/v1/batches", content=json.dumps(body), headers={"content-type": "application/json"}
    )
    assert answer.status_code in (202, 400, 413, 422), answer.text
    if answer.status_code != 202:
        assert answer.headers["content-type"] == "application/problem+json"
        problem = json.loads(answer.text, parse_constant=pytest.fail)
        assert problem["detail"]


@pytest.mark.parametrize("method", ["get", "post", "patch"])
def test_no_address_is_a_fault(api: TestClient, worker: StandIn, method: str) -> None:
    """What no row can be called is nothing that there is, or is named as wrong."""
    for path, operations in api.get("/openapi.json").json()["paths"].items():
        for operation in [operations[method]] if method in operations else []:
            asked = [one for one in operation.get("parameters", []) if one["in"] == "query"]
            for odd in ("%00", "%ED%A0%80", "%0A", "%F0%9F%8D%8E", ".."):
                address = re.sub("{.*?}", odd, path)
                query = "&".join(f"{one['name']}={odd}" for one in asked)
                answer = api.request(method, f"{address}?{query}", json={})
                assert answer.status_code < 500, f"{method} {address}?{query}: {answer.text}"


@pytest.mark.parametrize(
    ("address", "body"),
    [
        ("workers/cpu0:quarantine", {"reason": "{}"}),
        ("workers/cpu0:calibrate", {"checkpoint": "{}"}),
        ("workers/cpu0:tag", {"add": ["{}"]}),
        ("assets/checkpoint/demo:warm", {"worker": "{}"}),
    ],
)
@pytest.mark.parametrize("odd", ["\0", "\ud800"])
def test_what_postgres_cannot_store_is_named(
    api: TestClient, worker: StandIn, address: str, body: dict[str, Any], odd: str
) -> None:
    content = json.dumps(body).replace("{}", json.dumps(odd)[1:-1])
    answer = api.post(
        f"/v1/{address}", content=content, headers={"content-type": "application/json"}
    )
    assert answer.status_code in (404, 422), answer.text
    assert answer.json()["field"]


@pytest.mark.parametrize("origin", ["http://[", "null", "http://elsewhere"])
def test_whatever_page_asks_is_told_that_it_may_not(api: TestClient, origin: str) -> None:
    answer = api.post("/v1/batches", json={"prompt": "a red apple"}, headers={"origin": origin})
    assert (answer.status_code, answer.json()["field"]) == (403, "Origin")
