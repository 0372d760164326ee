"""One checkpoint's weights on one device, and the three things they compute."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any, cast

import torch
from torch import Tensor, nn

from farm.spec.measurement import Call, Work
from farm.spec.networks import Loras
from farm.spec.reading import ReadingOptions
from farm.worker.memory.profiles import MemoryProfile
from farm.worker.models.decoder import FACTOR, Decoder, Draft
from farm.worker.models.embeddings import EmbeddingShelf
from farm.worker.models.forwards import Forwards
from farm.worker.models.lora import LoraFile
from farm.worker.models.patches import Patches, Side
from farm.worker.models.precision import above, computing_in, rungs_above
from farm.worker.models.residence import TEXT_ENCODERS, Residence, lay_out
from farm.worker.models.text import PLAINLY, TextEncoder, TextEncoding

EDIT_CHANNELS, INPAINT_CHANNELS = 8, 9


class Checkpoint:
    """Resident weights of one file on one device. Call it from one thread at a time.

    Attributes:
        name: the checkpoint's name in the catalogue.
        identity: name and files; another one that goes by the name some day has another.
        family: such as ``sd15``, see :data:`farm.worker.models.architecture.FAMILIES`.
        prediction: what the UNet returns: ``epsilon`` or ``v_prediction``.
        dtype, device: of the UNet.
        alphas_cumprod: 1000 values in float64, from the scheduler's betas.
        load_seconds: what loading took.
        vae_call: how its decodes are measured; of no pixels.
    """

    def __init__(
        self,
        name: str,
        modules: Mapping[str, nn.Module],
        *,
        family: str,
        prediction: str,
        alphas_cumprod: list[float],
        profile: MemoryProfile,
        device: torch.device,
        load_seconds: float,
        streams: bool = False,
        tiny: nn.Module | None = None,
        marks: object = (),
    ) -> None:
        self.name = name
        self.identity = name, marks
        self.family = family
        self.prediction = prediction
        self.alphas_cumprod = alphas_cumprod
        self.device = device
        self.load_seconds = load_seconds
        self.dtype: torch.dtype = getattr(torch, profile.dtype)
        lay_out(modules, profile)
        self._residence = Residence(modules, device, streams=streams)
        self._patches = Patches(modules, family)
        self._computing, self._plainly = self.dtype, False
        self._unet = cast("Any", modules["unet"])
        self._forwards = Forwards(self._unet, profile, device)
        self._decoder = Decoder(
            modules["vae"],
            tile_over=profile.vae_tile_over,
            tile=profile.vae_tile,
            tiny=tiny and tiny.to(self.dtype),
        )
        self._unet_call = _call("denoise", family, self._unet, profile.attention)
        self.vae_call = _call("decode", family, modules["vae"], "taesd" if tiny else "whole")
        self._inpaints = self._unet.config.in_channels == INPAINT_CHANNELS
        texts = [modules[part] for part in TEXT_ENCODERS if part in modules]
        self._text = TextEncoder(texts, family, device)

    @property
    def edits(self) -> bool:
        """Whether it is a model for editing, which is shown a picture."""
        return bool(self._unet.config.in_channels == EDIT_CHANNELS)

    @property
    def bytes(self) -> int:
        """Memory the weights take on ``device``."""
        return sum(self.held.values())

    @property
    def weights(self) -> Mapping[nn.Module, int]:
        """Its models, and the bytes of each, wherever they are."""
        return self._residence.weights

    @property
    def held(self) -> Mapping[nn.Module, int]:
        """The models that live on ``device``, and the bytes of each, with those that were kept
        of weights that LoRAs are on. Of a streamed UNet it is what its weights pass through;
        text encoders have that for the moment of encoding only."""
        return self._residence.held

    @property
    def unet_call(self) -> Call:
        """How its forwards are measured; of no pixels and no rows."""
        if self._residence.streams:
            return replace(self._unet_call, mode=f"{self._unet_call.mode}+streamed")
        return self._unet_call

    def decode_call(self, pixels: int) -> Call:
        """How the decoding of so many pixels is measured."""
        mode = "tiles" if pixels > self.tile_over else self.vae_call.mode
        return replace(self.vae_call, mode=mode, pixels=pixels)

    @property
    def tile_over(self) -> int:
        """Pixels above which pictures are decoded in tiles; lower once memory ran out in one."""
        return self._decoder.tile_over

    @tile_over.setter
    def tile_over(self, pixels: int) -> None:
        self._decoder.tile_over = pixels

    @property
    def side(self) -> int:
        """Pixels of the side that its UNet was made for."""
        return int(self._unet.config.sample_size) * FACTOR

    def stream(self) -> bool:
        """Have the UNet's weights leave the device, and pass through it in each forward.

        Returns:
            Whether that made room.
        """
        if not self._residence.may_stream:
            return False
        self._forwards.forget()
        self._residence.stream()
        return True

    @property
    def squeezed(self) -> bool:
        """Whether :meth:`stream` was called: read anew it would be quicker again."""
        return self._residence.squeezed

    def give_up_speed(self) -> bool:
        """Do without what makes its forwards quicker and takes memory of the device.

        Returns:
            Whether that made room.
        """
        return self._forwards.give_up()

    @property
    def recorded_bytes(self) -> int | None:
        """Memory of ``device`` that recorded forwards hold; None where none are recorded."""
        return self._forwards.recorded_bytes

    def to_host(self, needed: Container[nn.Module]) -> None:
        """Move the weights to host memory, but for models ``needed`` by other checkpoints."""
        self._forwards.forget()
        self._residence.to_host(needed)
        self._decoder.rest()

    def to_device(self) -> None:
        """Move every model back to where it was loaded."""
        self._residence.to_device()

    def worn(self, side: Side) -> Loras | None:
        """The LoRAs on the text encoders or the UNet; None where they wear different ones."""
        return self._patches.worn(side)

    def wear(
        self, side: Side, loras: Loras, find: Callable[[str], LoraFile], *, spare: int
    ) -> None:
        """Have these LoRAs and no others on one side.

        Args:
            find: a LoRA's file by its name.
            spare: bytes of ``device`` that are free, for weights as they were.

        Raises:
            CheckpointError: a LoRA that does not exist or does not fit; nothing has changed.
        """
        self._residence.settle()
        self._patches.wear(side, loras, find, spare=spare)

    @property
    def rungs(self) -> int:
        """How many precisions there are above that of the UNet's weights."""
        return rungs_above(self.dtype)

    def precision(self, rungs: int) -> str:
        """The name of the precision so many above that of the UNet's weights."""
        return str(above(self.dtype, rungs)).removeprefix("torch.")

    @contextmanager
    def lifted(self, rungs: int, *, plainly: bool = False) -> Iterator[None]:
        """In the block the UNet computes so many precisions higher than its weights are held in.

        Args:
            plainly: whether it computes as it is, neither recorded nor compiled: bit for bit the
                same at any time.
        """
        self._plainly = plainly
        try:
            with ExitStack() as stack:
                if rungs:
                    self._computing = above(self.dtype, rungs)
                    stack.enter_context(computing_in(self._unet, self._computing))
                yield
        finally:
            self._computing, self._plainly = self.dtype, False

    def encode(
        self,
        *texts: str,
        negative: bool = False,
        reading: ReadingOptions = PLAINLY,
        embeddings: EmbeddingShelf | None = None,
    ) -> TextEncoding:
        """Encode what a prompt says, at any length; see :meth:`TextEncoder.encode`."""
        return self._text.encode(*texts, negative=negative, reading=reading, embeddings=embeddings)

    def predict(
        self,
        x: Tensor,
        t: Tensor,
        tokens: Tensor,
        *,
        pooled: Tensor | None = None,
        size_ids: Tensor | None = None,
    ) -> Tensor:
        """One UNet forward.

        Args:
            x: [R, 4, h, w] float32 latents, already scaled by c_in; and behind them, [R, 8, h, w],
                what a model for editing sees. If it is given only latents it sees nothing, and an
                inpainting model is told that all of the picture is to be painted.
            t: [R] float32 timesteps in 0..999, fractions allowed.
            tokens: [R, T, C].
            pooled: [R, P]; the SDXL families only.
            size_ids: [R, 6] height and width of the original, top and left of the crop, height
                and width of the target, in pixels; SDXL only. For its refiner [R, 5]: instead of
                the target the aesthetic score.

        Returns:
            [R, 4, h, w] float32: the noise or the velocity, see ``prediction``.
        """
        missing = self._unet.config.in_channels - x.shape[1]
        if self._inpaints and missing:
            x = torch.cat([x, self._decoder.unpainted(*x.shape[2:]).expand(len(x), -1, -1, -1)], 1)
        elif missing:
            x = nn.functional.pad(x, (0, 0, 0, 0, 0, missing))
        inputs = (
            x.to(self._computing),
            t,
            tokens.to(self._computing),
            None if pooled is None else pooled.to(self._computing),
            None if size_ids is None else size_ids.float(),
        )
        unusual = self._computing != self.dtype or self._residence.streams
        return self._forwards(inputs, plainly=self._plainly or unusual).float()

    def draft(self, latent: Tensor, *, whole: bool = False) -> Draft:
        """Queue the decoding of a latent [4, h, w] float32; see :meth:`Decoder.draft`."""
        return self._decoder.draft(latent, whole=whole)

    def decode(self, latent: Tensor, *, after: Draft | None = None, whole: bool = False) -> Tensor:
        """A latent [4, h, w] float32 to pixels [8h, 8w, 3] uint8 on the CPU.

        Args:
            after: a draft of it that was not finite.
            whole: see :meth:`Decoder.draft`.

        Raises:
            NumericFailure: the latent, or the image even in float32, is not finite.
        """
        return self._decoder.decode(latent, after=after, whole=whole)

    def encode_picture(self, picture: Tensor) -> Tensor:
        """Pixels [H, W, 3] uint8 to their mean latent, [4, H/8, W/8] float32 on ``device``, as
        samplers have them; see :meth:`Decoder.encode`.

        webui draws from the distribution around the mean instead, by a generator that it shares
        with all else, so that its latent is another each time.
        """
        return self._decoder.encode(picture.permute(2, 0, 1).float() / 255 * 2 - 1)


def _call(work: Work, family: str, module: nn.Module, mode: str) -> Call:
    weights = list(module.parameters())
    dtype = str(weights[0].dtype).removeprefix("torch.")
    numbers = sum(weight.numel() for weight in weights)
    return Call(work, family, numbers, dtype, mode, pixels=0, rows=1)
