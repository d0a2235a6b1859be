"""Select the files of a directory that are packed, and refuse some directories."""

from __future__ import annotations

import os
import socket
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from airflow_provider_rayjobs.exceptions import RayPackageError
from airflow_provider_rayjobs.jobs.packages.digest import digest_tree, name_archive, name_tree
from airflow_provider_rayjobs.jobs.packages.secret_names import is_secret_file
from airflow_provider_rayjobs.jobs.packages.tree import Selection, Tree, select
from airflow_provider_rayjobs.jobs.packages.zip_file import write_zip
from airflow_provider_rayjobs.jobs.progress import finish


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
def unprivileged_user() -> Iterator[None]:
    """Become a user without privileges: file permissions do not restrict root."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


def test_links_inside_the_directory_are_followed(tmp_path: Path):
    """Links to files and directories inside are packed as their targets."""
    make(tmp_path, {"a/b.py": "b"})
    (tmp_path / "file.py").symlink_to("a/b.py")
    (tmp_path / "directory").symlink_to(tmp_path / "a")

    assert names(chosen(tmp_path)) == ["a/b.py", "directory/b.py", "file.py"]


@pytest.mark.parametrize("target", ["/etc/hostname", "../outside", "../root-beside"])
def test_links_out_of_the_directory_are_errors(tmp_path: Path, target: str):
    """A link out of the directory is an error, also if the target's path begins like the directory's."""
    root = make(tmp_path / "root", {"a.py": ""})
    make(tmp_path, {"outside/x": "", "root-beside": ""})
    (root / "link").symlink_to(target)

    with pytest.raises(ValueError, match=r"Symbolic link out of /.*/root: /.*/root/link leads to /") as error:
        chosen(root)
    assert "exclude the link" in str(error.value)

    assert names(chosen(root, Selection(excludes=["link"]))) == ["a.py"]


def test_loop_of_links_is_an_error(tmp_path: Path):
    """A link to a directory that contains it is an error."""
    make(tmp_path, {"a/b/c.py": ""})
    (tmp_path / "a" / "b" / "up").symlink_to("../..")

    with pytest.raises(
        ValueError, match=r"Loop of symbolic links: /.*/a/b/up leads to /.*, a directory that contains it"
    ):
        chosen(tmp_path)


def test_special_files_are_left_out_with_a_warning(tmp_path: Path):
    """Sockets, pipes, broken links and names that Ray drops are left out with a warning."""
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


def test_secrets_are_left_out_unless_wanted(tmp_path: Path):
    """Files with names of secrets, and links to them, are left out; all or some are packed on request."""
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


def test_secrets_behind_linked_directories_are_left_out(tmp_path: Path):
    """A link to a directory gives its files other names in the package, but they hold the same secrets."""
    make(tmp_path, {"main.py": "", ".aws/credentials": "", ".aws/region/names": ""})
    (tmp_path / "aws").symlink_to(".aws")
    (tmp_path / "linked").symlink_to("aws")

    tree = chosen(tmp_path)
    assert names(tree) == [".aws/region/names", "aws/region/names", "linked/region/names", "main.py"]
    assert tree.secrets == (".aws/credentials", "aws/credentials", "linked/credentials")


def test_secret_names_include_the_top_directory_of_a_module(tmp_path: Path):
    """``credentials`` in a module ``.aws`` has the name ``.aws/credentials`` in the package."""
    make(tmp_path, {"credentials": "", "config": ""})

    assert chosen(tmp_path, Selection(top=".aws")).secrets == ("credentials",)
    assert chosen(tmp_path).secrets == ()


def test_links_that_multiply_directories_are_errors(tmp_path: Path):
    """Two links in each of twenty directories would make a million copies of the last one."""
    for number in range(20):
        (tmp_path / f"{number:02}").mkdir()
        for name in ("a", "b"):
            (tmp_path / f"{number:02}" / name).symlink_to(f"../{number + 1:02}")
    make(tmp_path, {"20/x": ""})

    with pytest.raises(ValueError, match=r"Too many symbolic links: more than 100 lead to /.*/\d\d, as /.* does"):
        chosen(tmp_path)


def test_tree_deeper_than_pythons_stack_is_packed(tmp_path: Path):
    """A tree of 600 levels is packed."""
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


def test_link_to_a_path_below_a_file_is_broken(tmp_path: Path):
    """A link with a target below a regular file is a broken link, also as an ignore file."""
    make(tmp_path, {"file": ""})
    (tmp_path / "link").symlink_to("file/sub")
    (tmp_path / ".gitignore").symlink_to("file/sub")

    tree = chosen(tmp_path)

    assert names(tree) == ["file"]
    assert sorted(tree.warnings) == [
        f"{name} is left out: it is a broken symbolic link." for name in (".gitignore", "link")
    ]


def test_empty_directory_with_a_final_dot_is_packed(tmp_path: Path):
    """An empty directory with any name is packed, and an empty module as its top directory."""
    (tmp_path / "cache.").mkdir()
    for root, top, expected in ((tmp_path, "", ["cache./"]), (tmp_path / "cache.", "cache.", ["cache./"])):
        with tempfile.TemporaryFile() as file:
            pack(chosen(root, Selection(top=top)), file)
            assert zipfile.ZipFile(file).namelist() == expected


def test_names_that_ray_drops_depend_on_the_top_directory(tmp_path: Path):
    """Ray checks the full name: ``a:b`` is dropped at the root, but not below a module's directory."""
    make(tmp_path, {"a:b": ""})
    assert names(chosen(tmp_path)) == []
    assert names(chosen(tmp_path, Selection(top="mod"))) == ["mod/a:b"]


@pytest.mark.parametrize(
    "name",
    [".env", "a/.env.production", "id_rsa", "x/id_ed25519", ".aws/credentials", "home/.aws/credentials",
     "new\nline/.aws/credentials", "service-account.json", "a/service-account-prod.json", ".cache/huggingface/token"],
)  # fmt: skip
def test_secret_names_match_the_end_of_a_path(name: str):
    """An entry matches a file name in any directory, or a directory and a file name."""
    assert is_secret_file(name)


@pytest.mark.parametrize(
    "name",
    [".env.example", "environment.py", "id_rsa.pub", "config.json", "credentials", "aws/credentials", ".env/a.py",
     "certifi/cacert.pem", "tls.key", "service-accounts/a.json", "token", ""],
)  # fmt: skip
def test_similar_names_are_not_secrets(name: str):
    """Certificates and names that resemble an entry are packed."""
    assert not is_secret_file(name)


def test_unreadable_file_or_directory_is_an_error(unprivileged_user: None):
    """A file or directory without read permission is an error that shows its path."""
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


def test_file_name_that_is_not_utf_8_is_an_error(tmp_path: Path):
    """The error shows the bytes of the name; the file can be excluded."""
    Path(os.fsdecode(os.fsencode(tmp_path) + b"/bad\xff.py")).touch()

    with pytest.raises(ValueError, match=r"File name is not UTF-8: .*bad\\xff\.py'"):
        chosen(tmp_path)

    assert names(chosen(tmp_path, Selection(excludes=["bad*"]))) == []


def test_directory_name_that_is_not_utf_8_is_an_error(tmp_path: Path):
    """An empty directory needs a UTF-8 name; a broken link is left out with an escaped name."""
    bad = tmp_path / os.fsdecode(b"bad\xff")
    bad.symlink_to("nothing")
    assert chosen(tmp_path).warnings == ("bad\\xff is left out: it is a broken symbolic link.",)
    bad.unlink()
    bad.mkdir()
    with pytest.raises(ValueError, match=r"File name is not UTF-8: .*bad\\xff'"):
        chosen(tmp_path)


def test_invalid_ignore_pattern_is_an_error(tmp_path: Path):
    """The error shows the pattern and its file; Ray fails with the regular expression's error."""
    make(tmp_path, {".gitignore": "a\n[z-a]\n"})

    with pytest.raises(ValueError, match=r"Invalid ignore pattern: '\[z-a\]' in /.*/\.gitignore"):
        chosen(tmp_path)


def test_ignore_file_that_matches_its_own_directory_warns(tmp_path: Path):
    """A pattern that matches the directory itself leaves out everything, as in Ray, with a warning."""
    make(tmp_path, {".gitignore": ".*\n", "a.py": ""})

    tree = chosen(tmp_path)

    assert tree.entries == ()
    assert f"All of {tmp_path} is left out" in tree.warnings[0]
    assert f"'.*' of {tmp_path}/.gitignore" in tree.warnings[0]


def test_package_name_depends_on_contents_only(tmp_path: Path):
    """Path, order, times and umask do not change the name; names, contents, modes and the top directory do."""
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


def test_same_tree_makes_the_same_zip_file(tmp_path: Path):
    """The bytes do not depend on times; text is deflated, incompressible files are stored."""
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
def test_file_that_changes_during_packing_is_an_error(tmp_path: Path, change: Any):
    """Each change of a packed file between naming and the end of packing is an error that shows it."""
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
    """An import that writes ``__pycache__`` during packing does not fail the submission."""
    make(tmp_path, {"a.py": "a"})
    tree = chosen(tmp_path)
    digests = finish(digest_tree(tree))

    make(tmp_path, {"__pycache__/a.cpython-313.pyc": "", "b.py": ""})

    with tempfile.TemporaryFile() as file:
        finish(write_zip(tree, "", digests, file))
        assert zipfile.ZipFile(file).namelist() == ["a.py"]


def test_file_that_changes_during_naming_is_an_error(tmp_path: Path):
    """A file written to after the directory was listed is an error."""
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
def test_wheels_with_other_contents_have_other_build_tags(name: str, begins: str):
    """The digest is in the build tag; project, version and tags are unchanged."""
    from packaging.utils import parse_wheel_filename

    one = name_archive(name, b"one")
    two = name_archive(name, b"two")

    assert one != two
    assert one.startswith(begins)
    before, after = parse_wheel_filename(name), parse_wheel_filename(one)
    assert (before[0], before[1], before[3]) == (after[0], after[1], after[3])


def test_invalid_wheel_name_is_an_error():
    """A wheel name that pip does not accept is an error before anything is sent."""
    with pytest.raises(ValueError, match=r"Invalid wheel name: 'renamed\.whl'"):
        name_archive("renamed.whl", b"")
