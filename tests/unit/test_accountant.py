"""The ledger of a device's seconds: whatever happens, it adds up to the clock."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from farm.worker.accountant import Accountant, Owner
from tests.engine_bench import Bench
from tests.fake_models import FakeCheckpoint, spec

A, B = Owner(1, "a"), Owner(2, "b")


class Ledger:
    """An accountant whose clock moves when it is told to."""

    def __init__(self) -> None:
        self.now = 100.0
        self.accountant = Accountant(lambda: self.now)
        self.accountant.begin("10:00")

    def after(self, seconds: float) -> Accountant:
        self.now += seconds
        return self.accountant

    def uses(self) -> dict[tuple[int, str], float]:
        """Seconds by batch and use, nothing under way."""
        found: Counter[tuple[int, str]] = Counter()
        for entry, seconds in self.accountant.books().items():
            found[entry.owner.batch_id, entry.use] += seconds  # type: ignore[assignment]
        return {key: round(seconds, 6) for key, seconds in found.items() if seconds}


def test_a_day_of_a_device() -> None:
    ledger = Ledger()
    ledger.after(5).wake()
    ledger.accountant.enter("1-0.1", A)
    ledger.accountant.enter("2-0.1", B)
    ledger.after(3).work("load", {"1-0.1": 1.5, "2-0.1": 1.5})
    ledger.after(4).work("denoise", {"1-0.1": 1, "2-0.1": 3})
    ledger.accountant.leave("2-0.1", "cancelled")
    ledger.after(2).work("denoise", {"1-0.1": 2})
    ledger.after(1).work("decode", {"1-0.1": 1})
    ledger.accountant.rest()
    ledger.after(7).leave("1-0.1", None)
    assert ledger.uses() == {
        (0, "waiting"): 12,
        (1, "load"): 1.5,
        (1, "denoise"): 3,
        (1, "decode"): 1,
        (2, "cancelled"): 4.5,
    }


def test_work_with_another_checkpoint_is_its_own() -> None:
    ledger = Ledger()
    ledger.accountant.wake()
    ledger.accountant.enter("1-0.1", A)
    ledger.after(2).work("denoise", {"1-0.1": 2}, "a")
    ledger.after(1).work("denoise", {"1-0.1": 1}, "second")
    ledger.after(4).work("decode", {"1-0.1": 4})
    ledger.accountant.leave("1-0.1", None)
    booked = {
        (entry.owner.batch_id, entry.owner.checkpoint, entry.use): seconds
        for entry, seconds in ledger.accountant.books().items()
    }
    assert booked == {(1, "a", "denoise"): 2, (1, "second", "denoise"): 1, (1, "a", "decode"): 4}


@pytest.mark.parametrize(
    ("use", "booked"),
    [
        (None, {(1, "denoise"): 2, (1, "decode"): 1}),
        ("failed", {(1, "failed"): 3}),
        ("cancelled", {(1, "cancelled"): 3}),
        ("preempted", {(1, "preempted"): 3}),
    ],
)
def test_how_an_attempt_ended_decides_what_its_seconds_were(
    use: str, booked: dict[tuple[int, str], float]
) -> None:
    ledger = Ledger()
    ledger.accountant.wake()
    ledger.accountant.enter("1-0.1", A)
    ledger.after(2).work("denoise", {"1-0.1": 2})
    ledger.after(1).work("decode", {"1-0.1": 1})
    assert ledger.uses() == {}
    ledger.accountant.leave("1-0.1", use)  # type: ignore[arg-type]
    assert ledger.uses() == booked


def test_work_that_overlaps_is_not_counted_twice() -> None:
    ledger = Ledger()
    ledger.accountant.wake()
    for key, owner in (("1-0.1", A), ("2-0.1", B)):
        ledger.accountant.enter(key, owner)
    # A decode of 2 s beside a forward of 4 s, both done after 4 s.
    ledger.after(3.9).work("decode", {"1-0.1": 2})
    ledger.after(0.1).work("denoise", {"2-0.1": 4})
    for key in ("1-0.1", "2-0.1"):
        ledger.accountant.leave(key, None)
    assert ledger.uses() == {
        (1, "decode"): pytest.approx(4 / 3),
        (2, "denoise"): pytest.approx(8 / 3),
    }


def test_a_load_under_way_is_not_charged_to_those_who_had_the_device_before() -> None:
    ledger = Ledger()
    ledger.accountant.wake()
    for key, owner in (("1-0.1", A), ("2-0.1", B)):
        ledger.accountant.enter(key, owner)
    ledger.after(1).work("decode", {"1-0.1": 1})
    ledger.after(6).leave("1-0.1", None)  # its picture is stored while another's model loads
    ledger.after(4).work("load", {"2-0.1": 10})
    ledger.accountant.leave("2-0.1", None)
    assert ledger.uses() == {(1, "decode"): 1, (2, "load"): 10}


def test_idle_is_waiting_or_policy_or_a_load_that_was_ordered() -> None:
    ledger = Ledger()
    ledger.after(1).turn("10:00", by_policy=True)
    with ledger.after(2).aside("a"):
        ledger.now += 4
    ledger.after(8).turn("10:00", by_policy=False)
    ledger.after(16)
    assert ledger.uses() == {(0, "waiting"): 17, (0, "policy"): 10, (0, "load"): 4}


def test_what_the_farm_wants_of_a_device_is_policy() -> None:
    ledger = Ledger()
    ledger.accountant.wake()
    ledger.accountant.enter("1-0.1", A)
    ledger.after(4).work("denoise", {"1-0.1": 3, "canary": 1})
    ledger.accountant.leave("1-0.1", None)
    assert ledger.uses() == {(1, "denoise"): 3, (0, "policy"): 1}


def test_seconds_belong_to_the_period_in_which_they_are_known() -> None:
    ledger = Ledger()
    ledger.after(3).turn("11:00", by_policy=False)
    ledger.after(4)
    books = {entry.period: seconds for entry, seconds in ledger.accountant.books().items()}
    assert books == {"10:00": 3, "11:00": 4}
    ledger.accountant.forget("10:00")
    assert {entry.period for entry in ledger.accountant.books()} == {"11:00"}


def test_what_is_under_way_at_the_end_has_failed() -> None:
    ledger = Ledger()
    ledger.accountant.wake()
    ledger.accountant.enter("1-0.1", A)
    ledger.after(2).work("denoise", {"1-0.1": 2})
    ledger.now += 1
    assert {entry.use: s for entry, s in ledger.accountant.close().items()} == {"failed": 3}


STEPS = st.one_of(
    st.tuples(st.just("enter"), st.sampled_from("abc")),
    st.tuples(st.just("leave"), st.sampled_from("abc"), st.sampled_from([None, "failed"])),
    st.tuples(
        st.just("work"),
        st.sampled_from(["denoise", "decode", "load"]),
        st.dictionaries(st.sampled_from("abcd"), st.floats(0, 50), min_size=1),
    ),
    st.tuples(st.sampled_from(["wake", "rest", "books", "aside", "back"])),
    st.tuples(st.just("turn"), st.sampled_from(["10:00", "11:00"]), st.booleans()),
)


@given(st.lists(st.tuples(st.floats(0, 100), STEPS), max_size=40))
def test_any_course_of_events_adds_up_to_the_clock(
    events: list[tuple[float, tuple[object, ...]]],
) -> None:
    ledger = Ledger()
    loads = []
    for seconds, (what, *details) in events:
        accountant = ledger.after(seconds)
        match what:
            case "aside":
                loads.append(accountant.aside("m"))
                loads[-1].__enter__()
            case "back" if loads:
                loads.pop().__exit__(None, None, None)
            case "back":
                pass
            case "turn":
                accountant.turn(details[0], by_policy=details[1])  # type: ignore[arg-type]
            case "enter":
                accountant.enter(details[0], A)  # type: ignore[arg-type]
            case _:
                getattr(accountant, str(what))(*details)
        assert sum(accountant.books().values()) <= ledger.now - 100 + 1e-6
    booked = ledger.accountant.close()
    assert sum(booked.values()) == pytest.approx(ledger.now - 100, abs=1e-6)
    assert all(seconds >= 0 for seconds in booked.values())


def test_an_engine_at_work_is_accounted_for() -> None:
    accountant = Accountant()
    bench = Bench(accountant=accountant)
    accountant.begin("now")
    accountant.wake()
    for order, owner in enumerate((A, B)):
        accountant.enter(f"job-{order}", owner)
    bench.render(spec("a cat", 1, steps=6), spec("a dog", 2, steps=2))
    bench.core.rest()
    for order in range(2):
        accountant.leave(f"job-{order}", None)
    books = accountant.books()
    had = {(entry.owner.batch_id, entry.use): seconds for entry, seconds in books.items()}
    assert {use for _, use in had} >= {"load", "encode", "denoise", "decode"}
    assert had[1, "denoise"] > had[2, "denoise"] > 0


def test_each_pass_of_an_image_is_booked_under_its_checkpoint() -> None:
    accountant = Accountant()
    bench = Bench(FakeCheckpoint("fake"), FakeCheckpoint("other"), accountant=accountant)
    accountant.begin("10:00")
    accountant.enter("job-0", Owner(1, "fake"))
    bench.render(spec("a cat", 1, steps=6, hires_scale=2, hires_checkpoint="other"))
    accountant.leave("job-0", None)
    uses: dict[str, set[str]] = {}
    for entry in accountant.books():
        if entry.owner.batch_id:
            uses.setdefault(entry.owner.checkpoint, set()).add(entry.use)
    assert uses == {
        "fake": {"load", "encode", "denoise"},
        "other": {"load", "encode", "denoise", "decode"},
    }
