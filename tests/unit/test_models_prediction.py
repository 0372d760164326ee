"""Telling what a UNet predicts by one forward."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from farm.worker.models.prediction import measured_prediction
from farm.worker.models.text import TextEncoding

SIGNAL = 0.0047**0.5
"""Amplitude that SD leaves of the picture at its last timestep."""


@dataclass
class Model:
    """Returns what ``output`` makes of the latent it is shown."""

    output: Callable[[Tensor], Tensor]
    alphas_cumprod: tuple[float, ...] = (0.5,) * 1000

    @property
    def device(self) -> torch.device:
        return torch.device("cpu")

    def encode(self, text: str) -> TextEncoding:
        assert text == ""
        return TextEncoding(torch.zeros(1, 77, 8), None)

    def predict(self, x: Tensor, t: Tensor, tokens: Tensor) -> Tensor:
        assert t.tolist() == [999.0]
        assert tokens.shape[0] == x.shape[0] == 1
        return self.output(x)


def blurry(x: Tensor) -> Tensor:
    """The mean picture, which is what the best guess from noise is."""
    return torch.linspace(-0.5, 0.5, x.shape[-1]).expand_as(x)


@pytest.mark.parametrize(
    ("output", "prediction"),
    [
        (lambda x: x, "epsilon"),
        (lambda x: 0.9 * x + 0.2 * torch.randn(x.shape), "epsilon"),
        (lambda x: 0.9 * x - blurry(x), "v_prediction"),
        (lambda x: SIGNAL * x - blurry(x), "v_prediction"),
        (lambda x: SIGNAL * x + 0.3, "v_prediction"),
        (lambda x: x * float("nan"), "v_prediction"),
    ],
)
def test_what_returns_the_noise_predicts_it(
    output: Callable[[Tensor], Tensor], prediction: str
) -> None:
    model: Model = Model(output)
    assert measured_prediction(model) == prediction  # type: ignore[arg-type]
