"""Attention by name: every way gives the same sums, in the memory it promises."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode

from farm.errors import InvalidInput
from farm.worker.memory.profiles import by_name
from farm.worker.models import attention
from farm.worker.models.attention import backend, sliced, sub_quadratic
from farm.worker.models.loader import load
from tests.checkpoints import tiny_file

CPU = torch.device("cpu")
OTHERS = ("sub-quadratic", "sliced", "xformers")


class Largest(TorchDispatchMode):
    """The most numbers that any operation makes, but for views of what was there."""

    def __init__(self) -> None:
        super().__init__()
        self.numbers = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        given = {part.data_ptr() for part in args if isinstance(part, torch.Tensor)}
        if isinstance(made, torch.Tensor) and made.data_ptr() not in given:
            self.numbers = max(self.numbers, made.numel())
        return made


@pytest.fixture
def xformers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stands in for the library: [batch, tokens, heads, width]."""

    def attend(query: Any, key: Any, value: Any, attn_bias: Any = None) -> Any:
        parts = (part.transpose(1, 2) for part in (query, key, value))
        return functional.scaled_dot_product_attention(*parts, attn_mask=attn_bias).transpose(1, 2)

    library = ModuleType("xformers.ops")
    library.memory_efficient_attention = attend  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "xformers", ModuleType("xformers"))
    monkeypatch.setitem(sys.modules, "xformers.ops", library)


def parts(queries: int, keys: int, width: int = 8, heads: int = 2) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = [(1, heads, count, width) for count in (queries, keys, keys)]
    return [torch.randn(shape, generator=generator) * 2 for shape in shapes]


@pytest.mark.parametrize("name", OTHERS)
@pytest.mark.parametrize(("queries", "keys"), [(1, 1), (64, 77), (300, 300), (40, 650)])
@pytest.mark.parametrize("masked", [False, True])
def test_all_give_the_same(
    monkeypatch: pytest.MonkeyPatch,
    xformers: None,
    *,
    name: str,
    queries: int,
    keys: int,
    masked: bool,
) -> None:
    monkeypatch.setattr(attention, "QUERIES", 128)
    monkeypatch.setattr(attention, "KEYS", 100)
    monkeypatch.setattr(attention, "SLICE_BYTES", 4 * queries * keys)
    asked = parts(queries, keys)
    mask = torch.randn(1, 2, queries, keys) if masked else None
    expected = functional.scaled_dot_product_attention(*asked, attn_mask=mask)
    found = backend(name)(asked[0], asked[1], asked[2], mask)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_scores_beyond_float16_do_not_overflow() -> None:
    query, key, value = (part.half() for part in parts(8, 8))
    query, key = query * 60, key * 60
    found = sub_quadratic(query, key, value, None)
    expected = functional.scaled_dot_product_attention(query.float(), key.float(), value.float())
    torch.testing.assert_close(found.float(), expected, rtol=0, atol=2e-2)


def largest(attend: Any, tokens: int) -> int:
    with Largest() as seen:
        attend(*parts(tokens, tokens), None)
    return seen.numbers


def test_sub_quadratic_memory_does_not_grow_with_the_square(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(attention, "QUERIES", 64)
    monkeypatch.setattr(attention, "KEYS", 128)
    heads, width = 2, 8
    for tokens in (256, 512, 1024):
        assert largest(sub_quadratic, tokens) <= max(heads * 64 * 128, heads * tokens * width)


def test_sliced_holds_the_scores_of_so_many_heads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention, "SLICE_BYTES", 4 * 256 * 256)
    assert largest(sliced, 256) == 256 * 256
    monkeypatch.setattr(attention, "SLICE_BYTES", 2**30)
    assert largest(sliced, 256) == 2 * 256 * 256


@pytest.mark.parametrize("family", ["sd15", "sd2", "sdxl"])
@pytest.mark.parametrize("name", OTHERS)
@torch.no_grad()
def test_checkpoints_compute_the_same_with_each(
    tmp_path: Path, xformers: None, family: str, name: str
) -> None:
    file = tiny_file(tmp_path, family)
    made = []
    for chosen in ("sdpa", name):
        checkpoint = load(file, replace(by_name("cpu"), attention=chosen), CPU)
        text = checkpoint.encode("a red apple")
        sizes = None if text.pooled is None else torch.tensor([[64.0, 64, 0, 0, 64, 64]])
        x = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
        t = torch.tensor([500.0])
        noise = checkpoint.predict(x, t, text.tokens, pooled=text.pooled, size_ids=sizes)
        made.append((noise, checkpoint.decode(x[0] * 0.2).float()))
    torch.testing.assert_close(made[1][0], made[0][0], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(made[1][1], made[0][1], rtol=0, atol=1)


def test_xformers_that_is_not_there_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "xformers", None)
    with pytest.raises(InvalidInput, match="library of that name") as caught:
        backend("xformers")
    assert caught.value.field == "attention"
    assert "sdpa" in str(caught.value.remedy)


def test_an_unknown_attention_lists_the_known_ones() -> None:
    with pytest.raises(InvalidInput, match="sdpa, sub-quadratic, sliced, xformers"):
        backend("flash")
