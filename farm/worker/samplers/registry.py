"""Samplers by the names people know, each with the schedule that webui pairs with it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from farm.errors import InvalidInput
from farm.worker.samplers.dpmpp_2m import dpmpp_2m
from farm.worker.samplers.euler import euler
from farm.worker.samplers.euler_ancestral import euler_ancestral
from farm.worker.samplers.program import Coefficients, Program, Step
from farm.worker.samplers.schedules import ModelSigmas, karras, uniform

Schedule = Callable[[ModelSigmas, int], list[float]]
Sampler = Callable[[Sequence[float]], list[Coefficients]]

_SAMPLERS: dict[str, tuple[Schedule, Sampler]] = {
    "Euler": (uniform, euler),
    "Euler a": (uniform, euler_ancestral),
    "DPM++ 2M Karras": (karras, dpmpp_2m),
}


def compile_program(sampler: str, steps: int, alphas_cumprod: Sequence[float]) -> Program:
    """Compile a sampler for a model into the table that the engine runs.

    Args:
        sampler: one of :data:`farm.spec.job.SAMPLERS`.
        steps: calls of the model, at least 1.
        alphas_cumprod: the model's cumulative signal power a training timestep.

    Raises:
        InvalidInput: an unknown sampler, or no steps.
        CheckpointError: the model's schedule is unusable.
    """
    _check(sampler, steps)
    schedule, updates = _SAMPLERS[sampler]
    model = ModelSigmas(alphas_cumprod)
    sigmas = schedule(model, steps)
    table = tuple(
        Step(sigma, model.timestep(sigma), update)
        for sigma, update in zip(sigmas[:-1], updates(sigmas), strict=True)
    )
    return Program(name=sampler, steps=table, initial_scale=sigmas[0])


def _check(sampler: str, steps: int) -> None:
    if sampler not in _SAMPLERS:
        raise InvalidInput(
            f"There is no sampler {sampler!r}.",
            field="sampler",
            value=sampler,
            remedy=f"Choose one of {', '.join(_SAMPLERS)}.",
        )
    if steps < 1:
        raise InvalidInput(
            f"A sampler cannot take {steps} steps.",
            field="steps",
            value=steps,
            remedy="Ask for at least 1.",
        )
