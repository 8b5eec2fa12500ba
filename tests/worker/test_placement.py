"""Where the weights live changes nothing: the same bits from a file, on any ranks, sharded and offloaded."""

from contextlib import nullcontext
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import save_file

from opensora_launch.engines.placed_weights import blocks_of, place_transformer
from opensora_launch.engines.weight_source import WeightSource
from opensora_launch.model.kernel_choice import choose_kernel
from opensora_launch.model.kernels import KernelCall
from opensora_launch.model.mmdit import MMDiT
from opensora_launch.model.weights import random_tensors
from opensora_launch.parallel.mesh import Groups, build_meshes, node_axis
from opensora_launch.plan.layout import Layout
from opensora_launch.plan.placement import Placement, placement_text
from opensora_launch.plan.plan import Plan
from opensora_launch.schema.config import Init, LayoutConfig, ModelConfig, Offload, PlacementConfig, Shard
from opensora_launch.worker.case_files import read_case
from opensora_launch.worker.cases import Ranks, run_case
from opensora_launch.worker.verify import unrecorded
from tests.ranks import run_ranks
from tests.worker.plans import TINY, small_plan, video
from tests.worker.test_generate import pixels

PLACEMENTS = {
    "sharded over the node": PlacementConfig(Shard.node, Offload.none),
    "sharded over all": PlacementConfig(Shard.all, Offload.none),
    "offloaded": PlacementConfig(Shard.none, Offload.host),
    "sharded and offloaded": PlacementConfig(Shard.node, Offload.host),
}


def plan_of(ranks: int, placement: PlacementConfig) -> Plan:
    """One video with steps of one and two rows: on cfg 2 some ranks sit some steps out."""
    layout = LayoutConfig(dp=1, cfg=2) if ranks % 2 == 0 else LayoutConfig(dp=1)
    return small_plan(ranks, [video()], layout=layout, placement=placement)


@pytest.mark.parametrize("ranks", [2, *(pytest.param(n, marks=pytest.mark.slow) for n in (1, 3, 4))])
def test_every_placement_makes_the_same_bits(ranks, tmp_path):
    want = pixels(plan_of(ranks, PlacementConfig()), tmp_path / "replicated")
    for name, placement in PLACEMENTS.items():
        got = pixels(plan_of(ranks, placement), tmp_path / name)
        assert torch.equal(got["0000_0"], want["0000_0"]), name


@pytest.mark.slow
def test_two_groups_of_videos_shard_among_themselves(tmp_path):
    videos = [video("0000_0", seed=1), video("0001_0", seed=2), video("0002_0", seed=3)]
    layout = LayoutConfig(dp=2, ulysses=2)
    want = pixels(small_plan(4, videos, layout=layout), tmp_path / "replicated")
    placed = small_plan(4, videos, layout=layout, placement=PLACEMENTS["sharded over the node"])
    got = pixels(placed, tmp_path / "sharded")
    assert {name: torch.equal(got[name], want[name]) for name in want} == dict.fromkeys(want, True)


REFERENCE = Path(__file__).parent.parent / "reference"
CASES = [p for kind in ("mmdit", "sampling") for p in sorted(REFERENCE.glob(f"{kind}_*.json"))]
AS_PLACED = [
    Placement(Shard.node),
    Placement(Shard.none, Offload.host),
    Placement(Shard.none, Offload.host, resident_blocks=1),
    Placement(Shard.node, Offload.host),
]


def cases_on_rank(ranks: int) -> dict[str, bool]:
    """Of every reference case: whether each placement gives the last bit of what replicated weights give."""
    groups = Groups(timedelta(seconds=60))
    layouts = {rows: Layout(cfg=2 if ranks == 4 and rows > 1 else 1, ring=ranks) for rows in range(1, 7)}
    layouts = {r: replace(x, ring=x.ring // x.cfg) for r, x in layouts.items()}
    meshes = build_meshes([*dict.fromkeys(layouts.values())], dist.get_rank(), groups, lambda *_: nullcontext())
    by_rows = {rows: meshes[layout] for rows, layout in layouts.items()}
    node = node_axis(by_rows[1], ranks, ranks, groups)

    def kernel(dtype: torch.dtype, head_dim: int) -> KernelCall:
        return choose_kernel("cpu_flash", device=torch.device("cpu"), dtype=dtype, head_dim=head_dim).call

    same = {}
    for path in CASES:
        case = read_case(path, torch.device("cpu"))
        case = replace(case, data={**case.data, "vae": None})  # the placement is of the network alone
        want = run_case(case, Ranks(by_rows, node, Placement(), kernel), unrecorded)
        for placement in AS_PLACED:
            got = run_case(case, Ranks(by_rows, node, placement, kernel), unrecorded)
            same[f"{path.stem} {placement_text(placement)}"] = all(
                torch.equal(got[name], x) for name, x in want.items()
            )
    return same


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [3, 4])
def test_the_reference_cases_have_the_same_bits(ranks, tmp_path):
    for same in run_ranks(ranks, tmp_path, cases_on_rank, ranks, timeout=200.0):
        assert len(same) == len(CASES) * len(AS_PLACED)
        assert [name for name, equal in same.items() if not equal] == []


def output_on_rank(model: ModelConfig, placement: Placement) -> torch.Tensor:
    """The network's output for one input, its weights from the checkpoint in `model.folder`."""
    layout = Layout(ulysses=dist.get_world_size())
    groups = Groups(timedelta(seconds=30))
    mesh = build_meshes([layout], dist.get_rank(), groups, lambda *args: nullcontext())[layout]
    node = node_axis(mesh, mesh.video.size, mesh.video.size, groups)
    read: list[int] = []
    source = WeightSource(model, torch.device("cpu"), torch.float32)
    loaded = place_transformer(source, placement, node, mesh.video, read.append)
    assert len(read) == 2, "a word for each block"
    every = torch.tensor(sum(read))
    dist.all_reduce(every, group=node.group)
    assert every.item() == 4 * sum(p.numel() for b in blocks_of(MMDiT(model.mmdit)).values() for p in b.parameters())
    rng = torch.Generator().manual_seed(0)
    out = loaded.module(
        img=torch.randn(1, 6, 16, generator=rng),
        img_ids=torch.zeros(1, 6, 3),
        txt=torch.randn(1, 7, 32, generator=rng),
        txt_ids=torch.zeros(1, 7, 3),
        timesteps=torch.tensor([0.5]),
        y_vec=torch.randn(1, 24, generator=rng),
        cond=torch.randn(1, 6, 20, generator=rng),
    )
    if loaded.blocks:
        loaded.blocks.release()
    result: torch.Tensor = out.detach()
    return result


@pytest.fixture
def stored(tmp_path: Path) -> ModelConfig:
    with torch.device("meta"):
        empty = MMDiT(TINY.mmdit)
    tensors = random_tensors(empty, seed=3, dtype=torch.float32, device=torch.device("cpu"))
    save_file(tensors, tmp_path / TINY.mmdit_file)
    return replace(TINY, init=Init.checkpoint, folder=str(tmp_path))


@pytest.mark.parametrize("placement", [Placement(), *AS_PLACED], ids=placement_text)
def test_a_checkpoint_is_read_in_parts(placement, stored, tmp_path):
    """What three ranks put together from their shares of a file is what one reads whole."""
    (want,) = run_ranks(1, tmp_path, output_on_rank, stored, Placement())
    assert [torch.equal(got, want) for got in run_ranks(3, tmp_path, output_on_rank, stored, placement)] == [True] * 3


def test_a_file_of_another_model_is_one_error(stored, tmp_path):
    other = replace(stored, mmdit=replace(TINY.mmdit, depth=2))
    with pytest.raises(AssertionError, match=r"does not match the config: 32 missing: double_blocks.1"):
        run_ranks(2, tmp_path, output_on_rank, other, Placement())
