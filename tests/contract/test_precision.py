"""Computing in a precision that the weights are not held in."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from farm.worker.memory.profiles import MemoryProfile, by_name
from farm.worker.models.catalogue import AssetFile
from farm.worker.models.checkpoint import Checkpoint
from farm.worker.models.loader import load
from farm.worker.models.precision import computing_in, rungs
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


@pytest.mark.parametrize(
    ("lift", "name", "tolerance"),
    [
        (0, "float16", 5e-3),
        (1, "float16 with attention in float32", 5e-3),
        (2, "bfloat16", 3e-2),
        (3, "float32", 1e-5),
    ],
)
@torch.no_grad()
def test_at_the_top_half_weights_compute_as_full_ones(
    tmp_path: Path, lift: int, name: str, tolerance: float
) -> None:
    half = held_as(HALF, tmp_path)
    before = {name: weight.clone() for name, weight in half._unet.state_dict().items()}
    full = held_as(by_name("cpu"), tmp_path)
    text = full.encode("a red apple")
    torch.testing.assert_close(
        predicted(half, lift, text), predicted(full, 0, text), rtol=0, atol=tolerance
    )
    assert (half.rungs, half.precision(lift)) == (3, name)
    assert (full.rungs, full.precision(0)) == (0, "float32")
    for part, weight in half._unet.state_dict().items():
        assert weight.dtype == torch.float16
        assert torch.equal(weight, before[part]), part


@pytest.mark.parametrize(
    ("dtype", "names"), [("bfloat16", ["bfloat16", "float32"]), ("float32", ["float32"])]
)
def test_where_the_range_is_that_of_float32_attention_is_not_lifted_by_itself(
    dtype: str, names: list[str]
) -> None:
    assert list(map(str, rungs(getattr(torch, dtype)))) == names


def with_loud_scores(file: AssetFile, attention: str) -> Any:
    """A checkpoint in float16, of which all queries are one vector and all keys too."""
    checkpoint: Any = load(file, replace(HALF, attention=attention), CPU)
    for block in checkpoint._unet.modules():
        if type(block).__name__ == "BasicTransformerBlock":
            block.norm1.weight.zero_()
            block.norm1.bias.fill_(1)
            for layer in (block.attn1.to_q, block.attn1.to_k):
                layer.weight.fill_(300 / layer.in_features)
    return checkpoint


@pytest.mark.parametrize("attention", ["sdpa", "sliced", "sub-quadratic"])
@pytest.mark.parametrize(
    ("family", "layout"), [("sd2", "single"), ("sd2", "diffusers"), ("sd15", "single")]
)
@torch.no_grad()
def test_sd2_s_scores_are_in_float32_from_the_start(
    tmp_path: Path, family: str, layout: str, attention: str
) -> None:
    file = tiny_file(tmp_path, family, layout=layout, dtype=torch.float16)
    checkpoint = with_loud_scores(file, attention)
    tokens = checkpoint.encode("a red apple").tokens
    x = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    made = checkpoint.predict(x, torch.tensor([500.0]), tokens)
    assert bool(made.isfinite().all()) == (family == "sd2" or attention == "sdpa")


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
