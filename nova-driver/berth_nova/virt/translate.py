"""Nova's objects as the service's request bodies. Pure: values in, values out.

What a user of the cloud can say to an application image, as server metadata
or (a default for all servers of the image) as image properties:

* `berth:env:NAME` — the environment variable NAME of the first process;
* `berth:command` — the command instead of the image's: a JSON list of
  strings, or words as a shell splits them.
"""

import base64
import ipaddress
import json
import posixpath
import shlex

from nova import exception
from nova.virt import driver
from nova.virt.berth import asked

ENV = 'berth:env:'
COMMAND = 'berth:command'
# How an instance's interfaces get their addresses, in its metadata.
ADDRESSING = 'nova:addressing'
# Every instance of Nova's has it; others on the host are none of Nova's.
PROJECT = 'nova:project_id'
# By this, cloud-init knows OpenStack in a container.
PRODUCT = {'product_name': 'OpenStack Nova'}
# Programs that are an init, for an image that names its init as its command.
INITS = ('init', 'systemd')
# The kernel's limit for a host name.
HOSTNAME_MAX = 64
# Interface names as Nova makes them.
DEVNAME_MAX = 14
# Neutron's name of it in a binding's details.
USERSPACE_DATAPATH = 'netdev'
EVERYWHERE = {4: '0.0.0.0/0', 6: '::/0'}


def instance_create(instance, image, network_info, files=(), block_device_info=None,
                    image_meta=None):
    """The body that makes an instance.

    :param image: the image as the service describes it
    :param files: bodies from `injected_files`
    :param image_meta: the image as Nova describes it
    """
    system = boots_init(instance, image)
    environment, command = process(instance)
    body = {
        'name': instance.name,
        'image_id': image['id'],
        'flavor': flavor(instance.flavor, block_device_info, image_meta),
        'vifs': vifs(network_info, static=not system),
        'environment': {**(PRODUCT if system else {}), **environment},
        'files': list(files),
        'metadata': {
            PROJECT: instance.project_id or '',
            'nova:user_id': instance.user_id or '',
            'nova:display_name': instance.display_name or '',
            ADDRESSING: 'dhcp' if system else 'static',
        },
    }
    if hostname := host_name(instance):
        body['hostname'] = hostname
    if servers := name_servers(network_info, static=not system):
        body['dns'] = {'nameservers': servers}
    if command:
        body['command'] = command
    return body


def rescue(image, files):
    """The body that boots an instance from a rescue image, as itself: with
    nothing that was said for the instance's own."""
    environment = PRODUCT if image_boots_init(image) else {}
    return {'image_id': image['id'], 'environment': dict(environment), 'files': list(files)}


def boots_init(instance, image):
    """Whether an instance of the image boots an init, as a machine does.

    If not, nothing inside it asks a DHCP server. The service decides the same
    way (`Role::of` in its src/runtime/spec.rs).
    """
    return image_boots_init(image, process(instance)[1])


def image_boots_init(image, command=None):
    """The same of the image with another command, or with its own."""
    config = image['config']
    command = command or config.get('cmd') or []
    words = list(config.get('entrypoint') or []) + list(command)
    if not words:
        return bool(config.get('init'))
    return posixpath.basename(words[0]) in INITS


def host_name(instance):
    """The host name inside; a longer one loses its domain, then its end."""
    name = instance.hostname or ''
    if len(name) > HOSTNAME_MAX:
        name = name.split('.')[0][:HOSTNAME_MAX].rstrip('-')
    return name


def flavor(nova_flavor, block_device_info=None, image_meta=None):
    """Sizes of ephemeral disk and swap that the user chose come before the flavor's, and the
    CPU policy is the one that Nova finds in flavor and image together."""
    ephemerals = driver.block_device_info_get_ephemerals(block_device_info)
    swap = driver.block_device_info_get_swap(block_device_info)
    ephemeral_gb = sum(e['size'] for e in ephemerals) or nova_flavor.ephemeral_gb
    swap_mb = swap['swap_size'] if driver.swap_is_usable(swap) else nova_flavor.swap
    extra_specs = dict(nova_flavor.extra_specs or {})
    if policy := asked.cpu_policy(nova_flavor, image_meta):
        extra_specs['hw:cpu_policy'] = policy
    return {
        'name': nova_flavor.name or '',
        'vcpus': nova_flavor.vcpus,
        'memory_mb': nova_flavor.memory_mb,
        'root_gb': nova_flavor.root_gb,
        'ephemeral_gb': ephemeral_gb or 0,
        'swap_mb': swap_mb or 0,
        'extra_specs': extra_specs,
    }


def resize(old, new, block_device_info=None, image_meta=None):
    """The body that gives an instance of the flavor `old` the flavor `new`, and keeps the old.

    Nova then makes the user's swap the new flavor's, if it is another one.
    """
    body = flavor(new, block_device_info, image_meta)
    if new.swap != old.swap:
        body['swap_mb'] = new.swap or 0
    return {'flavor': body, 'keep': True}


def process(instance):
    """Environment and command that the user asked for; None: the image's command."""
    told = {**_image_properties(instance), **(instance.metadata or {})}
    environment = {name[len(ENV):]: value for name, value in told.items()
                   if name.startswith(ENV) and name != ENV}
    return environment, _command(told.get(COMMAND))


def _image_properties(instance):
    """Nova drops properties that it does not know; its database keeps them."""
    prefix = 'image_'
    return {name[len(prefix):]: value
            for name, value in (instance.system_metadata or {}).items()
            if name.startswith(prefix + 'berth:')}


def _command(text):
    if not text:
        return None
    try:
        words = json.loads(text) if text.lstrip().startswith('[') else shlex.split(text)
    except ValueError as error:
        raise exception.InvalidInput(reason='%s: %s' % (COMMAND, error)) from error
    if not words or not all(isinstance(word, str) for word in words):
        raise exception.InvalidInput(
            reason='%s must be a JSON list of strings, or words' % COMMAND)
    return words


# Network.

def device_name(nova_vif):
    """Name of the host's end, the same that os-vif is told."""
    return nova_vif.get('devname') or ('nic' + nova_vif['id'])[:DEVNAME_MAX]


def vifs(network_info, static, named=True):
    """All interfaces of an instance, `eth0` first.

    :param named: give them their names; otherwise those that they have stay
    """
    return one_route_each([vif(nova_vif, static, name='eth%d' % index if named else None)
                           for index, nova_vif in enumerate(network_info)])


def vif(nova_vif, static, name=None):
    """An interface.

    :param static: give it all its addresses; otherwise only those that no
        DHCP server or router advertisement would give to the instance
    :param name: its name inside; None: the first free one
    """
    network = nova_vif['network']
    body = {
        'id': nova_vif['id'],
        'devname': device_name(nova_vif),
        'address': nova_vif['address'],
        'addresses': [],
        'routes': [],
    }
    if mtu := network.get_meta('mtu'):
        body['mtu'] = mtu
    # Open vSwitch's userspace datapath drops what is left to hardware.
    if (nova_vif.get('details') or {}).get('datapath_type') == USERSPACE_DATAPATH:
        body['checksum_offload'] = False
    if name:
        body['name'] = name
    # Nova's own switch ([DEFAULT] flat_injected) for guests that are told.
    static = static or bool(network.get_meta('injected'))
    for subnet in network['subnets']:
        if static or not _is_dynamic(subnet):
            body['addresses'] += _addresses(subnet)
            body['routes'] += _routes(subnet)
    body['addresses'] = list(dict.fromkeys(body['addresses']))
    return one_route_each([body])[0]


def _is_dynamic(subnet):
    """Whether the instance learns its address of this subnet by itself."""
    return bool(subnet.get_meta('dhcp_server') or subnet.get_meta('enable_dhcp')
                or subnet.get_meta('ipv6_address_mode'))


def _addresses(subnet):
    length = subnet['cidr'].split('/')[1]
    return ['%s/%s' % (ip['address'], length) for ip in subnet['ips']]


def _routes(subnet):
    """The subnet's host routes and its gateway; none where it has no address."""
    if not subnet['ips']:
        return []
    routes = [_route(r['cidr'], r['gateway']) for r in subnet['routes']]
    everywhere = EVERYWHERE[subnet['version']]
    gateway = subnet['gateway']
    if gateway and gateway['address'] and not any(
            route['destination'] == everywhere for route in routes):
        routes.append(_route(everywhere, gateway))
    return routes


def _route(destination, gateway):
    # As the kernel knows it: what is written in two ways is one route.
    route = {'destination': str(ipaddress.ip_network(str(destination), strict=False))}
    if gateway and gateway['address']:
        route['gateway'] = gateway['address']
    return route


def one_route_each(bodies):
    """Of several routes to one destination, an interface's own or those of
    several, the first stays: the kernel takes no second."""
    seen = set()
    for body in bodies:
        routes, body['routes'] = body['routes'], []
        for route in routes:
            if route['destination'] not in seen:
                seen.add(route['destination'])
                body['routes'].append(route)
    return bodies


def name_servers(network_info, static):
    """Name servers of the subnets whose addresses berth sets, each once."""
    servers = []
    for nova_vif in network_info:
        network = nova_vif['network']
        told = static or bool(network.get_meta('injected'))
        for subnet in network['subnets']:
            if told or not _is_dynamic(subnet):
                servers += [ip['address'] for ip in subnet['dns']]
    return list(dict.fromkeys(servers))


# Files.

def injected_file(path, content, mode=0o644):
    """A file for the root file system; text is UTF-8."""
    data = content if isinstance(content, bytes) else content.encode()
    return {
        'path': posixpath.join('/', path),
        'content': base64.b64encode(data).decode('ascii'),
        'mode': mode,
    }


def injected_files(pairs):
    """Nova's old injected files, (path, content) each."""
    return [injected_file(path, content) for path, content in pairs or []]


# Images.

HASHES = ('sha512', 'sha384', 'sha256')


def image_import(image, source, verification=None):
    """The body that has an image in the service's store.

    :param image: the image as Nova's Glance API gives it
    :param source: where its content is read from
    :param verification: by what nova-compute found the content to be what was signed
    """
    properties = image.get('properties') or {}
    algorithm = image.get('os_hash_algo') or properties.get('os_hash_algo')
    value = image.get('os_hash_value') or properties.get('os_hash_value')
    body = {'name': image.get('name') or '', 'source': source}
    if algorithm in HASHES and value:
        body['hash'] = {'algorithm': algorithm, 'value': value}
    if image.get('size'):
        body['size'] = image['size']
    if verification:
        body['verification'] = verification
    return body


def verification(image, trusted):
    """By what certificates nova-compute verified an image's content."""
    properties = image.get('properties') or {}
    return {'certificate': str(properties.get('img_signature_certificate_uuid') or 'unnamed'),
            'trusted_certificates': sorted(set(trusted))}


def is_verified(image, demanded):
    """Whether the content of an image in the store is verified as demanded.

    What few certificates vouch for, more do too; what was verified without
    any, or by others, says nothing of them.

    :param demanded: ids of certificates of which one must vouch for it; none
        of them: a signature is enough; None: nothing is demanded
    """
    if demanded is None:
        return True
    verified = [set(v['trusted_certificates']) for v in image.get('verifications', ())]
    if not demanded:
        return bool(verified)
    return any(trusted and trusted <= set(demanded) for trusted in verified)


def glance_access(endpoint, token, service_token=None):
    access = {'type': 'glance', 'endpoint': endpoint.rstrip('/'), 'token': token}
    if service_token:
        access['service_token'] = service_token
    return access


def file_source(path):
    return {'type': 'file', 'path': path}
