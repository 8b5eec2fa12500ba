"""docs/migrating.md names every key of Open-Sora's script, and ours by their exact names."""

import re
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, get_args, get_type_hints

from opensora_launch.media.prompt_files import IGNORED_COLUMNS
from opensora_launch.media.prompts import COLUMNS, COND_TYPES
from opensora_launch.schema.config import RunConfig

PAGE = Path(__file__).parent.parent / "docs" / "migrating.md"
GROUPS = {"model", "image", "video", "topology", "layout", "sampling", "launcher"}
# From configs/diffusion/inference, opensora/utils/config.py and the script itself, at commit 7ad6a96.
THEIRS = re.findall(
    r"\S+",
    """
save_dir seed batch_size dtype cond_type motion_score fps_save prompt ref num_sample num_samples start_index end_index
resolution guidance guidance_img num_steps num_frames aspect_ratio ckpt_path offload_model prompt_refine prompt_as_path
save_prefix num_workers prefetch_factor patch_size pretrained_lora_path use_t2i2v img_flux img_flux_ae img_resolution
ae_spatial_compression dataset.type dataset.data_path plugin_ae plugin_config.sp_size plugin_config.tp_size
plugin_config_ae.tp_size plugin_config_ae.sp_size
sampling_option.resolution sampling_option.aspect_ratio sampling_option.height sampling_option.width
sampling_option.num_frames sampling_option.num_steps sampling_option.shift sampling_option.flow_shift
sampling_option.temporal_reduction sampling_option.is_causal_vae sampling_option.guidance sampling_option.guidance_img
sampling_option.text_osci sampling_option.image_osci sampling_option.scale_temporal_osci sampling_option.method
sampling_option.seed model.from_pretrained ae.from_pretrained t5.from_pretrained clip.from_pretrained t5.max_length
clip.max_length t5.shardformer ae.use_spatial_tiling ae.use_temporal_tiling
""",
)


def table_rows() -> list[list[str]]:
    lines = [line for line in PAGE.read_text().splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def code(text: str) -> list[str]:
    return re.findall(r"`([^`]+)`", text)


def exists(key: str) -> bool:
    """Whether a dotted name is a field of the run's config."""
    kind: Any = RunConfig
    for part in key.split("."):
        if not is_dataclass(kind) or part not in {field.name for field in fields(kind)}:
            return False
        hint = get_type_hints(kind)[part]
        kind = next((one for one in get_args(hint) if is_dataclass(one)), hint)  # of a part that may be null
    return True


def test_every_key_of_open_sora_is_in_the_left_column():
    named = {name for row in table_rows() for name in code(row[0])}
    assert [key for key in THEIRS if key not in named] == []


def test_what_is_left_out_says_why():
    """A row has an answer, or the reason why there is none."""
    rows = [row for row in table_rows() if len(row) >= 3]
    assert [row for row in rows if row[1] == "none"] == []
    left_out = [row for row in rows if row[1].startswith("left out")]
    assert len(left_out) > 5
    assert [row for row in left_out if len(row[2].split()) < 5] == []


def test_our_keys_are_the_configs_own():
    prose = [line for line in PAGE.read_text().splitlines() if not line.startswith("|")]
    spans = code("\n".join(prose)) + [name for row in table_rows() for cell in row[1:] for name in code(cell)]
    keys = {word.partition("=")[0] for span in spans for word in span.split()}
    dotted = {key for key in keys if "." in key and key.split(".")[0] in GROUPS}
    assert len(dotted) > 30
    assert sorted(key for key in dotted if not exists(key)) == []
    assert {"precision", "runs_dir"} <= keys
    assert exists("precision")
    assert exists("runs_dir")


def test_every_setting_a_migrant_needs_is_there():
    text, kinds = PAGE.read_text(), get_type_hints(RunConfig)
    ours = [f"{group}.{field.name}" for group in ("sampling", "layout") for field in fields(kinds[group])]
    assert [key for key in ours if not re.search(rf"[` ]{key}\b", text)] == []


def test_every_column_and_condition_is_there():
    named = {name for row in table_rows() for name in code(row[0])}
    unnamed = {"", "Unnamed: 0"}
    assert sorted({*COLUMNS, *IGNORED_COLUMNS, *COND_TYPES} - unnamed - named) == []
