"""Stands for torchrun and its ranks, in the standard library only: `fake_ranks.py SCENARIO RANKS --attempt DIR`.

Like torchrun it gives each rank a session of its own, logs the first that ends badly, sends SIGTERM to the others and
waits for them: torchrun for 30 s, this for ever, so that a launcher that leaves it to them hangs. Like a worker each
rank writes heartbeats, and `error.json` where it can.
"""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

CLOCK_BEHIND_S = 7200  # the launcher must not mind
STUBBORN = ("crash", "stubborn", "victim")


def beat(attempt: Path, rank: int, state: str = "running", step: int = 3) -> None:
    now = time.time() - CLOCK_BEHIND_S
    where = {"phase": "denoise", "video": "0000_0", "step": step, "steps": 6, "videos_done": 0, "videos": 1}
    last = {"collective": "ulysses", "ranks": [0, 1], "sequence": 17, "inside": True, "progress_s": now}
    data = {"rank": rank, "host": socket.gethostname(), "pid": os.getpid(), "time_s": now, "state": state}
    path = attempt / "heartbeat" / f"rank{rank}.json"
    aside = path.with_name(f".{path.name}.new")
    aside.write_text(json.dumps(data | where | last))
    aside.replace(path)


def say(attempt: Path, rank: int, kind: str, message: str, traceback: str) -> None:
    data = {"rank": rank, "host": socket.gethostname(), "kind": kind, "message": message, "time_s": time.time()}
    data |= {"phase": "denoise", "step": 3, "collective": None, "traceback": traceback}
    aside = attempt / f".error{rank}"
    aside.write_text(json.dumps(data))
    os.link(aside, attempt / "error.json")


def be_rank(scenario: str, rank: int, attempt: Path) -> int:
    for signum in (signal.SIGINT, signal.SIGTERM) if scenario in STUBBORN else ():
        signal.signal(signum, signal.SIG_IGN)  # the worst case: only SIGKILL ends it
    beat(attempt, rank)
    (attempt / "logs" / f"rank{rank}.log").write_text(f"rank {rank} is here\nits last line\n")
    time.sleep(0.3)
    if scenario == "done":
        beat(attempt, rank, "done")
        return 0
    if scenario == "user" and rank == 0:
        say(attempt, rank, "user", "cat.png is no picture", "")
        return 2
    if scenario == "crash" and rank == 1:
        say(attempt, rank, "failure", "RuntimeError: out of luck", "Traceback ...")
        return 1
    if scenario == "killed" and rank == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    if scenario == "victim":
        if rank == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        while "local_rank: 1" not in (attempt / "logs" / "torchrun.log").read_text():
            time.sleep(0.05)  # until that rank is dead, and torchrun has seen it
        say(attempt, 0, "failure", "rank 1 lives but has not moved", "")
        return 1
    if scenario == "stopped" and rank == 1:
        os.kill(os.getpid(), signal.SIGSTOP)
    if scenario == "exits" and rank == 1:
        return 7
    while not (scenario == "stores" and (attempt / "stop").exists()):
        beat(attempt, rank)
        time.sleep(0.1)
    return 75


def be_agent(scenario: str, ranks: int, attempt: Path) -> int:
    argv = [sys.executable, __file__, "rank", scenario]
    running = [
        subprocess.Popen([*argv, str(r), "--attempt", str(attempt)], start_new_session=True) for r in range(ranks)
    ]
    while True:
        codes = [process.poll() for process in running]
        for rank, code in enumerate(codes):
            if code:
                line = f"failed (exitcode: {code}) local_rank: {rank} (pid: {running[rank].pid}) of binary: python"
                print(line, flush=True)
        if any(codes):
            for process in running:
                process.terminate()
            for process in running:
                process.wait()
            return 1
        if all(code == 0 for code in codes):
            return 0
        time.sleep(0.1)


if __name__ == "__main__":
    if sys.argv[1] == "rank":
        rank = os.environ["RANK"] if sys.argv[3] == "of-torchrun" else sys.argv[3]
        sys.exit(be_rank(sys.argv[2], int(rank), Path(sys.argv[5])))
    if sys.argv[1] == "nothing":
        print("/usr/bin/python: No module named opensora_launch", flush=True)
        sys.exit(1)
    sys.exit(be_agent(sys.argv[1], int(sys.argv[2]), Path(sys.argv[4])))
