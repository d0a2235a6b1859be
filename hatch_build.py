"""
Build hook that makes the links of the README absolute in the package's metadata.

A package index shows the README without the other files, so that relative links would be broken. The base of the links
is ``Source`` in ``[project.urls]`` of pyproject.toml. Without ``Source`` the links stay relative.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from hatchling.metadata.plugin.interface import MetadataHookInterface

# A Markdown link or image with a relative target, but not an anchor of the same page.
_RELATIVE_LINK = re.compile(r"(?P<image>!?)(?P<text>\[[^\]]*\])\((?!https?://|#)(?P<target>[^)]+)\)")


class ReadmeHook(MetadataHookInterface):
    """Set ``readme`` from README.md."""

    PLUGIN_NAME = "custom"

    def update(self, metadata: dict[str, Any]) -> None:
        text = Path(self.root, "README.md").read_text(encoding="utf-8")
        source = metadata.get("urls", {}).get("Source")
        metadata["readme"] = {
            "content-type": "text/markdown",
            "text": text if source is None else with_absolute_links(text, source),
        }


def with_absolute_links(text: str, source: str) -> str:
    """Return Markdown with relative links below ``source``: pages in ``blob/main``, images in ``raw/main``."""

    def absolute(link: re.Match[str]) -> str:
        kind = "raw" if link["image"] else "blob"
        return f"{link['image']}{link['text']}({source.rstrip('/')}/{kind}/main/{link['target']})"

    return _RELATIVE_LINK.sub(absolute, text)
