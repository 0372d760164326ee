"""The rules of the house that a machine can check: sizes, layers, what may import what."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from alembic.config import Config
from alembic.script import ScriptDirectory

from farm.db import schema

ROOT = Path(__file__).parents[2]
SOURCES = sorted((ROOT / "farm").rglob("*.py"))
FILE_LINES, FUNCTION_LINES, POSITIONAL = 400, 60, 4


def functions(source: Path) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    for found in ast.walk(ast.parse(source.read_text())):
        if isinstance(found, ast.FunctionDef | ast.AsyncFunctionDef):
            yield found


def code_lines(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Lines of a function without its signature and docstring."""
    body = function.body[1:] if ast.get_docstring(function) else function.body
    return (body[-1].end_lineno or 0) - body[0].lineno + 1 if body else 0


@pytest.mark.parametrize("source", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_files_and_functions_stay_small(source: Path) -> None:
    assert len(source.read_text().splitlines()) <= FILE_LINES
    for function in functions(source):
        where = f"{source.name}:{function.lineno} {function.name}"
        assert code_lines(function) <= FUNCTION_LINES, where
        names = [arg.arg for arg in [*function.args.posonlyargs, *function.args.args]]
        positional = [name for name in names if name not in ("self", "cls")]
        commands = {"cli", "routes"} & set(source.parts)  # their parameters are options
        assert commands or len(positional) <= POSITIONAL, where


WITHOUT_TORCH = """
import sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("torch", "torchvision", "diffusers", "transformers"):
            raise ImportError(f"{name} must not be needed here")
sys.meta_path.insert(0, Refuse())
import farm.api.__main__, farm.dispatch.__main__, farm.client, farm.embedded.farm
import farm.cli.main, farm.db.migrate, farm.worker.launcher
import importlib, pkgutil, farm.cli, farm.api
for package in (farm.cli, farm.api):
    for module in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
        importlib.import_module(module.name)
print("ok")
"""


def test_all_but_the_worker_run_without_torch() -> None:
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_TORCH], capture_output=True, text=True, check=False
    )
    assert done.stdout.strip() == "ok", done.stderr


def test_the_layers_hold() -> None:
    lint = Path(sys.executable).with_name("lint-imports")
    done = subprocess.run(
        [lint, "--no-cache"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout


def test_what_serves_does_not_import_what_migrates() -> None:
    """It would take most of the time in which such a process starts."""
    program = (
        "import sys, farm.api.__main__, farm.dispatch.__main__, farm.cli.checks;"
        "print(sorted({'alembic', 'sqlalchemy'} & {*sys.modules}))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )
    assert done.stdout.strip() == "[]", done.stderr


def test_the_schema_that_is_needed_is_where_the_migrations_lead() -> None:
    config = Config()
    config.set_main_option("script_location", str(schema.MIGRATIONS))
    assert ScriptDirectory.from_config(config).get_heads() == [schema.NEEDED]
