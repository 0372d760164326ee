"""Programs do what k-diffusion's samplers do, at every call of the model, to 1e-9.

Its side was computed once, see ``vectors/make_k_diffusion.py``.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from farm.spec.sampling import SamplingOptions
from farm.worker.samplers import compile_program
from tests.analytic import BEGUN, run
from tests.fake_models import ALPHAS

VECTORS = np.load(Path(__file__).parent / "vectors" / "k_diffusion.npz")
CHURN = {"s_churn": 20.0, "s_tmin": 0.1, "s_tmax": 10.0, "s_noise": 1.003}
SDE = {"eta": 0.7, "s_noise": 1.01}
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "Euler churn": ("Euler", CHURN),
    "Euler a eta": ("Euler a", {"eta": 0.7}),
    "Heun churn": ("Heun", CHURN | {"s_tmax": 1000.0, "scheduler": "karras"}),
    "DPM2 churn": ("DPM2", CHURN),
    "DPM2 a eta": ("DPM2 a", SDE),
    "DPM++ 2S a Karras": ("DPM++ 2S a Karras", SDE),
    "DPM++ SDE Karras": ("DPM++ SDE Karras", SDE),
    "DPM++ 2M SDE Karras": ("DPM++ 2M SDE Karras", SDE),
    "DPM++ 2M SDE Exponential": ("DPM++ 2M SDE Exponential", {"eta": 0.0}),
    "DPM++ 2M SDE Heun Karras": ("DPM++ 2M SDE Heun Karras", SDE),
    "DPM++ 3M SDE Exponential": ("DPM++ 3M SDE Exponential", SDE),
    "DPM fast eta": ("DPM fast", SDE),
    "DPM fast plain": ("DPM fast", {"eta": 0.0}),
    "DPM adaptive eta": ("DPM adaptive", {"eta": 0.4}),
    "DPM adaptive plain": ("DPM adaptive", {"eta": 0.0}),
}


@pytest.mark.parametrize("case", VECTORS.files)
def test_every_latent_is_k_diffusion_s(case: str) -> None:
    name, _, schedule = case.rpartition("/")
    steps, _, skipped = schedule.partition("-")
    sampler, options = CASES.get(name, (name, {}))
    program = compile_program(
        sampler,
        int(steps),
        ALPHAS,
        options=SamplingOptions.model_validate(options),
        skipped=int(skipped) if skipped else None,
    )
    theirs = VECTORS[case]
    ours = run(program, begun=BEGUN if skipped else 0.0)
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-9, strict=True)
