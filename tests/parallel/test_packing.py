"""Tensors of a block in one vector of bytes: put together from any shares, they are the tensors that went in."""

from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn

from opensora_launch.parallel.packing import ALIGN, Packing
from opensora_launch.schema.model_constants import FP8_LARGEST


class Block(nn.Module):
    """Matrices of odd sizes, vectors, and weights of two types."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a = nn.Linear(37, 11)
        self.norm = nn.Parameter(torch.randn(5).half(), requires_grad=False)
        self.b = nn.Linear(3, 50, bias=False)
        with torch.no_grad():
            self.b.weight *= torch.logspace(-12, 8, 50)[:, None]  # rows of very different sizes
            self.b.weight[7] = 0


def put_together(packing: Packing, state: dict[str, Tensor], ranks: int) -> tuple[Tensor, int]:
    """The whole vector, and how many elements its readers have read."""
    shares, elements = [], 0
    for index in range(ranks):
        share = torch.full((packing.share(ranks),), 255, dtype=torch.uint8)

        def read(name: str, first: int, last: int) -> Tensor:
            return state[name].reshape(-1)[first:last]

        elements += packing.read_share(index, ranks, read, share)
        shares.append(share)
    return torch.cat(shares), elements


@pytest.mark.parametrize("ranks", [1, 2, 3, 7, 40])
def test_shares_put_together_are_the_tensors(ranks: int) -> None:
    state = Block().state_dict()
    packing = Packing.of(Block())
    flat, elements = put_together(packing, state, ranks)
    assert elements == sum(x.numel() for x in state.values()), "each is read once"
    views = packing.views(flat)
    assert {name: view.dtype for name, view in views.items()} == {name: x.dtype for name, x in state.items()}
    assert all(torch.equal(views[name], x) for name, x in state.items())


def test_tensors_do_not_overlap_and_are_aligned() -> None:
    packing = Packing.of(Block(), torch.bfloat16)
    flat = torch.zeros(packing.share(1), dtype=torch.uint8)
    for view in packing.views(flat).values():
        assert view.dtype == torch.bfloat16
        assert view.storage_offset() * 2 % ALIGN == 0
        view += 1
    ends = [(entry.first, entry.first + entry.nbytes) for entry in packing.entries]
    assert all(stop <= start for (_, stop), (start, _) in pairwise(ends))
    ones = flat.view(torch.bfloat16)
    assert set(ones.unique().tolist()) == {0.0, 1.0}
    assert int(ones.float().sum()) == sum(x.numel() for x in Block().state_dict().values())


@pytest.mark.parametrize("ranks", [1, 2, 3, 7, 40])
def test_fp8_is_rounded_once_by_rows_whatever_the_shares(ranks: int) -> None:
    state = Block().state_dict()
    packing = Packing.of(Block(), torch.float32, fp8=True)
    flat, _ = put_together(packing, state, ranks)
    room = torch.empty(packing.room, dtype=torch.uint8)
    views = packing.views(flat, room)
    assert torch.equal(views["a.bias"], state["a.bias"])
    assert torch.equal(views["norm"], state["norm"].float())
    for name in ("a.weight", "b.weight"):
        want = state[name]
        largest = want.abs().amax(dim=1, keepdim=True)
        powers = torch.exp2(torch.ceil(torch.log2((largest / FP8_LARGEST).clamp(min=1e-30))))
        assert torch.equal(views[name], (want / powers).to(torch.float8_e4m3fn).float() * powers)
        assert bool(((views[name] - want).abs() <= (want.abs() / 16).clamp(min=largest * 2**-16)).all())
    assert torch.equal(views["b.weight"][7], torch.zeros(3))


def test_fp8_takes_half_of_bf16() -> None:
    with torch.device("meta"):
        block = nn.Linear(3072, 12288)
    assert Packing.of(block, torch.bfloat16, fp8=True).size / Packing.of(block, torch.bfloat16).size < 0.506
