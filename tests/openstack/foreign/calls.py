"""`openstack server …` in the states of a server, and what comes of each call.

Each call is python-openstackclient's own, run from here, so that what it asks of
Nova and what Nova answers is seen. A row says: the server's state, the call, the
requests that change something (or the last that asks) with their HTTP status, what
the client says, the server's state afterwards, and the reason that Nova keeps: the
server's fault, or what its last action's events tell.

What differs from run to run is written as a word: ids, addresses, times.
"""

from __future__ import annotations

import contextlib
import io
import multiprocessing
import os
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import requests
from cloud import compute, identity, resources
from cloud.place import PORTS
from openstackclient.shell import OpenStackShell

from openstack import exceptions

# Each process of several has servers and images of its own.
NAME = "calls" + os.environ.get("PYTEST_XDIST_WORKER", "")
# Nova, Glance and Neutron.
WATCHED = {PORTS[name] for name in ("nova-api", "glance", "neutron-api")}
SECONDS = 120
# States that a server only passes through.
PASSING = ("BUILD", "REBUILD", "RESIZE", "REVERT_RESIZE")
VOLATILE = (
    (re.compile(r"req-[0-9a-f-]{36}"), "REQUEST"),
    (re.compile(r"\b[0-9a-f]{8}-?[0-9a-f]{4}-?[0-9a-f]{4}-?[0-9a-f]{4}-?[0-9a-f]{12}\b"), "ID"),
    (re.compile(r"\b[0-9a-f]{2}(:[0-9a-f]{2}){5}\b"), "MAC"),
    (re.compile(r"\b\d{1,3}(\.\d{1,3}){3}\b"), "ADDRESS"),
    (re.compile(r"instance-[0-9a-f]{8}"), "INSTANCE"),
    (re.compile(r"\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d(\.\d+)?Z?"), "TIME"),
)


# What the client puts before Nova's words; the status is in the table already.
NOISE = re.compile(r"(\w+Exception: \d+: )?(Client|Server) Error for url: \S+, ")


def stable(text: str) -> str:
    """A text on one line, without what differs from run to run."""
    text = NOISE.sub("", text).replace(NAME, "calls")
    for pattern, word in VOLATILE:
        text = pattern.sub(word, text)
    return " ".join(text.replace("|", "/").split())


@dataclass(frozen=True)
class Answer:
    """What came of one call of the client."""

    status: str
    said: str


@contextlib.contextmanager
def _watched() -> Iterator[list[str]]:
    """The requests to the watched services while it is open, the last one's status with each."""
    seen: list[str] = []
    plain = requests.Session.send

    def send(self: requests.Session, request: requests.PreparedRequest, **options: Any) -> Any:
        answer = plain(self, request, **options)
        url = requests.utils.urlparse(request.url)
        if url.port in WATCHED:
            seen.append(f"{request.method} {_tail(url.path, request.body)} {answer.status_code}")
        return answer

    requests.Session.send = send  # type: ignore[method-assign]
    try:
        yield seen
    finally:
        requests.Session.send = plain  # type: ignore[method-assign]


def _tail(path: str, body: Any) -> str:
    """A path without version and ids, and the verb of a server's action."""
    words = [w for w in path.split("/") if w and not re.fullmatch(r"v2(\.\d+)?|[0-9a-f-]{32,36}", w)]
    tail = "/".join(words)
    if words and words[-1] == "action" and body:
        text = body.decode() if isinstance(body, bytes) else str(body)
        tail += ":" + re.findall(r'"([^"]+)"', text)[0]
    return stable(tail)


def call(*words: str, user: str = "demo") -> Answer:
    """Runs the client; of its requests those that would change something, or else the last.

    In a process of its own: in the same one, every later call would be the first one's user's.
    """
    options = {
        "auth-url": identity.KEYSTONE,
        "username": user,
        "project-name": user,
        "password": identity.PASSWORD,
        "user-domain-id": "default",
        "project-domain-id": "default",
        "region-name": identity.REGION,
        "compute-api-version": "2.95",
    }
    words = (*(f"--os-{name}={value}" for name, value in options.items()), *words)
    fork = multiprocessing.get_context("fork")
    here, there = fork.Pipe(duplex=False)
    child = fork.Process(target=_call, args=(words, there), daemon=True)
    child.start()
    answer = here.recv() if here.poll(SECONDS) else Answer("", f"no answer in {SECONDS} s")
    child.kill()
    child.join()
    return answer


def _call(words: tuple[str, ...], pipe: Any) -> None:
    out, said = io.StringIO(), io.StringIO()
    with _watched() as seen, contextlib.redirect_stdout(out), contextlib.redirect_stderr(said):
        try:
            code = OpenStackShell().run(list(words))
        except SystemExit as end:
            code = end.code
    changing = [request for request in seen if not request.startswith("GET ")]
    pipe.send(Answer(", ".join(changing or seen[-1:]), stable(said.getvalue()) if code else ""))


class Cloud:
    """The demo user's servers, with what an administrator must do for them."""

    def __init__(self) -> None:
        self.demo, self.admin = identity.connect("demo"), identity.connect("admin")
        self.network = self.demo.network.find_network("private").id

    def create(self, **values: Any) -> Any:
        """A server, ACTIVE."""
        wanted = {"name": NAME, "flavor": "nano", "image": "tempest", "network": self.network} | values
        return self.demo.create_server(key_name="demo", auto_ip=False, wait=True, timeout=SECONDS, **wanted)

    def copy_of_image(self) -> str:
        """An image of the calls' own, which they may delete."""
        return resources.copy_of_tempest(self.admin, f"{NAME}-own").id

    def get(self, server: Any) -> Any | None:
        with contextlib.suppress(exceptions.NotFoundException):
            return self.admin.compute.get_server(server.id)
        return None

    def settle(self, server: Any, wanted: str | None = None) -> str:
        """Waits until Nova does nothing with the server, and it is in the wanted state; its state then."""
        deadline = time.monotonic() + SECONDS
        while True:
            now = self.get(server)
            if now is None or now.status == "DELETED":
                return "gone"
            idle = now.task_state is None and now.status not in PASSING
            if idle and now.status == (wanted or now.status):
                return now.status
            if time.monotonic() > deadline:
                return now.status if idle else f"{now.status}, hangs in {now.task_state}"
            time.sleep(0.3)

    def fault(self, server: Any) -> dict[str, Any] | None:
        """The fault that Nova shows of a server in ERROR."""
        now = self.get(server)
        return now.fault if now is not None and now.status == "ERROR" else None

    def reason(self, server: Any, since: set[str], before: dict[str, Any] | None = None) -> str:
        """The fault, if it is another than before; else what the actions after `since` say of a failure."""
        now = self.fault(server)
        if now and now != before:
            return stable(now["message"])
        told = []
        for request in self.actions(server) - since:
            action = self._get(server, request)["instanceAction"]
            details = [event.get("details") for event in action["events"] if event["result"] == "Error"]
            told += [detail or "an error without details" for detail in details]
            if action["message"] and not told:
                told.append(action["message"])
        return stable("; ".join(dict.fromkeys(told)))

    def actions(self, server: Any) -> set[str]:
        """The requests that did something with the server."""
        answer = self._get(server)
        return {action["request_id"] for action in answer.get("instanceActions", ())}

    def _get(self, server: Any, *more: str) -> dict[str, Any]:
        path = "/".join(("/servers", server.id, "os-instance-actions", *more))
        return self.admin.compute.get(path, microversion="2.95").json()

    def lose(self, server: Any) -> None:
        """Makes the service know nothing of the server, behind Nova's back."""
        if server.id in compute.FIRST.berth("--json", "list"):
            compute.FIRST.berth("delete", server.id)

    def delete(self, server: Any) -> None:
        with contextlib.suppress(exceptions.NotFoundException):
            self.admin.compute.unlock_server(server.id)
        self.admin.delete_server(server.id, wait=True, timeout=SECONDS)

    def clear(self) -> None:
        """Removes everything that this made, also of a run that was cut short."""
        for server in list(self.admin.compute.servers(all_projects=True, name=f"^{NAME}")):
            # Not another process's, whose name goes on with a digit.
            if server.name == NAME or server.name.startswith(f"{NAME}-"):
                self.delete(server)
        for image in list(self.admin.image.images()):
            if image.name and image.name.startswith(f"{NAME}-"):
                self.admin.image.delete_image(image.id)
        for port in list(self.admin.network.ports(name=NAME)):
            self.admin.network.delete_port(port)
