"""A checkpoint without weights, whose denoiser is known in closed form, and a cache of such."""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from farm.errors import CheckpointError
from farm.spec.job import JobSpec
from farm.spec.measurement import Call
from farm.spec.networks import Loras
from farm.worker.memory.profiles import MemoryProfile, by_name
from farm.worker.models.decoder import Draft
from farm.worker.models.text import TextEncoding, Words

ALPHAS = np.cumprod(1 - np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2).tolist()
"""Stable Diffusion's own noise schedule."""
LOG_SIGMAS = np.log((1 - np.array(ALPHAS)) / np.array(ALPHAS)) / 2
SPREAD = 0.5
"""Standard deviation of the clean latents this model believes in; their mean is the text's."""
WORDS_A_BLOCK = 5
"""Words of a prompt that fill a block of 77 tokens here."""


def mean_of(text: str) -> float:
    """What the fake takes a text to mean: the mean of all clean latents, in -1..1."""
    return ((sum(map(ord, text)) * 7919) % 2001 - 1000) / 1000


def denoised(x: Any, sigma: Any, mean: Any) -> Any:
    """The best estimate of the clean latent, for clean latents that are normal around ``mean``."""
    return (x * SPREAD**2 + mean * sigma**2) / (SPREAD**2 + sigma**2)


@dataclass
class FakeCheckpoint:
    """Computes what a real one does for a one-number world, and remembers what it was asked.

    ``fault(what, seen)`` is called before every "encode", "predict", "decode", "decode again" and
    "wear" and may raise; it sees the text, the means of all rows, the latent or the LoRAs.
    ``poisoned`` texts are answered NaN, ``overflowing`` ones unless so many precisions higher.
    """

    name: str
    family: str = "sd15"
    prediction: str = "epsilon"
    fault: Callable[[str, Any], None] = lambda what, seen: None

    def __post_init__(self) -> None:
        self.alphas_cumprod = ALPHAS
        self.identity: object = self.name
        self.vae_dtype = "float32"
        self.bytes = 1000
        self.forwards: list[int] = []
        self.encoded: list[str] = []
        self.texts_together: list[int] = []
        self.decoded = self.decoded_again = self.encoded_pictures = 0
        self.wholes: list[bool] = []
        self.paints = False
        self.good_drafts = True
        self.longest_text = 0
        self.poisoned: set[str] = set()
        self.switches: list[tuple[str, Loras]] = []
        self.overflowing: dict[str, int] = {}
        self.rungs = 0
        self.lift = 0
        self.lifts: list[int] = []
        self.plainly: list[bool] = []
        self.mode, self.streamable = "resident", False
        self.tile_over, self.side = 2**30, 64
        self.encode_tile_over = 2**30
        self._worn: dict[str, Loras] = {}

    @contextmanager
    def lifted(self, rungs: int, *, plainly: bool = False) -> Iterator[None]:
        """Higher precisions read ``overflowing`` texts without trouble."""
        self.lift = rungs
        self.plainly.append(plainly)
        yield
        self.lift = 0

    @property
    def unet_call(self) -> Call:
        return Call("denoise", self.family, 1, "float32", self.mode, pixels=0, rows=1)

    @property
    def vae_call(self) -> Call:
        return Call("decode", self.family, 1, self.vae_dtype, "whole", pixels=0, rows=1)

    def decode_call(self, pixels: int, *, strict: bool = False) -> Call:
        mode = "tiles" if pixels > self.tile_over else "whole"
        return replace(self.vae_call, mode=mode, pixels=pixels)

    def encode_call(self, pixels: int, *, strict: bool = False) -> Call:
        mode = "encode-tiles" if pixels > self.encode_tile_over else "encode"
        return replace(self.vae_call, mode=mode, pixels=pixels)

    def stream(self) -> bool:
        """The weights leave, if they are not away already and can."""
        if self.mode == "streamed" or not self.streamable:
            return False
        self.mode = "streamed"
        return True

    def precision(self, rungs: int) -> str:
        return f"precision {rungs}"

    def worn(self, side: str) -> Loras:
        return self._worn.get(side, ())

    def wear(self, side: str, loras: Loras, find: Callable[[str], Any], *, spare: int) -> None:
        """LoRAs on a side move what it makes by the sum of their strengths."""
        self.fault("wear", loras)
        self.switches.append((side, loras))
        self._worn[side] = loras

    def bare(self) -> None:
        """As it was read."""
        self._worn.clear()

    def _moved(self, side: str) -> float:
        return sum(lora.strength for lora in self.worn(side))

    def encode(
        self, *texts: str, negative: bool = False, reading: Any = None, embeddings: Any = None
    ) -> TextEncoding:
        for text in texts:
            self.fault("encode", text)
        self.encoded += texts
        blocks = max(1, *(-(-len(text.split()) // WORDS_A_BLOCK) for text in texts))
        means = torch.tensor([mean_of(text) + self._moved("text") for text in texts])
        tokens = means.view(-1, 1, 1).expand(-1, 77 * blocks, 8)
        return TextEncoding(tokens, tokens[:, 0] if self.family == "sdxl" else None)

    def encode_together(
        self, prompts: Sequence[Words], *, reading: Any = None, embeddings: Any = None
    ) -> list[TextEncoding]:
        self.texts_together.append(len(prompts))
        return [self.encode(*each.texts, negative=each.negative) for each in prompts]

    def predict(
        self,
        x: Tensor,
        t: Tensor,
        tokens: Tensor,
        *,
        pooled: Tensor | None = None,
        size_ids: Tensor | None = None,
    ) -> Tensor:
        means = tokens.double().mean(dim=(1, 2))
        self.fault("predict", means.tolist())
        assert (pooled is not None) == (size_ids is not None) == (self.family == "sdxl")
        assert len(x) == len(t) == len(tokens)
        self.forwards.append(len(x))
        self.longest_text = max(self.longest_text, tokens.shape[1])
        sigmas = np.exp(np.interp(t.double().numpy(), np.arange(1000), LOG_SIGMAS))
        sigma = torch.tensor(sigmas).view(-1, 1, 1, 1)
        mean = means.view(-1, 1, 1, 1) + self._moved("unet")
        latent = x.double() * (sigma**2 + 1) ** 0.5
        noise = (latent - denoised(latent, sigma, mean)) / sigma
        self.lifts.append(self.lift)
        low = {text for text, needed in self.overflowing.items() if needed > self.lift}
        poison = {mean_of(text) for text in self.poisoned | low}
        noise[[round(value, 3) in poison for value in means.tolist()]] = torch.nan
        if self.prediction == "epsilon":
            return noise.float()
        # v = (x / sqrt(sigma² + 1) - sqrt(sigma² + 1) clean) / sigma, from x = clean + sigma noise
        clean = latent - sigma * noise
        power = sigma**2 + 1
        return ((latent / power - clean) * power**0.5 / sigma).float()

    def draft(self, latent: Tensor, *, whole: bool = False, strict: bool = False) -> Draft:
        """The latent itself, [h, w, 4] float32, so that tests see what the engine made; if it
        ``paints``, a picture of it, [8h, 8w, 3] uint8."""
        self.fault("decode", latent)
        self.decoded += 1
        if self.paints:
            shown = ((latent[:3] + 1) * 127.5).clamp(0, 255).to(torch.uint8)
            large = shown.repeat_interleave(8, dim=1).repeat_interleave(8, dim=2)
            return Draft(large.permute(1, 2, 0).contiguous(), torch.tensor(True), ())
        return Draft(latent.permute(1, 2, 0), torch.tensor(self.good_drafts), ())

    def encode_picture(self, picture: Tensor, *, strict: bool = False) -> Tensor:
        """The inverse of :meth:`draft`, of pictures."""
        self.fault("encode picture", picture)
        self.encoded_pictures += 1
        small = picture.double().unflatten(0, (-1, 8)).unflatten(2, (-1, 8)).mean(dim=(1, 3))
        return (small / 127.5 - 1).permute(2, 0, 1)[[0, 1, 2, 0]].float()

    def decode(self, latent: Tensor, *, after: Draft | None = None, whole: bool = False) -> Tensor:
        """What a higher precision makes of a draft that is not finite."""
        self.wholes.append(whole)
        self.fault("decode again", latent)
        assert after is not None
        assert not after.finite
        self.decoded_again += 1
        return latent.permute(1, 2, 0)


class FakeModels:
    """Holds one checkpoint at a time, as a card that is full does."""

    def __init__(self, *checkpoints: FakeCheckpoint) -> None:
        self.known = {checkpoint.name: checkpoint for checkpoint in checkpoints}
        self.loads: list[str] = []
        self.prefetched: list[list[str]] = []
        self.resident: tuple[str, ...] = ()
        self.bytes = 0
        self.guests: list[Any] = []
        self.idle = self.in_host = 0
        self.recorded = False
        self.loading = False
        self.replaced = 0
        self.squeezed: list[str] = []
        self.needed: set[str] = set()

    def get(self, name: str) -> FakeCheckpoint:
        if name not in self.known:
            raise CheckpointError(f"There is no checkpoint {name!r}.", field="checkpoint")
        if name not in self.resident:
            self.loads.append(name)
            self.resident = (name,)
        return self.known[name]

    def peek(self, name: str) -> FakeCheckpoint:
        return self.get(name)

    @contextmanager
    def use(self, name: str) -> Iterator[FakeCheckpoint]:
        yield self.get(name)

    def evict(self, name: str) -> None:
        """It leaves, and comes back as it was loaded."""
        self.resident = tuple(other for other in self.resident if other != name)
        self.known[name].mode = "resident"
        self.known[name].bare()
        self.squeezed = [other for other in self.squeezed if other != name]

    def need(self, names: Collection[str]) -> None:
        """Notes it."""
        self.needed = set(names)

    def prefetch(self, names: Sequence[str]) -> None:
        """Notes whatever is wanted, once."""
        if names and self.prefetched[-1:] != [list(names)]:
            self.prefetched.append(list(names))

    def give_up_speed(self) -> bool:
        """What is recorded goes."""
        recorded, self.recorded = self.recorded, False
        return recorded

    @property
    def guest_bytes(self) -> int:
        return sum(guest.bytes for guest in self.guests)

    def dismiss(self) -> bool:
        """Guests leave."""
        return sum(guest.leave() for guest in self.guests) > 0

    def shed_idle(self) -> bool:
        """Guests, or else one more checkpoint that nobody uses leaves."""
        if self.dismiss():
            return True
        self.idle -= 1
        return self.idle >= 0

    def shed(self) -> bool:
        """The same, or weights of one in use."""
        return self.shed_idle() or any(self.known[name].stream() for name in self.resident)

    def shed_host(self) -> bool:
        """One more checkpoint in host memory goes."""
        self.in_host -= 1
        return self.in_host >= 0


def profile(rows: int = 16) -> MemoryProfile:
    """A profile with buckets of 1, 2, 4 ... up to ``rows``."""
    buckets = tuple(2**power for power in range(rows.bit_length()) if 2**power <= rows)
    return replace(by_name("cpu"), buckets=buckets, max_rows=buckets[-1])


def spec(prompt: str = "a red apple", seed: int = 1, **changes: Any) -> JobSpec:
    """A small job for the checkpoint called ``fake``."""
    values: dict[str, Any] = {
        "checkpoint": "fake",
        "width": 64,
        "height": 64,
        "steps": 4,
        "cfg_scale": 3.0,
    }
    return JobSpec(prompt=prompt, seed=seed, **(values | changes))


class Gate:
    """Holds a thread at a call until the test opens it; ``reached`` says that it is there."""

    def __init__(self) -> None:
        self.reached = threading.Event()
        self._open = threading.Event()

    def open(self) -> None:
        self._open.set()

    def __call__(self) -> None:
        self.reached.set()
        assert self._open.wait(60), "the test never opened the gate"
