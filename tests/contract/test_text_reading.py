"""Emphasis, BREAK, long prompts and clip skip, against transformers' own CLIP written out by hand.

Every expected chunk is given as its words with their weights; nothing of Farm's own reading is
used to make them.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from farm.errors import InvalidInput
from farm.spec.reading import ReadingOptions
from farm.worker.memory.profiles import by_name
from farm.worker.models.checkpoint import Checkpoint
from farm.worker.models.loader import load
from tests.checkpoints import diffusers_pipeline, tiny_file

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

CPU = torch.device("cpu")
Words = list[tuple[str, float]]


class Case(NamedTuple):
    """A tiny checkpoint, and diffusers' pipeline of it."""

    checkpoint: Checkpoint
    pipeline: Any
    family: str

    @property
    def encoders(self) -> list[tuple[Any, Any, bool]]:
        """Tokenizers, text encoders, and whether they pad with 0."""
        found = [(self.pipeline.tokenizer, self.pipeline.text_encoder, self.family == "sd2")]
        if self.family == "sdxl":
            found.append((self.pipeline.tokenizer_2, self.pipeline.text_encoder_2, True))
        return found


@pytest.fixture(scope="module", params=["sd15", "sd2", "sdxl"])
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    file = tiny_file(tmp_path_factory.mktemp("tiny"), request.param)
    case = Case(load(file, by_name("cpu"), CPU), diffusers_pipeline(file.path), request.param)
    ours, theirs = case.checkpoint._text._models[0], case.pipeline.text_encoder
    for model in (ours, theirs):
        # A norm that nobody trained has mean 0, which is nothing to restore.
        norm = next(part for name, part in model.named_modules() if "final_layer_norm" in name)
        torch.nn.init.normal_(norm.bias, 0.3, generator=torch.Generator().manual_seed(5))
    return case


@torch.no_grad()
def hidden(case: Case, encoder: tuple[Any, Any, bool], ids: list[int], skip: int) -> Tensor:
    """What webui reads of one encoder, [77, C]."""
    _, model, _ = encoder
    out = model(torch.tensor([ids]), output_hidden_states=True)
    if case.family == "sdxl":
        return out.hidden_states[-2][0]
    if case.family == "sd15" and skip > 1:
        inner = getattr(model, "text_model", model)
        return inner.final_layer_norm(out.hidden_states[-skip])[0]
    return out[0][0]


def expected(case: Case, *texts: list[Words], emphasis: str = "Original", skip: int = 1) -> Tensor:
    """[texts, 77 * chunks, C] of texts given as chunks of words with weights."""
    sides = []
    for encoder in case.encoders:
        tokenizer, _, zero = encoder
        columns = []
        for chunk in range(len(texts[0])):
            plain, weighed = [], []
            for text in texts:
                ids, weights = [tokenizer.bos_token_id], [1.0]
                for word, weight in text[chunk]:
                    new = tokenizer(word, add_special_tokens=False, verbose=False).input_ids
                    ids += new
                    weights += [weight] * len(new)
                ids.append(tokenizer.eos_token_id)
                ids += [0 if zero else tokenizer.eos_token_id] * (77 - len(ids))
                weights += [1.0] * (77 - len(weights))
                plain.append(hidden(case, encoder, ids, skip))
                weighed.append(plain[-1] * torch.tensor(weights)[:, None])
            before, after = torch.stack(plain), torch.stack(weighed)
            if emphasis == "Original":
                after = after * (before.mean() / after.mean())
            columns.append(before if emphasis == "Ignore" else after)
        sides.append(torch.cat(columns, dim=1))
    return torch.cat(sides, dim=2)


def check(case: Case, made: Any, wanted: Tensor) -> None:
    assert made.tokens.shape == wanted.shape
    torch.testing.assert_close(made.tokens, wanted, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    ("prompt", "chunks"),
    [
        ("a red (apple:1.4)", [[("a red", 1), ("apple", 1.4)]]),
        ("((a)) [cat] (dog:0)", [[("a", 1.21), ("cat", 1 / 1.1), ("dog", 0)]]),
        (r"a \(red\) cat", [[("a (red) cat", 1)]]),
        ("(a BREAK b:1.5) c", [[("a", 1.5)], [("b", 1.5), ("c", 1)]]),
        ("BREAK a", [[], [("a", 1)]]),
        ("red " * 60 + ", " + "(blue " * 30, [[("red " * 60 + ",", 1)], None]),
        (
            "red " * 60 + ", (" + "blue " * 30 + ":1.3)",
            [[("red " * 60 + ",", 1)], [("blue " * 30, 1.3)]],
        ),
        (
            "red " * 40 + ", " + "blue " * 40,
            [[("red " * 40 + "," + "blue " * 34, 1)], [("blue " * 6, 1)]],
        ),
    ],
    ids=lambda value: value[:24] if isinstance(value, str) else "",
)
@pytest.mark.parametrize("emphasis", ["Original", "No norm", "Ignore"])
def test_weights_and_chunks(case: Case, prompt: str, chunks: list[Any], emphasis: str) -> None:
    if chunks[-1] is None:
        chunks = [chunks[0], [("blue", 1.1**power) for power in range(1, 31)]]
    reading = ReadingOptions.model_validate({"emphasis": emphasis})
    made = case.checkpoint.encode(prompt, reading=reading)
    check(case, made, expected(case, chunks, emphasis=emphasis))


def test_emphasis_none_reads_everything_as_it_stands(case: Case) -> None:
    prompt = r"a (red:1.3) [cat] \( BREAK dog"
    made = case.checkpoint.encode(prompt, reading=ReadingOptions(emphasis="None"))
    check(case, made, expected(case, [[(prompt, 1)]]))


def test_texts_of_one_prompt_share_a_length_and_the_mean(case: Case) -> None:
    made = case.checkpoint.encode("a (cat:1.6)", "a BREAK dog", "sun")
    texts = [[[("a", 1), ("cat", 1.6)], []], [[("a", 1)], [("dog", 1)]], [[("sun", 1)], []]]
    check(case, made, expected(case, *texts))
    alone = case.checkpoint.encode("sun")
    if case.family == "sdxl":
        torch.testing.assert_close(made.pooled[2:], alone.pooled)
    else:
        assert made.pooled is None


def test_without_weights_a_text_is_read_as_if_alone(case: Case) -> None:
    made = case.checkpoint.encode("a cat", "a dog")
    for row, text in enumerate(("a cat", "a dog")):
        alone = case.checkpoint.encode(text)
        torch.testing.assert_close(made.tokens[row : row + 1], alone.tokens, atol=1e-6, rtol=1e-5)


def test_many_texts_are_read_in_turns(case: Case) -> None:
    texts = [f"{number} cats" for number in range(40)]
    made = case.checkpoint.encode(*texts)
    assert made.tokens.shape[:2] == (40, 77)
    last = case.checkpoint.encode(texts[-1]).tokens
    torch.testing.assert_close(made.tokens[-1:], last, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("skip", [1, 2])
def test_clip_skip_is_for_sd1(case: Case, skip: int) -> None:
    made = case.checkpoint.encode("a (cat:1.3)", reading=ReadingOptions(clip_skip=skip))
    check(case, made, expected(case, [[("a", 1), ("cat", 1.3)]], skip=skip))
    differs = not torch.equal(made.tokens, case.checkpoint.encode("a (cat:1.3)").tokens)
    assert differs == (case.family == "sd15" and skip > 1)


def test_clip_skip_beyond_the_layers_is_refused(case: Case) -> None:
    reading = ReadingOptions(clip_skip=12)
    if case.family != "sd15":
        case.checkpoint.encode("a", reading=reading)
        return
    with pytest.raises(InvalidInput, match="layers; clip_skip 12 skips all") as refused:
        case.checkpoint.encode("a", reading=reading)
    assert (refused.value.field, refused.value.value) == ("clip_skip", 12)
    assert refused.value.remedy
