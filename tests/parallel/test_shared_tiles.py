"""Tiles of the causal VAE whose frames several ranks share: the same bits as on one rank, and an even deal."""

from datetime import timedelta

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from opensora_launch.model.causal_vae import CausalVae
from opensora_launch.model.vae import compute_tile, decode_latents, load_vae
from opensora_launch.parallel.mesh import Groups, build_meshes
from opensora_launch.parallel.tile_spreading import spread_tiles
from opensora_launch.plan.layout import Layout
from opensora_launch.schema.autoencoder import VaeConfig, VaeKind
from opensora_launch.schema.tile_shares import deal_tiles, share_shape, shares_of
from opensora_launch.schema.tiles import decode_grid, part_frames, tile_cost
from tests.parallel.test_sharded_model import unrecorded
from tests.ranks import run_ranks

CFG = VaeConfig(latent_channels=4, norm_num_groups=2, block_out_channels=[4, 4, 8, 8], layers_per_block=1, tile_px=None)
# One tile of 4 parts; tiles in space, of which two have parts; tiles in time, whose later one drops a frame.
CASES = {
    "one": (CFG, (17, 8, 8)),
    "space": (VaeConfig(**{**vars(CFG), "tile_px": 64}), (12, 8, 12)),
    "time": (VaeConfig(**{**vars(CFG), "tile_frames": 32}), (10, 8, 12)),
}


def weights(dtype: torch.dtype) -> dict[str, Tensor]:
    torch.manual_seed(0)
    return {name: tensor.to(dtype) for name, tensor in CausalVae(CFG).state_dict().items()}


def latent_of(shape: tuple[int, int, int]) -> Tensor:
    return torch.randn(1, CFG.latent_channels, *shape, generator=torch.Generator().manual_seed(1))


def decode_on_ranks() -> dict[str, Tensor] | None:
    """Decode every case; the pixels on the first rank."""
    layout = Layout(cfg=dist.get_world_size())
    axis = build_meshes([layout], dist.get_rank(), Groups(timedelta(seconds=60)), unrecorded)[layout].video
    made = {}
    for name, (cfg, shape) in CASES.items():
        for dtype in (torch.float32, torch.bfloat16) if name == "one" else (torch.float32,):
            out = decode_latents(load_vae(cfg, weights(dtype)), cfg, latent_of(shape), spread_tiles(axis))
            if out is not None:
                made[f"{name} {dtype}"] = out
    return made or None


@pytest.fixture(scope="module")
def on_one_rank(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Tensor]:
    (made,) = run_ranks(1, tmp_path_factory.mktemp("one"), decode_on_ranks)
    assert len(made) == 4
    return dict(made)


@pytest.mark.parametrize("ranks", [2, 3, pytest.param(4, marks=pytest.mark.slow)])
def test_a_shared_tile_has_the_bits_of_one_rank(ranks, on_one_rank, tmp_path):
    shared = [len(deal_tiles(decode_grid(*case).tiles, ranks).shared) for case in CASES.values()]
    assert shared == {2: [1, 1, 1], 3: [1, 2, 1], 4: [1, 1, 1]}[ranks]
    found = run_ranks(ranks, tmp_path, decode_on_ranks)
    assert found[1:] == [None] * (ranks - 1)
    for name, pixels in on_one_rank.items():
        assert torch.equal(found[0][name], pixels), name


@pytest.mark.parametrize("case", ["one", "time", pytest.param("space", marks=pytest.mark.slow)])
def test_parts_of_a_tile_give_what_the_whole_gives(case):
    cfg, shape = CASES[case]
    vae, grid, latent = load_vae(cfg, weights(torch.float32)), decode_grid(cfg, shape), latent_of(shape)
    assert any(len(tile.parts) > 1 for tile in grid.tiles)
    for tile in grid.tiles:
        whole = vae.decode(latent[:, :, slice(*tile.time), slice(*tile.y), slice(*tile.x)])
        whole = whole[:, :, whole.shape[2] - tile.out_shape[0] :]
        torch.testing.assert_close(compute_tile(vae.decode, latent, tile), whole, atol=3e-5, rtol=3e-5)


def videos() -> dict[str, tuple[int, int, int]]:
    return {"768px 16:9": (33, 72, 128), "768px 1:1": (33, 96, 96), "768px 9:16": (33, 128, 72), "256px": (33, 24, 42)}


@pytest.mark.parametrize("ranks", range(2, 9))
@pytest.mark.parametrize("video", videos())
def test_the_busiest_rank_has_at_most_a_tenth_more_than_the_mean(video, ranks):
    grid = decode_grid(VaeConfig(), videos()[video])
    deal = deal_tiles(grid.tiles, ranks)
    assert deal.busiest <= 1.10
    assert sum(deal.loads) == sum(map(tile_cost, grid.tiles))
    assert sorted([*deal.shared, *(i for hand in deal.hands for i in hand)]) == list(range(len(grid.tiles)))


def test_the_parts_of_a_single_tile_are_whole_latents():
    """The limit: 33 latents on 6 ranks, of which one has 24 of 129 frames."""
    (tile,) = decode_grid(VaeConfig(), (33, 32, 32)).tiles
    deals = [deal_tiles([tile], ranks).busiest for ranks in range(2, 9)]
    assert max(deals) == pytest.approx(6 * 24 / 129)
    assert sorted(deals)[-2] < 1.10


def test_a_rank_has_the_frames_that_a_convolution_sees():
    """Two latents at least: so a short video is shared by fewer ranks."""
    (tile,) = decode_grid(VaeConfig(), (5, 32, 32)).tiles
    assert [len(shares_of(tile, ranks, 0)) for ranks in (2, 3, 8)] == [2, 2, 2]
    for share in shares_of(tile, 8, 0):
        assert tile.parts[share[1] - 1][1] - tile.parts[share[0]][0] >= 2


def test_parts_cover_their_tile():
    for cfg, shape in CASES.values():
        for tile in filter(lambda tile: tile.parts, decode_grid(cfg, shape).tiles):
            assert sum(part_frames(tile)) * tile.out_shape[1] * tile.out_shape[2] == tile_cost(tile)
            shapes = [share_shape(tile, share) for share in shares_of(tile, 3, 0)]
            assert sum(frames for frames, _, _ in shapes) == tile.out_shape[0]


def test_only_the_causal_vae_shares_tiles():
    """The Video DC-AE sees both sides in time and attends globally; its many small tiles are dealt whole."""
    cfg = VaeConfig(VaeKind.dc_ae, latent_channels=128, scale_factor=1.0, tile_frames=32)
    assert not any(tile.parts for tile in decode_grid(cfg, (32, 6, 10)).tiles)
