"""Embeddings: read from every format without running anything, spliced in where their word is."""

from __future__ import annotations

import pickle
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from farm.errors import CheckpointError
from farm.spec.job import JobSpec
from farm.worker.engine import Engine
from farm.worker.memory.profiles import by_name
from farm.worker.models.cache import ModelCache
from farm.worker.models.catalogue import AssetFile
from farm.worker.models.embeddings import MAX_BYTES, EmbeddingShelf, read_embedding
from farm.worker.models.kinds import EMBEDDING
from farm.worker.models.loader import load
from tests.checkpoints import NARROW, WIDE, diffusers_pipeline, tiny_file
from tests.networks import make_embedding
from tests.trap import Trap

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

CPU = torch.device("cpu")
WIDTHS = {"sd15": (NARROW,), "sdxl": (NARROW, WIDE)}


def asset(path: Path) -> AssetFile:
    status = path.stat()
    identity = (status.st_size, status.st_mtime_ns, status.st_ino)
    return AssetFile(path.name, path, None, None, 0, kind=EMBEDDING, identity=identity)


class Reader:
    """A tiny checkpoint, and a folder of embeddings that it reads prompts with."""

    def __init__(self, folder: Path, family: str) -> None:
        self.file = tiny_file(folder, family)
        self.checkpoint = load(self.file, by_name("cpu"), CPU)
        self.widths = WIDTHS[family]
        self.folder = folder / "embeddings"
        self.folder.mkdir()

    def make(self, name: str, count: int = 2, layout: str = "webui") -> list[Tensor]:
        return make_embedding(self.folder / name, layout, self.widths, count)

    def encode(self, text: str, negative: bool = False) -> Any:
        shelf = EmbeddingShelf([asset(path) for path in sorted(self.folder.rglob("*.*"))])
        return self.checkpoint.encode(text, negative=negative, embeddings=shelf)

    def tables(self) -> list[Tensor]:
        return [
            weight.clone()
            for module in self.checkpoint.weights
            for name, weight in module.named_parameters()
            if "token_embedding" in name
        ]


@pytest.fixture(params=["sd15", "sdxl"])
def reader(request: pytest.FixtureRequest, tmp_path: Path) -> Reader:
    return Reader(tmp_path, request.param)


@pytest.mark.parametrize("widths", [(768,), (1024,), (768, 1280)])
@pytest.mark.parametrize("layout", ["webui", "diffusers"])
@pytest.mark.parametrize("suffix", [".pt", ".bin", ".safetensors"])
@pytest.mark.parametrize("count", [1, 75])
def test_every_format_is_read(
    tmp_path: Path, layout: str, suffix: str, widths: tuple[int, ...], count: int
) -> None:
    tables = make_embedding(tmp_path / f"word{suffix}", layout, widths, count)
    embedding = read_embedding(tmp_path / f"word{suffix}")
    assert (embedding.name, len(embedding)) == ("word", count)
    assert tuple(embedding.vectors) == widths
    for width, table in zip(widths, tables, strict=True):
        assert torch.equal(embedding.vectors[width], table)
        assert not embedding.vectors[width].requires_grad


def test_one_bare_vector_is_a_table_of_one(tmp_path: Path) -> None:
    torch.save({"<word>": torch.arange(8.0)}, tmp_path / "word.bin")
    assert torch.equal(read_embedding(tmp_path / "word.bin").vectors[8], torch.arange(8.0)[None])


@pytest.mark.parametrize("prompt", ["a photo of inkwash, at night", "inkwash inkwash", "inkwash"])
def test_it_reads_as_diffusers_reads_its_own_textual_inversion(reader: Reader, prompt: str) -> None:
    tables = reader.make("inkwash.safetensors", count=3)
    pipeline = diffusers_pipeline(reader.file.path)
    encoders = [(pipeline.text_encoder, pipeline.tokenizer)]
    if len(tables) == 2:
        encoders.append((pipeline.text_encoder_2, pipeline.tokenizer_2))
    for table, (encoder, tokenizer) in zip(tables, encoders, strict=True):
        own = copy_of(tokenizer, reader.folder.parent)
        pipeline.load_textual_inversion(
            {"inkwash": table}, token="<ink>", text_encoder=encoder, tokenizer=own
        )
        first = encoder is pipeline.text_encoder
        setattr(pipeline, "tokenizer" if first else "tokenizer_2", own)
    made = reader.encode(prompt)
    expected, pooled = theirs(pipeline, prompt.replace("inkwash", "<ink>"))
    torch.testing.assert_close(made.tokens, expected, rtol=0, atol=1e-5)
    if made.pooled is not None:
        torch.testing.assert_close(made.pooled, pooled, rtol=0, atol=1e-5)
    assert not torch.allclose(made.tokens, reader.checkpoint.encode(prompt).tokens, atol=1e-2)


def copy_of(tokenizer: Any, folder: Path) -> Any:
    """The shared tokenizer must not learn new words."""
    folder = folder / f"tokenizer-{tokenizer.pad_token_id}"
    tokenizer.save_pretrained(folder)
    return type(tokenizer).from_pretrained(folder)


def theirs(pipeline: Any, prompt: str) -> tuple[Tensor, Tensor | None]:
    with torch.no_grad():
        encoded = pipeline.encode_prompt(
            prompt, device=CPU, num_images_per_prompt=1, do_classifier_free_guidance=False
        )
    return encoded[0], encoded[2] if len(encoded) == 4 else None


def test_the_shared_table_and_other_prompts_stay_as_they_were(reader: Reader) -> None:
    tables, plain = reader.tables(), reader.checkpoint.encode("a cat in inkwash")
    reader.make("inkwash.pt")
    with_it = reader.encode("a cat in inkwash")
    again = reader.checkpoint.encode("a cat in inkwash")
    assert torch.equal(plain.tokens, again.tokens)
    assert not torch.equal(plain.tokens, with_it.tokens)
    assert all(torch.equal(one, other) for one, other in zip(tables, reader.tables(), strict=True))
    for module in reader.checkpoint.weights:
        for name, inner in module.named_modules():
            assert not (name.endswith("token_embedding") and inner._forward_hooks)


@pytest.mark.parametrize(
    ("prompt", "same"),
    [
        ("a INKWASH cat", "a inkwash cat"),
        ("a inkwash, cat", "a inkwash , cat"),
        ("ink wash", None),
        ("inkwashed", None),
    ],
)
def test_the_word_counts_in_any_case_and_only_whole(
    reader: Reader, prompt: str, same: str | None
) -> None:
    reader.make("InkWash.pt")
    made = reader.encode(prompt).tokens
    expected = reader.encode(same) if same else reader.checkpoint.encode(prompt)
    assert torch.equal(made, expected.tokens)
    assert torch.equal(made, reader.checkpoint.encode(prompt).tokens) == (same is None)


def test_of_words_with_one_beginning_the_longest_counts(reader: Reader) -> None:
    reader.make("ink.pt", count=1)
    short = reader.encode("a ink wash v2 cat")
    reader.make("ink wash v2.pt", count=4)
    long = reader.encode("a ink wash v2 cat")
    assert not torch.equal(short.tokens, long.tokens)
    (reader.folder / "ink.pt").unlink()
    assert torch.equal(reader.encode("a ink wash v2 cat").tokens, long.tokens)


def test_its_vectors_count_as_tokens_and_are_never_cut_in_two(reader: Reader) -> None:
    reader.make("inkwash.pt", count=4)
    seventy_two = " ".join(["cat"] * 72)
    made = reader.encode(f"{seventy_two} inkwash dog").tokens
    assert made.shape[1] == 2 * 77
    assert torch.equal(made[:, :77], reader.encode(seventy_two).tokens)
    assert torch.equal(made[:, 77:], reader.encode("inkwash dog").tokens)
    assert reader.encode(f"{' '.join(['cat'] * 71)} inkwash").tokens.shape[1] == 77
    reader.make("whole.pt", count=75)
    assert reader.encode("a whole cat").tokens.shape[1] == 3 * 77


def test_of_two_files_of_one_word_the_one_that_fits_counts(reader: Reader) -> None:
    make_embedding(reader.folder / "ink.pt", "webui", (64,), 1)
    (reader.folder / "b").mkdir()
    make_embedding(reader.folder / "b" / "ink.safetensors", "webui", reader.widths, 1)
    with_both = reader.encode("ink").tokens
    (reader.folder / "ink.pt").unlink()
    assert torch.equal(with_both, reader.encode("ink").tokens)


@pytest.mark.parametrize(
    ("family", "widths", "made_for"),
    [
        ("sd15", (768,), "SD1"),
        ("sd15", (NARROW, WIDE), f"text encoders {WIDE} wide"),
        ("sdxl", (NARROW,), f"text encoders {NARROW} wide"),
        ("sdxl", (768, 1280), "SDXL"),
    ],
)
def test_one_for_another_family_is_refused(
    tmp_path: Path, family: str, widths: tuple[int, ...], made_for: str
) -> None:
    reader = Reader(tmp_path, family)
    make_embedding(reader.folder / "ink.safetensors", "webui", widths)
    with pytest.raises(CheckpointError, match=f"made for {made_for}, and this") as raised:
        reader.encode("an ink drawing")
    assert (raised.value.field, raised.value.value) == ("embedding", "ink")
    assert raised.value.remedy
    assert reader.encode("a drawing").tokens.shape[1] == 77


def hostile(path: Path, proof: Path) -> None:
    torch.save({"string_to_param": {"*": torch.zeros(1, 8)}, "name": Trap(proof)}, path)


def hostile_bare(path: Path, proof: Path) -> None:
    path.write_bytes(pickle.dumps({"*": Trap(proof)}, protocol=2))


def bomb(path: Path, proof: Path) -> None:
    torch.save({"*": torch.zeros(1, 5_000_000)}, proof)
    with zipfile.ZipFile(proof) as small, zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as big:
        for entry in small.infolist():
            big.writestr(entry.filename, small.read(entry))
    assert path.stat().st_size < 100_000
    proof.unlink()


def large(path: Path, proof: Path) -> None:
    with path.open("wb") as file:
        file.truncate(MAX_BYTES + 1)


@pytest.mark.parametrize(
    ("write", "problem"),
    [
        pytest.param(hostile, "cannot be read as tensors alone", id="payload in a zip"),
        pytest.param(hostile_bare, "cannot be read as tensors alone", id="payload bare"),
        pytest.param(bomb, "unpacks to more than 16 MB", id="zip bomb"),
        pytest.param(large, "larger than 16 MB", id="large"),
    ],
)
def test_a_hostile_pickle_runs_nothing(tmp_path: Path, write: Any, problem: str) -> None:
    proof = tmp_path / "proof"
    write(tmp_path / "word.pt", proof)
    with pytest.raises(CheckpointError, match=problem):
        read_embedding(tmp_path / "word.pt")
    assert not proof.exists()


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (None, "cannot be read as tensors alone"),
        (b"", "cannot be read as tensors alone"),
        ({"a": torch.ones(1, 8), "b": torch.ones(1, 8)}, "is no embedding"),
        ({"string_to_param": {}}, "is no embedding"),
        ([torch.ones(1, 8)], "is no embedding"),
        ({"clip_l": torch.ones(1, 8), "clip_g": torch.ones(2, 16)}, "unlike numbers of vectors"),
        ({"clip_l": "text"}, "no table of vectors"),
        ({"*": torch.ones(1, 8, dtype=torch.int64)}, "no table of vectors"),
        ({"*": torch.ones(1, 2, 8)}, "no table of vectors"),
        ({"*": torch.ones(76, 8)}, "holds 76x8 numbers"),
        ({"*": torch.ones(0, 8)}, "holds 0x8 numbers"),
        ({"*": torch.ones(1).expand(10**9, 10**9)}, "holds 1000000000x1000000000 numbers"),
        ({"*": torch.full((1, 8), torch.nan)}, "NaN or infinity"),
    ],
    ids=str,
)
def test_what_is_no_embedding_is_refused(tmp_path: Path, content: Any, problem: str) -> None:
    path = tmp_path / "word.pt"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is None:
        torch.save({"*": torch.ones(1, 8)}, path)
        path.write_bytes(path.read_bytes()[:-200])
    else:
        torch.save(content, path)
    with pytest.raises(CheckpointError, match=problem) as raised:
        read_embedding(path)
    assert (raised.value.field, raised.value.value) == ("embedding", "word")
    assert raised.value.remedy


def test_a_file_that_is_gone_or_torn_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="cannot be read"):
        read_embedding(tmp_path / "word.pt")
    save_file({"emb_params": torch.ones(1, 8)}, tmp_path / "torn.safetensors")
    torn = (tmp_path / "torn.safetensors").read_bytes()[:-8]
    (tmp_path / "torn.safetensors").write_bytes(torn)
    with pytest.raises(CheckpointError, match="cut short"):
        read_embedding(tmp_path / "torn.safetensors")


def test_jobs_with_and_without_it_share_a_card_and_see_it_change(tmp_path: Path) -> None:
    reader = Reader(tmp_path, "sd15")
    models = ModelCache([reader.file], by_name("cpu"), CPU)
    reader.make("ink.pt")
    files = [asset(reader.folder / "ink.pt")]
    sizes = {"width": 64, "height": 64, "steps": 3}
    jobs = [
        JobSpec(checkpoint=reader.file.name, prompt=prompt, seed=1, **sizes)
        for prompt in ("a cat", "a ink cat", "ink, a dog")
    ]
    with Engine(models, by_name("cpu"), CPU, assets=files) as engine:

        def render() -> list[Any]:
            futures = [engine.submit(str(place), job) for place, job in enumerate(jobs)]
            return [future.result(60).image for future in futures]

        first = render()
        files.clear()
        without = render()
        reader.make("ink.pt", count=5)
        files.append(asset(reader.folder / "ink.pt"))
        other = render()
    same = [(one == two).all() for one, two in zip(first, without, strict=True)]
    assert same == [True, False, False]
    assert not (other[1] == first[1]).all()
    assert not (other[1] == without[1]).all()
