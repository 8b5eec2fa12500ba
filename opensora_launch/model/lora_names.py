"""Which rows of which weight the name of a layer in a LoRA means: the public names, and for Flux also diffusers'.

diffusers cuts what Flux keeps as one matrix: q, k and v, in single blocks with the first product of the feed-forward.
It keeps scale and shift of the last layer in the other order (its scripts/convert_flux_to_diffusers.py).
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass

from opensora_launch.model.shapes import Shapes, TensorShape


@dataclass(frozen=True)
class LoraTarget:
    """The rows [first, stop) of a layer's weight to which the rows of a product are added, in their order."""

    layer: str
    rows: tuple[tuple[int, int], ...]

    @property
    def count(self) -> int:
        return sum(stop - first for first, stop in self.rows)


_FUSED = "double_blocks.0.img_attn.qkv"  # only models like Flux have it
# Names of diffusers' FluxTransformer2DModel for each layer, or for its parts in the order of the rows. N: the block.
_DIFFUSERS = {
    "double_blocks.N.img_attn.qkv": tuple(f"transformer_blocks.N.attn.to_{part}" for part in "qkv"),
    "double_blocks.N.txt_attn.qkv": tuple(f"transformer_blocks.N.attn.add_{part}_proj" for part in "qkv"),
    "double_blocks.N.img_attn.proj": ("transformer_blocks.N.attn.to_out.0",),
    "double_blocks.N.txt_attn.proj": ("transformer_blocks.N.attn.to_add_out",),
    "double_blocks.N.img_mod.lin": ("transformer_blocks.N.norm1.linear",),
    "double_blocks.N.txt_mod.lin": ("transformer_blocks.N.norm1_context.linear",),
    "double_blocks.N.img_mlp.0": ("transformer_blocks.N.ff.net.0.proj",),
    "double_blocks.N.img_mlp.2": ("transformer_blocks.N.ff.net.2",),
    "double_blocks.N.txt_mlp.0": ("transformer_blocks.N.ff_context.net.0.proj",),
    "double_blocks.N.txt_mlp.2": ("transformer_blocks.N.ff_context.net.2",),
    "single_blocks.N.linear1": (
        *(f"single_transformer_blocks.N.attn.to_{part}" for part in "qkv"),
        "single_transformer_blocks.N.proj_mlp",
    ),
    "single_blocks.N.linear2": ("single_transformer_blocks.N.proj_out",),
    "single_blocks.N.modulation.lin": ("single_transformer_blocks.N.norm.linear",),
    "img_in": ("x_embedder",),
    "txt_in": ("context_embedder",),
    "time_in.in_layer": ("time_text_embed.timestep_embedder.linear_1",),
    "time_in.out_layer": ("time_text_embed.timestep_embedder.linear_2",),
    "guidance_in.in_layer": ("time_text_embed.guidance_embedder.linear_1",),
    "guidance_in.out_layer": ("time_text_embed.guidance_embedder.linear_2",),
    "vector_in.in_layer": ("time_text_embed.text_embedder.linear_1",),
    "vector_in.out_layer": ("time_text_embed.text_embedder.linear_2",),
    "final_layer.linear": ("proj_out",),
}
_SWAPPED = {"final_layer.adaLN_modulation.1": "norm_out.linear"}


def lora_targets(shapes: Shapes) -> dict[str, LoraTarget]:
    """Return what each known name of a layer means for a model with these weights."""
    layers = {name.removesuffix(".weight"): shape for name, shape in shapes.items() if len(shape) == 2}
    targets = {layer: LoraTarget(layer, ((0, shape[0]),)) for layer, shape in layers.items()}
    if _FUSED in layers:
        for layer, shape in layers.items():
            targets |= _of_diffusers(layer, shape)
    return targets


def _of_diffusers(layer: str, shape: TensorShape) -> Iterator[tuple[str, LoraTarget]]:
    """Yield diffusers' names for a layer or its parts. A part has as many rows as columns, the last has the rest."""
    rows, width = shape
    block = re.match(r"(?:double|single)_blocks(\.\d+\.)", layer)
    number = block[1] if block else ".N."
    names = _DIFFUSERS.get(layer.replace(number, ".N.", 1), ())
    for place, name in enumerate(names):
        first, is_last = place * width, place == len(names) - 1
        yield name.replace(".N.", number), LoraTarget(layer, ((first, rows if is_last else first + width),))
    if swapped := _SWAPPED.get(layer):
        yield swapped, LoraTarget(layer, ((rows // 2, rows), (0, rows // 2)))
