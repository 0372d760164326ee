"""The main job from end to end, as people run it: a batch goes in, images and numbers come out."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from farm.client import Batch
from farm.db import leases
from farm.errors import InvalidInput
from farm.spec.imagefile import inspected
from farm.worker.models.catalogue import builtin_folder
from tests.conftest import eventually
from tests.wholefarm import WholeFarm

STAGES = ("queue", "load", "encode", "denoise", "decode", "store")


@pytest.fixture(scope="module")
def farm(short_folder: Path) -> Iterator[WholeFarm]:
    home = short_folder / "whole"
    models = home / "models"
    models.mkdir(parents=True)
    (models / "cut.safetensors").write_bytes((10_000).to_bytes(8, "little") + b"{}")
    (models / "old.ckpt").write_bytes(b"\x80\x04cposix\nsystem\n")
    whole = WholeFarm(home)
    whole.start()
    yield whole
    assert whole.stop() == 0
    eventually(lambda: not whole.everything(), within=20)


def pixels(data: bytes) -> NDArray[np.float64]:
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"), dtype=float)


def finished(batch: Batch) -> Batch:
    eventually(lambda: batch.refresh().ended, within=180, every=0.2)
    return batch


def test_submit_watch_and_download_on_the_command_line(farm: WholeFarm, tmp_path: Path) -> None:
    done = farm.run(
        "submit", "a red apple on a blue background", "-n", "2", "--seed", "1",
        "--watch", "-o", str(tmp_path), "--json",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["counts"]["succeeded"] == 2
    files = sorted(tmp_path.glob("*.png"))
    assert len(files) == 2
    for file in files:
        picture = pixels(file.read_bytes())
        assert picture.shape == (128, 128, 3)
        red, green, blue = picture[48:96, 40:88].mean(axis=(0, 1))
        assert red > 1.5 * max(green, blue), "the apple is red"
        corners = picture[[0, 0, -1, -1], [0, -1, 0, -1]].mean(axis=0)
        assert corners.argmax() == 2, "the background is blue"


def test_an_image_carries_what_made_it_and_its_job_what_it_took(farm: WholeFarm) -> None:
    batch = finished(
        farm.client.submit(prompt="a lion", negative_prompt="blurry, dark", steps=6, seed=11)
    )
    [job] = batch.jobs()
    stats = job.data["stats"]
    for stage in STAGES:
        assert stats[f"{stage}_seconds"] >= 0
    assert stats["denoise_seconds"] > 0
    assert stats["gpu_seconds"] > 0
    assert stats["iterations_per_second"] > 0
    assert stats["mean_rows"] >= 2
    assert 0 < stats["vram_active"] <= stats["system_total"]

    assert job.image
    text = Image.open(io.BytesIO(job.image.read())).text["parameters"]  # type: ignore[attr-defined]
    lines = text.splitlines()
    assert lines[:2] == ["a lion", "Negative prompt: blurry, dark"]
    assert lines[2].startswith("Steps: 6, Sampler: Euler a, CFG scale: 3, Seed: 11, Size: 128x128")
    assert f"Farm job: {job.id}" in lines[2]
    assert job.image.infotext == text

    shown = farm.run("show", batch.id)
    assert shown.returncode == 0
    assert "denoise" in shown.stdout
    assert "A: " in shown.stdout
    assert "Sys: " in shown.stdout


def test_a_second_pass_is_watched_stored_told_and_made_again(
    farm: WholeFarm, tmp_path: Path
) -> None:
    hires = {"hires_scale": 1.5, "hires_steps": 2, "hires_upscaler": "Lanczos", "strict": True}
    axes = {"Denoising": "0.3, 0.6"}
    batch = farm.client.submit(prompt="a lion", seed=3, steps=3, axes=axes, **hires)
    told: dict[str, list[int]] = {}
    for name, data in batch.events():
        if name == "progress" and "step" in data:
            assert data["steps"] == 5
            told.setdefault(data["job"], []).append(data["step"])
    assert all(steps == sorted(steps) for steps in told.values())
    first, second = finished(batch).jobs()
    # The later one waits for the first pass of the other, or finds it.
    assert sorted(job.data["stats"]["forwards"] for job in (first, second)) == [2, 5]
    assert second.image
    assert (second.image.data["width"], second.image.data["height"]) == (192, 192)
    assert "Denoising strength: 0.6" in second.image.infotext
    assert "Hires upscale: 1.5, Hires steps: 2, Hires upscaler: Lanczos" in second.image.infotext
    path = tmp_path / "lion.png"
    path.write_bytes(second.image.read())
    done = farm.run("submit", str(path), "--strict", "-o", str(tmp_path / "again"))
    assert done.returncode == 0, done.stderr
    (again,) = (tmp_path / "again").glob("*.png")
    assert np.array_equal(pixels(again.read_bytes()), pixels(path.read_bytes()))


def test_axes_make_every_cell_once(farm: WholeFarm) -> None:
    axes = {"sampler": ["Euler", "DPM++ 2M Karras"], "steps": "1-3 (+1)"}
    batch = finished(farm.client.submit(prompt="a frog", seed=3, axes=axes))
    made = {(job.spec["sampler"], job.spec["steps"]) for job in batch.jobs("succeeded")}
    assert len(made) == batch.total == 6


def test_the_format_decides_the_file_and_no_pixel(farm: WholeFarm, tmp_path: Path) -> None:
    kinds = {"png": ".png", "webp lossless": ".webp", "webp 85": ".webp", "jpeg": ".jpg",
             "avif": ".avif"}  # fmt: skip
    asked = {"prompt": "a lion, ein Löwe 🦁", "seed": 4, "steps": 3, "strict": True}
    batches = {kind: farm.client.submit(output=kind, **asked) for kind in kinds}
    made = {}
    for kind, suffix in kinds.items():
        [path] = finished(batches[kind]).download(tmp_path / kind)
        [image] = batches[kind].images()
        answer = httpx.get(f"{farm.url}/v1/images/{image.job}")
        assert answer.headers["content-type"] == image.mime
        assert hashlib.sha256(answer.content).hexdigest() == image.data["sha256"]
        assert (path.name, path.read_bytes()) == (f"0-4{suffix}", answer.content)
        found = inspected(io.BytesIO(answer.content))
        assert (f"image/{found.format}", found.infotext) == (image.mime, image.infotext)
        assert found.infotext.startswith(asked["prompt"])
        made[kind] = pixels(answer.content)
    assert (made["webp lossless"] == made["png"]).all()
    for kind in ("webp 85", "jpeg", "avif"):
        assert 0 < np.abs(made[kind] - made["png"]).mean() < 5, kind


def test_a_strict_image_does_not_depend_on_the_company(farm: WholeFarm) -> None:
    alone = finished(farm.client.submit(prompt="a house", seed=4, steps=5, strict=True))
    crowd = farm.client.submit(prompt="a penguin", steps=9, count=6, seed=9)
    among = finished(farm.client.submit(prompt="a house", seed=4, steps=5, strict=True))
    finished(crowd)
    [one], [other] = alone.images(), among.images()
    assert (pixels(one.read()) == pixels(other.read())).all()


@pytest.mark.parametrize(("name", "reason"), [("cut", "cut short"), ("old.ckpt", "pickle")])
def test_an_unusable_checkpoint_is_listed_with_its_reason_and_refused(
    farm: WholeFarm, name: str, reason: str
) -> None:
    [listed] = [each for each in farm.client.assets() if each["name"] == name]
    assert reason in listed["error"]
    with pytest.raises(InvalidInput) as raised:
        farm.client.submit(prompt="a frog", checkpoint=name)
    assert raised.value.field == "checkpoint"


def test_a_drained_worker_finishes_or_gives_back_and_charges_nobody(farm: WholeFarm) -> None:
    batch = farm.client.submit(prompt="a red apple", count=12, steps=12, seed=1)
    eventually(lambda: batch.refresh().counts["running"] > 0)
    farm.kill("worker", signal.SIGTERM)
    finished(batch)
    assert batch.counts["succeeded"] == 12
    with farm.database() as db:
        results = {
            row["result"]
            for row in db.all(
                "SELECT result FROM attempts WHERE batch_id = %(id)s", {"id": int(batch.id)}
            )
        }
        assert results <= {"succeeded", "release"}
        assert not db.all("SELECT FROM sessions WHERE state = 'dead'")
        assert leases.unstarted(db, older_than=0) == []


def test_a_second_start_on_the_same_folder_says_where_the_first_is(farm: WholeFarm) -> None:
    done = farm.run("up", "--port", str(farm.port))
    assert done.returncode == 0
    assert farm.url in done.stdout


def test_images_name_the_hash_of_their_model_once_it_is_known(farm: WholeFarm) -> None:
    demo = builtin_folder() / "demo.safetensors"
    eventually(lambda: farm.client.asset("checkpoint", "demo")["sha256"])
    sha256 = hashlib.sha256(demo.read_bytes()).hexdigest()
    assert farm.client.asset("checkpoint", "demo")["sha256"] == sha256
    [job] = finished(farm.client.submit(prompt="a key", steps=2)).jobs("succeeded")
    assert f"Model hash: {sha256[:10]}, Model: demo" in job.data["image"]["infotext"]


def test_a_model_that_is_added_is_found_used_warmed_and_let_go(farm: WholeFarm) -> None:
    def holders() -> list[str]:
        held = farm.client.asset("checkpoint", "sub/second")["held_by"]
        return [each["worker"] for each in held]

    demo = str(builtin_folder() / "demo.safetensors")
    added = farm.run("model", "add", demo, "--name", "sub/second")
    assert added.returncode == 0, added.stderr
    eventually(lambda: "sub/second" in [each["name"] for each in farm.client.assets()])
    batch = farm.client.submit(prompt="a key", steps=2, checkpoint="second.safetensors")
    [job] = finished(batch).jobs("succeeded")
    assert job.spec["checkpoint"] == "sub/second"

    eventually(holders)
    farm.client.evict("sub/second")
    eventually(lambda: not holders())
    [told] = farm.client.warm("sub/second")
    eventually(lambda: holders() == [told])

    shutil.rmtree(farm.home / "models" / "Stable-diffusion")
    eventually(lambda: "sub/second" not in [each["name"] for each in farm.client.assets()])


def test_a_worker_tells_what_it_did_when(farm: WholeFarm) -> None:
    finished(farm.client.submit(prompt="a key", steps=2, count=2))
    [worker] = farm.client.workers()
    events = farm.client.worker(worker["name"]).trace()["traceEvents"]
    assert {"encode", "denoise", "decode", "store"} <= {event["name"] for event in events}


def test_who_asks_for_previews_sees_jobs_under_way(farm: WholeFarm) -> None:
    batch = farm.client.submit(prompt="a red apple", steps=80, count=2)
    shown = [data for name, data in batch.events(previews=True) if name == "preview"]
    assert shown
    assert {data["job"].partition("-")[0] for data in shown} == {batch.id}
    kind, _, encoded = shown[-1]["image"].partition(",")
    assert kind == "data:image/webp;base64"
    assert Image.open(io.BytesIO(base64.b64decode(encoded))).size == (16, 16)
    assert batch.refresh().counts["succeeded"] == 2
