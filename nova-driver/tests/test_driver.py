"""Nova's methods against the fake service: which calls they make, what comes of it."""

import base64
import contextlib
import datetime
import functools
import hashlib
import inspect
import os
from unittest import mock

import pytest
from conftest import (CONF, IMAGE, PORT, UUID, make_instance, make_subnet, make_vif)
from fake_service import Fault
from nova import exception
from nova import objects
from nova.compute import manager
from nova.compute import power_state
from nova.compute import provider_tree
from nova.compute import task_states
from nova.console import type as ctype
from nova.network import model
from nova.virt import driver as nova_driver
from nova.virt.berth import driver as berth
from nova.virt.berth import unfinished

PATH = '/v1/instances/%s' % UUID


@pytest.fixture
def meta():
    return objects.ImageMeta(id=IMAGE)


@pytest.fixture
def spawn(driver, context, meta):
    def spawn(instance=None, network_info=None, **values):
        driver.spawn(context, instance or make_instance(), meta, values.pop('files', []),
                     values.pop('password', None), {}, network_info or [], **values)
    return spawn


# Spawn.

def test_spawn(spawn, driver, service, os_vif_calls, virtapi):
    order = []
    service_answer = service.answer
    service.answer = lambda method, url, body: (
        order.append('%s %s' % (method, url.split('?')[0])), service_answer(method, url, body))[1]
    virtapi.wait_for_instance_event.side_effect = lambda *a, **k: noted(order, 'wait')
    spawn(network_info=[make_vif(active=False)])
    assert order == [
        'GET /v1/images/' + IMAGE, 'PUT /v1/images/' + IMAGE, 'GET /v1/images/' + IMAGE,
        'PUT ' + PATH, 'wait begins', 'wait ends', 'POST %s/start' % PATH]
    assert driver.get_info(make_instance()).state == power_state.RUNNING
    [(what, vif)] = os_vif_calls
    assert what == 'plug' and vif.vif_name == 'tap33333333-33'
    assert vif.port_profile.create_port is True
    if 'create_tap' in vif.port_profile.fields:
        assert vif.port_profile.create_tap is False
    assert service.body('PUT', '/v1/images/' + IMAGE) == {
        'name': 'debian', 'size': 1000, 'hash': {'algorithm': 'sha512', 'value': 'ab'},
        'source': {'type': 'glance', 'endpoint': 'http://glance:9292', 'token': 'a-token'}}


@contextlib.contextmanager
def noted(order, name):
    order.append(name + ' begins')
    yield
    order.append(name + ' ends')


def test_disks_have_the_names_that_they_have_inside(driver, context, monkeypatch):
    monkeypatch.setattr(objects.BlockDeviceMapping, 'save', lambda bdm: None)
    local = dict(context=context, instance_uuid=UUID, destination_type='local')
    root = objects.BlockDeviceMapping(
        source_type='image', boot_index=0, device_name=None, guest_format=None, **local)
    ephemeral, other = (objects.BlockDeviceMapping(
        source_type='blank', boot_index=-1, device_name=None, guest_format=None, **local)
        for _ in range(2))
    disks = objects.BlockDeviceMappingList(objects=[root, ephemeral, other])
    instance = make_instance(root_device_name=None, default_ephemeral_device=None,
                             default_swap_device=None)
    compute = mock.Mock(driver=driver)
    for name in ('_default_root_device_name', '_default_device_names_for_instance'):
        method = getattr(manager.ComputeManager, name)
        setattr(compute, name, functools.partial(method, compute))
    manager.ComputeManager._default_block_device_names(compute, instance, None, disks)
    assert instance.root_device_name == '/dev/vda'
    assert [disk.device_name for disk in disks] == ['/dev/vda', '/dev/vdb', '/dev/vdc']


def test_spawn_of_a_cached_image_asks_glance_nothing(spawn, driver, service):
    driver.client.put('/v1/images/' + IMAGE, {'name': '', 'source': {}})
    spawn()
    driver.images.api.get.assert_not_called()


@pytest.mark.parametrize('disk_format,container_format,machine', [
    ('raw', 'docker', {}),
    ('raw', 'compressed', {}),
    ('qcow2', 'bare', {}),
    ('ami', 'ami', {'kernel_id': 'the-aki', 'ramdisk_id': 'the-ari'}),
])
def test_a_label_changes_nothing_and_of_a_kernel_nothing_is_asked(
        spawn, driver, service, disk_format, container_format, machine):
    image = driver.images.api.get.return_value
    image.update(disk_format=disk_format, container_format=container_format)
    image['properties'].update(machine)
    spawn(make_instance(**machine))
    assert [call.args[1] for call in driver.images.api.get.call_args_list] == [IMAGE]
    assert [call for call in service.calls('PUT') if 'images' in call] == ['PUT /v1/images/' + IMAGE]
    assert set(service.body('PUT', '/v1/images/' + IMAGE)) == {'name', 'size', 'hash', 'source'}
    assert service.body('PUT', PATH)['image_id'] == IMAGE


def test_spawn_without_power(spawn, driver, virtapi, os_vif_calls):
    spawn(power_on=False, network_info=[make_vif(active=False)])
    assert driver.get_info(make_instance()).state == power_state.SHUTDOWN
    virtapi.wait_for_instance_event.assert_not_called()
    assert [what for what, _ in os_vif_calls] == ['plug']


@pytest.mark.parametrize('method,path,code,expected', [
    ('PUT', PATH, 'flavor-disk-too-small', exception.FlavorDiskTooSmall),
    ('PUT', PATH, 'invalid-input', exception.InvalidInput),
    ('POST', PATH + '/start', 'runtime-failed', exception.InternalError),
    ('PUT', '/v1/images/' + IMAGE, 'image-unacceptable', exception.ImageUnacceptable),
    ('PUT', '/v1/images/' + IMAGE, 'glance-forbidden', exception.ImageUnacceptable),
])
def test_a_failed_spawn_leaves_nothing(spawn, service, os_vif_calls, method, path, code, expected):
    service.faults[(method, path)] = Fault(code)
    with pytest.raises(expected):
        spawn(network_info=[make_vif()])
    assert service.instances == {}
    plugs = [what for what, _ in os_vif_calls]
    assert plugs.count('unplug') >= plugs.count('plug')


def test_a_failed_plug_leaves_nothing(spawn, service, os_vif_calls, monkeypatch):
    from os_vif import exception as os_vif_exception

    from nova.virt.berth import vif
    monkeypatch.setattr(vif.os_vif, 'plug', mock.Mock(
        side_effect=os_vif_exception.ExceptionBase('no such bridge')))
    with pytest.raises(exception.VirtualInterfacePlugException, match='no such bridge'):
        spawn(network_info=[make_vif()])
    assert service.instances == {}


def test_spawn_does_not_remove_what_another_made(spawn, service):
    spawn()
    with pytest.raises(exception.InstanceExists):
        spawn(make_instance(hostname='other'))
    assert UUID in service.instances


@pytest.mark.parametrize('fatal', [True, False])
def test_neutron_does_not_plug_in_time(spawn, service, virtapi, fatal):
    from nova.virt.berth import vif
    CONF.set_override('vif_plugging_is_fatal', fatal)
    timeout = vif.event_timeout_class()
    virtapi.wait_for_instance_event.return_value.__exit__.side_effect = timeout()
    spawning = lambda: spawn(network_info=[make_vif(active=False)])  # noqa: E731
    if fatal:
        with pytest.raises(exception.VirtualInterfaceCreateException):
            spawning()
    else:
        spawning()
    assert (UUID in service.instances) is not fatal


def test_neutron_fails_to_plug(virtapi):
    from nova.virt.berth import vif
    with pytest.raises(exception.VirtualInterfaceCreateException):
        vif._plugging_failed('network-vif-plugged', make_instance())


def test_no_wait_where_none_is_wanted(spawn, virtapi):
    CONF.set_override('vif_plugging_timeout', 0)
    spawn(network_info=[make_vif(active=False)])
    virtapi.wait_for_instance_event.assert_not_called()


def test_volumes_are_refused_before_anything_is_done(spawn, service):
    with pytest.raises(exception.InvalidInput, match='volumes'):
        spawn(block_device_info={'block_device_mapping': [mock.Mock()]})
    assert service.requests == []


def test_boot_from_volume_is_refused(driver, context, service):
    with pytest.raises(exception.InvalidInput, match='volumes'):
        driver.spawn(context, make_instance(image_ref=''), objects.ImageMeta(), [], None, {})
    assert service.requests == []


def test_an_image_that_is_not_active(spawn, driver):
    driver.images.api.get.return_value['status'] = 'queued'
    with pytest.raises(exception.ImageNotActive):
        spawn()


def test_a_verified_image_comes_by_file(spawn, driver, service, meta, context):
    CONF.set_override('verify_glance_signatures', True, group='glance')
    there = []
    answer = service.answer
    service.answer = lambda method, url, body: (
        there.append(os.path.exists(body['source']['path'])) if method == 'PUT' and body and
        'source' in body else None, answer(method, url, body))[1]
    driver.images.api.download.side_effect = (
        lambda context, image_id, dest_path, trusted_certs: open(dest_path, 'w').close())
    spawn()
    body = service.body('PUT', '/v1/images/' + IMAGE)
    source = body['source']
    assert source['type'] == 'file' and there == [True]
    assert body['verification'] == {'certificate': 'unnamed', 'trusted_certificates': []}
    assert body['hash'] == {'algorithm': 'sha512', 'value': hashlib.sha512(b'').hexdigest()}
    assert not os.path.exists(source['path'])
    assert service.calls('PUT')[0] == 'PUT /v1/images/' + IMAGE


def test_an_image_whose_certificates_fail_never_reaches_the_service(spawn, driver, service):
    driver.images.api.download.side_effect = exception.CertificateValidationFailed(
        cert_uuid='x', reason='untrusted')
    with pytest.raises(exception.CertificateValidationFailed):
        spawn(make_instance(trusted_certs=objects.TrustedCerts(ids=['x'])))
    assert service.changes() == []


@pytest.fixture
def signed(driver, monkeypatch):
    """Nova's own Glance API, with a Glance and certificates of the test's: the
    image's content, and the ids of those who vouch for it."""
    from nova.image import glance
    world = mock.Mock(content=b'signed', vouching={'good'}, downloads=[])
    service = glance.GlanceImageServiceV2(mock.Mock())
    monkeypatch.setattr(service, 'show', lambda *a, **k: {
        'id': IMAGE, 'name': 'debian', 'status': 'active', 'size': 1, 'properties': {
            'img_signature_certificate_uuid': 'signer'}})
    service._client.call.side_effect = lambda *a, **k: (
        world.downloads.append(1), mock.MagicMock(
            wrapped=True, __iter__=lambda self: iter([world.content])))[1]
    monkeypatch.setattr(glance.objects.ImageMeta, 'from_dict',
                        lambda image: mock.Mock(properties=image['properties']))
    monkeypatch.setattr(glance.signature_utils, 'get_verifier', lambda **k: mock.Mock())

    def verify(context, certificate, trusted):
        if not world.vouching & set(trusted.ids):
            raise exception.CertificateValidationFailed(cert_uuid=certificate, reason='untrusted')

    monkeypatch.setattr(glance, '_verify_certs', verify)
    driver.images.api = mock.Mock(
        get=service.show, download=lambda context, image_id, **k: service.download(
            context, image_id, dst_path=k['dest_path'], trusted_certs=k['trusted_certs']))
    world.body = {'name': '', 'source': {}, 'hash': {
        'algorithm': 'sha512', 'value': hashlib.sha512(world.content).hexdigest()}}
    return world


def demanding(*ids, **values):
    return make_instance(trusted_certs=objects.TrustedCerts(ids=list(ids)), **values)


@pytest.mark.parametrize('how', ['trusted_certs', 'default', 'signature'])
def test_what_lies_in_the_cache_unverified_is_verified_when_demanded(
        spawn, driver, service, signed, how):
    driver.client.put('/v1/images/' + IMAGE, signed.body)
    if how == 'default':
        CONF.set_override('enable_certificate_validation', True, group='glance')
        CONF.set_override('default_trusted_certificate_ids', ['good'], group='glance')
    if how == 'signature':
        CONF.set_override('verify_glance_signatures', True, group='glance')
    spawn(demanding('good') if how == 'trusted_certs' else make_instance())
    assert service.images[IMAGE]['verifications'] == [{
        'certificate': 'signer',
        'trusted_certificates': [] if how == 'signature' else ['good']}]
    assert len(signed.downloads) == 1 and UUID in service.instances


def test_an_unverified_image_in_the_cache_is_refused_with_the_wrong_certificates(
        spawn, driver, service, signed):
    driver.client.put('/v1/images/' + IMAGE, signed.body)
    for known in ([], [['good']]):
        service.images[IMAGE]['verifications'] = [
            {'certificate': 'signer', 'trusted_certificates': ids} for ids in known]
        with pytest.raises(exception.CertificateValidationFailed):
            spawn(demanding('bad'))
        assert service.instances == {}


def test_a_verified_image_is_verified_once(spawn, driver, context, service, signed):
    spawn(demanding('good'))
    driver.destroy(context, make_instance(), [])
    spawn(demanding('other', 'good'))
    driver.power_off(make_instance())
    driver.rescue(context, demanding('good'), [], objects.ImageMeta(id=IMAGE), None, None, [])
    assert len(signed.downloads) == 1


def test_a_rescue_image_is_as_verified_as_the_servers(spawn, driver, context, service, signed):
    spawn()
    driver.power_off(make_instance())
    with pytest.raises(exception.CertificateValidationFailed):
        driver.rescue(context, demanding('bad'), [], objects.ImageMeta(id=IMAGE), None, None, [])
    assert service.instances[UUID]['rescue_image_id'] is None


def test_other_content_than_the_verified_gives_way(spawn, driver, service, signed):
    driver.client.put('/v1/images/' + IMAGE, {'name': '', 'source': {}, 'hash': {
        'algorithm': 'sha512', 'value': 'of something else'}})
    spawn(demanding('good'))
    assert service.images[IMAGE]['_hash'] == signed.body['hash']


def test_other_content_than_the_verified_that_is_in_use_is_not_booted(
        spawn, driver, service, signed):
    driver.client.put('/v1/images/' + IMAGE, {'name': '', 'source': {}})
    service.images[IMAGE]['users'] = ['another']
    with pytest.raises(exception.ImageDeleteConflict):
        spawn(demanding('good'))
    assert service.instances == {}


def test_what_comes_in_the_place_of_the_verified_image_is_not_started(
        spawn, driver, service, signed):
    answer = service.answer

    def exchanged(method, url, body):
        if (method, url) == ('PUT', PATH):
            service.images[IMAGE]['verifications'] = []
        return answer(method, url, body)

    service.answer = exchanged
    with pytest.raises(exception.ImageUnacceptable):
        spawn(demanding('good'))
    assert service.instances == {} and 'POST %s/start' % PATH not in service.calls()


def test_certificates_are_to_be_named_where_they_are_to_be_validated(spawn, service, signed):
    CONF.set_override('verify_glance_signatures', True, group='glance')
    CONF.set_override('enable_certificate_validation', True, group='glance')
    with pytest.raises(exception.CertificateValidationFailed):
        spawn()
    assert service.requests == []


def test_injected_files_and_config_drive(spawn, service, monkeypatch):
    from nova.virt.berth import configdrive

    class Metadata:
        def __init__(self, instance, content, network_info, extra_md):
            assert content == [('/etc/motd', b'hello')] and extra_md == {'admin_pass': 'secret'}

        def metadata_for_config_drive(self):
            yield 'openstack/latest/meta_data.json', b'{}'
            yield 'openstack/2012-08-10/meta_data.json', b'{}'
            yield 'openstack/2018-08-27/meta_data.json', b'{}'
            yield 'openstack/content/0000', 'hello'
            yield 'ec2/latest/meta-data.json', b'{}'

    monkeypatch.setattr(configdrive.base, 'InstanceMetadata', Metadata)
    spawn(make_instance(config_drive='True'), files=[('/etc/motd', b'hello')], password='secret')
    files = {f['path']: f for f in service.body('PUT', PATH)['files']}
    assert set(files) == {
        '/config-drive/openstack/latest/meta_data.json', '/config-drive/openstack/content/0000',
        # By its date, cloud-init knows a config drive.
        '/config-drive/openstack/2018-08-27/meta_data.json', '/config-drive/ec2/latest/meta-data.json', '/etc/motd'}
    assert base64.b64decode(files['/etc/motd']['content']) == b'hello'
    assert files['/config-drive/openstack/latest/meta_data.json']['mode'] == 0o400


def test_the_password_of_a_server(spawn, service):
    service.extra[('POST', '.*/password')] = None
    spawn(password='secret')
    assert service.body('POST', PATH + '/password') == {'user': 'root', 'password': 'secret'}


def test_a_password_that_cannot_be_set_is_no_failure(spawn, driver):
    spawn(password='secret')
    assert driver.get_info(make_instance()).state == power_state.RUNNING


# Life and death.

def test_destroy(spawn, driver, context, service, os_vif_calls):
    spawn(network_info=[make_vif()])
    driver.destroy(context, make_instance(), [make_vif()])
    assert service.instances == {}
    assert [what for what, _ in os_vif_calls] == ['plug', 'unplug']
    driver.destroy(context, make_instance(), [make_vif()])
    driver.cleanup(context, make_instance(), [make_vif()])


def test_destroy_that_keeps_the_disks(spawn, driver, context, service):
    spawn()
    driver.destroy(context, make_instance(), [], destroy_disks=False)
    assert service.instances[UUID]['power_state'] == 'SHUTDOWN'


def test_what_may_run_on_keeps_its_addresses(spawn, driver, context, service, os_vif_calls):
    spawn(network_info=[make_vif()])
    service.faults[('DELETE', PATH)] = Fault('runtime-failed', 'it will not die')
    with pytest.raises(exception.InstancePowerOffFailure, match='it will not die'):
        driver.destroy(context, make_instance(), [make_vif()])
    assert [what for what, _ in os_vif_calls] == ['plug']


def test_a_port_that_cannot_be_unplugged_stops_nothing(
        spawn, driver, context, service, monkeypatch):
    from nova.virt.berth import vif
    spawn()
    monkeypatch.setattr(vif.os_vif, 'unplug', mock.Mock(side_effect=RuntimeError('OVS is away')))
    driver.destroy(context, make_instance(), [make_vif(), make_vif()])
    assert service.instances == {} and vif.os_vif.unplug.call_count == 2


def test_delete_instance_files(spawn, driver, service):
    spawn()
    assert driver.instance_on_disk(make_instance()) is True
    assert driver.delete_instance_files(make_instance()) is True
    assert driver.instance_on_disk(make_instance()) is False
    assert driver.delete_instance_files(make_instance()) is True
    service.faults[('DELETE', PATH)] = Fault('internal')
    assert driver.cleanup_lingering_instance_resources(make_instance()) is False


def test_stop_and_start(spawn, driver, context, service, os_vif_calls):
    spawn(network_info=[make_vif()])
    driver.power_off(make_instance(), timeout=17, retry_interval=10)
    assert service.body('POST', PATH + '/stop') == {'timeout': 17}
    driver.power_on(context, make_instance(), [make_vif()])
    assert driver.get_info(make_instance()).state == power_state.RUNNING
    # The ports had not changed: nothing was taken from the instance.
    assert not [call for call in service.changes() if 'interfaces' in call]
    assert [what for what, _ in os_vif_calls] == ['plug', 'plug']


def test_start_brings_what_neutron_changed(spawn, driver, context, service):
    service.image_config = {'entrypoint': ['/app'], 'cmd': [], 'init': None}
    other = IMAGE
    spawn(network_info=[make_vif(), make_vif(port=UUID)])
    driver.power_off(make_instance())
    changed = make_vif([make_subnet(ips=['10.0.0.77'])])
    driver.power_on(context, make_instance(), [changed, make_vif(port=other)])
    vifs = {v['id']: v for v in service.instances[UUID]['vifs']}
    assert set(vifs) == {PORT, other}
    assert vifs[PORT]['addresses'] == ['10.0.0.77/24'] and vifs[PORT]['name'] == 'eth0'


@pytest.mark.parametrize('state,calls', [
    ('RUNNING', ['SOFT']), ('SHUTDOWN', ['SOFT', 'HARD']), ('PAUSED', ['SOFT', 'HARD'])])
def test_a_soft_reboot_ends_running(spawn, driver, context, service, state, calls):
    spawn(network_info=[make_vif()])
    service.set_state(UUID, state)
    driver.reboot(context, make_instance(), [make_vif()], 'SOFT')
    assert driver.get_info(make_instance()).state == power_state.RUNNING
    assert [b['type'] for m, p, b, _ in service.requests if p.endswith('/reboot')] == calls


def test_a_hard_reboot_plugs(spawn, driver, context, os_vif_calls):
    spawn(network_info=[make_vif()])
    driver.reboot(context, make_instance(), [make_vif()], 'HARD')
    assert [what for what, _ in os_vif_calls] == ['plug', 'plug']


def test_pause_and_suspend(spawn, driver, context):
    instance = make_instance()
    spawn(instance)
    for act, expected in (
            (lambda: driver.pause(instance), power_state.PAUSED),
            (lambda: driver.unpause(instance), power_state.RUNNING),
            (lambda: driver.suspend(context, instance), power_state.SUSPENDED),
            (lambda: driver.resume(context, instance, []), power_state.RUNNING)):
        act()
        assert driver.get_info(instance).state == expected


def test_resume_after_the_host_was_booted(spawn, driver, context, service):
    spawn()
    service.set_state(UUID, 'SHUTDOWN')
    driver.resume(context, make_instance(), [])
    assert driver.get_info(make_instance()).state == power_state.RUNNING


def test_resume_of_what_is_paused_is_refused(spawn, driver, context, service):
    spawn()
    service.set_state(UUID, 'PAUSED')
    with pytest.raises(exception.InstanceInvalidState):
        driver.resume(context, make_instance(), [])


@pytest.mark.parametrize('state,started', [
    ('SHUTDOWN', True), ('CRASHED', True), ('RUNNING', False), ('PAUSED', False)])
def test_the_hosts_boot(spawn, driver, context, service, state, started):
    spawn()
    service.set_state(UUID, state)
    before = len(service.changes())
    driver.resume_state_on_host_boot(context, make_instance(), [], None)
    assert (service.changes()[before:] == ['POST %s/start' % PATH]) is started


@pytest.mark.parametrize('state,expected', [
    ('RUNNING', power_state.RUNNING), ('PAUSED', power_state.PAUSED),
    ('SHUTDOWN', power_state.SHUTDOWN), ('SUSPENDED', power_state.SUSPENDED),
    ('NOSTATE', power_state.NOSTATE),
    # Nova acts at once on a stop that it can see.
    ('CRASHED', power_state.SHUTDOWN)])
def test_power_states(spawn, driver, service, state, expected):
    spawn()
    service.set_state(UUID, state)
    assert driver.get_info(make_instance()).state == expected


def test_an_absent_instance(driver):
    with pytest.raises(exception.InstanceNotFound):
        driver.get_info(make_instance())
    assert driver.instance_exists(make_instance()) is False


def test_only_novas_instances_are_listed(spawn, driver, service):
    spawn()
    service.instances[IMAGE] = {'id': IMAGE, 'name': 'mine', 'metadata': {}}
    assert driver.list_instance_uuids() == [UUID]
    assert driver.list_instances() == ['instance-0000002a']
    assert driver.get_num_instances() == 1


def test_stuck_reboots_go_through_nova(driver, monkeypatch):
    api = mock.Mock()
    monkeypatch.setattr(berth.compute_api, 'API', lambda: api)
    api.reboot.side_effect = [exception.InstanceInvalidState(
        instance_uuid=UUID, attr='a', state='b', method='c'), None]
    driver.poll_rebooting_instances(60, [make_instance(), make_instance()])
    assert [c.args[2] for c in api.reboot.call_args_list] == ['HARD', 'HARD']


# Network.

def test_plug_at_the_services_start_disturbs_nothing(spawn, driver, service, os_vif_calls):
    spawn(network_info=[make_vif()])
    before = len(service.requests)
    driver.plug_vifs(make_instance(), [make_vif()])
    assert service.requests[before:] == []
    assert [what for what, _ in os_vif_calls] == ['plug', 'plug']


def test_a_running_instance_gets_a_lost_device_again(spawn, driver, service, monkeypatch):
    from nova.virt.berth import vif
    spawn(network_info=[make_vif()])
    monkeypatch.setattr(vif, 'device_exists', lambda v: False)
    # Whatever Neutron says meanwhile: what runs is not changed under its feet.
    driver.plug_vifs(make_instance(), [make_vif([make_subnet(ips=['10.0.0.9'])])])
    assert service.changes()[-1] == 'PUT %s/interfaces/%s' % (PATH, PORT)


def test_a_stopped_instance_is_plugged_when_it_starts(
        spawn, driver, service, monkeypatch, os_vif_calls):
    from nova.virt.berth import vif
    spawn(network_info=[make_vif()])
    service.set_state(UUID, 'SHUTDOWN')
    monkeypatch.setattr(vif, 'device_exists', lambda v: False)
    driver.plug_vifs(make_instance(), [make_vif()])
    assert [what for what, _ in os_vif_calls] == ['plug']


def test_a_port_that_cannot_be_plugged_does_not_end_nova_compute(driver, service, monkeypatch):
    from nova.virt.berth import vif
    monkeypatch.setattr(vif, 'device_exists', lambda v: False)
    service.faults[('GET', PATH)] = Fault('internal')
    with pytest.raises(exception.VirtualInterfacePlugException):
        driver.plug_vifs(make_instance(), [make_vif()])


def test_hybrid_plugging(driver, os_vif_calls, monkeypatch):
    from nova.virt.berth import vif
    linux_net = mock.Mock()
    monkeypatch.setattr(vif, 'linux_net', linux_net)
    driver.plug_vifs(make_instance(), [make_vif(details={'ovs_hybrid_plug': True})])
    linux_net.add_bridge_port.assert_called_once_with('qbr33333333-33', 'tap33333333-33')


def test_attach_and_detach(spawn, driver, context, service, meta, os_vif_calls, monkeypatch):
    monkeypatch.setattr(objects.Instance, 'get_network_info', lambda self: [make_vif()])
    service.image_config = {'entrypoint': ['/app'], 'cmd': [], 'init': None}
    instance = make_instance()
    spawn(instance)
    driver.attach_interface(context, instance, meta, make_vif())
    [vif] = service.instances[UUID]['vifs']
    assert vif['addresses'] == ['10.0.0.5/24'] and 'name' not in vif
    driver.detach_interface(context, instance, make_vif())
    assert service.instances[UUID]['vifs'] == []
    assert [what for what, _ in os_vif_calls] == ['plug', 'unplug']
    driver.detach_interface(context, instance, make_vif())


def test_a_failed_attach_leaves_nothing(spawn, driver, context, service, meta, monkeypatch):
    from os_vif import exception as os_vif_exception

    from nova.virt.berth import vif
    spawn()
    monkeypatch.setattr(vif.os_vif, 'plug', mock.Mock(
        side_effect=os_vif_exception.ExceptionBase('no')))
    with pytest.raises(exception.NovaException):
        driver.attach_interface(context, make_instance(), meta, make_vif())
    assert service.instances[UUID]['vifs'] == []


def test_detach_from_what_is_gone(driver, context, os_vif_calls):
    driver.detach_interface(context, make_instance(), make_vif())
    driver.inject_network_info(make_instance(), [make_vif()])
    assert [what for what, _ in os_vif_calls] == ['unplug']


# What the service lost.

def test_a_lost_instance_is_rebuilt(spawn, driver, context, service):
    """As Nova's rebuild does it: power off, destroy, spawn."""
    spawn(network_info=[make_vif()])
    service.instances.clear()
    driver.power_off(make_instance(), 60, 10)
    driver.destroy(context, make_instance(), [make_vif()])
    spawn(network_info=[make_vif()])
    assert driver.get_info(make_instance()).state == power_state.RUNNING


@pytest.mark.parametrize('method,arguments', [
    ('power_on', ([],)), ('reboot', ([], 'SOFT')), ('reboot', ([], 'HARD')), ('resume', ([],)),
    ('suspend', ()), ('unrescue', ()), ('snapshot', ('image', None)),
    ('rescue', ([], objects.ImageMeta(id=IMAGE), None, None, None)),
])
def test_a_lost_instance_is_an_error_that_nova_shows(driver, context, service, method, arguments):
    """`InstanceNotFound` would count as a delete, and be recorded nowhere."""
    with pytest.raises(exception.InternalError, match='rebuild the server'):
        getattr(driver, method)(context, make_instance(), *arguments)


@pytest.mark.parametrize('method', ['pause', 'unpause'])
def test_a_lost_instance_is_not_paused(driver, method):
    with pytest.raises(exception.InternalError, match='rebuild the server'):
        getattr(driver, method)(make_instance())


def test_nova_records_a_fault_for_a_lost_instance(driver, context, monkeypatch):
    """Nova's own decorators around the driver."""
    from nova.compute import manager
    faults = []
    monkeypatch.setattr(manager.compute_utils, 'add_instance_fault_from_exc',
                        lambda context, instance, fault, info: faults.append(fault))

    @manager.wrap_instance_fault
    def start(self, context, instance):
        driver.power_on(context, instance, [])

    with pytest.raises(exception.InternalError):
        start(None, context, make_instance())
    assert len(faults) == 1


def test_whether_an_instance_is_there_is_still_told(driver):
    with pytest.raises(exception.InstanceNotFound):
        driver.get_info(make_instance())
    assert driver.instance_exists(make_instance()) is False


# Several default routes.

def test_a_second_default_route_is_left_out_and_then_disturbs_nothing(
        spawn, driver, context, service, meta):
    service.image_config = {'entrypoint': ['/serve'], 'cmd': [], 'init': None}
    first, second, third = (make_vif(port=port, mac=mac) for port, mac in [
        (PORT, 'fa:16:3e:00:00:01'), (UUID, 'fa:16:3e:00:00:02'), (IMAGE, 'fa:16:3e:00:00:03')])
    spawn(network_info=[first, second])
    driver.attach_interface(context, make_instance(), meta, third)
    assert [len(vif['routes']) for vif in service.instances[UUID]['vifs']] == [1, 0, 0]
    driver.power_off(make_instance())
    before = len(service.changes())
    driver.power_on(context, make_instance(), [first, second, third])
    assert service.changes()[before:] == ['POST %s/start' % PATH]


def routes_of(service):
    return {vif['id']: [r['gateway'] for r in vif['routes']]
            for vif in service.instances[UUID]['vifs']}


@pytest.fixture
def application(spawn, service, monkeypatch):
    """A running application with two ports, each with a gateway; Nova's cache of them."""
    service.image_config = {'entrypoint': ['/serve'], 'cmd': [], 'init': None}
    cache = [make_vif(), make_vif([make_subnet(
        cidr='10.0.1.0/24', gateway=model.IP('10.0.1.1'), ips=['10.0.1.5'])],
        port=IMAGE, mac='fa:16:3e:00:00:02')]
    monkeypatch.setattr(objects.Instance, 'get_network_info', lambda self: cache)
    spawn(network_info=cache)
    assert routes_of(service) == {PORT: ['10.0.0.1'], IMAGE: []}
    return cache


def test_the_default_route_of_a_port_that_goes_is_the_next_ones(
        application, driver, context, service, os_vif_calls):
    driver.detach_interface(context, make_instance(), application[0])
    assert routes_of(service) == {IMAGE: ['10.0.1.1']}
    [vif] = service.instances[UUID]['vifs']
    assert vif['name'] == 'eth1', 'as the application knows it'
    assert [what for what, _ in os_vif_calls] == ['plug', 'plug', 'unplug', 'plug']


def test_a_port_without_the_default_route_goes_alone(application, driver, context, service):
    before = len(service.changes())
    driver.detach_interface(context, make_instance(), application[1])
    assert service.changes()[before:] == ['DELETE %s/interfaces/%s' % (PATH, IMAGE)]
    assert routes_of(service) == {PORT: ['10.0.0.1']}


def test_a_port_whose_addresses_change_keeps_its_routes(application, driver, service):
    application[0] = make_vif([make_subnet(ips=['10.0.0.77'])])
    driver.inject_network_info(make_instance(), application)
    assert {vif['id']: vif['addresses'] for vif in service.instances[UUID]['vifs']} == {
        PORT: ['10.0.0.77/24'], IMAGE: ['10.0.1.5/24']}
    assert routes_of(service) == {PORT: ['10.0.0.1'], IMAGE: []}
    before = len(service.changes())
    driver.inject_network_info(make_instance(), application)
    assert len(service.changes()) == before


# Looking in.

def test_console_output_is_bytes(spawn, driver, context):
    spawn()
    assert driver.get_console_output(context, make_instance()).startswith(b'login: \xff\n')


@pytest.mark.parametrize(('kind', 'options', 'expected'), [
    ('serial', {'serial_console': {'proxyclient_address': '127.0.0.9', 'port_range': '20000:20100'}},
     (ctype.ConsoleSerial, '127.0.0.9', 20007)),
    ('vnc', {'vnc': {'server_listen': 'localhost', 'server_proxyclient_address': 'compute1'}},
     (ctype.ConsoleVNC, 'compute1', 5907)),
])
def test_a_console_is_where_novas_options_say(spawn, driver, context, kind, options, expected):
    spawn()
    with contextlib.ExitStack() as after:
        for group, values in options.items():
            for name, value in values.items():
                CONF.set_override(name, value, group)
                after.callback(CONF.clear_override, name, group)
        console = getattr(driver, 'get_%s_console' % kind)(context, make_instance())
    assert (type(console), console.host, console.port) == expected


@pytest.mark.parametrize('kind', ['serial', 'vnc'])
def test_a_console_of_no_instance(driver, context, kind):
    with pytest.raises(exception.InstanceNotFound):
        getattr(driver, 'get_%s_console' % kind)(context, make_instance())


def test_diagnostics(spawn, driver):
    spawn()
    free = driver.get_diagnostics(make_instance())
    assert free['cpu0_time'] == 5000 and free['memory'] == 65536
    assert free['vda_write'] == 20 and free['tap0_rx'] == 7
    standard = driver.get_instance_diagnostics(make_instance())
    assert (standard.state, standard.hypervisor, standard.uptime) == ('running', 'berth', 12)
    assert standard.memory_details.maximum == 64 and standard.memory_details.used == 3
    assert standard.nic_details[0].tx_octets == 8 and standard.disk_details[0].read_bytes == 10
    assert (standard.num_cpus, standard.num_nics, standard.num_disks) == (1, 1, 1)


def test_set_admin_password(spawn, driver, service):
    spawn()
    with pytest.raises(exception.SetAdminPasswdNotSupported):
        driver.set_admin_password(make_instance(), 'secret')
    service.extra[('POST', '.*/password')] = None
    driver.set_admin_password(
        make_instance(system_metadata={'image_os_admin_user': 'debian'}), 'secret')
    assert service.body('POST', PATH + '/password')['user'] == 'debian'


def test_a_dump_goes_to_the_console(spawn, driver, context, service):
    spawn()
    service.extra[('POST', '.*/dump')] = None
    driver.trigger_crash_dump(make_instance())
    assert service.changes()[-1] == 'POST %s/dump' % PATH
    service.faults[('POST', '.*/dump')] = Fault('instance-unsupported', 'stop and start it')
    with pytest.raises(exception.TriggerCrashDumpNotSupported, match='stop and start it'):
        driver.trigger_crash_dump(make_instance())


def test_quiesce(spawn, driver, context, service, meta):
    spawn()
    with pytest.raises(exception.InstanceQuiesceNotSupported):
        driver.quiesce(context, make_instance(), meta)
    service.extra[('POST', '.*quiesce')] = None
    driver.quiesce(context, make_instance(), meta)
    driver.unquiesce(context, make_instance(), meta)
    assert service.changes()[-1] == 'POST %s/unquiesce' % PATH


# The host.

def test_start_and_end(driver, service):
    driver.init_host('host')
    assert driver.get_available_nodes() == ['compute1']
    driver.cleanup_host('host')
    assert not driver.events.thread.is_alive()


def test_nova_compute_does_not_start_without_the_service(driver, service):
    CONF.set_override('start_timeout', 0, group='berth')
    CONF.set_override('retry_timeout', 0, group='berth')
    service.stop()
    with pytest.raises(exception.HypervisorUnavailable):
        driver.init_host('host')


def test_another_version_of_the_api_is_refused(driver, service):
    service.extra[('GET', '/v1/host')] = {**service.get_host(), 'api_version': 'v2'}
    with pytest.raises(exception.InternalError, match='v2'):
        driver.init_host('host')


def test_the_nodes_name_never_changes(driver, service):
    assert driver.get_available_nodes() == ['compute1']
    service.extra[('GET', '/v1/host')] = {**service.get_host(), 'hypervisor_hostname': 'other'}
    assert driver.get_available_nodes(refresh=True) == ['compute1']
    service.stop()
    assert driver.get_available_nodes() == ['compute1']


def test_available_resource(driver):
    found = driver.get_available_resource('compute1')
    assert (found['vcpus'], found['memory_mb'], found['local_gb']) == (8, 8192, 100)
    assert found['disk_available_least'] == 80
    assert found['hypervisor_type'] == 'berth'
    assert found['supported_instances'] == [('x86_64', 'lxc', 'exe'), ('i686', 'lxc', 'exe')]
    # The objects that Nova makes of it take it.
    objects.ComputeNode().update_from_virt_driver(found)
    assert 'uuid' not in found


@pytest.fixture
def tree():
    made = provider_tree.ProviderTree()
    made.new_root('compute1', UUID)
    return made


def test_provider_tree(driver, tree):
    CONF.set_override('reserved_host_memory_mb', 512)
    CONF.set_override('reserved_host_cpus', 1)
    CONF.set_override('reserved_host_disk_mb', 1025)
    CONF.set_override('cpu_allocation_ratio', 3.0)
    tree.update_traits('compute1', ['CUSTOM_OPERATORS', 'HW_CPU_X86_AVX512F', 'HW_CPU_X86_VMX'])
    driver.update_provider_tree(tree, 'compute1')
    found = tree.data('compute1')
    assert {name: (i['total'], i['reserved'], i['allocation_ratio'])
            for name, i in found.inventory.items()} == {
        'VCPU': (6, 1, 3.0), 'PCPU': (2, 0, 1.0),
        'MEMORY_MB': (8192, 512, CONF.initial_ram_allocation_ratio),
        'DISK_GB': (100, 2, CONF.initial_disk_allocation_ratio)}
    # What the service cannot promise, if that is more.
    CONF.set_override('reserved_host_disk_mb', 0)
    driver.update_provider_tree(tree, 'compute1')
    assert tree.data('compute1').inventory['DISK_GB']['reserved'] == 1
    # AVX512F is gone from the host; the two others are not the driver's.
    assert found.traits == {
        'CUSTOM_OPERATORS', 'HW_CPU_X86_VMX', 'HW_CPU_X86_SSE', 'HW_CPU_X86_SSE41',
        'HW_CPU_X86_SSE3', 'HW_CPU_X86_AVX2', 'HW_CPU_X86_FMA3', 'HW_ARCH_X86_64',
        'COMPUTE_ARCH_X86_64', 'COMPUTE_NET_VIF_MODEL_VIRTIO', 'COMPUTE_STORAGE_BUS_LXC',
        'COMPUTE_STORAGE_BUS_VIRTIO'}


def test_a_host_without_dedicated_cpus_offers_none(driver, tree, service):
    host = service.get_host()
    host['inventory']['pcpus'] = 0
    service.extra[('GET', '/v1/host')] = host
    driver.update_provider_tree(tree, 'compute1')
    assert 'PCPU' not in tree.data('compute1').inventory


def test_host_statistics(driver):
    assert driver.get_host_uptime() == 'up 1 day, 1:01:01,  load average: 0.50, 0.25, 0.12'
    assert driver.get_host_cpu_stats() == {
        'kernel': 1, 'user': 2, 'idle': 3, 'iowait': 4, 'frequency': 2500}
    assert driver.get_host_ip_addr() == '192.0.2.1'


# Images.

def test_cache_image(driver, context):
    assert driver.cache_image(context, IMAGE) is True
    assert driver.cache_image(context, IMAGE) is False


def test_images_are_kept_while_young_used_or_wanted(driver, context, service):
    age = CONF.image_cache.remove_unused_original_minimum_age_seconds
    now = datetime.datetime.now(datetime.timezone.utc)

    def add(name, seconds, users=()):
        last = now - datetime.timedelta(seconds=seconds)
        # As the service writes it.
        text = last.strftime('%Y-%m-%dT%H:%M:%S.%f123Z')
        service.images[name] = {'id': name, 'users': list(users), 'last_used_at': text}

    for name in ('old', 'wanted', 'busy'):
        add(name, age + 60)
    add('used', age + 60, users=[UUID])
    add('young', age - 60)
    service.faults[('DELETE', '/v1/images/busy')] = Fault('image-in-use')
    driver.manage_image_cache(context, [make_instance(image_ref='wanted')])
    assert set(service.images) == {'used', 'wanted', 'busy', 'young'}
    assert len(service.changes()) == 2


def test_images_are_kept_where_the_operator_says_so(driver, context, service):
    CONF.set_override('remove_unused_base_images', False, group='image_cache')
    driver.manage_image_cache(context, [])
    assert service.requests == []


# Snapshots.

@pytest.fixture
def states(driver):
    """Nova's records in the order in which they are written."""
    written = []
    driver.images.api.update.side_effect = (
        lambda context, image_id, values, purge_props: written.append((image_id, values)))

    def update(task_state, expected_state=task_states.IMAGE_SNAPSHOT):
        written.append((task_state, expected_state))

    written_by = mock.Mock(side_effect=update)
    return written, written_by


def test_snapshot(spawn, driver, context, service, states):
    written, update_task_state = states
    spawn()
    service.extra[('POST', '.*/snapshot')] = None
    driver.snapshot(context, make_instance(), 'image-of-it', update_task_state)
    assert written == [
        (task_states.IMAGE_PENDING_UPLOAD, task_states.IMAGE_SNAPSHOT),
        ('image-of-it', {'disk_format': 'raw', 'container_format': 'docker'}),
        (task_states.IMAGE_UPLOADING, task_states.IMAGE_PENDING_UPLOAD)]
    assert driver.images.api.update.call_args.kwargs == {'purge_props': False}
    assert service.body('POST', PATH + '/snapshot') == {
        'format': 'docker-archive',
        'destination': {
            'type': 'glance', 'endpoint': 'http://glance:9292', 'token': 'a-token',
            'image_id': 'image-of-it'}}


@pytest.mark.parametrize('wanted,base,config,format_,container', [
    ('rootfs-tar', 'docker-archive', {'init': 'systemd'}, 'rootfs-tar', 'compressed'),
    ('rootfs-tar', 'docker-archive', {'cmd': ['/run']}, 'docker-archive', 'docker'),
    ('rootfs-tar', 'docker-archive', {'entrypoint': ['/run'], 'init': 'other'},
     'docker-archive', 'docker'),
    ('as-base', 'rootfs-tar', {'init': 'busybox'}, 'rootfs-tar', 'compressed'),
    ('as-base', 'docker-archive', {'init': 'systemd'}, 'docker-archive', 'docker'),
    ('as-base', 'oci-archive', {'init': 'systemd'}, 'docker-archive', 'docker'),
])
def test_the_snapshot_is_what_the_configuration_and_the_base_say(
        spawn, driver, context, service, states, wanted, base, config, format_, container):
    spawn()
    for image in service.images.values():
        image.update(format=base, config=config)
    service.extra[('POST', '.*/snapshot')] = None
    CONF.set_override('snapshot_format', wanted, 'berth')
    try:
        driver.snapshot(context, make_instance(), 'image-of-it', states[1])
    finally:
        CONF.clear_override('snapshot_format', 'berth')
    assert service.body('POST', PATH + '/snapshot')['format'] == format_
    assert ('image-of-it', {'disk_format': 'raw', 'container_format': container}) in states[0]


DISK = {'size': 5 << 30, 'stored': 1 << 20}


@pytest.mark.parametrize('wanted,base,disk,format_,told', [
    ('as-base', 'qcow2', DISK, 'qcow2', {'disk_format': 'qcow2', 'container_format': 'bare'}),
    ('as-base', 'raw', DISK, 'qcow2', {'disk_format': 'qcow2', 'container_format': 'bare'}),
    ('qcow2', 'raw', {**DISK, 'size': (5 << 30) + 1}, 'qcow2',
     {'disk_format': 'qcow2', 'container_format': 'bare', 'min_disk': 6}),
    ('as-base', 'qcow2', {'size': 0, 'stored': 0, 'refusal': 'xfs'}, 'docker-archive',
     {'disk_format': 'raw', 'container_format': 'docker'}),
    # Imported by an older service.
    ('as-base', 'qcow2', None, 'docker-archive', {'disk_format': 'raw', 'container_format': 'docker'}),
    ('qcow2', 'rootfs-tar', None, 'docker-archive',
     {'disk_format': 'raw', 'container_format': 'docker'}),
    ('rootfs-tar', 'qcow2', DISK, 'rootfs-tar',
     {'disk_format': 'raw', 'container_format': 'compressed'}),
])
def test_the_snapshot_of_a_disk_is_one_where_one_can_be_made(
        spawn, driver, context, service, states, wanted, base, disk, format_, told):
    spawn()
    for image in service.images.values():
        image.update(format=base, config={'init': 'systemd'}, **({'disk': disk} if disk else {}))
    driver.images.api.get.return_value['min_disk'] = 5
    service.extra[('POST', '.*/snapshot')] = None
    CONF.set_override('snapshot_format', wanted, 'berth')
    try:
        driver.snapshot(context, make_instance(), 'image-of-it', states[1])
    finally:
        CONF.clear_override('snapshot_format', 'berth')
    assert service.body('POST', PATH + '/snapshot')['format'] == format_
    assert ('image-of-it', told) in states[0]


@pytest.mark.parametrize('code,raised', [
    ('instance-not-found', exception.InstanceNotFound),  # Nova then deletes the image.
    ('glance-unavailable', exception.GlanceConnectionFailed),
    ('glance-forbidden', exception.Forbidden),
    ('resources-exhausted', exception.ComputeResourcesUnavailable),
])
def test_a_failed_snapshot_is_not_tried_again(
        spawn, driver, context, service, states, code, raised):
    spawn()
    service.extra[('POST', '.*/snapshot')] = None
    service.faults[('POST', '.*/snapshot')] = Fault(code)
    with pytest.raises(raised):
        driver.snapshot(context, make_instance(), 'image-of-it', states[1])
    service.drop[('POST', '.*/snapshot')] = 'after'
    with pytest.raises(exception.HypervisorUnavailable):
        driver.snapshot(context, make_instance(), 'image-of-it', states[1])
    assert len([call for call in service.calls() if call.endswith('/snapshot')]) == 2


def test_a_service_token_goes_with_the_users(driver, context, service, monkeypatch):
    auth = mock.Mock()
    auth.get_headers.return_value = {'X-Auth-Token': 'a-token', 'X-Service-Token': 'of-nova'}
    monkeypatch.setattr('nova.image.glance._session_and_auth', lambda context: (None, auth))
    driver.images.ensure(context, IMAGE)
    source = service.body('PUT', '/v1/images/' + IMAGE)['source']
    assert (source['token'], source['service_token']) == ('a-token', 'of-nova')


# Rescue.

RESCUE_IMAGE = '55555555-5555-4555-8555-555555555555'


@pytest.fixture
def rescue(spawn, driver, context, service):
    """Does what Nova's manager does, which powers off first."""
    def rescue(instance=None, network_info=None, **properties):
        instance = instance or make_instance(task_state='rescuing')
        driver.power_off(instance, 60, 10)
        image_meta = objects.ImageMeta.from_dict(
            {'id': RESCUE_IMAGE, 'properties': properties})
        driver.rescue(context, instance, network_info or [], image_meta, 'secret',
                      {'block_device_mapping': []}, None)
    service.extra[('POST', '.*/password')] = None
    return rescue


def test_rescue(spawn, rescue, driver, service, os_vif_calls):
    spawn(network_info=[make_vif()])
    del service.requests[:], os_vif_calls[:]
    rescue(network_info=[make_vif()], hw_rescue_device='disk', hw_rescue_bus='virtio',
           os_admin_user='admin')
    assert service.changes() == [
        'POST %s/stop' % PATH, 'PUT /v1/images/' + RESCUE_IMAGE, 'POST %s/rescue' % PATH,
        'POST %s/password' % PATH]
    assert service.body('POST', PATH + '/rescue') == {
        'image_id': RESCUE_IMAGE, 'files': [],
        'environment': {'product_name': 'OpenStack Nova'}}
    # The user of the image that runs.
    assert service.body('POST', PATH + '/password') == {'user': 'admin', 'password': 'secret'}
    assert [what for what, _ in os_vif_calls] == ['plug']
    assert driver.get_info(make_instance()).state == power_state.RUNNING


def test_rescue_by_an_application(spawn, rescue, service):
    spawn(make_instance(metadata={'berth:command': 'own', 'berth:env:A': 'own'}))
    service.image_config = {'entrypoint': ['/repair'], 'cmd': [], 'init': None}
    rescue(make_instance(metadata={'berth:command': 'init'}))
    assert service.body('POST', PATH + '/rescue')['environment'] == {}
    assert not [call for call in service.calls() if call.endswith('/password')]


def test_the_config_drive_of_a_rescue_has_its_password(spawn, rescue, service, monkeypatch):
    from nova.virt.berth import configdrive
    spawn()
    seen = mock.Mock()
    seen.return_value.metadata_for_config_drive.return_value = [('openstack/latest/x', b'{}')]
    monkeypatch.setattr(configdrive.base, 'InstanceMetadata', seen)
    rescue(make_instance(config_drive='True'))
    assert seen.call_args.kwargs['extra_md'] == {'admin_pass': 'secret'}
    [file] = service.body('POST', PATH + '/rescue')['files']
    assert file['path'] == '/config-drive/openstack/latest/x'


def test_a_password_that_a_rescue_image_cannot_take_is_no_failure(
        spawn, rescue, driver, service):
    spawn()
    service.faults[('POST', '.*/password')] = Fault('instance-unsupported', status=422)
    rescue()
    assert service.instances[UUID]['rescue_image_id'] == RESCUE_IMAGE


@pytest.mark.parametrize('method,path,code,raised', [
    ('PUT', '/v1/images/.*', 'image-unacceptable', exception.ImageUnacceptable),
    ('POST', '.*/rescue', 'flavor-disk-too-small', exception.FlavorDiskTooSmall),
    ('POST', '.*/rescue', 'runtime-failed', exception.InternalError),
])
def test_a_failed_rescue(spawn, rescue, driver, service, method, path, code, raised):
    spawn()
    service.faults[(method, path)] = Fault(code)
    with pytest.raises(raised):
        rescue()
    assert driver.get_info(make_instance()).state == power_state.SHUTDOWN


def test_unrescue(spawn, rescue, driver, context, service):
    spawn()
    rescue()
    driver.unrescue(context, make_instance(vm_state='rescued', task_state='unrescuing'))
    assert service.instances[UUID]['rescue_image_id'] is None
    assert driver.get_info(make_instance()).state == power_state.RUNNING
    service.faults[('POST', '.*/unrescue')] = Fault('runtime-failed', 'no init')
    with pytest.raises(exception.InternalError, match='no init'):
        driver.unrescue(context, make_instance(vm_state='rescued'))


@pytest.mark.parametrize('vm_state,image', [('rescued', RESCUE_IMAGE), ('error', None)])
@pytest.mark.parametrize('act', [
    lambda driver, *a: driver.power_on(*a),
    lambda driver, *a: driver.reboot(*a, 'HARD'),
    lambda driver, context, instance, network_info: driver.resume_state_on_host_boot(
        context, instance, network_info, None),
])
def test_nova_knows_whether_it_is_rescued(
        spawn, rescue, driver, context, service, vm_state, image, act):
    spawn()
    rescue()
    driver.power_off(make_instance())
    act(driver, context, make_instance(vm_state=vm_state), [])
    assert service.instances[UUID]['rescue_image_id'] == image
    assert driver.get_info(make_instance()).state == power_state.RUNNING


def test_a_rescued_server_is_destroyed(spawn, rescue, driver, context, service):
    spawn()
    rescue()
    driver.destroy(context, make_instance(vm_state='rescued'), [])
    assert service.instances == {}


# Not yet.

def test_what_is_not_offered_yet(driver, context, meta):
    instance = make_instance()
    with pytest.raises(exception.MigrationPreCheckError):
        driver.check_can_live_migrate_destination(context, instance, {}, {})
    with pytest.raises(exception.MigrationPreCheckError):
        driver.check_can_live_migrate_source(context, instance, {})
    driver.cleanup_live_migration_destination_check(context, {})
    with pytest.raises(NotImplementedError):
        driver.attach_volume(context, {}, instance, '/dev/vdb')


# The shape of the class.

MUST = '''init_host get_info list_instances list_instance_uuids get_available_nodes
    get_host_ip_addr spawn destroy cleanup reboot power_off power_on pause unpause suspend resume
    rescue unrescue delete_instance_files instance_on_disk get_console_output get_serial_console
    get_vnc_console get_host_uptime plug_vifs
    unplug_vifs attach_interface detach_interface snapshot get_available_resource
    update_provider_tree migrate_disk_and_power_off'''.split()


@pytest.mark.parametrize('name', MUST)
def test_it_is_not_the_base_classs(name):
    assert name in vars(berth.BerthDriver)


OVERRIDDEN = sorted(
    name for name, value in vars(berth.BerthDriver).items()
    if inspect.isfunction(value) and name != '__init__' and
    hasattr(nova_driver.ComputeDriver, name))


@pytest.mark.parametrize('name', OVERRIDDEN)
def test_signatures_are_novas(name):
    ours = _parameters(getattr(berth.BerthDriver, name))
    theirs = _parameters(getattr(nova_driver.ComputeDriver, name))
    assert ours[:len(theirs)] == theirs
    # Since Nova 34; before, nobody passes it.
    assert {parameter[0] for parameter in ours[len(theirs):]} <= {'share_info'}


def _parameters(method):
    return [(p.name, p.kind, p.default)
            for p in inspect.signature(method).parameters.values()]


def test_nothing_public_is_a_misspelt_method():
    public = {name for name, value in vars(berth.BerthDriver).items()
              if inspect.isfunction(value) and not name.startswith('_')}
    # Since Nova 34; before, nobody calls it.
    assert public - set(OVERRIDDEN) <= {'process_instances_at_startup'}


def test_capabilities(driver):
    assert set(driver.capabilities) >= set(nova_driver.ComputeDriver.capabilities)
    assert {name for name, value in driver.capabilities.items() if value} == {
        'has_imagecache', 'supports_attach_interface', 'supports_device_tagging',
        'supports_evacuate',
        'supports_image_type_ami', 'supports_image_type_qcow2', 'supports_image_type_raw',
        'supports_image_type_vdi', 'supports_image_type_vhd', 'supports_image_type_vhdx',
        'supports_image_type_vmdk',
        'supports_pcpus', 'supports_tagged_attach_interface', 'supports_trusted_certs'}
    # Nova turns them into traits; one that it does not know would fail here.
    assert any(driver.capabilities_as_traits().values())


def test_servers_that_a_restart_cut_short_say_so(driver, context, monkeypatch):
    told = []
    monkeypatch.setattr(unfinished.compute_utils, 'add_instance_fault_from_exc',
                        lambda context, instance, error: told.append((instance.uuid, str(error))))
    monkeypatch.setattr(unfinished, '_waiting', lambda *_: [building('waiting')])
    instances = [building('begun'), mock.Mock(uuid='well', vm_state='active', task_state=None)]
    assert driver.process_instances_at_startup(context, instances) is instances
    assert [uuid for uuid, _ in told] == ['begun', 'waiting']
    assert all(unfinished.REASON in reason for _, reason in told)


def building(uuid):
    return mock.Mock(uuid=uuid, vm_state='building', task_state='spawning')


def test_no_explanation_keeps_nova_compute_from_starting(driver, context, monkeypatch):
    monkeypatch.setattr(unfinished, '_waiting', mock.Mock(side_effect=RuntimeError))
    assert driver.process_instances_at_startup(context, []) == []


def test_a_hosts_first_start_has_nothing_to_explain(driver, context, monkeypatch, caplog):
    monkeypatch.setattr(unfinished.objects.ComputeNode, 'get_by_nodename', mock.Mock(
        side_effect=exception.ComputeHostNotFound(host='new')))
    assert driver.process_instances_at_startup(context, []) == []
    assert 'not explained' not in caplog.text
