"""Heat's templates of etc/heat: made to COMPLETE, used, updated, deleted."""

from __future__ import annotations

import contextlib
import json
import urllib.request
from collections.abc import Iterator
from typing import Any

from cloud.place import ROOT
from helpers import eventually, ssh

HERE = ROOT / "tests/openstack"
PLACES = (ROOT / "etc/heat", HERE, HERE / "foreign/templates")


def name_of(template: str) -> str:
    return f"test-{template}"


class Stack:
    """A stack from one of the templates."""

    def __init__(self, cloud: Any, template: str, **parameters: object):
        self.cloud, self.template, self.parameters = cloud, template, parameters
        self.name = name_of(template)
        cloud.create_stack(
            self.name, template_file=self._file(), rollback=False, wait=True, timeout=600, **parameters
        )
        self._is("CREATE_COMPLETE")

    def _file(self) -> str:
        files = (place / f"{self.template}.yaml" for place in PLACES)
        return str(next(file for file in files if file.exists()))

    def _is(self, status: str) -> None:
        found = self.cloud.get_stack(self.name)
        assert found.status == status, found.status_reason

    def outputs(self) -> dict[str, Any]:
        return {
            output["output_key"]: output["output_value"] for output in self.cloud.get_stack(self.name).outputs
        }

    def update(self, **parameters: object) -> None:
        self.parameters |= parameters
        self.cloud.update_stack(
            self.name, template_file=self._file(), rollback=False, wait=True, timeout=600, **self.parameters
        )
        self._is("UPDATE_COMPLETE")

    def servers(self) -> list[Any]:
        return [
            r for r in self.cloud.orchestration.resources(self.name) if r.resource_type == "OS::Nova::Server"
        ]

    def delete(self) -> None:
        servers = [server.physical_resource_id for server in self.servers()]
        self.cloud.delete_stack(self.name, wait=True)
        assert self.cloud.get_stack(self.name) is None
        left = [server for server in servers if self.cloud.compute.find_server(server)]
        assert left == [], "servers outlived their stack"


@contextlib.contextmanager
def stack(cloud: Any, template: str, **parameters: object) -> Iterator[Stack]:
    """Deleted in the end, also after a failure."""
    try:
        made = Stack(cloud, template, **parameters)
        yield made
    except BaseException:
        cloud.delete_stack(name_of(template), wait=True)
        raise
    made.delete()


def get(url: str) -> str:
    with urllib.request.urlopen(url, timeout=5) as answer:
        return answer.read().decode()


def test_one_server_takes_the_users_key(demo: Any) -> None:
    with stack(demo, "server") as made:
        assert "status: done" in ssh("debian", made.outputs()["address"], "cloud-init status --wait")


def test_ten_servers_signal_from_inside(demo: Any) -> None:
    with stack(demo, "scaling-group", image="tempest", flavor="nano") as made:
        outputs = made.outputs()
        assert len(outputs["addresses"]) == 10
        assert len(set(json.loads(outputs["names"]).values())) == 10


def test_application_has_environment_and_command(demo: Any) -> None:
    with stack(demo, "application", greeting="from Heat", port=8123) as made:
        url = made.outputs()["url"]
        assert url.endswith(":8123/")
        assert "berth serves this page" in eventually("the page", lambda: get(url))
        server = demo.compute.find_server(made.servers()[0].physical_resource_id)
        console = demo.compute.get_server_console_output(server)["output"]
        assert "from Heat" in console


def test_cloudformations_signals_from_inside(demo: Any) -> None:
    with stack(demo, "cloudformation") as made:
        outputs = made.outputs()
        assert json.loads(outputs["told"]) == {"one": outputs["name"]}
        eventually("the group to grow", lambda: made.outputs()["size"] == 1)


def test_update_of_flavor_and_image(admin: Any, demo: Any) -> None:
    private = demo.network.find_network("private").id
    with stack(admin, "flavor", network=private) as made:
        before = made.outputs()
        made.update(extra_specs={"berth:processes": "200"})
        flavor = admin.compute.find_flavor(before["flavor"], get_extra_specs=True)
        assert flavor.extra_specs["berth:processes"] == "200"
        made.update(image="tempest-alt")
        server = admin.compute.get_server(made.outputs()["server"])
        assert server.id == before["server"], "rebuilt, not replaced"
        assert server.image.id == admin.image.find_image("tempest-alt").id
        assert server.status == "ACTIVE"
