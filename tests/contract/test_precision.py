"""Computing in a precision that the weights are not held in."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from farm.worker.memory.profiles import MemoryProfile, by_name
from farm.worker.models.checkpoint import Checkpoint
from farm.worker.models.loader import load
from farm.worker.models.precision import computing_in
from farm.worker.models.text import TextEncoding
from tests.checkpoints import tiny_file

CPU = torch.device("cpu")
HALF = replace(by_name("cpu"), dtype="float16")


def held_as(profile: MemoryProfile, folder: Path) -> Checkpoint:
    return load(tiny_file(folder, "sdxl", dtype=torch.float16), profile, CPU)


@torch.no_grad()
def predicted(checkpoint: Checkpoint, lift: int, text: TextEncoding) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 4, 8, 8, generator=generator)
    assert text.pooled is not None
    sizes = torch.tensor([[64.0, 64, 0, 0, 64, 64]]).expand(2, 6)
    tokens = text.tokens.float().expand(2, -1, -1)
    with checkpoint.lifted(lift):
        return checkpoint.predict(
            x, torch.tensor([900.0, 10.0]), tokens, pooled=text.pooled.expand(2, -1), size_ids=sizes
        )


@pytest.mark.parametrize(("lift", "tolerance"), [(1, 3e-2), (2, 1e-5)])
@torch.no_grad()
def test_two_rungs_up_half_weights_compute_as_full_ones(
    tmp_path: Path, lift: int, tolerance: float
) -> None:
    half = held_as(HALF, tmp_path)
    before = {name: weight.clone() for name, weight in half._unet.state_dict().items()}
    full = held_as(by_name("cpu"), tmp_path)
    text = full.encode("a red apple")
    torch.testing.assert_close(
        predicted(half, lift, text), predicted(full, 0, text), rtol=0, atol=tolerance
    )
    assert half.rungs == 2
    for name, weight in half._unet.state_dict().items():
        assert weight.dtype == torch.float16
        assert torch.equal(weight, before[name]), name


@torch.no_grad()
def test_an_error_in_the_middle_leaves_the_weights_as_they_were() -> None:
    class Breaks(torch.nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            super().forward(x)
            raise RuntimeError

    model = torch.nn.Sequential(torch.nn.Linear(2, 2), Breaks(2, 2)).half()
    weights = [weight.clone() for weight in model.parameters()]
    with pytest.raises(RuntimeError), computing_in(model, torch.float32):
        model(torch.ones(1, 2))
    assert all(map(torch.equal, model.parameters(), weights))
