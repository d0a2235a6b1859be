"""Compare our packages with Ray's own packaging, for generated trees."""

from __future__ import annotations

import os
import shutil
import tempfile
import warnings
import zipfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, reject, settings
from hypothesis import strategies as st

from airflow_provider_rayjobs.jobs.packages.digest import digest_tree
from airflow_provider_rayjobs.jobs.packages.ignores import IgnoreRules, default_excludes
from airflow_provider_rayjobs.jobs.packages.local_code import resolve_local_code
from airflow_provider_rayjobs.jobs.packages.tree import Selection, select
from airflow_provider_rayjobs.jobs.packages.zip_file import write_zip
from airflow_provider_rayjobs.jobs.progress import finish

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")  # of Ray's own regular expressions

NAMES = st.sampled_from([
    "a", "b", "a.log", "b.log", "build", "keep", "src", "x y", ".git", "venv", "__pycache__", ".hidden", "ünï", "日本",
    "a[b]", "!c", "#d", "UP.LOG", "cache.", "a.", "..c", "~t", "a:b", "b\\c", "n\nl",
])  # fmt: skip
PATTERNS = st.sampled_from([
    "*", "!*", ".*", "*.log", "!a.log", "/a", "/a/", "a/", "a/b", "a/*", "!a/b", "!a", "build", "build/", "build/*",
    "!build/keep", "**/b", "a/**", "a/**/b", "**", "*/", "[ab].log", "[!a]*", "[]a]", "ünï", "日本/", "?", "\\!c",
    "\\#d", "# comment", "", "  b  ", "src/**/*.log", "!src", "/", "//", "x y", "a\\[b\\]", "[", "*.LOG", "keep/b/",
    "./a", "a//b", "[a-c]", "**a", "a**b", "cache.", "a:b", "..",
])  # fmt: skip


@st.composite
def trees(draw: Any, depth: int = 3) -> dict[str, Any]:
    """A directory: names to files, directories and links; some with ignore files."""
    tree: dict[str, Any] = {}
    for name in draw(st.lists(NAMES, max_size=5, unique=True)):
        kind = draw(st.sampled_from(["file", "file", "script", "directory", "directory", "link"]))
        if kind == "directory" and depth:
            tree[name] = draw(trees(depth=depth - 1))
        elif kind == "link":
            tree[name] = ("link", draw(st.sampled_from(["a", "b", "src", "../a", "../b.log", "nowhere"])))
        else:
            tree[name] = ("file", kind == "script", draw(st.sampled_from(["", "text\n", "print(1)\n" * 500])))
    for name in draw(st.sets(st.sampled_from([".gitignore", ".rayignore"]))):
        lines = draw(st.lists(PATTERNS, max_size=3))
        tree[name] = ("file", False, "\n".join(lines) + draw(st.sampled_from(["", "\n"])))
    return tree


def build(tree: dict[str, Any], directory: Path, top: Path) -> None:
    directory.mkdir()
    for name, what in tree.items():
        path = directory / name
        if isinstance(what, dict):
            build(what, path, top)
        elif what[0] == "link":
            target = Path(os.path.normpath(directory / what[1]))
            # links out of the directory are errors here, but not in Ray: other tests cover them
            if target.is_relative_to(top):
                path.symlink_to(what[1])
        else:
            path.write_text(what[2])
            path.chmod(0o755 if what[1] else 0o644)


def contents_by_ray(path: Path, *, top: bool, excludes: list[str], gitignore: bool) -> dict[str, tuple[int, bytes]]:
    from ray._private.runtime_env.packaging import create_package

    with tempfile.TemporaryDirectory() as scratch:
        target = Path(scratch) / "package.zip"
        create_package(
            str(path), target, include_gitignore=gitignore, include_parent_dir=top, excludes=list(excludes)
        )  # fmt: skip
        return contents_of(target)


def contents_of(archive: Any) -> dict[str, tuple[int, bytes]]:
    """Return a package's contents: name to executable bit and bytes."""
    with zipfile.ZipFile(archive) as file:
        assert file.testzip() is None
        return {
            info.filename: (info.external_attr >> 16 & 0o100 if not info.is_dir() else 0, file.read(info))
            for info in file.infolist()
        }


def contents_by_us(path: Path, *, top: bool, excludes: list[str], gitignore: bool) -> dict[str, tuple[int, bytes]]:
    name = path.name if top else ""
    tree = finish(select(path, Selection(tuple(excludes), gitignore, top=name)))
    digests = finish(digest_tree(tree))
    with tempfile.TemporaryFile() as file:
        assert sum(write_zip(tree, "", digests, file)) == tree.size
        return contents_of(file)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(tree=trees(), excludes=st.lists(PATTERNS, max_size=2), top=st.booleans(), gitignore=st.booleans())
def test_package_has_the_same_files_as_rays(tree: dict[str, Any], excludes: list[str], top: bool, gitignore: bool):
    """For any tree and any ignore rules, our package has the same files, contents and executable bits as Ray's."""
    directory = Path(tempfile.mkdtemp())
    try:
        root = directory / "root"
        build(tree, root, root)
        arguments = {"top": top, "excludes": [*excludes, *default_excludes({})], "gitignore": gitignore}

        try:
            ours = contents_by_us(root, **arguments)
        except ValueError as error:
            if "Loop of symbolic links" not in str(error):
                raise
            reject()  # Ray follows a loop forty times
        # Ray's package also has "./" for an empty root, and names that its unpacking drops
        theirs = contents_by_ray(root, **arguments)
        expected = {name: it for name, it in theirs.items() if name != "./" and "\\" not in name and name[1:2] != ":"}
        assert ours == expected
    finally:
        shutil.rmtree(directory)


ALPHABET = st.text(alphabet="ab*?[]!\\/.-^#& ü", max_size=8)


@settings(max_examples=1500, deadline=None)
@given(lines=st.lists(ALPHABET, max_size=4), paths=st.lists(st.text(alphabet="ab/.[]!\\-#ü", min_size=1, max_size=6)))
def test_patterns_match_the_same_paths_as_rays(lines: list[str], paths: list[str]):
    """Any pattern leaves out the same paths as in Ray, or is an error where Ray fails."""
    from ray._private.thirdparty.pathspec import PathSpec

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        try:
            theirs = PathSpec.from_lines("gitwildmatch", lines)
        except Exception as error:  # noqa: BLE001  (any error of Ray)
            theirs = error
    try:
        ours = IgnoreRules(lines, "here")
    except ValueError:
        assert isinstance(theirs, Exception)
        return
    if not isinstance(theirs, Exception):
        for path in {os.path.normpath(path).lstrip("/") for path in paths} - {""}:
            assert (ours.match(path) is not None) == theirs.match_file(path, separators=()), path


def test_default_excludes_are_those_of_ray():
    """By default and with the environment variable, the same paths are left out of a working_dir as by Ray."""
    from ray._private import ray_constants

    variable = "RAY_OVERRIDE_RUNTIME_ENV_DEFAULT_EXCLUDES"
    before = os.environ.pop(variable, None)
    try:
        assert default_excludes({}) == ray_constants.get_runtime_env_default_excludes()
        for value in ("", ".git, build ,", "x"):
            os.environ[variable] = value
            assert default_excludes(os.environ) == ray_constants.get_runtime_env_default_excludes()
    finally:
        os.environ.pop(variable, None)
        if before is not None:
            os.environ[variable] = before


def test_environment_variables_change_what_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """``RAY_RUNTIME_ENV_IGNORE_GITIGNORE=1`` disables .gitignore; another variable replaces the default excludes."""
    (tmp_path / "code" / ".venv").mkdir(parents=True)
    (tmp_path / "code" / ".venv" / "python").touch()
    (tmp_path / "code" / ".gitignore").write_text("*.log\n")
    (tmp_path / "code" / "a.log").touch()

    def names(**environment: Any) -> set[str]:
        code = resolve_local_code(environment, folders=[tmp_path])
        return {entry.name for entry in code.packages[0].tree.entries}

    assert names(working_dir="code") == {".gitignore"}
    assert names(py_modules=["code"]) == {"code/.gitignore"}
    monkeypatch.setenv("RAY_RUNTIME_ENV_IGNORE_GITIGNORE", "1")
    assert names(working_dir="code") == {".gitignore", "a.log"}
    monkeypatch.setenv("RAY_OVERRIDE_RUNTIME_ENV_DEFAULT_EXCLUDES", "")
    assert names(working_dir="code") == {".gitignore", "a.log", ".venv/python"}
    assert names(py_modules=["code"]) == {"code/.gitignore", "code/a.log", "code/.venv/python"}


def test_module_differs_from_rays_by_the_default_excludes(tmp_path: Path):
    """Ray has default excludes for working_dir only: its package of a module also has __pycache__ and .git."""
    from ray._private.runtime_env.py_modules import upload_py_modules_if_needed

    module = tmp_path / "venv"  # a default exclude, which does not match the module's own directory
    for name in ("__init__.py", "a.log", "sub/b.py", "__pycache__/a.pyc", "sub/__pycache__/b.pyc", ".git/HEAD"):
        (module / name).parent.mkdir(parents=True, exist_ok=True)
        (module / name).write_text(name)
    runtime_env: dict[str, Any] = {"py_modules": [str(module)], "excludes": ["*.log"]}
    rays: list[str] = []

    upload_py_modules_if_needed(dict(runtime_env), True, upload_fn=lambda _, excludes: rays.extend(excludes))
    theirs = set(contents_by_ray(module, top=True, excludes=rays, gitignore=True))
    [package] = resolve_local_code(runtime_env).packages

    ours = {entry.name for entry in package.tree.entries}
    assert ours == {"venv/__init__.py", "venv/sub/b.py"}
    assert theirs - ours == {"venv/__pycache__/a.pyc", "venv/sub/__pycache__/b.pyc", "venv/.git/HEAD"}
    assert ours <= theirs
