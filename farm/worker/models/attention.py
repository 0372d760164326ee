"""Attention by name: the same sum, computed in different ways.

``sdpa`` is torch's own, which picks a kernel that never holds all scores at once where there is
one. ``xformers`` is the library of that name. ``sub-quadratic`` and ``sliced`` are plain torch for
devices where neither has such a kernel: their memory stays bounded however large the picture is.

The processor is ours because diffusers' own backends pass by the UNets of Stable Diffusion:
``set_attention_backend`` changes nothing in them.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import ModuleType
from typing import Any, TypeAlias

import torch
from diffusers.models.attention_processor import Attention as Layer
from torch import Tensor, nn
from torch.nn import functional

from farm.errors import InvalidInput
from farm.worker.models.precision import computing_in

Attend: TypeAlias = Callable[[Tensor, Tensor, Tensor, Tensor | None], Tensor]
"""Queries [B, H, Q, D], keys and values [B, H, K, D], and what is added to the scores,
[B, H or 1, Q or 1, K] or None; gives [B, H, Q, D]."""

QUERIES, KEYS = 1024, 4096
"""Sides of a piece of the scores that ``sub-quadratic`` holds."""
SLICE_BYTES = 256 * 2**20
"""Scores that ``sliced`` holds at once, unless those of a single head are more."""


class Attention:
    """Runs the attention layers of a UNet or VAE; see diffusers' ``AttnProcessor2_0``."""

    def __init__(self, name: str) -> None:
        self._attend = backend(name)
        self._narrow = name in NARROW

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        *,
        attention_mask: Tensor | None = None,
        temb: Tensor | None = None,
    ) -> Tensor:
        """What the layer ``attn`` adds to its input, or makes of it, of the input's shape and
        precision; between them scores are in the precision of its queries."""
        hidden = (
            hidden_states if attn.spatial_norm is None else attn.spatial_norm(hidden_states, temb)
        )
        picture = hidden.ndim == 4
        if picture:
            hidden = hidden.flatten(2).transpose(1, 2)
        if attn.group_norm is not None:
            hidden = attn.group_norm(hidden.transpose(1, 2)).transpose(1, 2)
        context = hidden if encoder_hidden_states is None else encoder_hidden_states
        if encoder_hidden_states is not None and attn.norm_cross:
            context = attn.norm_encoder_hidden_states(context)
        query, key, value = (
            layer(states).unflatten(-1, (attn.heads, -1)).transpose(1, 2)
            for layer, states in (
                (attn.to_q, hidden),
                (attn.to_k, context),
                (attn.to_v, context),
            )
        )
        if attn.upcast_attention and self._narrow:
            query, key = query.float(), key.float()
        if attention_mask is not None:
            attention_mask = attn.prepare_attention_mask(
                attention_mask, key.shape[2], len(key)
            ).view(len(key), attn.heads, -1, attention_mask.shape[-1])
        made: Tensor = self._attend(query, key, value.to(query.dtype), attention_mask)
        made = made.transpose(1, 2).flatten(2).to(value.dtype)
        made = attn.to_out[1](attn.to_out[0](made))
        if picture:
            made = made.transpose(1, 2).reshape(hidden_states.shape)
        if attn.residual_connection:
            made = made + hidden_states
        factor: float = attn.rescale_output_factor
        return made if factor == 1 else made / factor


class _Direct(Layer):  # type: ignore[misc]
    """A layer that goes straight to its processor.

    diffusers' own reads the processor's signature at every call. SDXL has 140 such layers, and on
    a fast card a small picture's forward would wait for that longer than for its sums.
    """

    def forward(
        self,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        temb: Tensor | None = None,
    ) -> Tensor:
        """See diffusers' ``Attention``."""
        made: Tensor = self.processor(
            self, hidden_states, encoder_hidden_states, attention_mask=attention_mask, temb=temb
        )
        return made


def lay(model: Any, name: str) -> None:
    """Have the layers of a UNet or VAE attend by the backend called ``name``.

    Raises:
        InvalidInput: as :func:`backend` does.
    """
    model.set_attn_processor(Attention(name))
    for layer in model.modules():
        if type(layer) is Layer:
            # Not a forward of its own, which would tie it to itself and outlive its last user.
            layer.__class__ = _Direct


@contextmanager
def scoring_in(model: nn.Module, dtype: torch.dtype) -> Iterator[None]:
    """In the block the attention of ``model`` makes its queries and keys in ``dtype``, and so its
    scores and their weighted sums; all else stays in the precision of the weights."""
    made = nn.ModuleList(
        part
        for layer in model.modules()
        if isinstance(layer, Layer)
        for part in (layer.to_q, layer.to_k)
    )
    hooks = [
        part.register_forward_pre_hook(lambda _, given: (given[0].to(dtype),)) for part in made
    ]
    try:
        with computing_in(made, dtype):
            yield
    finally:
        for hook in hooks:
            hook.remove()


def backend(name: str) -> Attend:
    """The attention called ``name``.

    Raises:
        InvalidInput: there is none, or it needs a library that is not here.
    """
    if name == "xformers":
        return _xformers(_library())
    if name not in _BACKENDS:
        raise InvalidInput(
            f"There is no attention {name!r}.",
            field="attention",
            value=name,
            remedy=f"Choose one of {', '.join([*_BACKENDS, 'xformers'])}.",
        )
    return _BACKENDS[name]


def sub_quadratic(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
    """Piece by piece, in memory that does not grow with the square of the picture.

    Rabe and Staats 2021 (arXiv 2112.05682): the sum over keys runs on, with its weights relative
    to the greatest score so far. Sums are in float32.
    """
    scale = query.shape[-1] ** -0.5
    made = torch.empty_like(query)
    for first in range(0, query.shape[2], QUERIES):
        rows = slice(first, first + QUERIES)
        asked = query[:, :, rows] * scale
        most = asked.new_full((*asked.shape[:3], 1), -torch.inf, dtype=torch.float32)
        total, weight = torch.zeros_like(asked, dtype=torch.float32), torch.zeros_like(most)
        for start in range(0, key.shape[2], KEYS):
            part = slice(start, start + KEYS)
            scores = (asked @ key[:, :, part].transpose(-1, -2)).float()
            if mask is not None:
                scores += _part(mask, rows, part)
            greatest = torch.maximum(most, scores.amax(dim=-1, keepdim=True))
            scores = scores.sub_(greatest).exp_()
            before = (most - greatest).exp()
            weight = weight * before + scores.sum(dim=-1, keepdim=True)
            total = total * before + (scores.to(value.dtype) @ value[:, :, part]).float()
            most = greatest
        made[:, :, rows] = (total / weight).to(made.dtype)
    return made


def sliced(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
    """As many heads at once as have room for their scores, as in webui's split attention."""
    rows, heads = query.shape[:2]
    flat = [part.flatten(0, 1) for part in (query * query.shape[-1] ** -0.5, key, value)]
    added = None if mask is None else mask.expand(rows, heads, -1, -1).flatten(0, 1)
    made = torch.empty_like(flat[0])
    at_once = max(1, SLICE_BYTES // (query.shape[2] * key.shape[2] * query.itemsize))
    for first in range(0, rows * heads, at_once):
        part = slice(first, first + at_once)
        asked, known, told = (each[part] for each in flat)
        scores = asked @ known.transpose(-1, -2)
        if added is not None:
            scores = scores + added[part]
        made[part] = torch.softmax(scores, dim=-1) @ told
    return made.view(query.shape)


def _sdpa(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
    return functional.scaled_dot_product_attention(query, key, value, attn_mask=mask)


def _xformers(library: ModuleType) -> Attend:
    def attend(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
        parts = (part.transpose(1, 2).contiguous() for part in (query, key, value))
        bias = None if mask is None else mask.expand(*query.shape[:3], -1)
        made: Tensor = library.memory_efficient_attention(*parts, attn_bias=bias)
        return made.transpose(1, 2)

    return attend


def _library() -> ModuleType:
    try:
        return importlib.import_module("xformers.ops")
    except ImportError as error:
        raise InvalidInput(
            f"The attention xformers needs the library of that name: {error}.",
            field="attention",
            value="xformers",
            remedy="Install xformers for this version of torch, or use sdpa, which is as quick.",
        ) from error


def _part(mask: Tensor, rows: slice, part: slice) -> Tensor:
    return mask[:, :, rows if mask.shape[2] > 1 else slice(None), part]


NARROW = ("sub-quadratic", "sliced")
"""Hold scores in the precision of the queries, where the kernels of the others have float32."""

_BACKENDS: Mapping[str, Attend] = {
    "sdpa": _sdpa,
    "sub-quadratic": sub_quadratic,
    "sliced": sliced,
}
