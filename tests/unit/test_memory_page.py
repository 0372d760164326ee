"""The page about memory profiles: every flag of webui has an answer, and every answer is one."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from farm.errors import InvalidInput
from farm.settings import Settings
from farm.worker.memory.custom import _File, read_profile
from farm.worker.memory.profiles import PROFILES

PAGE = (Path(__file__).parents[2] / "docs" / "memory-profiles.md").read_text(encoding="utf-8")
QUOTED = re.compile(r"`([^`]+)`")

WEBUI = (
    "--no-half", "--no-half-vae", "--precision full", "--upcast-sampling",
    "Upcast cross attention layer to float32",
    "--medvram", "--medvram-sdxl", "--lowvram", "--lowram", "--always-batch-cond-uncond",
    "--xformers", "--force-enable-xformers", "--xformers-flash-attention",
    "--opt-sdp-attention", "--opt-sdp-no-mem-attention",
    "--opt-split-attention", "--opt-split-attention-v1", "--opt-split-attention-invokeai",
    "--opt-sub-quad-attention", "--sub-quad-q-chunk-size", "--sub-quad-kv-chunk-size",
    "--sub-quad-chunk-threshold", "--disable-opt-split-attention", "--opt-channelslast",
    "--disable-nan-check", "--use-cpu all", "--device-id", "FP8 weights", "Token merging ratio",
    "Automatically revert VAE to 32-bit floats", "Automatically convert VAE to bfloat16",
    "VAE type for decode: TAESD", "sd_checkpoint_cache", "sd_checkpoints_limit",
    "sd_vae_checkpoint_cache", "Only keep one model on device",
)  # fmt: skip
"""What of webui 1.8's flags and settings is about memory, precision or attention."""


def rows() -> list[tuple[str, str]]:
    """The table of webui's flags: theirs, and ours."""
    lines = PAGE.partition("## From webui's flags")[2].strip().splitlines()
    cells = [line.strip("| ").split(" | ") for line in lines if line.startswith("|")]
    return [(theirs, ours) for theirs, ours in cells[2:]]


def accepted(folder: Path, option: str) -> bool:
    """Whether a profile may say so; a key alone counts as any of its values."""
    if ": " not in option:
        return option in _File.model_fields
    path = folder / "mine.yaml"
    path.write_text(f"base: 24gb\n{option}\n")
    try:
        read_profile(path)
    except InvalidInput:
        return False
    return True


def known(folder: Path, ours: str) -> bool:
    setting = ours.partition("=")[0].removeprefix("FARM_").lower()
    return (
        accepted(folder, ours)
        or ours in {profile.name for profile in PROFILES}
        or (ours.startswith("FARM_") and setting in Settings.model_fields)
        or ours.removeprefix("farm worker ").startswith("--gpus ")
        or any(f"'{ours}'" in str(field.annotation) for field in _File.model_fields.values())
    )


def test_every_flag_of_webui_is_answered_once() -> None:
    named = [each for theirs, _ in rows() for each in re.findall(r'[`"]([^`"]+)[`"]', theirs)]
    plain = [theirs for theirs, _ in rows()]
    found = [flag for flag in WEBUI for each in named if each == flag]
    found += [flag for flag in WEBUI if flag not in named for each in plain if flag in each]
    assert sorted(found) == sorted(WEBUI)


@pytest.mark.parametrize(
    "ours", sorted({each for _, ours in rows() for each in QUOTED.findall(ours)})
)
def test_whatever_is_named_for_them_is_there(tmp_path: Path, ours: str) -> None:
    assert known(tmp_path, ours)


@pytest.mark.parametrize(
    "ours", ["dtype: float8", "offload: medvram", "no_half", "FARM_HALF", "16gb"]
)
def test_what_is_not_there_would_be_noticed(tmp_path: Path, ours: str) -> None:
    assert not known(tmp_path, ours)


def test_the_example_is_a_profile_and_names_all_that_one_may_say(tmp_path: Path) -> None:
    text = PAGE.partition("```yaml\n")[2].partition("```")[0]
    path = tmp_path / "quiet.yaml"
    path.write_text(text)
    profile = read_profile(path)
    keys = set(re.findall(r"^(\w+):", text, re.MULTILINE))
    assert keys == set(_File.model_fields)
    assert (profile.dtype, profile.max_rows, profile.vae) == ("bfloat16", 16, "taesd")


def test_the_table_of_profiles_is_theirs() -> None:
    told = re.findall(r"^\| `(\w+)` \| (.+) \|$", PAGE, re.MULTILINE)
    table = {name: cells.split(" | ") for name, cells in told}
    assert list(table) == [profile.name for profile in PROFILES]
    for profile in PROFILES:
        _, dtype, _, rows_at_1024, most, tiles, _ = table[profile.name]
        assert dtype == profile.dtype
        assert (int(rows_at_1024), int(most)) == (profile.rows_at_1024, profile.max_rows)
        assert int(tiles.removesuffix("²")) ** 2 == profile.vae_tile_over
