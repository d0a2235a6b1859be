"""What maintainers need beside the code: workflow, templates, hooks, and a checklist whose commands exist."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
GITHUB = ROOT / ".github"
TARGETS = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))


@pytest.mark.parametrize(
    ("schema", "files"),
    [
        ("vendor.github-workflows", "workflows/*.yml"),
        ("vendor.github-issue-forms", "ISSUE_TEMPLATE/*_*.yml"),
        ("vendor.github-issue-config", "ISSUE_TEMPLATE/config.yml"),
    ],
)
def test_forge_accepts_files(schema: str, files: str):
    """Workflows and issue forms follow the schemas of the forge."""
    checked = subprocess.run(
        [sys.executable, "-m", "check_jsonschema", "--builtin-schema", schema, *GITHUB.glob(files)],
        check=False, capture_output=True, text=True, timeout=60,
    )  # fmt: skip

    assert checked.returncode == 0, checked.stdout + checked.stderr


def test_pre_commit_accepts_its_configuration():
    """pre-commit can read its configuration, and runs the tools of ``make lint``."""
    configuration = ROOT / ".pre-commit-config.yaml"
    subprocess.run(
        [sys.executable, "-m", "pre_commit", "validate-config", configuration], check=True, cwd=ROOT, timeout=60
    )
    [repository] = yaml.safe_load(configuration.read_text())["repos"]
    lint = re.search(r"^lint:.*\n((?:\t.*\n)+)", (ROOT / "Makefile").read_text(), re.MULTILINE)

    assert lint is not None
    assert [hook["entry"].split()[0].removeprefix(".venv/bin/") for hook in repository["hooks"]] == re.findall(
        r"\$\(BIN\)/(\w+)", lint[1]
    )


@pytest.mark.parametrize(
    "page",
    ["RELEASING.md", "CONTRIBUTING.md", "README.md", ".github/workflows/ci.yml", ".github/pull_request_template.md"],
)
def test_commands_exist(page: str):
    """Every ``make`` target and every script that a page names exists."""
    text = (ROOT / page).read_text(encoding="utf-8")

    assert set(re.findall(r"\bmake ([a-z][\w-]*)(?=[ `\n,.;:])", text)) - TARGETS == set()
    assert [
        path for path in re.findall(r"(?:^|[ `])(\.ci/\w+)", text, re.MULTILINE) if not (ROOT / path).exists()
    ] == []
