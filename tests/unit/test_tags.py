"""Tags are plain words."""

from __future__ import annotations

import pytest

from farm.errors import InvalidInput
from farm.spec.batch import BatchRequest
from farm.spec.problems import validated


@pytest.mark.parametrize("tag", ["a100", "team-red", "8gb", "x" * 40, "a.b_c-d"])
def test_a_tag(tag: str) -> None:
    assert validated(BatchRequest, {"prompt": "a cat", "tags": [tag]}).tags == [tag]


@pytest.mark.parametrize("tag", ["", "Fast", "bad tag", "-a", "x" * 41, "a\n"])
def test_what_is_none_is_named_with_what_to_write(tag: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        validated(BatchRequest, {"prompt": "a cat", "tags": ["a100", tag]})
    assert caught.value.field == "tags.1"
    assert repr(tag) in caught.value.message
    assert "such as a100" in (caught.value.remedy or "")
