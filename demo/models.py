"""The four models of the demo checkpoint, while they are trained."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from demo.captions import phrases
from farm.worker.models.tokenizer import LENGTH, clip_tokenizer
from tests.checkpoints import diffusers_pipeline

CONFIGS = Path(__file__).parents[1] / "farm" / "data" / "demo" / "demo.config"
TRAINED_LAYERS = 2
"""Of the second text encoder. The file has more, which pass their input on: with fewer than ten
diffusers would take it for an SD1.5 checkpoint."""

Weights = dict[str, Tensor]


class Words:
    """The part of CLIP's vocabulary that captions use; other words are never trained."""

    def __init__(self) -> None:
        self._tokenizer: Any = clip_tokenizer("eos")
        used = {number for text in phrases() for number in self.tokens(text)}
        self.ids = torch.tensor(sorted({0, *used}))
        """Numbers in the whole vocabulary, ascending, so that the end token stays the last."""
        self._place = {number: place for place, number in enumerate(self.ids.tolist())}

    def __len__(self) -> int:
        return len(self.ids)

    def tokens(self, text: str) -> list[int]:
        """Numbers in the whole vocabulary, with start and end, at most 77."""
        return self._tokenizer(text, truncation=True, max_length=LENGTH).input_ids

    def read(self, texts: Iterable[str], pad: int) -> Tensor:
        """int64 [text, 77], numbered by place in ``ids``; unknown words are left out."""
        rows = []
        for text in texts:
            places = [self._place[number] for number in self.tokens(text) if number in self._place]
            rows.append(places + [pad] * (LENGTH - len(places)))
        return torch.tensor(rows)


class Models:
    """VAE, UNet and two text encoders with shortened vocabularies and layers.

    Attributes:
        words: which rows of the token tables are held.
        vae: its latents times ``vae.config.scaling_factor`` are what the UNet denoises.
    """

    def __init__(self) -> None:
        self.words = Words()
        self.vae: Any = AutoencoderKL.from_config(_config("vae"))
        self.unet: Any = UNet2DConditionModel.from_config(_config("unet"))
        nn.init.zeros_(self.unet.conv_out.weight)
        self.text1: Any = CLIPTextModel(self._text_config("text_encoder"))
        self.text2: Any = CLIPTextModelWithProjection(self._text_config("text_encoder_2"))
        self.vae.eval().requires_grad_(False)
        for model in (self.vae, self.unet):
            model.to(memory_format=torch.channels_last)

    @property
    def device(self) -> torch.device:
        """Where all four lie."""
        return self.unet.device

    def to(self, device: torch.device) -> Models:
        """Take all four there."""
        for model in (self.vae, *self.trained().values()):
            model.to(device)
        return self

    def trained(self) -> dict[str, nn.Module]:
        """What learns to denoise."""
        return {"unet": self.unet, "text1": self.text1, "text2": self.text2}

    def load_file(self, path: Path) -> None:
        """Go on from an exported checkpoint."""
        pipeline = diffusers_pipeline(path)
        self.vae.load_state_dict(pipeline.vae.state_dict())
        self.unet.load_state_dict(pipeline.unet.state_dict())
        self.text1.load_state_dict(self._shortened(pipeline.text_encoder))
        self.text2.load_state_dict(self._shortened(pipeline.text_encoder_2))

    def latents(self, pictures: Tensor) -> Tensor:
        """float [n, 4, h/8, w/8] of pictures [n, 3, h, w] from -1 to 1."""
        with torch.no_grad():
            pictures = pictures.to(self.device, memory_format=torch.channels_last)
            return self.vae.encode(pictures).latent_dist.mean * self.vae.config.scaling_factor

    def pictures(self, latents: Tensor) -> Tensor:
        """The way back from :meth:`latents`, cut off to the range from -1 to 1."""
        with torch.no_grad():
            return self.vae.decode(latents / self.vae.config.scaling_factor).sample.clamp(-1, 1)

    def prompts(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Texts as the UNet reads them: [text, 77, 96] and the summaries [text, 64]."""
        first = self.words.read(texts, pad=len(self.words) - 1).to(self.device)
        second = self.words.read(texts, pad=0).to(self.device)
        narrow = self.text1(first, output_hidden_states=True).hidden_states[-2]
        wide = self.text2(second, output_hidden_states=True)
        return torch.cat([narrow, wide.hidden_states[-2]], -1), wide.text_embeds

    def noise(self, latents: Tensor, times: Tensor, texts: tuple[Tensor, Tensor]) -> Tensor:
        """The UNet's guess of the noise in ``latents`` at ``times``."""
        height, width = (8 * side for side in latents.shape[-2:])
        sizes = torch.tensor([[height, width, 0, 0, height, width]] * len(latents)).float()
        added = {"text_embeds": texts[1], "time_ids": sizes.to(self.device)}
        latents = latents.contiguous(memory_format=torch.channels_last)
        return self.unet(latents, times.to(self.device), texts[0], added_cond_kwargs=added).sample

    def _text_config(self, part: str) -> CLIPTextConfig:
        end = len(self.words) - 1
        own = {"vocab_size": end + 1, "bos_token_id": end - 1, "eos_token_id": end}
        own |= {"pad_token_id": 0, "num_hidden_layers": TRAINED_LAYERS}
        return CLIPTextConfig(**{**_config(part), **own})

    def _shortened(self, encoder: Any) -> Weights:
        last = encoder.config.num_hidden_layers - 1
        kept = {0: 0, last: TRAINED_LAYERS - 1}
        short = {}
        for name, weight in encoder.state_dict().items():
            layer = re.search(r"\.layers\.(\d+)\.", name)
            if layer and int(layer[1]) not in kept:
                continue
            if layer:
                name = name.replace(layer[0], f".layers.{kept[int(layer[1])]}.")  # noqa: PLW2901
            short[name] = weight[self.words.ids] if "token_embedding" in name else weight
        return short

    def whole(self, part: str) -> Weights:
        """A text encoder's weights as the file has them: every token, every layer.

        Args:
            part: ``text_encoder`` or ``text_encoder_2``.
        """
        short = (self.text1 if part == "text_encoder" else self.text2).state_dict()
        layers = _config(part)["num_hidden_layers"]
        weights = {}
        for name, weight in short.items():
            if "token_embedding" in name:
                weights[name] = torch.zeros(_config(part)["vocab_size"], weight.shape[1])
                weights[name][self.words.ids] = weight
            elif ".layers.0." in name:
                weights[name] = weight
                for layer in range(1, layers - 1):
                    weights[name.replace(".0.", f".{layer}.", 1)] = _passing_on(name, weight)
            else:
                weights[name.replace(".layers.1.", f".layers.{layers - 1}.")] = weight
        return weights


def _passing_on(name: str, weight: Tensor) -> Tensor:
    """A weight of a layer that adds nothing to what it is given."""
    is_norm = "layer_norm" in name and name.endswith("weight")
    return torch.ones_like(weight) if is_norm else torch.zeros_like(weight)


def _config(part: str) -> dict[str, Any]:
    file = "scheduler_config" if part == "scheduler" else "config"
    return json.loads((CONFIGS / part / f"{file}.json").read_text(encoding="utf-8"))
