"""The examples in examples/ do what the docs say."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

from PIL import Image

EXAMPLES = Path(__file__).parents[2] / "examples"


LIBRARY = """
import importlib, pkgutil, runpy, sys
OTHERS = {"psycopg", "sqlalchemy", "celery", "kombu", "redis", "httpx", "fastapi", "starlette"}
class Refuse:
    def find_spec(self, name, path=None, target=None):
        others = ("farm.db", "farm.broker", "farm.api", "farm.client", "farm.settings")
        ours = name.startswith(others)
        if ours or name.split(".")[0] in OTHERS:
            raise ImportError(f"{name} must not be needed here")
sys.meta_path.insert(0, Refuse())
runpy.run_path(sys.argv[1], run_name="__main__")
import farm.worker.engine
farm.worker.engine.Engine
for part in ("engine", "memory", "models", "recipes", "samplers"):
    package = importlib.import_module(f"farm.worker.{part}")
    for module in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
        importlib.import_module(module.name)
"""


def test_the_engine_is_a_library_without_queue_database_and_server(tmp_path: Path) -> None:
    """One process for both: most of its time goes into importing torch."""
    done = subprocess.run(
        [sys.executable, "-c", LIBRARY, str(EXAMPLES / "engine.py")],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    made = {path.name: Image.open(path).size for path in tmp_path.glob("*.png")}
    assert made == {"a red apple.png": (128, 128), "a red car.png": (128, 128)}


def test_it_takes_no_more_than_fifteen_lines() -> None:
    module = ast.parse((EXAMPLES / "engine.py").read_text())
    code = [each for each in ast.walk(module) if isinstance(each, ast.stmt)][1:]  # no docstring
    lines = {line for each in code for line in range(each.lineno, (each.end_lineno or 0) + 1)}
    assert len(lines) <= 15
