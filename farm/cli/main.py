"""The command line: what commands there are, and how an error ends one.

A command's module is imported when that command runs, so that ``farm --help`` is instant.
"""

from __future__ import annotations

import importlib
from typing import Annotated, Any, NamedTuple

import typer
from typer.core import TyperCommand, TyperGroup

from farm import __version__
from farm.errors import FarmError, NotFound, Unavailable

BAD_INPUT, NOT_FOUND, UNAVAILABLE, FAILED, INTERRUPTED = 2, 3, 4, 1, 130
"""Exit codes; 0 is success."""


class _Lazy(NamedTuple):
    where: str
    help: str
    panel: str


_MAKE, _FARM, _PROCESSES = "Make images", "Run a farm", "Single processes of a larger farm"
_COMMANDS = {
    "demo": _Lazy("farm.cli.demo:demo", "Make a batch of pictures and a contact sheet.", _MAKE),
    "submit": _Lazy("farm.cli.submit:submit", "Submit a prompt or a batch file.", _MAKE),
    "quote": _Lazy("farm.cli.quote:quote", "Say what a batch would take.", _MAKE),
    "ls": _Lazy("farm.cli.batches:ls", "List batches, newest first.", _MAKE),
    "show": _Lazy("farm.cli.show:show", "Show a batch or a job.", _MAKE),
    "why": _Lazy("farm.cli.batches:why", "Say why a job is where it is.", _MAKE),
    "watch": _Lazy("farm.cli.batches:watch", "Follow a batch until it has ended.", _MAKE),
    "cancel": _Lazy("farm.cli.batches:cancel", "Cancel batches; images made so far stay.", _MAKE),
    "pause": _Lazy("farm.cli.batches:pause", "Begin no more jobs of batches.", _MAKE),
    "resume": _Lazy("farm.cli.batches:resume", "Go on with paused batches.", _MAKE),
    "prio": _Lazy("farm.cli.batches:prio", "Change a batch's priority.", _MAKE),
    "failed": _Lazy("farm.cli.failures:failed", "List jobs that have failed, and why.", _MAKE),
    "retry": _Lazy("farm.cli.failures:retry", "Try failed jobs again.", _MAKE),
    "download": _Lazy("farm.cli.download:download", "Save a batch's images.", _MAKE),
    "info": _Lazy("farm.cli.info:info", "Read what made an image out of its file.", _MAKE),
    "prompt": _Lazy("farm.cli.prompt:prompt", "Explain what a prompt means.", _MAKE),
    "up": _Lazy("farm.cli.up:up", "Run a whole farm on this machine.", _FARM),
    "down": _Lazy("farm.cli.down:down", "Stop the farm of this machine.", _FARM),
    "workers": _Lazy(
        "farm.cli.workers:workers", "List workers; drain, resume or trace one.", _FARM
    ),
    "usage": _Lazy("farm.cli.usage:usage", "Show what GPUs spent their seconds on.", _FARM),
    "share": _Lazy("farm.cli.share:share", "Show or change users' parts of the farm.", _FARM),
    "prune": _Lazy("farm.cli.prune:prune", "Remove old batches and their images.", _FARM),
    "keep": _Lazy("farm.cli.prune:keep", "Keep batches, however old.", _FARM),
    "model": _Lazy("farm.cli.model:model", "List, add, warm and evict model files.", _FARM),
    "simulate": _Lazy(
        "farm.cli.simulate:simulate", "Say what would become of a trace of work.", _FARM
    ),
    "doctor": _Lazy("farm.cli.doctor:doctor", "Check this machine, and say what to do.", _FARM),
    "worker": _Lazy("farm.cli.processes:worker", "Run workers on this host's GPUs.", _PROCESSES),
    "api": _Lazy("farm.cli.processes:api", "Run the API.", _PROCESSES),
    "dispatcher": _Lazy("farm.cli.processes:dispatcher", "Run the dispatcher.", _PROCESSES),
    "migrate": _Lazy("farm.cli.processes:migrate", "Bring the database up to date.", _PROCESSES),
    "key": _Lazy("farm.cli.key:key", "Issue an API key.", _PROCESSES),
}


class _Commands(TyperGroup):
    """Commands by name; each is only a line of help until it is run."""

    def __init__(self, **attributes: Any) -> None:
        super().__init__(**attributes)
        for name, lazy in _COMMANDS.items():
            self.add_command(TyperCommand(name, help=lazy.help, rich_help_panel=lazy.panel))

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        name, found, rest = super().resolve_command(ctx, args)
        return name, _load(name) if name in _COMMANDS else found, rest

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except FarmError as error:
            _explain(error)
            raise typer.Exit(exit_code(error)) from error
        except KeyboardInterrupt:
            raise typer.Exit(INTERRUPTED) from None


def _load(name: str) -> Any:
    module, _, attribute = _COMMANDS[name].where.partition(":")
    found = getattr(importlib.import_module(module), attribute)
    if isinstance(found, typer.Typer):
        return typer.main.get_command(found)
    alone = typer.Typer(add_completion=False, rich_markup_mode="markdown")
    alone.command(name)(found)
    return typer.main.get_command(alone)


def _explain(error: FarmError) -> None:
    typer.secho(error.message, fg="red", err=True)
    if error.remedy:
        typer.echo(error.remedy, err=True)


def exit_code(error: FarmError) -> int:
    """What the process that met this error exits with."""
    if isinstance(error, NotFound):
        return NOT_FOUND
    if isinstance(error, Unavailable):
        return UNAVAILABLE
    return BAD_INPUT if error.status == 422 else FAILED


def _version(asked: bool) -> None:
    if asked:
        typer.echo(f"farm {__version__}")
        raise typer.Exit


app = typer.Typer(
    cls=_Commands,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
)


@app.callback()
def _farm(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_version, is_eager=True, help="Show it and exit."),
    ] = False,
) -> None:
    """A render farm for Stable Diffusion: batches go in, images and statistics come out.

    Begin with `farm demo`, or with `farm up` and, in another terminal,
    `farm submit "a red apple" -n 4 --watch`.
    """


def main() -> None:
    app()


if __name__ == "__main__":
    main()
