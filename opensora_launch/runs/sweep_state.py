"""`sweep.json`: what a scaling sweep runs, and which of its runs are done."""

from collections.abc import Iterator, Sequence

import msgspec

from opensora_launch.errors import UserError
from opensora_launch.rundir import SweepDir, write_whole


class BenchPoint(msgspec.Struct, frozen=True):
    """One point of a sweep. Points of one `series` differ in the count of GPUs alone."""

    series: str
    nodes: int
    gpus_per_node: int
    overrides: tuple[str, ...]
    device: str = "cuda"  # or "cpu"
    layout: str | msgspec.UnsetType = msgspec.UNSET  # in words; older files do not have it

    @property
    def gpus(self) -> int:
        return self.nodes * self.gpus_per_node

    @property
    def size(self) -> str:
        """In words: "2 GPUs"."""
        return f"{self.gpus} {'GPU' if self.device == 'cuda' else 'CPU rank'}{'s' * (self.gpus != 1)}"


class FinishedRun(msgspec.Struct, frozen=True, rename={"point": "spot"}):
    """One run that ended well."""

    point: int  # its place in Sweep.points
    round: int
    run: str  # its folder, inside the sweep's
    busy: float | None  # share of this host's CPUs that other programs used just before; None if that is not known


class Sweep(msgspec.Struct, frozen=True, rename={"points": "spots"}):
    """What to run, and what is done."""

    argv: tuple[str, ...]
    points: tuple[BenchPoint, ...]
    repeats: int
    warmup: int
    weak: bool
    elsewhere: bool  # the ranks run on other machines than this
    done: tuple[FinishedRun, ...] = ()

    def write(self, folder: SweepDir) -> None:
        write_whole(folder.state, msgspec.json.format(msgspec.json.encode(self), indent=1).decode() + "\n")

    def with_done(self, finished: FinishedRun) -> "Sweep":
        return msgspec.structs.replace(self, done=(*self.done, finished))

    def runs(self) -> Iterator[tuple[int, int]]:
        """Yield (round, place of a point) of every run: every second round goes backwards, so that drift hits all."""
        for number in range(self.warmup + self.repeats):
            yield from ((number, place) for place in range(len(self.points))[:: 1 if number % 2 == 0 else -1])

    def names(self, places: Sequence[int]) -> str:
        """Some points in words."""
        return ", ".join(f"{self.points[n].series} on {self.points[n].size}" for n in places)


def read_sweep(folder: SweepDir) -> Sweep:
    """Read a sweep's folder. Raises UserError if it is not one."""
    try:
        return msgspec.json.decode(folder.state.read_bytes(), type=Sweep)
    except (OSError, msgspec.MsgspecError) as error:
        raise UserError(f"{folder} is not a sweep: {folder.state.name} cannot be read ({error})") from error
