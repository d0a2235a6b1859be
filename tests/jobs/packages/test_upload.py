"""The engine that uploads packages, driven by hand and by both clients."""

from __future__ import annotations

import asyncio
import errno
import io
import json
import logging
import os
import tempfile
import threading
import time
import zipfile
from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import IO, Any, ClassVar, TypeVar

import httpx
import pytest

from airflow_provider_rayjobs.exceptions import (
    Delivery,
    RayApiConnectionError,
    RayApiPackageNotFoundError,
    RayApiRejectedError,
    RayApiResponseError,
    RayApiUnreachableError,
    RayPackageError,
)
from airflow_provider_rayjobs.jobs import AsyncRayJobsClient, RayJobsClient, endpoints
from airflow_provider_rayjobs.jobs.access import Access
from airflow_provider_rayjobs.jobs.packages.local_code import LIMIT, LocalCode, resolve_local_code
from airflow_provider_rayjobs.jobs.packages.upload import Body, pack, upload_packages
from airflow_provider_rayjobs.jobs.progress import finish
from airflow_provider_rayjobs.jobs.steps import (
    Engine,
    Interrupted,
    LogMessage,
    RunBlocking,
    Send,
    Sleep,
    Upload,
    interruptible,
)

T = TypeVar("T")
ADDRESS = "http://127.0.0.1:8265"
MISSING = "Package gcs://x does not exist"


class Cluster:
    """A head's answers to packages and submissions, as recorded from Ray 2.60."""

    def __init__(
        self,
        failures: list[Exception | int] | None = None,
        *,
        forgets: bool = False,
        restarts: list[Exception | int] | None = None,
    ) -> None:
        self.packages: dict[str, bytes] = {}
        self.asked: list[str] = []
        self.submitted: list[bytes] = []
        self._failures = failures or []
        self._forgets = forgets
        # how submissions fail while the head restarts without its packages
        self._restarts = restarts or []

    def answer(self, request: httpx.Request, body: bytes) -> httpx.Response:
        name = request.url.path.rpartition("/")[2]
        self.asked.append(request.method)
        if request.method == "POST":
            if self._restarts:
                self.packages.clear()
                return self._fail(self._restarts.pop(0))
            self.submitted.append(body)
            return httpx.Response(200, json={"submission_id": json.loads(body)["submission_id"]})
        if request.method == "GET":
            return httpx.Response(200 if name in self.packages else 404, text="" if name in self.packages else MISSING)
        assert int(request.headers["content-length"]) == len(body)
        if self._failures:
            return self._fail(self._failures.pop(0))
        if not self._forgets:
            self.packages[name] = body
        return httpx.Response(200)

    @staticmethod
    def _fail(failure: Exception | int) -> httpx.Response:
        if isinstance(failure, Exception):
            raise failure
        return httpx.Response(failure, text="<html>later</html>")

    def blocking(self, request: httpx.Request) -> httpx.Response:
        return self.answer(request, request.read())

    async def on_a_loop(self, request: httpx.Request) -> httpx.Response:
        return self.answer(request, await request.aread())


def submit_blocking(cluster: Cluster, **options: Any) -> str:
    with RayJobsClient(ADDRESS, retry_timeout=2, transport=httpx.MockTransport(cluster.blocking)) as client:
        return client.submit_job("true", **options)


def submit_on_a_loop(cluster: Cluster, **options: Any) -> str:
    async def submit() -> str:
        transport = httpx.MockTransport(cluster.on_a_loop)
        async with AsyncRayJobsClient(ADDRESS, retry_timeout=2, transport=transport) as client:
            return await client.submit_job("true", **options)

    return asyncio.run(submit())


@pytest.fixture(params=[submit_blocking, submit_on_a_loop], ids=["blocking", "on_a_loop"])
def submit(request: pytest.FixtureRequest) -> Callable[..., str]:
    return request.param


@pytest.fixture
def code(tmp_path: Path) -> Path:
    (tmp_path / "main.py").write_text("print(1)\n")
    return tmp_path


def test_unchanged_directory_is_not_uploaded_again(submit: Callable[..., str], code: Path):
    """The first submission asks, uploads and asks again; the second one only asks."""
    cluster = Cluster()

    submit(cluster, runtime_env={"working_dir": str(code)})
    assert cluster.asked == ["GET", "PUT", "GET", "POST"]
    [(name, body)] = cluster.packages.items()
    assert zipfile.ZipFile(io.BytesIO(body)).namelist() == ["main.py"]
    assert f'"working_dir":"gcs://{name}"'.encode() in cluster.submitted[0].replace(b" ", b"")

    submit(cluster, runtime_env={"working_dir": str(code)})
    assert cluster.asked[4:] == ["GET", "POST"]


@pytest.mark.parametrize("failure", [httpx.WriteError("cut"), httpx.ReadTimeout("slow"), 503])
def test_interrupted_upload_is_retried(
    submit: Callable[..., str], code: Path, failure: Any, caplog: pytest.LogCaptureFixture
):
    """A failed upload is sent again from its start, with a message in the log."""
    cluster = Cluster([failure])

    submit(cluster, runtime_env={"py_modules": [str(code / "main.py")]})

    assert cluster.asked == ["GET", "PUT", "PUT", "GET", "POST"]
    [body] = cluster.packages.values()
    assert zipfile.ZipFile(io.BytesIO(body)).read("main.py") == b"print(1)\n"
    assert "could not upload package _ray_pkg_" in caplog.text


class Challenged(httpx.Auth):
    """An authentication that sends credentials only after a 401."""

    def auth_flow(self, request: httpx.Request) -> Generator[httpx.Request, httpx.Response, None]:
        answer = yield request
        if answer.status_code == 401:
            request.headers["Authorization"] = "Proof 1"
            yield request


class Challenging(BaseHTTPRequestHandler):
    """A head behind a proxy that answers 401 to requests without credentials."""

    protocol_version = "HTTP/1.1"
    packages: ClassVar[dict[str, bytes]] = {}

    def do_GET(self) -> None:
        body = self.rfile.read(int(self.headers.get("content-length") or 0))
        name = self.path.rpartition("/")[2]
        if self.headers.get("authorization") != "Proof 1":
            status, said = 401, b"unauthorized"
        elif self.command == "PUT":
            self.packages[name] = body
            status, said = 200, b""
        elif self.command == "POST":
            status, said = 200, json.dumps({"submission_id": json.loads(body)["submission_id"]}).encode()
        else:
            status, said = (200, b"") if name in self.packages else (404, MISSING.encode())
        self.send_response(status)
        self.send_header("content-length", str(len(said)))
        self.end_headers()
        self.wfile.write(said)

    do_PUT = do_POST = do_GET  # noqa: N815  (names of http.server)

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def challenging() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Challenging) as server:
        Challenging.packages.clear()
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join(10)


@pytest.mark.parametrize("is_async", [False, True], ids=["blocking", "on_a_loop"])
def test_upload_is_sent_again_after_a_401_challenge(challenging: str, code: Path, is_async: bool):
    """An authentication that answers a challenge sends the whole package again."""
    access, environment = Access(auth=Challenged()), {"working_dir": str(code)}

    async def submit() -> str:
        async with AsyncRayJobsClient(challenging, access=access, retry_timeout=1) as client:
            return await client.submit_job("true", runtime_env=environment)

    if is_async:
        asyncio.run(submit())
    else:
        with RayJobsClient(challenging, access=access, retry_timeout=1) as client:
            client.submit_job("true", runtime_env=environment)

    [body] = Challenging.packages.values()
    assert zipfile.ZipFile(io.BytesIO(body)).read("main.py") == b"print(1)\n"


def test_login_page_is_not_an_existing_package(code: Path):
    """An HTML page instead of Ray's answer is an error."""

    def page(request: httpx.Request) -> httpx.Response:
        return httpx.Response(200, html="<html><title>Sign in</title></html>")

    with (
        RayJobsClient(ADDRESS, retry_timeout=0, transport=httpx.MockTransport(page)) as client,
        pytest.raises(RayApiResponseError, match="could not look for package"),
    ):
        client.submit_job("true", runtime_env={"working_dir": str(code)})


def test_upload_that_never_succeeds_is_an_error(submit: Callable[..., str], code: Path):
    """An unreachable cluster, or one that loses the package, is an error, and no job is submitted."""
    away = Cluster([httpx.ConnectError("no")] * 20)
    with pytest.raises(RayApiUnreachableError, match=r"Retried for 2 s\. No job was submitted") as error:
        submit(away, runtime_env={"working_dir": str(code)})
    assert error.value.delivery is Delivery.NOT_SENT

    forgetful = Cluster(forgets=True)
    with pytest.raises(RayPackageError, match="Package lost: the cluster accepted _ray_pkg_.* but does not have it"):
        submit(forgetful, runtime_env={"working_dir": str(code)})

    assert away.submitted == forgetful.submitted == []


def test_status_413_explains_the_limit_of_a_proxy(submit: Callable[..., str], code: Path):
    """413 for a small package comes from a proxy, and the error says how to raise its limit."""
    cluster = Cluster([413])
    with pytest.raises(RayApiRejectedError, match="nginx: client_max_body_size"):
        submit(cluster, runtime_env={"working_dir": str(code)})
    assert cluster.submitted == []


def test_too_large_package_is_an_error_before_the_upload(submit: Callable[..., str], code: Path):
    """A package of 101 MiB is an error with its largest files, and nothing is uploaded."""
    with (code / "model.bin").open("wb") as file:
        for _ in range(101):
            file.write(os.urandom(2**20))
    cluster = Cluster()

    with pytest.raises(ValueError, match=r"accepts less than 100 MiB[\s\S]* 101\.0 MiB  model\.bin"):
        submit(cluster, runtime_env={"working_dir": str(code)})

    assert cluster.asked == ["GET"]
    submit(cluster, runtime_env={"working_dir": str(code), "excludes": ["/model.bin"]})


def test_nothing_is_uploaded_for_an_invalid_submission(submit: Callable[..., str], code: Path):
    """Invalid arguments and misspelt keys are errors before any request."""
    cluster = Cluster()
    with pytest.raises(ValueError, match="submission_id"):
        submit(cluster, runtime_env={"working_dir": str(code)}, submission_id="a/b")
    with pytest.raises(ValueError, match="did you mean 'working_dir'"):
        submit(cluster, runtime_env={"workingdir": str(code), "pip": ["a"]})
    assert cluster.asked == []


def test_log_names_secrets_that_are_left_out(submit: Callable[..., str], code: Path, caplog: pytest.LogCaptureFixture):
    """A secret is left out with a warning; ``package_secrets`` packs it."""
    (code / ".env").write_text("A=b")
    cluster = Cluster()

    submit(cluster, runtime_env={"working_dir": str(code)})
    assert "left out as secrets, by name: .env. Set package_secrets" in caplog.text
    submit(cluster, runtime_env={"working_dir": str(code)}, package_secrets=[".env"])

    held = [zipfile.ZipFile(io.BytesIO(body)).namelist() for body in cluster.packages.values()]
    assert held == [["main.py"], [".env", "main.py"]]


def drive(
    code: LocalCode, take: Callable[[Any], None], *, held: set[str], seconds: float = 0.0
) -> tuple[list[str], list[str]]:
    """Run the engines before the first submission with a clock that advances by ``seconds`` with each upload."""

    def engine() -> Engine[None]:
        uploaded = yield from upload_packages(code, 10)
        yield from uploaded.ensure(False)

    _, asked, notes = perform(engine(), take, held=held, seconds=seconds)
    return asked, notes


def perform(
    engine: Engine[T],
    take: Callable[[Any], None] = lambda _: None,
    *,
    held: set[str],
    now: float = 1000.0,
    seconds: float = 0.0,
) -> tuple[T, list[str], list[str]]:
    """Run an engine from the time ``now``, and return its result, the requests and the messages."""
    asked, notes = [], []
    answer: Any = None
    failure: Exception | None = None
    while True:
        try:
            step = engine.throw(failure) if failure else engine.send(answer)
        except StopIteration as end:
            return end.value, asked, notes
        answer = failure = None
        match step:
            case Send(request):
                name = request.path.rpartition("/")[2]
                asked.append(f"GET {name}")
                failure = None if name in held else RayApiPackageNotFoundError("no")
            case Upload(request):
                held.add(request.path.rpartition("/")[2])
                asked.append(f"PUT {request.path.rpartition('/')[2]}")
                now += seconds
            case RunBlocking(call):
                answer = call()
            case Sleep():
                answer = now
            case LogMessage(message):
                notes.append(message)
        take(step)


def test_package_is_asked_for_again_after_long_uploads(code: Path):
    """Ray keeps a package for ten minutes after a request for it; the engine asks again after two."""
    (code / "other.py").touch()
    packages = resolve_local_code({"py_modules": [str(code / "main.py"), str(code / "other.py")]})
    one, two = (package.name for package in packages.packages)

    quick, _ = drive(packages, lambda _: None, held={one})
    slow, _ = drive(packages, lambda _: None, held={one}, seconds=130)

    assert quick == [f"GET {one}", f"GET {two}", f"PUT {two}", f"GET {two}"]
    assert slow == [*quick, f"GET {one}"]


@pytest.fixture
def modules(code: Path) -> LocalCode:
    """Two modules, each with a package of its own."""
    (code / "other.py").touch()
    return resolve_local_code({"py_modules": [str(code / "main.py"), str(code / "other.py")]})


def test_packages_are_asked_for_again_before_a_late_submission(modules: LocalCode):
    """Before the submission, packages last seen more than two minutes ago are asked for; a found one counts as seen."""
    one, two = (package.name for package in modules.packages)
    uploaded, _, _ = perform(upload_packages(modules, 10), held={one, two}, now=1000)

    assert perform(uploaded.ensure(False), held=set(), now=1120) == (None, [], [])
    assert perform(uploaded.ensure(False), held={one, two}, now=1121) == (None, [f"GET {one}", f"GET {two}"], [])
    assert perform(uploaded.ensure(False), held=set(), now=1241) == (None, [], [])


def test_lost_package_is_uploaded_before_a_repeated_submission(modules: LocalCode):
    """Before a repeated submission, all packages are asked for at any time, and the missing ones are uploaded."""
    one, two = (package.name for package in modules.packages)
    uploaded, _, _ = perform(upload_packages(modules, 10), held={one, two})

    _, asked, notes = perform(uploaded.ensure(True), held={one})

    assert asked == [f"GET {one}", f"GET {two}", f"PUT {two}", f"GET {two}"]
    [note] = notes
    assert f"the cluster had lost package {two}. It was uploaded again (0.1 KiB)." in note
    assert note.startswith("py_modules[1] /")


def test_package_that_waits_for_a_slow_upload_is_asked_for_again(modules: LocalCode):
    """If the upload of a lost package takes more than two minutes, the other packages are asked for once more."""
    one, two = (package.name for package in modules.packages)
    uploaded, _, _ = perform(upload_packages(modules, 10), held={one, two})

    _, asked, _ = perform(uploaded.ensure(True), held={one}, seconds=130)

    assert asked == [f"GET {one}", f"GET {two}", f"PUT {two}", f"GET {two}", f"GET {one}"]


def test_failed_look_is_an_error_of_the_attempt(modules: LocalCode):
    """A failed request before a submission is not retried by itself, and does not count as a look."""
    one, two = (package.name for package in modules.packages)
    uploaded, _, _ = perform(upload_packages(modules, 10), held={one, two})
    failing = uploaded.ensure(True)
    assert isinstance(next(failing), Sleep)
    while not isinstance(step := failing.send(1000.0), Send):
        assert isinstance(step, Sleep)
    failure = RayApiConnectionError("refused", delivery=Delivery.NOT_SENT)

    assert isinstance(failing.throw(failure), Sleep)
    with pytest.raises(RayApiConnectionError) as error:
        failing.send(1000.0)

    assert error.value is failure
    assert perform(uploaded.ensure(False), held={one, two})[1] == [f"GET {one}", f"GET {two}"]


def test_stored_package_is_not_asked_for_again(code: Path):
    """A package in a storage does not depend on the head, so a repeated submission does not look for it."""
    with (code / "large").open("wb") as file:
        file.truncate(LIMIT)

    class Full(Slow):
        def has(self, _: str) -> bool:
            return True

    packages = resolve_local_code({"working_dir": str(code)}, storage=Full())
    uploaded, _, _ = perform(upload_packages(packages, 10), held=set())

    assert perform(uploaded.ensure(True), held=set(), now=5000) == (None, [], [])


def test_lost_package_whose_files_changed_is_an_error(modules: LocalCode, code: Path):
    """A package is uploaded again with the contents that were named, or not at all."""
    uploaded, _, _ = perform(upload_packages(modules, 10), held={package.name for package in modules.packages})
    (code / "main.py").write_text("print(2)\n")

    with pytest.raises(RayPackageError, match=r"File changed during packing: /.*/main\.py .*package was not uploaded"):
        perform(uploaded.ensure(True), held=set())


@pytest.mark.parametrize(
    "failure", [httpx.ConnectError("refused"), httpx.ReadTimeout("lost"), 503], ids=["refused", "lost", "busy"]
)
def test_job_is_submitted_with_its_package_after_a_restart(
    submit: Callable[..., str], code: Path, failure: Exception | int
):
    """A head that restarts during the submission and loses its packages gets the package again, then the job."""
    cluster = Cluster(restarts=[failure])

    submit(cluster, runtime_env={"working_dir": str(code)})

    assert cluster.asked == ["GET", "PUT", "GET", "POST", "GET", "PUT", "GET", "POST"]
    assert len(cluster.submitted) == 1
    [name] = cluster.packages
    assert name.encode() in cluster.submitted[0]


def test_log_has_one_line_per_package(code: Path):
    """The line has the name, the number of files, the size, the upload and the times."""
    packages = resolve_local_code({"working_dir": str(code)})
    [name] = (package.name for package in packages.packages)

    _, sent = drive(packages, lambda _: None, held=set(), seconds=3)
    _, there = drive(packages, lambda _: None, held={name})

    assert sent == [
        f"working_dir {code}: package {name}, 1 files, 0.0 KiB; named in 0.0 s, uploaded (0.1 KiB) in 3.0 s."
    ]
    assert there[0].endswith("named in 0.0 s, already on the cluster.")


def test_constraints_are_uploaded_without_other_files(submit: Callable[..., str], code: Path):
    """With an empty working_dir, or none, the package contains only the constraints."""
    (code / "empty").mkdir()
    (code / "c.txt").write_text("a<2\n")
    cluster = Cluster()

    submit(cluster, runtime_env={"working_dir": str(code / "empty"), "pip": [f"-c {code}/c.txt", "a"]})
    submit(cluster, runtime_env={"pip": [f"-c {code}/c.txt", "a"]})

    [body] = cluster.packages.values()
    with zipfile.ZipFile(io.BytesIO(body)) as archive:
        [name] = archive.namelist()
        assert (name.startswith(".ray-jobs-constraints-"), archive.read(name)) == (True, b"a<2\n")
    assert cluster.asked == ["GET", "PUT", "GET", "POST", "GET", "POST"]


def test_slow_upload_logs_its_progress():
    """The progress is logged every 5 s, and not at all for a fast upload."""

    def lines(speed: float) -> list[str]:
        clock = iter(range(1000))
        notes: list[LogMessage] = []
        body = Body(io.BytesIO(bytes(20 * 2**20)), 20 * 2**20, "_ray_pkg_0.zip")
        assert sum(map(len, body.chunks(lambda: next(clock) * speed, notes.append))) == 20 * 2**20
        assert {note.level for note in notes} <= {logging.INFO}
        return [note.message for note in notes]

    assert lines(0.01) == []
    slow = lines(0.25)
    assert len(slow) == 3
    assert slow[0] == "Uploading _ray_pkg_0.zip: 5 of 20 MiB."


class Slow:
    """A storage that stores a package in three chunks, each longer than a turn."""

    def __init__(self) -> None:
        self.turns = 0
        self.closed = False

    def uri_of(self, name: str) -> str:
        return f"s3://b/{name}"

    def has(self, _: str) -> bool:
        return False

    def put(self, _: str, file: IO[bytes]) -> Generator[int, None, None]:
        try:
            for turn in (1, 2, 3):
                self.turns = turn
                time.sleep(0.3)
                yield 2**20
        finally:
            self.closed = True


def test_slow_storage_logs_its_progress(code: Path):
    """The progress is logged every 5 s, and storing can be stopped between two turns."""
    with (code / "large").open("wb") as file:
        file.truncate(LIMIT)
    slow = Slow()
    packages = resolve_local_code({"working_dir": str(code)}, storage=slow)
    now, notes = 0.0, []
    engine = upload_packages(packages, 1)
    step = next(engine)
    while slow.turns < 3:
        match step:
            case RunBlocking(call):
                step = engine.send(call())
            case Sleep():
                now += 3
                step = engine.send(now)
            case LogMessage(message):
                notes.append(message)
                step = next(engine)
    engine.close()

    assert [note.partition(": ")[2] for note in notes if "Storing" in note and "of" in note] == ["2 of 0 MiB."]
    assert slow.closed


def test_packing_and_upload_can_be_interrupted(code: Path):
    """A kill ends the engine at each of its steps and within the upload; no job is submitted."""
    (code / "data").write_bytes(os.urandom(2_000_000))
    packages = resolve_local_code({"working_dir": str(code)})
    cluster = Cluster()
    for questions in range(1, 40):
        count = 0

        def asked(limit: int = questions) -> bool:
            nonlocal count
            count += 1
            return count >= limit

        cluster.packages.clear()
        with RayJobsClient(ADDRESS, transport=httpx.MockTransport(cluster.blocking)) as client:
            try:
                client.run(interruptible(upload_packages(packages, 1), asked))
            except Interrupted:
                continue
        break
    else:
        pytest.fail("it was never let to its end")
    assert count > 15  # so many that the upload was interrupted as well


@pytest.mark.parametrize("seconds", [0.05, 0.3, 0.6])
def test_cancelled_coroutine_waits_for_its_thread(code: Path, seconds: float):
    """A coroutine cancelled during packing ends after its thread has finished the turn."""
    (code / "text").write_text(os.urandom(40_000_000).hex())
    cluster = Cluster()

    async def cancelled() -> None:
        async with AsyncRayJobsClient(ADDRESS, transport=httpx.MockTransport(cluster.on_a_loop)) as client:
            await asyncio.wait_for(client.submit_job("true", runtime_env={"working_dir": str(code)}), seconds)

    with pytest.raises(TimeoutError):
        asyncio.run(cancelled())
    assert cluster.submitted == []


def test_second_cancellation_waits_for_the_thread():
    """A coroutine that is cancelled twice closes the engine only after the thread has finished."""
    order: list[str] = []
    begun, go_on = threading.Event(), threading.Event()

    def work() -> None:
        begun.set()
        assert go_on.wait(10)
        order.append("worked")

    def engine() -> Any:
        try:
            yield RunBlocking(work)
        finally:
            order.append("closed")

    async def cancelled() -> None:
        async with AsyncRayJobsClient(ADDRESS) as client:
            task = asyncio.create_task(client.run(engine()))
            assert await asyncio.to_thread(begun.wait, 10)
            for _ in range(2):
                task.cancel()
                await asyncio.sleep(0.05)
            go_on.set()
            with pytest.raises(asyncio.CancelledError):
                await task

    asyncio.run(cancelled())
    assert order == ["worked", "closed"]


def test_archive_that_changes_after_naming_is_an_error(submit: Callable[..., str], code: Path):
    """An archive is uploaded with the contents that were named, or not at all."""
    with zipfile.ZipFile(code / "a.zip", "w") as archive:
        archive.writestr("a.py", "")
    packages = resolve_local_code({"working_dir": str(code / "a.zip")})
    with zipfile.ZipFile(code / "a.zip", "a") as archive:
        archive.writestr("b.py", "")

    with pytest.raises(RayPackageError, match=r"File changed during packing: /.*/a\.zip"):
        drive(packages, lambda _: None, held=set())


def test_missing_temporary_directory_is_an_error(code: Path, monkeypatch: pytest.MonkeyPatch):
    """The error says to set TMPDIR, and nothing is uploaded."""
    monkeypatch.setattr(tempfile, "tempdir", str(code / "nowhere"))
    with pytest.raises(RayPackageError, match="temporary file.*TMPDIR"):
        drive(resolve_local_code({"working_dir": str(code)}), lambda _: None, held=set())


class Disk(io.BytesIO):
    """A temporary file on a disk with limited room; ``flush`` writes the last bytes."""

    def __init__(self, room: int) -> None:
        super().__init__()
        self.room = room

    def write(self, data: Any, /) -> int:
        if self.tell() > self.room > 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        return super().write(data)

    def flush(self) -> None:
        if self.tell() > self.room:
            raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize("room", [0, 1_000_000])
@pytest.mark.parametrize("what", [".", "a.zip"])
def test_full_disk_is_an_error_before_the_upload(code: Path, room: int, what: str, monkeypatch: pytest.MonkeyPatch):
    """A disk that is full, at once or for the last bytes, is an error that says what to do."""
    (code / "noise").write_bytes(os.urandom(3_000_000))
    with zipfile.ZipFile(code / "a.zip", "w") as archive:
        archive.write(code / "noise")
    [package] = resolve_local_code({"working_dir": what}, folders=[code]).packages
    monkeypatch.setattr(tempfile, "TemporaryFile", lambda: Disk(room))

    with ExitStack() as stack, pytest.raises(RayPackageError, match="No space left on device.*TMPDIR"):
        finish(pack(package, None, stack))


def test_packing_stops_at_the_limit(code: Path):
    """A package that reaches the limit is not written to its end."""
    (code / "noise").write_bytes(os.urandom(5_000_000))
    [package] = resolve_local_code({"working_dir": str(code)}).packages
    with ExitStack() as stack:
        written: list[int] = []
        with pytest.raises(ValueError, match="Package too large"):
            written.extend(pack(package, 2_000_000, stack))
    assert 2_000_000 <= sum(written) < 4_000_000


def test_temporary_file_has_no_name(code: Path, tmp_path_factory: Any, monkeypatch: pytest.MonkeyPatch):
    """No file appears in the temporary directory, so that none can remain."""
    place = tmp_path_factory.mktemp("tmp")
    monkeypatch.setattr(tempfile, "tempdir", str(place))
    seen = []

    drive(resolve_local_code({"working_dir": str(code)}), lambda _: seen.extend(place.iterdir()), held=set())

    assert seen == []


def test_upload_that_was_never_sent_is_marked_unsent():
    """A refused connection is an error with the delivery ``NOT_SENT``, as for any request."""

    def engine() -> Any:
        yield Upload(endpoints.put_package("a.zip", 1), Body(io.BytesIO(b"a"), 1, "a.zip"))

    with RayJobsClient("http://127.0.0.1:9") as client, pytest.raises(RayApiConnectionError) as error:
        client.run(engine())
    assert error.value.delivery is Delivery.NOT_SENT
