"""Conditions from reference images and videos: which latent frames are given, and their content.

Shapes of one video: C latent channels, T latent frames, H x W latents.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from opensora_launch.sampling.latents import pack

VIDEO_FRAMES = {"v2v_head": 9, "v2v_tail": 9, "v2v_head_easy": 17, "v2v_tail_easy": 17}  # number of given latent frames


def given_frames(cond_type: str, latent_frames: int) -> list[tuple[int, int, int]]:
    """Return (index of the reference, frame of the reference, frame of the video) for every given latent frame.

    The condition of a single image is ignored, as in the reference.
    """
    if latent_frames == 1 or cond_type == "t2v":
        return []
    if cond_type in VIDEO_FRAMES:
        count = min(VIDEO_FRAMES[cond_type], latent_frames)
        frames = range(count) if "head" in cond_type else range(-count, 0)  # a tail counts from the end
        return [(0, k, k) for k in frames]
    return {"i2v_head": [(0, 0, 0)], "i2v_tail": [(0, 0, -1)], "i2v_loop": [(0, 0, 0), (1, 0, -1)]}[cond_type]


def condition(
    cond_type: str, refs: Sequence[Float[Tensor, "C _ H W"]], like: Float[Tensor, "C T H W"]
) -> tuple[Float[Tensor, "1 T H W"], Float[Tensor, "C T H W"]]:
    """Return (masks, masked reference): 1 for each given latent frame, and that frame; zeros elsewhere.

    i2v_loop without a second reference ends with the first one.
    """
    masks, given = torch.zeros_like(like[:1]), torch.zeros_like(like)
    for ref, source, frame in given_frames(cond_type, like.shape[1]):
        masks[:, frame] = 1
        given[:, frame] = refs[min(ref, len(refs) - 1)][:, source]
    return masks, given


def pack_condition(
    masks: Float[Tensor, "1 T H W"], given: Float[Tensor, "C T H W"], patch: int
) -> Float[Tensor, "S cond_channels"]:
    """Pack the condition into tokens; the mask's channels come first."""
    return pack(torch.cat([masks, given])[None], patch)[0]


def restore_given(
    latents: Float[Tensor, "C T H W"], cond_type: str, refs: Sequence[Float[Tensor, "C _ H W"]]
) -> Float[Tensor, "C T H W"]:
    """Replace given frames with the latents of the reference images before decoding (i2v only)."""
    if not cond_type.startswith("i2v"):
        return latents
    out = latents.clone()
    for ref, source, frame in given_frames(cond_type, latents.shape[1]):
        out[:, frame] = refs[min(ref, len(refs) - 1)][:, source]
    return out
