"""The file format of a batch: how it is written, what is refused."""

from __future__ import annotations

from typing import Any

import pytest

from farm.errors import InvalidInput
from farm.spec.batch import BatchRequest, freeze
from farm.spec.output import MIMES, PNG, Output, suffix_of
from farm.spec.problems import validated


def read(written: Any) -> Output | None:
    return validated(BatchRequest, {"output": written}).output


@pytest.mark.parametrize(
    ("written", "format", "lossless", "quality"),
    [
        ("png", "png", True, None),
        ({"format": "png", "lossless": True}, "png", True, None),
        ("webp", "webp", False, 90),
        ("WebP 80", "webp", False, 80),
        (" webp  lossless ", "webp", True, None),
        ({"format": "webp", "quality": 1}, "webp", False, 1),
        ({"format": "webp", "lossless": True, "quality": None}, "webp", True, None),
        ("jpg", "jpeg", False, 90),
        ({"format": "JPEG", "quality": 100}, "jpeg", False, 100),
        ("avif", "avif", False, 80),
    ],
)
def test_it_is_text_or_an_object(
    written: Any, format: str, lossless: bool, quality: int | None
) -> None:
    found = read(written)
    assert found == Output(format=format, lossless=lossless, quality=quality)
    assert found is not None
    assert (found.format, found.lossless, found.quality) == (format, lossless, quality)
    assert read(found.model_dump()) == found, "as it is stored"
    assert read(str(found)) == found, "as people are told"


@pytest.mark.parametrize(
    ("written", "field", "value", "remedy"),
    [
        ("gif", "output.format", "gif", "'png', 'webp', 'jpeg' or 'avif'"),
        ("", "output.format", "", "'png'"),
        (5, "output", 5, "png, webp, jpeg, avif"),
        (["webp"], "output", None, "png, webp"),
        ({"quality": 9}, "output.format", None, "Add it"),
        ({"format": "webp", "speed": 1}, "output.speed", 1, "spelling"),
        ("webp 0", "output.quality", "0", "1 or more"),
        ("webp 101", "output.quality", "101", "100 or less"),
        ("webp high", "output.quality", "high", "whole number"),
        ("png 90", "output.quality", "90", "Leave it out"),
        ({"format": "webp", "lossless": True, "quality": 9}, "output.quality", 9, "Leave it out"),
        ("jpeg lossless", "output.lossless", True, "png or webp"),
        ({"format": "avif", "lossless": True}, "output.lossless", True, "avif with a quality"),
    ],
)
def test_what_cannot_be_made_is_refused(written: Any, field: str, value: Any, remedy: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        read(written)
    assert caught.value.field == field
    assert str(caught.value.value) == str(value)
    assert remedy in str(caught.value.remedy)


def test_it_decides_no_pixel() -> None:
    defaults = {"demo": {"width": 64, "height": 64}}
    given = {"prompt": "a lion", "seed": 1}
    plain = freeze(BatchRequest(**given), defaults)
    assert freeze(BatchRequest(**given, output="jpeg 50"), defaults) == plain


def test_names_of_files_follow_the_media_type() -> None:
    assert [suffix_of(mime) for mime in MIMES] == [".png", ".webp", ".jpg", ".avif"]
    assert (PNG.mime, PNG.suffix) == ("image/png", ".png")
    assert suffix_of("image/heif") == ".heif", "of a newer farm"
