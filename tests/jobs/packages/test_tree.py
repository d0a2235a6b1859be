"""What of a directory is packed, and what is refused."""

from __future__ import annotations

import os
import re
import socket
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from airflow_provider_rayjobs.exceptions import RayPackageError
from airflow_provider_rayjobs.jobs.packages.naming import digest_tree, name_archive, name_tree
from airflow_provider_rayjobs.jobs.packages.news import finish
from airflow_provider_rayjobs.jobs.packages.secret_names import PATTERN, SECRET_NAMES, looks_secret
from airflow_provider_rayjobs.jobs.packages.tree import Selection, Tree, select
from airflow_provider_rayjobs.jobs.packages.zip_file import write_zip


def names(tree: Tree) -> list[str]:
    return [entry.name for entry in tree.entries]


def make(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def chosen(root: Path, selection: Selection | None = None) -> Tree:
    return finish(select(root, selection or Selection()))


def named(tree: Tree) -> str:
    return name_tree(tree, finish(digest_tree(tree)))


def pack(tree: Tree, file: Any, *, top: str = "") -> None:
    finish(write_zip(tree, top, finish(digest_tree(tree)), file))


@pytest.fixture
def nobody() -> Iterator[None]:
    """Be a user for whom permissions count."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


def test_links_inside_are_followed(tmp_path: Path):
    """A link to a file or a directory inside is packed as what it leads to, by relative and absolute target."""
    make(tmp_path, {"a/b.py": "b"})
    (tmp_path / "file.py").symlink_to("a/b.py")
    (tmp_path / "directory").symlink_to(tmp_path / "a")

    assert names(chosen(tmp_path)) == ["a/b.py", "directory/b.py", "file.py"]


@pytest.mark.parametrize("target", ["/etc/hostname", "../outside", "../root-beside"])
def test_links_outside_are_refused(tmp_path: Path, target: str):
    """A link that leads out of the directory, to a file, a directory or a name that begins alike, is an error "
    "naming it."""
    root = make(tmp_path / "root", {"a.py": ""})
    make(tmp_path, {"outside/x": "", "root-beside": ""})
    (root / "link").symlink_to(target)

    with pytest.raises(ValueError, match=r"Symbolic link out of /.*/root: /.*/root/link leads to /") as error:
        chosen(root)
    assert "exclude the link" in str(error.value)

    assert names(chosen(root, Selection(excludes=["link"]))) == ["a.py"]


def test_a_circle_of_links_is_refused(tmp_path: Path):
    """A link to a directory that holds it has no end: an error that names the link."""
    make(tmp_path, {"a/b/c.py": ""})
    (tmp_path / "a" / "b" / "up").symlink_to("../..")

    with pytest.raises(
        ValueError, match=r"Loop of symbolic links: /.*/a/b/up leads to /.*, a directory that contains it"
    ):
        chosen(tmp_path)


def test_what_is_no_file_is_left_out_with_a_warning(tmp_path: Path):
    """Sockets, pipes, links to nothing and to themselves, and names that Ray drops are left out, each with a "
    "warning."""
    make(tmp_path, {"a.py": "", "b\\c": "", "d:rive": "", "deep/d:rive": ""})
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "nothing").symlink_to("nowhere")
    (tmp_path / "itself").symlink_to("itself")
    with socket.socket(socket.AF_UNIX) as server:
        here = os.open(tmp_path, os.O_RDONLY)
        try:
            server.bind(f"/proc/self/fd/{here}/socket")  # a socket's path has 107 characters at most
        finally:
            os.close(here)
        tree = chosen(tmp_path)

    assert names(tree) == ["a.py", "deep/d:rive"]
    assert len(tree.warnings) == 6
    assert {warning.split(" is left out")[0] for warning in tree.warnings} == {
        "pipe", "nothing", "itself", "socket", "b\\c", "d:rive",
    }  # fmt: skip


def test_secrets_are_packed_only_if_asked_for(tmp_path: Path):
    """Files that look like secrets, under a link's name too, are left out and told; all, or some, are packed if "
    "wanted."""
    make(tmp_path, {"main.py": "", ".env": "A=b", "keys/id_rsa": "", ".aws/credentials": "", "aws/credentials": "x"})
    (tmp_path / "settings").symlink_to(".env")
    (tmp_path / "kubeconfig").symlink_to("main.py")

    tree = chosen(tmp_path)
    assert names(tree) == ["aws/credentials", "main.py"]
    assert tree.secrets == (".aws/credentials", ".env", "keys/id_rsa", "kubeconfig", "settings")

    assert len(chosen(tmp_path, Selection(secrets=True)).entries) == 7
    some = chosen(tmp_path, Selection(secrets=["keys/"]))
    assert names(some) == ["aws/credentials", "keys/id_rsa", "main.py"]
    assert {entry.name: oct(entry.mode) for entry in some.entries}["keys/id_rsa"] == "0o600"


def test_secret_names_include_the_top_directory_of_a_module(tmp_path: Path):
    """A file of ``.aws`` that is packed as a module has the name ``.aws/credentials`` in the package."""
    make(tmp_path, {"credentials": "", "config": ""})

    assert chosen(tmp_path, Selection(top=".aws")).secrets == ("credentials",)
    assert chosen(tmp_path).secrets == ()


def test_links_that_multiply_are_refused(tmp_path: Path):
    """Directories with two links to the next one each would make thousands of copies: an error that names one."""
    for number in range(20):
        (tmp_path / f"{number:02}").mkdir()
        for name in ("a", "b"):
            (tmp_path / f"{number:02}" / name).symlink_to(f"../{number + 1:02}")
    make(tmp_path, {"20/x": ""})

    with pytest.raises(ValueError, match=r"Too many symbolic links: more than 100 lead to /.*/\d\d, as /.* does"):
        chosen(tmp_path)


def test_a_deep_tree_is_packed(tmp_path: Path):
    """A tree may be deeper than Python's calls."""
    deep = tmp_path.joinpath(*["d"] * 600)
    here = os.open(tmp_path, os.O_RDONLY)
    try:
        for _ in range(600):
            os.mkdir("d", dir_fd=here)
            below = os.open("d", os.O_RDONLY, dir_fd=here)
            os.close(here)
            here = below
    finally:
        os.close(here)

    [entry] = chosen(tmp_path).entries
    assert entry.name == "d/" * 600
    assert deep.is_dir()


def test_a_link_below_a_file_leads_to_nothing(tmp_path: Path):
    """A link whose target is below a file is one to nothing, an ignore file too."""
    make(tmp_path, {"file": ""})
    (tmp_path / "link").symlink_to("file/sub")
    (tmp_path / ".gitignore").symlink_to("file/sub")

    tree = chosen(tmp_path)

    assert names(tree) == ["file"]
    assert sorted(tree.warnings) == [
        f"{name} is left out: it is a broken symbolic link." for name in (".gitignore", "link")
    ]


def test_names_that_end_in_a_dot_stay_directories(tmp_path: Path):
    """An empty directory is packed as one whatever its name, and an empty module as its top directory."""
    (tmp_path / "cache.").mkdir()
    for root, top, expected in ((tmp_path, "", ["cache./"]), (tmp_path / "cache.", "cache.", ["cache./"])):
        with tempfile.TemporaryFile() as file:
            pack(chosen(root, Selection(top=top)), file)
            assert zipfile.ZipFile(file).namelist() == expected


def test_what_ray_drops_depends_on_the_top_directory(tmp_path: Path):
    """Ray looks at a file's whole name: below a module's directory ``a:b`` is none that it drops."""
    make(tmp_path, {"a:b": ""})
    assert names(chosen(tmp_path)) == []
    assert names(chosen(tmp_path, Selection(top="mod"))) == ["mod/a:b"]


@pytest.mark.parametrize(
    "name",
    [".env", "a/.env.production", "id_rsa", "x/id_ed25519", ".aws/credentials", "home/.aws/credentials",
     "new\nline/.aws/credentials", "service-account.json", "a/service-account-prod.json", ".cache/huggingface/token"],
)  # fmt: skip
def test_secret_names_match_the_end_of_a_path(name: str):
    """An entry matches a file's name in any directory, or the names of its directory and itself."""
    assert looks_secret(name)


@pytest.mark.parametrize(
    "name",
    [".env.example", "environment.py", "id_rsa.pub", "config.json", "credentials", "aws/credentials", ".env/a.py",
     "certifi/cacert.pem", "tls.key", "service-accounts/a.json", "token", ""],
)  # fmt: skip
def test_other_names_are_no_secrets(name: str):
    """Certificates and names that only resemble an entry are packed."""
    assert not looks_secret(name)


def test_documentation_lists_exactly_the_secret_names():
    """The table in docs/USAGE.md and the list in the code are the same."""
    text = (Path(__file__).parents[3] / "docs" / "USAGE.md").read_text()
    table = text[text.index("**Secrets.**") : text.index("`package_secrets=True`")]
    rows = [line.split("|")[1] for line in table.splitlines() if line.startswith("| `")]

    assert sorted(re.findall("`([^`]+)`", "".join(rows))) == sorted([*SECRET_NAMES, PATTERN])


def test_an_unreadable_file_is_an_error(nobody: None):
    """A file or directory that the worker's user may not read is named, whether it is found while naming or "
    "selecting."""
    with tempfile.TemporaryDirectory() as folder:
        root = make(Path(folder), {"a.py": "", "b/c.py": ""})
        (root / "a.py").chmod(0)
        with pytest.raises(RayPackageError, match=r"Could not read .*a\.py.*Permission denied.*readable for the user"):
            named(chosen(root))
        (root / "a.py").chmod(0o600)
        (root / "b").chmod(0)
        with pytest.raises(RayPackageError, match=r"Could not read '.*/b'"):
            chosen(root)
        assert names(chosen(root, Selection(excludes=["b"]))) == ["a.py"]
        (root / "b").chmod(0o700)


def test_names_that_are_not_utf_8_are_refused(tmp_path: Path):
    """A name that no package can hold is an error that shows its bytes; it can be excluded."""
    Path(os.fsdecode(os.fsencode(tmp_path) + b"/bad\xff.py")).touch()

    with pytest.raises(ValueError, match=r"File name is not UTF-8: .*bad\\xff\.py'"):
        chosen(tmp_path)

    assert names(chosen(tmp_path, Selection(excludes=["bad*"]))) == []


def test_a_directory_whose_name_is_not_utf_8_is_refused(tmp_path: Path):
    """An empty directory is named like a file; a link to nothing is left out with its name as the log can hold it."""
    bad = tmp_path / os.fsdecode(b"bad\xff")
    bad.symlink_to("nothing")
    assert chosen(tmp_path).warnings == ("bad\\xff is left out: it is a broken symbolic link.",)
    bad.unlink()
    bad.mkdir()
    with pytest.raises(ValueError, match=r"File name is not UTF-8: .*bad\\xff'"):
        chosen(tmp_path)


def test_a_pattern_that_is_none_is_named(tmp_path: Path):
    """Where Ray breaks with a regular expression's error, the file and the line are named."""
    make(tmp_path, {".gitignore": "a\n[z-a]\n"})

    with pytest.raises(ValueError, match=r"Invalid ignore pattern: '\[z-a\]' in /.*/\.gitignore"):
        chosen(tmp_path)


def test_a_directory_that_leaves_itself_out_is_told(tmp_path: Path):
    """With a pattern that matches the directory itself nothing is left, as for Ray, and a warning names the pattern."""
    make(tmp_path, {".gitignore": ".*\n", "a.py": ""})

    tree = chosen(tmp_path)

    assert tree.entries == ()
    assert f"All of {tmp_path} is left out" in tree.warnings[0]
    assert f"'.*' of {tmp_path}/.gitignore" in tree.warnings[0]


def test_the_name_depends_on_what_is_packed_alone(tmp_path: Path):
    """Another place, order, time, owner and umask give the same name; another name, content, mode or top another "
    "one."""
    files = {"a.py": "a", "b/c.py": "c", "b/d.py": ""}
    one = make(tmp_path / "one", files)
    two = make(tmp_path / "two", dict(reversed(files.items())))
    os.utime(two / "a.py", (0, 0))
    (two / "a.py").chmod(0o600)
    (two / "b").chmod(0o700)

    name = named(chosen(one))
    assert named(chosen(two)) == name == "_ray_pkg_" + name[9:49] + ".zip"

    others = [named(chosen(one, Selection(top="one")))]
    (two / "a.py").chmod(0o700)
    others.append(named(chosen(two)))
    (two / "a.py").write_text("A")
    others.append(named(chosen(two)))
    (two / "a.py").rename(two / "e.py")
    others.append(named(chosen(two)))
    (two / "empty").mkdir()
    others.append(named(chosen(two)))
    assert len({name, *others}) == 6


def test_the_same_tree_gives_the_same_bytes(tmp_path: Path):
    """A package's bytes are the same at any time; text is deflated, what does not shrink is stored."""
    make(tmp_path, {"text.py": "print(1)\n" * 50_000})
    (tmp_path / "noise").write_bytes(os.urandom(3_000_000))
    packed = []
    for at in (0, 10**9):
        os.utime(tmp_path / "noise", (at, at))
        with tempfile.TemporaryFile() as file:
            pack(chosen(tmp_path), file, top="top")
            file.seek(0)
            packed.append(file.read())
            with zipfile.ZipFile(file) as archive:
                kinds = {info.filename: info.compress_type for info in archive.infolist()}

    assert packed[0] == packed[1]
    assert kinds == {"top/noise": zipfile.ZIP_STORED, "top/text.py": zipfile.ZIP_DEFLATED}
    assert len(packed[0]) < 3_050_000


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda root: (root / "b.py").write_text("new"), id="written to"),
        pytest.param(lambda root: (root / "b.py").unlink(), id="gone"),
        pytest.param(lambda root: (root / "b.py").chmod(0o755), id="mode"),
        pytest.param(lambda root: (root / "b.py").replace(root / "c.py"), id="renamed"),
        pytest.param(lambda root: ((root / "b.py").unlink(), (root / "b.py").mkdir()), id="directory"),
    ],
)
def test_a_tree_that_changes_is_noticed(tmp_path: Path, change: Any):
    """Whatever changes between the naming and the end of the packing is an error that names it."""
    make(tmp_path, {"a.py": "a" * 100, "b.py": "b" * 100})
    tree = chosen(tmp_path)
    digests = finish(digest_tree(tree))

    change(tmp_path)

    with (
        tempfile.TemporaryFile() as file,
        pytest.raises(RayPackageError, match=r"File changed during packing: /.*/[bc]\.py .*Try again"),
    ):
        finish(write_zip(tree, "", digests, file))


def test_files_created_during_packing_are_ignored(tmp_path: Path):
    """An import that writes ``__pycache__`` during packing fails no submission; the package holds what was named."""
    make(tmp_path, {"a.py": "a"})
    tree = chosen(tmp_path)
    digests = finish(digest_tree(tree))

    make(tmp_path, {"__pycache__/a.cpython-313.pyc": "", "b.py": ""})

    with tempfile.TemporaryFile() as file:
        finish(write_zip(tree, "", digests, file))
        assert zipfile.ZipFile(file).namelist() == ["a.py"]


def test_a_file_that_changes_while_it_is_named_is_noticed(tmp_path: Path):
    """A file that was written to after the walk is not read as if nothing had happened."""
    make(tmp_path, {"a.py": "a"})
    tree = chosen(tmp_path)
    (tmp_path / "a.py").write_text("other")

    with pytest.raises(RayPackageError, match=r"File changed during packing: /.*/a\.py"):
        named(tree)


@pytest.mark.parametrize(
    ("name", "begins"),
    [
        ("pkg-1.0-py3-none-any.whl", "pkg-1.0-0_"),
        ("pkg-1.0-7b-cp311-cp311-linux_x86_64.whl", "pkg-1.0-7b_"),
        ("pkg-1!2.0+local-py3-none-any.whl", "pkg-1!2.0+local-0_"),
    ],
)
def test_wheels_are_told_apart_by_their_build_tag(name: str, begins: str):
    """A wheel's name stays that of its project, version and tags, and is another one for other contents."""
    from packaging.utils import parse_wheel_filename

    one = name_archive(name, b"one")
    two = name_archive(name, b"two")

    assert one != two
    assert one.startswith(begins)
    before, after = parse_wheel_filename(name), parse_wheel_filename(one)
    assert (before[0], before[1], before[3]) == (after[0], after[1], after[3])


def test_a_wheel_of_another_name_is_refused():
    """pip installs by the file's name: one that it would not understand is an error before anything is sent."""
    with pytest.raises(ValueError, match=r"Invalid wheel name: 'renamed\.whl'"):
        name_archive("renamed.whl", b"")
