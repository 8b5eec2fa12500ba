"""Read which weights a LoRA changes, from the headers of its files and without torch, so that mistakes come early.

A LoRA holds two thin matrices per weight: down [r, inputs] and up [outputs, r]. They add scale * up @ down to it.
"""

import json
import math
import re
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from opensora_launch.errors import UserError
from opensora_launch.model.lora_names import lora_targets
from opensora_launch.model.shapes import Shapes, first_names, mmdit_shapes
from opensora_launch.model.weight_files import Stored, read_header
from opensora_launch.schema.config import ModelConfig

PEFT_WEIGHTS, PEFT_CONFIG = "adapter_model.safetensors", "adapter_config.json"
# What stands behind the name of a layer: of PEFT and of older diffusers, of kohya's scripts.
DOWN = (".lora_A.weight", ".lora_A.default.weight", ".lora_down.weight", ".lora.down.weight")
UP = (".lora_B.weight", ".lora_B.default.weight", ".lora_up.weight", ".lora.up.weight")
ALPHA = ".alpha"
PREFIXES = ("base_model.model.", "transformer.", "diffusion_model.")
FLAT = ("lora_unet_", "lora_transformer_")  # start names in which every dot is an underscore: kohya's, OneTrainer's
METADATA = "lora_adapter_metadata"  # where diffusers keeps PEFT's config in a file, each key behind "transformer."
# Keys of adapter_config.json that make the file something else than thin matrices for linear layers.
OTHER_KINDS = ("use_dora", "fan_in_fan_out", "modules_to_save", "lora_bias", "use_qalora", "use_bdlora")


@dataclass(frozen=True)
class LoraChoice:
    """A LoRA that the user named: a PEFT folder or a safetensors file, and how strongly it counts."""

    path: Path
    strength: float

    def __str__(self) -> str:
        return f"{self.path}@{self.strength:g}"


@dataclass(frozen=True)
class LoraPair:
    """The matrices in a file that change one weight, or some of its rows.

    Their product counts `scale` times; where the file holds an alpha, alpha / r times that. Its rows are added to
    `rows` of the weight, which has `of` rows.
    """

    file: Path
    down: str
    up: str
    alpha: str | None
    scale: float
    rows: tuple[tuple[int, int], ...]
    of: int


def parse_lora(text: str) -> LoraChoice:
    """Read PATH or PATH@STRENGTH. Raises UserError if the strength is not a finite number."""
    path, at, strength = text.rpartition("@")
    if not at or Path(text).exists():
        return LoraChoice(Path(text), 1.0)
    try:
        value = float(strength)
    except ValueError:
        return LoraChoice(Path(text), 1.0)
    if not math.isfinite(value):
        raise UserError(f"LoRA {text}: the strength behind @ must be a finite number, such as 0.8")
    return LoraChoice(Path(path), value)


def lora_problems(model: ModelConfig) -> list[str]:
    """Return one line per thing that keeps the model's LoRAs from being merged into its weights."""
    shapes, problems = mmdit_shapes(model.mmdit), list[str]()
    for text in model.lora:
        try:
            read_lora(parse_lora(text), shapes)
        except UserError as error:
            problems += error.problems or [str(error)]
    return problems


def read_loras(model: ModelConfig) -> dict[str, tuple[LoraPair, ...]]:
    """Return the pairs of all LoRAs of the model by the name of the weight, in the order in which the user named them.

    Raises UserError if one cannot be read, or does not fit the model.
    """
    pairs: defaultdict[str, tuple[LoraPair, ...]] = defaultdict(tuple)
    for text in model.lora:
        for weight, of_file in read_lora(parse_lora(text), mmdit_shapes(model.mmdit)).items():
            pairs[weight] += of_file
    return dict(pairs)


def read_lora(asked: LoraChoice, shapes: Shapes) -> dict[str, tuple[LoraPair, ...]]:
    """Return the pairs of a LoRA by the name of the weight that they change. `shapes`: the weights of the model.

    Raises UserError with everything that does not fit.
    """
    file, config = _file_and_config(asked.path)
    stored = read_header(file)
    targets = lora_targets(shapes)
    found, strange = _by_layer(stored, targets)
    problems = [f"the model has no layers for {first_names(strange)}"] if strange else []
    pairs: defaultdict[str, tuple[LoraPair, ...]] = defaultdict(tuple)
    for layer, parts in found.items():
        target = targets[layer]
        weight = f"{target.layer}.weight"
        outputs, inputs = shapes[weight]
        if wrong := list(_pair_problems(layer, parts, stored, (target.count, inputs))):
            problems += wrong
            continue
        scale = asked.strength
        if config is not None and "alpha" not in parts:
            scale *= _peft_scale(config, layer, rank=stored[parts["down"]].shape[0])
        alpha = parts.get("alpha")
        pairs[weight] += (LoraPair(file, parts["down"], parts["up"], alpha, scale, target.rows, outputs),)
    if not stored:
        problems = ["it holds no tensors"]
    if problems:
        raise UserError(f"the LoRA {file} does not fit the model", [f"LoRA {file}: {line}" for line in problems])
    return dict(pairs)


def _file_and_config(path: Path) -> tuple[Path, Mapping[str, Any] | None]:
    """The file with the matrices, and PEFT's config if it is one of PEFT's."""
    file = path / PEFT_WEIGHTS if path.is_dir() else path
    if not file.is_file():
        what = f"the folder {path} holds no {PEFT_WEIGHTS}" if path.is_dir() else f"{path} does not exist"
        raise UserError(f"LoRA {what}; give a folder by PEFT or a safetensors file")
    place = file.with_name(PEFT_CONFIG)
    apart = file.name == PEFT_WEIGHTS and (file != path or place.is_file())
    inside = None if apart else _metadata(file)
    if not apart and inside is None:
        return file, None
    try:
        config = json.loads(place.read_text(encoding="utf-8") if inside is None else inside)
        if inside is not None:
            place = file
            config = {key.removeprefix("transformer."): value for key, value in config.items()}
        for pattern in (*(config.get("rank_pattern") or ()), *(config.get("alpha_pattern") or ())):
            re.compile(pattern)
        sound = float(config["lora_alpha"]) > 0
    except (OSError, ValueError, TypeError, KeyError, AttributeError, re.error):
        sound = False
    if not sound:
        raise UserError(f"LoRA {place} is missing, or is not the config of a LoRA by PEFT")
    if kinds := [key for key in OTHER_KINDS if config.get(key)]:
        raise UserError(f"LoRA {place}: {', '.join(kinds)} cannot be merged; only plain LoRA of linear layers can")
    return file, config


def _metadata(file: Path) -> str | None:
    """Return PEFT's config as diffusers keeps it in a file; None if there is none, or if the file cannot be read."""
    from safetensors import SafetensorError, safe_open  # imports numpy, which most commands do not need

    try:
        with safe_open(file, framework="np") as opened:
            found: str | None = (opened.metadata() or {}).get(METADATA)
            return found
    except (SafetensorError, OSError):
        return None  # read_header says why


def _by_layer(names: Iterable[str], layers: Collection[str]) -> tuple[dict[str, dict[str, str]], list[str]]:
    """Return the tensors by layer and part (down, up, alpha), and the names that belong to no layer."""
    flat = {layer.replace(".", "_"): layer for layer in layers}
    found: defaultdict[str, dict[str, str]] = defaultdict(dict)
    strange = []
    for name in names:
        part, short = _part_of(name)
        start = next((start for start in FLAT if short.startswith(start)), None)
        layer = flat.get(short.removeprefix(start)) if start else _known(short, layers)
        if layer is None or not part or part in found[layer]:
            strange.append(name)
        else:
            found[layer][part] = name
    return {layer: parts for layer, parts in found.items() if parts}, sorted(strange)


def _part_of(name: str) -> tuple[str, str]:
    """("down", what stands before it), for example; ("", name) for a name of another form."""
    for part, endings in (("down", DOWN), ("up", UP), ("alpha", (ALPHA,))):
        for ending in endings:
            if name.endswith(ending):
                return part, name.removesuffix(ending)
    return "", name


def _known(name: str, layers: Collection[str]) -> str | None:
    for prefix in ("", *PREFIXES):
        if name.startswith(prefix) and (layer := name.removeprefix(prefix)) in layers:
            return layer
    return None


def _pair_problems(
    layer: str, parts: Mapping[str, str], stored: Mapping[str, Stored], want: Sequence[int]
) -> Iterator[str]:
    if missing := [part for part in ("down", "up") if part not in parts]:
        yield f"{layer} has no {' and no '.join(missing)} matrix"
        return
    down, up = stored[parts["down"]].shape, stored[parts["up"]].shape
    if len(down) != 2 or len(up) != 2 or down[0] != up[1] or (up[0], down[1]) != tuple(want):
        yield f"{layer} has matrices {list(up)} and {list(down)}, but the weight is {list(want)}"


def _peft_scale(config: Mapping[str, Any], layer: str, *, rank: int) -> float:
    """Return alpha / r, or alpha / sqrt(r) for rslora. A pattern names a layer, or the end of its name, as in PEFT."""
    patterns: Mapping[str, float] = config.get("alpha_pattern") or {}
    fits = (value for key, value in patterns.items() if re.match(rf"(.*\.)?({key})$", layer))
    alpha = float(next(fits, config["lora_alpha"]))
    return alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)
