"""Checkpoints of the hub: its real client against a small hub of our own, and without any."""

from __future__ import annotations

import hashlib
import json
import shutil
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import huggingface_hub.constants
import pytest
import torch
from typer.testing import CliRunner

from farm.cli.main import app
from farm.errors import CheckpointError
from farm.worker.memory.profiles import by_name
from farm.worker.models.catalogue import AssetFile
from farm.worker.models.hub import fetch, is_hub
from farm.worker.models.loader import load
from tests.checkpoints import make_tiny

COMMIT = "a" * 40
NOWHERE = "http://127.0.0.1:9"


@dataclass
class Hub:
    """Repositories as folders, by name, and what was downloaded of them."""

    repositories: dict[str, Path] = field(default_factory=dict)
    downloaded: list[str] = field(default_factory=list)
    gated: set[str] = field(default_factory=set)

    def add(self, name: str, folder: Path) -> None:
        self.repositories[name] = folder

    def files(self, name: str) -> dict[str, Path]:
        folder = self.repositories[name]
        paths = [path for path in sorted(folder.rglob("*")) if path.is_file()]
        return {path.relative_to(folder).as_posix(): path for path in paths}


class Handler(BaseHTTPRequestHandler):
    """The three answers that a download needs."""

    hub: Hub

    def do_HEAD(self) -> None:
        self.answer(with_body=False)

    def do_GET(self) -> None:
        self.answer(with_body=True)

    def answer(self, *, with_body: bool) -> None:
        path = self.path.partition("?")[0].strip("/")
        api = path.startswith("api/models/")
        owner, name, *rest = path.removeprefix("api/models/").split("/")
        repo = f"{owner}/{name}"
        if repo in self.hub.gated:
            self.reply(403, b"", {"X-Error-Code": "GatedRepo"}, with_body=with_body)
        elif repo not in self.hub.repositories:
            self.reply(404, b"", {"X-Error-Code": "RepoNotFound"}, with_body=with_body)
        elif api:
            self.reply(200, json.dumps(self.facts(repo, rest)).encode(), {}, with_body=with_body)
        else:
            content = self.hub.files(repo)["/".join(rest[2:])].read_bytes()
            if with_body:
                self.hub.downloaded.append("/".join(rest[2:]))
            tag = hashlib.sha1(content).hexdigest()
            headers = {"ETag": f'"{tag}"', "X-Repo-Commit": COMMIT}
            self.reply(200, content, headers, with_body=with_body)

    def facts(self, repo: str, rest: list[str]) -> object:
        files = self.hub.files(repo)
        if rest[:1] == ["tree"]:
            return [
                {"type": "file", "path": name, "size": path.stat().st_size, "oid": COMMIT}
                for name, path in files.items()
            ]
        return {"id": repo, "sha": COMMIT, "siblings": [{"rfilename": name} for name in files]}

    def reply(self, status: int, body: bytes, headers: dict[str, str], *, with_body: bool) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        if with_body:
            self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    hub = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Own", (Handler,), {"hub": hub}))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    constants = huggingface_hub.constants
    here = f"http://127.0.0.1:{server.server_port}"
    template = constants.HUGGINGFACE_CO_URL_TEMPLATE.replace(constants.ENDPOINT, here)
    monkeypatch.setattr(constants, "ENDPOINT", here)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    yield hub
    server.shutdown()
    thread.join()
    server.server_close()


def loaded(path: Path) -> str:
    file = AssetFile("hub", path, None, None, 0)
    return load(file, by_name("cpu"), torch.device("cpu")).family


def test_a_diffusers_repository(tmp_path: Path, hub: Hub) -> None:
    folder = make_tiny(tmp_path, "ssd1b", layout="diffusers", dtype=torch.float16, variant="fp16")
    shutil.copytree(folder / "text_encoder", folder / "safety_checker")
    (folder / "unet" / "diffusion_pytorch_model.safetensors").write_bytes(b"the full one")
    (folder / "unet" / "diffusion_pytorch_model.bin").write_bytes(b"a pickle")
    (folder / "unet" / "diffusion_pytorch_model.non_ema.safetensors").write_bytes(b"more")
    (folder / "README.md").write_text("hello")
    hub.add("someone/ssd", folder)

    path = fetch("hub:someone/ssd")

    assert loaded(path) == "ssd1b"
    assert path.is_relative_to(tmp_path / "cache")
    weights = {name for name in hub.downloaded if not name.endswith(".json")}
    assert weights == {
        "unet/diffusion_pytorch_model.fp16.safetensors",
        "vae/diffusion_pytorch_model.fp16.safetensors",
        "text_encoder/model.fp16.safetensors",
        "text_encoder_2/model.fp16.safetensors",
    }
    assert not any("safety_checker" in name for name in hub.downloaded)


def test_a_sharded_repository(tmp_path: Path, hub: Hub) -> None:
    hub.add("someone/shards", make_tiny(tmp_path, "sd2", layout="sharded"))
    assert loaded(fetch("hub:someone/shards")) == "sd2"


def test_a_single_file_and_the_second_time_nothing(tmp_path: Path, hub: Hub) -> None:
    folder = tmp_path / "files"
    folder.mkdir()
    make_tiny(folder, "sd15", name="one")
    (folder / "other.safetensors").write_bytes(b"large")
    hub.add("someone/files", folder)
    first = fetch("hub:someone/files/one.safetensors")
    assert first.read_bytes() == (folder / "one.safetensors").read_bytes()
    assert hub.downloaded == ["one.safetensors"]
    assert fetch("hub:someone/files/one.safetensors") == first
    assert hub.downloaded == ["one.safetensors"]


@pytest.mark.parametrize("offline", [True, False])
def test_without_the_hub_its_cache_serves(
    tmp_path: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch, offline: bool
) -> None:
    hub.add("someone/sd", make_tiny(tmp_path, "sd15", layout="diffusers"))
    online = fetch("hub:someone/sd")
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", NOWHERE)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", offline)
    assert fetch("hub:someone/sd") == online
    assert loaded(online) == "sd15"


@pytest.mark.parametrize("offline", [True, False])
@pytest.mark.parametrize("reference", ["hub:someone/sd", "hub:someone/sd/x.safetensors"])
def test_without_the_hub_and_its_cache(
    hub: Hub, monkeypatch: pytest.MonkeyPatch, offline: bool, reference: str
) -> None:
    assert not hub.downloaded
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", NOWHERE)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", offline)
    with pytest.raises(CheckpointError, match="the hub cannot be reached") as caught:
        fetch(reference)
    assert caught.value.value == reference
    assert "model folder" in str(caught.value.remedy)


def test_repositories_that_hold_no_folder_name_their_files(tmp_path: Path, hub: Hub) -> None:
    for name in ("b.safetensors", "a.safetensors", "c.ckpt"):
        (tmp_path / "files").mkdir(exist_ok=True)
        (tmp_path / "files" / name).touch()
    hub.add("someone/files", tmp_path / "files")
    for reference in ("hub:someone/files", "hub:someone/files/x.safetensors"):
        with pytest.raises(CheckpointError) as caught:
            fetch(reference)
        assert "a.safetensors, b.safetensors" in str(caught.value.remedy)


def test_unknown_and_gated_repositories(hub: Hub) -> None:
    hub.gated.add("someone/gated")
    with pytest.raises(CheckpointError, match="has no repository someone/gone"):
        fetch("hub:someone/gone")
    with pytest.raises(CheckpointError, match="does not give someone/gated") as caught:
        fetch("hub:someone/gated")
    assert "Accept its terms" in str(caught.value.remedy)


@pytest.mark.parametrize(
    "reference",
    ["hub:", "hub:alone", "hub:a/b/c.ckpt", "hub:a/b/../../c.safetensors", "hub:a/b c", "a/b"],
)
def test_references_are_checked_before_anything_is_asked(reference: str) -> None:
    with pytest.raises(CheckpointError, match="is no checkpoint of the hub"):
        fetch(reference)


def test_names_of_the_hub() -> None:
    assert is_hub("hub:someone/sd")
    assert not is_hub("someone/sd")


@pytest.mark.parametrize(
    ("named", "lies_in"),
    [("hub:someone/pipe", "pipe"), ("hub:someone/files/one.safetensors", "one.safetensors")],
)
def test_the_command_line_puts_it_into_the_model_folder(
    tmp_path: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch, named: str, lies_in: str
) -> None:
    monkeypatch.setenv("FARM_HOME", str(tmp_path / "home"))
    files = tmp_path / "files"
    files.mkdir()
    path = make_tiny(files, "sd15", name="one")
    hub.add("someone/files", files)
    hub.add("someone/pipe", make_tiny(tmp_path, "sd15", layout="diffusers"))

    done = CliRunner().invoke(app, ["model", "add", named])

    assert done.exit_code == 0, done.output
    added = tmp_path / "home" / "models" / "Stable-diffusion" / lies_in
    assert not any(each.is_symlink() for each in [added, *added.rglob("*")])
    if added.is_file():
        shutil.copytree(path.with_suffix(".config"), added.with_suffix(".config"))
    assert loaded(added) == "sd15"
