"""What loading a checkpoint costs, against the disk and against diffusers.

    .venv/bin/python bench/loading.py [--repeats 3] [--file big.safetensors] [--device cpu]

Writes a full-size SDXL checkpoint of random float16 weights (6.9 GB), then measures in turn, each
in a process of its own, with the file out of the page cache (cold) and in it (warm):

- floor: the same bytes by parallel reads into freshly allocated memory, and nothing else;
- farm: from a path to a checkpoint that is ready to compute;
- diffusers: ``from_single_file(...).to(device)``, then one read of every page of its weights;
- host: Farm's return of the same checkpoint from its host cache.

Imports are not counted for any of them: Farm and diffusers each load the demo checkpoint first,
which imports what a first load does. Ratios are those of each round, then their median.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from importlib.metadata import version
from math import isnan, nan
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

BLOCK = 16 * 2**20
DROP_CACHES = Path("/proc/sys/vm/drop_caches")
PAGE = 4096


def floor(path: Path, device: str) -> float:
    import torch

    from farm.worker.models.header import read_header
    from farm.worker.models.reader import READERS

    entries = sorted(read_header(path).tensors.values(), key=lambda entry: entry.start)
    handle = os.open(path, os.O_RDONLY)

    def read(entry: object) -> torch.Tensor:
        size = entry.end - entry.start
        tensor = torch.empty(size, dtype=torch.uint8)
        view, place = memoryview(tensor.numpy()), entry.start
        while view:
            count = os.preadv(handle, [view[:BLOCK]], place)
            view, place = view[count:], place + count
        return tensor if device == "cpu" else tensor.to(device)

    began = time.perf_counter()
    with ThreadPoolExecutor(READERS) as pool:
        kept = list(pool.map(read, entries))
    if device != "cpu":
        torch.cuda.synchronize()
    took = time.perf_counter() - began
    assert len(kept) == len(entries)
    return took


def farm(path: Path, device: str) -> float:
    import torch

    from farm.worker.memory.profiles import by_name
    from farm.worker.models.catalogue import builtin_folder, examine
    from farm.worker.models.kinds import CHECKPOINT
    from farm.worker.models.loader import load

    file = examine(path, CHECKPOINT)
    profile = by_name("24gb")
    load(examine(builtin_folder() / "demo.safetensors", CHECKPOINT), profile, torch.device(device))
    began = time.perf_counter()
    checkpoint = load(file, profile, torch.device(device))
    if device != "cpu":
        torch.cuda.synchronize()
    took = time.perf_counter() - began
    assert checkpoint.bytes > 0.98 * path.stat().st_size
    return took


def diffusers(path: Path, device: str) -> float:
    import torch
    from diffusers import StableDiffusionXLPipeline

    from bench import full_size
    from farm.worker.models.catalogue import builtin_folder
    from farm.worker.models.tokenizer import clip_tokenizer
    from tests.checkpoints import diffusers_pipeline

    diffusers_pipeline(builtin_folder() / "demo.safetensors", torch.float16)
    with tempfile.TemporaryDirectory() as scratch:
        configs = full_size.pipeline_folder("sdxl", Path(scratch) / "sdxl")
        tokenizers = {"tokenizer": clip_tokenizer("eos"), "tokenizer_2": clip_tokenizer("zero")}
        began = time.perf_counter()
        pipeline = StableDiffusionXLPipeline.from_single_file(
            str(path),
            config=str(configs),
            torch_dtype=torch.float16,
            local_files_only=True,
            **tokenizers,
        ).to(device)
        parts = (pipeline.unet, pipeline.vae, pipeline.text_encoder, pipeline.text_encoder_2)
        touched = [
            weight.detach().flatten()[:: PAGE // weight.element_size()].float().sum()
            for part in parts
            for weight in part.parameters()
        ]
        assert torch.stack(touched).isfinite().all()
        return time.perf_counter() - began


def host(path: Path, device: str) -> float:
    import torch

    from farm.worker.memory.profiles import by_name
    from farm.worker.models.cache import ModelCache
    from farm.worker.models.catalogue import builtin_folder, examine, scan
    from farm.worker.models.kinds import CHECKPOINT

    files = [examine(path, CHECKPOINT), *scan([builtin_folder()])]
    size = path.stat().st_size
    profile = replace(by_name("24gb"), weights_bytes=size)  # one at a time
    cache = ModelCache(files, profile, torch.device(device), host_bytes=2 * size)
    cache.get(files[0].name)
    cache.get("demo")
    assert cache.in_host == (files[0].name,)
    began = time.perf_counter()
    cache.get(files[0].name)
    if device != "cpu":
        torch.cuda.synchronize()
    return time.perf_counter() - began


SUBJECTS: dict[str, Callable[[Path, str], float]] = {
    "floor": floor,
    "farm": farm,
    "diffusers": diffusers,
    "host": host,
}


def measured(subject: str, path: Path, device: str, *, cold: bool) -> float:
    """Seconds of one subject in a new process; NaN where it fails, and why is told."""
    (drop_cache if cold else fill_cache)(path)
    command = [sys.executable, __file__, "--subject", subject, "--file", str(path)]
    done = subprocess.run(
        [*command, "--device", device], capture_output=True, text=True, check=False, cwd=ROOT
    )
    if done.returncode:
        print(f"{subject} failed:\n{done.stderr}", flush=True)
        return nan
    return float(done.stdout.splitlines()[-1])


def drop_cache(path: Path) -> None:
    """Out of the page cache: all of it where that is permitted, else this file's."""
    os.sync()
    try:
        DROP_CACHES.write_text("3")
    except OSError:
        with path.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def fill_cache(path: Path) -> None:
    with path.open("rb") as file:
        while file.read(BLOCK):
            pass


def compare(path: Path, device: str, repeats: int) -> bool:
    """Print what each subject takes; gives whether none failed."""
    if device != "cpu":
        from bench import card

        print(f"{card.described()}, torch {version('torch')}")
    good = True
    print(f"{path.stat().st_size / 1e9:.2f} GB, {device}, {repeats} rounds")
    for state in ("cold", "warm"):
        seconds: dict[str, list[float]] = {}
        for _ in range(repeats):
            for subject in ("floor", "farm", "diffusers"):
                took = measured(subject, path, device, cold=state == "cold")
                seconds.setdefault(subject, []).append(took)
            if state == "cold":
                seconds.setdefault("host", []).append(measured("host", path, device, cold=False))
        print(f"\n{state}")
        for subject, each in seconds.items():
            shown = "  ".join(f"{took:7.2f}" for took in each)
            print(f"  {subject:10} median {statistics.median(each):7.2f} s   ({shown})")
        print(f"  farm / floor      {ratio(seconds, 'farm', 'floor'):.2f}")
        print(f"  diffusers / farm  {ratio(seconds, 'diffusers', 'farm'):.2f}")
        if "host" in seconds:
            print(f"  host / farm       {ratio(seconds, 'host', 'farm'):.4f}")
        good = good and not any(isnan(took) for each in seconds.values() for took in each)
    return good


def ratio(seconds: dict[str, list[float]], one: str, other: str) -> float:
    return statistics.median(a / b for a, b in zip(seconds[one], seconds[other], strict=True))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--file", type=Path, help="use this file; written if it is missing")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--subject", choices=SUBJECTS, help=argparse.SUPPRESS)
    told = parser.parse_args()
    if told.subject:
        print(SUBJECTS[told.subject](told.file, told.device))
        return
    with tempfile.TemporaryDirectory() as scratch:
        path = told.file or Path(scratch) / "sdxl.safetensors"
        if not path.exists():
            from bench import full_size

            full_size.write(path, "sdxl")
        if not compare(path, told.device, told.repeats):
            sys.exit(1)


if __name__ == "__main__":
    main()
