"""Where images are made anew, and where they stay what they are."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from farm.errors import InvalidInput
from farm.worker.engine.transfer import upload


class Area:
    """A mask, of one image or several.

    Args:
        share: [1, h, w] or [S, 1, h, w], of what is made anew.
        outside: [4, h, w] or [S, 4, h, w], the rest of what is known.
    """

    def __init__(self, share: Tensor, outside: Tensor) -> None:
        self.share = share
        self.outside = outside

    def __call__(self, latent: Tensor) -> Tensor:
        """The latent where it is made anew, and what is known elsewhere."""
        return latent * self.share + self.outside


def area(share: Tensor, known: Tensor) -> Area:
    """Where one image is made anew; lives where ``known`` does.

    Args:
        share: [h, w], from 0 to 1.
        known: [4, h, w].

    Raises:
        InvalidInput: the mask has another size, or numbers that are no shares, or what is known is
            not finite: times a share of 0 that would be NaN all the same.
    """
    if share.shape != known.shape[1:]:
        raise InvalidInput(
            f"A mask of {list(share.shape)} does not go with a latent of {list(known.shape)}.",
            field="mask",
            value=list(share.shape),
            remedy=f"Give one of {list(known.shape[1:])}, an eighth of the image's own size.",
        )
    share = share.float()
    low, high = share.min().item(), share.max().item()
    if not 0 <= low <= high <= 1:  # nor is it where one of them is NaN
        raise InvalidInput(
            "A mask holds numbers that are not from 0 to 1.",
            field="mask",
            value=str(high if low >= 0 else low),
            remedy="Give 1 where the image is made anew, and 0 where it stays what it is.",
        )
    if not bool(known.isfinite().all()):
        raise InvalidInput(
            "What a mask keeps holds NaN or infinity.",
            field="mask.known",
            remedy="Give a latent of numbers only, such as that of a picture.",
        )
    share = upload(share[None].cpu(), known.device)
    return Area(share, known * (1 - share))


def together(areas: Sequence[Area | None]) -> Area | None:
    """Those of several images in one; None where no image has any."""
    some = next((each for each in areas if each), None)
    if some is None:
        return None
    everywhere = Area(torch.ones_like(some.share), torch.zeros_like(some.outside))
    found = [each or everywhere for each in areas]
    return Area(
        torch.stack([each.share for each in found]), torch.stack([each.outside for each in found])
    )
