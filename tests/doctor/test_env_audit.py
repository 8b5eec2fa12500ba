"""Settings that harm are named with why, and only where they harm."""

import subprocess
import sys
from pathlib import Path

import pytest

from opensora_launch.doctor.alloc_conf import LEAST_SPLIT_MB, check_allocator, parse_alloc_conf
from opensora_launch.doctor.check_result import CheckResult, Level
from opensora_launch.doctor.env_audit import Surroundings, audit, audit_taken
from opensora_launch.doctor.interfaces import Interface, check_socket_names, infiniband_up, interfaces, nccl_matches
from opensora_launch.launch.env_profile import applied, profile_problems, profiled
from opensora_launch.schema.ranks_env import EnvConfig

GPUS = Surroundings(4, 1, 4, 32, False, (Interface("eth0", True), Interface("lo", True)), (2, 13))
CPUS = Surroundings(0, 1, 2, 8, False, (), (2, 13))
CLUSTER = Surroundings(8, 2, 8, 64, True, (Interface("docker0", True), Interface("ib0", True)), (2, 13))
CONF = "PYTORCH_CUDA_ALLOC_CONF"
# The environment of a public Docker guide for Open-Sora, word for word
GUIDE = {
    CONF: "max_split_size_mb:8,expandable_segments:True,garbage_collection_threshold:0.95",
    "CUDA_LAUNCH_BLOCKING": "1",
    "PYTORCH_NO_CUDA_MEMORY_CACHING": "1",
    "CUDA_MEMORY_FRACTION": "0.4",
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "NCCL_DEBUG": "INFO",
    "NCCL_IB_DISABLE": "1",
    "NCCL_P2P_DISABLE": "1",
    "NCCL_SOCKET_IFNAME": "eth0",
    "NCCL_BLOCKING_WAIT": "1",
}


def named(found: list[CheckResult]) -> list[str]:
    return sorted(f"{f.level.value} {f.what.split('=')[0].split(':')[0]}" for f in found)


def test_the_guides_environment_on_gpus() -> None:
    assert named(audit(GUIDE, GPUS)) == [
        f"fail {CONF}",  # below 20 MB
        "warn CUDA_LAUNCH_BLOCKING",
        "warn CUDA_MEMORY_FRACTION",
        "warn NCCL_BLOCKING_WAIT",
        "warn NCCL_DEBUG",
        "warn NCCL_P2P_DISABLE",
        "warn PYTORCH_CUDA_ALLOC_CONF",  # max_split_size_mb beside expandable segments
        "warn PYTORCH_CUDA_ALLOC_CONF",  # no caching turns it off
        "warn PYTORCH_NO_CUDA_MEMORY_CACHING",
    ]


def test_the_guides_environment_on_a_cluster_and_on_cpus() -> None:
    cluster = named(audit(GUIDE, CLUSTER))
    assert "warn NCCL_IB_DISABLE" in cluster
    assert "fail NCCL_SOCKET_IFNAME" in cluster  # there is no eth0
    assert named(audit(GUIDE, CPUS)) == [
        "warn CUDA_MEMORY_FRACTION", "warn MKL_NUM_THREADS", "warn NCCL_DEBUG", "warn OMP_NUM_THREADS",
    ]  # fmt: skip


def test_what_a_profile_takes_away_is_told_with_why() -> None:
    taken = {
        name: GUIDE[name] for name in ("CUDA_LAUNCH_BLOCKING", "PYTORCH_NO_CUDA_MEMORY_CACHING", "CUDA_MEMORY_FRACTION")
    } | {"NCCL_BLOCKING_WAIT": "1", "MY_OWN": "2", "CUDA_LAUNCH": "0"}
    ranks = {CONF: "expandable_segments:True"}
    for here in (GPUS, CPUS):  # also where they would do no harm: the next run may be on GPUs
        found = {f.what.split("=")[0]: f for f in audit_taken(taken, ranks, "workstation", here)}
        said = {name: f.what for name, f in found.items()}
        assert "the CPU waits for every kernel" in said["CUDA_LAUNCH_BLOCKING"]
        assert "cudaMalloc" in said["PYTORCH_NO_CUDA_MEMORY_CACHING"]
        assert "neither CUDA nor torch reads it" in said["CUDA_MEMORY_FRACTION"]
        assert "blocks in every collective" in said["NCCL_BLOCKING_WAIT"]
        assert all(what.endswith("env=workstation removes it for the ranks") for n, what in said.items() if n != "env")
        assert said["env"] == "env=workstation removes CUDA_LAUNCH=0 for the ranks"  # no reason known; MY_OWN as well
        assert {f.level for f in found.values()} == {Level.warn}
    assert audit(ranks, GPUS) == []


def test_every_finding_says_why_and_what_to_do() -> None:
    for finding in audit(GUIDE, CLUSTER):
        assert len(finding.what.split(": ", 1)[1]) > 15
        assert finding.fix
        assert finding.cost


@pytest.mark.parametrize(
    ("env", "here"),
    [
        ({}, CLUSTER),
        ({"NCCL_IB_DISABLE": "1"}, GPUS),  # no InfiniBand there
        ({"NCCL_P2P_DISABLE": "1"}, Surroundings(1, 1, 1, 8, False, (), None)),
        ({"NCCL_P2P_DISABLE": "0", "CUDA_LAUNCH_BLOCKING": "0", "NCCL_BLOCKING_WAIT": "0"}, GPUS),
        ({"CUDA_LAUNCH_BLOCKING": "1", "NCCL_P2P_DISABLE": "1"}, CPUS),
        ({"OMP_NUM_THREADS": "1"}, Surroundings(0, 1, 8, 8, False, (), None)),  # one core each is all there is
        ({"OMP_NUM_THREADS": "1"}, GPUS),
        ({CONF: "expandable_segments:True"}, GPUS),
        ({CONF: "max_split_size_mb:512,garbage_collection_threshold:0.8"}, GPUS),
        ({CONF: "roundup_power2_divisions:[256:1,512:2,>:4],expandable_segments:True"}, GPUS),
        ({CONF: "backend:cudaMallocAsync"}, GPUS),
        ({"NCCL_SOCKET_IFNAME": "eth"}, GPUS),
        ({"GLOO_SOCKET_IFNAME": "eth0"}, GPUS),
    ],
)
def test_no_complaint(env: dict[str, str], here: Surroundings) -> None:
    assert audit(env, here) == []


@pytest.mark.parametrize(
    ("text", "level", "said"),
    [
        ("max_split_size_mb:8", Level.fail, "below 20"),
        ("max_split_size_mb:64", Level.warn, "max_split_size_mb:64 keeps"),
        ("backend:cudaMallocAsync,max_split_size_mb:256", Level.warn, "excludes max_split_size_mb"),
        ("backend:cudaMallocAsync,expandable_segments:True", Level.warn, "excludes expandable_segments"),
        ("backend=cudaMallocAsync", Level.fail, "has no value"),
        ("max_splt_size_mb:256", Level.fail, "has no option 'max_splt_size_mb'"),
        ("max_split_size_mb:256,expandable_segments:True", Level.warn, "both handle fragmentation"),
        ("max_split_size_mb:abc", Level.fail, "max_split_size_mb:abc must be a whole number, so torch stops"),
        ("max_split_size_mb:256MB", Level.warn, "is not a whole number"),
        ("max_split_size_mb:64,large_segment_size_mb:128", Level.fail, "is below 128"),
        ("max_non_split_rounding_mb:5", Level.fail, "must be at least 20"),
        ("expandable_segments:true", Level.fail, "must be True or False, in this spelling"),
        ("garbage_collection_threshold:1", Level.fail, "must be between 0 and 1"),
        ("garbage_collection_threshold:much", Level.fail, "must be a number"),
        ("roundup_power2_divisions:3", Level.fail, "must be a power of 2"),
        ("roundup_power2_divisions:[256:1,512:3]", Level.fail, "must be a power of 2, or a list"),
        ("backend:cudaMallocAsinc", Level.fail, "must be native or cudaMallocAsync"),
        ("pinned_num_register_threads:6", Level.fail, "a power of 2 of at most 128"),
        ("per_process_memory_fraction:1.5", Level.fail, "must be from 0 to 1"),
    ],
)
def test_allocator_options(text: str, level: Level, said: str) -> None:
    (finding,) = check_allocator({CONF: text}, (2, 13))
    assert finding.level is level
    assert said in finding.what


def test_allocator_names() -> None:
    new = {"PYTORCH_ALLOC_CONF": "expandable_segments:True"}
    assert check_allocator(new, (2, 9)) == []
    (old,) = check_allocator(new, (2, 6))
    assert "torch 2.6 ignores this name" in old.what
    (both,) = check_allocator({**new, CONF: "max_split_size_mb:512"}, (2, 13))
    assert "PYTORCH_ALLOC_CONF is ignored" in both.what
    assert parse_alloc_conf("a:[1:2,3:4],b:c,d") == {"a": "[1:2,3:4]", "b": "c", "d": ""}


def test_the_installed_torch_agrees() -> None:
    """What is told to stop torch does, and what is not does not; of options that its parser reads without a GPU."""
    values = {
        "max_split_size_mb": [str(LEAST_SPLIT_MB - 1), str(LEAST_SPLIT_MB), "512", "abc", "", "64x"],
        "max_non_split_rounding_mb": ["19", "20", "x"],
        "large_segment_size_mb": ["10", "11", "32", "x"],
        "expandable_segments": ["True", "False", "true", "1"],
        "pinned_use_background_threads": ["True", "yes"],
        "garbage_collection_threshold": ["0", "0.8", ".5", "1", "2", "x"],
        "roundup_power2_divisions": ["4", "3", "0", "x", "[256:1,512:2,>:4]", "[256:0]", "[>:3]", "[x:2]", "[4]"],
    }
    texts = [f"{key}:{value}" for key, each in values.items() for value in each]
    texts += ["backend=cudaMallocAsync", "large_segment_size_mb:64,max_split_size_mb:32"]
    code = (
        f"import torch\nfor text in {texts}:\n"
        "    torch._C._accelerator_setAllocatorSettings('large_segment_size_mb:20')\n"
        "    try: torch._C._accelerator_setAllocatorSettings(text); print('ok')\n"
        "    except (RuntimeError, ValueError): print('stops')\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    told = [
        "stops" if any(f.level is Level.fail for f in check_allocator({CONF: text}, (2, 13))) else "ok"
        for text in texts
    ]
    assert dict(zip(texts, told, strict=True)) == dict(zip(texts, done.stdout.split(), strict=True)), done.stderr
    assert 10 < told.count("ok") < len(told) - 10


@pytest.mark.parametrize(
    ("spec", "matched"),
    [
        ("eth", ["eth0", "eth1"]),
        ("=eth0", ["eth0"]),
        ("eth1,ib", ["eth1", "ib0"]),
        ("^docker0", ["eth0", "eth1", "ib0", "lo"]),
        ("^lo,docker", ["eth0", "eth1", "ib0"]),
        ("^=eth0", ["docker0", "eth1", "ib0", "lo"]),
        ("wlan", []),
    ],
)
def test_nccl_socket_ifname(spec: str, matched: list[str]) -> None:
    assert nccl_matches(spec, ["docker0", "eth0", "eth1", "ib0", "lo"]) == matched


def test_socket_findings() -> None:
    here = (Interface("eth0", False), Interface("ib0", True), Interface("lo", True))
    name = "NCCL_SOCKET_IFNAME"

    def said(env: dict[str, str], nodes: int = 1, gpus: int = 8) -> list[str]:
        return [f"{f.level.value} {f.what}" for f in check_socket_names(env, here, nodes=nodes, gpus=gpus)]

    assert "fail NCCL_SOCKET_IFNAME=wlan matches no interface of this host (eth0, ib0, lo)" in said({name: "wlan"})[0]
    assert "warn NCCL_SOCKET_IFNAME=eth0: eth0 is down" in said({name: "eth0"})
    assert said({name: "lo"}) == []
    assert "reaches no other node" in said({name: "^docker0"}, nodes=2)[0]
    assert said({name: "wlan"}, gpus=0) == []
    assert "GLOO_SOCKET_IFNAME=ib matches no interface" in said({"GLOO_SOCKET_IFNAME": "ib"})[0]


def test_interfaces_and_infiniband_from_sys(tmp_path: Path) -> None:
    for name, state in (("eth0", "up"), ("wlan0", "down"), ("lo", "unknown")):
        (tmp_path / "net" / name).mkdir(parents=True)
        (tmp_path / "net" / name / "operstate").write_text(f"{state}\n")
    assert interfaces(tmp_path / "net") == (Interface("eth0", True), Interface("lo", True), Interface("wlan0", False))
    assert interfaces(tmp_path / "none") == ()
    port = tmp_path / "ib" / "mlx5_0" / "ports" / "1"
    port.mkdir(parents=True)
    (port / "state").write_text("1: DOWN\n")
    assert not infiniband_up(tmp_path / "ib")
    (port / "state").write_text("4: ACTIVE\n")
    assert infiniband_up(tmp_path / "ib")


def test_profile_sets_what_is_absent_and_takes_away_what_harms() -> None:
    config = EnvConfig("workstation", set=[f"{CONF}=a:b", "NCCL_DEBUG=WARN"], unset=["CUDA_LAUNCH_BLOCKING", "X"])
    made = profiled({"PATH": "/bin", "NCCL_DEBUG": "INFO", "CUDA_LAUNCH_BLOCKING": "1"}, config)
    assert made.env == {"PATH": "/bin", "NCCL_DEBUG": "INFO", CONF: "a:b"}
    assert (made.was_set, made.taken, made.kept) == (
        {CONF: "a:b"}, {"CUDA_LAUNCH_BLOCKING": "1"}, {"NCCL_DEBUG": "INFO"},
    )  # fmt: skip
    assert '"taken_away": {\n  "CUDA_LAUNCH_BLOCKING": "1"' in made.to_json(made.env)
    assert "/bin" not in made.to_json(made.env)
    other_name = profiled({"PYTORCH_ALLOC_CONF": "c:d"}, config)
    assert CONF not in other_name.env
    assert other_name.kept == {"PYTORCH_ALLOC_CONF": "c:d"}


def test_profile_problems() -> None:
    assert profile_problems(EnvConfig()) == []
    wrong = profile_problems(EnvConfig("x", set=["NCCL_DEBUG", "1A=2"], unset=["A=B"]))
    assert [line.split(":")[0] for line in wrong] == ["env.set", "env.set", "env.unset"]


def test_a_profile_is_applied_for_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    import os

    monkeypatch.setenv("TAKEN", "1")
    monkeypatch.delenv("GIVEN", raising=False)
    with applied(profiled(os.environ, EnvConfig("x", set=["GIVEN=2"], unset=["TAKEN"])).env):
        assert os.environ["GIVEN"] == "2"
        assert "TAKEN" not in os.environ
    assert os.environ["TAKEN"] == "1"
    assert "GIVEN" not in os.environ
