"""/v1/prompts:explain needs neither a database nor a worker."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest
from starlette.testclient import TestClient

from farm.api.app import create_app
from farm.api.deps import Services


@pytest.fixture(scope="module")
def api() -> TestClient:
    services = cast(Services, SimpleNamespace(local=True))
    return TestClient(create_app(services), base_url="http://localhost:7900")


def test_a_prompt_is_explained(api: TestClient) -> None:
    asked = {"prompt": "[a:(b):1] AND c :0.5<lora:ink>", "negative_prompt": "d", "steps": 2}
    answer = api.get("/v1/prompts:explain", params=asked)
    assert answer.status_code == 200
    lora = {"name": "ink", "strength": 1.0}

    def said(first: int, last: int, text: str, weighed: str, weight: float) -> dict[str, Any]:
        segments = [[{"text": weighed, "weight": weight}]]
        return {"first": first, "last": last, "text": text, "sections": segments, "chunks": [1]}

    assert answer.json() == {
        "calls": 2,
        "parts": [
            {"weight": 1.0, "says": [said(1, 1, "a", "a", 1.0), said(2, 2, "(b)", "b", 1.1)]},
            {"weight": 0.5, "says": [said(1, 2, "c", "c", 1.0)]},
        ],
        "negative": [said(1, 2, "d", "d", 1.0)],
        "te_loras": [lora],
        "unet_loras": [lora],
        "notes": [],
    }


@pytest.mark.parametrize(
    ("asked", "field"),
    [
        ({"prompt": "<lora:ink:much>"}, "prompt"),
        ({"prompt": "(a:2000)"}, "prompt"),
        ({"prompt": "a :2000 AND b"}, "prompt"),
        ({"sampler": "Magic"}, "sampler"),
        ({"steps": 0}, "steps"),
        ({"steps": 151}, "steps"),
        ({"prompt": "x" * 20_001}, "prompt"),
    ],
    ids=str,
)
def test_what_cannot_be_explained_is_refused(
    api: TestClient, asked: dict[str, Any], field: str
) -> None:
    answer = api.get("/v1/prompts:explain", params=asked)
    assert answer.status_code == 422
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.json()["field"] == field
    assert answer.json()["remedy"]
