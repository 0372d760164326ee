"""The options that say what a batch is: the same for all commands that take one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from inspect import signature
from typing import Annotated, Any

import typer

from farm.errors import InvalidInput
from farm.spec.batch import BatchRequest
from farm.spec.batchfile import IMAGES, read
from farm.spec.fields import MAX_STEPS
from farm.spec.hires import HIRES_SIZES, SECOND_PASS
from farm.spec.linefile import SUFFIXES
from farm.spec.output import FORMATS
from farm.spec.problems import validated

_SUFFIXES = (".yaml", ".yml", ".json", ".txt", *IMAGES)


def option(*names: str, help: str) -> Any:
    """One that nothing is said for by default."""
    return typer.Option(*names, help=help, show_default=False)


What = Annotated[
    str,
    typer.Argument(
        metavar="PROMPT|FILE",
        help="A prompt, or a batch file: .yaml, .json, .ndjson, prompts in a .txt; or an image.",
    ),
]
Count = Annotated[int | None, option("--count", "-n", help="Images of each cell, seeds in a row.")]
Checkpoint = Annotated[
    str | None, option("--checkpoint", "-c", help="A model's name; `farm model ls` lists them.")
]
Negative = Annotated[str | None, option("--negative-prompt", "-N", help="What must not be seen.")]
Width = Annotated[int | None, option("--width", "-W", help="Pixels, a multiple of 8.")]
Height = Annotated[int | None, option("--height", "-H", help="Pixels, a multiple of 8.")]
Steps = Annotated[int | None, option("--steps", "-s", help=f"1 to {MAX_STEPS}.")]
Sampler = Annotated[
    str | None, option("--sampler", help='Such as "Euler a"; docs/samplers.md lists them.')
]
Guidance = Annotated[float | None, option("--cfg-scale", help="Guidance, 0 to 30.")]
HiresScale = Annotated[
    float | None, option("--hires-scale", help="Hires fix: made anew, 1 to 4 times as large.")
]
HiresUpscaler = Annotated[
    str | None, option("--hires-upscaler", help='Such as "Latent", "Lanczos", or a model by name.')
]
HiresSteps = Annotated[
    int | None, option("--hires-steps", help="Of the second pass; 0: as many as the first.")
]
Strength = Annotated[
    float | None, option("--denoising-strength", help="How much it makes anew, 0 to 1.")
]
Seed = Annotated[int | None, option("--seed", help="-1 draws one at random.")]
Strict = Annotated[
    bool | None, option("--strict", help="Bit-equal images whatever else is running.")
]
Axes = Annotated[
    list[str] | None,
    option("--axis", "-x", help='FIELD=VALUES, such as "steps=10-30(+10)"; repeatable.'),
]
Priority = Annotated[
    str | None, option("--priority", help="interactive, normal, background, or 0 to 100.")
]
Format = Annotated[
    str | None, option("--format", "-f", help=f"Of the images: {', '.join(FORMATS)}.")
]
Quality = Annotated[int | None, option("--quality", help="1 to 100, for webp, jpeg and avif.")]
Lossless = Annotated[bool, typer.Option("--lossless", help="Of webp: each pixel is kept.")]
Tags = Annotated[list[str] | None, option("--tag", help="That a worker must have; repeatable.")]
WaitForWorker = Annotated[
    bool,
    typer.Option(
        "--wait-for-worker", help="Accept it though no worker can make it: one that can is to come."
    ),
]


@dataclass(frozen=True)
class Asked:
    """What a command was asked for.

    Attributes:
        what: a prompt, or a file's path.
        fields: of a batch, those that were given.
        axes: ``FIELD=VALUES``.
    """

    what: str
    fields: dict[str, Any]
    axes: list[str]

    @property
    def listed(self) -> bool:
        """Whether it is a file of jobs, one a line."""
        return self.what.lower().endswith(SUFFIXES)

    def request(self) -> dict[str, Any]:
        """The request that they make.

        Raises:
            InvalidInput: a field or the batch file is wrong.
        """
        from_file = self.what.lower().endswith(_SUFFIXES)
        request: dict[str, Any] = read(self.what) if from_file else {"prompt": self.what}
        request = {**_overridden(request, self.fields), **self.fields}
        validated(BatchRequest, request)
        if self.axes:
            request["axes"] = {**request.get("axes", {}), **dict(map(_axis, self.axes))}
        validated(BatchRequest, request)
        return request


def _overridden(request: dict[str, Any], fields: dict[str, Any]) -> dict[str, Any]:
    """What a file says that these fields do not contradict: a scale of the second pass counts
    instead of the file's size, and scale 1 means that there is none to say anything of."""
    if "hires_scale" not in fields:
        return request
    gone = {*HIRES_SIZES, *(SECOND_PASS if fields["hires_scale"] == 1 else ())}
    return {name: value for name, value in request.items() if name not in gone}


def of_a_batch(command: Callable[..., None]) -> Callable[..., None]:
    """Have a command take all these options: it is given an :class:`Asked`, then its own."""
    shared, own = signature(_asked, eval_str=True), signature(command, eval_str=True)
    rest = list(own.parameters.values())[1:]

    @wraps(command)
    def taking(**given: Any) -> None:
        told = {name: given.pop(name) for name in shared.parameters}
        command(_asked(**told), **given)

    taken = own.replace(parameters=[*shared.parameters.values(), *rest])
    taking.__signature__ = taken  # type: ignore[attr-defined]
    taking.__annotations__ = {each.name: each.annotation for each in taken.parameters.values()}
    return taking


def _asked(
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
) -> Asked:
    told = {
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
        "output": _output(format, quality, lossless=lossless),
        "priority": priority,
        "tags": tag,
        "wait_for_worker": wait_for_worker or None,
    }
    return Asked(what, {name: each for name, each in told.items() if each is not None}, axis or [])


def _output(format: str | None, quality: int | None, *, lossless: bool) -> dict[str, Any] | None:
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
