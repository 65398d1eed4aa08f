"""What the tests share: Nova's objects without a database, and a fake service.

`BERTH_TEST_BACKEND` is `threading` or `eventlet`, as Nova's
`concurrency_backend`; without it, what this Nova's nova-compute runs on.
"""

import os
import sys

BACKEND = os.environ.get('BERTH_TEST_BACKEND')
if BACKEND:
    os.environ['OS_NOVA_DISABLE_EVENTLET_PATCHING'] = str(BACKEND == 'threading')
# Before anything else: it patches, or forbids to, as nova-compute does.
import nova.cmd.compute  # noqa: E402, F401

from unittest import mock  # noqa: E402

import pytest  # noqa: E402

sys.path.insert(0, os.path.dirname(__file__))

import fake_service  # noqa: E402
from nova import conf as nova_conf  # noqa: E402
from nova import context as nova_context  # noqa: E402
from nova import objects  # noqa: E402
from nova.network import model  # noqa: E402
from nova.virt import driver as nova_driver  # noqa: E402

objects.register_all()
CONF = nova_conf.CONF
nova_driver.importutils.import_class('nova.virt.berth.BerthDriver')

UUID = '11111111-1111-4111-8111-111111111111'
IMAGE = '22222222-2222-4222-8222-222222222222'
PORT = '33333333-3333-4333-8333-333333333333'


@pytest.fixture(autouse=True)
def configured(tmp_path):
    """Nova's configuration with its defaults, its state in a throw-away directory."""
    CONF.reset()
    CONF([], project='nova', default_config_files=[], default_config_dirs=[])
    # A test waits for no answer longer than it must.
    CONF.set_override('retry_timeout', 5, group='berth')
    CONF.set_override('disable_after', 0, group='berth')
    CONF.set_override('instances_path', str(tmp_path / 'instances'))
    CONF.set_override('my_ip', '192.0.2.1')
    yield
    CONF.clear()


@pytest.fixture
def service(tmp_path):
    fake = fake_service.FakeService(tmp_path)
    CONF.set_override('url', fake.url, group='berth')
    yield fake
    if os.path.exists(fake.path):
        fake.stop()


@pytest.fixture
def nova_service(monkeypatch):
    """The database's record of this compute service."""
    record = mock.Mock(disabled=False, disabled_reason=None)
    monkeypatch.setattr(objects.Service, 'get_by_compute_host', lambda c, host: record)
    return record


@pytest.fixture
def context():
    return nova_context.RequestContext(
        'user', 'project', auth_token='a-token', overwrite=True)


@pytest.fixture(autouse=True)
def told(monkeypatch):
    """What the driver adds to the server's actions: (event, reason)."""
    reasons = []
    events = objects.InstanceActionEvent
    monkeypatch.setattr(events, 'event_start', lambda *a, **k: None)
    monkeypatch.setattr(
        events, 'event_finish_with_failure',
        lambda context, uuid, event, exc_val, exc_tb, want_result: reasons.append(
            (event, exc_val.format_message())))
    return reasons


@pytest.fixture(autouse=True)
def tagged(monkeypatch):
    """The database's records by which devices have tags; none of them at first."""
    records = {'vifs': [], 'disks': []}
    for name, kind in (('vifs', objects.VirtualInterfaceList),
                       ('disks', objects.BlockDeviceMappingList)):
        monkeypatch.setattr(kind, 'get_by_instance_uuid',
                            lambda context, uuid, name=name: records[name])
    monkeypatch.setattr(objects.Instance, 'save', lambda *a, **k: None)
    return records


@pytest.fixture
def os_vif_calls(monkeypatch):
    """os-vif in a notebook: ('plug' or 'unplug', the VIF)."""
    from nova.virt.berth import vif
    calls = []
    vif.initialize()
    monkeypatch.setattr(vif.os_vif, 'plug', lambda v, i: calls.append(('plug', v)))
    monkeypatch.setattr(vif.os_vif, 'unplug', lambda v, i: calls.append(('unplug', v)))
    monkeypatch.setattr(vif, 'device_exists', lambda v: True)
    return calls


@pytest.fixture
def virtapi():
    """Nova's, that waits for nothing; it remembers what it was to wait for."""
    api = mock.MagicMock()
    return api


@pytest.fixture
def driver(service, virtapi, nova_service, os_vif_calls, monkeypatch):
    from nova.virt.berth import driver as berth
    made = berth.BerthDriver(virtapi)
    made.images.api = mock.Mock()
    made.images.api.get.return_value = {
        'id': IMAGE, 'name': 'debian', 'status': 'active', 'size': 1000, 'properties': {
            'os_hash_algo': 'sha512', 'os_hash_value': 'ab'}}
    monkeypatch.setattr('nova.image.glance.get_api_servers',
                        lambda context: iter(['http://glance:9292/']))
    yield made
    made.cleanup_host('host')


@pytest.fixture
def instance(driver, context, service):
    """One that runs, with something on its disk."""
    made = make_instance()
    driver.spawn(context, made, objects.ImageMeta(id=IMAGE), [], None, {}, [make_vif()])
    service.instances[UUID]['disk'] = 'old data'
    service.requests.clear()
    return made


def make_flavor(**values):
    defaults = dict(
        name='m1.tiny', flavorid='1', vcpus=2, memory_mb=512, root_gb=3, ephemeral_gb=0, swap=0,
        extra_specs={'quota:cpu_shares': '512'})
    return objects.Flavor(**{**defaults, **values})


def make_instance(**values):
    defaults = dict(
        id=42, uuid=UUID, project_id='project', user_id='user', display_name='web',
        hostname='web', image_ref=IMAGE, metadata={}, system_metadata={}, config_drive='',
        trusted_certs=None, flavor=make_flavor(), vm_state='active', task_state=None,
        key_name=None, user_data=None, host='compute1', launched_at=None, kernel_id='',
        ramdisk_id='', availability_zone='nova')
    flavor = values.pop('flavor', defaults.pop('flavor'))
    instance = objects.Instance(**{**defaults, **values})
    instance.flavor = flavor
    instance.old_flavor = instance.new_flavor = None
    return instance


def make_subnet(version=4, dhcp=False, ips=('10.0.0.5',), **values):
    v4 = version == 4
    meta = {'dhcp_server': '10.0.0.2'} if dhcp else {}
    return model.Subnet(**{**dict(
        cidr='10.0.0.0/24' if v4 else 'fd00::/64', version=version,
        gateway=model.IP('10.0.0.1' if v4 else 'fd00::1'),
        dns=[model.IP('10.0.0.2' if v4 else 'fd00::2')],
        ips=[model.FixedIP(address=ip) for ip in ips], routes=[]), **meta, **values})


def make_vif(subnets=None, port=PORT, mac='fa:16:3e:00:00:01', active=True, meta=None, **values):
    network = model.Network(
        id='44444444-4444-4444-8444-444444444444', bridge='br-int', label='net',
        subnets=[make_subnet()] if subnets is None else subnets, **(meta or {'mtu': 1442}))
    return model.VIF(**{**dict(
        id=port, address=mac, network=network, type='ovs', devname='tap' + port[:11],
        ovs_interfaceid=port, active=active, vnic_type='normal', profile={},
        details={'port_filter': True, 'connectivity': 'l2', 'ovs_create_tap': True,
                 'bridge_name': 'br-int', 'datapath_type': 'netdev'}), **values})
