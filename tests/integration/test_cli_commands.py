"""The commands around batches, on a real API with a stand-in for its workers."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from typer.testing import CliRunner, Result

from farm.cli.main import app
from farm.client import Batch
from tests.conftest import eventually
from tests.standin import ERROR, StandIn

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture(autouse=True)
def _environment(served: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FARM_URL", served)
    monkeypatch.setenv("FARM_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("COLUMNS", "120")


def farm(*words: str, code: int = 0) -> Result:
    result = CliRunner().invoke(app, list(words))
    assert result.exit_code == code, result.output
    return result


def told(*words: str, code: int = 0) -> Any:
    """The one JSON document that a command prints."""
    return json.loads(farm(*words, "--json", code=code).stdout)


@contextmanager
def rendering(worker: StandIn, batch: int, *, failing: tuple[int, ...] = ()) -> Iterator[None]:
    """A worker that waits for the batch and makes its images."""

    def work() -> None:
        eventually(lambda: worker.db.one("SELECT 1 FROM batches WHERE id = %(id)s", {"id": batch}))
        worker.render(batch, failing=failing)

    thread = threading.Thread(target=work)
    thread.start()
    yield
    thread.join()


def test_a_prompt_becomes_a_batch() -> None:
    output = farm("submit", "a red apple", "-n", "4").stdout
    assert "batch 1: 4 jobs accepted" in output
    assert "farm watch 1" in output


def test_every_option_reaches_the_batch() -> None:
    batch = told(
        *("submit", "a lion", "-n", "2", "-c", "demo", "-N", "dark", "-W", "64", "-H", "72"),
        *("-s", "5", "--sampler", "Euler", "--cfg-scale", "2.5", "--seed", "9", "--strict"),
        *("--priority", "interactive", "--name", "mine", "-x", "steps=10-30(+10)"),
        *("--axis", "sampler=Euler a,DPM++ 2M Karras"),
    )
    assert (batch["name"], batch["priority"], batch["total"]) == ("mine", 90, 12)
    assert batch["spec"] == {
        "template": {
            "checkpoint": "demo",
            "prompt": "a lion",
            "negative_prompt": "dark",
            "width": 64,
            "height": 72,
            "steps": 5,
            "sampler": "Euler",
            "cfg_scale": 2.5,
            "seed": 9,
            "strict": True,
        },
        "axes": [
            {"field": "steps", "values": [10, 20, 30]},
            {"field": "sampler", "values": ["Euler a", "DPM++ 2M Karras"]},
        ],
        "count": 2,
    }


@pytest.mark.parametrize(("name", "total"), [("demo.yaml", 48), ("sweep.yaml", 16)])
def test_a_batch_file_is_submitted_and_options_override_it(name: str, total: int) -> None:
    batch = told("submit", str(EXAMPLES / name), "--name", "other")
    assert (batch["total"], batch["name"]) == (total, "other")


def test_the_format_is_an_option_a_field_and_is_read_again(worker: StandIn, tmp_path: Path) -> None:
    file = tmp_path / "lions.yaml"
    file.write_text("prompt: ein Löwe\nseed: 4\ncount: 2\noutput: webp lossless\n")
    assert told("submit", str(file))["output"]["lossless"]
    words = ("--format", "jpg", "--quality", "80", "-o", str(tmp_path / "made"))
    with rendering(worker, 2):
        batch = told("submit", str(file), *words)
    assert batch["output"] == {"format": "jpeg", "lossless": False, "quality": 80}
    made = [tmp_path / "made" / f"{ord}-{seed}.jpg" for ord, seed in ((0, 4), (1, 5))]
    [first, second] = told("info", *map(str, made))["images"]
    assert (first["format"], first["width"], first["height"]) == ("jpeg", 128, 128)
    assert first["infotext"] == told("show", "2-0")["image"]["infotext"]
    assert "Seed: 5" in second["infotext"]
    again = told("submit", str(made[1]), "--format", "png")
    asked = again["spec"]["template"]
    assert (asked["prompt"], asked["seed"], again["output"]["format"]) == ("ein Löwe", 5, "png")
    shown = farm("info", str(made[0])).stdout
    assert f"{made[0]}: jpeg, 128x128\nein Löwe\nSteps: 20" in shown
    assert "output: jpeg 80" in farm("show", "2").stdout
    assert "image: 128x128 jpeg" in farm("show", "2-0").stdout


def test_an_image_without_parameters_is_told(tmp_path: Path) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "plain.webp")
    assert "no generation parameters" in farm("info", str(tmp_path / "plain.webp")).stdout
    assert told("info", str(tmp_path / "plain.webp"))["images"][0]["infotext"] is None


def test_prompts_from_a_file_are_listed_jobs() -> None:
    batch = told("submit", str(EXAMPLES / "prompts.txt"), "--steps", "7")
    assert (batch["total"], batch["spec"]) == (4, None)


def test_a_dry_run_counts_and_submits_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FARM_URL", "http://127.0.0.1:1")
    assert told("submit", str(EXAMPLES / "sweep.yaml"), "--dry-run") == {
        "total": 16,
        "axes": {"steps": 4, "cfg_scale": 4},
    }
    assert told("submit", str(EXAMPLES / "prompts.txt"), "--dry-run")["total"] == 4
    axis = "checkpoint=one,two"
    assert told("submit", "a lion", "-x", axis, "-n", "3", "--dry-run")["total"] == 6
    output = farm("submit", "a lion", "-x", axis, "-n", "3", "--dry-run").stdout
    assert "6 jobs = 2 checkpoint x 3 each" in output


@pytest.mark.parametrize(
    "words",
    [
        ["submit"],
        ["submit", "a lion", "--width", "100"],
        ["submit", "a lion", "--width", "wide"],
        ["submit", "a lion", "--width", "100", "--dry-run"],
        ["submit", "a lion", "--steps", "0", "--dry-run"],
        ["submit", "a lion", "--sampler", "Magic"],
        ["submit", "a lion", "-c", "nowhere"],
        ["submit", "a lion", "-x", "steps"],
        ["submit", "a lion", "-x", "colour=red"],
        ["submit", "a lion", "--priority", "urgent"],
        *(["submit", "a lion", f"--{name}", "9" * 5000] for name in ("priority", "seed", "width")),
        ["submit", "a lion", "-x", "seed=" + "9" * 5000],
        ["submit", "a lion", "--format", "gif"],
        ["submit", "a lion", "--format", "jpeg", "--lossless"],
        ["submit", "a lion", "--quality", "80"],
        ["submit", "missing.yaml"],
        ["info", "missing.png"],
        ["info", str(EXAMPLES / "sweep.yaml")],
        ["submit", "a lion", "-n", "0"],
        ["ls", "-n", "0"],
    ],
)
def test_bad_input_ends_with_2_and_says_what_is_wrong(words: list[str]) -> None:
    result = farm(*words, code=2)
    assert result.stderr
    assert "Traceback" not in result.output
    assert told("ls")["batches"] == []


@pytest.mark.parametrize(
    "words",
    [
        ["show", "9"],
        ["show", "9-0"],
        ["show", "x"],
        ["show", ".."],
        ["watch", "9"],
        ["cancel", "9"],
        ["download", "9", "folder"],
    ],
)
def test_what_is_not_there_ends_with_3(words: list[str]) -> None:
    assert "There is no" in farm(*words, code=3).stderr


@pytest.mark.parametrize("words", [["ls"], ["workers"], ["show", "1"], ["submit", "a lion"]])
def test_a_farm_out_of_reach_ends_with_4(words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as unused:
        port = unused.getsockname()[1]
    monkeypatch.setattr("farm.client.transport._PAUSES", ())
    monkeypatch.setenv("FARM_URL", f"http://127.0.0.1:{port}")
    assert "farm up" in farm(*words, code=4).stderr


def test_a_batch_is_watched_and_downloaded(worker: StandIn, tmp_path: Path) -> None:
    folder = tmp_path / "lions"
    with rendering(worker, 1):
        words = ("submit", "a lion", "-n", "3", "--watch", "--download", str(folder))
        output = farm(*words)
    assert "batch 1 done: 3 succeeded" in output.stdout
    assert "3/3" in output.stderr
    assert len(list(folder.glob("*.png"))) == 3


def test_a_terminal_gets_a_bar(worker: StandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    with rendering(worker, 1, failing=(1,)):
        shown = farm("submit", "a lion", "-n", "3", "--watch", code=1).stderr
    assert "\x1b[" in shown
    assert "3/3" in shown
    assert "1 failed" in shown


def test_leaving_a_batch_says_how_to_come_back(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(_: Batch) -> Iterator[Any]:
        raise KeyboardInterrupt

    monkeypatch.setattr(Batch, "events", interrupted)
    shown = farm("submit", "a lion", "--watch", code=130).stderr
    assert "farm watch 1" in shown
    assert told("show", "1")["state"] == "pending"


def test_watching_ends_with_1_if_an_image_is_missing(worker: StandIn) -> None:
    with rendering(worker, 1, failing=(1,)):
        result = farm("submit", "a lion", "-n", "3", "--watch", code=1)
    assert "1-1 failed: The UNet gave NaN. Lower the guidance." in result.stdout
    assert told("watch", "1", code=1)["counts"]["failed"] == 1


def test_batches_are_listed_newest_first(worker: StandIn) -> None:
    assert "No batch yet" in farm("ls").stdout
    for name in ("one", "two", "three [bold]"):
        farm("submit", "a lion", "--name", name)
    worker.render(2)
    lines = farm("ls", "-n", "2").stdout.splitlines()
    assert lines[0].split()[:7] == ["id", "name", "state", "images", "failed", "user", "age"]
    assert lines[1].split()[:5] == ["3", "three", "[bold]", "pending", "0/1"]
    assert lines[2].split()[:4] == ["2", "two", "done", "1/1"]
    assert len(lines) == 3
    assert [batch["id"] for batch in told("ls")["batches"]] == ["3", "2", "1"]


def test_a_batch_is_shown_with_what_it_took(worker: StandIn) -> None:
    farm("submit", "a lion", "-n", "3", "-x", "steps=5,6", "--name", "mine")
    worker.render(1, failing=[4])
    output = farm("show", "1").stdout
    assert "batch 1 'mine': done, 5 succeeded, 1 failed" in output
    assert "prompt: a lion" in output
    assert "axis steps: 5, 6" in output
    assert "10.00 it/s, 4.0 rows a forward" in output
    assert "A: 3.00 GB, R: 4.00 GB, Sys: 5.0/24 GB (20.8%)" in output
    assert "1-4 failed: The UNet gave NaN." in output
    rows = [line.split() for line in output.splitlines()]
    assert ["denoise", "2.00", "s", "69%"] in rows
    assert ["cpu0", "5"] in rows
    document = told("show", "1")
    assert (document["id"], document["summary"]["images"]) == ("1", 5)


def test_a_job_is_shown_with_its_attempts(worker: StandIn) -> None:
    farm("submit", "a lion", "-n", "2")
    worker.render(1, failing=[1])
    made, failed = farm("show", "1-0").stdout, farm("show", "1-1").stdout
    assert "job 1-0: succeeded on cpu0, attempt 1" in made
    assert "image: 128x128" in made
    assert f"failed: {ERROR['detail']} {ERROR['remedy']}" in failed
    assert "attempt 1 on cpu0: failed" in failed
    assert told("show", "1-1")["error"] == ERROR


def test_fields_are_shown_where_they_matter(worker: StandIn) -> None:
    farm("submit", "a lion", "--seed", "0", "-x", "eta=0,0.5")
    worker.render(1)
    shown = [farm("show", job).stdout for job in ("1", "1-0", "1-1")]
    assert all("  seed: 0\n" in each and "  steps: " in each for each in shown)
    assert not any("rng" in each or "None" in each for each in shown)
    assert ["  eta: 0.0\n" in each for each in shown] == [False, True, False]


def test_batches_are_cancelled_all_or_none(worker: StandIn) -> None:
    for _ in range(2):
        farm("submit", "a lion", "-n", "3")
    farm("cancel", "1", "9", code=3)
    assert told("show", "1")["state"] == "pending"
    worker.finish(worker.claim(2, 1))
    output = farm("cancel", "1", "2").stdout
    assert "batch 1: 3 cancelled" in output
    assert "batch 2: 1 succeeded, 2 cancelled" in output
    assert [batch["state"] for batch in told("cancel", "1")["batches"]] == ["cancelled"]


def test_a_download_is_resumed_and_drawn_on_a_sheet(worker: StandIn, tmp_path: Path) -> None:
    folder = tmp_path / "pictures"
    farm("submit", "a lion", "-n", "2", "-x", "sampler=Euler,Euler a", "-x", "steps=5,6,7")
    worker.finish(worker.claim(1, 4))
    assert "4 images" in farm("download", "1", str(folder)).stdout
    worker.render(1, failing=[7])
    document = told("download", "1", str(folder), "--sheet")
    assert (document["images"], document["fetched"]) == (11, 7)
    with Image.open(document["sheet"]) as sheet:
        # Two rows of samplers, three steps of two seeds across, labels above and beside.
        assert sheet.size == (200 + 6 * 128, 80 + 2 * 128)


def test_workers_and_checkpoints_are_listed(worker: StandIn) -> None:
    output = farm("workers").stdout
    assert "cpu0" in output
    assert "a processor" in output
    assert "checkpoint demo: sdxl, 22.9 MB" in output
    assert "checkpoint broken: It is truncated." in output
    assert [each["name"] for each in told("workers")["workers"]] == ["cpu0"]


def test_without_workers_it_says_how_to_start_one() -> None:
    assert "farm up" in farm("workers").stdout


def test_a_real_process_speaks_plainly(worker: StandIn, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "farm.cli.main"]
    with rendering(worker, 1, failing=(0,)):
        watched = subprocess.run(
            [*command, "submit", "a lion", "-n", "2", "--watch", "--json"],
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
    assert watched.returncode == 1
    assert json.loads(watched.stdout)["counts"]["succeeded"] == 1
    assert "batch 1: 2/2, 1 succeeded, 1 failed" in watched.stderr
    assert "\x1b" not in watched.stdout + watched.stderr
    missing = subprocess.run([*command, "show", "9"], capture_output=True, text=True, check=False)
    assert (missing.returncode, missing.stdout) == (3, "")
    assert missing.stderr.splitlines()[0] == "There is no batch 9."


def test_batches_are_paused_resumed_and_moved() -> None:
    batch = told("submit", "a red apple")["id"]
    assert f"batch {batch} paused" in farm("pause", batch).stdout
    assert f"batch {batch} pending" in farm("resume", batch).stdout
    assert "priority 10" in farm("prio", batch, "background").stdout
    assert "priority 77" in farm("prio", batch, "77").stdout
    for wrong in ("soon", "101", "9" * 5000):
        assert "priority" in farm("prio", batch, wrong, code=2).output
    assert "There is no batch 99" in farm("pause", batch, "99", code=3).output
    assert told("show", batch)["state"] == "pending"


def test_a_quote_says_what_it_would_take(worker: StandIn) -> None:
    shown = farm("quote", "a lion", "-n", "3").stdout
    assert "3 jobs on demo (3); 1 to load" in shown
    assert "on 1 worker at today's load" in shown
    assert "No batch yet" in farm("ls").stdout
    assert "sheet      256x256 pixels" in shown
    assert told("quote", "a lion", "-n", "3")["jobs"] == 3
