"""Recipes that ask for one thing more than text to image does."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from farm.spec.job import JobSpec
from farm.worker.engine.requests import Denoise, Made, Recipe
from farm.worker.recipes.txt2img import txt2img


def encore(job: JobSpec, ask: Callable[[Denoise, Made[Any]], Denoise | None]) -> Recipe:
    """An image that is denoised once more: ``ask`` says how, by the request and what was made, or
    that it is not."""
    recipe = txt2img(job)
    request: Any = next(recipe)
    try:
        while True:
            value = yield request
            if isinstance(request, Denoise) and (more := ask(request, value)) is not None:
                value = yield more
            request = recipe.send(value)
    except StopIteration as end:
        return end.value
