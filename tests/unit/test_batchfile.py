"""Batch files: what people write, and what is told when they write it wrong."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from farm.errors import InvalidInput
from farm.spec import batchfile
from farm.spec.batch import BatchRequest, freeze
from farm.spec.batchfile import read
from farm.spec.imagefile import encoded
from farm.spec.infotext import infotext
from farm.spec.job import JobSpec
from farm.spec.listing import freeze_listed
from farm.spec.output import PNG, Output

EXAMPLES = Path(__file__).parents[2] / "examples"
DEFAULTS = {"demo": {"width": 128, "height": 128}}


def written(folder: Path, name: str, content: str | bytes) -> Path:
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


@pytest.mark.parametrize(
    ("name", "content", "fields"),
    [
        ("a.yaml", "prompt: a lion\nsteps: 5\n", {"prompt": "a lion", "steps": 5}),
        ("a.YML", "axes: {steps: 1-5, sampler: [Euler]}", None),
        ("a.json", '{"prompt": "été", "cfg_scale": 1.5}', {"prompt": "été", "cfg_scale": 1.5}),
        ("a.json", b"\xef\xbb\xbf{}", {}),
        ("a.txt", "a lion\n", {"jobs": [{"prompt": "a lion"}]}),
        ("a.txt", "\r\n# no\r\n  a lion  \r\n", {"jobs": [{"prompt": "a lion"}]}),
        (
            "a.txt",
            'a -- dash\n--prompt "a lion" --steps 10 --sampler_name "Euler a"\n',
            {
                "jobs": [
                    {"prompt": "a -- dash"},
                    {"prompt": "a lion", "steps": 10, "sampler": "Euler a"},
                ]
            },
        ),
        (
            "a.txt",
            "--prompt a red apple --negative_prompt dark, blurry --cfg_scale 2.5 --seed -1"
            " --width 64 --height 72 --sd_model demo",
            {
                "jobs": [
                    {
                        "prompt": "a red apple",
                        "negative_prompt": "dark, blurry",
                        "cfg_scale": 2.5,
                        "seed": -1,
                        "width": 64,
                        "height": 72,
                        "checkpoint": "demo",
                    }
                ]
            },
        ),
    ],
)
def test_what_a_file_says(
    tmp_path: Path, name: str, content: str | bytes, fields: dict[str, Any] | None
) -> None:
    found = read(written(tmp_path, name, content))
    BatchRequest(**found)
    assert fields is None or found == fields


@pytest.mark.parametrize(
    ("name", "content", "reason", "line"),
    [
        ("a.yaml", "", "empty", None),
        ("a.txt", " \n\n", "empty", None),
        ("a.txt", "# only\n# comments\n", "no prompt", None),
        ("a.yaml", "prompt: a\nsteps: [1\n", "not valid YAML", 3),
        ("a.yaml", "prompt: a: b", "not valid YAML", 1),
        ("a.yaml", "name: x\n\tsteps: 2", "not valid YAML", 2),
        ("a.yaml", "- a lion\n", "holds a list", None),
        ("a.yaml", "a lion", "holds a str", None),
        ("a.yaml", "promt: a lion", "'promt' is not a field", None),
        ("a.yaml", "name: 2026-01-01", "name: 2026-01-01 is neither", None),
        ("a.yaml", "cfg_scale: .nan", "cfg_scale: nan is neither", None),
        ("a.yaml", "axes: {1: [2]}", "axes: the name 1 is not text", None),
        ("a.yaml", "!!python/object/apply:os.system ['true']", "not valid YAML", 1),
        ("a.yaml", "[" * 100_000, "not valid YAML", None),
        ("a.json", '{"prompt": "a",\n}', "not valid JSON", 2),
        ("a.json", '{"seed": ' + "1" * 5000 + "}", "a number has more than 4300 digits", None),
        ("a.yaml", "seed: " + "1" * 5000, "a number has more than 4300 digits", None),
        ("a.yaml", "seed: 0x" + "f" * 5000, "seed: a number of too many digits", None),
        ("a.yaml", "axes: {seed: [0x" + "f" * 5000 + "]}", "axes.seed[0]: a number of too", None),
        ("a.json", "[" * 100_000, "not valid JSON", None),
        ("a.json", '{"cfg_scale": NaN}', "cfg_scale: nan is neither", None),
        ("a.txt", "a lion\n--promt x\n", "--promt is not an option", 2),
        ("a.txt", "a lion\n\n--steps ten\n", "--steps 'ten' is not a whole number", 3),
        ("a.txt", "--steps " + "1" * 5000, "is not a whole number", 1),
        ("a.txt", "--steps\n", "--steps '' is not a whole number", 1),
        ("a.txt", "--cfg_scale inf\n", "--cfg_scale 'inf' is not a number", 1),
        ("a.txt", "--prompt it's\n", "No closing quotation", 1),
        ("a.txt", b"a lion\n\xff\xfe\n", "not UTF-8", 2),
        ("a.txt", b"a lion\n\x89PNG\0\0".replace(b"\x89", b""), "not a text file", 2),
        ("a.png", b"\x89PNG", "", None),
        ("a.gif", b"GIF89a", "no batch file's", None),
        ("prompts", "a lion", "no batch file's", None),
    ],
)
def test_what_is_wrong_is_told_with_file_line_and_remedy(
    tmp_path: Path, name: str, content: str | bytes, reason: str, line: int | None
) -> None:
    path = written(tmp_path, name, content)
    with pytest.raises(InvalidInput) as caught:
        read(path)
    error = caught.value
    assert reason in error.message
    assert len(error.message) < 1000
    assert error.message.startswith(f"{path}, line {line}:" if line else f"{path}:")
    assert (error.field, error.value) == ("file", str(path))
    assert error.remedy


@pytest.mark.parametrize("name", ["missing.yaml", "folder.yaml", "a.yaml/b.yaml"])
def test_what_cannot_be_read_is_told(tmp_path: Path, name: str) -> None:
    (tmp_path / "folder.yaml").mkdir()
    written(tmp_path, "a.yaml", "")
    with pytest.raises(InvalidInput, match="cannot be read"):
        read(tmp_path / name)


def test_a_file_too_large_is_refused_without_reading_it_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batchfile, "MAX_BYTES", 100)
    with pytest.raises(InvalidInput, match="larger than 100 bytes"):
        read(written(tmp_path, "a.txt", "x" * 101))
    assert read(written(tmp_path, "a.txt", "x" * 100))


def test_a_billion_laughs_are_refused(tmp_path: Path) -> None:
    lines = ["name: x", "axes:", "  a: &a [l, l, l, l, l, l, l, l, l, l]"]
    for above, here in zip("abcdefgh", "bcdefghi", strict=True):
        lines.append(f"  {here}: &{here} [{', '.join([f'*{above}'] * 10)}]")
    with pytest.raises(InvalidInput, match="too many values"):
        read(written(tmp_path, "a.yaml", "\n".join(lines)))


@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    content=st.binary(max_size=200) | st.text().map(str.encode),
    suffix=st.sampled_from([".yaml", ".json", ".txt"]),
)
def test_any_content_is_read_or_refused(tmp_path: Path, content: bytes, suffix: str) -> None:
    path = written(tmp_path, f"a{suffix}", content)
    with contextlib.suppress(InvalidInput):
        assert set(read(path)) <= set(BatchRequest.model_fields)


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.[yt]*")), ids=lambda path: path.name)
def test_the_examples_are_right(path: Path) -> None:
    request = BatchRequest(**read(path))
    if request.jobs:
        assert freeze_listed(request, DEFAULTS)
    else:
        assert freeze(request, DEFAULTS).total > 1


def test_the_demo_shows_what_a_batch_can_be() -> None:
    spec = freeze(BatchRequest(**read(EXAMPLES / "demo.yaml")), DEFAULTS)
    axes = dict(spec.axes)
    assert spec.total >= 24
    assert spec.count > 1
    assert len(axes["prompt"]) >= 6
    assert len(axes["sampler"]) == 2
    assert len(axes["prompt_sr"]) == 2
    jobs = [spec.job(ord) for ord in range(spec.total)]
    assert len({(job.prompt, job.sampler, job.seed) for job in jobs}) == spec.total


@pytest.mark.parametrize("format", ["png", "webp", "jpeg"])
def test_an_image_says_how_it_is_made_again(tmp_path: Path, format: str) -> None:
    hires = {"hires_scale": 2, "hires_upscaler": "Lanczos", "hires_prompt": "a lion, large"}
    values = {"checkpoint": "demo", "prompt": "a lion", "width": 64, "height": 64, "seed": 3}
    job = JobSpec.model_validate({**values, **hires, "steps": 7})
    picture = Image.new("RGB", (128, 128))
    path = written(
        tmp_path, f"a.{format}", encoded(picture, infotext(job), Output.model_validate(format))
    )
    request = BatchRequest.model_validate(read(path))
    assert freeze(request, DEFAULTS).job(0) == job


@pytest.mark.parametrize("strength", ["0.5", "0.7"])
def test_an_image_that_was_made_from_another_one_cannot_be_made_again(
    tmp_path: Path, strength: str
) -> None:
    said = f"Steps: 7, Sampler: Euler, Seed: 3, Size: 64x64, Denoising strength: {strength}"
    picture = encoded(Image.new("RGB", (64, 64)), f"a lion\n{said}", PNG)
    with pytest.raises(InvalidInput, match="made from another picture") as refused:
        read(written(tmp_path, "a.png", picture))
    assert "farm info" in str(refused.value.remedy)


def test_an_image_without_parameters_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    Image.new("RGB", (8, 8)).save(path)
    with pytest.raises(InvalidInput, match="no generation parameters") as refused:
        read(path)
    assert refused.value.field == "file"


def test_prompt_lines_ask_for_a_second_pass_in_webui_s_words(tmp_path: Path) -> None:
    line = "--prompt a lion --hr_scale 2 --hr_upscaler Latent (nearest) --hr_second_pass_steps 5"
    request = BatchRequest.model_validate(read(written(tmp_path, "a.txt", line)))
    job = freeze_listed(request, DEFAULTS)[0]
    assert job.hires_upscaler == "Latent (nearest)"
    assert (job.passes[1].steps, job.size) == (5, (256, 256))
