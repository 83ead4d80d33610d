"""Every relative link of every Markdown page leads to a file that exists, and to a heading where it names one."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = sorted(
    path.relative_to(ROOT).as_posix()
    for folder in (".", "docs", "docs/studies", "benchmarks", "data_pipelines", "experiments", "deploy")
    for path in (ROOT / folder).glob("*.md")
)


@pytest.mark.parametrize("page", PAGES)
def test_links_of_a_page_resolve(page):
    path = ROOT / page
    broken = [link for link in relative_links(path.read_text(encoding="utf-8")) if not resolves(path, link)]
    assert not broken, f"{page} links to what does not exist: {', '.join(broken)}"


def test_an_anchor_is_a_heading_as_github_writes_it():
    text = (
        "# A frozen tower's embeddings, *stored*\n## `csv`, in a table\n## `csv`, in a table\n```\n# a comment\n```\n"
    )
    assert anchors(text) == {"a-frozen-towers-embeddings-stored", "csv-in-a-table", "csv-in-a-table-1"}


def test_links_in_code_are_none():
    text = "[a](b.md) `[c](d.md)` ![e](f.png)\n```\n[g](h.md)\n```\n[web](https://example.org)"
    assert list(relative_links(text)) == ["b.md", "f.png"]


def resolves(page: Path, link: str) -> bool:
    """Whether a link from a page leads to an existing file or folder and, in Markdown, to an existing heading."""
    name, _, anchor = link.partition("#")
    target = (page.parent / name) if name else page
    if not target.exists():
        return False
    return not anchor or target.suffix != ".md" or anchor in anchors(target.read_text(encoding="utf-8"))


def relative_links(text: str) -> Iterator[str]:
    """Targets of links and images outside code that are not URLs."""
    text = re.sub(r"`[^`\n]*`", "", without_code_blocks(text))
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        if not re.match(r"[a-z]+:", link):
            yield link


def anchors(text: str) -> set[str]:
    """The anchors that GitHub gives a page's headings."""
    seen: dict[str, int] = {}
    result = set()
    for heading in re.findall(r"^#{1,6} +(.+?) *#*$", without_code_blocks(text), re.MULTILINE):
        heading = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading)
        slug = re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")
        count = seen.get(slug, 0)
        seen[slug] = count + 1
        result.add(f"{slug}-{count}" if count else slug)
    return result


def without_code_blocks(text: str) -> str:
    return re.sub(r"^ *```.*?^ *```[^\n]*$", "", text, flags=re.MULTILINE | re.DOTALL)
