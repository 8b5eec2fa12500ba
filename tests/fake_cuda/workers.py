"""Start real ranks of the worker under the double, or without it, and read what they counted."""

import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from multiprocessing import get_context
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch.distributed as dist

from opensora_launch.plan.plan import Plan
from tests.ranks import PRELOAD

SERVER = get_context("forkserver")
SERVER.set_forkserver_preload([*PRELOAD, "tests.fake_cuda.operators"])

Preparation = Callable[[], object]  # runs on each rank, under the double and before the worker


def on_cuda(plan: Plan) -> Plan:
    """The same plan for GPUs."""
    return replace(plan, machine=replace(plan.machine, device="cuda"))


def run_workers(
    ranks: int,
    folder: Path,
    argv: Sequence[str],
    *,
    fake: bool,
    prepare: Preparation | None = None,
    env: dict[str, str] | None = None,
    expected: int = 0,
    timeout: float = 200.0,
) -> list[dict[str, Any]]:
    """Run `python -m opensora_launch.worker ARGV` on some ranks of this host; return each rank's ledger.

    Each rank is a process of its own with the variables that torchrun sets. `prepare` is a top-level function. Only
    ranks that come to their end leave a ledger. Raises AssertionError with the logs in `folder` if a rank does not end
    with the exit code `expected`.
    """
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)  # type: ignore[attr-defined]
    shared = {
        "WORLD_SIZE": str(ranks),
        "LOCAL_WORLD_SIZE": str(ranks),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(store.port),
        "TORCHELASTIC_USE_AGENT_STORE": "True",
    } | (env or {})
    processes = []
    for rank in range(ranks):
        own = shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)}
        report = str(folder / f"ledger{rank}.json") if fake else ""
        process = SERVER.Process(target=_one_worker, args=(own, list(argv), report, prepare))
        process.start()
        processes.append(process)
    codes = _wait(processes, timeout)
    if codes != [expected] * ranks:
        logs = [f"{path}:\n{path.read_text()[-4000:]}" for path in sorted(folder.rglob("*.log"))]
        raise AssertionError("\n".join([f"the ranks ended with {codes}, not {expected}", *logs]))
    if expected or not fake:
        return []
    return [json.loads((folder / f"ledger{rank}.json").read_text()) for rank in range(ranks)]


def _wait(processes: Sequence[BaseProcess], timeout: float) -> list[int | None]:
    """Return the exit codes; None for a process that had to be ended."""
    deadline = time.monotonic() + timeout
    for process in processes:
        process.join(max(0.0, deadline - time.monotonic()))
    codes = [process.exitcode for process in processes]
    for process in processes:
        if process.is_alive():
            process.kill()
            process.join()
    return codes


def _one_worker(env: dict[str, str], argv: list[str], report: str, prepare: Preparation | None) -> None:
    os.environ |= env
    if report:
        from tests.fake_cuda.install import install

        install()
    if prepare:
        prepare()
    from opensora_launch.worker import main

    code = main(argv)
    if report:
        from tests.fake_cuda.ledger import LEDGER

        Path(report).write_text(json.dumps(LEDGER.as_json()))
    sys.exit(code)


def waits(ledger: dict[str, Any], *, in_step: bool) -> dict[str, int]:
    """How often the host waited for the GPU in the denoising loop, or outside of it, by place and reason."""
    return {f"{w['place']}: {w['what']}": w["count"] for w in ledger["waits"] if w["in_step"] == in_step}
