"""The same command as on a workstation, on a real Slurm: two nodes, hostile words, arrays, scripts by hand."""

import json
import os
import re
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.slurm.conftest import ROOT, Cluster, Run, assert_same, submit, wait_for
from tests.worker.test_out_of_memory import LARGE, RETURNS_MEMORY, ROOM, data_bytes

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(900)]
HOSTILE = 'it\'s "50%" $HOME, `ls` \\ #1; été\n(two lines) {a: 1} ${oc.env:HOME}'
BY_SLURM = {"job.sbatch", "started", "logs/job.log"}  # files of an attempt


def files_of(run: Path, but: set[str]) -> set[str]:
    """Of a run's folder, those of its ranks by one name."""
    names = {str(p.relative_to(run)) for p in run.rglob("*") if p.is_file()}
    one = {re.sub(r"rank\d+", "rank", re.sub(r"node-\w+\.", "node.", name)) for name in names}
    return one - {f"attempts/0/{name}" for name in but}


def names_in(report: dict[str, Any]) -> dict[str, Any]:
    """Of the report, its parts, its attempts and their ranks; axes and findings depend on how many ranks there are."""
    attempts = report["attempts"]
    parts = {part: sorted(report[part]) for part in ("work", "machine", "times")}
    return {"report": list(report), **parts, "attempt": list(attempts[0]), "rank": list(attempts[0]["ranks"][0])}


@pytest.fixture(scope="module")
def unreachable(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Its first node is called by a name that leads nowhere. It waits while other tests work."""
    here = tmp_path_factory.mktemp("dark")
    return submit(cluster, here, "--prompt", "x", "launcher.slurm.host_suffix=-dark", nodes=2)


def test_the_cluster_is_up(cluster: Cluster, unreachable: Run) -> None:
    nodes = cluster.run("sinfo", "--noheader", "--Node", "--partition=gpu", "--format=%N").stdout.split()
    assert nodes == ["n1", "n2", "n3", "n4"]


def test_two_nodes_of_two_ranks_make_what_one_process_makes(cluster: Cluster, tmp_path: Path) -> None:
    """With words that every shell and grammar would take apart, in the prompt, an override and the folder's name."""
    folder = tmp_path / 'it\'s 100% "my" $HOME, été #1'
    folder.mkdir()
    words = ["--prompt", HOSTILE, "model.download=\"$HOME, 'a b' #x `ls` \\\\ %\"", "sampling.num_steps=3"]
    here = {}
    for launcher, topology in (("inline", "cpu1"), ("torchrun", "cpu2")):
        own = [f"launcher={launcher}", f"topology={topology}", f"runs_dir={launcher}"]
        done = cluster.opensora("generate", *words, "model=tiny", "video.num_frames=1", *own, cwd=folder)
        assert done.returncode == 0, done.stderr
        (here[launcher],) = (folder / launcher).iterdir()
    inline = here["inline"]
    gpus = "launcher.slurm.extra=['--gpus-per-node=2','--comment=a b #c']"
    run = submit(cluster, folder, *words, gpus, "follow=true", nodes=2, ranks=2)
    assert_same(run.picture(), (inline / "samples/0000_0.png").read_bytes())
    record, one = (json.loads((f / "samples/0000_0.json").read_text()) for f in (run.folder, inline))
    assert record["prompt"] == one["prompt"] == HOSTILE
    plans = [json.loads((f / "plan.json").read_text())["model"]["download"] for f in (run.folder, inline)]
    assert plans == ["$HOME, 'a b' #x `ls` \\\\ %"] * 2  # Hydra keeps both backslashes
    reports = [json.loads((f / "report.json").read_text()) for f in (run.folder, *here.values())]
    assert names_in(reports[0]) == names_in(reports[1]) == names_in(reports[2])
    assert (reports[0]["machine"]["hosts"], reports[0]["machine"]["ranks"]) == (["n1", "n2"], 4)
    assert "n1, n2" in (run.folder / "report.md").read_text()
    waits = [report["wait"]["parts"] for report in reports]
    assert ["queue" in wait for wait in waits] == [True, False, False]
    assert all("end" in wait for wait in waits)
    files = files_of(run.folder, BY_SLURM)
    assert files_of(inline, set()) == files
    assert files_of(here["torchrun"], {"logs/torchrun.log"}) == files
    cpus = [
        re.findall(r"rank \d .*CPUs ([\d,]+)", p.read_text()) for p in (run.folder / "attempts/0/logs").glob("rank*")
    ]
    assert len(cpus) == 4
    shares = {share for (share,) in cpus}
    alone = set(os.sched_getaffinity(0))
    assert {int(cpu) for share in shares for cpu in share.split(",")} == alone
    assert len(shares) == min(2, len(alone))  # each of a node's ranks has its own
    asked = cluster.run("scontrol", "show", "job", run.job).stdout
    assert "Comment=a b #c" in asked
    said = cluster.opensora("status", str(run.folder), cwd=tmp_path).stdout
    assert f"job {run.job}: COMPLETED" in said
    assert "rank 3 on n2: done" in said


def test_an_array_shares_the_prompts(cluster: Cluster, tmp_path: Path) -> None:
    prompts = tmp_path / "seven.txt"
    prompts.write_text("".join(f"prompt {i}\n" for i in range(7)))
    run = submit(cluster, tmp_path, "--prompts", str(prompts), "launcher.slurm.array=3", "sampling.num_steps=200")
    states = [cluster.wait(f"{run.job}_{task}") for task in range(3)]
    assert states == ["COMPLETED"] * 3
    assert sorted(p.name for p in (run.folder / "samples").glob("*.json")) == [f"000{i}_0.json" for i in range(7)]
    saved = [re.findall(r"saved .*/(\d{4}_0)\.png", run.log(attempt)) for attempt in range(3)]
    assert sorted(name for names in saved for name in names) == [f"000{i}_0" for i in range(7)]
    assert sum(map(bool, saved)) > 1  # a task that starts last may find none left
    beats = [json.loads((run.folder / f"attempts/{n}/heartbeat/rank0.json").read_text()) for n in range(3)]
    assert [beat["state"] for beat in beats] == ["done"] * 3


def by_hand(name: str, ranks_per_node: int) -> str:
    """A script of slurm/ as its user would edit it."""
    text = (ROOT / "slurm" / name).read_text()
    text = re.sub(r"^ranks_per_node=.*", f"ranks_per_node={ranks_per_node}", text, flags=re.MULTILINE)
    return text.replace("python=(python3)", f"python=({sys.executable})")


def test_an_array_by_hand_makes_one_run(cluster: Cluster, tmp_path: Path) -> None:
    """Both tasks write a run at first, and one of them gives way."""
    (tmp_path / "mine.sbatch").write_text(by_hand("generate-array.sbatch", 1))
    options = ["--array=0-1", "--ntasks-per-node=1", "--cpus-per-task=1", "--gpus-per-node=0", "--time=5"]
    prompts = [word for i in range(3) for word in ("--prompt", f"prompt {i}")]
    words = ["model=tiny", "video.num_frames=1", "sampling.num_steps=2", *prompts]
    done = cluster.run("sbatch", "--parsable", *options, "mine.sbatch", *words, cwd=tmp_path)
    job = done.stdout.strip()
    assert done.returncode == 0, done.stderr
    logs = "".join(p.read_text() for p in tmp_path.glob("slurm-*.log"))
    assert [cluster.wait(f"{job}_{task}") for task in range(2)] == ["COMPLETED"] * 2, logs
    (run_dir,) = (tmp_path / "runs").iterdir()
    assert (tmp_path / f"slurm-{job}.run").read_text() == f"{run_dir}\n"
    assert sorted(p.name for p in (run_dir / "samples").glob("*.png")) == [f"000{i}_0.png" for i in range(3)]
    assert len(list((run_dir / "claims").iterdir())) == 3
    assert len(list((run_dir / "attempts").iterdir())) == 2


def test_the_script_by_hand_with_a_torchrun_on_each_node(cluster: Cluster, tmp_path: Path) -> None:
    """slurm/generate-torchrun.sbatch as it is, but for the options of a cluster without GPUs."""
    options = ["--nodes=2", "--ntasks-per-node=1", "--cpus-per-task=2", "--gpus-per-node=0", "--time=5"]
    (tmp_path / "mine.sbatch").write_text(by_hand("generate-torchrun.sbatch", 1))
    words = ["--prompt", HOSTILE, "model=tiny", "video.num_frames=1", "sampling.num_steps=2", "layout.dp=1"]
    done = cluster.run("sbatch", "--parsable", *options, "mine.sbatch", *words, cwd=tmp_path)
    job = done.stdout.strip()
    assert done.returncode == 0, done.stderr
    assert cluster.wait(job) == "COMPLETED", (tmp_path / f"slurm-{job}.log").read_text()
    (run_dir,) = (tmp_path / "runs").iterdir()
    assert json.loads((run_dir / "samples/0000_0.json").read_text())["prompt"] == HOSTILE
    assert (tmp_path / f"slurm-{job}.run").read_text() == f"{run_dir}\n"


def test_gpus_are_numbered_for_every_task(cluster: Cluster) -> None:
    """Asked for a node, each task sees all of its node's; where a site gives each task its own, it sees one."""
    show = 'echo "$SLURM_LOCALID $CUDA_VISIBLE_DEVICES"'
    node = cluster.run("srun", "-N1", "--ntasks-per-node=2", "--gpus-per-node=2", "-t1", "sh", "-c", show)
    assert sorted(node.stdout.split("\n"))[1:] == ["0 0,1", "1 0,1"]
    task = cluster.run("srun", "-N1", "--ntasks=2", "--gpus-per-task=1", "--gpu-bind=single:1", "-t1", "sh", "-c", show)
    assert all(len(line.split()[1].split(",")) == 1 for line in task.stdout.splitlines())


def test_what_slurm_would_do_is_shown(cluster: Cluster, tmp_path: Path) -> None:
    words = ["generate", "model=tiny", "--prompt", "x", "topology=2x8", "launcher=slurm", "dry_run=true"]
    refused = cluster.opensora(*words, cwd=tmp_path)
    assert refused.returncode == 0
    assert "#SBATCH --gpus-per-node=8" in refused.stdout
    assert "Requested node configuration is not available" in refused.stdout
    fits = cluster.opensora(*words, "topology.gpus_per_node=2", "launcher.slurm.cpus_per_rank=2", cwd=tmp_path)
    assert re.search(r"Job \d+ to start at \S+ using 8 processors on nodes n\S+", fits.stdout)
    assert list(tmp_path.iterdir()) == []
    wrong = cluster.opensora(*words[:-1], "launcher.slurm.partition=none", cwd=tmp_path)
    assert (wrong.returncode, "invalid partition specified: none" in wrong.stderr) == (2, True)
    assert list((tmp_path / "runs").iterdir()) == []


def test_a_first_node_that_nobody_reaches(cluster: Cluster, unreachable: Run) -> None:
    """The job of the fixture fails by itself, before its time is up, with the host and port that do not answer."""
    assert cluster.wait(unreachable.job) == "FAILED"
    shown = cluster.run("scontrol", "--oneliner", "show", "job", unreachable.job).stdout
    assert "ExitCode=1:0" in shown
    error = json.loads((unreachable.folder / "attempts/0/error.json").read_text())
    assert re.search(r"cannot reach rank 0 at n\d-dark:2\d{4}: .*(No route to host|timed out)", error["message"])
    status = cluster.opensora("status", str(unreachable.folder), cwd=unreachable.folder).stdout
    assert "cannot reach rank 0" in status
    wait_for(lambda: not unreachable.processes())


def test_a_job_that_is_out_of_memory_goes_on_with_shares(cluster: Cluster, tmp_path: Path) -> None:
    """Its two ranks may have less than the weights and more than a half, by a real limit in the job's script."""
    limit_kb = (data_bytes() + ROOM) // 1024
    export = "export " + " ".join(f"{name}={value}" for name, value in RETURNS_MEMORY.items())
    words = [
        "--prompt",
        "rain",
        *LARGE,
        "sampling.num_steps=2",
        "layout.dp=1",
        f"launcher.slurm.setup=['ulimit -d {limit_kb}','{export}']",
    ]
    run = submit(cluster, tmp_path, *words, ranks=2)
    assert cluster.wait(run.job) == "COMPLETED", run.log() + run.log(1)
    shards = [json.loads((run.folder / f"attempts/{k}/plan.json").read_text())["placement"]["shard"] for k in (0, 1)]
    assert shards == ["none", "node"]
    assert json.loads((run.folder / "attempts/0/error.json").read_text())["kind"] == "memory"
    assert f"continuing with less memory: {run.folder}/attempts/1\n" in run.log()
    assert run.picture()
