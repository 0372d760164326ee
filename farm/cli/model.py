"""farm model: checkpoints, LoRAs and the other files of the farm."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Annotated, Any

import typer

from farm.cli import output
from farm.cli.output import AsJson
from farm.client import Farm
from farm.errors import Conflict, InvalidInput, SetupError

model = typer.Typer(add_completion=False, no_args_is_help=True, rich_markup_mode="markdown")

Name = Annotated[str, typer.Argument(help="A checkpoint, as `farm model ls` shows it.")]
Worker = Annotated[str | None, typer.Option("--worker", "-w", help="Only this worker.")]


@model.callback()
def _model() -> None:
    """Model files: what there is, add one, load one ahead, let one go."""


@model.command()
def ls(
    kind: Annotated[
        str | None, typer.Argument(help="Only this kind: checkpoint, lora, vae, embedding, ...")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """List the files that workers can use, and what is wrong with those they cannot.

    Examples: farm model ls | farm model ls lora
    """
    with Farm() as farm:
        found = farm.assets(kind)
    if as_json:
        output.print_json({"assets": found})
        return
    screen = output.console()
    if not found:
        screen.print("No worker has seen such a file. Add one with `farm model add`.")
        return
    columns = ("kind", "name", "hash", "family", ">size", "dtype", "in memory of")
    good = [asset for asset in found if not asset["error"]]
    screen.print(output.table("", columns, map(_row, good)))
    for asset in found:
        if asset["error"]:
            line = f"{asset['kind']} {asset['name']} cannot be used: {asset['error']}"
            screen.print(line, markup=False)
        elif asset["differs"]:
            line = f"{asset['kind']} {asset['name']} is another file on another host"
            screen.print(line, markup=False)


@model.command()
def show(
    kind: Annotated[str, typer.Argument(help="checkpoint, lora, vae, embedding, ...")],
    name: Annotated[str, typer.Argument(help="Its name, as `farm model ls` shows it.")],
    as_json: AsJson = False,
) -> None:
    """Show one file: its hashes, its maker's metadata, the hosts that have it.

    Example: farm model show checkpoint demo
    """
    with Farm() as farm:
        found = farm.asset(kind, name)
    if as_json:
        output.print_json(found)
        return
    screen = output.console()
    told = ("kind", "name", "family", "dtype", "sha256", "error")
    rows = [(field, found[field]) for field in told if found[field]]
    rows += [("size", output.size(found["bytes"])), ("in memory of", _holders(found))]
    rows += [(f"on {file['host']}", file["error"] or "usable") for file in found["files"]]
    rows += sorted(found["metadata"].items())
    screen.print(output.table("", ("", ""), rows))


@model.command()
def warm(name: Name, worker: Worker = None) -> None:
    """Have workers load a checkpoint ahead of its jobs.

    Example: farm model warm anime/v3 --worker gpu0
    """
    with Farm() as farm:
        told = farm.warm(name, worker=worker)
    typer.echo(f"{', '.join(told)} will load {name}.")


@model.command()
def evict(name: Name, worker: Worker = None) -> None:
    """Have workers let go of a checkpoint, unless they compute with it.

    Example: farm model evict anime/v2
    """
    with Farm() as farm:
        told = farm.evict(name, worker=worker)
    typer.echo(f"{', '.join(told)} will let go of {name}.")


@model.command()
def add(
    source: Annotated[
        str,
        typer.Argument(
            metavar="FILE",
            help="A .safetensors file, a diffusers folder, or hub:owner/name[/file].",
        ),
    ],
    kind: Annotated[str, typer.Option("--kind", "-k", help="What it is.")] = "checkpoint",
    name: Annotated[str | None, typer.Option(help="Another name than the file's.")] = None,
) -> None:
    """Check a file and copy it, with its sidecars, into this host's model folder.

    Workers find it by themselves. Nothing is ever fetched from the hub but what is named here.

    Examples: farm model add ~/Downloads/anime.safetensors | farm model add x.safetensors -k lora
    """
    from farm.settings import Settings
    from farm.worker.models.catalogue import SIDECARS
    from farm.worker.models.kinds import KINDS, MAIN_FOLDERS

    if kind not in KINDS:
        raise InvalidInput(
            f"{kind!r} is no kind of file.", field="kind", value=kind, remedy=", ".join(KINDS)
        )
    file, within = _fetched(source)
    _check(file, kind, within)
    root = Settings().models[0]
    suffix = "" if file.is_dir() else file.suffix
    plain = source.split("/")[1] if within and file.is_dir() else file.name.removesuffix(suffix)
    target = root / MAIN_FOLDERS[kind] / f"{name or plain}{suffix}"
    if not target.resolve().is_relative_to(root.resolve()):
        raise InvalidInput(
            f"{name!r} leads out of the model folder.",
            field="name",
            value=name,
            remedy="Give a plain name, or one such as folder/name.",
        )
    if target.exists():
        raise Conflict(
            f"{target} is already there.", field="file", remedy="Give another --name, or remove it."
        )
    beside = [file.with_suffix(sidecar) for sidecar in SIDECARS if suffix]
    for sidecar in filter(Path.exists, beside):
        _copy(sidecar, target.with_suffix(sidecar.suffix))
    _copy(file, target)
    typer.echo(f"{target}\nWorkers on this host will list it within a quarter of a minute.")


def _fetched(source: str) -> tuple[Path, list[Path]]:
    """Where the file lies, and the folders that its links may lead into."""
    from farm.worker.models import hub

    if not hub.is_hub(source):
        return Path(source), []
    typer.echo(f"Fetching {source}")
    path = hub.fetch(source)
    # The hub's cache keeps every file once, and links to it.
    return path, [folder for folder in path.parents if (folder / "blobs").is_dir()]


def _check(file: Path, kind: str, within: list[Path]) -> None:
    """Refuse what no worker could use, before it is copied."""
    from farm.worker.models.catalogue import examine

    if not file.exists():
        raise InvalidInput(f"There is no {file}.", field="file", value=str(file))
    found = examine(file, kind, within=within)
    if found.error:
        raise InvalidInput(found.error, field="file", value=str(file))
    what = ", ".join(filter(None, (kind, found.family, found.dtype, output.size(found.bytes))))
    typer.echo(f"{file.name}: {what}")


def _copy(file: Path, target: Path) -> None:
    """Under another name first, so that no worker meets half a file."""
    half = target.with_name(f".{target.name}.part")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        if file.is_dir():
            shutil.copytree(file, half, dirs_exist_ok=True)
        else:
            shutil.copyfile(file, half)
        os.replace(half, target)
    except OSError as error:
        raise SetupError(
            f"{target} could not be written: {error.strerror}.",
            field="file",
            value=str(target),
            remedy="Check the space and the permissions of the model folder.",
        ) from error
    finally:
        _discard(half)


def _discard(half: Path) -> None:
    if half.is_dir():
        shutil.rmtree(half, ignore_errors=True)
    else:
        half.unlink(missing_ok=True)


def _row(asset: dict[str, Any]) -> tuple[Any, ...]:
    return (
        asset["kind"],
        asset["name"],
        asset["short_hash"],
        asset["family"],
        output.size(asset["bytes"]),
        asset["dtype"],
        _holders(asset),
    )


def _holders(asset: dict[str, Any]) -> str:
    return ", ".join(f"{held['worker']} ({held['where']})" for held in asset["held_by"])
