"""No sampler is without a comparison with somebody else's."""

from __future__ import annotations

import pytest

from farm.spec.samplers import SAMPLERS
from tests.contract import test_samplers_diffusers as diffusers
from tests.contract import test_samplers_papers as papers
from tests.contract.test_samplers_k_diffusion import CASES, VECTORS

ANSWERED = {
    "Restart": papers.test_restart_goes_back_up_and_down_again,
    "DDIM": diffusers.test_ddim_is_diffusers,
    "PLMS": diffusers.test_plms_is_diffusers,
    "UniPC": diffusers.test_unipc_is_diffusers,
    "LCM": papers.test_lcm_is_multistep_consistency_sampling,
    "TCD": diffusers.test_tcd_is_diffusers,
    "Euler a CFG++": papers.test_cfg_pp_renews_the_noise_of_the_negative_prompt,
}


def compared(name: str) -> set[int]:
    """The numbers of steps at which a sampler is compared with its reference."""
    if name in ANSWERED:
        marks = ANSWERED[name].pytestmark
        return {each for mark in marks if mark.args[0] == "steps" for each in mark.args[1]}
    cases = [case.rpartition("/") for case in VECTORS.files]
    return {
        int(steps)
        for case, _, steps in cases
        if CASES.get(case, (case, {}))[0] == name and "-" not in steps
    }


@pytest.mark.parametrize("name", SAMPLERS)
def test_every_sampler_is_compared_with_somebody_else_s_at_few_and_many_steps(name: str) -> None:
    unknown: set[int] = set()
    if name.startswith(("DPM++ 2M SDE", "DPM++ 3M SDE")):
        unknown = {1}  # k-diffusion cannot; ours is the model's estimate, as a unit test says
    elif name == "DPM adaptive":
        unknown = {1, 2, 3, 150}  # decides about its steps itself
    elif name == "TCD":
        unknown = {150}  # diffusers has 50 at most
    assert compared(name) >= set(diffusers.STEPS) - unknown
