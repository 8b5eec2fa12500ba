"""`opensora-launch open [RUN]`: show a report in the browser."""

import webbrowser

from opensora_launch import exit_codes
from opensora_launch.errors import UserError
from opensora_launch.request.flags import Parsed
from opensora_launch.rundir import RunDir
from opensora_launch.runs.newest import LATEST, named_report


def open_verb(parsed: Parsed) -> int:
    """Open the page of a run or a sweep, and print its path, for machines without a browser."""
    if len(parsed.rest) > 1:
        raise UserError(f"open takes one run's folder, not {len(parsed.rest)}: opensora-launch open runs/STAMP")
    folder = named_report(parsed.rest[0] if parsed.rest else LATEST).absolute()
    page = RunDir(folder).report_page  # that of a sweep has the same name
    if not page.is_file():
        raise UserError(f"{folder} has no {page.name} yet; make it: opensora-launch report {folder}")
    print(f"report: {page}", flush=True)
    if not webbrowser.open(page.as_uri()):
        print("no browser was found here: open the file yourself, or copy it; it needs no other file")
    return exit_codes.DONE
