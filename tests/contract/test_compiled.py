"""A UNet's blocks compiled in the background: the same forwards, and never waited for."""

from __future__ import annotations

import shutil
import threading
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import torch
import torch._inductor.config
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor, nn
from torch._dynamo.utils import counters

from farm.worker.memory.profiles import by_name
from farm.worker.models.cache import ModelCache
from farm.worker.models.checkpoint import Checkpoint
from farm.worker.models.compiled import CompiledBlocks
from farm.worker.models.forwards import Forwards
from farm.worker.models.precision import computing_in, rungs
from farm.worker.models.workbench import WORKBENCH
from tests.checkpoints import tiny_file
from tests.conftest import eventually

CPU = torch.device("cpu")


class Block(nn.Module):
    """A transformer's block, as far as a compiler cares."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, width)

    def forward(self, x: Tensor, *, shift: Tensor | None = None) -> Tensor:
        made = self.linear(x).relu() + x
        return made if shift is None else made + shift


class Net(ModelMixin, ConfigMixin):
    """Some alike blocks and another one. The first one's input does not lie in order."""

    _repeated_blocks = ("Block",)

    @register_to_config
    def __init__(self, alike: int = 3) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([Block(4) for _ in range(alike)])
        self.last = Block(6)

    def forward(self, x: Tensor) -> Tensor:
        x = x.transpose(1, 2)
        for block in self.blocks:
            x = block(x, shift=x * 0.5)
        return self.last(torch.cat([x, x[..., :2]], -1))


class Backend:
    """A compiler that compiles nothing, when the test lets it, and counts."""

    def __init__(self) -> None:
        self.graphs = 0
        self.let = threading.Event()
        self.error: Exception | None = None

    def __call__(self, graph: Any, _: Any) -> Any:
        assert self.let.wait(60)
        if self.error:
            raise self.error
        self.graphs += 1
        return graph.forward


@pytest.fixture
def backend() -> Any:
    torch._dynamo.reset()
    counters.clear()
    backend = Backend()
    yield backend
    backend.let.set()


def inputs(rows: int = 2) -> Tensor:
    return torch.randn(rows, 4, 3, generator=torch.Generator().manual_seed(rows))


@torch.no_grad()
def test_it_runs_as_it_is_until_a_shape_is_ready(backend: Backend) -> None:
    net = Net()
    plain = net(inputs())
    blocks = CompiledBlocks(net, backend=backend)  # type: ignore[arg-type]
    for _ in range(3):
        with blocks.used("two"):
            assert torch.equal(net(inputs()), plain)
    assert not blocks.ready("two")
    backend.let.set()
    blocks.wait()
    assert blocks.ready("two")
    assert backend.graphs == 3  # of four blocks two are alike
    with blocks.used("two"):
        torch.testing.assert_close(net(inputs()), plain)
    assert counters["stats"]["unique_graphs"] == 3, "a step compiled instead of the thread"


@torch.no_grad()
def test_weights_may_change_in_place(backend: Backend) -> None:
    net = Net()
    backend.let.set()
    blocks = CompiledBlocks(net, backend=backend)  # type: ignore[arg-type]
    with blocks.used("two"):
        net(inputs())
    blocks.wait()
    for weight in net.parameters():
        weight.mul_(1.5)
    expected = net(inputs())
    with blocks.used("two"):
        torch.testing.assert_close(net(inputs()), expected)
    assert backend.graphs == 3


@torch.no_grad()
def test_another_shape_is_compiled_for_itself_and_runs_as_it_is_meanwhile(
    backend: Backend,
) -> None:
    net = Net()
    backend.let.set()
    blocks = CompiledBlocks(net, backend=backend)  # type: ignore[arg-type]
    for rows in (2, 3):
        with blocks.used(rows):
            net(inputs(rows))
        assert net.last._compiled_call_impl is None
        blocks.wait()
    assert backend.graphs == 6
    with blocks.used(3):
        net(inputs(3))
        assert net.last._compiled_call_impl is not None
    blocks.unused()
    assert net.last._compiled_call_impl is None


@torch.no_grad()
def test_nothing_watches_blocks_that_are_being_compiled(backend: Backend) -> None:
    net = Net()
    blocks = CompiledBlocks(net, backend=backend)  # type: ignore[arg-type]
    with blocks.used(2):
        net(inputs(2))
    with blocks.used(3):
        assert not any(block._forward_pre_hooks for block in blocks._blocks)
    backend.let.set()
    blocks.wait()
    with blocks.used(3):
        net(inputs(3))
    blocks.wait()
    assert blocks.ready(2)
    assert blocks.ready(3)


@torch.no_grad()
def test_a_rescue_meanwhile_does_not_get_into_what_is_compiled(backend: Backend) -> None:
    net = Net()
    plain = net(inputs())
    backend.let.set()
    blocks = CompiledBlocks(net, backend=backend)  # type: ignore[arg-type]
    with WORKBENCH:  # so that nothing of it is read before the rescue begins
        with blocks.used("two"):
            net(inputs())
        rescue = ExitStack()
        rescue.enter_context(computing_in(net, torch.bfloat16))
    with rescue:
        blocks.unused()
        assert net(inputs().bfloat16()).dtype == torch.bfloat16
        blocks.wait()
    assert blocks.ready("two")
    with blocks.used("two"):
        torch.testing.assert_close(net(inputs()), plain)
    assert counters["stats"]["unique_graphs"] == 3, "a step compiled instead of the thread"


@torch.no_grad()
def test_of_two_checkpoints_one_is_compiled_at_a_time_and_no_forward_waits(
    backend: Backend,
) -> None:
    both = [CompiledBlocks(net, backend=backend) for net in (Net(), Net(alike=1))]  # type: ignore[arg-type]
    reached: list[int] = []
    let = backend.let.wait

    def once(timeout: float) -> bool:
        reached.append(backend.graphs)
        return let(timeout)

    backend.let.wait = once  # type: ignore[method-assign]
    for number, blocks in enumerate(both):
        with blocks.used(number):
            blocks._blocks[-1](torch.ones(2, 3, 6))
    eventually(lambda: reached)
    assert all(blocks.busy for blocks in both)
    for number, blocks in enumerate(both):
        with blocks.used(number):
            blocks._blocks[-1](torch.ones(2, 3, 6))
    assert reached == [0]
    backend.let.set()
    for blocks in both:
        blocks.wait()
    assert all(blocks.ready(number) for number, blocks in enumerate(both))


@torch.no_grad()
def test_a_forward_that_fails_shows_nothing_and_the_next_one_does(backend: Backend) -> None:
    net = Net()
    backend.let.set()
    blocks = CompiledBlocks(net, backend=backend)  # type: ignore[arg-type]
    with pytest.raises(torch.OutOfMemoryError), blocks.used(2):
        raise torch.OutOfMemoryError("CUDA out of memory")
    with blocks.used(2):
        net(inputs(2))
    blocks.wait()
    assert blocks.ready(2)


@torch.no_grad()
def test_what_cannot_be_compiled_runs_as_it_is_for_ever(
    backend: Backend, caplog: pytest.LogCaptureFixture
) -> None:
    net = Net()
    plain = net(inputs())
    backend.let.set()
    backend.error = RuntimeError("no compiler is found")
    blocks = CompiledBlocks(net, backend=backend)  # type: ignore[arg-type]
    for _ in range(2):
        with blocks.used("two"):
            assert torch.equal(net(inputs()), plain)
        blocks.wait()
    assert not blocks.ready("two")
    assert caplog.text.count("no compiler is found") == 1


@pytest.mark.skipif(not shutil.which("g++"), reason="torch compiles for CPUs with a compiler")
@torch.no_grad()
def test_torch_s_own_compiler_keeps_what_it_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    # For one block it takes longer than all the rest.
    monkeypatch.setattr(torch._inductor.config, "cpp_cache_precompile_headers", False)
    net = Net(alike=0)
    plain = net(inputs())
    hits = []
    for _ in range(2):
        torch._dynamo.reset()
        counters.clear()
        blocks = CompiledBlocks(net)
        with blocks.used("two"):
            net(inputs())
        blocks.wait()
        with blocks.used("two"):
            torch.testing.assert_close(net(inputs()), plain)
        hits.append(counters["aot_autograd"]["autograd_cache_hit"])
    assert hits == [0, 1]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    file = tiny_file(tmp_path_factory.mktemp("tiny"), "sdxl")
    return ModelCache([file], by_name("cpu"), CPU).get(file.name)


def predicted(checkpoint: Checkpoint) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    text = checkpoint.encode("a cat", "a dog")
    x = torch.randn(2, 4, 8, 8, generator=generator)
    sizes = torch.full((2, 6), 64.0)
    return checkpoint.predict(
        x, torch.full((2,), 500.0), text.tokens, pooled=text.pooled, size_ids=sizes
    )


@torch.no_grad()
def test_a_real_unet_s_blocks_are_compiled_and_left_alone_in_a_higher_precision(
    checkpoint: Checkpoint, backend: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend.let.set()
    plain = predicted(checkpoint)
    blocks = CompiledBlocks(checkpoint._unet, backend=backend)  # type: ignore[arg-type]
    forwards = Forwards(checkpoint._unet, by_name("cpu"), CPU)
    forwards._compiled = blocks
    monkeypatch.setattr(checkpoint._predictor, "forwards", forwards)
    predicted(checkpoint)
    blocks.wait()
    assert backend.graphs == 2
    torch.testing.assert_close(predicted(checkpoint), plain)
    assert checkpoint._unet._compiled_call_impl is None
    used = [block for block in blocks._blocks if block._compiled_call_impl]
    assert len(used) == len(blocks._blocks) > 2
    # As if its weights were.
    monkeypatch.setattr(checkpoint._predictor, "_ladder", rungs(torch.bfloat16))
    predicted(checkpoint)
    assert not any(block._compiled_call_impl for block in blocks._blocks)
    assert counters["stats"]["unique_graphs"] == 2
