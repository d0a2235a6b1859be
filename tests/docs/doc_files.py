"""The pages of the documentation and the files that they show."""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
EXAMPLES = DOCS / "examples"
# The other two pages of the site include these.
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    *sorted(path for path in DOCS.rglob("*.md") if path.name not in ("contributing.md", "changelog.md")),
]


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))
