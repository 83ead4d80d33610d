"""Writes benchmarks/README.md and benchmarks/details.md from benchmarks/results/*.json.

    python -m benchmarks.tables            # rewrites the pages
    python -m benchmarks.tables --check    # exits with 1 when a page is not what the JSON gives

README.md is one table, made in overview.py; details.md has all figures, in the sections that details.py lists. The
words of a section stand in its function, beside the numbers that they explain. Every JSON file must belong to a section
and to a row of the table, so that no result is forgotten.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from benchmarks.tables.details import make_details
from benchmarks.tables.overview import make_overview

BENCHMARKS = Path(__file__).parent.parent
RESULTS, PAGE, DETAILS = BENCHMARKS / "results", BENCHMARKS / "README.md", BENCHMARKS / "details.md"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; exit with 1 when a page would change")
    args = parser.parse_args()
    for path, text in make_pages().items():
        if not args.check:
            path.write_text(text, encoding="utf-8")
        elif not is_current(text, path):
            sys.exit(f"{path} is not what the JSON gives; run: python -m benchmarks.tables")


def is_current(text: str, page: Path) -> bool:
    """Whether the page exists and holds exactly this text."""
    return page.exists() and page.read_text(encoding="utf-8") == text


def make_pages(results: Path = RESULTS) -> dict[Path, str]:
    """Returns {page: its text}. Raises ValueError when a JSON file belongs to no section or row."""
    documents = {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in sorted(results.glob("*.json"))}
    return {PAGE: make_overview(documents), DETAILS: make_details(documents)}


if __name__ == "__main__":
    main()
