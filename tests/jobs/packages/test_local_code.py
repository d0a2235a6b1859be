"""Local code in a runtime environment: searching, validation and replacement."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import hypothesis
import pytest
import yaml
from hypothesis import example, settings
from hypothesis import strategies as st

from airflow_provider_rayjobs.exceptions import RayPackageError
from airflow_provider_rayjobs.jobs.packages.local_code import (
    LIMIT,
    GeneratedModule,
    Package,
    find_packages,
    resolve_local_code,
    too_large,
)
from airflow_provider_rayjobs.jobs.packages.paths import has_local_code
from airflow_provider_rayjobs.jobs.packages.requirements import logical_lines
from airflow_provider_rayjobs.jobs.progress import finish


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with a package, a module and other files."""
    (tmp_path / "code" / "sub").mkdir(parents=True)
    (tmp_path / "code" / "__init__.py").touch()
    (tmp_path / "code" / "sub" / "a.py").write_text("a")
    (tmp_path / "module.py").write_text("m")
    (tmp_path / "notes.txt").touch()
    (tmp_path / "broken.zip").write_text("no zip")
    return tmp_path


def entries(package: Package) -> list[str]:
    return [entry.name for entry in package.tree.entries]


def test_paths_are_replaced_by_package_uris(folder: Path):
    """Directories, modules and Path objects become URIs; URIs and all other values are unchanged."""
    given = {
        "working_dir": "code",
        "py_modules": ["s3://b/m.zip", folder / "code", "./module.py"],
        "env_vars": {"A": "b"},
        "pip": ["torch"],
    }

    code = resolve_local_code(given, folders=[folder])

    assert set(code.runtime_env) == set(given)
    assert [package.owner for package in code.packages] == ["working_dir", "py_modules[1]", "py_modules[2]"]
    uris = [f"gcs://{package.name}" for package in code.packages]
    assert len(set(uris)) == 3
    assert code.runtime_env["working_dir"] == uris[0]
    assert code.runtime_env["py_modules"] == ["s3://b/m.zip", *uris[1:]]
    assert (code.runtime_env["pip"], code.runtime_env["env_vars"]) == (["torch"], {"A": "b"})
    assert [entries(package) for package in code.packages] == [
        ["__init__.py", "sub/a.py"], ["code/__init__.py", "code/sub/a.py"], ["module.py"],
    ]  # fmt: skip
    assert given["working_dir"] == "code"


def test_first_folder_with_a_relative_path_is_used(
    folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path_factory: Any
):
    """The folders are searched in order; ``~`` and environment variables are expanded."""
    other = tmp_path_factory.mktemp("other")
    (other / "module.py").write_text("another")
    monkeypatch.setenv("HERE", str(folder))
    monkeypatch.setenv("HOME", str(folder))

    def source(path: str, *folders: Path) -> str:
        return str(resolve_local_code({"py_modules": [path]}, folders=folders).packages[0].source)

    assert source("module.py", other, folder) == f"{other}/module.py"
    assert source("code", other, folder) == f"{folder}/code"
    for path in ("$HERE/code", "${HERE}/code", "~/code", "code/../code/", str(folder / "code")):
        assert source(path, folder) == f"{folder}/code"


def test_module_given_as_dot_has_its_directory_name(folder: Path):
    """``.`` and ``..`` become modules with the names of these directories."""
    [package] = resolve_local_code({"py_modules": ["."]}, folders=[folder / "code"]).packages
    assert entries(package) == ["code/__init__.py", "code/sub/a.py"]
    [package] = resolve_local_code({"py_modules": [".."]}, folders=[folder / "code" / "sub"]).packages
    assert entries(package) == ["code/__init__.py", "code/sub/a.py"]


@pytest.mark.parametrize("environment", [{"working_dir": "code"}, {"py_modules": ["code"]}])
def test_bytecode_cache_does_not_change_the_name_of_a_package(folder: Path, environment: dict[str, Any]):
    """A directory has the same package before and after an import has written ``__pycache__``."""
    [before] = resolve_local_code(environment, folders=[folder]).packages
    subprocess.run([sys.executable, "-m", "compileall", "-q", "code"], cwd=folder, check=True)
    assert len(list(folder.rglob("*.pyc"))) == 2
    [after] = resolve_local_code(environment, folders=[folder]).packages

    assert after.name == before.name


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            {"working_dir": "nowhere"},
            r"runtime_env\['working_dir'\]: file not found: 'nowhere'\. Searched: /.*",
        ),
        ({"working_dir": "$NOT_SET/x"}, r"Unset environment variables: NOT_SET\."),
        ({"py_modules": ["nowhere"]}, r"runtime_env\['py_modules\[0\]'\]: file not found: 'nowhere'"),
        ({"working_dir": "x" * 5000}, "file not found"),
        ({"working_dir": "a\0b"}, "file not found"),
        (
            {"working_dir": "module.py"},
            r"Not a directory or an archive .*: runtime_env\['working_dir'\] is /.*/module\.py",
        ),
        (
            {"py_modules": ["notes.txt"]},
            r"Not a directory, a \.py file, a wheel or an archive .*: .* is /.*/notes\.txt",
        ),
        ({"working_dir": "broken.zip"}, r"Not a zip archive: /.*/broken\.zip"),
        ({"working_dir": "code", "excludes": "*.log"}, r"runtime_env\['excludes'\] must be a list of patterns"),
        ({"pip": "nowhere.txt"}, r"runtime_env\['pip'\]: file not found: 'nowhere\.txt'"),
        ({"conda": "env.yaml"}, r"runtime_env\['conda'\]: file not found: 'env\.yaml'"),
        ({"pip": ["-e ./code"]}, r"Path of this machine.*\$\{RAY_RUNTIME_ENV_CREATE_WORKING_DIR\}/code"),
        ({"uv": {"packages": "code"}}, "Not a file: /.*/code is a directory"),
        ({"pip": ["a", 3]}, r"runtime_env\['pip'\] must be a list of text, but item 1 is of type int"),
        (
            {"conda": {"dependencies": [{"pip": ["a", 3]}]}},
            r"runtime_env\['conda'\] must be a list of text, but item 1 ",
        ),
        ({"pip": ["--no-index -r notes.txt"]}, "Included file with other options: .*--no-index -r notes.txt"),
        ({"pip": ["-r file:///nowhere/r.txt"]}, "Searched: /nowhere/r.txt"),
    ],
)
def test_invalid_local_code_is_an_error_with_the_field(folder: Path, given: dict[str, Any], message: str):
    """A missing path or a wrong type is an error that shows the field and every location searched."""
    with pytest.raises(ValueError, match=message):
        resolve_local_code(given, folders=[folder, folder / "code"])


@pytest.mark.parametrize("name", ["a\\b", "a:b"])
def test_module_name_that_ray_drops_is_an_error(folder: Path, name: str):
    """A module with a name that Ray does not unpack is an error."""
    (folder / f"{name}.py").touch()
    (folder / name).mkdir()
    for module in (name, f"{name}.py"):
        with pytest.raises(ValueError, match="Ray does not unpack names with a backslash"):
            resolve_local_code({"py_modules": [module]}, folders=[folder])


def test_module_name_that_is_not_utf_8_is_an_error(folder: Path):
    """A module's directory needs a name that a package can hold."""
    bad = os.fsdecode(b"bad\xff")
    (folder / bad).mkdir()
    with pytest.raises(ValueError, match=r"File name is not UTF-8: .*bad\\xff'"):
        resolve_local_code({"py_modules": [bad]}, folders=[folder])


def test_environment_variable_may_contain_a_uri(folder: Path, monkeypatch: pytest.MonkeyPatch):
    """Environment variables are expanded before paths and URIs are distinguished."""
    monkeypatch.setenv("CODE", "s3://bucket/code.zip")
    given = {"working_dir": "$CODE", "py_modules": ["${CODE}", "code"]}

    code = resolve_local_code(given, folders=[folder])

    assert code.runtime_env["working_dir"] == code.runtime_env["py_modules"][0] == "s3://bucket/code.zip"
    assert [package.owner for package in code.packages] == ["py_modules[1]"]


def test_tilde_of_unknown_user_is_part_of_the_name(folder: Path):
    """``~`` before an unknown user name is not expanded."""
    (folder / "~nosuchuser").mkdir()
    [package] = resolve_local_code({"working_dir": "~nosuchuser"}, folders=[folder]).packages
    assert package.source == folder / "~nosuchuser"
    with pytest.raises(ValueError, match="file not found"):
        resolve_local_code({"working_dir": "~nosuchuser/x"}, folders=[folder])


def test_package_secrets_as_text_is_an_error(folder: Path):
    """A text would be read as a list of one-character patterns, with ``*`` among them."""
    with pytest.raises(ValueError, match="package_secrets must be True, False or a list of patterns"):
        resolve_local_code({"working_dir": "code"}, folders=[folder], secrets="*.pem")


class Anywhere:
    """A storage that only returns URIs."""

    def uri_of(self, name: str) -> str:
        return f"s3://b/{name}"


def test_zip_headers_count_for_the_destination(folder: Path):
    """A tree just below the limit goes to the storage, as its zip file may exceed the limit."""
    with (folder / "code" / "data").open("wb") as file:
        file.truncate(LIMIT - 1000)

    def uri(**arguments: Any) -> str:
        return resolve_local_code({"working_dir": "code"}, folders=[folder], **arguments).packages[0].uri

    assert uri(storage=Anywhere()).startswith("s3://b/")
    assert uri().startswith("gcs://")
    (folder / "code" / "data").write_bytes(b"x" * 1000)
    assert uri(storage=Anywhere()).startswith("gcs://")


def test_search_of_large_tar_file_can_be_interrupted(folder: Path):
    """The files in a tar archive for a storage are searched in small steps, also a single large one."""
    with tarfile.open(folder / "a.tgz", "w:gz", compresslevel=0) as archive, (folder / "notes.txt").open("r+b") as file:
        file.truncate(LIMIT)
        archive.add(folder / "notes.txt", "top/notes.txt")
    work = find_packages({"working_dir": "a.tgz"}, folders=[folder], storage=Anywhere())
    sizes: list[int] = []

    with pytest.raises(ValueError, match="Archive with a single top directory: .* has only 'top'"):
        sizes.extend(work)

    assert sizes.count(0) >= 100


@pytest.mark.parametrize("name", ["a.tgz", "a.zip"])
def test_archive_that_is_deleted_meanwhile_is_an_error(folder: Path, name: str):
    """An archive that is deleted after it was read cannot be checked."""
    with tarfile.open(folder / "a.tgz", "w:gz") as tar, zipfile.ZipFile(folder / "a.zip", "w") as archive:
        tar.add(folder / "notes.txt", "notes.txt")
        archive.write(folder / "notes.txt", "notes.txt")
    work = find_packages({"working_dir": name}, folders=[folder])
    next(work)
    (folder / name).unlink()

    with pytest.raises(RayPackageError, match=rf"Could not read '/.*/{name}': No such file or directory\."):
        finish(work)


@pytest.mark.parametrize("code", [errno.ESTALE, errno.EIO, errno.EACCES])
@pytest.mark.parametrize(
    ("runtime_env", "failing"),
    [
        ({"working_dir": "code"}, "code"),
        ({"working_dir": "code"}, "code/.rayignore"),
        ({"py_modules": ["code"]}, "code"),
        ({"pip": "notes.txt"}, "notes.txt"),
    ],
    ids=str,
)
def test_fault_of_a_disk_is_no_missing_file(
    folder: Path, monkeypatch: pytest.MonkeyPatch, code: int, runtime_env: dict[str, Any], failing: str
):
    """A path whose disk fails is an error that a retry may fix. It is neither missing nor taken from elsewhere."""
    (folder / "other" / "code").mkdir(parents=True)
    (folder / "other" / "notes.txt").touch()
    real_stat = os.stat

    def failing_stat(path: Any, *arguments: Any, **options: Any) -> os.stat_result:
        if str(path) == str(folder / failing):
            raise OSError(code, os.strerror(code), str(path))
        return real_stat(path, *arguments, **options)

    monkeypatch.setattr(os, "stat", failing_stat)
    with pytest.raises(RayPackageError, match=rf"Could not read '{folder / failing}': {os.strerror(code)}\."):
        resolve_local_code(runtime_env, folders=[folder, folder / "other"])


def test_missing_path_shows_every_location_searched(folder: Path):
    """The error of a missing path lists all searched locations."""
    with pytest.raises(ValueError, match="Searched: ") as error:
        resolve_local_code({"working_dir": "nowhere"}, folders=[folder, folder / "code"])
    assert f"{folder}/nowhere, {folder}/code/nowhere." in str(error.value)


def test_too_large_package_shows_its_largest_files(folder: Path):
    """The error lists the ten largest files and how to exclude them."""
    for number in range(12):
        with (folder / "code" / f"data{number:02}.bin").open("wb") as file:
            file.truncate(5_000_000 * (number + 1))
    [package] = resolve_local_code({"working_dir": "code"}, folders=[folder]).packages

    lines = too_large(package).splitlines()

    assert lines[0].startswith("Package too large: Ray's HTTP server accepts less than 100 MiB.")
    assert [line.split()[-1] for line in lines[1:11]] == [f"data{number:02}.bin" for number in range(11, 1, -1)]
    assert "runtime_env={'excludes': ['/data11.bin', ...]}" in lines[-1]
    assert "package_storage" in lines[-1]


def test_too_large_function_advises_to_store_its_arguments():
    """The error of a module that is not on the disk names no files that could be excluded."""
    module = GeneratedModule("function", "train", {"ray_job_function/call.json": b"x" * 3_000_000})
    [package] = resolve_local_code({}, generated=module).packages

    assert too_large(package) == (
        "Package too large: Ray's HTTP server accepts less than 100 MiB. The function train with its arguments has 1 "
        "files, 2.9 MiB. The package was not uploaded. Store large arguments where the job can read them, and pass "
        "their path, or set package_storage."
    )


def test_too_large_package_shows_directories_of_small_files(folder: Path):
    """A directory of many small files is listed before single files."""
    (folder / "code" / "cache").mkdir()
    for number in range(100):
        (folder / "code" / "cache" / f"{number}").write_bytes(b"x" * 10_000)
    [package] = resolve_local_code({"working_dir": "code"}, folders=[folder]).packages

    lines = too_large(package).splitlines()

    assert lines[1].split()[-1] == "cache/"
    assert "'excludes': ['/cache/', ...]" in lines[-1]


def test_too_large_module_shows_names_as_excludes_match_them(folder: Path):
    """Patterns in ``excludes`` are relative to the module's directory, and so are the listed names."""
    (folder / "code" / "code").mkdir()
    (folder / "code" / "code" / "data.bin").write_bytes(b"x" * 1000)
    arguments = {"working_dir": "code", "py_modules": ["code"]}
    shown = [too_large(package) for package in resolve_local_code(arguments, folders=[folder]).packages]

    for text in shown:
        assert text.splitlines()[1].endswith(" 1.0 KiB  code/data.bin")
        assert "'excludes': ['/code/data.bin', ...]" in text


def test_too_large_archive_is_an_error_before_it_is_read(folder: Path):
    """An archive of 100 MiB is an error because of its size."""
    with zipfile.ZipFile(folder / "large.zip", "w") as archive, archive.open("noise", "w") as member:
        for _ in range(101):
            member.write(os.urandom(2**20))
    assert (folder / "large.zip").stat().st_size > LIMIT

    with pytest.raises(ValueError, match="Package too large: Ray's HTTP server accepts less than 100 MiB"):
        resolve_local_code({"working_dir": "large.zip"}, folders=[folder])


@pytest.mark.parametrize("environment", [{"working_dir": "code"}, {"py_modules": ["code"]}])
def test_tree_over_500_mib_is_an_error_before_files_are_read(folder: Path, environment: dict[str, Any]):
    """Files of more than 500 MiB in total are an error with the ten largest entries, and no file is read."""
    for number in range(12):
        with (folder / "code" / f"data{number:02}.bin").open("wb") as file:
            file.truncate((number + 1) * 2**20)
    rest = 500 * 2**20 - sum(path.stat().st_size for path in (folder / "code").rglob("*.*"))

    def set_size(size: int) -> None:
        with (folder / "code" / "model.bin").open("wb") as file:
            file.truncate(size)

    def first_bytes(**options: Any) -> int:
        return next(filter(None, find_packages(environment, folders=[folder], **options)))

    set_size(rest + 1)
    read: list[int] = []
    with pytest.raises(ValueError, match="Package too large: Ray's limit for local code is 500 MiB") as error:
        read.extend(find_packages(environment, folders=[folder]))
    assert sum(read) == 0
    facts, *entries, remedy = str(error.value).splitlines()
    assert "(15 files, 500.0 MiB)." in facts
    assert [line.split()[-1] for line in entries] == [
        "model.bin",
        *(f"data{number:02}.bin" for number in range(11, 2, -1)),
    ]
    assert "'excludes': ['/model.bin', ...]" in remedy
    assert "set package_storage" in remedy

    assert first_bytes(storage=Anywhere()) > 0
    set_size(rest)
    assert first_bytes() > 0


def test_naming_yields_each_byte_that_it_reads(folder: Path):
    """Naming counts every byte read, of archives too."""
    (folder / "code" / "data").write_bytes(bytes(2_000_000))
    (folder / "code" / "more").write_bytes(bytes(1_000_000))
    with zipfile.ZipFile(folder / "a.zip", "w") as archive:
        archive.writestr("a", bytes(1_000_000))
    read = list(find_packages({"working_dir": "code", "py_modules": ["a.zip"]}, folders=[folder]))
    assert sum(read) == 3_000_001 + (folder / "a.zip").stat().st_size


def test_requirements_files_are_replaced_by_their_lines(folder: Path):
    """Lines are joined, comments removed and files included; URLs and paths on the node are unchanged."""
    (folder / "sub").mkdir()
    (folder / "requirements.txt").write_text(
        "# what we need\n\n-r sub/more.txt\n--requirement=sub/again.txt\ntorch==2.0 \\\n  --hash=sha256:00  # pinned\n"
        "name @ https://example.com/a.zip#egg=name\n-c https://example.com/c.txt\n"
        "-r ${RAY_RUNTIME_ENV_CREATE_WORKING_DIR}/r.txt\n"
    )
    (folder / "sub" / "more.txt").write_text("one\n-r again.txt\n")
    (folder / "sub" / "again.txt").write_text("two\r\n")
    lines = [
        "one", "two", "two", "torch==2.0   --hash=sha256:00", "name @ https://example.com/a.zip#egg=name",
        "-c https://example.com/c.txt", "-r ${RAY_RUNTIME_ENV_CREATE_WORKING_DIR}/r.txt",
    ]  # fmt: skip

    for given in ("requirements.txt", folder / "requirements.txt", ["-r requirements.txt"]):
        assert resolve_local_code({"pip": given}, folders=[folder]).runtime_env["pip"] == lines
    found = resolve_local_code({"uv": {"packages": "requirements.txt", "uv_check": True}}, folders=[folder]).runtime_env
    assert found == {"uv": {"packages": lines, "uv_check": True}}


@pytest.mark.parametrize(
    "line",
    ["wheels/foo-1-py3-none-any.whl", "foo-1-py3-none-any.whl", "foo.tar.gz", "~/w/foo.whl", "-e src/pkg", "-e pkg",
     "-e .[dev]", ".[dev]", ".", "-e../x", "-e '../x'", "foo @ ./foo.whl", "foo[a] @ w/foo.whl ; python_version > '3'",
     "foo@file:foo.whl", "file:foo.whl", "--find-links=wheels", "-fwheels", "--no-index -f ./w",
     "--editable src/x#egg=x"],
)  # fmt: skip
def test_relative_path_in_requirements_is_an_error(folder: Path, line: str):
    """A line that pip reads as a relative path is an error here, before it fails on a node."""
    with pytest.raises(ValueError, match="Path of this machine in requirements"):
        resolve_local_code({"pip": ["numpy", line]}, folders=[folder])


@pytest.mark.parametrize(
    "line",
    ["https:/me:s3cret-word@host/x.whl", "x @ https:/me:s3cret-word@host/x.whl", "-f https:/me:s3cret-word@host/x",
     "--index-url https://me:s3cret/word@host/x -r x.txt"],
)  # fmt: skip
def test_error_about_a_line_of_requirements_hides_a_password(line: str):
    """A URL with a typing error is taken for a path, and its password is not quoted."""
    with pytest.raises(ValueError, match=r"me:\*\*\*@host") as caught:
        resolve_local_code({"pip": [line]})

    assert "word" not in str(caught.value)


@pytest.mark.parametrize(
    "line",
    ["numpy", "foo[a,b]>=1,<2 ; python_version > '3'", "foo==1 --hash=sha256:00", "--no-index", "-i https://h/simple",
     "--find-links /shared/wheels", "--find-links=file:///shared/wheels", "/shared/foo.whl", "file:///shared/foo.whl",
     "foo @ https://h/a/foo.whl", "foo @ file:///shared/foo.whl", "foo @ git+ssh://git@h/a/b.git@main",
     "-e git+https://h/a/b#egg=b", "https://h/a.zip", "${RAY_RUNTIME_ENV_CREATE_WORKING_DIR}/w/foo.whl",
     "-e ${RAY_RUNTIME_ENV_CREATE_WORKING_DIR}/x[dev]",
     "foo @ ${RAY_RUNTIME_ENV_CREATE_WORKING_DIR}/w/foo.whl", "foo ; sys_platform == 'a/b'"],
)  # fmt: skip
def test_other_requirement_lines_are_unchanged(folder: Path, line: str):
    """Package names, URLs and absolute paths, which may exist on the nodes, are sent unchanged."""
    assert resolve_local_code({"pip": ["a", line]}, folders=[folder]).runtime_env["pip"] == ["a", line]


@settings(max_examples=500, deadline=None)
@hypothesis.given(lines=st.lists(st.text(alphabet="ab#\\ \t", max_size=5)), end=st.sampled_from(["\n", "\r\n", "\f"]))
@example(lines=["# see docs in C:\\x \\", "numpy==1.0", "pandas"], end="\n")
@example(lines=["a", "foo==1 \\"], end="\n")
def test_requirement_lines_are_those_of_pip(lines: list[str], end: str):
    """Lines are joined and comments removed as pip does."""
    from pip._internal.req.req_file import preprocess

    text = end.join(lines)
    assert list(logical_lines(text)) == [line.strip() for _, line in preprocess(text) if line.strip()]


def test_byte_order_mark_and_final_backslash_are_ignored(folder: Path):
    """A byte order mark and a backslash at the end of a requirements file are ignored."""
    (folder / "b.txt").write_text("foo==1 \\")
    (folder / "r.txt").write_text("-r b.txt\nbar==2\n", encoding="utf-8-sig")
    assert resolve_local_code({"pip": "r.txt"}, folders=[folder]).runtime_env["pip"] == ["foo==1", "bar==2"]


def test_comments_in_a_list_of_requirements_are_removed(folder: Path):
    """A list of requirements is read as the lines of a file."""
    (folder / "r.txt").write_text("a\n")
    given = ["-r r.txt  # base", "# nothing", f"-r file://{folder}/r.txt", "b"]
    assert resolve_local_code({"pip": given}, folders=[folder]).runtime_env["pip"] == ["a", "a", "b"]


@pytest.mark.parametrize(
    ("given", "key"),
    [("requirements.txt", "pip"), (["-r requirements.txt"], "pip"), ({"packages": "requirements.txt"}, "uv")],
)
def test_requirements_file_in_the_working_dir(folder: Path, given: Any, key: str):
    """A requirements file may be in the working_dir. A file of that name beside the DAG file takes precedence."""
    (folder / "code" / "requirements.txt").write_text("-r more.txt\n")
    (folder / "code" / "more.txt").write_text("torch\n")

    def lines() -> list[str]:
        found = resolve_local_code({"working_dir": "code", key: given}, folders=[folder]).runtime_env[key]
        return found["packages"] if key == "uv" else found

    assert lines() == ["torch"]
    (folder / "requirements.txt").write_text("numpy\n")
    assert lines() == ["numpy"]


def test_requirements_file_that_is_nowhere(folder: Path):
    """The error lists the working_dir among the places. A working_dir that does not exist is the first error."""
    searched = f"Searched: {folder}/r.txt, {folder}/code/r.txt"
    with pytest.raises(ValueError, match=rf"runtime_env\['pip'\]: file not found: 'r.txt'. {searched}\."):
        resolve_local_code({"working_dir": "code", "pip": "r.txt"}, folders=[folder])
    with pytest.raises(ValueError, match=rf"Searched: {folder}/r.txt\."):
        resolve_local_code({"working_dir": "s3://b/c.zip", "pip": "r.txt"}, folders=[folder])
    with pytest.raises(ValueError, match="'working_dir'.: file not found"):
        resolve_local_code({"working_dir": "cod", "pip": "r.txt"}, folders=[folder])


def test_too_many_included_requirements_files_is_an_error(folder: Path):
    """Sixteen files that include the next one twice would become 65,536 lines."""
    for number in range(16):
        (folder / f"r{number}.txt").write_text(f"-r r{number + 1}.txt\n" * 2)
    (folder / "r16.txt").write_text("numpy\n")
    with pytest.raises(ValueError, match="Too many requirements files: .* more than 1000"):
        resolve_local_code({"pip": "r0.txt"}, folders=[folder])


def test_constraints_are_added_to_the_working_dir(folder: Path):
    """A constraints file with its included files is added to the package, and its line refers to that file."""
    (folder / "requirements.txt").write_text("-c constraints.txt\ntorch\n")
    (folder / "constraints.txt").write_text("torch<3\n-c more.txt\n")
    (folder / "more.txt").write_text("numpy<2\n")

    for given in ({}, {"working_dir": "code"}):
        code = resolve_local_code({"pip": "requirements.txt", **given}, folders=[folder])
        [package] = code.packages
        [held] = [entry for entry in package.tree.entries if entry.data is not None and b"torch" in entry.data]
        assert code.runtime_env["pip"] == [f"-c ${{RAY_RUNTIME_ENV_CREATE_WORKING_DIR}}/{held.name}", "torch"]
        assert held.data.startswith(b"torch<3\n-c ${RAY_RUNTIME_ENV_CREATE_WORKING_DIR}/.ray-jobs-constraints-")
        assert code.runtime_env["working_dir"] == package.uri

    with pytest.raises(ValueError, match=r"Constraints \(-c\) need a local working_dir"):
        resolve_local_code({"pip": "requirements.txt", "working_dir": "s3://b/c.zip"}, folders=[folder])


def test_requirements_files_that_include_each_other_is_an_error(folder: Path):
    """A loop of -r lines is an error."""
    (folder / "a.txt").write_text("-r b.txt\n")
    (folder / "b.txt").write_text("-r a.txt\n")
    with pytest.raises(ValueError, match="Requirements file includes itself"):
        resolve_local_code({"pip": "a.txt"}, folders=[folder])


def test_conda_file_is_replaced_by_its_contents(folder: Path):
    """A conda file is replaced by its contents with its pip requirements; an environment name is unchanged."""
    (folder / "env.yaml").write_text(
        yaml.safe_dump({"name": "x", "dependencies": ["python=3.11", {"pip": ["-r requirements.txt", "b"]}]})
    )
    (folder / "requirements.txt").write_text("a\n")

    code = resolve_local_code({"conda": "env.yaml"}, folders=[folder])

    assert code.runtime_env["conda"] == {"name": "x", "dependencies": ["python=3.11", {"pip": ["a", "b"]}]}
    assert resolve_local_code({"conda": "an-environment"}, folders=[folder]).runtime_env == {"conda": "an-environment"}
    (folder / "env.yaml").write_text("- a list\n")
    with pytest.raises(ValueError, match="Not a conda environment: .*env.yaml"):
        resolve_local_code({"conda": "env.yaml"}, folders=[folder])


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (None, False),
        ({}, False),
        ({"working_dir": "s3://b/c.zip", "py_modules": ["gcs://x.zip"], "env_vars": {}}, False),
        ({"working_dir": "."}, True),
        ({"working_dir": Path()}, True),
        ({"py_modules": ["gcs://x.zip", "m"]}, True),
        ({"pip": "requirements.txt"}, True),
        ({"conda": "env.yml"}, True),
    ],
)
def test_runtime_env_with_paths_has_local_code(given: Any, expected: bool):
    """A runtime environment without paths is recognised without reading files."""
    assert has_local_code(given) is expected


@pytest.mark.parametrize(
    ("name", "content"),
    [
        pytest.param("pip", "--index-url https://me:m4rked@host -e ./b", id="path of this machine"),
        pytest.param("pip", "-r a.txt --index-url https://me:m4rked@host", id="two options"),
        pytest.param("conda", "variables:\n  TOKEN: m4rked\n A: b", id="invalid YAML"),
    ],
)
def test_error_about_requirements_shows_no_credentials(tmp_path: Path, name: str, content: str):
    """An error that quotes a line hides credentials in its URLs; one about invalid YAML has the position alone."""
    file = tmp_path / ("environment.yml" if name == "conda" else "requirements.txt")
    file.write_text(content)

    with pytest.raises(ValueError, match=name) as caught:
        resolve_local_code({name: str(file)})

    assert "m4rked" not in str(caught.value)
    assert "m4rked" not in str(caught.value.__context__)


def test_repr_hides_the_environment_and_the_contents(folder: Path):
    """No repr shows ``env_vars``, or the lines of a constraints file, which may hold a password."""
    (folder / "constraints.txt").write_text("--index-url https://me:s3cret@host/simple\nnumpy==2\n")
    code = resolve_local_code(
        {"env_vars": {"A": "hidden"}, "working_dir": "code", "pip": ["-c constraints.txt"]}, folders=[folder]
    )

    assert b"s3cret" in b"".join(entry.data or b"" for entry in code.packages[0].tree.entries)
    assert "s3cret" not in repr(code)
    assert "hidden" not in repr(code)
