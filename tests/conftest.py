"""Options of the suite, and the rule that nothing is skipped unseen."""

import gc
import logging
import os
import signal
from collections.abc import Generator
from typing import Any

import pytest

REASON = "skipped, and REQUIRE_ALL=1 makes that a failure: "


def pytest_configure() -> None:
    """Under nohup, or as a shell's background job, signals are ignored, and so they would be by what tests start."""
    for signum, usual in ((signal.SIGINT, signal.default_int_handler), (signal.SIGHUP, signal.SIG_DFL)):
        if signal.getsignal(signum) is signal.SIG_IGN:
            signal.signal(signum, usual)


def pytest_collection_finish() -> None:
    """What was imported by now stays: to look through it again and again took a tenth of the time of the tests."""
    gc.collect()
    gc.freeze()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--update-golden", action="store_true", help="rewrite golden files from what the code makes now")


def _refuse_skip(report: Any) -> None:
    report.outcome = "failed"
    report.longrepr = REASON + (report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """CI has every tool, so a skip there is a missing tool or a mistake. A GPU is the exception."""
    report = yield
    if _all_required() and report.skipped and not hasattr(report, "wasxfail") and not item.get_closest_marker("gpu"):
        _refuse_skip(report)
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report() -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    """The same for a module that skips itself whole."""
    report = yield
    if _all_required() and report.skipped:
        _refuse_skip(report)
    return report


def _all_required() -> bool:
    return os.environ.get("REQUIRE_ALL") == "1"


@pytest.fixture(autouse=True)
def _loggers_stay() -> Generator[None]:
    """Ranks in this process log to the standard output of their test, which is closed after it."""
    root = logging.getLogger()
    level, before = root.level, root.handlers[:]
    yield
    root.setLevel(level)
    for handler in [one for one in root.handlers if one not in before]:
        root.removeHandler(handler)
