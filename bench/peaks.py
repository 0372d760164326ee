"""Memory that images take, against what was planned.

    .venv/bin/python bench/peaks.py [--only sdxl 4gb ...]

Without a card: Farm runs full-size models on the pretended card of the tests, with operators that
take memory and compute next to nothing. So every tensor that Farm holds on the card is counted,
and weights that come and go, but neither what kernels take for themselves nor how memory is
scattered, for which the planner leaves room. Each card has what its profile plans with, and no
byte more. ``bench/engine.py --device cuda`` measures the same on a card.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402

from bench import full_size  # noqa: E402
from bench.contenders import Farm  # noqa: E402
from bench.failures import told_if_it_fails  # noqa: E402
from bench.workloads import jobs  # noqa: E402
from farm.worker.memory import profiles  # noqa: E402
from farm.worker.memory.planner import peak_bytes  # noqa: E402
from farm.worker.memory.profiles import GIB, MemoryProfile  # noqa: E402
from farm.worker.models.catalogue import AssetFile, scan  # noqa: E402

CAPS = ("24gb", "12gb", "8gb", "4gb")
SHAPES = (("sd15", 512), ("sd15", 1024), ("sdxl", 512), ("sdxl", 1024))
"""Families and sides that peaks are measured of."""
HEADER = "\nprofile   workload                  measured    predicted    ratio"


def memory(files: Sequence[AssetFile], device: torch.device, failed: list[str]) -> None:
    """Peaks under the caps of smaller cards, against what the planner said."""
    total = torch.cuda.get_device_properties(device).total_memory
    print(HEADER)
    for profile, family, side in _all():
        torch.cuda.set_per_process_memory_fraction(min(1.0, profile.memory_bytes / total))
        with told_if_it_fails(f"{family} {side} in {profile.name}", failed):
            _peak(files, profile, device, (family, side))
    torch.cuda.set_per_process_memory_fraction(1.0)


def counted(folder: Path, only: Sequence[str], failed: list[str]) -> None:
    """The same without a card; ``only`` are words that a row has, of each all that are told."""
    from tests.pretended_card import pretended
    from tests.unfilled import Unfilled

    torch.set_num_threads(1)
    for family in dict.fromkeys(family for family, _ in SHAPES):
        full_size.write(folder / f"{family}.safetensors", family, zeros=True)
    files = scan([folder])
    print(HEADER)
    for profile, family, side in _all():
        name = f"{family} {side} in {profile.name}"
        if all(word in name.split() for word in only):
            with (
                told_if_it_fails(name, failed),
                pretended(profile.memory_bytes, Unfilled),
            ):
                _peak(files, profile, torch.device("cuda", 0), (family, side))


def _all() -> Iterator[tuple[MemoryProfile, str, int]]:
    for name in CAPS:
        for family, side in SHAPES:
            yield profiles.by_name(name), family, side


def _peak(
    files: Sequence[AssetFile],
    profile: MemoryProfile,
    device: torch.device,
    shape: tuple[str, int],
) -> None:
    family, side = shape
    farm = Farm(files, profile, device)
    try:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
        made = farm.render(jobs(family, profile.slots, side, steps=3))
        rows = max(made[-1].stats.buckets)
        free, everything = torch.cuda.mem_get_info(device)
        peak = torch.cuda.max_memory_reserved(device)
        context = everything - free - torch.cuda.memory_reserved(device)
        said = peak_bytes(profile, family, side * side, rows)
        measured = peak + context
        print(
            f"{profile.name:9} {family:4} {side:4}, {rows:2} rows   {measured / GIB:12.2f} GiB"
            f"   {said / GIB:7.2f} GiB   {said / measured:.3f}"
        )
    finally:
        farm.engine.stop()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="*", default=[], help="words such as sdxl, 512, 4gb")
    told = parser.parse_args()
    failed: list[str] = []
    with tempfile.TemporaryDirectory() as folder:
        counted(Path(folder), told.only, failed)
    if failed:
        sys.exit(f"failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()
