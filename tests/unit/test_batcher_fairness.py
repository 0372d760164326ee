"""Whatever groups come and go, each gets its share of the device, and none waits for long."""

from __future__ import annotations

from collections import defaultdict
from itertools import pairwise

from hypothesis import given, settings
from hypothesis import strategies as st

from farm.spec.networks import Lora
from farm.worker.engine.batcher import Batcher
from farm.worker.engine.decisions import Decode, Encode, Forward, Load, Waiting
from farm.worker.engine.turns import Group, Weights

BUCKETS = (1, 2, 4, 8)
QUANTUM, PATIENCE = 0.5, 10.0
SECONDS = {64: 0.01, 128: 0.11, 192: 0.3, 256: 0.9, 320: 2.5}
"""Of a forward, by width; more rows take a little longer."""
LOAD = 3.0


def seconds(_checkpoint: str, width: int, _height: int, rows: int) -> float:
    return SECONDS[width] * (1 + rows / 8)


LONGEST = 2 * max(SECONDS.values())


class Device:
    """A clock, room for some checkpoints, and jobs that take as many steps as they are told."""

    def __init__(self, capacity: int = 3) -> None:
        self.batcher = Batcher(
            lambda *_: 8, BUCKETS, seconds=seconds, quantum=QUANTUM, patience=PATIENCE
        )
        self.capacity = capacity
        self.resident: list[str] = []
        self.jobs: dict[int, tuple[Waiting, int]] = {}
        self.now = 0.0
        self.joined = 0
        self.got: dict[Group, float] = defaultdict(float)
        self.ended: dict[Group, float] = {}
        self.forwards: list[tuple[float, float, Group]] = []

    def join(self, steps: int, width: int = 64, checkpoint: str = "a", loras: str = "") -> None:
        worn = tuple(Lora(name, 1.0) for name in loras)
        view = Waiting(self.joined, "denoise", checkpoint, width, 64, 2, loras=worn)
        self.jobs[self.joined] = view, steps
        self.joined += 1

    @property
    def groups(self) -> set[Group]:
        return {view.group for view, _ in self.jobs.values()}

    def play(self) -> None:
        views = [view for view, _ in self.jobs.values()]
        decision = self.batcher.decide(views, self.resident, self.now)
        match decision:
            case Load(checkpoint):
                self.resident = [*self.resident, checkpoint][-self.capacity :]
                self.now += LOAD
            case Forward():
                assert decision.checkpoint in self.resident
                self.step(decision)
            case Decode() | Encode():
                raise AssertionError
            case None:
                assert not self.jobs, "there is work, and nothing is done"

    def step(self, forward: Forward) -> None:
        group = self.jobs[forward.orders[0]][0].group
        took = seconds(forward.checkpoint, forward.width, forward.height, forward.bucket)
        self.forwards.append((self.now, self.now + took, group))
        self.now += took
        self.got[group] += took
        for order in forward.orders:
            view, steps = self.jobs.pop(order)
            if steps > 1:
                self.jobs[order] = view, steps - 1
        self.jobs = dict(sorted(self.jobs.items()))


ENDLESS = 10**9
widths = st.sampled_from(sorted(SECONDS))
comings = st.lists(st.tuples(st.integers(0, 12), widths, st.integers(1, 9)), max_size=20)
"""(forwards until it comes, width, steps)"""


@settings(max_examples=150)
@given(st.tuples(widths, widths).filter(lambda two: two[0] != two[1]), comings)
def test_two_groups_that_always_have_work_get_the_same(
    two: tuple[int, int], others: list[tuple[int, int, int]]
) -> None:
    device = Device()
    for width in two:
        device.join(ENDLESS, width)
    mine = [view.group for view, _ in device.jobs.values()]
    for pause, width, steps in [*others, (60, two[0], 1)]:
        for _ in range(pause):
            device.play()
            first, second = (device.got[group] for group in mine)
            assert abs(first - second) <= max(QUANTUM, LONGEST) + LONGEST
        device.join(steps, width)


@settings(max_examples=150)
@given(comings)
def test_a_group_waits_for_no_more_than_a_turn_of_each_other(
    others: list[tuple[int, int, int]],
) -> None:
    device = Device()
    present: dict[Group, set[Group]] = {}
    since: dict[Group, float] = {}
    device.join(1)
    for pause, width, steps in [*others, (60, 64, 1)]:
        for _ in range(pause):
            here = device.groups
            for group in here - set(since):
                since[group], present[group] = device.now, here - {group}
            for gone in set(since) - here:
                del since[gone]
            device.play()
            served = device.forwards[-1] if device.forwards else None
            if served and served[2] in since:
                start, end, group = served
                turn = max(QUANTUM, LONGEST) + LONGEST
                assert start - since[group] <= len(present[group]) * turn + LOAD
                since[group], present[group] = end, device.groups - {group}
        device.join(steps, width)


@settings(max_examples=60)
@given(
    st.lists(
        st.tuples(
            st.sampled_from("abc"), st.sampled_from(["", "i", "fi"]), st.sampled_from([192, 320])
        ),
        min_size=2,
        max_size=5,
        unique_by=lambda each: each[:2],
    ),
    st.integers(1, 3),
)
def test_weights_wait_for_no_more_than_a_turn_of_each_other(
    wanted: list[tuple[str, str, int]], capacity: int
) -> None:
    device = Device(capacity)
    for checkpoint, loras, width in wanted:
        device.join(ENDLESS, width, checkpoint, loras)
    while device.now < 2 * len(wanted) * (PATIENCE + LONGEST + LOAD):
        device.play()
    turn = PATIENCE + LONGEST + LOAD
    times: dict[Weights, list[float]] = {group.weights: [0.0] for group in device.groups}
    for start, end, group in device.forwards:
        times[group.weights] += [start, end]
    for mine in times.values():
        waits = [start - end for end, start in pairwise([*mine, device.now])]
        # Those that stay loaded share the turns of others with them.
        assert max(waits) <= len(wanted) * turn


def test_jobs_of_a_group_still_share_forwards_when_groups_take_turns() -> None:
    device = Device()
    for width in (64, 128, 192):
        for _ in range(4):
            device.join(20, width)
    while device.jobs:
        device.play()
    assert len(device.forwards) == 3 * 20
    assert {group.width for _, _, group in device.forwards[:60]} == {64, 128, 192}


def test_a_load_is_made_once_a_turn_and_not_for_every_forward() -> None:
    device = Device(capacity=1)
    loads = 0
    for checkpoint in "ab":
        device.join(500, 128, checkpoint)
    while device.jobs:
        before = device.resident
        device.play()
        loads += device.resident != before
    busy = sum(end - start for start, end, _ in device.forwards)
    assert loads <= busy / PATIENCE + 2
