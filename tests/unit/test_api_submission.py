"""Texts that JSON can carry and Postgres cannot."""

from __future__ import annotations

from typing import Any

import pytest

from farm.api.submission import fingerprint, refuse_unstorable
from farm.errors import InvalidInput


@pytest.mark.parametrize(
    ("request_", "field"),
    [
        ({"prompt": "a\0b"}, "prompt"),
        ({"prompt": "a\ud800b"}, "prompt"),
        ({"axes": {"prompt": ["fine", "a\0"]}}, "axes.prompt[1]"),
        ({"jobs": [{}, {"name\0": 1}]}, "jobs[1]"),
        ({"\0": 1}, "body"),
    ],
)
def test_unstorable_text_is_refused_by_name(request_: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        refuse_unstorable(request_)
    assert caught.value.field == field
    assert caught.value.remedy


def test_a_tower_of_lists_is_refused() -> None:
    tower: list[Any] = []
    for _ in range(5000):
        tower = [tower]
    with pytest.raises(InvalidInput, match="nested too deeply"):
        refuse_unstorable({"axes": {"steps": tower}})


def test_any_other_text_is_fine() -> None:
    refuse_unstorable({"prompt": "été 🍎 \u2028 \x01", "axes": {"steps": [1, 2.5, None]}})


SENT = b'{"prompt": "a lion", "count": 2}'


@pytest.mark.parametrize(
    ("body", "same"),
    [
        (b'{"count":2,\n"prompt":"a lion"}', True),
        (b'{"prompt": "a l\\u0069on", "count": 2}', True),
        (b'{"prompt": "a lion"}', False),
        (b'{"prompt": "a lion", "count": 3}', False),
        (b'{"prompt": "a lion", "count": 2, "strict": false}', False),
    ],
)
def test_requests_are_told_apart_by_what_was_sent(body: bytes, same: bool) -> None:
    assert (fingerprint(body) == fingerprint(SENT)) is same
