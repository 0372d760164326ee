"""Pictures over HTTP: whole, small, and not twice."""

from __future__ import annotations

import hashlib
from io import BytesIO
from typing import Any

import pytest
from PIL import Image
from starlette.testclient import TestClient

from farm.api.deps import Services
from farm.spec.imagefile import inspected
from tests.standin import StandIn


@pytest.fixture
def url(api: TestClient, worker: StandIn) -> str:
    """The address of one picture, 128 pixels wide, with a thumbnail of 64."""
    batch = api.post("/v1/batches", json={"prompt": "a lion", "count": 2}).json()
    worker.render(int(batch["id"]), failing=[1])
    return f"/v1/images/{batch['id']}-0"


def opened(data: bytes) -> Image.Image:
    return Image.open(BytesIO(data))


def test_a_picture_comes_as_it_is_stored(api: TestClient, url: str) -> None:
    answer = api.get(url)
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "image/png"
    assert answer.headers["etag"] == f'"{hashlib.sha256(answer.content).hexdigest()}"'
    assert answer.headers["content-disposition"] == 'inline; filename="1-0.png"'
    assert "immutable" in answer.headers["cache-control"]
    assert opened(answer.content).size == (128, 128)


@pytest.mark.parametrize(
    ("output", "kind", "suffix"),
    [
        ({"format": "png"}, "png", "png"),
        ("webp 80", "webp", "webp"),
        ({"format": "webp", "lossless": True}, "webp", "webp"),
        ("jpeg", "jpeg", "jpg"),
        ("avif", "avif", "avif"),
    ],
)
def test_a_picture_comes_in_the_format_of_its_batch(
    api: TestClient, worker: StandIn, output: Any, kind: str, suffix: str
) -> None:
    batch = api.post("/v1/batches", json={"prompt": "ein Löwe", "output": output}).json()
    worker.render(int(batch["id"]))
    job = api.get("/v1/jobs/1-0").json()
    answer = api.get("/v1/images/1-0")
    assert answer.headers["content-type"] == job["image"]["mime"] == f"image/{kind}"
    assert answer.headers["content-disposition"] == f'inline; filename="1-0.{suffix}"'
    assert hashlib.sha256(answer.content).hexdigest() == job["image"]["sha256"]
    found = inspected(BytesIO(answer.content))
    assert (found.format, found.infotext) == (kind, job["image"]["infotext"])
    for width in (16, 100):  # its thumbnail, and one that is made to measure
        small = api.get("/v1/images/1-0", params={"w": width})
        assert small.headers["content-type"] == "image/webp"
        assert opened(small.content).format == "WEBP"


def test_a_client_that_has_it_is_not_sent_it_again(api: TestClient, url: str) -> None:
    for address in (url, f"{url}?w=64"):
        tag = api.get(address).headers["etag"]
        again = api.get(address, headers={"If-None-Match": tag})
        assert (again.status_code, again.content) == (304, b"")
        assert api.get(address, headers={"If-None-Match": '"other"'}).status_code == 200


@pytest.mark.parametrize(
    ("w", "kind", "width"),
    [(16, "WEBP", 64), (64, "WEBP", 64), (65, "WEBP", 65), (128, "PNG", 128), (4096, "PNG", 128)],
)
def test_a_smaller_one_is_the_thumbnail_or_made_to_measure(
    api: TestClient, url: str, w: int, kind: str, width: int
) -> None:
    image = opened(api.get(url, params={"w": w}).content)
    assert (image.format, image.width) == (kind, width)


@pytest.mark.parametrize("w", ["0", "15", "4097", "x", "1e9"])
def test_an_absurd_width_is_refused(api: TestClient, url: str, w: str) -> None:
    answer = api.get(url, params={"w": w})
    assert answer.status_code == 422
    assert answer.json()["field"] == "w"


@pytest.mark.parametrize("job", ["1-1", "1-2", "9-0", "abc", "1", "1-", "..%2f..%2fetc%2fpasswd"])
def test_a_job_without_a_picture_is_not_found(api: TestClient, url: str, job: str) -> None:
    assert api.get(f"/v1/images/{job}").status_code == 404


def test_a_lost_file_is_told_and_is_no_fault(api: TestClient, url: str, services: Services) -> None:
    for path in list(services.images.paths()):
        services.images.delete(path)
    answer = api.get(url)
    assert answer.status_code == 404
    assert "no stored file" in answer.json()["detail"]
