"""The tier sees every line of the product that moves a tensor to CUDA: without any one of them, the worker fails."""

import os
from pathlib import Path
from typing import Any

import pytest
import torch

from opensora_launch.plan.plan import Plan
from opensora_launch.schema.config import ModelConfig
from tests.fake_cuda.ledger import place_in_product
from tests.fake_cuda.making import NO_MEMORY, make, plan_of
from tests.fake_cuda.tensor import CudaTensor
from tests.media.clips import noise, write_clip
from tests.worker.plans import video

pytestmark = pytest.mark.fake_cuda


def watch_moves() -> None:
    """Write each line that moves a tensor to CUDA into the file $MOVES. The line $LEAVE_OUT moves nothing."""
    move, left_out = torch.Tensor.to, os.environ["LEAVE_OUT"]

    def to(self: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        moved = move(self, *args, **kwargs)
        if isinstance(self, CudaTensor) or not isinstance(moved, CudaTensor):
            return moved
        place, _ = place_in_product()
        with Path(os.environ["MOVES"]).open("a") as file:
            file.write(f"{place}\n")
        return move(self, moved.dtype) if place == left_out else moved

    torch.Tensor.to = to  # type: ignore[assignment,method-assign]


def is_seen(plan: Plan, folder: Path, env: dict[str, str]) -> bool:
    try:
        make(plan, folder, fake=True, env=env, prepare=watch_moves)
    except AssertionError as error:
        return "Expected all tensors to be on the same device" in str(error)
    return False


def test_every_move_matters(model: ModelConfig, tmp_path: Path) -> None:
    """Texts are streamed, and a reference is encoded.

    A tensor that is copied into its place needs no other move. A kernel whose trial fails is passed over, and
    test_one_gpu sees that another one ran.
    """
    clip = str(write_clip(tmp_path / "a clip.mkv", noise(40, 48, 80, 3)))
    plan = plan_of(1, [video(steps=1, refs=[clip], cond="i2v_head")], model=model)
    env = NO_MEMORY | {"MOVES": str(tmp_path / "moves"), "LEAVE_OUT": ""}
    assert not is_seen(plan, tmp_path / "all", env)
    places = sorted(set((tmp_path / "moves").read_text().splitlines()))
    assert len({place.partition(":")[0] for place in places}) >= 7
    unseen = [p for i, p in enumerate(places) if not is_seen(plan, tmp_path / str(i), env | {"LEAVE_OUT": p})]
    assert [place.partition(":")[0] for place in unseen] == ["model/kernel_choice.py", "parallel/packing.py"]
