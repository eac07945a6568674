"""Runs the benchmarks small and compares their ratios with those kept in ratios.json: seconds differ between machines.

    python benchmarks/regress.py [--keep] [NAME ...]

A ratio is of two things measured in the same run, higher being better. One that fell below 0.7 of what is kept is an
error: this much does not come from noise. So is a script that fails, and a ratio that is kept and was not printed; the others
are still run. `--keep` writes what was found instead, where no script failed.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
KEPT = HERE / "ratios.json"
SMALL = {
    "plan_short_rows": ["--rows", "100000", "--runs", "3"],
    "plan_rows": ["--rows", "100000", "--runs", "3"],
    "land_results": ["--rows", "100000", "--shards", "4", "--runs", "3"],
    "reuse_lookup": ["--rows", "1000000", "--keys", "200000", "--shards", "20", "--runs", "3"],
    "resume": ["--rows", "200000", "--shards", "12", "--runs", "3"],
    "row_by_row": ["--rows", "10000", "--runs", "3"],
    "find_calls": ["--files", "300", "--runs", "3"],
    "capacity": ["--rows", "50000", "--runs", "3"],
    "alarms": ["--rows", "500", "--runs", "1"],
    "rescue": ["--rows", "10000", "--runs", "1"],
    "audit_logs": ["--rows", "100000", "--runs", "3"],
    "reader": ["--rows", "100000", "--gets", "500", "--runs", "3"],
    "token_counting": ["--documents", "3000", "--joins", "3000", "--mb", "10", "--runs", "3"],
}
LOWEST = 0.7


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(SMALL))
    parser.add_argument("--keep", action="store_true", help="write what was found")
    args = parser.parse_args()
    kept: dict[str, float] = json.loads(KEPT.read_text()) if KEPT.exists() else {}
    if unknown := [name for name in args.names if name not in SMALL]:
        parser.error(f"no such benchmark: {', '.join(unknown)}; there are {', '.join(SMALL)}")
    found: dict[str, float] = {}
    failed: list[str] = []
    for name in args.names or SMALL:
        if (printed := ratios(name)) is None:
            failed.append(name)
            continue
        found |= printed
        failed += [what for what in kept if what.startswith(f"{name}: ") and what not in printed and not args.keep]
    fallen = [what for what, value in found.items() if value < LOWEST * kept.get(what, 0)]
    for what, value in found.items():
        before = f", kept {kept[what]:.2f}" if what in kept else ""
        print(f"{what} = {value:.2f}{before}{'  FELL' if what in fallen else ''}")
    if failed:
        raise SystemExit(f"failed, or no longer printed: {'; '.join(failed)}")
    if args.keep:
        KEPT.write_text(json.dumps(kept | found, indent=2) + "\n")
    elif fallen:
        raise SystemExit(f"{len(fallen)} of {len(found)} ratios fell below {LOWEST} of what is kept")


def ratios(name: str) -> dict[str, float] | None:
    """What a benchmark prints as its ratios; None where it failed."""
    print(f"... {name}", file=sys.stderr)
    command = [sys.executable, str(HERE / f"{name}.py"), *SMALL[name]]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        print(f"{name} failed:\n{done.stdout}", file=sys.stderr)
        return None
    return {what: float(value) for what, value in re.findall(r"^ratio (.*) = ([0-9.]+)$", done.stdout, re.MULTILINE)}


if __name__ == "__main__":
    main()
