"""The engine against diffusers' own pipelines: images a second, forwards, latency, memory.

    .venv/bin/python bench/engine.py --compiled [--device cuda] [--repeats 3] [--only NAME ...]

On a CPU the models are the demo checkpoint and tiny random ones; on a GPU full-size SDXL and SD1.5
with random weights, written to a temporary folder. Peers run in this process, in turn with Farm, on
the same weights in the same precision with the same attention (torch's
``scaled_dot_product_attention``):

- loop: a diffusers pipeline called once for each image;
- batch: called once for all of them, as far as they are alike;
- compiled: the loop with ``torch.compile`` on its UNet (with ``--compiled``);
- bound: Farm's own models in full batches and nothing else (with ``--bound``).

For images in two passes peers call the pipeline, enlarge its latent as Farm does, and call the
image-to-image pipeline of the same models. In the stream they stand behind a queue.

On a card it also tells what share of the peak each of them reaches: of the operations a second of a
large matrix product, which is measured first; how much of the time the card was busy with Farm's
jobs; and predicted and measured memory under the caps of smaller cards. What fails is told, costs
its own lines only, and makes the exit status 1.

Prompts, negative prompts and seeds differ from image to image. Text encoding and decoding count;
loading and image files do not, nor does the first call of each, in which kernels are chosen and
models compiled: its seconds are told. Ratios are those of each round, then their median; those of
the processors' seconds say something on a machine that others use, too.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from datetime import date
from importlib.metadata import version
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

import psutil  # noqa: E402
import torch  # noqa: E402

from bench import arrivals, beside, card, full_size, peaks, workloads  # noqa: E402
from bench.bound import Bound  # noqa: E402
from bench.contenders import Farm, Pipeline  # noqa: E402
from bench.failures import told_if_it_fails  # noqa: E402
from bench.field import Field  # noqa: E402
from farm.worker.engine.loop import threads  # noqa: E402
from farm.worker.memory import profiles  # noqa: E402
from farm.worker.memory.profiles import GIB, MemoryProfile  # noqa: E402
from farm.worker.models.catalogue import AssetFile, builtin_folder, scan  # noqa: E402
from tests.checkpoints import make_tiny  # noqa: E402

STREAMED = {"cpu": {"demo": 128}, "cuda": {"sdxl": 512, "sd15": 512}}
"""Models that jobs arrive for one by one, and the longer side of their pictures."""
PACKAGES = ("torch", "diffusers", "transformers")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--jobs", type=int, default=40, help="of the stream")
    parser.add_argument("--bound", action="store_true", help="what the models alone take, too")
    parser.add_argument("--compiled", action="store_true", help="a compiled peer too")
    parser.add_argument(
        "--only",
        nargs="*",
        help="words that a workload's name begins with, or stream, overhead, memory",
    )
    parser.add_argument("--models", type=Path, help="folder of the full-size models, kept")
    told = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        failed = run(told, told.models or Path(scratch))
    if failed:
        sys.exit(f"failed: {', '.join(failed)}")


def run(told: argparse.Namespace, folder: Path) -> list[str]:
    """Measure what was asked for; gives the names of what failed."""
    device = torch.device(told.device)
    on_card = device.type == "cuda"
    files = _files(device, folder)
    dtype = torch.float16 if on_card else torch.float32
    profile = _profile(device)
    if not on_card:
        torch.set_num_threads(threads())
    _print_versions(device, profile, dtype)
    limit, failed = None, list[str]()
    if on_card:
        limit = card.peak(device, dtype)
        print(f"{card.described()}: {limit / 1e12:.1f} TFLOP/s in a large matrix product")

    def asked(name: str) -> bool:
        return not told.only or any(name.startswith(word) for word in told.only)

    chosen = [work for work in workloads.workloads(device.type) if asked(work.name)]
    streams = [name for name in STREAMED[device.type] if asked(f"stream of {name}")]
    for family in dict.fromkeys([*(work.family for work in chosen), *streams]):
        with told_if_it_fails(family, failed):
            file = next(file for file in files if file.name == family)
            peers, farm = _peers(file, told, device, dtype), Farm(files, profile, device)
            bound = Bound(farm.models, profile) if told.bound else None
            field = Field(farm, peers, told.repeats, limit, failed, bound)
            for work in (each for each in chosen if each.family == family):
                with told_if_it_fails(work.name, failed):
                    field.compare(work)
            if family in streams:
                with told_if_it_fails(f"stream of {family}", failed):
                    specs = workloads.mixed(family, told.jobs, STREAMED[device.type][family])
                    arrivals.stream(farm, peers, specs, told.repeats)
            farm.engine.stop()
            del farm, peers, bound, field
    if asked("overhead"):
        with told_if_it_fails("overhead", failed):
            beside.overhead()
    if on_card and asked("memory"):
        peaks.memory(files, device, failed)
    return failed


def _peers(
    file: AssetFile, told: argparse.Namespace, device: torch.device, dtype: torch.dtype
) -> dict[str, Pipeline]:
    peers = {"loop": Pipeline(file, device, dtype)}
    if told.compiled:
        peers["compiled"] = Pipeline(file, device, dtype)
        peers["compiled"].pipe.unet = _compiled(peers["compiled"].pipe.unet)
    return peers


def _compiled(unet: torch.nn.Module) -> torch.nn.Module:
    """Anew for each kind of timestep, for one row and for two, and for each size."""
    torch.compiler.reset()
    torch._dynamo.config.recompile_limit = 64
    return torch.compile(unet, dynamic=False)


def _files(device: torch.device, folder: Path) -> list[AssetFile]:
    if device.type == "cpu":
        for name, family in workloads.TINY.items():
            make_tiny(folder, family, name=name)
        return scan([builtin_folder(), folder])
    for family in ("sdxl", "sd15"):
        path = folder / f"{family}.safetensors"
        if not path.exists():
            full_size.write(path, family)
    return scan([folder])


def _profile(device: torch.device) -> MemoryProfile:
    if device.type == "cpu":
        return profiles.choose("cpu", psutil.virtual_memory().total)
    most = profiles.by_name("24gb").memory_bytes
    total = torch.cuda.get_device_properties(device).total_memory
    if total > most:
        print(f"a card of {total / GIB:.0f} GiB, planned as if it had 24")
    return profiles.choose("cuda", min(total, most))


def _print_versions(device: torch.device, profile: MemoryProfile, dtype: torch.dtype) -> None:
    name = torch.cuda.get_device_name() if device.type == "cuda" else f"{threads()} CPU threads"
    packages = ", ".join(f"{each} {version(each)}" for each in PACKAGES)
    print(f"{date.today()}, {name}, {dtype}, profile {profile.name}; {packages}")


if __name__ == "__main__":
    main()
