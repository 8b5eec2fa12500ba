#!/usr/bin/env python3
"""Score the planner's time model with published measurements that it was not fitted to.

    scripts/validate_plan.py                      summarise docs/benchmarks/published_scaling.json
    scripts/validate_plan.py --json               print every measurement as JSON
    scripts/validate_plan.py --data FILE --json   score another file of that form. Other tables of the shipped file also
                                                  take part in the fit; configs/hardware supplies missing constants
    scripts/validate_plan.py --write              rewrite the tables of docs/prediction.md

docs/prediction.md explains the fit and the results. Takes about half a minute on one core; needs numpy, not torch.
"""

import argparse
import json
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "scripts"), str(ROOT)]

from prediction.published import PUBLISHED, Measurement, read_measurements  # noqa: E402
from prediction.score import PROTOCOLS, as_json, score  # noqa: E402

HEADLINE = ("table", "largest")


def main() -> int:
    options = _options()
    try:
        rows, left_out = read_measurements(options.data)
    except (OSError, ValueError) as error:
        print(f"error: {options.data} cannot be read: {error}", file=sys.stderr)
        return 2
    more = _others(rows) if options.data.resolve() != PUBLISHED else []
    if options.write:
        from prediction.document import write_document

        write_document(score(rows, more, PROTOCOLS), rows)
        return 0
    found = as_json(score(rows, more, HEADLINE), left_out, HEADLINE)
    print(json.dumps(found, indent=1) if options.json else _summary(found))
    return 0


def _others(rows: list[Measurement]) -> list[Measurement]:
    """Return the shipped measurements of tables that the file does not have, with their own numbers."""
    from dataclasses import replace

    tables = {row.table for row in rows}
    return [replace(row, index=-1 - row.index) for row in read_measurements(PUBLISHED)[0] if row.table not in tables]


def _summary(found: dict[str, object]) -> str:
    def percent(value: object) -> str:
        return "none" if value is None else f"{value:.1%}"

    medians, by = found["median_abs_error"], found["by_protocol"]
    assert isinstance(medians, dict)
    assert isinstance(by, dict)
    lines = [f"median |error| out of sample: NVLink {percent(medians['nvlink'])}, PCIe {percent(medians['pcie'])}"]
    names = {"table": "one table left out", "largest": "largest GPU count of a table left out"}
    lines += [f"  {names[p]}: NVLink {percent(e['nvlink'])}, PCIe {percent(e['pcie'])}" for p, e in by.items()]
    share = percent(found["layout_order"])
    lines.append(f"layouts in the right order over PCIe: {share} of {found['layout_pairs']} pairs")
    rows = found["rows"]
    assert isinstance(rows, list)
    return "\n".join([*lines, *(f"measurement {row['index']} is {row['why']}" for row in rows if "why" in row)])


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=PUBLISHED, help="file to score (default: published_scaling.json)")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--write", action="store_true", help="rewrite docs/prediction.md")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
