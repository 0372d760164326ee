"""farm submit: a prompt or a batch file becomes a batch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from farm.cli import output, progress
from farm.cli.download import fetch
from farm.cli.output import AsJson
from farm.cli.request import Asked, of_a_batch, option
from farm.cli.show import exit_code, outcome
from farm.client import Batch, Farm
from farm.spec.axes import by_field, parse_values
from farm.spec.batch import BatchRequest, freeze
from farm.spec.linefile import LineFile
from farm.spec.listing import freeze_listed
from farm.spec.problems import validated

Name = Annotated[
    str | None, typer.Option("--name", help="To know it again in `farm ls`.", show_default=False)
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Only check and count; needs no farm.")]
Watch = Annotated[
    bool, typer.Option("--watch", "-w", help="Follow it; exit with 1 if an image is missing.")
]
Download = Annotated[
    Path | None, option("--download", "-o", help="Wait, then save the images in this folder.")
]


@of_a_batch
def submit(
    asked: Asked,
    *,
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
    if name is not None:
        asked = replace(asked, fields={**asked.fields, "name": name})
    if asked.listed:
        axes = {"axes": asked.axes} if asked.axes else {}
        lines = LineFile(asked.what, {**asked.fields, **axes})
        if dry_run:
            _counted_out(lines.count(), {}, as_json)
            return
        accept = partial(Farm.submit_lines, lines=lines.__iter__)
    else:
        request = asked.request()
        if dry_run:
            _dry_run(request, as_json)
            return
        accept = partial(Farm.submit, request=request)
    _send(accept, watch=watch, download=download, as_json=as_json)


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
