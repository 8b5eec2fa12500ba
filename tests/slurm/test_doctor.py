"""doctor inside a real allocation: every node answers for itself, and ranks on both measure clocks and links."""

import json
import sys
from pathlib import Path

import pytest

from tests.slurm.conftest import Cluster

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(600)]
TOPOLOGY = ("topology=custom", "topology.device=cpu", "topology.nodes=2", "topology.gpus_per_node=2")


def test_on_two_nodes(cluster: Cluster, tmp_path: Path) -> None:
    words = ["doctor", "--json", "model=tiny", *TOPOLOGY, "layout.ulysses=2", "layout.ring=2", f"runs_dir={tmp_path}"]
    allocation = ["salloc", "--nodes=2", "--ntasks-per-node=2", "--time=5"]
    done = cluster.run(*allocation, sys.executable, "-m", "opensora_launch.cli", *words, cwd=tmp_path)
    assert done.returncode == 0, done.stderr + done.stdout
    found = json.loads(done.stdout)["findings"]
    hosts = {f["host"] for f in found}
    assert len(hosts) == 3  # both nodes, and what they did together
    for host in hosts - {"all"}:
        assert {"gpus", "torch", "memory", "disk", "env", "files"} <= {f["check"] for f in found if f["host"] == host}
    together = [(f["level"], f["check"], f["what"]) for f in found if f["host"] == "all"]
    assert ("ok", "ranks", "4 started on 2 hosts, on the CPU") in together
    assert [what.split(":")[0] for level, check, what in together if check == "bandwidth"] == [
        "ulysses of 2",
        "ring of 2",
    ]
    (clock,) = [what for level, check, what in together if check == "clock" and level == "ok"]
    assert clock.startswith("clocks of 2 nodes within ")
    assert list(tmp_path.glob(".opensora-doctor-*")) == []
