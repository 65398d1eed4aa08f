"""Nova's objects to request bodies, as tables."""

import base64

import pytest
from conftest import IMAGE, make_flavor, make_instance, make_subnet, make_vif
from nova import exception
from nova.network import model
from nova.virt.berth import translate

SYSTEM = {'id': IMAGE, 'config': {'init': 'systemd', 'entrypoint': [], 'cmd': []}}
APPLICATION = {'id': IMAGE, 'config': {'init': None, 'entrypoint': ['/app'], 'cmd': []}}


@pytest.mark.parametrize('config,metadata,expected', [
    ({'init': 'systemd'}, {}, True),
    ({'init': 'systemd', 'cmd': ['/sbin/init']}, {}, True),
    ({'init': 'systemd', 'cmd': ['bash']}, {}, False),
    ({'init': 'systemd', 'entrypoint': ['/app'], 'cmd': ['/sbin/init']}, {}, False),
    ({'init': None, 'cmd': ['/sbin/init']}, {}, True),
    ({'init': None}, {}, False),
    ({'init': 'systemd'}, {'berth:command': 'sleep 9'}, False),
    ({'init': 'other', 'cmd': ['bash']}, {'berth:command': '/sbin/init'}, True),
    ({'init': None, 'cmd': ['/opt/init']}, {}, True),
    ({'init': 'systemd', 'entrypoint': ['/bin/systemd'], 'cmd': ['bash']}, {}, True),
    ({'init': 'systemd', 'entrypoint': ['/run.sh'], 'cmd': ['/sbin/init']}, {}, False),
])
def test_boots_init(config, metadata, expected):
    instance = make_instance(metadata=metadata)
    assert translate.boots_init(instance, {'config': config}) is expected


@pytest.mark.parametrize('text,words', [
    (None, None), ('', None),
    ('httpd -f -p 80', ['httpd', '-f', '-p', '80']),
    ('sh -c "a b"', ['sh', '-c', 'a b']),
    ('["sh", "-c", "a  b"]', ['sh', '-c', 'a  b']),
    (' ["x"]', ['x']),
])
def test_command(text, words):
    metadata = {} if text is None else {'berth:command': text}
    assert translate.process(make_instance(metadata=metadata))[1] == words


@pytest.mark.parametrize('text', ['[1]', '["a"', '[]', 'sh -c "a', '   '])
def test_a_bad_command_ends_the_build(text):
    with pytest.raises(exception.InvalidInput, match='berth:command'):
        translate.process(make_instance(metadata={'berth:command': text}))


def test_metadata_wins_over_image_properties():
    instance = make_instance(
        metadata={'berth:env:A': 'server', 'other': 'x', 'berth:env:': 'no name'},
        system_metadata={'image_berth:env:A': 'image', 'image_berth:env:B': 'image',
                         'image_berth:command': 'run', 'image_os_distro': 'debian',
                         'berth:env:C': 'no image property'})
    assert translate.process(instance) == ({'A': 'server', 'B': 'image'}, ['run'])


@pytest.mark.parametrize('name,expected', [
    ('web', 'web'), ('', ''), ('a.example.org', 'a.example.org'),
    ('a' * 20 + '.' + 'b' * 60, 'a' * 20), ('c' * 100, 'c' * 64),
    ('d' * 63 + '-e' * 9, 'd' * 63),
])
def test_host_name(name, expected):
    assert translate.host_name(make_instance(hostname=name)) == expected


@pytest.mark.parametrize('flavor,bdi,ephemeral,swap', [
    ({}, None, 0, 0),
    ({'ephemeral_gb': 4, 'swap': 64}, None, 4, 64),
    ({'ephemeral_gb': 4, 'swap': 64},
     {'ephemerals': [{'size': 1}, {'size': 2}],
      'swap': {'device_name': '/dev/vdc', 'swap_size': 32}}, 3, 32),
    ({'ephemeral_gb': 4, 'swap': 64},
     {'ephemerals': [], 'swap': {'device_name': None, 'swap_size': 0}}, 4, 64),
])
def test_flavor(flavor, bdi, ephemeral, swap):
    body = translate.flavor(make_flavor(**flavor), bdi)
    assert (body['ephemeral_gb'], body['swap_mb']) == (ephemeral, swap)
    assert (body['vcpus'], body['memory_mb'], body['root_gb']) == (2, 512, 3)
    assert body['extra_specs'] == {'quota:cpu_shares': '512'}


V4 = (['10.0.0.5/24'], ['0.0.0.0/0 10.0.0.1'], ['10.0.0.2'])
NOTHING = ([], [], [])


@pytest.mark.parametrize('subnet,meta,static,expected', [
    (dict(dhcp=True), None, True, V4),
    (dict(dhcp=True), None, False, NOTHING),
    (dict(enable_dhcp=True), None, False, NOTHING),
    (dict(), None, False, V4),
    (dict(dhcp=True), {'mtu': 1442, 'injected': True}, False, V4),
    (dict(version=6, ips=['fd00::5']), None, False,
     (['fd00::5/64'], ['::/0 fd00::1'], ['fd00::2'])),
    (dict(version=6, ips=['fd00::5'], ipv6_address_mode='slaac'), None, False, NOTHING),
    (dict(version=6, ips=['fd00::5'], ipv6_address_mode='slaac'), None, True,
     (['fd00::5/64'], ['::/0 fd00::1'], ['fd00::2'])),
    (dict(gateway=None, dns=[]), None, True, (['10.0.0.5/24'], [], [])),
    (dict(gateway=model.IP(None), ips=['10.0.0.5', '10.0.0.6'], dns=[]), None, True,
     (['10.0.0.5/24', '10.0.0.6/24'], [], [])),
    (dict(ips=[]), None, True, ([], [], ['10.0.0.2'])),
    (dict(routes=[model.Route('192.0.2.0/24', gateway=model.IP('10.0.0.9'))]), None, True,
     (['10.0.0.5/24'], ['192.0.2.0/24 10.0.0.9', '0.0.0.0/0 10.0.0.1'], ['10.0.0.2'])),
    # A default route among the host routes comes before the gateway.
    (dict(routes=[model.Route('0.0.0.0/0', gateway=model.IP('10.0.0.9'))]), None, True,
     (['10.0.0.5/24'], ['0.0.0.0/0 10.0.0.9'], ['10.0.0.2'])),
    (dict(gateway=None, routes=[model.Route('192.0.2.0/24')]), None, True,
     (['10.0.0.5/24'], ['192.0.2.0/24 None'], ['10.0.0.2'])),
])
def test_addresses(subnet, meta, static, expected):
    nova_vif = make_vif([make_subnet(**subnet)], meta=meta)
    body = translate.vif(nova_vif, static)
    routes = ['%s %s' % (r['destination'], r.get('gateway')) for r in body['routes']]
    servers = translate.name_servers([nova_vif], static)
    assert (body['addresses'], routes, servers) == expected
    assert body['mtu'] == 1442
    assert body['devname'] == 'tap33333333-33'


@pytest.mark.parametrize('details,offload', [
    ({'datapath_type': 'netdev'}, False),
    ({'datapath_type': 'system'}, None),
    ({'datapath_type': ''}, None),
    ({}, None),
    (None, None),
])
def test_a_userspace_datapath_is_given_whole_packets(details, offload):
    nova_vif = make_vif([make_subnet()])
    nova_vif['details'] = details
    assert translate.vif(nova_vif, static=True).get('checksum_offload') is offload


def test_only_the_first_default_route_stays():
    first = make_vif([make_subnet(), make_subnet(version=6, ips=['fd00::5'])])
    second = make_vif([make_subnet(routes=[
        model.Route('192.0.2.0/24', gateway=model.IP('10.0.0.9'))]),
        make_subnet(version=6, ips=['fd00::6'])], port=IMAGE)
    bodies = translate.vifs([first, second], static=True)
    assert [b['name'] for b in bodies] == ['eth0', 'eth1']
    assert [[r['destination'] for r in b['routes']] for b in bodies] == [
        ['0.0.0.0/0', '::/0'], ['192.0.2.0/24']]


def test_a_port_with_two_subnets_has_one_route_to_each_destination():
    route = model.Route('192.0.2.0/24', gateway=model.IP('10.0.0.9'))
    same = model.Route('192.0.2.7/24', gateway=model.IP('10.0.1.9'))
    nova_vif = make_vif([
        make_subnet(routes=[route, route]),
        make_subnet(cidr='10.0.1.0/24', gateway=model.IP('10.0.1.1'), ips=['10.0.1.5'],
                    routes=[same]),
        make_subnet(version=6, ips=['fd00::5'])])
    body = translate.vif(nova_vif, static=True)
    assert body['addresses'] == ['10.0.0.5/24', '10.0.1.5/24', 'fd00::5/64']
    assert [(r['destination'], r['gateway']) for r in body['routes']] == [
        ('192.0.2.0/24', '10.0.0.9'), ('0.0.0.0/0', '10.0.0.1'), ('::/0', 'fd00::1')]
    # Of another port as well.
    other = translate.vifs([nova_vif, make_vif([make_subnet(routes=[route])], port=IMAGE)], True)
    assert other[1]['routes'] == []


def test_name_of_a_device_without_one():
    assert translate.device_name({'id': IMAGE, 'devname': None}) == 'nic22222222-22'


def test_a_system_instance():
    network_info = [make_vif([make_subnet(dhcp=True)])]
    body = translate.instance_create(make_instance(), SYSTEM, network_info)
    assert body['name'] == 'instance-0000002a'
    assert body['hostname'] == 'web'
    assert body['environment'] == {'product_name': 'OpenStack Nova'}
    assert 'dns' not in body and 'command' not in body
    assert body['vifs'][0]['addresses'] == []
    assert body['metadata']['nova:addressing'] == 'dhcp'


def test_an_application_instance():
    network_info = [make_vif([make_subnet(dhcp=True)])]
    instance = make_instance(metadata={'berth:env:PORT': '80', 'berth:command': 'serve all'})
    body = translate.instance_create(instance, APPLICATION, network_info)
    assert body['environment'] == {'PORT': '80'}
    assert body['command'] == ['serve', 'all']
    assert body['dns'] == {'nameservers': ['10.0.0.2']}
    assert body['vifs'][0]['addresses'] == ['10.0.0.5/24']
    assert body['metadata']['nova:project_id'] == 'project'


def test_the_same_instance_is_the_same_body():
    make = lambda: translate.instance_create(make_instance(), SYSTEM, [make_vif()])  # noqa: E731
    assert make() == make()


@pytest.mark.parametrize('path,content,expected', [
    ('/etc/motd', 'hé', ('/etc/motd', 'hé'.encode())),
    ('etc/motd', b'\xff', ('/etc/motd', b'\xff')),
])
def test_injected_files(path, content, expected):
    [body] = translate.injected_files([(path, content)])
    assert (body['path'], base64.b64decode(body['content'])) == expected
    assert body['mode'] == 0o644


@pytest.mark.parametrize('image,expected', [
    ({'name': 'a', 'size': 5, 'properties': {'os_hash_algo': 'sha512', 'os_hash_value': 'ab'}},
     {'name': 'a', 'size': 5, 'hash': {'algorithm': 'sha512', 'value': 'ab'}}),
    ({'name': None, 'size': 0, 'os_hash_algo': 'sha256', 'os_hash_value': 'cd'},
     {'name': '', 'hash': {'algorithm': 'sha256', 'value': 'cd'}}),
    # A hash that the service cannot compute is not passed on.
    ({'name': 'a', 'properties': {'os_hash_algo': 'md5', 'os_hash_value': 'ab'}}, {'name': 'a'}),
])
def test_image_import(image, expected):
    source = translate.glance_access('http://glance:9292/', 'token')
    assert source == {'type': 'glance', 'endpoint': 'http://glance:9292', 'token': 'token'}
    assert translate.glance_access('', 'token', 'other')['service_token'] == 'other'
    assert translate.image_import(image, source) == {**expected, 'source': source}
    verification = translate.verification(image, ['b', 'a', 'b'])
    assert verification == {'certificate': 'unnamed', 'trusted_certificates': ['a', 'b']}
    assert translate.image_import(image, source, verification)['verification'] == verification


@pytest.mark.parametrize('verified_by,demanded,enough', [
    ([], None, True), ([], [], False), ([], ['a'], False),
    ([[]], [], True), ([['a']], [], True),
    # Without any, nobody vouched for it.
    ([[]], ['a'], False),
    ([['a']], ['a'], True), ([['a']], ['a', 'b'], True), ([['a']], ['b'], False),
    # Which of the two it was is not known.
    ([['a', 'b']], ['a'], False), ([['a', 'b'], ['a']], ['a'], True),
])
def test_whether_an_image_is_verified_as_demanded(verified_by, demanded, enough):
    image = {'verifications': [{'certificate': 'x', 'trusted_certificates': ids}
                               for ids in verified_by]}
    assert translate.is_verified(image, demanded) is enough
    # Of a service that does not tell of any.
    assert translate.is_verified({}, demanded) is (demanded is None)
