"""Models that enlarge pictures: what spandrel makes of them, in tiles; nothing of a file is run."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from spandrel import ModelLoader
from torch import Tensor

from farm.errors import FarmError, UpscalerError
from farm.spec.job import JobSpec
from farm.worker.engine import Engine, enlarging, upscales
from farm.worker.memory.profiles import by_name
from farm.worker.models.cache import ModelCache
from farm.worker.models.catalogue import scan
from farm.worker.models.library import Library
from farm.worker.models.tiles import Mosaic
from farm.worker.models.upscaler import UpscalerShelf, read_upscaler
from tests.checkpoints import make_tiny
from tests.conftest import eventually
from tests.small_files import small_file
from tests.trap import Trap
from tests.upscalers import esrgan, renamed, write_upscaler

CPU = torch.device("cpu")


def picture(width: int, height: int) -> Tensor:
    generator = torch.Generator().manual_seed(width * height)
    return torch.randint(0, 256, (height, width, 3), generator=generator, dtype=torch.uint8)


def by_spandrel(weights: dict[str, Tensor], before: Tensor) -> Tensor:
    """What its own call makes of the whole picture."""
    model = ModelLoader("cpu").load_from_state_dict(dict(weights)).eval()
    pixels = before.permute(2, 0, 1)[None].float() / 255
    made: Any = model(pixels)
    whole: Tensor = made[0].mul(255).round().to(torch.uint8).permute(1, 2, 0)
    return whole


def tiled(path: Path, before: Tensor, *, tile: int, overlap: int = 8) -> Tensor:
    model = read_upscaler(path)
    placed = model.placed(torch.float32, CPU)
    height, width = before.shape[:2]
    mosaic = Mosaic(width, height, scale=model.scale, tile=tile, overlap=overlap)
    while (place := mosaic.next) is not None:
        mosaic.put(placed(before[place]))
    return mosaic.picture


@pytest.mark.parametrize("naming", ["old", "new"])
@pytest.mark.parametrize("file", ["x.safetensors", "x.pth", "bare.pth"])
def test_one_tile_is_what_spandrel_makes(tmp_path: Path, file: str, naming: str) -> None:
    weights = esrgan() if naming == "old" else renamed(esrgan())
    path = write_upscaler(tmp_path / file, weights, wrapped=file != "bare.pth")
    before = picture(40, 24)
    expected = by_spandrel(weights, before)
    assert expected.float().std() > 10
    assert torch.equal(tiled(path, before, tile=192), expected)


@pytest.mark.parametrize("scale", [1, 2, 4])
def test_away_from_the_seams_tiles_are_what_the_whole_is(tmp_path: Path, scale: int) -> None:
    weights = esrgan(scale=scale)
    path = write_upscaler(tmp_path / "x.pth", weights)
    before = picture(150, 96)
    made, expected = tiled(path, before, tile=96), by_spandrel(weights, before)
    assert made.shape == expected.shape == (96 * scale, 150 * scale, 3)
    # The tiles are columns 0 to 96 and 54 to 150.
    for first, last in ((0, 54 - 0), (96, 150)):
        inner = slice(first * scale, last * scale)
        assert torch.equal(made[:, inner], expected[:, inner])
    differ = (made != expected).any(2).any(0).nonzero()
    assert differ.min() >= 54 * scale
    assert differ.max() < 96 * scale
    # Each tile is blind for what lies beyond its edge, and counts little there.
    assert (made.float() - expected.float()).abs().max() < 64


def test_tiles_cover_all_once_and_fade() -> None:
    for width, height, tile in [(192, 192, 192), (193, 40, 192), (1000, 700, 192), (65, 64, 32)]:
        mosaic = Mosaic(width, height, scale=2, tile=tile, overlap=8)
        while (place := mosaic.next) is not None:
            sides = [each.stop - each.start for each in place]
            assert max(sides) <= tile
            mosaic.put(torch.full((3, *(2 * side for side in sides)), 0.6))
        assert mosaic.picture.shape == (2 * height, 2 * width, 3)
        assert (mosaic.picture == 153).all()
    # Of a dark tile beside a bright one no neighbours differ by more than a fade allows.
    mosaic = Mosaic(64, 8, scale=4, tile=36, overlap=8)
    shade = 0.0
    while (place := mosaic.next) is not None:
        mosaic.put(torch.full((3, 32, 36 * 4), shade))
        shade += 1.0
    row = mosaic.picture[0, :, 0].float()
    assert (row[0], row[-1]) == (0, 255)
    assert (row[1:] - row[:-1]).min() >= 0
    assert (row[1:] - row[:-1]).max() <= 255 / 32 + 1


@pytest.mark.parametrize("height", [101, 30])
def test_many_rows_of_tiles_are_one_picture(height: int) -> None:
    """Smooth shades, as one that is put together of rows of tiles has them. Of 30 lines two tiles
    share nearly all."""
    shades = torch.rand(3, height, 53, generator=torch.Generator().manual_seed(1))
    mosaic = Mosaic(53, height, scale=1, tile=28, overlap=8)
    held = mosaic._sums.nbytes
    while (place := mosaic.next) is not None:
        mosaic.put(shades[:, *place])
    assert torch.equal(mosaic.picture, (shades * 255).round().to(torch.uint8).permute(1, 2, 0))
    assert mosaic._sums.nbytes == held == 3 * 28 * 53 * 4


def test_a_pickle_is_never_run(tmp_path: Path) -> None:
    mark, path = tmp_path / "ran", tmp_path / "x.pth"
    torch.save({"params": esrgan(), "more": Trap(mark)}, path)
    with pytest.raises(UpscalerError, match="cannot be read as tensors alone") as caught:
        read_upscaler(path)
    assert str(path) in caught.value.message
    assert not mark.exists()
    torch.load(path, weights_only=False)  # the trap does work
    assert mark.exists()


def other(**changes: Tensor) -> dict[str, Tensor]:
    return {**renamed(esrgan()), **changes}


@pytest.mark.parametrize(
    ("weights", "complaint"),
    [
        ({"w": torch.zeros(3)}, "of no architecture"),
        ({}, "holds no weights"),
        ([torch.zeros(3)], "holds no weights"),
        ({"a": "text"}, "holds no weights"),
        (other(**{"conv_first.bias": torch.full((8,), torch.nan)}), "NaN or infinity in 1 weights"),
        (other(**{"conv_last.bias": torch.zeros(4)}), "does not make a model"),
        ({1: torch.zeros(3)}, "holds no weights"),
        ({"params": {1: torch.zeros(3), 2: torch.zeros(3)}}, "holds no weights"),
        (other(more=torch.zeros(3).to_sparse()), "1 tensors of no plain numbers, 'more'"),
        (other(more=torch.zeros(3, device="meta")), "no plain numbers"),
        (other(more=torch.zeros(3, dtype=torch.complex64)), "no plain numbers"),
        # A number, seen as many.
        (other(**{"conv_last.bias": torch.zeros(1).expand(10**13)}), "more than 1024 MB"),
        # Names that ask for a million layers.
        (other(**{"body.999999.rdb1.conv1.weight": torch.zeros(1)}), r"holds \d+ tensors only"),
    ],
)
def test_what_is_no_upscaler_is_refused_by_name_and_reason(
    tmp_path: Path, weights: Any, complaint: str
) -> None:
    path = write_upscaler(tmp_path / "x.pth", weights, wrapped=False)
    with pytest.raises(UpscalerError, match=complaint) as caught:
        read_upscaler(path)
    assert str(path) in caught.value.message
    assert caught.value.remedy


def test_cut_and_strange_files_are_refused(tmp_path: Path) -> None:
    good = write_upscaler(tmp_path / "x.pth", esrgan())
    cut = tmp_path / "cut.pth"
    cut.write_bytes(good.read_bytes()[:9000])
    lora = small_file(tmp_path / "lora.safetensors")
    grey = write_upscaler(tmp_path / "grey.pth", other(**grey_weights()))
    huge = write_upscaler(tmp_path / "huge.pth", esrgan(scale=16))
    for path, complaint in [
        (cut, "cannot be read as tensors alone"),
        (lora, "of no architecture"),
        (tmp_path / "gone.pth", "No such file"),
        (grey, "takes pictures of 1 channels"),
        (huge, "enlarges 16 times, and 8 is the most"),
    ]:
        with pytest.raises(UpscalerError, match=complaint) as caught:
            read_upscaler(path)
        assert str(path) in caught.value.message


def test_large_files_are_not_even_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_upscaler(tmp_path / "x.safetensors", esrgan())
    monkeypatch.setattr("farm.worker.models.upscaler.MAX_BYTES", path.stat().st_size - 1)
    monkeypatch.setattr("farm.worker.models.upscaler.read_tensors", None)
    with pytest.raises(UpscalerError, match="holds more than 0 MB in float32"):
        read_upscaler(path)


def test_what_is_infinite_is_not_taken_for_white(tmp_path: Path) -> None:
    """The last layer overflows float16, and spandrel clamps infinity to 1."""
    last = {"conv_last.bias": torch.tensor([1e5, -1e5, 0.5])}
    model = read_upscaler(write_upscaler(tmp_path / "x.pth", other(**last)))
    before = picture(16, 16)
    with torch.no_grad():
        half = model.placed(torch.float16, CPU)(before)
        whole = model.placed(torch.float32, CPU)(before)
    assert half[:2].isnan().all()
    assert whole.isfinite().all()
    assert (whole[0].min(), whole[1].max()) == (1, 0)


def test_a_model_that_makes_another_size_than_it_says(tmp_path: Path) -> None:
    model = read_upscaler(write_upscaler(tmp_path / "x.pth", esrgan(scale=2)))
    model.scale = 4
    with pytest.raises(ValueError, match=r"makes \[3, 32, 32\] of a tile, not \[3, 64, 64\]"):
        model.placed(torch.float32, CPU)(picture(16, 16))


def grey_weights() -> dict[str, Tensor]:
    weights = renamed(esrgan())
    return {
        "conv_first.weight": weights["conv_first.weight"][:, :1].clone(),
        "conv_last.weight": weights["conv_last.weight"][:1].clone(),
        "conv_last.bias": weights["conv_last.bias"][:1].clone(),
    }


def test_a_shelf_counts_bytes_by_file_and_keeps_what_was_used_last(tmp_path: Path) -> None:
    for seed, name in enumerate("abc"):
        write_upscaler(tmp_path / "ESRGAN" / f"{name}.pth", esrgan(seed=seed))
    paths = [str(tmp_path / "ESRGAN" / f"{name}.pth") for name in "abc"]
    library = Library([tmp_path])
    shelf = UpscalerShelf(library, 0)
    size = shelf.get("a").bytes
    assert size == sum(weight.nbytes for weight in esrgan().values())
    shelf = UpscalerShelf(library, 2 * size)
    first = shelf.get("a")
    shelf.get("b")
    assert shelf.get("a") is first
    shelf.get("c")
    assert shelf.held == {paths[0]: size, paths[2]: size}
    # Another file of that name is another upscaler.
    write_upscaler(tmp_path / "ESRGAN" / "a.pth", esrgan(seed=9))
    assert shelf.get("a") is not first
    assert shelf.held == {paths[2]: size, paths[0]: size}
    with pytest.raises(UpscalerError, match="no upscaler 'd'") as caught:
        shelf.get("d")
    assert "a, b, c" in str(caught.value.remedy)


def test_names_are_webui_s(tmp_path: Path) -> None:
    for place in ("ESRGAN/4x-UltraSharp.pth", "RealESRGAN/RealESRGAN_x4plus.pth", "SwinIR/s.pt"):
        write_upscaler(tmp_path / place, {"w": torch.zeros(1)})
    files = scan([tmp_path])
    assert [(file.kind, file.name) for file in files] == [
        ("upscaler", "4x-UltraSharp"),
        ("upscaler", "R-ESRGAN 4x+"),
        ("upscaler", "s"),
    ]


@pytest.fixture
def models(tmp_path: Path) -> Path:
    make_tiny(tmp_path, "sd15")
    write_upscaler(tmp_path / "ESRGAN" / "four.pth", esrgan())
    return tmp_path


def job(**fields: Any) -> JobSpec:
    values = {
        "prompt": "a cat",
        "checkpoint": "tiny-sd15",
        "width": 64,
        "height": 64,
        "steps": 2,
        "cfg_scale": 1,
        "seed": 1,
        "hires_scale": 2,
        "hires_upscaler": "four",
        "denoising_strength": 0,
        **fields,
    }
    return JobSpec(**values)


@pytest.fixture
def engine(models: Path) -> Iterator[Engine]:
    library, profile = Library([models]), by_name("cpu")
    with Engine(ModelCache(library, profile, CPU), profile, CPU, assets=library) as engine:
        yield engine


def test_a_hires_pass_with_a_model(models: Path, engine: Engine) -> None:
    """At strength 0 it is the first pass, enlarged by the model, encoded and decoded."""
    small = engine.submit("small", job(hires_scale=1)).result(timeout=120).image
    made = engine.submit("large", job()).result(timeout=120).image
    assert made.shape == (128, 128, 3)
    path = str(models / "ESRGAN" / "four.pth")
    assert engine.upscalers == {path: sum(weight.nbytes for weight in esrgan().values())}
    four = by_spandrel(esrgan(), torch.from_numpy(np.array(small)))
    half = Image.fromarray(four.numpy()).resize((128, 128), Image.Resampling.LANCZOS)
    cache = ModelCache(scan([models]), by_name("cpu"), CPU)
    with cache.use("tiny-sd15") as checkpoint, torch.no_grad():
        latent = checkpoint.encode_picture(torch.from_numpy(np.array(half)))
        expected = checkpoint.decode(latent)
    assert torch.equal(torch.from_numpy(np.array(made)), expected)
    other = engine.submit("other", job(hires_upscaler="Lanczos")).result(timeout=120).image
    assert not np.array_equal(made, other)


def test_a_model_runs_until_the_picture_fills_the_target(
    models: Path, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_upscaler(models / "ESRGAN" / "two.pth", esrgan(scale=2))
    write_upscaler(models / "ESRGAN" / "one.pth", esrgan(scale=1))
    engine._core.upscales._shelf._files.scan()  # type: ignore[attr-defined]
    runs: list[tuple[int, int]] = []

    class Counted(Mosaic):
        def __init__(self, width: int, height: int, **options: Any) -> None:
            runs.append((width, height))
            super().__init__(width, height, **options)

    monkeypatch.setattr(enlarging, "Mosaic", Counted)
    for upscaler, expected in [
        ("two", [(64, 64), (128, 128)]),
        ("four", [(64, 64)]),
        ("one", [(64, 64)]),
    ]:
        runs.clear()
        key, asked = upscaler, job(hires_scale=3, hires_upscaler=upscaler)
        assert engine.submit(key, asked).result(timeout=120).image.shape == (192, 192, 3)
        assert runs == expected


def test_what_cannot_be_used_ends_its_own_job_and_is_named(models: Path, engine: Engine) -> None:
    (models / "ESRGAN" / "bad.pth").write_bytes(b"no pickle")
    engine._core.upscales._shelf._files.scan()  # type: ignore[attr-defined]
    beside = engine.submit("good", job())
    for name, complaint in [("fuor", "no upscaler 'fuor'"), ("bad", r"bad\.pth \(/.*as tensors")]:
        with pytest.raises(FarmError, match=complaint) as caught:
            engine.submit(name, job(hires_upscaler=name)).result(timeout=120)
        assert caught.value.remedy
    assert beside.result(timeout=120).image.shape == (128, 128, 3)


def test_it_overflows_runs_out_of_memory_and_is_cancelled(
    models: Path, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    core = engine._core.upscales
    expected = engine.submit("first", job()).result(timeout=120).image
    call = upscales.PlacedUpscaler.__call__
    sides: list[int] = []

    def short(self: Any, tile: Tensor) -> Tensor:
        sides.append(tile.shape[0])
        if tile.shape[0] > 48:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return call(self, tile)

    monkeypatch.setattr(upscales.PlacedUpscaler, "__call__", short)
    made = engine.submit("short", job(seed=2)).result(timeout=120).image
    assert made.shape == expected.shape
    assert ([*core._tiles.values()], max(sides[-4:])) == ([48], 48)

    def broken(self: Any, tile: Tensor) -> Tensor:
        return torch.full((3, *(4 * side for side in tile.shape[:2])), torch.nan)

    monkeypatch.setattr(upscales.PlacedUpscaler, "__call__", broken)
    with pytest.raises(FarmError, match="four makes no numbers of this picture"):
        engine.submit("broken", job(seed=3)).result(timeout=120)

    def leaves(self: Any, tile: Tensor) -> Tensor:
        engine.cancel("leaves")
        return call(self, tile)

    monkeypatch.setattr(upscales.PlacedUpscaler, "__call__", leaves)
    with pytest.raises(FarmError, match="was cancelled"):
        engine.submit("leaves", job(seed=4)).result(timeout=120)
    eventually(lambda: not core._under_way)
