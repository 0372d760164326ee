"""The noise schedule of a checkpoint."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch
from diffusers import EulerDiscreteScheduler

from farm.errors import CheckpointError
from farm.worker.models.betas import alphas_cumprod

SD = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}


@pytest.mark.parametrize(
    "config",
    [
        SD,
        {**SD, "beta_schedule": "linear"},
        {**SD, "beta_end": 0.02},
        {**SD, "rescale_betas_zero_snr": True},
    ],
)
def test_they_are_those_of_diffusers(config: dict[str, Any]) -> None:
    theirs = EulerDiscreteScheduler(**config).alphas_cumprod.double()
    ours = torch.tensor(alphas_cumprod(config), dtype=torch.float64)
    torch.testing.assert_close(ours, theirs, rtol=2e-4, atol=1e-7)


def test_what_a_config_leaves_out_is_sds_own() -> None:
    assert alphas_cumprod({}) == alphas_cumprod(SD)


def test_a_file_may_ask_for_zero_terminal_snr_too() -> None:
    stretched = alphas_cumprod(SD, zero_snr=True)
    assert stretched == alphas_cumprod({**SD, "rescale_betas_zero_snr": True})
    assert stretched[-1] == 2**-24
    assert stretched[0] == pytest.approx(alphas_cumprod(SD)[0])
    assert all(now > later for now, later in pairwise(stretched))


@pytest.mark.parametrize("config", [{"beta_schedule": "cosine"}, {"num_train_timesteps": 50}])
def test_others_are_refused(config: dict[str, Any]) -> None:
    with pytest.raises(CheckpointError, match="The scheduler config asks for"):
        alphas_cumprod(config)
