"""One checkpoint's weights on one device, and the three things they compute."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Container, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace

import torch
from torch import Tensor, nn

from farm.spec.measurement import Call
from farm.spec.networks import Loras
from farm.spec.reading import ReadingOptions
from farm.worker.memory.pictures import whole_pixels
from farm.worker.memory.planner import encode_pixels
from farm.worker.memory.profiles import MemoryProfile
from farm.worker.models.calls import call_of, name_of
from farm.worker.models.decoder import Decoder, Draft
from farm.worker.models.embeddings import EmbeddingShelf
from farm.worker.models.lora import LoraFile
from farm.worker.models.patches import Patches, Side
from farm.worker.models.predictor import Predictor
from farm.worker.models.residence import TEXT_ENCODERS, Residence, lay_out
from farm.worker.models.text import PLAINLY, TextEncoder, TextEncoding, Words


class Checkpoint:
    """Resident weights of one file on one device. Call it from one thread at a time.

    Attributes:
        name: the checkpoint's name in the catalogue.
        identity: name and files; another one that goes by the name some day has another.
        family: such as ``sd15``, see :data:`farm.worker.models.architecture.FAMILIES`.
        prediction: what the UNet returns: ``epsilon`` or ``v_prediction``.
        device: of the UNet.
        alphas_cumprod: 1000 values in float64, from the scheduler's betas.
        load_seconds: what loading took.
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
        saved: Counter[torch.dtype] | None = None,
    ) -> None:
        self.name = name
        self.identity = name, marks
        self.family = family
        self.prediction = prediction
        self.alphas_cumprod = alphas_cumprod
        self.device = device
        self.load_seconds = load_seconds
        lay_out(modules, profile)
        self._residence = Residence(modules, device, streams=streams)
        self._patches = Patches(modules, family)
        self._unet = modules["unet"]
        self._decoder = Decoder(
            modules["vae"],
            tile_over=lambda dtype: whole_pixels(profile, name_of(dtype)),
            encode_tile_over=lambda dtype: encode_pixels(profile, name_of(dtype)),
            tile=profile.vae_tile,
            tiny=tiny and tiny.to(getattr(torch, profile.dtype)),
            saved=saved,
        )
        self._predictor = Predictor(self._unet, profile, device, unpainted=self._decoder.unpainted)
        self._unet_call = call_of("denoise", family, self._unet, profile.attention)
        self._vae_call = call_of("decode", family, modules["vae"], "taesd" if tiny else "whole")
        texts = [modules[part] for part in TEXT_ENCODERS if part in modules]
        self._text = TextEncoder(texts, family, device)

    @property
    def edits(self) -> bool:
        """Whether it is a model for editing, which is shown a picture."""
        return self._predictor.edits

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

    @property
    def vae_call(self) -> Call:
        """How decodings are measured that begin now; of no pixels."""
        dtype = name_of(self._decoder.dtype)
        return (
            self._vae_call
            if dtype == self._vae_call.dtype
            else replace(self._vae_call, dtype=dtype)
        )

    def decode_call(self, pixels: int, *, strict: bool = False) -> Call:
        """How the decoding of so many pixels that begins now is measured; see :class:`Decoder`."""
        call = self._vae_call if strict else self.vae_call
        mode = "tiles" if pixels > self.tile_over else call.mode
        return replace(call, mode=mode, pixels=pixels)

    def encode_call(self, pixels: int, *, strict: bool = False) -> Call:
        """How the encoding of so many pixels that begins now is measured."""
        call = self._vae_call if strict else self.vae_call
        mode = "encode-tiles" if pixels > self.encode_tile_over else "encode"
        return replace(call, mode=mode, pixels=pixels)

    @property
    def encode_tile_over(self) -> int:
        """Pixels above which pictures are encoded in tiles."""
        return self._decoder.encode_tile_over

    @encode_tile_over.setter
    def encode_tile_over(self, pixels: int) -> None:
        self._decoder.encode_tile_over = pixels

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
        return self._predictor.side

    def stream(self) -> bool:
        """Have the UNet's weights leave the device, and pass through it in each forward.

        Returns:
            Whether that made room.
        """
        makes_room = self._residence.may_stream
        if makes_room:
            self._predictor.forwards.forget()
        self._residence.stream()
        return makes_room

    @property
    def squeezed(self) -> bool:
        """Whether :meth:`stream` was called: read anew it would be quicker again."""
        return self._residence.squeezed

    @property
    def squeezed_seconds(self) -> float:
        """Since :meth:`stream` was last called; 0 where it was not."""
        return self._residence.squeezed_seconds

    def give_up_speed(self) -> bool:
        """Do without what makes its forwards quicker and takes memory of the device.

        Returns:
            Whether that made room.
        """
        return self._predictor.forwards.give_up()

    @property
    def recorded_bytes(self) -> int | None:
        """Memory of ``device`` that recorded forwards hold; None where none are recorded."""
        return self._predictor.forwards.recorded_bytes

    def to_host(self, needed: Container[nn.Module]) -> None:
        """Move the weights to host memory, but for models ``needed`` by other checkpoints."""
        self._predictor.forwards.forget()
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
        return self._predictor.rungs

    def precision(self, rungs: int) -> str:
        """The name of the precision so many above that of the UNet's weights."""
        return self._predictor.precision(rungs)

    def lifted(self, rungs: int, *, plainly: bool = False) -> AbstractContextManager[None]:
        """In the block the UNet computes in a higher precision; see :meth:`Predictor.lifted`."""
        return self._predictor.lifted(rungs, plainly=plainly)

    def encode(
        self,
        *texts: str,
        negative: bool = False,
        reading: ReadingOptions = PLAINLY,
        embeddings: EmbeddingShelf | None = None,
    ) -> TextEncoding:
        """Encode what a prompt says, at any length; see :meth:`TextEncoder.encode_together`."""
        words = [Words(texts, negative)]
        return self.encode_together(words, reading=reading, embeddings=embeddings)[0]

    def encode_together(
        self,
        prompts: Sequence[Words],
        *,
        reading: ReadingOptions = PLAINLY,
        embeddings: EmbeddingShelf | None = None,
    ) -> list[TextEncoding]:
        """Encode several at once; see :meth:`TextEncoder.encode_together`."""
        return self._text.encode_together(prompts, reading=reading, embeddings=embeddings)

    def predict(
        self,
        x: Tensor,
        t: Tensor,
        tokens: Tensor,
        *,
        pooled: Tensor | None = None,
        size_ids: Tensor | None = None,
    ) -> Tensor:
        """One UNet forward; see :meth:`Predictor.predict`."""
        return self._predictor.predict(
            x, t, tokens, pooled=pooled, size_ids=size_ids, plainly=self._residence.streams
        )

    def draft(self, latent: Tensor, *, whole: bool = False, strict: bool = False) -> Draft:
        """Queue the decoding of a latent [4, h, w] float32; see :meth:`Decoder.draft`."""
        return self._decoder.draft(latent, whole=whole, strict=strict)

    def decode(self, latent: Tensor, *, after: Draft | None = None, whole: bool = False) -> Tensor:
        """A latent [4, h, w] float32 to pixels [8h, 8w, 3] uint8; see :meth:`Decoder.decode`."""
        return self._decoder.decode(latent, after=after, whole=whole)

    def encode_picture(self, picture: Tensor, *, strict: bool = False) -> Tensor:
        """Pixels [H, W, 3] uint8 to their mean latent, [4, H/8, W/8] float32 on ``device``, as
        samplers have them; see :meth:`Decoder.encode`."""
        shown = picture.permute(2, 0, 1).float() / 255 * 2 - 1
        return self._decoder.encode(shown, strict=strict)
