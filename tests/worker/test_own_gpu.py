"""Each rank has a GPU of its own. No GPU is here: what torch would see of one is a double, at the edge."""

from unittest.mock import patch

import pytest
import torch
import torch.distributed as dist

from opensora_launch.errors import UserError
from opensora_launch.worker import set_up
from opensora_launch.worker.own_gpu import take_own_instance
from opensora_launch.worker.rank import Rank
from opensora_launch.worker.rank_facts import refuse_shared_gpus
from tests.ranks import run_ranks

TORCHRUN = {"LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2"}
STEP = {"SLURM_STEP_NUM_TASKS": "2", "SLURM_PROCID": "1", "SLURM_LOCALID": "1", "SLURM_STEP_TASKS_PER_NODE": "2"}


@pytest.mark.parametrize("started", [TORCHRUN, STEP], ids=["torchrun", "srun"])
@pytest.mark.parametrize(
    ("setting", "left"),
    [
        ("MIG-a,MIG-b", "MIG-b"),
        (" MIG-a, MIG-b ,MIG-c", "MIG-b"),
        ("MIG-b", "MIG-b"),  # the site has shown each rank its own
        ("0,1", "0,1"),  # all ranks see whole GPUs, over which NCCL finds the way between them
        ("GPU-a,GPU-b", "GPU-a,GPU-b"),
        ("MIG-a,0", "MIG-a,0"),
        ("", ""),
    ],
)
def test_each_rank_takes_its_own_instance(started: dict[str, str], setting: str, left: str) -> None:
    env = started | {"CUDA_VISIBLE_DEVICES": setting}
    take_own_instance(env)
    assert env["CUDA_VISIBLE_DEVICES"] == left


def test_nothing_is_set_where_nothing_was() -> None:
    for env in ({}, dict(TORCHRUN), {"CUDA_VISIBLE_DEVICES": "MIG-a"}):
        before = dict(env)
        take_own_instance(env)
        assert env == before


def test_two_ranks_on_one_gpu_are_refused_with_what_to_do() -> None:
    refuse_shared_gpus([("n1", "GPU-a"), ("n1", "GPU-b"), ("n2", "GPU-a"), ("n2", None), ("n2", None)])
    with pytest.raises(UserError) as refused:
        refuse_shared_gpus([("n1", "MIG-a"), ("n1", "GPU-b"), ("n1", "MIG-a")])
    assert str(refused.value) == (
        "ranks 0, 2 on n1 have the same GPU, MIG-a: each rank needs a GPU or MIG instance of its own; start fewer "
        "ranks, or let CUDA_VISIBLE_DEVICES name one for each rank of the node"
    )


def device_on_rank(uuids: list[str]) -> str:
    rank, world = dist.get_rank(), dist.get_world_size()
    with (
        patch.object(set_up, "pick_device", lambda kind, me: torch.device("cuda", 0)),
        patch.object(set_up, "device_uuid", lambda device: uuids[rank]),
    ):
        try:
            return str(set_up.own_device("cuda", Rank(rank, rank, world, world)))
        except UserError as error:
            return str(error).partition(":")[0].replace(" on ", "@").partition("@")[0]


def test_all_ranks_refuse_together(tmp_path) -> None:
    assert run_ranks(3, tmp_path, device_on_rank, ["GPU-a", "GPU-b", "GPU-c"]) == ["cuda:0"] * 3
    assert run_ranks(3, tmp_path, device_on_rank, ["GPU-a", "GPU-b", "GPU-a"]) == ["ranks 0, 2"] * 3
