"""What a user does in Airflow's web UI, with the mouse and the keyboard, and what the Ray head has afterwards."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import pytest
from airflow import __version__ as airflow_version
from packaging.version import Version
from playwright.sync_api import Locator, Page, expect

from airflow_provider_rayjobs.jobs import RayJobsClient
from sandbox.local_airflow import LocalAirflow
from sandbox.ray_head import RayHead

pytestmark = [
    pytest.mark.airflow,
    pytest.mark.ray,
    pytest.mark.usefixtures("browser"),  # first, so that nothing is started without Chromium
    pytest.mark.skipif(
        Version(airflow_version) < Version("3.3"), reason="the labels are those of the web UI of Airflow 3.3"
    ),
]

Picture = Callable[[Page | Locator, str, int], None]


def open_task(page: Page, dag_id: str, run_id: str, task_id: str = "job") -> None:
    """Open the page of a task instance: from the list of DAGs, through the grid."""
    page.get_by_test_id("nav-dags-link").click()
    page.get_by_role("link", name=dag_id, exact=True).click()
    page.get_by_test_id(f"grid-{run_id}-{task_id}").click()


def header(page: Page) -> Locator:
    """The head of a task instance's page, with its state."""
    return page.get_by_test_id("header-card")


def log(page: Page) -> Locator:
    return page.get_by_test_id("virtual-scroll-container")


def add_connection(page: Page, connection_id: str, host: str, port: int) -> Locator:
    """Fill the form of a new connection, and return the form."""
    page.get_by_role("button", name="Admin").click()
    page.get_by_role("menuitem", name="Connections").click()
    page.get_by_role("button", name="Add Connection").click()
    form = page.get_by_role("dialog")
    form.get_by_role("textbox", name="Connection ID").fill(connection_id)
    form.get_by_role("combobox", name="Connection Type").fill("Ray Jobs")
    page.get_by_role("option", name="Ray Jobs", exact=True).click()
    form.get_by_role("textbox", name="Host").fill(host)
    form.get_by_role("spinbutton", name="Port").fill(str(port))
    return form


def press_test(page: Page, connection_id: str) -> None:
    page.get_by_role("row").filter(has_text=connection_id).get_by_role("button", name="Test Connection").click()


def job_statuses(head: RayHead, dag_id: str) -> list[str]:
    """Return the statuses of all Ray jobs of a DAG, in the order of their submission."""
    with RayJobsClient(head.address) as client:
        jobs = [job for job in client.list_jobs() if (job.metadata or {}).get("airflow_dag_id") == dag_id]
    return [str(job.status) for job in sorted(jobs, key=lambda job: job.start_time or 0)]


def wait_for_jobs(head: RayHead, dag_id: str, *statuses: str, timeout: float = 180) -> None:
    """Wait until the Ray jobs of a DAG have these statuses."""
    deadline = time.monotonic() + timeout
    while (seen := job_statuses(head, dag_id)) != list(statuses):
        assert time.monotonic() < deadline, f"the jobs of {dag_id} are {seen} instead of {list(statuses)}"
        time.sleep(0.5)


def test_connection_form_has_fields_of_its_own_and_test_reaches_ray(
    page: Page, airflow: LocalAirflow, ray_head: RayHead, picture: Picture
):
    """A user creates the connection in the form, presses Test, and reads the version of Ray."""
    form = add_connection(page, "ray_jobs_default", "ray-head.example.com", 8265)
    expect(form.get_by_text("Ray token or password")).to_be_visible()
    expect(form.get_by_role("textbox", name="Schema (http or https)")).to_have_attribute("placeholder", "http")
    picture(form, "connection-form", 1000)
    form.get_by_role("textbox", name="Host").fill("127.0.0.1")
    form.get_by_role("spinbutton", name="Port").fill(str(ray_head.port))
    form.get_by_role("button", name="Extra Fields", exact=True).click()
    field = form.get_by_role("group").filter(has=page.get_by_text("Dashboard URL", exact=True)).last
    field.get_by_role("textbox").fill("https://ray.example.com")
    form.get_by_role("button", name="Save").click()
    expect(page.get_by_role("row").filter(has_text="ray_jobs_default")).to_contain_text("ray_jobs")

    page.reload()  # removes the message about the new connection
    press_test(page, "ray_jobs_default")

    expect(page.get_by_text("Test Connection Successful")).to_be_visible()
    expect(page.get_by_text(f"Ray 2.60.0 at {ray_head.address}")).to_be_visible()
    picture(page, "connection-test", 460)
    assert "https://ray.example.com" in airflow.api("GET", "/connections/ray_jobs_default")["extra"]


def test_connection_with_a_wrong_host_is_an_error_with_its_fix(page: Page):
    """The button Test shows what is wrong, and where to mend it."""
    add_connection(page, "ray_typo", "no-such-host.invalid", 8265).get_by_role("button", name="Save").click()

    press_test(page, "ray_typo")

    expect(page.get_by_text("Test Connection Failed")).to_be_visible()
    message = page.get_by_text("DNS lookup failed for no-such-host.invalid")
    expect(message).to_contain_text("Check the host of the address.")


def test_nightly_dag_is_triggered_by_hand(page: Page, picture: Picture, tmp_path: Path):
    """A user triggers the example, and its job writes the report and shows its log in the task's log."""
    page.get_by_test_id("nav-dags-link").click()
    page.get_by_role("link", name="ray_jobs_nightly", exact=True).click()
    trigger = page.get_by_test_id("trigger-dag-button")
    expect(trigger).to_have_count(1)  # the list of DAGs has several
    trigger.click()
    form = page.get_by_role("dialog")
    expect(form.get_by_role("textbox").last).to_have_value("/tmp/ray_jobs_nightly.json")
    picture(form, "trigger-dag", 900)
    form.get_by_role("textbox").last.fill(str(tmp_path / "report.json"))
    form.get_by_test_id("trigger-dag-submit").click()
    page.locator("[data-testid^=grid-manual__]").click()

    expect(header(page)).to_contain_text("Success")
    expect(log(page)).to_contain_text("Busiest station")
    picture(page.get_by_test_id("main-content"), "task-log", 740)
    assert (tmp_path / "report.json").exists()


def test_log_grows_while_the_job_runs(page: Page, runs: dict[str, str], releases: Path, picture: Picture):
    """A user watches the log without a reload, with the colours and the indentation of the job."""
    open_task(page, "ui_growing_log", runs["ui_growing_log"])
    expect(log(page)).to_contain_text("after a blank line")

    assert "\n    four blanks\n\n\tafter a blank line" in log(page).inner_text()
    green, red = (log(page).get_by_text(text, exact=True) for text in ("green", "bold red"))
    plain = log(page).get_by_text("four blanks").evaluate("element => getComputedStyle(element).color")
    expect(green).not_to_have_css("color", plain)
    expect(red).not_to_have_css("color", plain)
    expect(red).to_have_css("font-weight", "700")
    expect(log(page)).not_to_contain_text("[32m")

    (releases / "part-2").touch()
    expect(log(page)).to_contain_text("part-2 has been released")
    expect(log(page)).not_to_contain_text("part-3 has been released")
    expect(header(page)).to_contain_text("Running")
    picture(page.get_by_test_id("main-content"), "growing-log", 640)

    (releases / "part-3").touch()
    expect(log(page)).to_contain_text("part-3 has been released")
    expect(header(page)).to_contain_text("Success")


def test_button_opens_the_page_of_the_job_in_the_ray_dashboard(
    page: Page, airflow: LocalAirflow, ray_head: RayHead, picture: Picture
):
    """The button "Ray job", on the tab Details, opens a window with the job of this task."""
    run_id = airflow.trigger("ray_jobs_nightly")
    assert airflow.wait_for_run("ray_jobs_nightly", run_id) == "success"
    submission_id = airflow.xcoms("ray_jobs_nightly", run_id, "report")["submission_id"]
    open_task(page, "ray_jobs_nightly", run_id, "report")
    page.get_by_role("link", name="Details", exact=True).click()

    with page.expect_popup() as opened:
        page.get_by_role("link", name="Ray job", exact=True).click()

    dashboard = opened.value
    expect(dashboard).to_have_url(f"{ray_head.address}/#/jobs/{submission_id}")
    expect(dashboard.get_by_text(submission_id).first).to_be_visible()
    expect(dashboard.get_by_text("SUCCEEDED").first).to_be_visible()
    picture(dashboard, "ray-dashboard-job", 800)


@pytest.mark.parametrize(
    ("state", "before", "after"),
    [
        ("running", "RUNNING", "STOPPED"),
        ("deferred", "RUNNING", "STOPPED"),
        ("failed", "FAILED", "FAILED"),
        ("success", "SUCCEEDED", "SUCCEEDED"),
    ],
)
def test_clear_runs_one_new_job(
    page: Page, ray_head: RayHead, runs: dict[str, str], state: str, before: str, after: str
):
    """Clear stops the job of the old try if it runs, and the new try has one job of its own."""
    dag_id = f"ui_clear_{state}"
    wait_for_jobs(ray_head, dag_id, before)
    open_task(page, dag_id, runs[dag_id])
    expect(header(page)).to_contain_text(state.capitalize())
    if state == "deferred":
        expect(log(page)).to_contain_text("(ID ")  # the triggerer has the trigger

    page.get_by_role("button", name="Press shift+c to clear").click()
    dialog = page.get_by_role("dialog")
    if state == "running":
        dialog.get_by_text("Prevent rerun if task is running").click()
    dialog.get_by_role("button", name="Confirm").click()

    wait_for_jobs(ray_head, dag_id, after, "SUCCEEDED")
    expect(header(page)).to_contain_text("Success")
    assert job_statuses(ray_head, dag_id) == [after, "SUCCEEDED"]


def test_mark_failed_stops_the_job_of_a_deferred_task(page: Page, ray_head: RayHead, runs: dict[str, str]):
    """The job of a deferred task that a user marks failed is STOPPED on the cluster."""
    wait_for_jobs(ray_head, "ui_mark_failed", "RUNNING")
    open_task(page, "ui_mark_failed", runs["ui_mark_failed"])
    expect(header(page)).to_contain_text("Deferred")
    expect(log(page)).to_contain_text("(ID ")  # the triggerer has the trigger

    page.get_by_role("button", name="Mark Task Instance as...").click()
    page.get_by_role("menuitem", name="Failed").click()
    page.get_by_role("dialog").get_by_role("button", name="Confirm").click()

    wait_for_jobs(ray_head, "ui_mark_failed", "STOPPED")
    expect(header(page)).to_contain_text("Failed")


def test_instances_of_a_mapped_task_have_names(
    page: Page, airflow: LocalAirflow, runs: dict[str, str], picture: Picture
):
    """The list shows the names of ``map_index_template`` instead of numbers."""
    run_id = runs["ray_jobs_functions"]
    airflow.wait_for_run("ray_jobs_functions", run_id)
    open_task(page, "ray_jobs_functions", run_id, "train")

    names = page.get_by_test_id("table-cell-rendered_map_index")
    expect(names).to_have_count(3)
    assert sorted(names.all_inner_texts()) == ["alpha 0.1", "alpha 0.5", "alpha 0.9"]
    picture(page.get_by_test_id("main-content"), "mapped-tasks", 580)


def test_result_of_a_function_is_an_xcom(page: Page, airflow: LocalAirflow, runs: dict[str, str], picture: Picture):
    """The tab XCom shows what the function on the cluster returned."""
    run_id = runs["ray_jobs_functions"]
    airflow.wait_for_run("ray_jobs_functions", run_id)
    best = airflow.xcoms("ray_jobs_functions", run_id, "best")["return_value"]
    open_task(page, "ray_jobs_functions", run_id, "register")
    page.get_by_role("link", name="Storage", exact=True).click()
    page.get_by_role("link", name="XCom", exact=True).click()

    result = page.get_by_role("row").filter(has_text="return_value").get_by_test_id("xcom-value")
    expect(result).to_contain_text(f"smoothing-{best['alpha']}")
    picture(page.get_by_test_id("main-content"), "xcom-result", 720)
