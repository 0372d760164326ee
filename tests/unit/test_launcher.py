"""Finding devices, with a driver that is not there."""

from __future__ import annotations

import subprocess
import sys
from types import SimpleNamespace

import pytest

from farm.errors import InvalidInput, SetupError
from farm.worker import launcher
from farm.worker.launcher import discover, process

GIB = 1 << 30
CARDS = [("GPU-aaaa-1111", 24 * GIB, "RTX 3090"), ("GPU-bbbb-2222", 12 * GIB, "RTX 3060")]


class NVMLError(Exception):
    pass


class NVMLErrorNotSupported(NVMLError):
    pass


def fake_nvml(cards: list[tuple[str, int | None, str]], *, broken: bool = False) -> SimpleNamespace:
    def init() -> None:
        if broken:
            raise NVMLError("Driver/library version mismatch")

    def memory(index: int) -> SimpleNamespace:
        if cards[index][1] is None:
            raise NVMLErrorNotSupported
        return SimpleNamespace(total=cards[index][1])

    def whole(_: int) -> list[int]:
        raise NVMLErrorNotSupported

    return SimpleNamespace(
        NVMLError=NVMLError,
        NVMLError_NotSupported=NVMLErrorNotSupported,
        nvmlInit=init,
        nvmlShutdown=lambda: None,
        nvmlDeviceGetCount=lambda: len(cards),
        nvmlDeviceGetHandleByIndex=lambda index: index,
        nvmlDeviceGetUUID=lambda index: cards[index][0],
        nvmlDeviceGetMemoryInfo=memory,
        nvmlDeviceGetName=lambda index: cards[index][2],
        nvmlDeviceGetMigMode=whole,
    )


@pytest.fixture(autouse=True)
def two_cards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setitem(sys.modules, "pynvml", fake_nvml(CARDS))


@pytest.fixture
def no_nvml(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", None)


@pytest.mark.parametrize(
    ("selection", "shown", "names"),
    [
        ("auto", None, ["gpu0", "gpu1"]),
        ("all", None, ["gpu0", "gpu1"]),
        ("1", None, ["gpu1"]),
        ("1, 0", None, ["gpu1", "gpu0"]),
        ("0,0", None, ["gpu0"]),
        ("cpu", None, ["cpu0"]),
        ("all", "1", ["gpu1"]),
        ("all", "GPU-bbbb,0", ["gpu1", "gpu0"]),
        ("all", "0,-1,1", ["gpu0"]),
        ("auto", "", ["cpu0"]),
        ("auto", "-1", ["cpu0"]),
        ("1", "0", ["gpu1"]),
    ],
)
def test_a_selection_names_devices(
    monkeypatch: pytest.MonkeyPatch, selection: str, shown: str | None, names: list[str]
) -> None:
    if shown is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", shown)
    assert [device.name for device in discover(selection)] == names


def test_a_device_is_what_the_driver_says() -> None:
    device = discover("1")[0]
    assert (device.uuid, device.index) == ("GPU-bbbb-2222", 1)
    assert (device.total_bytes, device.model) == (12 * GIB, "RTX 3060")


def test_a_card_without_memory_of_its_own_has_the_machines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", fake_nvml([("GPU-c", None, "GB10")]))
    assert discover("all")[0].total_bytes > 0


def divided_nvml() -> SimpleNamespace:
    """A whole card, and one in two instances with an empty place between them."""
    cards: list[tuple[str, int | None, str]] = [
        ("GPU-whole", 80 * GIB, "H100"),
        ("GPU-cut", 80 * GIB, "H100"),
        ("MIG-a", 10 * GIB, "H100 MIG 1g.10gb"),
        ("MIG-b", 20 * GIB, "H100 MIG 1g.20gb"),
    ]
    nvml = fake_nvml(cards)

    def part(handle: int, place: int) -> int:
        assert handle == 1
        if place == 1:
            raise NVMLError("Not Found")
        return 2 if place == 0 else 3

    nvml.nvmlDeviceGetCount = lambda: 2
    nvml.nvmlDeviceGetMigMode = lambda handle: [handle == 1, 0]
    nvml.nvmlDeviceGetMaxMigDeviceCount = lambda _: 3
    nvml.nvmlDeviceGetMigDeviceHandleByIndex = part
    return nvml


@pytest.mark.parametrize(
    ("selection", "shown", "names"),
    [
        ("all", None, ["gpu0", "gpu1-0", "gpu1-2"]),
        ("1", None, ["gpu1-0", "gpu1-2"]),
        ("all", "MIG-b", ["gpu1-2"]),
    ],
)
def test_each_instance_of_a_divided_card_is_a_device(
    monkeypatch: pytest.MonkeyPatch, selection: str, shown: str | None, names: list[str]
) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", divided_nvml())
    if shown is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", shown)
    found = discover(selection)
    assert [device.name for device in found] == names
    assert (found[-1].uuid, found[-1].total_bytes) == ("MIG-b", 20 * GIB)
    assert process(found[-1], grace=1).env["CUDA_VISIBLE_DEVICES"] == "MIG-b"


@pytest.mark.parametrize(
    ("selection", "says"),
    [
        ("2", "there is no GPU 2; this machine has 0, 1"),
        ("0,7", "there is no GPU 7"),
        ("first", "'first' is not a selection"),
        ("-1", "'-1' is not a selection"),
        ("", "'' is not a selection"),
        ("0,,1", "is not a selection"),
        ("²", "is not a selection"),
    ],
)
def test_a_wrong_selection_is_refused(selection: str, says: str) -> None:
    with pytest.raises(InvalidInput, match=says) as error:
        discover(selection)
    assert (error.value.field, error.value.value) == ("gpus", selection)
    assert error.value.remedy


@pytest.mark.parametrize(
    ("nvml", "shown", "says"),
    [
        (fake_nvml([]), None, "The driver knows no GPU"),
        (fake_nvml([], broken=True), None, "version mismatch"),
        (fake_nvml(CARDS), "-1", "CUDA_VISIBLE_DEVICES hides every GPU"),
    ],
)
def test_no_gpu_is_explained_when_one_was_asked_for(
    monkeypatch: pytest.MonkeyPatch, nvml: SimpleNamespace, shown: str | None, says: str
) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", nvml)
    if shown:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", shown)
    with pytest.raises(SetupError, match=says) as error:
        discover("all")
    assert "--gpus cpu" in str(error.value.remedy)
    assert [device.uuid for device in discover("auto")] == ["cpu"]


def test_without_the_nvml_package_nvidia_smi_is_asked(
    monkeypatch: pytest.MonkeyPatch, no_nvml: None
) -> None:
    answer = "0, GPU-a, 24576, RTX 3090, the big one\n1, GPU-b, [N/A], GB10\n"

    def run(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        return subprocess.CompletedProcess(command, 0, stdout=answer)

    monkeypatch.setattr(launcher.subprocess, "run", run)
    first, second = discover("all")
    assert (first.uuid, first.total_bytes) == ("GPU-a", 24 * GIB)
    assert first.model == "RTX 3090, the big one"
    assert second.total_bytes > 0


def test_without_nvml_and_nvidia_smi_there_is_no_driver(
    monkeypatch: pytest.MonkeyPatch, no_nvml: None, tmp_path: object
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SetupError, match="nvidia-smi is not installed"):
        discover("0")


def test_a_worker_sees_its_own_card_alone() -> None:
    env = process(discover("1")[0], grace=40, env={"FARM_DATABASE_URL": "x"}).env
    assert env["FARM_WORKER_NAME"] == "gpu1"
    assert env["FARM_DEVICE"] == env["CUDA_VISIBLE_DEVICES"] == "GPU-bbbb-2222"
    assert env["FARM_DATABASE_URL"] == "x"


def test_a_worker_on_the_cpu_sees_no_card() -> None:
    env = process(launcher.cpu(3), grace=40).env
    assert (env["FARM_WORKER_NAME"], env["FARM_DEVICE"]) == ("cpu3", "cpu")
    assert env["CUDA_VISIBLE_DEVICES"] == ""


def test_looking_for_devices_never_imports_torch() -> None:
    code = "import sys; from farm.worker.launcher import discover; discover(); print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "torch" not in done.stdout.split()
