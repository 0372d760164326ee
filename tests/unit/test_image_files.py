"""Image files: what made an image goes into its file and comes out again, whoever wrote it."""

from __future__ import annotations

import io
import struct

import numpy as np
import pytest
from PIL import Image

from farm.errors import InvalidInput
from farm.spec.imagefile import ImageFile, encoded, inspected
from farm.spec.output import Output
from farm.spec.sampling import MAX_SIDE

NOISE = Image.fromarray(np.random.default_rng(0).integers(0, 255, (48, 64, 3), np.uint8))
SMOOTH = Image.radial_gradient("L").resize((64, 48)).convert("RGB")
FORMATS = ["png", "webp 90", "webp lossless", "jpeg 90", "avif 80"]
END = "\nSteps: 20, Sampler: Euler a, CFG scale: 7, Seed: 1"
TEXTS = {
    "plain": "a red apple\nNegative prompt: blurry, dark",
    "not ascii": "ein Löwe, 一隻獅子, Āȁ, café",
    "emoji": "a 🦁 with a 👩‍🚀",
    "braces and newlines": 'a {red|green} <lora:ink:0.8> (x:1.2) \\(y\\)\n\n"said", [a:b:0.5]\r\tc',
    "long": "a very long prompt, " * 1000 + "\nNegative prompt: " + "y" * 20_000,
    "long, not ascii": "一" * 20_000,
    "long, emoji": "🦁" * 10_000 + "\nNegative prompt: " + "一" * 20_000,
}


def file(output: str, text: str = "a lion" + END, picture: Image.Image = SMOOTH) -> bytes:
    return encoded(picture, text, Output.model_validate(output))


def kind(output: str) -> str:
    return output.partition(" ")[0]


def read(data: bytes) -> ImageFile:
    return inspected(io.BytesIO(data))


def pixels(data: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"), dtype=int)


@pytest.mark.parametrize("output", FORMATS)
@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)
def test_what_made_an_image_comes_out_of_its_file(output: str, text: str) -> None:
    found = read(file(output, text + END))
    assert found == ImageFile(kind(output), 64, 48, text + END)


@pytest.mark.parametrize("output", FORMATS)
def test_the_same_image_is_the_same_bytes(output: str) -> None:
    assert file(output, picture=NOISE) == file(output, picture=NOISE.copy())


@pytest.mark.parametrize("output", FORMATS)
def test_pixels_are_kept_as_well_as_was_asked_for(output: str) -> None:
    lost = np.abs(pixels(file(output)) - np.asarray(SMOOTH, dtype=int))
    if "lossless" in output or output == "png":
        assert lost.max() == 0
    else:
        assert lost.mean() < 4
        low = file(f"{kind(output)} 5")
        assert len(low) < len(file(output))
        assert np.abs(pixels(low) - np.asarray(SMOOTH, dtype=int)).mean() > lost.mean()


@pytest.mark.parametrize("output", [*FORMATS, "jpeg 100"])
@pytest.mark.parametrize("size", [(MAX_SIDE, 8), (8, MAX_SIDE)])
def test_every_format_takes_the_longest_sides(output: str, size: tuple[int, int]) -> None:
    found = read(file(output, picture=NOISE.resize(size)))
    assert (found.width, found.height) == size


def exif(value: bytes, order: str = ">") -> bytes:
    """EXIF data with one UserComment, laid out by hand."""
    head = struct.pack(f"{order}2sHI", b"MM" if order == ">" else b"II", 42, 8)
    pointer = struct.pack(f"{order}HHHIII", 1, 0x8769, 4, 1, 26, 0)
    field = struct.pack(f"{order}HHHIII", 1, 0x9286, 7, len(value), 44, 0)
    return b"Exif\0\0" + head + pointer + field + value


TOLD = "ein Löwe 一一一" + END
ENGLISH = "a lion" + END


@pytest.mark.parametrize("kind", ["JPEG", "WEBP", "AVIF", "PNG"])
@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize(
    ("value", "text"),
    [
        (b"UNICODE\0" + TOLD.encode("utf-16-be"), TOLD),
        (b"UNICODE\0" + TOLD.encode("utf-16-le"), TOLD),
        (b"UNICODE\0" + TOLD.encode("utf-16"), TOLD),  # with a mark of its order
        (b"UNICODE\0" + TOLD.encode(), TOLD),
        (b"UNICODE\0" + "no parameters".encode("utf-16-le"), "no parameters"),
        (b"UNICODE\0" + "no parameters".encode("utf-16-be"), "no parameters"),
        (b"ASCII\0\0\0" + ENGLISH.encode(), ENGLISH),
        (b"ASCII\0\0\0" + ENGLISH.encode() + b"\0\0", ENGLISH),
        (bytes(8) + TOLD.encode(), TOLD),
        (TOLD.encode(), TOLD),
        (b"ASCII\0\0\0" + b" " * 40, None),
        (b"UNICODE\0", None),
    ],
)
def test_what_other_tools_wrote_is_read(
    kind: str, order: str, value: bytes, text: str | None
) -> None:
    out = io.BytesIO()
    SMOOTH.save(out, kind, exif=exif(value, order))
    assert read(out.getvalue()).infotext == text


@pytest.mark.parametrize("output", FORMATS)
def test_others_find_it_where_they_look(output: str) -> None:
    plain, other = file(output), file(output, TEXTS["emoji"])
    if output == "png":
        assert b"tEXtparameters\0a lion" + END.encode() in plain
        assert b"iTXtparameters\0" in other
    else:
        value = b"UNICODE\0" + TEXTS["emoji"].encode("utf-16-be")
        field = struct.pack(">HHI", 0x9286, 7, len(value))
        assert field in other
        assert value in other


def test_a_text_behind_the_pixels_is_read() -> None:
    whole, plain = file("png"), file("png", "")
    start = whole.index(b"tEXtparameters") - 4
    size = struct.unpack(">I", whole[start : start + 4])[0] + 12
    end = whole.index(b"IEND") - 4
    moved = whole[:start] + whole[start + size : end] + whole[start : start + size] + whole[end:]
    assert moved.index(b"IDAT") < moved.index(b"tEXt")
    assert read(moved).infotext == "a lion" + END
    assert read(plain).infotext is None


def test_an_image_without_parameters_has_none() -> None:
    for kind in ("PNG", "JPEG", "WEBP", "AVIF"):
        out = io.BytesIO()
        SMOOTH.save(out, kind, **({"comment": "made by hand"} if kind == "JPEG" else {}))
        assert read(out.getvalue()) == ImageFile(kind.lower(), 64, 48, None)


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("kind", ["JPEG", "WEBP"])
@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"Exif\0\0" + b"rubbish" * 9, "damaged"),
        (exif(b"UNICODE\0a long text")[:30], "damaged"),
        (exif(b"UNICODE\0a long text")[:45], "damaged"),
        (exif(b"ASCII\0\0\0\xff\xfe\xfd"), "no text: it begins with 41 53 43 49 49"),
        (exif(b"UNICODE\0" + b"\xd8\x01" * 5), "no text"),
    ],
)
def test_broken_exif_is_told(kind: str, data: bytes, says: str) -> None:
    out = io.BytesIO()
    SMOOTH.save(out, kind, exif=data)
    with pytest.raises(InvalidInput, match=says) as caught:
        read(out.getvalue())
    assert caught.value.remedy


@pytest.mark.parametrize(
    "data",
    [b"", b"no image", file("png")[:60], file("webp")[:20], file("jpeg")[:30], file("avif")[:99]],
)
def test_what_is_no_image_is_told(data: bytes) -> None:
    with pytest.raises(InvalidInput, match="no image that can be read") as caught:
        read(data)
    assert "PNG, WebP, JPEG or AVIF" in str(caught.value.remedy)
    assert "<" not in caught.value.message
