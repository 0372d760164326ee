"""The Python client against a real API."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import PIL.Image
import pytest

from farm.cli.sheet import draw
from farm.client import Batch, Farm, Image
from farm.errors import InvalidInput, NotFound, SetupError, Unavailable
from farm.spec.output import Output
from tests.standin import StandIn


@pytest.fixture
def farm(served: str) -> Iterator[Farm]:
    with Farm(served) as farm:
        yield farm


@pytest.fixture
def batch(farm: Farm) -> Batch:
    return farm.submit(prompt="a lion", count=12, seed=100)


def test_a_batch_from_submission_to_images(farm: Farm, batch: Batch, worker: StandIn) -> None:
    assert (batch.state, batch.total, batch.ended) == ("pending", 12, False)
    worker.render(int(batch.id), failing=[3])
    assert batch.refresh().counts["succeeded"] == 11
    images = list(batch.images())
    assert [image.ord for image in images] == [ord for ord in range(12) if ord != 3]
    assert images[0].seed == 100
    assert images[0].read().startswith(b"\x89PNG")
    assert images[0].infotext.startswith("a lion")
    assert [job.id for job in batch.jobs("failed")] == [f"{batch.id}-3"]
    assert farm.job(f"{batch.id}-3").data["attempts"][0]["result"] == "failed"
    assert farm.job(f"{batch.id}-3").image is None
    assert batch.summary()["images"] == 11


def test_images_are_waited_for_in_order(batch: Batch, worker: StandIn) -> None:
    held = worker.claim(int(batch.id), 12)
    got: list[Image] = []
    reader = threading.Thread(target=lambda: got.extend(batch.images()))
    worker.finish([held[0], held[5]])
    reader.start()
    worker.finish(held[1:5], failing=[2])
    worker.finish(held[6:])
    reader.join(timeout=60)
    assert [image.ord for image in got] == [ord for ord in range(12) if ord != 2]


def test_images_of_a_cancelled_batch_end(batch: Batch, worker: StandIn) -> None:
    worker.finish(worker.claim(int(batch.id), 2))
    batch.cancel()
    assert [image.ord for image in batch.images()] == [0, 1]


def test_waiting_tells_each_change(batch: Batch, worker: StandIn) -> None:
    made: list[int] = []

    def changed(batch: Batch) -> None:
        made.append(batch.counts["succeeded"])
        worker.finish(worker.claim(int(batch.id), 6))

    assert batch.wait(changed).state == "done"
    assert made[0] == 0
    assert made == sorted(set(made))


def test_more_than_a_page_is_walked(farm: Farm, worker: StandIn) -> None:
    batch = farm.submit(prompt="a lion", count=450, steps=1)
    assert [job.ord for job in batch.jobs()] == list(range(450))
    for _ in range(60):
        farm.submit(prompt="a lion")
    assert len({each.id for each in farm.batches()}) == 61


def test_a_download_is_resumed(batch: Batch, worker: StandIn, tmp_path: Path) -> None:
    folder = tmp_path / "new" / "folder"
    held = worker.claim(int(batch.id), 12)
    worker.finish(held[:6])
    first = batch.download(folder)
    assert [path.name for path in first] == [f"{ord:02d}-{100 + ord}.png" for ord in range(6)]

    first[0].write_bytes(b"half a pictu")
    first[1].unlink()
    kept = first[2].stat().st_mtime_ns
    worker.finish(held[6:])
    fetched: list[str] = []
    paths = batch.download(folder, lambda path, new: fetched.append(path.name) if new else None)

    assert len(paths) == 12
    names = [path.name for path in paths]
    assert fetched == names[:2] + names[6:]
    assert first[2].stat().st_mtime_ns == kept
    stored = {job.id: job.data["image"]["sha256"] for job in batch.jobs()}
    assert {hashlib.sha256(p.read_bytes()).hexdigest() for p in paths} == set(stored.values())
    assert sorted(folder.iterdir()) == sorted(paths), "something half written is left"


@pytest.mark.parametrize(
    ("output", "suffix"),
    [("webp", ".webp"), ({"format": "jpeg", "quality": 70}, ".jpg"), ("avif", ".avif")],
)
def test_files_are_called_as_their_format(
    farm: Farm, worker: StandIn, tmp_path: Path, output: Any, suffix: str
) -> None:
    batch = farm.submit(prompt="a lion", count=3, seed=7, output=output)
    worker.render(int(batch.id), failing=[1])
    paths = batch.download(tmp_path)
    assert [path.name for path in paths] == [f"0-7{suffix}", f"2-9{suffix}"]
    assert [image.mime for image in batch.images()] == [Output.model_validate(output).mime] * 2
    sheet = draw(batch, tmp_path, tmp_path / "sheet.png")
    with PIL.Image.open(sheet) as drawn:
        assert drawn.format == "PNG"
        assert len(drawn.getcolors(10**6) or ()) > 3, "two pictures, and a cell that says why"
    stored = list(worker.store.paths())
    assert sorted(stored) == sorted(
        f"batches/000001/00000{ord}-1{end}" for ord in (0, 2) for end in (suffix, ".thumb.webp")
    )


def test_a_damaged_picture_is_not_kept(batch: Batch, worker: StandIn, tmp_path: Path) -> None:
    worker.finish(worker.claim(int(batch.id), 1))
    (path,) = [path for path in worker.store.paths() if path.endswith(".png")]
    worker.store.put(path, b"not what was made")
    with pytest.raises(Unavailable, match="damaged"):
        batch.download(tmp_path)
    assert list(tmp_path.glob("*.png")) == []


def test_a_folder_that_cannot_be_written_is_told(
    batch: Batch, worker: StandIn, tmp_path: Path
) -> None:
    worker.finish(worker.claim(int(batch.id), 1))
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(SetupError) as caught:
        batch.download(tmp_path / "file")
    assert caught.value.field == "folder"


def test_errors_are_those_of_the_api(farm: Farm) -> None:
    with pytest.raises(InvalidInput) as wrong:
        farm.submit(prompt="a lion", width=100)
    assert (wrong.value.field, wrong.value.value) == ("width", 100)
    with pytest.raises(NotFound):
        farm.batch(99)
    with pytest.raises(NotFound):
        farm.job("99-0")


def test_the_same_key_gives_the_same_batch(farm: Farm) -> None:
    one = farm.submit({"prompt": "a lion"}, idempotency_key="k")
    other = farm.submit({"prompt": "a lion"}, idempotency_key="k")
    assert one.id == other.id


def test_a_farm_tells_of_itself(farm: Farm, worker: StandIn) -> None:
    assert [each["name"] for each in farm.workers()] == ["cpu0"]
    assert [each["name"] for each in farm.assets()] == ["broken", "demo"]
