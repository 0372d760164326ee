"""Names in addresses and cursors: what is none of ours is refused, never a fault."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from farm.api import names
from farm.errors import InvalidInput, NotFound

NUMBERS = st.integers(0, 10**18 - 1)


@given(NUMBERS, NUMBERS)
def test_a_name_gives_its_numbers_back(batch: int, ord: int) -> None:
    assert names.batch_number(str(batch)) == batch
    assert names.job_number(f"{batch}-{ord}") == (batch, ord)


@pytest.mark.parametrize(
    "name", ["", "abc", "12-", "-1", "1.0", "1e3", " 1", "1\n", "٣", "007", str(10**30), "1" * 9999]
)
def test_what_names_no_batch_is_not_found(name: str) -> None:
    with pytest.raises(NotFound):
        names.batch_number(name)


@pytest.mark.parametrize("name", ["", "12", "12-", "-3", "a-b", "1-2-3", "1--2", f"1-{10**30}"])
def test_what_names_no_job_is_not_found(name: str) -> None:
    with pytest.raises(NotFound):
        names.job_number(name)


@given(st.text(max_size=40), NUMBERS)
def test_a_cursor_leads_back_to_its_place(listing: str, position: int) -> None:
    assert names.position(names.cursor(listing, position), listing) == position


@given(st.text(max_size=60))
def test_a_made_up_cursor_is_refused(text: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        names.position(text, "batches")
    assert caught.value.field == "cursor"
    assert caught.value.remedy


def test_a_cursor_of_another_listing_is_refused() -> None:
    with pytest.raises(InvalidInput, match="does not belong to this listing"):
        names.position(names.cursor("jobs/1/failed", 3), "jobs/1/")
