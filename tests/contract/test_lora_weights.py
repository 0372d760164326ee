"""LoRAs on a checkpoint: the right addition to every weight, and not a trace when taken off."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from farm.errors import CheckpointError
from farm.spec.networks import Lora, Loras
from farm.worker.memory.profiles import by_name
from farm.worker.models.checkpoint import Checkpoint
from farm.worker.models.loader import load
from farm.worker.models.lora import LoraFile, read_lora
from farm.worker.models.patches import patch_of
from tests.checkpoints import tiny_file
from tests.networks import KINDS, NAMINGS, Dense, make_lora
from tests.pretended_card import pretended

CPU = torch.device("cpu")
PLENTY = 2**40


class Subject:
    """A tiny checkpoint, its weights as loaded, and LoRAs made for it by name."""

    def __init__(self, folder: Path, family: str, dtype: torch.dtype = torch.float32) -> None:
        self.folder = folder
        file = tiny_file(folder, family, dtype=dtype)
        self.checkpoint = load(file, by_name("cpu"), CPU)
        self.modules: dict[str, nn.Module] = dict(self.checkpoint._patches._modules)
        self.loaded = self.weights()
        self.dense: dict[str, Dense] = {}
        self.read: dict[str, LoraFile] = {}

    def weights(self) -> dict[tuple[str, str], Tensor]:
        return {
            (part, name): weight.detach().clone()
            for part, module in self.modules.items()
            for name, weight in module.named_parameters()
        }

    def make(self, name: str, **options: Any) -> None:
        path = self.folder / f"{name}.safetensors"
        self.read.pop(name, None)
        self.dense[name] = make_lora(path, self.modules, **options)

    def find(self, name: str) -> LoraFile:
        if name not in self.read:
            self.read[name] = read_lora(name, self.folder / f"{name}.safetensors")
        return self.read[name]

    def wear(self, te: dict[str, float], unet: dict[str, float]) -> None:
        self.checkpoint.wear("text", as_set(te), self.find, spare=PLENTY)
        self.checkpoint.wear("unet", as_set(unet), self.find, spare=PLENTY)

    def expected(self, te: dict[str, float], unet: dict[str, float]) -> dict[Any, Tensor]:
        """Loaded weights and all additions, in float64."""
        total = {place: weight.double() for place, weight in self.loaded.items()}
        for te_side, strengths in ((True, te), (False, unet)):
            for name, strength in strengths.items():
                for place, delta in self.dense[name].items():
                    if (place[0] != "unet") == te_side:
                        total[place] = total[place] + strength * delta
        return total


def as_set(strengths: dict[str, float]) -> Loras:
    return tuple(Lora(name, strengths[name]) for name in sorted(strengths))


def check_close(worn: dict[Any, Tensor], expected: dict[Any, Tensor]) -> None:
    for place, weight in worn.items():
        largest = expected[place].abs().max()
        assert (weight - expected[place]).abs().max() <= 1e-5 * (1 + largest), place


def check_equal(one: dict[Any, Tensor], other: dict[Any, Tensor]) -> None:
    assert one.keys() == other.keys()
    assert all(torch.equal(one[place], other[place]) for place in one)


@pytest.fixture(scope="module", params=["sd15", "sdxl"])
def subject(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Subject:
    return Subject(tmp_path_factory.mktemp("loras"), request.param)


@pytest.fixture(autouse=True)
def nothing_left(request: pytest.FixtureRequest) -> Iterator[None]:
    """After every test the weights are, bit by bit, what was loaded."""
    yield
    if "subject" in request.fixturenames:
        subject = request.getfixturevalue("subject")
        subject.wear({}, {})
        check_equal(subject.weights(), subject.loaded)


def every(part: str, name: str) -> bool:
    return True


def few(part: str, name: str) -> bool:
    """Of every model some, linear ones and convolutions."""
    return "mid_block" in name or "layers.0" in name


CASES = [
    ("kohya", "lora", None),
    *((naming, "lora", 1.0) for naming in NAMINGS),
    *(("kohya", kind, 1.0) for kind in KINDS[1:]),
]


@pytest.mark.parametrize(("naming", "kind", "alpha"), CASES)
def test_every_weight_gets_its_addition(
    subject: Subject, naming: str, kind: str, alpha: float | None
) -> None:
    which = every if kind == "lora" else few
    subject.make("one", naming=naming, kind=kind, alpha=alpha, keep=which)
    subject.wear({"one": 0.5}, {"one": -1.25})
    worn = subject.weights()
    check_close(worn, subject.expected({"one": 0.5}, {"one": -1.25}))
    touched = {place for place in worn if not torch.equal(worn[place], subject.loaded[place])}
    assert touched == subject.dense["one"].keys()
    parts = {part for part, _ in touched}
    assert parts == ({"unet"} if naming == "processors" else set(subject.modules))


def test_several_add_up_and_each_side_has_its_own(subject: Subject) -> None:
    subject.make("one", seed=1)
    subject.make("two", seed=2, naming="peft", kind="lora", alpha=4.0)
    te, unet = {"one": 1.0}, {"one": 0.5, "two": -2.0}
    subject.wear(te, unet)
    check_close(subject.weights(), subject.expected(te, unet))


def test_a_set_is_the_same_whatever_was_on_before(subject: Subject) -> None:
    subject.make("one", seed=1)
    subject.make("part", seed=2, keep=lambda part, name: "attn1" in name or "mlp" in name)
    subject.wear({"one": 0.7}, {"one": 0.7})
    straight = subject.weights()
    subject.wear({"part": 1.0}, {"part": 1.0})
    touched = subject.weights()
    untouched = [place for place in touched if place not in subject.dense["part"]]
    assert all(torch.equal(touched[place], subject.loaded[place]) for place in untouched)
    subject.wear({"one": 0.7}, {"one": 0.7})
    check_equal(subject.weights(), straight)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_200_changes_leave_no_drift_in_half_precision(tmp_path: Path, dtype: torch.dtype) -> None:
    subject = Subject(tmp_path, "sd15")
    for module in subject.modules.values():
        nn.Module.to(module, dtype)
    subject.loaded = subject.weights()
    subject.make("one", seed=1, size=3.0, keep=few)
    subject.make("two", seed=2, dtype=dtype, keep=few)
    worn: list[Any] = []
    sets = ({"one": 1.0}, {"one": 0.5, "two": 1.0}, {"two": 0.3}, {})
    for turn in range(200):
        subject.wear(sets[turn % 4], sets[turn % 4])
        if turn < 4:
            worn.append(subject.weights())
    for number, strengths in enumerate(sets):
        subject.wear(strengths, strengths)
        check_equal(subject.weights(), worn[number])
    check_equal(subject.weights(), subject.loaded)
    assert subject.checkpoint.bytes == sum(
        weight.nbytes for module in subject.checkpoint.held for weight in module.parameters()
    )


def test_kept_weights_count_as_the_checkpoint_s_memory(subject: Subject) -> None:
    subject.make("one", keep=few)
    before = subject.checkpoint.bytes
    subject.wear({"one": 1.0}, {"one": 1.0})
    touched = sum(subject.loaded[place].nbytes for place in subject.dense["one"])
    assert subject.checkpoint.bytes == before + touched
    subject.wear({}, {})
    assert subject.checkpoint.bytes == before


def test_other_threads_may_read_its_memory_while_loras_change(subject: Subject) -> None:
    subject.make("one", keep=few)
    bare, seen, done = subject.checkpoint.bytes, [], threading.Event()

    def read() -> None:
        while not done.is_set():
            seen.append(subject.checkpoint.bytes)

    readers = [threading.Thread(target=read) for _ in range(2)]
    for reader in readers:
        reader.start()
    for _ in range(5):
        subject.wear({"one": 1.0}, {"one": 1.0})
        subject.wear({}, {})
    done.set()
    for reader in readers:
        reader.join()
    assert len(seen) > 10
    assert all(bare <= count <= 2 * bare for count in seen)
    assert subject.checkpoint.bytes == bare


def test_what_leaves_the_device_leaves_it_bare(subject: Subject) -> None:
    subject.make("one", keep=few)
    subject.wear({"one": 1.0}, {"one": 1.0})
    subject.checkpoint.to_host(needed=())
    check_equal(subject.weights(), subject.loaded)
    assert subject.checkpoint.worn("text") == subject.checkpoint.worn("unet") == ()
    subject.checkpoint.to_device()


def test_checkpoints_that_share_a_text_encoder_see_each_other_s_changes(tmp_path: Path) -> None:
    subject = Subject(tmp_path, "sd15")
    other = Checkpoint(
        "other",
        {**subject.modules, "vae": subject.checkpoint._decoder._vae},
        family="sd15",
        prediction="epsilon",
        alphas_cumprod=[],
        profile=by_name("cpu"),
        device=CPU,
        load_seconds=0,
    )
    subject.make("one", keep=few)
    subject.wear({"one": 1.0}, {})
    assert other.worn("text") == as_set({"one": 1.0})
    other.wear("text", (), subject.find, spare=PLENTY)
    assert subject.checkpoint.worn("text") == ()
    check_equal(subject.weights(), subject.loaded)


def in_the_middle(part: str, name: str) -> bool:
    return part == "unet" and "mid" in name


def only_unet(part: str, name: str) -> bool:
    return part == "unet"


class TestRefusals:
    """A LoRA that cannot be put on changes nothing, and says what is wrong with it."""

    def refusal(self, subject: Subject, *loras: str) -> CheckpointError:
        subject.make("good", keep=few)
        subject.wear({"good": 0.5}, {"good": 0.5})
        before = subject.weights()
        strengths = {"good": 1.0, **dict.fromkeys(loras, 1.0)}
        with pytest.raises(CheckpointError) as raised:
            subject.wear({}, strengths)
        after = subject.weights()
        assert all(
            torch.equal(before[place], after[place]) for place in before if place[0] == "unet"
        )
        assert subject.checkpoint.worn("unet") == as_set({"good": 0.5})
        assert (raised.value.field, raised.value.value) == ("lora", loras[0])
        assert raised.value.remedy
        return raised.value

    def test_one_for_another_family(self, subject: Subject, tmp_path: Path) -> None:
        ours = subject.checkpoint.family
        other = Subject(tmp_path, "sdxl" if ours == "sd15" else "sd15")
        make_lora(subject.folder / "alien.safetensors", other.modules)
        error = self.refusal(subject, "alien")
        assert f"does not fit this {ours} checkpoint: '" in error.message
        if ours == "sd15":
            assert "made for SDXL" in str(error)

    def test_one_of_which_little_is_for_this_checkpoint(self, subject: Subject) -> None:
        nowhere = {
            f"lora_unet_no_such_block_{n}.lora_{way}.weight": torch.ones(2, 2)
            for n in range(5)
            for way in ("down", "up")
        }
        subject.make(
            "few", extras=nowhere, keep=lambda part, name: part == "unet" and "conv_in" in name
        )
        error = self.refusal(subject, "few")
        assert "5 of its 6 keys" in error.message
        assert "'lora_unet_no_such_block_0'" in error.message

    def test_factors_that_do_not_fit_each_other(self, subject: Subject) -> None:
        bad = {
            "lora_unet_conv_in.lora_down.weight": torch.ones(3, 4, 3, 3),
            "lora_unet_conv_in.lora_up.weight": torch.ones(16, 2, 1, 1),
        }
        subject.make("torn", extras=bad, keep=in_the_middle)
        assert "'lora_unet_conv_in' does not fit" in self.refusal(subject, "torn").message

    @pytest.mark.parametrize(
        ("extras", "problem"),
        [
            ({"lora_unet_conv_in.dora_scale": torch.ones(16)}, "a DoRA"),
            ({"lora_unet_conv_in.diff": torch.ones(16)}, "whole weights"),
            ({"lora_unet_conv_in.lora_up.weight": torch.full((16, 2, 1, 1), torch.nan)}, "NaN"),
            ({"lora_unet_conv_in.alpha": torch.tensor(1.0)}, "a broken entry"),
            (
                {
                    "lora_unet_conv_in.lora_up.weight": torch.ones(16, 2, 1, 1),
                    "lora_unet_conv_in.alpha": torch.ones(2),
                },
                "a broken entry",
            ),
            ({"lora_unet_conv_in.lora_up.weight": torch.ones(16, 2, 1, 1)}, "does not fit"),
            ({"lora_unet_conv_in.lokr_w1": torch.tensor(1.0)}, "does not fit"),
            (
                {
                    "lora_unet_conv_in.lora_up.weight": torch.ones(16, 0, 1, 1),
                    "lora_unet_conv_in.lora_down.weight": torch.ones(0, 4, 3, 3),
                },
                "does not fit",
            ),
            (
                {
                    "lora_unet_conv_in.lora_up.weight": torch.ones(16, 2, 1, 1),
                    "lora_unet_conv_in.hada_w1_a": torch.ones(16, 2),
                },
                "a broken entry",
            ),
        ],
        ids=[
            "DoRA",
            "diff",
            "NaN",
            "alpha alone",
            "two alphas",
            "one factor",
            "a scalar",
            "rank 0",
            "two kinds",
        ],
    )
    def test_what_is_no_plain_lora(
        self, subject: Subject, extras: dict[str, Tensor], problem: str
    ) -> None:
        subject.make("odd", extras=extras, keep=in_the_middle)
        assert problem in self.refusal(subject, "odd").message

    @pytest.mark.parametrize(
        ("metadata", "problem"),
        [
            ("{", "broken metadata"),
            ("[]", "broken metadata"),
            ('{"unet.lora_alpha": "much"}', "broken metadata"),
            ('{"unet.use_rslora": true}', "asks for 'unet.use_rslora'"),
            ('{"text_encoder.alpha_pattern": {"q_proj": 2}}', "asks for 'text_encoder.alpha_pat"),
        ],
    )
    def test_settings_that_change_the_formula(
        self, subject: Subject, metadata: str, problem: str
    ) -> None:
        subject.make("odd", naming="peft", metadata=metadata, keep=in_the_middle)
        assert problem in self.refusal(subject, "odd").message

    @pytest.mark.parametrize(
        ("size", "problem"), [(0, "is empty"), (-100, "is cut short"), (20, "is cut short")]
    )
    def test_a_torn_file(self, subject: Subject, size: int, problem: str) -> None:
        subject.make("torn")
        path = subject.folder / "torn.safetensors"
        path.write_bytes(path.read_bytes()[:size])
        error = self.refusal(subject, "torn")
        assert "The LoRA 'torn' cannot be read: torn.safetensors " in error.message
        assert problem in error.message

    def test_something_else(self, subject: Subject) -> None:
        subject.make("other", extras={"x": torch.ones(1)}, keep=lambda part, name: False)
        assert "is no LoRA" in self.refusal(subject, "other").message


def test_keys_that_fit_nothing_are_counted_and_named(
    subject: Subject, caplog: pytest.LogCaptureFixture
) -> None:
    nowhere = {f"lora_unet_nowhere.lora_{way}.weight": torch.ones(2, 2) for way in ("down", "up")}
    subject.make("some", extras={**nowhere, "strange": torch.ones(1)}, keep=only_unet)
    with caplog.at_level(logging.WARNING, "farm.worker.models.lora"):
        subject.wear({}, {"some": 1.0})
    told = [record.getMessage() for record in caplog.records]
    assert any("1 keys fit nothing" in line and "lora_unet_nowhere" in line for line in told)
    assert any("1 keys are of no known kind" in line and "strange" in line for line in told)


def test_a_failure_in_the_middle_leaves_nothing_on(
    subject: Subject, monkeypatch: pytest.MonkeyPatch
) -> None:
    subject.make("one", keep=few)
    subject.make("two", seed=3)
    subject.wear({}, {"one": 1.0})
    from farm.worker.models.deltas import Delta

    full, calls = Delta.full, iter(range(100))

    def failing(self: Delta, *args: Any) -> Tensor:
        if next(calls) == 10:
            raise torch.OutOfMemoryError("full")
        return full(self, *args)

    monkeypatch.setattr(Delta, "full", failing)
    with pytest.raises(torch.OutOfMemoryError):
        subject.wear({}, {"two": 1.0})
    assert subject.checkpoint.worn("unet") == ()
    check_equal(subject.weights(), subject.loaded)


@pytest.mark.skipif(
    torch.cuda.is_available() or not torch.backends.cuda.is_built(),
    reason="there is a card, or a torch that knows none",
)
def test_kept_weights_follow_those_that_leave_the_card(tmp_path: Path) -> None:
    file = tiny_file(tmp_path, "sd15")
    modules = dict(load(file, by_name("cpu"), CPU)._patches._modules)
    make_lora(tmp_path / "ink.safetensors", modules)
    cuda = torch.device("cuda")
    with pretended():
        checkpoint = load(file, replace(by_name("24gb"), dtype="float32"), cuda)
        unet: Any = checkpoint._unet
        loaded = {name: weight.cpu().clone() for name, weight in unet.named_parameters()}

        def wear(*loras: Lora) -> None:
            checkpoint.wear("unet", loras, find, spare=PLENTY)

        def find(name: str) -> LoraFile:
            return read_lora(name, tmp_path / f"{name}.safetensors")

        wear(Lora("ink", 0.7))
        patch = patch_of(unet)
        assert {kept.device.type for kept in patch._kept.values()} == {"cuda"}
        assert checkpoint.stream()
        assert {kept.device.type for kept in patch._kept.values()} == {"cpu"}
        wear()
        for name, weight in unet.named_parameters():
            assert weight.device == CPU
            assert torch.equal(weight, loaded[name])
