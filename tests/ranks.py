"""Run a function on several gloo ranks and hand back what each returned."""

import os
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from datetime import timedelta
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.multiprocessing.spawn import ProcessContext, start_processes

# Ranks fork from a server that has imported all this once: 0.2 s for four ranks, not 3 s for each.
# A module that is not there is passed over.
PRELOAD = [
    "tests.ranks",
    "pytest",
    "torch.distributed.tensor",
    "diffusers.models.autoencoders.autoencoder_kl",
    "diffusers.loaders.single_file_utils",
    "opensora_launch.cli.generate",
    "opensora_launch.worker.run_rank",
    "opensora_launch.parallel.sharded_model",
]
get_context("forkserver").set_forkserver_preload(PRELOAD)


def _one_rank(rank: int, world: int, tmp: str, timeout_s: float, fn: Callable[..., Any], args: tuple[Any, ...]) -> None:
    torch.set_num_threads(1)
    # A file store needs no port, so tests can run side by side; the timeout turns a hang into a failure.
    timeout = timedelta(seconds=timeout_s)
    dist.init_process_group("gloo", init_method=f"file://{tmp}/store", rank=rank, world_size=world, timeout=timeout)
    # Gloo's connect returns on one side first: a rank that left at once would close what the others still connect.
    dist.barrier()
    try:
        torch.save(fn(*args), f"{tmp}/out{rank}.pt")
    except BaseException:
        Path(tmp, f"error{rank}.txt").write_text(traceback.format_exc())
        raise  # the group is left as it is: to destroy it here would wait for the others
    dist.destroy_process_group()


def _wait(context: ProcessContext, timeout_s: float) -> None:
    """Return when all ranks are done; raise what a rank raised, or TimeoutError after ending them all."""
    end = time.monotonic() + timeout_s
    while not context.join(timeout=max(0.0, end - time.monotonic())):
        if time.monotonic() >= end:
            for process in context.processes:
                process.kill()
                process.join()
            raise TimeoutError(f"not done after {timeout_s} s")


def run_ranks(world: int, tmp: Path, fn: Callable[..., Any], *args: Any, timeout: float = 90.0) -> list[Any]:
    """Results in rank order. `fn` is a top-level function: it is pickled into fresh processes.

    One thread a rank. `tmp` may serve several calls. After `timeout` seconds a collective fails, and a few seconds
    later whatever still runs is killed. Any failure is an AssertionError with the traceback of each rank that failed.
    """
    here = Path(tempfile.mkdtemp(dir=tmp, prefix="ranks"))
    context = start_processes(
        _one_rank, (world, str(here), timeout, fn, args), world, join=False, start_method="forkserver"
    )
    try:
        _wait(context, timeout + 10)
    except Exception as e:
        logs = "\n".join(f"{p.stem}:\n{p.read_text()}" for p in sorted(here.glob("error*.txt")))
        silent = [r for r in range(world) if not any((here / f).exists() for f in (f"out{r}.pt", f"error{r}.txt"))]
        raise AssertionError(f"{world} ranks failed; without result or error: {silent}\n{logs or e}") from e
    # Written by this test's own ranks: any picklable result may come back.
    return [torch.load(here / f"out{rank}.pt", weights_only=False) for rank in range(world)]


def _one_command(folder: str, argv: list[str]) -> None:
    from opensora_launch.cli import main

    os.chdir(folder)
    for name, fd in (("out", 1), ("err", 2)):
        os.dup2(os.open(f".{name}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC), fd)
    sys.exit(main(argv))


def run_command(folder: Path, *argv: str, timeout: float = 200.0) -> tuple[int, str, str]:
    """Exit code, output and errors of `opensora-launch ARGV` in a folder, in a process that has torch imported."""
    process = get_context("forkserver").Process(target=_one_command, args=(str(folder), list(argv)))
    process.start()
    process.join(timeout)
    if process.exitcode is None:
        process.kill()
        raise TimeoutError(f"not done after {timeout} s: {argv}")
    return process.exitcode, (folder / ".out").read_text(), (folder / ".err").read_text()


def everyone() -> dist.ProcessGroup:
    """The group of all ranks of this test."""
    assert dist.group.WORLD is not None, "call this on a rank"
    return dist.group.WORLD
