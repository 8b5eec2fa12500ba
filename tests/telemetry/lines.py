"""Lines of a rank's events, for files that no rank wrote."""

from dataclasses import astuple

from opensora_launch.telemetry.events import Event, line_of


def event_line(event: Event) -> str:
    return line_of(type(event), astuple(event))
