"""
Measure how easy the pages of the documentation are to read.

``python -m docs.reading_ease`` prints, for each page, how long its sentences are and how many code blocks it has.
"""

from __future__ import annotations

import re
import statistics
from dataclasses import dataclass
from pathlib import Path

_FENCED = re.compile(r"^( *)(`{3,}|:{3,}).*?^\1\2`*:* *$", re.MULTILINE | re.DOTALL)
_COMMENT = re.compile(r"<!--.*?-->", re.DOTALL)
# Tables, headings, pictures and labels are no prose. Neither is a field such as ":param x:".
_NO_PROSE = re.compile(r"^ *(\||#|!\[|\(\S+\)=|:\w)")
_LIST_MARK = re.compile(r"^ *([-*] |\d+\. |> |: )")
# A link counts with its text, inline code as one word.
_LINK = re.compile(r"\[([^\]]*)\](\([^)]*\)|\[[^\]]*\])")
_ROLE = re.compile(r"\{[\w:-]+\}(?=`)")
_INLINE_CODE = re.compile(r"`+[^`]+`+")
_WORD = re.compile(r"[\w'./%+-]*\w[\w'./%+-]*")
# The end of a sentence within a line: not after "e.g." and the like, and not within a number.
_END_INSIDE = re.compile(r"(?<!e\.g)(?<!i\.e)(?<!etc)(?<!vs)[.!?][)\"*_]* +(?=[A-Z`*\[(])")


@dataclass(frozen=True)
class Ease:
    """The lengths of a page's sentences in words, its number of code blocks, and lines of more than one sentence."""

    lengths: list[int]
    code_blocks: int
    crowded: list[str]

    @property
    def median(self) -> float:
        return statistics.median(self.lengths) if self.lengths else 0

    @property
    def p90(self) -> int:
        return sorted(self.lengths)[int(0.9 * (len(self.lengths) - 1))] if self.lengths else 0


def measure(text: str) -> Ease:
    """Measure a page in Markdown."""
    blocks = [match[0] for match in _FENCED.finditer(text)]
    code_blocks = sum(1 for block in blocks if not re.match(r" *([`:]{3,})\{(?!literalinclude|code-block)", block))
    prose = _COMMENT.sub("", _FENCED.sub("\n", text))
    lengths, crowded = [], []
    for line in prose.splitlines():
        if _NO_PROSE.match(line):
            continue
        plain = _INLINE_CODE.sub("Code", _ROLE.sub("", _LINK.sub(r"\1", _LIST_MARK.sub("", line)))).strip()
        sentences = [sentence for sentence in _END_INSIDE.split(plain) if _WORD.search(sentence)]
        lengths += [len(_WORD.findall(sentence)) for sentence in sentences]
        if len(sentences) > 1:
            crowded.append(line.strip())
    return Ease(lengths, code_blocks, crowded)


def main() -> None:
    root = Path(__file__).parents[1]
    pages = [root / "README.md", root / "CONTRIBUTING.md", *sorted((root / "docs").rglob("*.md"))]
    print(f"{'page':42} sentences  words: p50  p90  longest  code blocks")
    for page in pages:
        ease = measure(page.read_text(encoding="utf-8"))
        if ease.lengths:
            name = str(page.relative_to(root))
            print(
                f"{name:42} {len(ease.lengths):9} {ease.median:11.0f} {ease.p90:4} {max(ease.lengths):8}"
                f" {ease.code_blocks:12}"
            )


if __name__ == "__main__":
    main()
