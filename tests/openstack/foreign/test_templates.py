"""Templates of the shapes that heat-templates' `hot/` has, for what this cloud has.

`network`: servers_in_new_neutron_net, servers_in_existing_neutron_net, server_console, condition and
neutron/instance_trunk_port. `groups`: resource_group and its index lookup, asg_of_servers, random.
`boot`: software-config's examples with cloud-init, native_waitcondition. Hello worlds, CloudFormation's
addresses, autoscaling and flavors are `test_heat.py`'s. The others want what there is not: Octavia, Cinder,
Mistral, Aodh, Senlin, Magnum, Barbican, Designate, Blazar, Windows, or images with heat-config's agents.
"""

from __future__ import annotations

import json
from typing import Any

from cloud.place import KEY
from helpers import eventually, ssh
from test_heat import get, stack


def test_servers_in_a_network_of_their_own(demo: Any) -> None:
    with stack(demo, "network", public_key=KEY.with_suffix(".pub").read_text()) as made:
        outputs = made.outputs()

        def reaches(address: str) -> bool:
            said = ssh("root", outputs["address"], f"ping -c 1 -w 5 {address} || echo silence")
            return "silence" not in said

        eventually("one to reach two", lambda: reaches(outputs["neighbour"]), 120)
        assert not reaches("10.84.0.99"), "nobody is there"
        assert "noVNC" in get(outputs["console"])
        assert outputs["serial"].startswith("ws://")
        ports = {port.id for port in demo.network.ports(fixed_ips="ip_address=10.84.0.15")}
        assert len(ports) == 1
        # Without the trunk the server is the same.
        before = {server.physical_resource_id for server in made.servers()}
        made.update(trunked=False)
        assert {server.physical_resource_id for server in made.servers()} == before
        assert reaches(outputs["neighbour"])


def test_groups_of_servers_grow_and_shrink(demo: Any) -> None:
    with stack(demo, "groups") as made:
        outputs = made.outputs()
        assert outputs["names"] == ["numbered-0", "numbered-1"]
        assert (outputs["second"], outputs["scaled"]) == ("numbered-1", 2)
        made.update(count=1)
        assert made.outputs()["names"] == ["numbered-0"]
        demo.orchestration.post(f"/stacks/{made.name}/{demo.get_stack(made.name).id}/resources/more/signal")
        eventually("the group to grow", lambda: made.outputs()["scaled"] == 2, 120)


def test_parts_of_user_data(demo: Any) -> None:
    with stack(demo, "boot") as made:
        outputs = made.outputs()
        assert json.loads(outputs["told"]) == {"name": "by-parts", "words": outputs["word"]}
