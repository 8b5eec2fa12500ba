"""Read a stored case of `verify`: NAME.json beside NAME.safetensors. docs/verify.md describes the format."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from opensora_launch.errors import UserError
from opensora_launch.model.load import mmdit_config
from opensora_launch.schema.autoencoder import VaeKind
from opensora_launch.schema.config import MmditConfig

# What a case of each kind must hold, and what each of these parts must hold.
OPTIONS = (
    "num_steps", "num_frames", "seed", "shift", "method",
    "guidance", "guidance_img", "text_osci", "image_osci", "scale_temporal_osci",
)  # fmt: skip
_SAMPLING: Mapping[str, Sequence[str]] = {
    "compare": (), "weights": ("file", "prefix"), "model_config": ("patch_size",), "cond_type": (),
    "sampling_option": OPTIONS,
}  # fmt: skip
CASE_KEYS: Mapping[str, Mapping[str, Sequence[str]]] = {
    "mmdit": {"compare": (), "weights": ("file", "prefix"), "config": ()},
    "vae": {"compare": (), "vae": ("file", "prefix", "config", "scale_factor", "shift_factor", "tiles")},
    "dcae": {"compare": (), "vae": ("file", "prefix", "config", "tiles")},
    "ae2d": {"compare": (), "vae": ("file", "prefix", "config")},
    "sampling": _SAMPLING,
    "t2i2v": {**_SAMPLING, "t2i": ("weights", "model_config", "vae", "sampling_option")},
}

VAE_KINDS = {"vae": VaeKind.causal, "dcae": VaeKind.dc_ae, "ae2d": VaeKind.image}


@dataclass(frozen=True)
class Case:
    """The JSON file of a case and its tensors, on `device`."""

    path: Path
    data: Mapping[str, Any]
    tensors: Mapping[str, Tensor]
    device: torch.device

    @property
    def kind(self) -> str:
        return str(self.data["kind"])

    @property
    def is_of_vae(self) -> bool:
        return self.kind in VAE_KINDS

    @property
    def config(self) -> Mapping[str, Any]:
        """The config of the transformer; empty for a VAE."""
        return {} if self.is_of_vae else dict(self.data.get("model_config") or self.data.get("config") or {})

    @property
    def mmdit(self) -> MmditConfig:
        return mmdit_config(self.config)

    @property
    def rows(self) -> int:
        """The largest number of rows in a step."""
        if self.is_of_vae:
            return 1
        return int(self.tensors["input.txt" if self.kind == "mmdit" else "txt"].shape[0])

    @property
    def tokens(self) -> int:
        if self.is_of_vae:
            return 1 << 20
        video, text = ("input.img", "input.txt") if self.kind == "mmdit" else ("noise_packed", "txt")
        return int(self.tensors[video].shape[1] + self.tensors[text].shape[1])

    def stages(self) -> "tuple[Case, Case]":
        """Return the image stage and the video stage of a t2i2v case, each as a sampling case."""
        stage = self.data["t2i"]
        images = {**stage, "kind": "sampling", "cond_type": "t2v", "vae": {"tiles": None, **stage["vae"]}}
        of_images = {name.removeprefix("t2i."): x for name, x in self.tensors.items() if name.startswith("t2i.")}
        return replace(self, data=images, tensors=of_images), replace(self, data={**self.data, "kind": "sampling"})

    def weights(self, where: Mapping[str, Any]) -> dict[str, Tensor]:
        """Read the tensors of {file, prefix}, named without the prefix. The file is relative to the case.

        Raises UserError if the file does not exist.
        """
        path = self.path.parent / where["file"]
        if not path.exists():
            raise UserError(f"{self.path} takes its weights from {path}, which does not exist")
        prefix = where["prefix"]
        tensors = load_file(path, device=str(self.device))
        return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}


def kind_of_vae(data: Mapping[str, Any]) -> str:
    """Return the kind of a case's autoencoder, one of VAE_KINDS: that of the case itself, or what `vae` says."""
    if data["kind"] in VAE_KINDS:
        return str(data["kind"])
    vae = data.get("vae")
    return str(vae.get("kind", "vae")) if isinstance(vae, Mapping) else "vae"


def read_case(path: Path, device: torch.device) -> Case:
    """Read a case, with its tensors on `device`.

    Raises UserError if it cannot be read, is of an unknown kind, or lacks a tensor that it compares.
    """
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        tensors = load_file(path.parent / data["file"], device=str(device))
    except OSError as e:
        raise UserError(f"the case {path} cannot be read: {e.strerror}: {e.filename}") from e
    except (ValueError, KeyError, TypeError, AttributeError) as e:
        raise UserError(
            f"{path} is not a case: it must be JSON with the name of a safetensors file under `file`"
        ) from e
    kind = data.get("kind")
    if kind not in CASE_KEYS:
        raise UserError(f"{path} has kind={kind!r}; the known kinds are {', '.join(CASE_KEYS)}")
    if wrong := _key_problems(data):
        raise UserError(f"{path} cannot be used: {'; '.join(wrong)}")
    if missing := sorted(set(data["compare"]) - set(tensors)):
        raise UserError(f"{data['file']} lacks tensors that {path.name} compares", missing)
    return Case(path, data, tensors, device)


def _key_problems(data: Mapping[str, Any]) -> list[str]:
    """Return what a case lacks, and what stands in its VAE's config although it belongs beside it."""
    wanted = dict(CASE_KEYS[data["kind"]])
    vae = kind_of_vae(data)
    if vae not in VAE_KINDS:
        return [f"`vae` has kind={vae!r}; the known kinds are {', '.join(VAE_KINDS)}"]
    if data.get("vae"):
        wanted["vae"] = CASE_KEYS[vae]["vae"]
    found = [f"it has no `{part}`" for part in wanted if part not in data]
    for part, keys in wanted.items():
        held = data.get(part, {})
        if keys and not isinstance(held, Mapping):
            found.append(f"`{part}` is not an object")
        elif part in data:
            found += [f"`{part}` has no `{key}`" for key in keys if key not in held]
    if not found and data.get("vae") and vae == "vae":
        twice = sorted({"scale_factor", "shift_factor"} & set(data["vae"]["config"]))
        found += [f"`{key}` belongs into `vae`, not into its `config`" for key in twice]
    return found
