"""The benchmarks on a pretended card: one command must not die after ten minutes of a typo."""

from __future__ import annotations

import argparse
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from bench import arrivals, contenders, engine, loading, peaks, workloads
from bench import card as cards
from farm.worker.memory import profiles
from farm.worker.memory.profiles import by_name
from farm.worker.models.catalogue import builtin_folder
from tests import card_bench
from tests.card_bench import PRETENDED
from tests.checkpoints import make_tiny, tiny_file
from tests.pretended_card import Card, pretended
from tests.pretended_kernels import Kernels
from tests.unfilled import Unfilled

pytestmark = [*PRETENDED]


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Tiny models and few steps under the names of the large."""

    def write(path: Path, family: str) -> None:
        make_tiny(path.parent, family, name=path.stem)

    def few_jobs(_: str) -> list[workloads.Workload]:
        few: dict[str, Any] = {"steps": 2}
        return [
            workloads.Workload("breaks", "sd15", workloads.jobs("nothing", 1, 64, **few)),
            workloads.Workload("two jobs", "sd15", workloads.jobs("sd15", 2, 64, **few)),
        ]

    two = {name: replace(profiles.by_name(name), slots=2) for name in peaks.CAPS}
    monkeypatch.setattr(profiles, "by_name", two.__getitem__)
    monkeypatch.setattr(contenders.full_size, "write", write)
    monkeypatch.setattr(workloads, "workloads", few_jobs)
    monkeypatch.setattr(engine.beside, "overhead", lambda: None)
    monkeypatch.setattr(engine, "STREAMED", {"cuda": {"sd15": 64}})
    monkeypatch.setattr(peaks, "SHAPES", (("sdxl", 64), ("nothing", 64)))
    monkeypatch.setattr(workloads, "mixed", lambda *_: workloads.jobs("sd15", 2, 64, steps=1))
    monkeypatch.setattr(arrivals, "LOADS", (0.95,))
    monkeypatch.setattr(cards, "_row", lambda *_: 10**9)
    monkeypatch.setattr(cards, "_picture", lambda *_: 10**9)
    monkeypatch.setitem(cards.peak.__kwdefaults__, "side", 16)  # type: ignore[arg-type]
    monkeypatch.setattr(engine, "_compiled", lambda unet: unet)


def test_the_engine_s_table_is_printed_whatever_fails(
    card: Card, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    told = argparse.Namespace(
        device="cuda", repeats=1, jobs=2, compiled=True, bound=True, only=None
    )
    failed = engine.run(told, tmp_path)
    said = capsys.readouterr().out
    assert failed == ["breaks", *(f"nothing 64 in {name}gb" for name in (24, 12, 8, 4))]
    assert "Pretended 3090, driver" in said
    assert "TFLOP/s" in said
    assert "two jobs: 2 forwards of 4.0 rows; a loop takes 4; busy" in said
    for line in ("farm", "loop", "compiled", "batch", "bound"):
        assert any(each.split()[:1] == [line] and "of peak" in each for each in said.splitlines())
    assert all(f"95%   {who}" in said for who in ("farm", "loop", "compiled"))
    assert all(f"{name}gb" in said.partition("ratio")[2] for name in (24, 12, 8, 4))


def test_operators_that_compute_nothing_take_the_same_memory(tmp_path: Path) -> None:
    file = tiny_file(tmp_path, "sd15")

    def taken(made: type[Kernels]) -> int:
        with pretended(made=made) as card:
            running = card_bench.engine(card_bench.CUDA, [file], by_name("4gb"))
            card_bench.rendered(running, card_bench.spec(file, steps=1))
            assert card.races == []
            return card.peak

    assert taken(Unfilled) == taken(Kernels)


@pytest.mark.parametrize("subject", ["floor", "farm", "host"])
def test_what_loading_takes_is_measured(card: Card, tmp_path: Path, subject: str) -> None:
    demo = builtin_folder() / "demo.safetensors"
    path = tmp_path / "other.safetensors"
    shutil.copy(demo, path)
    path.with_suffix(".config").symlink_to(demo.with_suffix(".config"))
    assert loading.SUBJECTS[subject](path, "cuda") > 0
