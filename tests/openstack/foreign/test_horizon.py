"""Horizon in a headless Chromium: what a person sees of a server, and what the API says of it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cloud.horizon import PROGRAM, URL
from cloud.place import PASSWORD
from helpers import eventually

from foreign.browser import Page, browser

NAME, SNAPSHOT = "by-horizon", "by-horizon-snapshot"
# Wizard steps before those that may stay as they are: the image, and the flavor.
CHOICES = ("tempest", "nano")


@pytest.fixture
def page(tmp_path: Path) -> Iterator[Page]:
    """The demo user's, logged in. What was seen last stays where pytest keeps its directories."""
    if not PROGRAM.pid:
        pytest.skip("this cloud was brought up without HORIZON=1")
    with browser(tmp_path) as opened:
        try:
            opened.go(f"{URL}auth/login/")
            opened.fill("#id_username", "demo")
            opened.fill("#id_password", PASSWORD)
            opened.click("#loginBtn")
            opened.until("location.pathname.startsWith('/project/')")
            yield opened
        finally:
            opened.picture(tmp_path / "last.png")


@pytest.fixture
def tidy(demo: Any) -> Iterator[None]:
    def clear() -> None:
        demo.delete_server(NAME, wait=True, timeout=120)
        demo.delete_image(SNAPSHOT)

    clear()
    yield
    clear()


def row(page: Page, name: str, *texts: str) -> None:
    """Waits until the server's line in the table of instances has all of the texts."""
    wanted = json.dumps([name, *texts])
    page.until(
        f"[...document.querySelectorAll('#instances tbody tr')].some(r =>"
        f" {wanted}.every(text => r.innerText.includes(text)))",
        120,
    )


def choose(page: Page, name: str) -> None:
    """Takes what has the name from those that a step of the wizard offers."""
    page.until(
        "(r => r && (r.querySelector('button').click(), true))"
        "([...document.querySelectorAll('.transfer-available tr')].find(r => r.getClientRects().length"
        f" && [...r.cells].some(c => c.textContent.trim() == {json.dumps(name)})))"
    )


def launch(page: Page) -> None:
    """By the wizard, whose other steps stay as they are."""
    page.go(f"{URL}project/instances/")
    page.click("#instances__action_launch-ng")
    page.fill("#name", NAME)
    for name in CHOICES:
        page.click("wizard button.next")
        choose(page, name)
    page.click("wizard button.finish")
    row(page, NAME, "Active", "Running")


def tab(page: Page, server: Any, name: str) -> str:
    """What a tab of the server's page says."""
    page.go(f"{URL}project/instances/{server.id}/?tab=instance_details__{name}")
    return page.until(f"document.querySelector('#instance_details__{name}').innerText.trim()")


@pytest.mark.usefixtures("tidy")
def test_a_server_by_the_wizard_is_what_the_api_says(demo: Any, page: Page) -> None:
    launch(page)
    server = demo.compute.find_server(NAME, details=True)
    port = next(demo.network.ports(device_id=server.id))
    address = port.fixed_ips[0]["ip_address"]
    image = demo.image.find_image("tempest")
    assert (server.image.id, server.flavor.name, server.key_name) == (image.id, "nano", "demo")
    row(page, NAME, address, "tempest", "nano", "demo", server.availability_zone)

    overview = tab(page, server, "overview").splitlines()
    for value in (server.id, server.project_id, "Active", "64MB", "1 vCPU", "1GB", address, image.id):
        assert value in overview
    assert {port.mac_address, address} <= set(tab(page, server, "interfaces").split())

    said = demo.compute.get_server_console_output(server)["output"]
    line = f"tempest image: {NAME} is up"
    assert line in said
    assert line in tab(page, server, "log")

    action = next(demo.compute.server_actions(server))
    assert {action.request_id, "Create"} <= set(tab(page, server, "audit").split())


@pytest.mark.usefixtures("tidy")
def test_its_console_takes_keys(demo: Any, page: Page) -> None:
    launch(page)
    server = demo.compute.find_server(NAME)
    tab(page, server, "console")
    # Alone, for the page around it is another origin's.
    page.go(page.until("document.querySelector('#console_embed').src"))
    page.until("document.body.innerText.includes('Connected to')")
    drawn = "(c => new Set(c.getContext('2d').getImageData(0, 0, c.width, c.height).data).size > 2)"
    page.until(f"{drawn}(document.querySelector('canvas'))")
    page.value("document.querySelector('canvas').focus()")
    page.type("echo typed-$((6*7))\n")
    eventually(
        "what was typed", lambda: "typed-42" in demo.compute.get_server_console_output(server)["output"]
    )
    assert "typed-42" in tab(page, server, "log")


@pytest.mark.usefixtures("tidy")
def test_a_snapshot_and_the_end(demo: Any, page: Page) -> None:
    launch(page)
    server = demo.compute.find_server(NAME)
    page.click(f"#instances__row_{server.id}__action_snapshot")
    page.fill("#id_name", SNAPSHOT)
    page.click(".modal-dialog input[type=submit], .modal-dialog button[type=submit]")
    image = eventually("the snapshot", lambda: demo.image.find_image(SNAPSHOT), 120)
    eventually("it to be whole", lambda: demo.image.get_image(image.id).status == "active", 120)
    page.go(f"{URL}project/images")
    page.until(f"document.body.innerText.includes({json.dumps(SNAPSHOT)})")

    page.go(f"{URL}project/instances/")
    row(page, NAME, "Active")
    page.click(f"#instances__row__{server.id} .dropdown-toggle")
    page.click(f"#instances__row_{server.id}__action_delete")
    page.click(".modal-dialog .btn", "Delete Instance")
    eventually("its end", lambda: demo.compute.find_server(server.id) is None, 120)
    page.until("!document.querySelector('#instances tbody').innerText.includes('by-horizon')")
