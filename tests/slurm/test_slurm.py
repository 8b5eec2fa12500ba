"""The same command as on a workstation, on a real Slurm: two nodes, hostile words, requeues, lost nodes, arrays."""

import io
import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.slurm.conftest import ROOT, UP_S, Cluster, Run, submit, wait_for

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(900)]
HOSTILE = 'it\'s "50%" $HOME, `ls` \\ #1; été\n(two lines) {a: 1} ${oc.env:HOME}'
RUN_TIME = re.compile(r"RunTime=(\d+):(\d+):(\d+)")
LONG = ("sampling.num_steps=400", "launcher.checkpoint_every_steps=10")


def pixels(png: bytes) -> np.ndarray:
    return np.array(Image.open(io.BytesIO(png))).astype(int)


def assert_same(one: bytes, other: bytes) -> None:
    """But for the last bit of a rounding."""
    assert abs(pixels(one) - pixels(other)).max() <= 1


def processes_of(run: Run) -> list[str]:
    """Command lines on this machine, nodes included, that name the run."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            line = (entry / "cmdline").read_bytes().decode(errors="replace") if entry.name.isdigit() else ""
        except OSError:
            continue
        if str(run.folder) in line:
            found.append(line.replace("\0", " "))
    return found


@pytest.fixture(scope="module")
def long_picture(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """Made on one rank without a break, in a job."""
    run = submit(cluster, tmp_path_factory.mktemp("whole"), "--prompt", "waves", *LONG)
    assert cluster.wait(run.job) == "COMPLETED", run.log()
    return run.picture()


@pytest.fixture(scope="module")
def unreachable(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Its first node is called by a name that leads nowhere. It waits while other tests work."""
    here = tmp_path_factory.mktemp("dark")
    return submit(cluster, here, "--prompt", "x", "launcher.slurm.host_suffix=-dark", nodes=2)


def test_the_cluster_is_up_soon(cluster: Cluster, unreachable: Run) -> None:
    assert cluster.up_s < UP_S


def test_two_nodes_of_two_ranks_make_what_one_process_makes(cluster: Cluster, tmp_path: Path) -> None:
    """With words that every shell and grammar would take apart, in the prompt, an override and the folder's name."""
    folder = tmp_path / 'it\'s 100% "my" $HOME, été #1'
    folder.mkdir()
    words = ["--prompt", HOSTILE, "model.download=\"$HOME, 'a b' #x `ls` \\\\ %\"", "sampling.num_steps=3"]
    done = cluster.opensora(
        "generate", *words, "model=tiny", "video.num_frames=1", "topology=cpu1", "launcher=inline", cwd=folder
    )
    assert done.returncode == 0, done.stderr
    (inline,) = (folder / "runs").iterdir()
    gpus = "launcher.slurm.extra=['--gpus-per-node=2','--comment=a b #c']"
    run = submit(cluster, folder, *words, gpus, "follow=true", nodes=2, ranks=2)
    assert_same(run.picture(), (inline / "samples/0000_0.png").read_bytes())
    record, one = (json.loads((f / "samples/0000_0.json").read_text()) for f in (run.folder, inline))
    assert record["prompt"] == one["prompt"] == HOSTILE
    plans = [json.loads((f / "plan.json").read_text())["model"]["download"] for f in (run.folder, inline)]
    assert plans == ["$HOME, 'a b' #x `ls` \\\\ %"] * 2  # Hydra keeps both backslashes
    reports = [json.loads((f / "report.json").read_text()) for f in (run.folder, inline)]
    assert reports[0].keys() == reports[1].keys()
    assert (reports[0]["machine"]["hosts"], reports[0]["machine"]["ranks"]) == (["n1", "n2"], 4)
    assert "n1, n2" in (run.folder / "report.md").read_text()
    ours, theirs = ({p.name for p in f.iterdir()} for f in (run.folder, inline))
    assert ours == theirs
    asked = cluster.run("scontrol", "show", "job", run.job).stdout
    assert "Comment=a b #c" in asked
    said = cluster.opensora("status", str(run.folder), cwd=tmp_path).stdout
    assert f"job {run.job}: COMPLETED" in said
    assert "rank 3 on n2: done" in said


def test_requeued_by_the_signal(cluster: Cluster, long_picture: bytes, tmp_path: Path) -> None:
    run = submit(cluster, tmp_path, "--prompt", "waves", *LONG)
    run.wait_for_step(20)
    cluster.run("scancel", "--batch", "--signal=USR1", run.job)
    assert cluster.wait(run.job) == "COMPLETED", run.log(1)
    assert run.picture() == long_picture
    assert "is stored after step" in run.log(0)
    assert "requeued after exit code 75" in run.log(0)
    assert re.search(r"goes on after step \d\d", run.log(1))


def test_requeue_by_scontrol_and_then_two_ranks_on_two_nodes(
    cluster: Cluster, long_picture: bytes, tmp_path: Path
) -> None:
    """The job is requeued, then cancelled; another on two nodes goes on from where it was."""
    run = submit(cluster, tmp_path, "--prompt", "waves", *LONG)
    run.wait_for_step(15)
    assert cluster.run("scontrol", "requeue", run.job).returncode == 0
    run.wait_for_step(5, attempt=1)
    assert re.search(r"goes on after step \d\d", run.log(1))
    status = ["status", str(run.folder)]
    wait_for(lambda: ": running, denoise" in cluster.opensora(*status, cwd=tmp_path).stdout, 60)
    said = cluster.opensora(*status, cwd=tmp_path).stdout
    assert f"job {run.job}: RUNNING" in said
    assert re.search(r"rank 0 on n\d: running, denoise, video 1 of 1, step \d+ of 400", said)
    assert "of denoising left" in said
    cancelled = cluster.opensora("cancel", str(run.folder), cwd=tmp_path)
    assert (cancelled.returncode, cancelled.stdout) == (0, f"job {run.job} is cancelled\n")
    assert cluster.wait(run.job) == "CANCELLED"
    wait_for(lambda: not processes_of(run), 60)
    more = ["generate", "--resume", str(run.folder), "topology.nodes=2", "follow=true", "layout.dp=1"]
    done = cluster.opensora(*more, cwd=tmp_path)
    assert done.returncode == 0, done.stderr + run.log(2)
    assert re.search(r"goes on after step \d\d", run.log(2))
    assert_same(run.picture(), long_picture)


def test_a_node_that_is_lost(cluster: Cluster, long_picture: bytes, tmp_path: Path) -> None:
    run = submit(cluster, tmp_path, "--prompt", "waves", *LONG, "layout.dp=1", nodes=2)
    run.wait_for_step(20)
    lost = json.loads((run.folder / "attempts/0/heartbeat/rank1.json").read_text())["host"]
    cluster.node("kill-node", lost)
    try:
        assert cluster.wait(run.job) == "COMPLETED", run.log(0) + run.log(1)
    finally:
        cluster.node("start-node", lost)
    hosts = {json.loads(p.read_text())["host"] for p in (run.folder / "attempts/1/heartbeat").glob("rank*.json")}
    assert len(hosts) == 2
    assert lost not in hosts
    assert re.search(r"goes on after step \d\d", run.log(1))
    assert_same(run.picture(), long_picture)


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


def test_a_first_node_that_nobody_reaches(cluster: Cluster, unreachable: Run) -> None:
    """The job of the fixture: over within a minute of its start, with the host and port that do not answer."""
    assert cluster.wait(unreachable.job) == "FAILED"
    shown = cluster.run("scontrol", "--oneliner", "show", "job", unreachable.job).stdout
    ((hours, minutes, seconds),) = ([int(part) for part in found] for found in RUN_TIME.findall(shown))
    assert hours * 3600 + minutes * 60 + seconds < 120  # its start-up too, on a machine that is busy with other jobs
    error = json.loads((unreachable.folder / "attempts/0/error.json").read_text())
    assert re.search(r"cannot reach rank 0 at n\d-dark:2\d{4}: .*No route to host|timed out", error["message"])
    status = cluster.opensora("status", str(unreachable.folder), cwd=unreachable.folder).stdout
    assert "cannot reach rank 0" in status
    wait_for(lambda: not processes_of(unreachable), 60)
