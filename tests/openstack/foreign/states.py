"""The states in which a server is called, how it gets into each, and the calls of each."""

from __future__ import annotations

import contextlib
from typing import Any

from foreign.calls import NAME, Answer, Cloud, call, stable
from openstack import exceptions

# Subcommands about one server; in other states those of LIFE. S: the server, P: a port of its own.
CALLS = (
    "server show S",
    "server show --diagnostics S",
    "server event list S",
    "server volume list S",
    "console log show S",
    "console url show S",
    "console url show --spice S",
    "console url show --serial S",
    "server set --name calls-renamed S",
    "server set --description words S",
    "server set --property a=b S",
    "server unset --property a S",
    "server set --tag t S",
    "server set --password Secret-of-calls S",
    "server add security group S default",
    "server add port S P",
    "server remove port S P",
    "server add fixed ip S private",
    "server add network S public",
    "server add volume S nothing",
    "server dump create S",
    "server image create --name calls-image S",
    "server backup create --name calls-backup --type daily --rotate 1 S",
    "server migrate S",
    "server migrate --live-migration S",
    "server migration list --server S",
    "server migration confirm S",
    "server migration revert S",
    "server evacuate S",
    "server restore S",
    "server pause S",
    "server unpause S",
    "server suspend S",
    "server resume S",
    "server stop S",
    "server start S",
    "server reboot S",
    "server reboot --hard S",
    "server rescue S",
    "server unrescue S",
    "server resize --flavor micro S",
    "server resize --flavor nano S",
    "server resize confirm S",
    "server resize revert S",
    "server shelve S",
    "server unshelve S",
    "server rebuild --image tempest S",
    "server lock S",
    "server unlock S",
    "server delete S",
)
# Those whose answer depends on the state.
STATEFUL = (
    "server show --diagnostics",
    "console log",
    "console url show S",
    "server set --password",
    "server add port",
    "server remove port",
    "server image create",
    "server migrate S",
    *(f"server {verb} S" for verb in ("pause", "unpause", "suspend", "resume", "stop", "start")),
    *(
        f"server {verb}"
        for verb in ("reboot", "rescue", "unrescue", "shelve", "unshelve", "rebuild", "delete")
    ),
    "server resize --flavor micro",
    "server resize confirm",
    "server resize revert",
)
LIFE = tuple(words for words in CALLS if words.startswith(STATEFUL))
# What only administrators may.
ADMINISTRATORS = (
    "server migrat",
    "server evacuate",
    "server dump",
    "server show --diag",
)
# The verbs that bring a server into a state from ACTIVE, and back.
INTO: dict[str, tuple[str, str, tuple[object, ...]]] = {
    "PAUSED": ("pause_server", "unpause_server", ()),
    "SUSPENDED": ("suspend_server", "resume_server", ()),
    "SHUTOFF": ("stop_server", "start_server", ()),
    "RESCUE": ("rescue_server", "unrescue_server", ()),
    "SHELVED_OFFLOADED": ("shelve_server", "unshelve_server", ()),
    "VERIFY_RESIZE": ("resize_server", "revert_server_resize", ("micro",)),
}
# Where it leads to what is done without a task that could be seen.
UNSEEN = {
    "server delete S": "gone",
    "server resize confirm S": "ACTIVE",
    "server migration confirm S": "ACTIVE",
}
# What befell a server that Nova holds for ACTIVE.
BEFALLEN = ("locked", "lost by berth", "image deleted", "port deleted")
STATES = {"ACTIVE": CALLS, **dict.fromkeys((*INTO, "ERROR", *BEFALLEN), LIFE)}
# Servers that are not to be had.
TEMPEST = "--flavor nano --image tempest --network private"
CREATE = (
    "--flavor nothing --image tempest --network private",
    "--flavor nano --image nothing --network private",
    "--flavor nano --image tempest --network nothing",
    "--flavor nano --image debian --network private",
    "--flavor nano --image tempest --nic net-id=N,v4-fixed-ip=192.0.2.1",
    *(
        f"{TEMPEST} {more}"
        for more in (
            "--key-name nothing",
            "--security-group nothing",
            "--availability-zone nothing",
            "--hint group=nothing",
            "--boot-from-volume 1",
            "--ephemeral size=1",
            "--swap 64",
            "--property berth:command=['",
            "--file /etc/motd=/nothing",
        )
    ),
)


class Subject:
    """The server that is called, made anew whenever what a call left cannot be undone."""

    def __init__(self, cloud: Cloud) -> None:
        self.cloud = cloud
        self.server: Any = None
        self.port: Any = None
        self.befallen = ""

    def bring_into(self, state: str) -> None:
        """Has a server in the state, where nothing else is the matter with it."""
        if self._is(state) or (state == self.befallen and self._is("ACTIVE", befallen=state)):
            return
        if state in BEFALLEN or not self._is_active_again():
            self._renew(of_its_own_image=state == "image deleted")
        if state in BEFALLEN:
            self._befall(state)
        elif state == "ERROR":
            self.cloud.admin.compute.reset_server_state(self.server, "error")
        elif state in INTO:
            verb, _, more = INTO[state]
            getattr(self.cloud.demo.compute, verb)(self.server, *more)
        wanted = "ACTIVE" if state in BEFALLEN else state
        assert self.cloud.settle(self.server) == wanted, f"the server cannot be brought into {state}"

    def _is(self, state: str, befallen: str = "") -> bool:
        if self.server is None or self.befallen != befallen:
            return False
        if self.cloud.settle(self.server) != state:
            return False
        # A resize that was confirmed cannot be undone; nor can the loss of all ports.
        flavor = "micro" if state == "VERIFY_RESIZE" else "nano"
        now = self.cloud.demo.compute.get_server(self.server.id)
        has_port = bool(now.addresses) or befallen == "port deleted"
        return now.flavor.name == flavor and has_port

    def _is_active_again(self) -> bool:
        if self.server is None or self.befallen:
            return False
        now = self.cloud.settle(self.server)
        if now in INTO:
            with contextlib.suppress(exceptions.SDKException):
                getattr(self.cloud.demo.compute, INTO[now][1])(self.server)
        return self._is("ACTIVE")

    def _renew(self, of_its_own_image: bool) -> None:
        self.drop()
        image = self.cloud.copy_of_image() if of_its_own_image else "tempest"
        self.server = self.cloud.create(image=image)

    def drop(self) -> None:
        """Without a server, port or image."""
        self.cloud.clear()
        self.server = self.port = None
        self.befallen = ""

    def _befall(self, what: str) -> None:
        cloud, server = self.cloud, self.server
        if what == "locked":
            cloud.admin.compute.lock_server(server)
        elif what == "lost by berth":
            cloud.lose(server)
        elif what == "image deleted":
            cloud.admin.image.delete_image(server.image.id)
        else:
            for port in cloud.admin.network.ports(device_id=server.id):
                cloud.admin.network.delete_port(port)
        self.befallen = what

    def call(self, words: str) -> Answer:
        """Runs the client on the server."""
        if " P" in words and self.port is None:
            self.port = self.cloud.demo.network.create_port(network_id=self.cloud.network, name=NAME)
        user = "admin" if words.startswith(ADMINISTRATORS) else "demo"
        ids = {"S": self.server.id, "P": self.port and self.port.id}
        return call(*(ids.get(word, word).replace("calls-", f"{NAME}-") for word in words.split()), user=user)


def rows(cloud: Cloud, state: str) -> list[str]:
    """The table's lines of a state."""
    subject, lines = Subject(cloud), []
    try:
        for words in STATES[state]:
            subject.bring_into(state)
            before, fault = cloud.actions(subject.server), cloud.fault(subject.server)
            answer = subject.call(words)
            after = cloud.settle(subject.server, UNSEEN.get(words) if not answer.said else None)
            why = cloud.reason(subject.server, before, fault) if after != "gone" else ""
            lines.append(line(state, words, answer, after, why))
    finally:
        subject.drop()
    return lines


def creations(cloud: Cloud) -> list[str]:
    """The table's lines of servers that cannot be made."""
    lines = []
    for options in CREATE:
        words = options.replace("net-id=N", f"net-id={cloud.network}").split()
        answer = call("server", "create", *words, NAME)
        server = next(iter(cloud.demo.compute.servers(name=f"^{NAME}$")), None)
        after = cloud.settle(server) if server else "none"
        why = cloud.reason(server, set()) if server else ""
        lines.append(line("none", f"server create {options}", answer, after, why))
        cloud.clear()
    return lines


def line(state: str, words: str, answer: Answer, after: str, why: str) -> str:
    """One line of the table."""
    fields = (state, words, answer.status, answer.said, after, why)
    return " | ".join(stable(field) or "-" for field in fields)
