"""The engine against diffusers' own pipelines: images a second, forwards, latency, memory.

    .venv/bin/python bench/engine.py [--device cuda] [--repeats 3] [--only NAME ...]

On a CPU the models are the demo checkpoint; on a GPU full-size SDXL and SD1.5 with random weights,
written to a temporary folder. Peers run in this process, in turn with Farm, on the same weights in
the same precision with the same attention (torch's ``scaled_dot_product_attention``):

- loop: a diffusers pipeline called once for each image;
- batch: called once for all of them, as far as they are alike;
- compiled: the loop with ``torch.compile`` on its UNet (with ``--compiled``).

For images in two passes peers call the pipeline, enlarge its latent as Farm does, and call the
image-to-image pipeline of the same models.

On a card it also tells what share of the peak each of them reaches: of the operations a second of a
large matrix product, which is measured first; how much of the time the card was busy with Farm's
jobs; and predicted and measured memory under the caps of smaller cards. What fails is told, costs
its own lines only, and makes the exit status 1.

Prompts, negative prompts and seeds differ from image to image. Text encoding and decoding count;
loading and image files do not. Ratios are those of each round, then their median.
"""

from __future__ import annotations

import argparse
import random
import statistics
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

import psutil  # noqa: E402
import torch  # noqa: E402

from bench import card, full_size  # noqa: E402
from farm.spec.job import JobSpec  # noqa: E402
from farm.worker.engine import Engine, Rendered  # noqa: E402
from farm.worker.engine.loop import threads  # noqa: E402
from farm.worker.memory import profiles  # noqa: E402
from farm.worker.memory.planner import peak_bytes  # noqa: E402
from farm.worker.memory.profiles import GIB, MemoryProfile  # noqa: E402
from farm.worker.models.cache import ModelCache  # noqa: E402
from farm.worker.models.catalogue import AssetFile, builtin_folder, scan  # noqa: E402
from tests.fake_models import FakeCheckpoint, FakeModels  # noqa: E402

STREAMED = {"cpu": 128, "cuda": 512}
"""Side of the pictures of the stream."""
CAPPED = (("sd15", 512), ("sdxl", 512), ("sdxl", 1024))
"""Families and sides that peaks are measured of."""
SUBJECTS = ("apple", "lion", "frog", "house", "penguin", "car", "tree", "robot")
COLOURS = ("red", "blue", "green", "yellow")
SCHEDULERS = {
    "Euler": ("EulerDiscreteScheduler", {}),
    "Euler a": ("EulerAncestralDiscreteScheduler", {}),
    "DPM++ 2M Karras": ("DPMSolverMultistepScheduler", {"use_karras_sigmas": True}),
}

HIRES = {"hires_scale": 2.0, "denoising_strength": 0.5}
"""Of which diffusers takes as many steps as Farm: half of twice as many."""


@dataclass(frozen=True)
class Workload:
    """Jobs of one kind, on one checkpoint of one family."""

    name: str
    family: str
    jobs: tuple[JobSpec, ...]

    @property
    def alike(self) -> bool:
        """Whether one call of a pipeline can make them all."""
        first = self.jobs[0]
        return all(
            (job.size, job.width, job.height, job.steps, job.sampler, job.cfg_scale)
            == (first.size, first.width, first.height, first.steps, first.sampler, first.cfg_scale)
            for job in self.jobs
        )


def jobs(family: str, count: int, side: int, **fields: Any) -> tuple[JobSpec, ...]:
    """Jobs with prompts and seeds of their own."""
    common = {"steps": 20, "sampler": "Euler", "cfg_scale": 7.0, **fields}
    return tuple(
        JobSpec(
            checkpoint=family,
            prompt=f"a {COLOURS[n // 8 % 4]} {SUBJECTS[n % 8]}",
            negative_prompt="blurry" if common["cfg_scale"] != 1 else "",
            width=side,
            height=side,
            seed=n,
            **common,
        )
        for n in range(count)
    )


def mixed(family: str, count: int, side: int) -> tuple[JobSpec, ...]:
    """Different samplers, steps and guidance."""
    draw = random.Random(1)
    return tuple(
        job.model_copy(
            update={
                "sampler": draw.choice(list(SCHEDULERS)),
                "steps": draw.choice((8, 12, 16, 20)),
                "cfg_scale": draw.choice((1.0, 3.0, 7.0)),
            }
        )
        for job in jobs(family, count, side)
    )


def workloads(device: str) -> list[Workload]:
    if device == "cpu":
        return [
            Workload("demo 128, 1 job", "demo", jobs("demo", 1, 128, cfg_scale=3.0)),
            Workload("demo 128, 16 jobs", "demo", jobs("demo", 16, 128, cfg_scale=3.0)),
            Workload("demo 128, 16 mixed", "demo", mixed("demo", 16, 128)),
            Workload(
                "demo 128, 2 steps, cfg 1", "demo", jobs("demo", 16, 128, cfg_scale=1.0, steps=2)
            ),
            Workload("demo hires 128 to 256, 4 jobs", "demo", jobs("demo", 4, 128, **HIRES)),
        ]
    turbo = {"cfg_scale": 1.0, "steps": 2}
    return [
        Workload("SDXL 512, 16 jobs", "sdxl", jobs("sdxl", 16, 512)),
        Workload("SDXL 1024, 8 jobs", "sdxl", jobs("sdxl", 8, 1024)),
        Workload("SDXL 1024, 1 job", "sdxl", jobs("sdxl", 1, 1024)),
        Workload("SDXL turbo 512, 32 jobs", "sdxl", jobs("sdxl", 32, 512, **turbo)),
        Workload("SDXL mixed, 16 jobs", "sdxl", mixed("sdxl", 16, 512)),
        Workload("SDXL hires 512 to 1024, 8 jobs", "sdxl", jobs("sdxl", 8, 512, **HIRES)),
        Workload("SD1.5 512, 32 jobs", "sd15", jobs("sd15", 32, 512)),
        Workload("SD1.5 512, 1 job", "sd15", jobs("sd15", 1, 512)),
    ]


class Farm:
    """The engine with one checkpoint resident."""

    def __init__(
        self, files: Sequence[AssetFile], profile: MemoryProfile, device: torch.device
    ) -> None:
        self.device = device
        self.engine = Engine(ModelCache(files, profile, device), profile, device)
        self.engine.start()
        self._number = 0

    def render(self, specs: Sequence[JobSpec]) -> list[Rendered]:
        """Make the images; with seeds of their own each time, as first passes are kept."""
        anew = [spec.model_copy(update={"seed": self._number + spec.seed}) for spec in specs]
        return [future.result() for future in [self.submit(spec) for spec in anew]]

    def submit(self, spec: JobSpec) -> Any:
        self._number += 1
        return self.engine.submit(str(self._number), spec)


class Pipeline:
    """diffusers' pipeline for one file."""

    def __init__(self, file: AssetFile, device: torch.device, dtype: torch.dtype) -> None:
        from tests.checkpoints import diffusers_pipeline

        if file.path.with_suffix(".config").is_dir():
            self.pipe = diffusers_pipeline(file.path, dtype)
        else:
            self.pipe = _from_single_file(file, dtype)
        self.pipe.to(device)
        self.pipe.set_progress_bar_config(disable=True)
        self.forwards = 0
        self.pipe.unet.register_forward_pre_hook(self._count)
        self._schedule = self.pipe.scheduler.config

    def _count(self, *_: object) -> None:
        self.forwards += 1

    def loop(self, specs: Sequence[JobSpec]) -> None:
        for spec in specs:
            self._call(spec, [spec])

    def batch(self, specs: Sequence[JobSpec]) -> None:
        self._call(specs[0], specs)

    def _call(self, first: JobSpec, specs: Sequence[JobSpec]) -> None:
        import diffusers

        kind, options = SCHEDULERS[first.sampler]
        self.pipe.scheduler = getattr(diffusers, kind).from_config(self._schedule, **options)
        generators = [torch.Generator().manual_seed(spec.seed) for spec in specs]
        asked: dict[str, Any] = {
            "prompt": [spec.prompt for spec in specs],
            "negative_prompt": [spec.negative_prompt for spec in specs],
            "guidance_scale": first.cfg_scale,
            "generator": generators,
        }
        with torch.no_grad():
            made = self.pipe(
                num_inference_steps=first.steps,
                width=first.width,
                height=first.height,
                output_type="latent" if first.target else "np",
                **asked,
            ).images
            if first.target:
                self._enlarged(first, made, asked)

    def _enlarged(self, first: JobSpec, small: torch.Tensor, asked: dict[str, Any]) -> None:
        from diffusers import AutoPipelineForImage2Image

        strength, second = first.denoising_strength, first.passes[1]
        again = AutoPipelineForImage2Image.from_pipe(self.pipe)
        again.set_progress_bar_config(disable=True)
        size = (second.height // 8, second.width // 8)
        again(
            image=torch.nn.functional.interpolate(small, size, mode="bilinear"),
            strength=strength,
            num_inference_steps=round(second.steps / strength),
            output_type="np",
            **asked,
        )


def _from_single_file(file: AssetFile, dtype: torch.dtype) -> Any:
    import diffusers

    from farm.worker.models.tokenizer import clip_tokenizer

    xl = file.family == "sdxl"
    kind = "StableDiffusionXLPipeline" if xl else "StableDiffusionPipeline"
    extras: dict[str, Any] = {"tokenizer": clip_tokenizer("eos")}
    extras |= (
        {"tokenizer_2": clip_tokenizer("zero")}
        if xl
        else {"safety_checker": None, "feature_extractor": None}
    )
    with tempfile.TemporaryDirectory() as scratch:
        return getattr(diffusers, kind).from_single_file(
            str(file.path),
            config=str(full_size.pipeline_folder(str(file.family), Path(scratch) / "configs")),
            torch_dtype=dtype,
            local_files_only=True,
            **extras,
        )


def timed(work: Callable[[], object], device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize()
    began = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - began


def compare(
    work: Workload,
    farm: Farm,
    peers: dict[str, Pipeline],
    repeats: int,
    *,
    limit: float | None = None,
) -> None:
    """One workload by Farm and by every peer, in turn; ``limit`` is the card's peak."""
    device = farm.device
    pipeline = peers["loop"]
    methods: dict[str, Callable[[], object]] = {"farm": lambda: farm.render(work.jobs)}
    methods |= {name: lambda peer=peer: peer.loop(work.jobs) for name, peer in peers.items()}
    if work.alike and len(work.jobs) > 1:
        methods["batch"] = lambda: pipeline.batch(work.jobs)
    for method in methods.values():
        method()  # kernels and caches
    seconds: dict[str, list[float]] = {name: [] for name in methods}
    pipeline.forwards, before = 0, farm.engine.counters
    for _ in range(repeats):
        for name, method in methods.items():
            seconds[name].append(timed(method, device))
    after, count = farm.engine.counters, len(work.jobs)
    forwards = (after.forwards - before.forwards) / repeats
    rows = (after.rows - before.rows) / max(after.forwards - before.forwards, 1)
    loop_forwards = sum(each.steps for job in work.jobs for each in job.passes)
    busy = (after.busy_seconds - before.busy_seconds) / sum(seconds["farm"])
    print(
        f"\n{work.name}: {forwards:.0f} forwards of {rows:.1f} rows; a loop takes {loop_forwards}; "
        f"busy {busy:.0%}"
    )
    share = ""
    for name, each in seconds.items():
        ratio = statistics.median(
            other / own for own, other in zip(seconds["farm"], each, strict=True)
        )
        speed = count / statistics.median(each)
        spread = f"{min(each):.2f}-{max(each):.2f} s"
        if limit:
            done = sum(card.operations(job, work.family) for job in work.jobs)
            share = f"   {done / statistics.median(each) / limit:6.1%} of peak"
        print(f"  {name:9} {speed:8.3f} images/s  ({spread:>15})   farm is {ratio:.2f}x{share}")


def stream(farm: Farm, peer: Pipeline, specs: Sequence[JobSpec], count: int) -> None:
    """Jobs that arrive at random, at shares of what the engine can do."""
    draw = random.Random(2)
    several = [draw.choice(specs).model_copy(update={"seed": n}) for n in range(count)]
    began = time.perf_counter()
    farm.render(several)
    capacity = count / (time.perf_counter() - began)
    print(f"\nstream of {count} mixed jobs, Poisson arrivals; all at once {capacity:.2f} images/s")
    print("  load   by      images/s      p50      p95   rows a forward   busy")
    for load in (0.5, 0.8, 0.95):
        pauses = [draw.expovariate(load * capacity) for _ in several]
        before = farm.engine.counters
        waits, took = _arrivals(several, pauses, farm.submit)
        after = farm.engine.counters
        rows = (after.rows - before.rows) / (after.forwards - before.forwards)
        busy = (after.busy_seconds - before.busy_seconds) / took
        _print_stream(load, "farm", waits, took, f"{rows:13.1f}   {busy:6.0%}")
        queue = _Queue(peer)
        waits, took = _arrivals(several, pauses, queue.submit)
        queue.stop()
        _print_stream(load, "loop", waits, took, "")


def _arrivals(
    specs: Sequence[JobSpec], pauses: Sequence[float], submit: Callable[[JobSpec], Any]
) -> tuple[list[float], float]:
    """Seconds from arrival to image of each, and of all."""
    waits: list[float] = []
    pending = []
    began = time.perf_counter()
    for spec, pause in zip(specs, pauses, strict=True):
        time.sleep(pause)
        future, arrived = submit(spec), time.perf_counter()
        future.add_done_callback(
            lambda _, arrived=arrived: waits.append(time.perf_counter() - arrived)
        )
        pending.append(future)
    for future in pending:
        future.result()
    return waits, time.perf_counter() - began


class _Queue:
    """A pipeline behind a queue: one image after the other, first come, first served."""

    def __init__(self, peer: Pipeline) -> None:
        from concurrent.futures import ThreadPoolExecutor

        self._pool = ThreadPoolExecutor(1)
        self._peer = peer

    def submit(self, spec: JobSpec) -> Any:
        return self._pool.submit(self._peer.loop, [spec])

    def stop(self) -> None:
        self._pool.shutdown()


def _print_stream(load: float, who: str, waits: list[float], took: float, rest: str) -> None:
    cuts = statistics.quantiles(waits, n=20)
    print(
        f"  {load:4.0%}   {who}   {len(waits) / took:9.2f}   {cuts[9]:6.2f}   {cuts[18]:6.2f}{rest}"
    )


def overhead(slots: int = 16) -> None:
    """What a step costs beside the model: a checkpoint that computes nothing to speak of.

    Seconds of the process, in which other processes do not count. What is there once, compiling
    programs and reading prompts, is in the difference between a long run and one half as long.
    """
    print(f"\nbeside the model at {slots} slots, ms of CPU a step: of the engine's thread, of all")
    print("  sampler                   steady             of 150 steps")
    for sampler in ("Euler", "Euler a", "DPM++ 2M SDE Karras"):
        _beside(sampler, slots, 10)
        half, whole = (_beside(sampler, slots, steps) for steps in (75, 150))
        steady = [1000 * (long - short) / 75 for short, long in zip(half, whole, strict=True)]
        every = [1000 * seconds / 150 for seconds in whole]
        columns = "   ".join(f"{own:6.2f} {both:6.2f}" for own, both in (steady, every))
        print(f"  {sampler:22} {columns}")


def _beside(sampler: str, slots: int, steps: int) -> tuple[float, float]:
    """Seconds of CPU that so many images of so many steps take beside the model: of the engine's
    thread, and of all of the process's."""
    fake = FakeCheckpoint("fake")
    spent = [0.0]
    predict = fake.predict

    def measured(*args: Any, **options: Any) -> Any:
        began = time.thread_time()
        made = predict(*args, **options)
        spent[0] += time.thread_time() - began
        return made

    fake.predict = measured  # type: ignore[method-assign]
    profile = replace(profiles.by_name("cpu"), buckets=(slots * 2,), max_rows=slots * 2)
    profile = replace(profile, rows_at_1024=10**6)
    engine = Engine(FakeModels(fake), profile, torch.device("cpu"))  # type: ignore[arg-type]
    specs = [
        JobSpec(
            checkpoint="fake",
            prompt=str(n),
            width=64,
            height=64,
            steps=steps,
            seed=n,
            sampler=sampler,
        )
        for n in range(slots)
    ]
    began = time.process_time()
    futures = [engine.submit(str(n), spec) for n, spec in enumerate(specs)]
    with engine:
        for future in futures:
            future.result()
        # As a thread begins with no seconds, this is all it has had.
        own = engine._loop.between(time.thread_time)
        return own - spent[0], time.process_time() - began - spent[0]


def memory(files: Sequence[AssetFile], device: torch.device, failed: list[str]) -> None:
    """Peaks under the caps of smaller cards, against what the planner said."""
    total = torch.cuda.get_device_properties(device).total_memory
    print("\nprofile   workload           measured    predicted    ratio")
    for name in ("24gb", "12gb", "8gb", "4gb"):
        profile = profiles.by_name(name)
        torch.cuda.set_per_process_memory_fraction(min(1.0, profile.memory_bytes / total))
        for family, side in CAPPED:
            if name != "4gb" or family != "sdxl":
                with told_if_it_fails(f"{family} {side} in {name}", failed):
                    _peak(files, profile, device, (family, side))
    torch.cuda.set_per_process_memory_fraction(1.0)


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
            f"{profile.name:9} {family} {side}, {rows:2} rows   {measured / GIB:7.2f} GiB"
            f"   {said / GIB:7.2f} GiB   {said / measured:.3f}"
        )
    finally:
        farm.engine.stop()


@contextmanager
def told_if_it_fails(name: str, failed: list[str]) -> Iterator[None]:
    """What fails in the block is told, and the rest goes on."""
    try:
        yield
    except Exception as error:
        failed.append(name)
        print(f"\n{name} failed: {error!r}")
        traceback.print_exc()
        traceback.clear_frames(error.__traceback__)  # and what they hold of the card
    finally:
        sys.stdout.flush()
        if torch.cuda.is_initialized():
            torch.cuda.empty_cache()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--jobs", type=int, default=40, help="of the stream")
    parser.add_argument("--compiled", action="store_true", help="a compiled peer too")
    parser.add_argument(
        "--only", nargs="*", help="words that a workload's name begins with; or overhead"
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
    chosen = [
        work
        for work in workloads(device.type)
        if not told.only or any(work.name.startswith(word) for word in told.only)
    ]
    for family in dict.fromkeys(work.family for work in chosen):
        with told_if_it_fails(family, failed):
            file = next(file for file in files if file.name == family)
            peers, farm = _peers(file, told, device, dtype), Farm(files, profile, device)
            for work in (each for each in chosen if each.family == family):
                with told_if_it_fails(work.name, failed):
                    compare(work, farm, peers, told.repeats, limit=limit)
            if not told.only:
                with told_if_it_fails(f"stream of {family}", failed):
                    specs = mixed(family, 16, STREAMED[device.type])
                    stream(farm, peers["loop"], specs, told.jobs)
            farm.engine.stop()
            del farm, peers
    if not told.only or "overhead" in told.only:
        with told_if_it_fails("overhead", failed):
            overhead()
    if on_card and not told.only:
        memory(files, device, failed)
    return failed


def _peers(
    file: AssetFile, told: argparse.Namespace, device: torch.device, dtype: torch.dtype
) -> dict[str, Pipeline]:
    peers = {"loop": Pipeline(file, device, dtype)}
    if told.compiled:
        peers["compiled"] = Pipeline(file, device, dtype)
        peers["compiled"].pipe.unet = torch.compile(peers["compiled"].pipe.unet)
    return peers


def _files(device: torch.device, folder: Path) -> list[AssetFile]:
    if device.type == "cpu":
        return scan([builtin_folder()])
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
    packages = ", ".join(f"{each} {version(each)}" for each in ("torch", "diffusers"))
    print(f"{name}, {dtype}, profile {profile.name}; {packages}")


if __name__ == "__main__":
    main()
