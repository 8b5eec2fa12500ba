"""Which room may import which, and which must start without torch. A new arrow is a decision: it is made here."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

PACKAGE = "opensora_launch"
ROOT = Path(__file__).parent.parent / PACKAGE
FILES = sorted(ROOT.rglob("*.py"))

# A room imports only from rooms above it in this list. docs/architecture.md says what each room is for.
ROOMS = [
    "errors", "exit_codes", "rundir", "schema", "plan", "estimate", "media", "model", "parallel", "sampling",
    "machine", "slurm", "telemetry", "runs", "launch", "doctor", "report", "request", "engines", "worker", "cli",
]  # fmt: skip
# Further limits: a pure room stays pure, and the model does not know that it is split.
PURE = {"errors", "exit_codes", "schema", "plan", "estimate"}
MAY_IMPORT_ONLY = {
    "estimate": PURE,
    "media": {"errors", "rundir", "schema"},
    "model": {"errors", "schema"},
    "parallel": {"errors", "plan", "schema", "model"},
    "sampling": {"errors", "plan"},  # the loop gets functions: it knows neither model nor parallel
}
# A login node has no GPU and often no torch; `--help` answers at once.
WITHOUT_TORCH = [
    "errors", "exit_codes", "rundir", "schema", "plan", "estimate", "media/prompts.py", "model/weight_files.py",
    "machine", "slurm", "telemetry", "runs", "launch", "doctor", "report", "request", "cli",
]  # fmt: skip
SLOW = {"torch", "diffusers", "transformers", "colossalai"}
ONLY_IN = {"hydra": {"request"}, "omegaconf": {"request"}, "colossalai": {"engines"}, "rich": {"cli"}}


def room(path: Path) -> str:
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def files_of(start: str) -> list[Path]:
    """The files of a room, or the one file."""
    return [p for p in FILES if room(p) == start or p == ROOT / start]


def imports(tree: ast.AST, package: str) -> Iterator[str]:
    """Every imported module by its full name: `import a.b`, `from a import b` and `from . import b`, late ones too."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) + 1 - node.level] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            yield from (f"{base}.{alias.name}" for alias in node.names)


def faults(source: str, here: str, package: str) -> list[str]:
    """What a file of room `here` imports although it may not."""
    if here not in ROOMS:
        return [f"{here} is not a room: add it to ROOMS"]
    above = set(ROOMS[: ROOMS.index(here)])
    found = []
    for module in imports(ast.parse(source), package):
        top, _, rest = module.partition(".")
        if here not in ONLY_IN.get(top, {here}):
            found.append(f"{here} may not import {top}")
        there = rest.partition(".")[0]
        if top != PACKAGE or there in ("", "__version__", here):
            continue
        if there not in above & MAY_IMPORT_ONLY.get(here, above):
            found.append(f"{here} may not import {there}")
    return found


@pytest.mark.parametrize(
    "path", [p for p in FILES if p.parent != ROOT or p.stem != "__init__"], ids=lambda p: str(p.relative_to(ROOT))
)
def test_imports_follow_the_arrows(path: Path) -> None:
    package = ".".join(path.parent.relative_to(ROOT.parent).parts)
    assert faults(path.read_text(), room(path), package) == []


@pytest.mark.parametrize(
    ("here", "source", "count"),
    [
        ("model", "from opensora_launch.parallel import mesh", 1),
        ("model", "from opensora_launch import parallel, errors", 1),
        ("model", "import opensora_launch.parallel.mesh", 1),
        ("model", "from ..parallel import mesh", 1),
        ("model", "from .. import parallel", 1),
        ("model", "from . import layers", 0),
        ("model", "if True:\n    def f():\n        import opensora_launch.parallel", 1),
        ("request", "def f():\n    from opensora_launch.worker import main", 1),
        ("cli", "from opensora_launch.worker import main", 0),
        ("worker", "from opensora_launch import cli, request", 1),
        ("cli", "import opensora_launch", 0),
        ("plan", "import hydra.core", 1),
        ("attic", "", 1),
    ],
)
def test_every_form_of_import_is_seen(here: str, source: str, count: int) -> None:
    assert len(faults(source, here, f"{PACKAGE}.{here}")) == count


@pytest.mark.parametrize("start", [s for s in WITHOUT_TORCH if files_of(s)])
def test_starts_without_torch(start: str) -> None:
    relative = [p.relative_to(ROOT.parent).with_suffix("") for p in files_of(start)]
    names = [".".join(p.parts).removesuffix(".__init__") for p in relative]
    code = (
        "import importlib, sys\n"
        f"for name in {names!r}:\n"
        "    importlib.import_module(name)\n"
        f"    if slow := {SLOW!r} & set(sys.modules): sys.exit(f'{{name}} imports {{sorted(slow)}}')\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT.parent, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_only_the_worker_starts_the_group_and_reads_its_rank() -> None:
    names = {"init_process_group", "RANK", "LOCAL_RANK", "WORLD_SIZE"}
    found = set()
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text())):
            match node:
                case ast.Attribute(attr="init_process_group") | ast.Name(id="init_process_group"):
                    found.add(room(path))
                case ast.Subscript(slice=ast.Constant(value=str(key)), ctx=ast.Load()):
                    found |= {room(path)} if key in names else set()
                case ast.Call(func=ast.Attribute(attr="get" | "getenv"), args=[ast.Constant(value=str(key)), *_]):
                    found |= {room(path)} if key in names else set()
    assert found <= {"worker"}


def test_no_module_imports_itself_by_way_of_others() -> None:
    """Inside a room too, and for imports inside functions too."""
    names = {".".join(p.relative_to(ROOT.parent).with_suffix("").parts).removesuffix(".__init__"): p for p in FILES}
    graph = {}
    for name, path in names.items():
        package = ".".join(path.parent.relative_to(ROOT.parent).parts)
        found = imports(ast.parse(path.read_text()), package)
        graph[name] = {m if m in names else m.rpartition(".")[0] for m in found} & set(names) - {name}
    TopologicalSorter(graph).prepare()  # raises CycleError, which names the modules


def test_a_cycle_is_found() -> None:
    with pytest.raises(CycleError):
        TopologicalSorter({"a": {"b"}, "b": {"c"}, "c": {"a"}}).prepare()
