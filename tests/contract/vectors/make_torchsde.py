"""Writes torchsde.npz: increments of torchsde's Brownian trees, as k-diffusion asks for them.

To compute it again::

    pip install torchsde==0.2.6
    python -m tests.contract.vectors.make_torchsde
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import torchsde

SHAPE = (4, 3, 5)
SEEDS = (0, 7, 2**63 - 1)
SPANS = {
    "sd": (0.029167, 14.614642, [(1.0, 2.0), (2.0, 14.614642), (0.029167, 1.0), (0.7, 0.700001)]),
    "zero snr": (0.029167, 4518.7, [(14.6, 4518.7), (3.3, 14.6), (0.1, 3.3)]),
}


def main() -> None:
    found = {}
    for seed in SEEDS:
        for name, (low, high, asked) in SPANS.items():
            tree = torchsde.BrownianTree(low, torch.zeros(SHAPE), high, entropy=seed)
            for start, end in asked:
                key = f"{name}/{seed}/{low}/{high}/{start}/{end}"
                found[key] = tree(start, end).numpy()
    np.savez_compressed(Path(__file__).with_name("torchsde.npz"), **found)


if __name__ == "__main__":
    main()
