"""The command line: every command is there, nothing is imported early, errors end it well."""

from __future__ import annotations

import importlib
import inspect
import subprocess
import sys
from types import SimpleNamespace

import pytest
from typer.testing import CliRunner

from farm import __version__, errors
from farm.cli import main, output

MAKE = ["demo", "submit", "ls", "show", "why", "watch", "cancel", "download", "prompt"]
MAKE += ["pause", "resume", "prio"]
MAKE += ["quote", "failed", "retry", "info"]
FARM = ["up", "down", "key", "share", "workers", "model", "doctor", "worker", "api", "dispatcher"]
FARM += ["migrate"]
FARM += ["usage", "prune", "keep", "simulate"]
COMMANDS = [*MAKE, *FARM]

runner = CliRunner()


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """`farm probe`, whose body each test gives."""
    module = SimpleNamespace(run=None)

    def probe(name: str = "x") -> None:
        """What the probe does."""
        module.run(name)

    monkeypatch.setitem(sys.modules, "farm.cli.probe", SimpleNamespace(probe=probe))
    monkeypatch.setitem(
        main._COMMANDS, "probe", main._Lazy("farm.cli.probe:probe", "Probe.", "Make images")
    )
    return module


def test_help_names_every_command() -> None:
    shown = runner.invoke(main.app, ["--help"]).output
    assert set(COMMANDS) == set(main._COMMANDS)
    for name in COMMANDS:
        assert f"│ {name} " in shown


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_is_a_function_with_help(name: str) -> None:
    module, _, function = main._COMMANDS[name].where.partition(":")
    assert inspect.getdoc(getattr(importlib.import_module(module), function))
    assert runner.invoke(main.app, [name, "--help"]).exit_code == 0


@pytest.mark.parametrize("words", [[name] for name in COMMANDS] + [["prompt", "explain"]])
def test_help_shows_prompts_as_they_are_written(words: list[str]) -> None:
    assert max(runner.invoke(main.app, [*words, "--help"]).output) < "\U00010000"  # no emoji


def test_a_prompt_is_shown_as_it_was_written(capsys: pytest.CaptureFixture[str]) -> None:
    written = "a [cat:dog:0.5] on [red]grass[/red]"
    output.console().print(written, markup=False)
    output.console().print(output.table("", ["prompt"], [[written]]))
    assert capsys.readouterr().out.count(written) == 2


def test_help_imports_no_command() -> None:
    code = (
        "import sys\nfrom farm.cli.main import app\n"
        "try: app(['--help'])\nexcept SystemExit: pass\n"
        "print(*(name for name in sys.modules), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = set(done.stderr.split())
    assert {name for name in loaded if name.startswith("farm")} == {
        "farm",
        "farm.cli",
        "farm.cli.main",
        "farm.errors",
    }
    assert not loaded & {"httpx", "pydantic", "sqlalchemy", "torch"}


def test_version() -> None:
    assert runner.invoke(main.app, ["--version"]).output.strip() == f"farm {__version__}"


def test_a_misspelt_command_is_corrected() -> None:
    done = runner.invoke(main.app, ["sumbit"])
    assert done.exit_code == 2
    assert "Did you mean 'submit'" in done.output


def test_a_command_gets_its_options(command: SimpleNamespace) -> None:
    got = []
    command.run = got.append
    assert runner.invoke(main.app, ["probe", "--name", "y"]).exit_code == 0
    assert got == ["y"]


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (errors.InvalidInput, 2),
        (errors.CheckpointError, 2),
        (errors.DoesNotFit, 2),
        (errors.NotFound, 3),
        (errors.Unavailable, 4),
        (errors.SetupError, 1),
        (errors.Conflict, 1),
        (errors.Unauthorized, 1),
        (errors.FarmError, 1),
    ],
)
def test_an_error_is_told_with_its_remedy(
    command: SimpleNamespace, error: type[errors.FarmError], code: int
) -> None:
    def fail(_: str) -> None:
        raise error("It is [not] so.", remedy="Make it so.")

    command.run = fail
    done = runner.invoke(main.app, ["probe"])
    assert done.exit_code == code
    assert done.stderr == "It is [not] so.\nMake it so.\n"
    assert done.stdout == ""


def test_ctrl_c_ends_with_130(command: SimpleNamespace) -> None:
    def interrupt(_: str) -> None:
        raise KeyboardInterrupt

    command.run = interrupt
    done = runner.invoke(main.app, ["probe"])
    assert done.exit_code == 130
    assert done.output == ""


def test_a_mistake_of_ours_is_not_hidden(command: SimpleNamespace) -> None:
    def fail(_: str) -> None:
        raise ZeroDivisionError

    command.run = fail
    assert isinstance(runner.invoke(main.app, ["probe"]).exception, ZeroDivisionError)


def test_a_quote_takes_what_a_submission_does() -> None:
    from farm.cli.quote import quote
    from farm.cli.submit import submit

    submitted, quoted = (set(inspect.signature(each).parameters) for each in (submit, quote))
    assert submitted - quoted == {"name", "dry_run", "watch", "download"}


def test_a_file_of_lines_is_no_prompt_to_quote() -> None:
    refused = runner.invoke(main.app, ["quote", "jobs.ndjson"])
    assert refused.exit_code == main.BAD_INPUT
    assert "jobs.ndjson: a file of one job a line is not quoted" in refused.output


@pytest.mark.parametrize(("more", "refused"), [((), True), (("--dry-run",), False)])
def test_a_document_is_no_consent_to_remove(more: tuple[str, ...], refused: bool) -> None:
    words = ["prune", "--older-than", "90d", "--json", *more]
    result = runner.invoke(main.app, words, env={"FARM_URL": "http://127.0.0.1:1"})
    assert result.exit_code == (main.BAD_INPUT if refused else main.UNAVAILABLE)
    assert ("Say --yes" in result.output) == refused


def test_what_others_wrote_does_nothing_to_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    odd = "a\x1b]0;title\x07b\x9b2Jc\td\x7f"
    screen = output.console()
    screen.print(odd, markup=False)
    screen.print(output.table("", ("name",), [(odd,)]))
    shown = capsys.readouterr().out
    assert "a]0;titleb2Jc" in shown
    assert not {"\x1b", "\x07", "\x9b", "\x7f"} & {*shown}
