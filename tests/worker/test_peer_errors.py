"""Whom a rank blames by the words of NCCL and of the store: texts that people posted; no GPU is here."""

import os
import socket
from datetime import timedelta
from multiprocessing import get_context
from typing import Any

import pytest
import torch.distributed as dist
from torch.distributed import distributed_c10d

from opensora_launch.worker.failures import is_peer_error
from opensora_launch.worker.process_group import BACKSTOP, join
from opensora_launch.worker.rank import Rank

WAITS = "[1] is setting up NCCL communicator and {} ncclUniqueId from [0] via c10d key-value store by key '0', but "
LATE = [
    WAITS.format("retrieving") + "store->get('0') got error: wait timeout after 600000ms, keys: /default_pg/0//cuda//0",
    WAITS.format("retreiving") + "store->get('0') got error: Socket Timeout",
    WAITS.format("retreiving") + "store->get('0') got error: Timeout waiting for key: default_pg/0/0 after 1800000 ms",
    WAITS.format("retrieving") + "store->get('0') got error: failed to recv, got 0 bytes",
    "wait timeout after 300000ms, keys: /default_pg/0//4//cuda//0",
    "NCCL error in: NCCLUtils.hpp:268, remote process exited or there was a network error, NCCL version 2.21.5\n"
    "ncclRemoteError: A call failed possibly due to a network error or a remote process exiting prematurely.",
    "NCCL error in: ProcessGroupNCCL.cpp:1275, internal error, NCCL version 2.14.3\nncclInternalError: Internal check "
    "failed.\nLast error:\nNet : Connection closed by remote peer user<50260>",
]
OWN = [
    "NCCL error in: ProcessGroupNCCL.cpp:1331, unhandled cuda error (run with NCCL_DEBUG=INFO for details)",
    "NCCL error in: ProcessGroupNCCL.cpp:1287, invalid usage, NCCL version 2.17.1\nDuplicate GPU detected",
    "CUDA out of memory. Tried to allocate 2.00 GiB",
]


@pytest.mark.parametrize("text", LATE)
def test_a_rank_that_waited_for_another_is_not_to_blame(text: str) -> None:
    assert is_peer_error(RuntimeError(text))


@pytest.mark.parametrize("text", OWN)
def test_a_rank_that_failed_itself_is(text: str) -> None:
    assert not is_peer_error(RuntimeError(text))


def store_timeouts(port: int) -> list[timedelta]:
    """Of a rank that torchrun would have started: the store's, and that of a group's part of it."""
    os.environ |= {"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    join(Rank(0, 0, 1, 1, "torchrun"))
    default: Any = distributed_c10d._get_default_store()
    of_group: Any = distributed_c10d.PrefixStore("3/cuda", default)
    found = [default.timeout, of_group.underlying_store.timeout]
    dist.destroy_process_group()
    return found


def test_the_store_waits_as_long_as_the_run() -> None:
    """Where NCCL waits for an id. torch's own five minutes are shorter than the encoding of many texts."""
    with socket.socket() as free, get_context("forkserver").Pool(1) as pool:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
        free.close()
        assert pool.apply(store_timeouts, (port,)) == [BACKSTOP, BACKSTOP]
