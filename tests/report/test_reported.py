"""What the ranks reported themselves becomes findings, once for all the ranks that said it."""

from dataclasses import replace

from opensora_launch.report.reported import reported_findings
from opensora_launch.report.wording import say
from tests.report.checked import unworded
from tests.report.synthetic import plain_simulation

WHY = "attention=flash3 (3.0.0) does not work here: RuntimeError: no kernel image"


def test_a_kernel_that_failed_its_trial() -> None:
    first, *rest = plain_simulation(3).events()
    refusing = [replace(e, meta=replace(e.meta, attention_refused=(WHY,))) for e in rest]
    (found,) = reported_findings([first, *refusing])
    assert (found["code"], found["ranks"], found["host"], found["seconds"]) == (
        "kernel_refused",
        [1, 2],
        "host-a",
        None,
    )
    assert say(found) == f"{WHY}."
    assert say(found, "title") == "A faster attention kernel was passed over (host-a, ranks 1, 2)"
    assert list(unworded(found)) == []
