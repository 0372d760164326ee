"""The settings a checkpoint wants where a batch leaves them open."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from farm.worker.models.architecture import Architecture
from farm.worker.models.catalogue import BUNDLES
from farm.worker.models.defaults import defaults, native_side


def architecture(family: str = "sdxl", side: int = 1024, **facts: Any) -> Architecture:
    return Architecture(family, None, "F16", "single", side, **facts)


@pytest.mark.parametrize(
    ("few_steps", "wanted"),
    [
        (None, {"steps": 20, "cfg_scale": 7.0}),
        ("turbo", {"steps": 4, "cfg_scale": 1.0, "sampler": "Euler a"}),
        ("lightning", {"steps": 4, "cfg_scale": 1.0, "sampler": "Euler"}),
    ],
)
def test_models_for_few_steps_get_few(
    tmp_path: Path, few_steps: str | None, wanted: dict[str, Any]
) -> None:
    known = architecture(few_steps=few_steps)
    found = defaults(tmp_path / "m.json", 512, known)
    assert found == {"width": 512, "height": 512, **wanted}


def test_the_notes_go_before_the_name(tmp_path: Path) -> None:
    notes = tmp_path / "m.json"
    notes.write_text(json.dumps({"steps": 8, "sampler": "DPM++ 2M Karras"}))
    found = defaults(notes, 512, architecture(few_steps="turbo"))
    assert (found["steps"], found["cfg_scale"]) == (8, 1.0)
    assert found["sampler"] == "DPM++ 2M Karras"


@pytest.mark.parametrize(("sample_size", "side"), [(96, 768), (None, 640)])
def test_its_own_config_knows_its_side_best(
    tmp_path: Path, sample_size: int | None, side: int
) -> None:
    (tmp_path / "unet").mkdir()
    (tmp_path / "unet" / "config.json").write_text(json.dumps({"sample_size": sample_size}))
    assert native_side(tmp_path, architecture(side=640)) == side


@pytest.mark.parametrize("family", ["sd15", "sd2", "sdxl", "sdxl-refiner", "ssd1b"])
def test_shipped_configs_leave_the_side_open(family: str) -> None:
    assert native_side(BUNDLES / family, architecture(family, side=640)) == 640
