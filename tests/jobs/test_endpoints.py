"""The endpoints: what each sends, and what each recorded answer means."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from airflow_provider_rayjobs.exceptions import (
    Delivery,
    RayApiAddressError,
    RayApiAuthError,
    RayApiBusyError,
    RayApiRejectedError,
    RayApiResponseError,
    RayJobExistsError,
    RayJobNotFoundError,
    RayJobNotTerminalError,
)
from airflow_provider_rayjobs.jobs import JobSubmission, RayVersion, endpoints
from airflow_provider_rayjobs.jobs.endpoints import error_for_answer, parse_answer
from airflow_provider_rayjobs.jobs.logs.json_text import JsonText
from airflow_provider_rayjobs.jobs.requests import Answer, Request

SAMPLES = Path(__file__).parents[1] / "samples" / "2.60.0"
ADDRESS = "http://ray-head:8265"
LOGIN = b"<!DOCTYPE html><html><body>Please sign in at example.com</body></html>"


def sample(name: str) -> Answer:
    """Return a recorded answer. The name of a file without JSON holds the status code."""
    code = 200 if name.endswith(".json") else int(name.split(".")[1])
    return Answer(code, (SAMPLES / name).read_bytes(), ADDRESS, "text/plain; charset=utf-8")


@pytest.mark.parametrize(
    ("request_", "method", "path", "payload", "idempotent"),
    [
        pytest.param(endpoints.get_version(), "GET", "/api/version", None, True, id="version"),
        pytest.param(
            endpoints.submit_job(JobSubmission("a", "true", metadata={"b": "c"})),
            "POST",
            "/api/jobs/",
            {"submission_id": "a", "entrypoint": "true", "metadata": {"b": "c"}},
            True,
            id="submit",
        ),
        pytest.param(endpoints.get_job("a"), "GET", "/api/jobs/a", None, True, id="get"),
        pytest.param(
            endpoints.get_job("a/b ?%#ü"), "GET", "/api/jobs/a%2Fb%20%3F%25%23%C3%BC", None, True, id="quoted"
        ),
        pytest.param(endpoints.list_jobs(), "GET", "/api/jobs/", None, True, id="list"),
        pytest.param(endpoints.stop_job("a/b"), "POST", "/api/jobs/a%2Fb/stop", None, True, id="stop"),
        pytest.param(endpoints.delete_job("a/b"), "DELETE", "/api/jobs/a%2Fb", None, False, id="delete"),
        pytest.param(endpoints.get_cluster_status(), "GET", "/api/cluster_status", None, True, id="cluster"),
    ],
)
def test_request_of_each_endpoint(
    request_: Request[Any], method: str, path: str, payload: Any, idempotent: bool
) -> None:
    """Each request has Ray's path with a quoted id, and a payload without unset fields."""
    assert (request_.method, request_.path, request_.params, request_.payload) == (method, path, None, payload)
    assert request_.idempotent is idempotent
    assert 0 < request_.timeout <= endpoints.SUBMIT_TIMEOUT


def test_log_file_is_requested_by_name() -> None:
    """A log file is requested by its name and node: with an id the head would search for it."""
    request = endpoints.get_log_file("a", "node")

    assert (request.method, request.path, request.payload, request.idempotent) == (
        "GET",
        "/api/v0/logs/file",
        None,
        True,
    )
    assert request.params == {"node_id": "node", "filename": "job-driver-a.log", "lines": "-1", "timeout": "3600"}


def test_log_text_is_requested_as_json() -> None:
    """The request for the text of a log expects JSON and quotes the id."""
    request = endpoints.get_log_text("a/b")

    assert (request.path, request.is_json, request.params) == ("/api/jobs/a%2Fb/logs", True, None)


@pytest.mark.parametrize(
    ("status_code", "content_type", "is_success"),
    [
        (200, "text/plain", True), (206, "text/plain", False), (404, "text/plain", False), (200, "text/html; a", False),
        (200, "Text/HTML", False), (200, "application/XHTML+xml; charset=utf-8", False), (200, "", True),
        (200, "application/octet-stream", True), (200, "Application/JSON; charset=utf-8", False),
    ],
)  # fmt: skip
def test_success_is_a_200_that_is_no_html_page(status_code: int, content_type: str, is_success: bool) -> None:
    """Of the answers without JSON, neither an error nor a proxy's page is a success."""
    assert endpoints.is_success(status_code, content_type) is is_success


def test_json_is_a_success_only_for_the_text_of_a_log() -> None:
    """A gateway's JSON is not a log file or a package. The endpoint for the text of a log answers in JSON."""
    assert endpoints.is_success(200, "application/json", is_json=True)
    assert not endpoints.is_success(200, "Text/HTML", is_json=True)


@pytest.mark.parametrize("content_type", ["Text/HTML", "application/xhtml+xml", "application/json", "text/xml", ""])
@pytest.mark.parametrize("request_", [endpoints.get_package("a.zip"), endpoints.put_package("a.zip", 1)])
def test_page_of_a_gateway_is_no_package(request_: Any, content_type: str) -> None:
    """A 200 of a gateway does not count as a package that Ray has."""
    with pytest.raises(RayApiAddressError) as caught:
        endpoints.check_answer(request_, Answer(200, b'{"error": "expired"}', ADDRESS, content_type))

    assert caught.value.delivery is Delivery.FOREIGN


def test_words_in_an_html_page_are_not_rays() -> None:
    """A page that quotes Ray's words is not a refusal by Ray, however its content type is written."""
    answer = Answer(404, b"Job a does not exist", ADDRESS, "Text/HTML")

    assert error_for_answer(endpoints.get_job("a"), answer).delivery is Delivery.FOREIGN


def test_words_in_a_long_text_are_not_rays() -> None:
    """Ray's answer begins or ends with its words. Those that are far apart in a long text do not count."""
    answers = [Answer(404, b"Job %s does not exist" % (b"a" * length), ADDRESS) for length in (200, 20_000)]

    deliveries = [error_for_answer(endpoints.get_job("a"), answer).delivery for answer in answers]
    assert deliveries == [Delivery.REFUSED, Delivery.FOREIGN]


@pytest.mark.parametrize("status_code", [200, 500])
def test_large_answer_is_diagnosed_in_milliseconds(status_code: int) -> None:
    """The time to diagnose an answer does not grow with the square of its length. With 256 KiB that took a minute."""
    answer = Answer(status_code, b"Job a;" * (256 * 1024 // 6), ADDRESS)
    began = time.process_time()

    error_for_answer(endpoints.get_job("a"), answer)

    assert time.process_time() - began < 10


def test_submission_has_a_longer_timeout() -> None:
    """A submission waits longer for its answer, as an early end can orphan a job."""
    assert endpoints.submit_job(JobSubmission("a", "true")).timeout > endpoints.get_job("a").timeout


@pytest.mark.parametrize(
    ("request_", "name", "expected"),
    [
        pytest.param(
            endpoints.get_version(),
            "version.json",
            RayVersion("4", "2.60.0", "session_2026-11-23_03-37-01_379092_4566"),
            id="version",
        ),
        pytest.param(
            endpoints.submit_job(JobSubmission("sample-succeeded", "true")),
            "submitted.json",
            "sample-succeeded",
            id="submitted",
        ),
        pytest.param(endpoints.stop_job("a"), "stopped.json", True, id="stopped"),
        pytest.param(endpoints.stop_job("a"), "stop_ended.json", False, id="nothing to stop"),
        pytest.param(endpoints.delete_job("a"), "deleted.json", True, id="deleted"),
    ],
)
def test_answer_of_each_endpoint(request_: Request[Any], name: str, expected: Any) -> None:
    """Each recorded answer is read as the result of its request."""
    assert parse_answer(request_, sample(name)) == expected


def test_jobs_and_logs_are_read() -> None:
    """A job and the list of jobs are read as details, interactive jobs included, and a log as its text."""
    assert parse_answer(endpoints.get_job("sample-failed"), sample("job_failed.json")).driver_exit_code == 3
    jobs = parse_answer(endpoints.list_jobs(), sample("jobs_list.json"))
    assert [job.type for job in jobs] == ["SUBMISSION"] * 4 + ["DRIVER"]
    assert {job.name for job in jobs} >= {"sample-failed", "sample-stopped", "03000000"}
    log = JsonText().decode(sample("job_logs.json").content).decode()
    assert "\none\nzwei ü\nthree" in log


def test_answers_of_older_heads_are_read() -> None:
    """A version without a session, and a submission answered by ``job_id`` alone, are read."""
    version = Answer(200, b'{"version": "4", "ray_version": "2.9.3"}', ADDRESS)
    submitted = Answer(200, b'{"job_id": "a"}', ADDRESS)

    assert parse_answer(endpoints.get_version(), version) == RayVersion("4", "2.9.3", None)
    assert parse_answer(endpoints.submit_job(JobSubmission("a", "true")), submitted) == "a"


def test_answer_to_a_submission_needs_no_job_id() -> None:
    """Ray has deprecated ``job_id`` in its answer to a submission; an answer without it is read."""
    submitted = Answer(200, b'{"submission_id": "a"}', ADDRESS)

    assert parse_answer(endpoints.submit_job(JobSubmission("a", "true")), submitted) == "a"


@pytest.mark.parametrize(
    ("name", "ids"),
    [
        pytest.param("a", {"submission_id": "a", "job_id": "02000000"}, id="submission id"),
        pytest.param("02000000", {"submission_id": "a", "job_id": "02000000"}, id="Ray Core job id"),
        pytest.param("02000000", {"submission_id": None, "job_id": "02000000"}, id="interactive job"),
    ],
)
def test_job_is_known_by_both_ids(name: str, ids: dict[str, Any]) -> None:
    """Ray finds a job by its submission id and by its Ray Core job id."""
    answer = Answer(200, json.dumps({"type": "SUBMISSION", "status": "RUNNING", **ids}).encode(), ADDRESS)

    details = parse_answer(endpoints.get_job(name), answer)
    assert (details.submission_id, details.job_id) == (ids["submission_id"], ids["job_id"])


@pytest.mark.parametrize(
    ("request_", "action", "content"),
    [
        pytest.param(
            endpoints.get_job("mine"),
            "get",
            b'{"type": "SUBMISSION", "status": "SUCCEEDED", "submission_id": "theirs", "job_id": "02000000"}',
            id="get",
        ),
        pytest.param(
            endpoints.get_job("mine"), "get", b'{"type": "SUBMISSION", "status": "SUCCEEDED"}', id="get, without an id"
        ),
        pytest.param(
            endpoints.submit_job(JobSubmission("mine", "true")),
            "submit",
            b'{"submission_id": "theirs", "job_id": "theirs"}',
            id="submit",
        ),
    ],
)
def test_answer_about_another_job_is_an_error(request_: Request[Any], action: str, content: bytes) -> None:
    """An answer about another job, for instance from a cache, is no answer of Ray to this request."""
    with pytest.raises(RayApiResponseError, match="it must not cache answers") as caught:
        parse_answer(request_, Answer(200, content, ADDRESS, label="mine too"))

    assert type(caught.value) is RayApiResponseError
    assert (caught.value.status_code, caught.value.delivery) == (200, Delivery.FOREIGN)
    assert str(caught.value).startswith(
        f"HTTP 200, the answer is about another job: could not {action} job mine at {ADDRESS} (mine too). "
    )


MISSING_TOKEN, WRONG_TOKEN = b"Unauthorized: Missing authentication token", b"Forbidden: Invalid authentication token"
TOO_LARGE = b"Maximum request body size 104857600 exceeded, actual body size 104857601"
NO_AGENT = b"No available agent to submit job, please try again later."
NO_AGENT_2_40 = (
    b"Traceback (most recent call last):\n  File ...\n"
    b"AttributeError: 'NoneType' object has no attribute 'submit_job_internal'"
)
TOO_LARGE_2_40 = (
    b"Traceback (most recent call last):\n  File ...\n"
    b"aiohttp.web_exceptions.HTTPRequestEntityTooLarge: Request Entity Too Large"
)
CRASH = b"Traceback (most recent call last):\n  File ...\nRuntimeError: Request failed with status code 500: oops."
NGINX = b"<html>\r\n<head><title>%s</title></head>\r\n<body><center>nginx</center></body>\r\n</html>"


@pytest.mark.parametrize(
    ("answer", "delivery"),
    [
        pytest.param(Answer(401, MISSING_TOKEN, ADDRESS), Delivery.REFUSED, id="no token"),
        pytest.param(Answer(403, WRONG_TOKEN, ADDRESS), Delivery.REFUSED, id="wrong token"),
        pytest.param(sample("unknown_field.400.txt"), Delivery.REFUSED, id="unknown field"),
        pytest.param(sample("stop_driver.400.txt"), Delivery.REFUSED, id="stop of an interactive job"),
        pytest.param(sample("logs_driver.400.txt"), Delivery.REFUSED, id="log of an interactive job"),
        pytest.param(sample("unknown_job.404.txt"), Delivery.REFUSED, id="unknown job"),
        pytest.param(Answer(404, b"Package gcs://a.zip does not exist", ADDRESS), Delivery.REFUSED, id="no package"),
        pytest.param(Answer(413, TOO_LARGE, ADDRESS), Delivery.REFUSED, id="too large for Ray"),
        pytest.param(Answer(500, TOO_LARGE_2_40, ADDRESS), Delivery.REFUSED, id="too large for Ray 2.40"),
        pytest.param(sample("duplicate_id.500.txt"), Delivery.REFUSED, id="id is taken"),
        pytest.param(sample("delete_running.500.txt"), Delivery.REFUSED, id="job has not ended"),
        pytest.param(Answer(500, CRASH, ADDRESS), Delivery.MAY_HAVE_ARRIVED, id="traceback of Ray"),
        pytest.param(Answer(500, NO_AGENT, ADDRESS), Delivery.MAY_HAVE_ARRIVED, id="no agent yet"),
        pytest.param(Answer(200, LOGIN, ADDRESS, "text/html"), Delivery.FOREIGN, id="login page"),
        pytest.param(Answer(200, b"", ADDRESS), Delivery.FOREIGN, id="200 with nothing"),
        pytest.param(Answer(200, b'{"ok": true}', ADDRESS, "application/json"), Delivery.FOREIGN, id="200 with JSON"),
        pytest.param(Answer(302, b"moved", ADDRESS), Delivery.FOREIGN, id="redirect"),
        *(pytest.param(Answer(code, NGINX % b"no", ADDRESS, "text/html"), Delivery.FOREIGN, id=f"nginx {code}")
          for code in (400, 401, 403, 404, 405, 413, 429, 500, 502, 503, 504)),
        *(pytest.param(Answer(code, b"", ADDRESS), Delivery.FOREIGN, id=f"{code} with nothing")
          for code in (400, 401, 403, 404, 413, 500, 503)),
        pytest.param(Answer(401, b"Unauthorized", ADDRESS), Delivery.FOREIGN, id="401 of an ingress"),
        pytest.param(Answer(403, b"Forbidden", ADDRESS), Delivery.FOREIGN, id="403 of an ingress"),
        pytest.param(Answer(403, b"RBAC: access denied", ADDRESS), Delivery.FOREIGN, id="403 of a service mesh"),
        pytest.param(Answer(404, b"default backend - 404", ADDRESS), Delivery.FOREIGN, id="404 of an ingress"),
        pytest.param(Answer(404, b"404 page not found", ADDRESS), Delivery.FOREIGN, id="404 of a Go server"),
        pytest.param(sample("no_such_path.404.txt"), Delivery.FOREIGN, id="404 of any aiohttp server"),
        pytest.param(
            Answer(404, b'{"code": 404, "message": "no route"}', ADDRESS, "application/json"),
            Delivery.FOREIGN,
            id="404 of a gateway",
        ),
        pytest.param(
            Answer(503, b"upstream connect error or disconnect/reset before headers", ADDRESS),
            Delivery.FOREIGN,
            id="503 of a service mesh",
        ),
        pytest.param(Answer(403, WRONG_TOKEN, ADDRESS, "text/html"), Delivery.FOREIGN, id="page with Ray's words"),
    ],
)  # fmt: skip
def test_only_rays_own_words_are_a_refusal(answer: Answer, delivery: Delivery) -> None:
    """Only a refusal in Ray's own words is final; the error tells who sent the answer, whatever its status."""
    for request in (endpoints.submit_job(JobSubmission("a", "true")), endpoints.stop_job("a"), endpoints.get_job("a")):
        with pytest.raises(RayApiResponseError) as caught:
            parse_answer(request, answer)
        assert caught.value.delivery is delivery


@pytest.mark.parametrize(
    ("answer", "kind", "gist"),
    [
        pytest.param(
            sample("duplicate_id.500.txt"),
            RayJobExistsError,
            "ValueError: Job with submission_id sample-failed already exists. Please use a different submission_id",
            id="id is taken",
        ),
        pytest.param(
            sample("delete_running.500.txt"),
            RayJobNotTerminalError,
            "RuntimeError: Attempted to delete job 'sample-stopped', but it is in a non-terminal state RUNNING",
            id="job has not ended",
        ),
        pytest.param(
            sample("unknown_job.404.txt"), RayJobNotFoundError, "Job unknown-1 does not exist", id="unknown job"
        ),
        pytest.param(
            sample("stop_driver.400.txt"), RayApiRejectedError, "Can only stop submission type jobs", id="stop a driver"
        ),
        pytest.param(
            sample("logs_driver.400.txt"),
            RayApiRejectedError,
            "Can only get logs of submission type jobs",
            id="log of a driver",
        ),
        pytest.param(
            sample("unknown_field.400.txt"),
            RayApiRejectedError,
            "TypeError: JobSubmitRequest.__init__() got an unexpected keyword argument 'colour'",
            id="unknown field",
        ),
        pytest.param(sample("no_such_path.404.txt"), RayApiAddressError, "404: Not Found", id="not Ray's path"),
        pytest.param(
            sample("no_log_file.500.txt"), RayApiResponseError, "A file is not found at: /opt/ray", id="no log file"
        ),
        pytest.param(
            Answer(500, b"No available agent to submit job, please try again later.", ADDRESS),
            RayApiBusyError,
            "No available agent",
            id="no agent yet",
        ),
        pytest.param(Answer(500, NO_AGENT_2_40, ADDRESS), RayApiBusyError, "AttributeError", id="no agent on Ray 2.40"),
        pytest.param(Answer(500, TOO_LARGE_2_40, ADDRESS), RayApiRejectedError, "aiohttp", id="too large, Ray 2.40"),
        pytest.param(Answer(401, b"Unauthorized", ADDRESS), RayApiAuthError, "Unauthorized", id="no token"),
        pytest.param(Answer(403, b"Forbidden", ADDRESS), RayApiAuthError, "Forbidden", id="wrong token"),
        pytest.param(Answer(405, b"no", ADDRESS), RayApiAddressError, "no", id="method not allowed"),
        pytest.param(Answer(418, b"short and stout", ADDRESS), RayApiResponseError, "short", id="a teapot"),
        *(pytest.param(Answer(code, b"busy", ADDRESS), RayApiBusyError, "busy", id=f"{code}")
          for code in (429, 502, 503, 504)),
        *(pytest.param(Answer(code, b"moved", ADDRESS), RayApiAddressError, "moved", id=f"{code}")
          for code in (301, 302, 303, 307, 308)),
    ],
)  # fmt: skip
def test_error_follows_rays_words(answer: Answer, kind: type[RayApiResponseError], gist: str) -> None:
    """An answer other than 200 becomes the error that Ray's words mean, with status, request, address and quote."""
    with pytest.raises(RayApiResponseError) as caught:
        parse_answer(endpoints.get_job("nightly-1"), answer)

    assert type(caught.value) is kind
    assert caught.value.status_code == answer.status_code
    assert str(caught.value).startswith(f"HTTP {answer.status_code}, ")
    assert ": could not get job nightly-1 at http://ray-head:8265. " in str(caught.value)
    assert f"The answer says: {gist}" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert "Traceback" not in str(caught.value)


@pytest.mark.parametrize("content", [LOGIN, b"", b" \n"], ids=["page", "nothing", "blank"])
def test_html_page_is_not_quoted(content: bytes) -> None:
    """An HTML page and an empty answer are not quoted."""
    error = error_for_answer(endpoints.get_log_file("a", "node"), Answer(502, content, ADDRESS, "text/html"))

    assert isinstance(error, RayApiBusyError)
    assert "sign in" not in str(error)
    assert "The answer says" not in str(error)


def test_deeply_nested_answer_is_not_rays() -> None:
    """JSON that Python cannot decode is an error of the package, like any other answer that is not Ray's."""
    answer = Answer(200, b"[" * 100_000, ADDRESS, content_type="application/json")

    with pytest.raises(RayApiAddressError):
        parse_answer(endpoints.get_version(), answer)


@pytest.mark.parametrize(
    ("code", "value", "seconds"),
    [
        pytest.param(503, "7", 7, id="seconds"),
        pytest.param(429, "7", 7, id="429"),
        pytest.param(503, "3600", 60, id="an hour"),
        pytest.param(503, "Thu, 01 Jan 1970 00:16:50 GMT", 10, id="date"),
        pytest.param(503, "Thu, 01 Jan 1970 00:00:00 GMT", 0, id="past date"),
        pytest.param(503, "Thu, 01 Jan 2026 00:00:00 +99999999999999", 0, id="date out of range"),
        pytest.param(503, "-7", 0, id="negative"),
        pytest.param(503, "soon", 0, id="nonsense"),
        pytest.param(503, "\u0662", 2, id="another digit"),
        pytest.param(503, "", 0, id="empty"),
        pytest.param(500, "7", 0, id="another status"),
    ],
)
def test_error_holds_the_time_that_a_busy_server_asks_for(code: int, value: str, seconds: float) -> None:
    """The error of a busy server holds its ``Retry-After`` in seconds, a minute at most."""
    answer = Answer(code, b"busy", ADDRESS, time=1_000_000, headers={"retry-after": value})

    assert error_for_answer(endpoints.get_job("a"), answer).retry_after == seconds


def test_quoted_answer_hides_env_vars() -> None:
    """A proxy's error may repeat the submission. The values of its ``env_vars`` are in no error."""
    env_vars = {"DSN": 'me:"pa55/of-the-base"', "EMPTY": ""}
    submission = JobSubmission("a", "python a.py", {"env_vars": env_vars})
    body = json.dumps(submission.to_json()).encode()

    error = error_for_answer(endpoints.submit_job(submission), Answer(400, b"Rejected by policy 17: " + body, ADDRESS))

    assert "Rejected by policy 17" in str(error)
    assert '"DSN": "***"' in str(error)
    assert "pa55" not in str(error)


def test_quoted_answer_shows_ids_of_the_task() -> None:
    """A task has its ids in ``env_vars`` and metadata. Ray's words that quote them stay readable."""
    env_vars = {
        "AIRFLOW_CTX_DAG_ID": "submission",
        "AIRFLOW_CTX_DAG_EMAIL": "a@example.com",
        "AIRFLOW_CTX_API_TOKEN": "pa55-of-a-policy",
        "RAY_JOB_SUBMISSION_ID": "night-1",
        "RAY_JOB_SUBMISSION_ID_OF_ANOTHER": "pa55-of-a-user",
    }
    submission = JobSubmission("night-1", "python a.py", {"env_vars": env_vars}, metadata={"dag_id": "submission"})
    words = "ValueError: Job with submission_id night-1 already exists"

    error = error_for_answer(
        endpoints.submit_job(submission),
        Answer(500, f"Traceback (most recent call last):\n{words}: {[*env_vars.values()]}\n.\n".encode(), ADDRESS),
    )

    assert f"{words}: ['submission', '***', '***', 'night-1', '***']" in str(error)


def test_long_answer_is_shortened() -> None:
    """The error quotes only the beginning of a long answer."""
    error = error_for_answer(endpoints.get_version(), Answer(418, b"x" * 5000 + b"\xff", ADDRESS))

    assert str(error).endswith(f"{'x' * 500} ...")
    assert len(str(error)) < 1000


@pytest.mark.parametrize(
    ("request_", "content"),
    [
        pytest.param(endpoints.get_job("a"), LOGIN, id="a login page"),
        pytest.param(endpoints.get_version(), b"", id="nothing"),
        pytest.param(endpoints.get_version(), b"\xff\xfe", id="binary"),
        pytest.param(endpoints.get_version(), b"[]", id="a list for the version"),
        pytest.param(endpoints.get_version(), b'{"version": "4"}', id="a version without Ray's"),
        pytest.param(endpoints.get_job("a"), b"{}", id="a job without a status"),
        pytest.param(endpoints.get_job("a"), b"[1]", id="a list for a job"),
        pytest.param(endpoints.get_job("a"), b'{"type": "SUBMISSION", "status": null}', id="no status"),
        pytest.param(endpoints.list_jobs(), b'{"detail": "hello"}', id="a dictionary for the jobs"),
        pytest.param(endpoints.list_jobs(), b"7", id="a number for the jobs"),
        pytest.param(endpoints.stop_job("a"), b'{"ok": true}', id="a stop without its answer"),
        pytest.param(endpoints.delete_job("a"), b"null", id="null for a deletion"),
        pytest.param(endpoints.get_cluster_status(), b"[]", id="a list for the cluster"),
        pytest.param(endpoints.get_cluster_status(), b'{"data": "ok"}', id="a word for the cluster"),
        pytest.param(endpoints.submit_job(JobSubmission("a", "b")), b"{}", id="a submission without an id"),
    ],
)
def test_unexpected_200_means_a_wrong_address(request_: Request[Any], content: bytes) -> None:
    """A 200 that is not an answer of Ray's API means that the address is wrong."""
    with pytest.raises(RayApiAddressError, match="Check host, port, schema and base path") as caught:
        parse_answer(request_, Answer(200, content, ADDRESS, "text/html; charset=utf-8"))

    assert caught.value.status_code == 200
    assert str(caught.value).startswith("HTTP 200, an HTML page instead of Ray's answer: could not ")
    assert "sign in" not in str(caught.value)


def test_answer_without_a_content_type_is_named() -> None:
    """The error about an answer without a content type says so."""
    with pytest.raises(
        RayApiAddressError,
        match=r"^HTTP 200, not an answer of the Ray Jobs API \(no content type\): could not connect to Ray",
    ):
        parse_answer(endpoints.get_version(), Answer(200, b"?", ADDRESS))


@pytest.mark.parametrize("name", sorted(path.name for path in SAMPLES.glob("*.json")))
def test_samples_name_no_local_path(name: str) -> None:
    """Recorded answers are JSON and name no path of the machine of the recording."""
    content = (SAMPLES / name).read_text()

    assert json.loads(content)
    assert "/tmp/" not in content


def test_cluster_status_is_read() -> None:
    """The autoscaler's report is read as the resources of the cluster and those in use."""
    cluster = parse_answer(endpoints.get_cluster_status(), sample("cluster_status.json"))

    assert [(node["CPU"], node["special_chip"], count) for node, count in cluster.nodes] == [(4, 2, 1)]
    assert (cluster.used["CPU"], cluster.used["special_chip"]) == (2, 1)


def test_job_has_the_time_of_its_answer() -> None:
    """A job has the time of its answer by the head's clock, and so its age."""
    answer = replace(sample("job_running.json"), time=0)
    request = endpoints.get_job("sample-stopped")
    submitted = parse_answer(request, answer).start_time
    assert submitted is not None

    details = parse_answer(request, replace(answer, time=submitted + 7_500))
    assert details.seen_at == submitted + 7_500
    assert details.age == 7.5
    assert "seen_at" not in details.to_event()


def test_listed_jobs_have_the_time_of_the_answer() -> None:
    """Each job of the list has the time of the answer by the head's clock."""
    jobs = parse_answer(endpoints.list_jobs(), replace(sample("jobs_list.json"), time=1_700_000_000_000))

    assert {job.seen_at for job in jobs} == {1_700_000_000_000}


def test_version_has_no_time() -> None:
    """The result of a request without ``with_time`` does not depend on the time of its answer."""
    answer = sample("version.json")

    assert parse_answer(endpoints.get_version(), replace(answer, time=5)) == parse_answer(
        endpoints.get_version(), answer
    )


def test_repr_hides_payload_and_content():
    """A payload may hold ``env_vars``, and the content of an answer other secrets."""
    request = Request("submit", "POST", "/", bool, payload={"runtime_env": {"env_vars": {"A": "m4rked"}}})

    assert "m4rked" not in f"{request!r} {Answer(200, b'm4rked', 'http://a')!r}"


def test_records_of_a_list_are_read_as_answers_about_one_job() -> None:
    """Each record of the recorded list gives what the same record gives as an answer about its job."""
    listed = replace(sample("jobs_list.json"), time=1_700_000_000_000)
    records = parse_answer(endpoints.list_records(), listed)

    for record in json.loads(listed.content):
        request = endpoints.get_job(record["submission_id"] or record["job_id"])
        alone = replace(listed, content=json.dumps(record).encode())
        assert records.find(request) == parse_answer(request, alone)
    assert records.find(endpoints.get_job("another")) is None


def test_unusable_records_of_a_list_are_left_out() -> None:
    """A record that is broken is left out, and the others are found."""
    for broken in (b"5", b"null", b'{"submission_id": 5}', b'{"submission_id": "b", "type": "SUBMISSION"}'):
        content = b'[%b, {"type": "SUBMISSION", "submission_id": "a", "status": "FAILED"}]' % broken
        records = parse_answer(endpoints.list_records(), Answer(200, content, ADDRESS))

        assert records.find(endpoints.get_job("a")).status == "FAILED"
        assert records.find(endpoints.get_job("b")) is None


def test_ids_in_a_list() -> None:
    """An interactive job precedes a submission with its id. A driver's Ray Core job id names its submission, too."""
    driver = {"type": "DRIVER", "job_id": "01000000", "submission_id": None, "status": "RUNNING"}
    taken = {"type": "SUBMISSION", "job_id": None, "submission_id": "01000000", "status": "FAILED"}
    job = {"type": "SUBMISSION", "job_id": "02000000", "submission_id": "a", "status": "STOPPED"}
    answer = Answer(200, json.dumps([driver, taken, job]).encode(), ADDRESS)
    records = parse_answer(endpoints.list_records(), answer)

    found = {name: records.find(endpoints.get_job(name)) for name in ("01000000", "02000000", "a")}

    assert {name: job and job.status for name, job in found.items()} == {
        "01000000": "RUNNING", "02000000": "STOPPED", "a": "STOPPED"
    }  # fmt: skip
