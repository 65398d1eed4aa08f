"""With everything logged: no password, token, key or user data in berth's log or in nova-compute's."""

from __future__ import annotations

import base64
import re
from typing import Any

import pytest
from cloud.place import DEBUG, KEY, LOG, PASSWORD
from helpers import server, ssh

SECRET = "quite-a-secret-of-the-user"
USER_DATA = f"#!/bin/sh\n: {SECRET}-in-user-data\n"
# Keystone's tokens, as Fernet makes them.
TOKEN = re.compile(r"gAAAA[\w-]{60,}")
# The three ways in which base64 may hold it.
HIDDEN = [base64.b64encode(b"." * shift + SECRET.encode())[4:-4].decode() for shift in range(3)]


def lines_of(log: str) -> list[str]:
    return (LOG / log).read_text(errors="replace").splitlines()


def test_no_secret_is_logged(demo: Any) -> None:
    if not DEBUG:
        pytest.skip("this cloud was brought up without BERTH_OPENSTACK_DEBUG")
    private = demo.network.find_network("private")
    with server(
        demo,
        "secretive",
        private,
        image="tempest",
        flavor="nano",
        userdata=USER_DATA,
        config_drive=True,
        admin_pass=f"{SECRET}-at-first",
    ) as made:
        ssh("root", made.access_ipv4, "true")
        demo.compute.change_server_password(made, f"{SECRET}-changed")
        demo.compute.rebuild_server(
            made,
            image=demo.image.find_image("tempest").id,
            name="secretive",
            admin_password=f"{SECRET}-rebuilt",
        )
        demo.compute.wait_for_server(made, wait=120)
        demo.compute.rescue_server(made, admin_pass=f"{SECRET}-rescued")
        demo.compute.wait_for_server(made, status="RESCUE", wait=120)
    key = KEY.read_text().splitlines()[2]
    needles = [SECRET, *HIDDEN, PASSWORD, key]
    for log in ("berth.log", "nova-compute.log"):
        lines = lines_of(log)
        assert any("DEBUG" in line for line in lines), "little is logged: this proves nothing"
        found = [line for line in lines if any(n in line for n in needles) or TOKEN.search(line)]
        assert found == []
