"""Buckets that are worth it: what was given up is tried again, and what was learnt is of a file."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch

from farm.spec.measurement import Call
from farm.worker.engine.limits import RowLimits
from farm.worker.engine.worth import PATIENCE, Worth
from farm.worker.memory.experience import ENOUGH, Experience
from farm.worker.memory.profiles import by_name
from farm.worker.models.cache import ModelCache
from farm.worker.models.catalogue import AssetFile
from tests.fake_disk import Disk, make_cache
from tests.fake_models import FakeCheckpoint, FakeModels

CARD = by_name("24gb")
SIZE: Any = SimpleNamespace(width=1024, height=1024)


class Crowd:
    """Jobs that fill whatever they are allowed, on a card whose forwards take ``seconds``."""

    def __init__(self, **seconds: float) -> None:
        self.checkpoint: Any = FakeCheckpoint("fake", family="sdxl")
        self.limits = RowLimits(cast(ModelCache, FakeModels(self.checkpoint)), CARD)
        self.seconds = {int(rows[1:]): each for rows, each in seconds.items()}
        for rows in self.seconds:
            for _ in range(ENOUGH + 1):
                self.timed(rows)

    def timed(self, rows: int) -> None:
        self.limits.timed(self.checkpoint, SIZE, rows=rows, seconds=self.seconds[rows])

    def run(self, forwards: int) -> list[int]:
        """The rows of each."""
        used = []
        for _ in range(forwards):
            used.append(self.limits.allowed("fake", 1024, 1024))
            self.timed(used[-1])
        return used


def test_a_bucket_given_up_in_bad_times_comes_back() -> None:
    crowd = Crowd(r8=0.5, r16=1.0)  # others had the card while 16 was timed
    assert crowd.run(1) == [8]
    crowd.seconds[16] = 0.7
    used = crowd.run(PATIENCE + 2 * ENOUGH)
    assert set(used[: PATIENCE - 1]) == {8}
    assert used[-1] == 16
    assert set(crowd.run(5 * PATIENCE)) == {16}


def test_trials_in_vain_become_seldom(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("farm.worker.engine.worth.MOST_PATIENCE", 4 * PATIENCE)
    crowd = Crowd(r8=0.5, r16=1.0)
    used = crowd.run(12 * PATIENCE + 5 * ENOUGH)
    begun = [place for place, (one, next) in enumerate(pairwise(used)) if one < next]
    assert used.count(16) == len(begun) * (ENOUGH + 1)
    waits = [late - early - ENOUGH for early, late in pairwise(begun)]
    assert waits == pytest.approx([2 * PATIENCE, 4 * PATIENCE, 4 * PATIENCE], abs=5)


def test_the_next_larger_bucket_is_tried_not_the_largest() -> None:
    buckets, experience = (1, 2, 4, 8, 16), Experience()
    worth = Worth(buckets, experience)
    call = Call("denoise", "sdxl", 1, "float16", "sdpa", 1024**2, 16)
    for rows, seconds in {4: 0.5, 8: 1.0, 16: 2.0}.items():
        for _ in range(ENOUGH + 1):
            experience.timed(_of(call, rows), seconds)
    tried = set()
    for _ in range(PATIENCE + 5):
        tried.add(worth.rows(call))
        worth.timed(_of(call, 4))
    assert tried == {4, 8}


def _of(call: Call, rows: int) -> Call:
    return Call("denoise", "sdxl", 1, "float16", "sdpa", call.pixels, rows)


def test_another_file_of_the_same_name_has_limits_of_its_own() -> None:
    small: Any = FakeCheckpoint("fake", family="sd15")
    models: Any = FakeModels(small)
    models.resident = ("fake",)
    limits = RowLimits(models, by_name("8gb"))
    limits.halve("fake", 512, 512, rows=8)
    seconds = limits.seconds("fake", 512, 512, 2)
    assert (limits.allowed("fake", 512, 512), limits.pinned("fake", 512, 512)) == (4, 4)
    models.known["fake"] = FakeCheckpoint("fake", family="sdxl")
    assert (limits.allowed("fake", 512, 512), limits.pinned("fake", 512, 512)) == (8, 8)
    for _ in range(ENOUGH + 1):
        limits.timed(models.known["fake"], SIZE, rows=2, seconds=9.0)
    models.known["fake"] = small
    assert limits.seconds("fake", 512, 512, 2) == seconds


def test_to_look_at_limits_is_no_use_of_a_checkpoint(monkeypatch: pytest.MonkeyPatch) -> None:
    disk = Disk.installed(monkeypatch)
    files = [AssetFile(name, Path(name), "sd15", 512, 1) for name in disk.sizes]
    cache = make_cache(disk, files=files)
    fake: Any = FakeCheckpoint("a")
    with torch.no_grad():
        cache.get("a")
        cache.get("b")
    monkeypatch.setattr(cache._tiers.device, "peek", lambda name: fake)
    limits = RowLimits(cache, CARD)
    limits.allowed("a", 512, 512)
    limits.seconds("a", 512, 512, 1)
    limits.beside(512**2, "a", 512, 512)
    assert cache.resident == ("a", "b")
    assert cache.statistics.hits == 0
