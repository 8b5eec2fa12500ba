"""Device times land on the host's clock, by a stand-in for the GPU's events and, where there is one, by a GPU."""

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import astuple
from itertools import count
from pathlib import Path

import pytest

from opensora_launch.telemetry.clocks import DeviceClock, HostClock
from opensora_launch.telemetry.heartbeat import Heartbeat
from opensora_launch.telemetry.recorder import Recorder
from opensora_launch.telemetry.stall import Position
from tests.telemetry.test_recorder import META, read, recorder


class FakeCuda:
    """Stands in for a GPU whose stream runs `lag_s` behind the host; time passes where a test, or a sleep, lets it.

    As with CUDA, each thread begins with GPU 0, and a query on a GPU makes a context there.
    """

    def __init__(self, now: float) -> None:
        self.now = now  # the host's clock
        self.done_s = now  # up to where the device has come, in the host's time
        self.lag_s = 0.0
        self.error = ""  # what every query raises
        self.threads = threading.local()
        self.contexts = set[int]()

    def event(self) -> "FakeCudaEvent":
        return FakeCudaEvent(self)

    def set_device(self) -> None:
        self.threads.gpu = 3

    def sleep(self, seconds: float) -> None:
        self.now = self.done_s = max(self.now, self.done_s, self.now + self.lag_s)
        self.lag_s = 0.0


class FakeCudaEvent:
    """The four methods of torch.cuda.Event that are used; elapsed_time has 24 bits, as CUDA's."""

    def __init__(self, cuda: FakeCuda) -> None:
        self.cuda = cuda

    def record(self) -> None:
        self.time_s = self.cuda.now + self.cuda.lag_s

    def query(self) -> bool:
        self.cuda.contexts.add(getattr(self.cuda.threads, "gpu", 0))
        if self.cuda.error:
            raise RuntimeError(self.cuda.error)
        return self.time_s <= self.cuda.done_s

    def elapsed_time(self, end: "FakeCudaEvent") -> float:
        assert self.query(), "read before it was ready"
        assert end.query(), "read before it was ready"
        ms = (end.time_s - self.time_s) * 1000
        digits = len(str(int(abs(ms))))
        return round(ms, 7 - digits)


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> FakeCuda:
    fake = FakeCuda(1000.0)
    fake.set_device()
    monkeypatch.setattr(time, "monotonic", lambda: fake.now)
    monkeypatch.setattr(time, "sleep", fake.sleep)
    return fake


def test_device_times_are_put_on_the_hosts_clock(tmp_path: Path, cuda: FakeCuda) -> None:
    clock = DeviceClock(cuda.event, cuda.set_device)
    rec = recorder(tmp_path, clock=clock)
    with rec.span("denoise", video="0000_0"):
        cuda.lag_s = 0.5  # the host asks for all of it at once; the device does it half a second later
        with rec.step("0000_0", 0, 1, 1, "x", 1):
            cuda.lag_s = 0.75
            with rec.collective("ulysses", (0, 1), 64):
                cuda.lag_s = 1.0
            cuda.lag_s = 1.25
        assert read(tmp_path).collectives == ()  # nothing was waited for
        assert len(rec.done) == 2
        assert rec.heartbeat.device_position() is None  # the device is not there yet
        cuda.done_s = 1000.8
        assert rec.heartbeat.device_position() == Position("ulysses", (0, 1), 1)
        assert rec.heartbeat.beat(0.0).inside
        cuda.done_s = 1001.0
        assert rec.heartbeat.device_position() is None
        rec.flush()
        assert [c.axis for c in read(tmp_path).collectives] == ["ulysses"]
        assert read(tmp_path).steps == ()
    events = read(tmp_path)
    (coll,), (step,), (span,) = events.collectives, events.steps, events.spans
    assert astuple(coll)[:4] == ("ulysses", (0, 1), 1, 64)
    assert astuple(coll)[4:] == pytest.approx((1000.75, 1001.0))
    assert [step.start_s, step.end_s] == pytest.approx([1000.5, 1001.25])
    assert (span.start_s, span.end_s) == (1000.0, 1001.25)  # the end of a span waits for the device
    assert events.meta.clock == "device"
    rec.close(0, [])
    assert (read(tmp_path).end or pytest.fail("no end")).clock_drift_s == pytest.approx(0.0, abs=1e-6)


def test_device_times_stay_sharp_over_hours(cuda: FakeCuda) -> None:
    """Of 7 decimal digits nothing below a millisecond is left after three hours: the anchor must move along."""
    clock = DeviceClock(cuda.event, cuda.set_device)
    far = cuda.event()
    start = clock.mark()
    for second in count(1):
        cuda.now = cuda.done_s = 1000.0 + 1.00001 * second
        found = clock.seconds(clock.mark())
        if second == 10_000:
            break
    assert found == pytest.approx(cuda.now, abs=1e-4)
    cuda.now = cuda.done_s = 1000.0 + 12345.6785
    far.record()
    assert abs(start.elapsed_time(far) / 1000 - 12345.6785) > 1e-4  # what one anchor for all would give


def in_a_thread(call: Callable[[], object]) -> object:
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(call).result()


def test_another_thread_asks_this_gpu(tmp_path: Path, cuda: FakeCuda) -> None:
    """A thread's device is GPU 0 until it sets another; a query there would take memory of GPU 0 for every rank."""
    rec = recorder(tmp_path, clock=DeviceClock(cuda.event, cuda.set_device))
    with rec.span("denoise"):
        with rec.collective("ulysses", (0, 1), 64):
            cuda.lag_s = 0.5
        assert in_a_thread(rec.heartbeat.device_position) == Position("ulysses", (0, 1), 1)
    assert cuda.contexts == {3}


def test_a_gpu_that_answers_no_query_leaves_the_heartbeat_alive(
    tmp_path: Path, cuda: FakeCuda, caplog: pytest.LogCaptureFixture
) -> None:
    rec = recorder(tmp_path, clock=DeviceClock(cuda.event, cuda.set_device))
    rec.heartbeat.phase = "denoise"
    with rec.collective("ulysses", (0, 1), 64):
        cuda.lag_s = 0.5
    cuda.error = "CUDA error: an illegal memory access was encountered\nCUDA kernel errors might be asynchronous"
    beats = [rec.heartbeat.beat(now) for now in (0.0, 1.0, 2.0)]
    said = "RuntimeError: CUDA error: an illegal memory access was encountered"
    assert [(b.phase, b.inside, b.problem) for b in beats] == [("denoise", False, said)] * 3
    assert [r.getMessage() for r in caplog.records] == [f"the heartbeat goes on after an error: {said}"]


def test_host_clock_needs_no_wait() -> None:
    clock = HostClock()
    before, mark = time.monotonic(), clock.mark()
    assert before <= mark <= time.monotonic()
    assert (clock.ready(mark), clock.seconds(mark), clock.drift_s()) == (True, mark, 0.0)


@pytest.mark.gpu
def test_on_a_gpu(tmp_path: Path) -> None:
    """A kernel of known length: device times agree with the host's around a synchronised run."""
    torch = pytest.importorskip("torch")
    if not torch.cuda.is_available():
        pytest.skip("torch sees no NVIDIA GPU")
    heartbeat = Heartbeat(tmp_path / "heartbeat/rank1.json", rank=1, host="h")
    rec = Recorder(tmp_path / "telemetry/rank1.jsonl", META, device="cuda", heartbeat=heartbeat)
    torch.cuda._sleep(1000)
    torch.cuda.synchronize()
    with rec.span("denoise", video="0000_0"):
        before = time.monotonic()
        with rec.step("0000_0", 0, 1, 1, "x", 1), rec.collective("ulysses", (0, 1), 64):
            torch.cuda._sleep(200_000_000)
        asked = time.monotonic()
        torch.cuda.synchronize()
        after = time.monotonic()
    rec.close(0, [])
    events = read(tmp_path)
    (coll,) = events.collectives
    assert asked - before < 0.02 < coll.end_s - coll.start_s
    assert before - 1e-3 <= coll.start_s <= coll.end_s <= after + 1e-3
    assert events.meta.clock_error_s < 1e-3
