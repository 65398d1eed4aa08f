"""Two hosts between which instances move: the second has a network of its own."""

from __future__ import annotations

import http.client
import json
import shlex
import ssl
import subprocess
from pathlib import Path
from typing import Any

from .certificates import Authority
from .client import Fault
from .service import BERTH, Instance, Service

PORT = 8788


class Pair:
    """A source and a destination, which are each other's peers."""

    def __init__(
        self,
        runtime: str,
        lxcfs: Path | None,
        settings: dict[str, dict[str, Any]] | None = None,
        destination: Path | None = None,
    ):
        self.source = Service(runtime, lxcfs, settings=settings)
        self.destination = Service(runtime, lxcfs, base=destination, settings=settings)
        token = self.source.token
        self.namespace, links = f"{token}ns", (f"m{token}", f"n{token}")
        number = int(token[1:], 16)
        net = f"172.{16 + number % 16}.{number // 256}"
        self.addresses = f"{net}.1", f"{net}.2"
        self._sh(
            f"ip netns add {self.namespace}",
            f"ip link add {links[0]} type veth peer name {links[1]} netns {self.namespace}",
            f"ip addr add {self.addresses[0]}/30 dev {links[0]}",
            f"ip link set {links[0]} up",
            f"ip -n {self.namespace} addr add {self.addresses[1]}/30 dev {links[1]}",
            f"ip -n {self.namespace} link set {links[1]} up",
            f"ip -n {self.namespace} link set lo up",
        )
        program = self.destination.base / "berth"
        entered = f"nsenter --net=/run/netns/{self.namespace}"
        program.write_text(f'#!/bin/sh\nexec {entered} {shlex.quote(str(BERTH))} "$@"\n')
        program.chmod(0o755)
        self.destination.program = program
        self.authority = Authority(self.source.base / "tls")
        blocks = 256
        for number, service in enumerate(self.services):
            address = self.addresses[number]
            names = self.authority.sign(f"host{number}", address)
            service.settings["service.tls"] = {
                "listen": f"{address}:{PORT}",
                "client_ca": str(self.authority.certificate),
                **names,
            }
            service.settings["migration"] = {"peers": [f"host{1 - number}"]}
            service.settings["instances"] |= {
                "id_map_first": self.source.id_map_first + number * blocks * 65_536,
                "id_map_blocks": blocks,
            }

    @property
    def services(self) -> tuple[Service, Service]:
        return self.source, self.destination

    def url(self, service: Service | None = None) -> str:
        """Where a service, the destination if none is said, is found by the other."""
        return f"https://{self.addresses[(service or self.destination) is self.destination]}:{PORT}"

    def start(self) -> None:
        for service in self.services:
            service.start()

    def there(self, instance: Instance) -> Instance:
        """The same instance on the destination."""
        other = Instance(self.destination, instance.id)
        other.definition = instance.definition
        return other

    def cut(self, up: bool = False) -> None:
        """Cuts the line between the two, or mends it."""
        self._sh(f"ip link set m{self.source.token} {'up' if up else 'down'}")

    def call(self, certificate: dict[str, str], method: str, path: str, body: Any = None) -> Any:
        """A request to the destination over TCP, with a certificate of one's own."""
        tls = ssl.create_default_context(cafile=str(self.authority.certificate))
        tls.load_cert_chain(certificate["certificate"], certificate["private_key"])
        connection = http.client.HTTPSConnection(self.addresses[1], PORT, context=tls, timeout=30)
        try:
            headers = {"Content-Type": "application/json"}
            connection.request(method, path, None if body is None else json.dumps(body), headers)
            answer = connection.getresponse()
            content = answer.read()
        finally:
            connection.close()
        if answer.status >= 400:
            raise Fault(answer.status, content, answer.headers.get("Content-Type", ""))
        return json.loads(content) if content else None

    def close(self) -> list[str]:
        left = []
        for service in self.services:
            left += service.close()
        subprocess.run(["ip", "netns", "del", self.namespace], check=False)
        return left

    @staticmethod
    def _sh(*commands: str) -> None:
        for command in commands:
            subprocess.run(shlex.split(command), check=True, capture_output=True)
