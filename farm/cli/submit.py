"""farm submit: a prompt or a batch file becomes a batch."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from farm.cli import output, progress
from farm.cli.batches import AsJson, exit_code, outcome
from farm.cli.download import fetch
from farm.client import Batch, Farm
from farm.errors import InvalidInput
from farm.spec.axes import by_field, parse_values
from farm.spec.batch import BatchRequest, freeze
from farm.spec.batchfile import IMAGES, read
from farm.spec.fields import MAX_STEPS
from farm.spec.linefile import SUFFIXES, LineFile
from farm.spec.listing import freeze_listed
from farm.spec.output import FORMATS
from farm.spec.problems import validated

_SUFFIXES = (".yaml", ".yml", ".json", ".txt", *IMAGES)


def _option(*names: str, help: str) -> Any:
    return typer.Option(*names, help=help, show_default=False)


What = Annotated[
    str,
    typer.Argument(
        metavar="PROMPT|FILE",
        help="A prompt, or a batch file: .yaml, .json, .ndjson, prompts in a .txt; or an image.",
    ),
]
Count = Annotated[int | None, _option("--count", "-n", help="Images of each cell, seeds in a row.")]
Checkpoint = Annotated[
    str | None, _option("--checkpoint", "-c", help="A model's name; `farm workers` lists them.")
]
Negative = Annotated[str | None, _option("--negative-prompt", "-N", help="What must not be seen.")]
Width = Annotated[int | None, _option("--width", "-W", help="Pixels, a multiple of 8.")]
Height = Annotated[int | None, _option("--height", "-H", help="Pixels, a multiple of 8.")]
Steps = Annotated[int | None, _option("--steps", "-s", help=f"1 to {MAX_STEPS}.")]
Sampler = Annotated[
    str | None, _option("--sampler", help='Such as "Euler a"; docs/samplers.md lists them.')
]
Guidance = Annotated[float | None, _option("--cfg-scale", help="Guidance, 0 to 30.")]
HiresScale = Annotated[
    float | None, _option("--hires-scale", help="Hires fix: made anew, 1 to 4 times as large.")
]
HiresUpscaler = Annotated[
    str | None, _option("--hires-upscaler", help='Such as "Latent" or "Lanczos".')
]
HiresSteps = Annotated[
    int | None, _option("--hires-steps", help="Of the second pass; 0: as many as the first.")
]
Strength = Annotated[
    float | None, _option("--denoising-strength", help="How much it makes anew, 0 to 1.")
]
Seed = Annotated[int | None, _option("--seed", help="-1 draws one at random.")]
Strict = Annotated[
    bool | None, _option("--strict", help="Bit-equal images whatever else is running.")
]
Axes = Annotated[
    list[str] | None,
    _option("--axis", "-x", help='FIELD=VALUES, such as "steps=10-30(+10)"; repeatable.'),
]
Priority = Annotated[
    str | None, _option("--priority", help="interactive, normal, background, or 0 to 100.")
]
Format = Annotated[
    str | None, _option("--format", "-f", help=f"Of the images: {', '.join(FORMATS)}.")
]
Quality = Annotated[int | None, _option("--quality", help="1 to 100, for webp, jpeg and avif.")]
Lossless = Annotated[bool, typer.Option("--lossless", help="Of webp: each pixel is kept.")]
Tags = Annotated[list[str] | None, _option("--tag", help="That a worker must have; repeatable.")]
WaitForWorker = Annotated[
    bool,
    typer.Option(
        "--wait-for-worker", help="Accept it though no worker can make it: one that can is to come."
    ),
]
Name = Annotated[str | None, _option("--name", help="To know it again in `farm ls`.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Only check and count; needs no farm.")]
Watch = Annotated[
    bool, typer.Option("--watch", "-w", help="Follow it; exit with 1 if an image is missing.")
]
Download = Annotated[
    Path | None, _option("--download", "-o", help="Wait, then save the images in this folder.")
]


def submit(
    what: What,
    *,
    count: Count = None,
    checkpoint: Checkpoint = None,
    negative_prompt: Negative = None,
    width: Width = None,
    height: Height = None,
    steps: Steps = None,
    sampler: Sampler = None,
    cfg_scale: Guidance = None,
    hires_scale: HiresScale = None,
    hires_upscaler: HiresUpscaler = None,
    hires_steps: HiresSteps = None,
    denoising_strength: Strength = None,
    seed: Seed = None,
    strict: Strict = None,
    axis: Axes = None,
    format: Format = None,
    quality: Quality = None,
    lossless: Lossless = False,
    priority: Priority = None,
    tag: Tags = None,
    wait_for_worker: WaitForWorker = False,
    name: Name = None,
    dry_run: DryRun = False,
    watch: Watch = False,
    download: Download = None,
    as_json: AsJson = False,
) -> None:
    """Submit a batch of images.

    Options override what a batch file says; axes multiply, and count images are made of each
    cell. What is left out takes the checkpoint's own defaults. Examples:

    farm submit "a red apple" -n 4 --watch

    farm submit "a lion" -x "steps=10-30(+10)" -x "sampler=Euler a,DPM++ 2M Karras" -o lions

    farm submit examples/sweep.yaml --format webp --quality 80 --dry-run

    farm submit "a lion" --hires-scale 2 -x "denoising_strength=0.1-0.5(+0.1)" -o large

    farm submit jobs.ndjson --name mine

    farm submit image.png --steps 40
    """
    options = {
        "name": name,
        "checkpoint": checkpoint,
        "negative_prompt": negative_prompt,
        "width": width,
        "height": height,
        "steps": steps,
        "sampler": sampler,
        "cfg_scale": cfg_scale,
        "hires_scale": hires_scale,
        "hires_upscaler": hires_upscaler,
        "hires_steps": hires_steps,
        "denoising_strength": denoising_strength,
        "seed": seed,
        "strict": strict,
        "count": count,
        "output": output_of(format, quality, lossless=lossless),
        "priority": int(priority) if priority and priority.isdecimal() else priority,
        "tags": tag,
        "wait_for_worker": wait_for_worker or None,
    }
    if what.lower().endswith(SUFFIXES):
        given = {**options, "axes": axis or None}
        lines = LineFile(what, {name: each for name, each in given.items() if each is not None})
        if dry_run:
            _counted_out(lines.count(), {}, as_json)
            return
        accept = partial(Farm.submit_lines, lines=lines.__iter__)
    else:
        request = request_of(what, options, axis or [])
        if dry_run:
            _dry_run(request, as_json)
            return
        accept = partial(Farm.submit, request=request)
    _send(accept, watch=watch, download=download, as_json=as_json)


def output_of(format: str | None, quality: int | None, *, lossless: bool) -> dict[str, Any] | None:
    """The file format that the options ask for, or None."""
    told = {"quality": quality, "lossless": lossless or None}
    rest = {name: value for name, value in told.items() if value is not None}
    if format is None and rest:
        name = next(iter(rest))
        raise InvalidInput(
            f"--{name} goes with --format.",
            field=name,
            value=rest[name],
            remedy="Say of which format, such as --format webp.",
        )
    return {"format": format, **rest} if format else None


def request_of(what: str, options: dict[str, Any], axes: list[str]) -> dict[str, Any]:
    """The request that the command's arguments make.

    Raises:
        InvalidInput: a field or the batch file is wrong.
    """
    from_file = what.lower().endswith(_SUFFIXES)
    request: dict[str, Any] = read(what) if from_file else {"prompt": what}
    request |= {name: value for name, value in options.items() if value is not None}
    validated(BatchRequest, request)
    if axes:
        request["axes"] = {**request.get("axes", {}), **dict(map(_axis, axes))}
    validated(BatchRequest, request)
    return request


def _send(
    accept: Callable[[Farm], Batch], *, watch: bool, download: Path | None, as_json: bool
) -> None:
    with Farm() as farm:
        batch = accept(farm)
        for notice in batch.data["notices"]:
            typer.echo(notice, err=True)
        if not (watch or download):
            _accepted(batch.data, as_json)
            return
        progress.follow(batch)
        saved = fetch(batch, download) if download else {}
        if as_json:
            output.print_json({**batch.data, **saved})
        else:
            outcome(batch)
            if saved:
                output.console().print(f"{saved['images']} images in {download}", markup=False)
    raise typer.Exit(exit_code(batch))


def _axis(text: str) -> tuple[str, str]:
    field, equals, values = text.partition("=")
    if not equals or not field.strip():
        raise InvalidInput(
            f"--axis {text!r} has no field and values.",
            field="axis",
            value=text,
            remedy='Write FIELD=VALUES, such as "steps=10-30(+10)" or "sampler=Euler,Euler a".',
        )
    return field.strip(), values


def _dry_run(request: dict[str, Any], as_json: bool) -> None:
    total, axes = _counted(validated(BatchRequest, request))
    _counted_out(total, axes, as_json, each=request.get("count", 1))


def _counted_out(total: int, axes: dict[str, int], as_json: bool, *, each: int = 1) -> None:
    if as_json:
        output.print_json({"total": total, "axes": axes})
        return
    sizes = [f"{values} {field}" for field, values in axes.items()]
    product = f" = {' x '.join(sizes)} x {each} each" if sizes else ""
    output.console().print(f"{output.jobs(total)}{product}. Nothing was submitted.", markup=False)


def _counted(request: BatchRequest) -> tuple[int, dict[str, int]]:
    """Jobs in all and values on each axis; every field is checked but the checkpoints' names."""
    axes = by_field(request.axes)
    if request.checkpoint is None and "checkpoint" not in axes:
        request = request.model_copy(update={"checkpoint": "any"})
    named: list[Any] = [request.checkpoint, request.hires_checkpoint]
    for field in ("checkpoint", "hires_checkpoint"):
        named += [job.get(field) for job in request.jobs or []]
        named += parse_values(field, axes[field]) if field in axes else []
    defaults = {str(name): {"width": 512, "height": 512} for name in named if name}
    if request.jobs is not None:
        return len(freeze_listed(request, defaults)), {}
    spec = freeze(request, defaults)
    return spec.total, {field: len(values) for field, values in spec.axes}


def _accepted(data: dict[str, Any], as_json: bool) -> None:
    if as_json:
        output.print_json(data)
        return
    accepted = f"batch {data['id']}: {output.jobs(data['total'])} accepted."
    output.console().print(f"{accepted} Follow it: farm watch {data['id']}")
