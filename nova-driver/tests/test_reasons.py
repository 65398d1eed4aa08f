"""What becomes of a failure's words: Nova's own manager around the driver."""

import os
import re
from unittest import mock

import pytest
from conftest import CONF, IMAGE, UUID, make_flavor, make_instance, make_vif
from fake_service import Fault
from nova import exception
from nova import objects
from nova.compute import manager
from nova.compute import task_states
from nova.compute import vm_states
from nova.virt.berth import faults

PATH = '/v1/instances/%s' % UUID
META = objects.ImageMeta(id=IMAGE)


class Build:
    """`_build_and_run_instance` of Nova, with the claim and the networks of a test's."""

    def __init__(self, driver, context, monkeypatch):
        self.driver, self.context = driver, context
        monkeypatch.setattr(manager.compute_utils, 'notify_about_instance_create', mock.Mock())
        monkeypatch.setattr(objects.Instance, 'save', lambda *a, **k: None)

    def run(self, instance=None, ports=()):
        """How the build ends: the exception by which Nova decides, and its reason."""
        nova = mock.MagicMock(driver=self.driver)
        nova._get_request_group_mapping.return_value = None
        # A mock's context managers hide what is raised in them.
        nova.rt.instance_claim.return_value.__exit__.return_value = False
        resources = nova._build_resources.return_value
        resources.__exit__.return_value = False
        resources.__enter__.return_value = {
            'block_device_info': None, 'network_info': list(ports), 'accel_info': []}
        image = {'id': IMAGE, 'name': 'debian', 'properties': {}}
        with pytest.raises(exception.NovaException) as error:
            manager.ComputeManager._build_and_run_instance(
                nova, self.context, instance or make_instance(), image, [], None, None, None,
                None, 'node', {}, {})
        return error.value


@pytest.fixture
def build(driver, context, monkeypatch):
    return Build(driver, context, monkeypatch)


@pytest.mark.parametrize('code', [
    'invalid-input', 'image-unacceptable', 'image-corrupt', 'flavor-disk-too-small',
    'flavor-memory-too-small', 'payload-too-large', 'instance-unsupported'])
@pytest.mark.parametrize('call', [('PUT', PATH), ('POST', PATH + '/start')])
def test_what_no_host_can_do_ends_the_build_with_the_services_words(build, service, code, call):
    service.faults[call] = Fault(code, 'the words of the service')
    error = build.run()
    assert isinstance(error, exception.BuildAbortException)
    assert 'the words of the service' in error.format_message()
    assert service.instances == {}


# What berth says of an image with `/var` on LVM: as long as such words get.
REFUSED = (
    'its fstab mounts /var from /dev/mapper/ubuntu--vg-var, which the disk has not, or not in a file '
    'system that is read here; give the whole system on one disk with ext4, or as a tar archive')


def failed(code, detail):
    """An import that was begun, and ends with a fault."""
    problem = {'code': code, 'status': 422, 'title': 'x', 'detail': detail}
    return {'id': 'an-operation', 'status': 'failed', 'fault': problem}


@pytest.mark.parametrize('code', ['image-unacceptable', 'image-corrupt'])
@pytest.mark.parametrize('at_once', [True, False])
def test_a_refused_image_is_the_servers_fault_in_the_services_own_words(
        build, context, service, monkeypatch, code, at_once):
    """What Nova's manager records is what `openstack server show` shows."""
    if at_once:
        service.faults[('PUT', '/v1/images/' + IMAGE)] = Fault(code, REFUSED)
    else:
        service.slow = True
        service.extra[('GET', '/v1/operations/.*')] = failed(code, REFUSED)
    error = build.run()
    made = []
    monkeypatch.setattr(objects.InstanceFault, 'create', lambda fault: made.append(fault))
    manager.compute_utils.add_instance_fault_from_exc(context, make_instance(), error, None)
    [fault] = made
    assert fault.message == 'Build of instance %s aborted: %s' % (UUID, REFUSED)
    assert service.instances == {}


def test_the_services_words_fit_into_what_nova_keeps():
    """As many as `src/image/refusal.rs` counts on."""
    path = os.path.join(os.path.dirname(__file__), '..', '..', 'src', 'image', 'refusal.rs')
    with open(path) as file:
        [shown] = re.findall(r'const SHOWN: usize = (\d+);', file.read())
    own = exception.BuildAbortException(instance_uuid=UUID, reason='').format_message()
    assert int(shown) == 255 - len(own) >= len(REFUSED)


@pytest.mark.parametrize('code', [
    'resources-exhausted', 'host-unsupported', 'runtime-failed', 'network-failed', 'internal',
    'timeout', 'glance-unavailable', 'image-not-found', 'a-new-one'])
@pytest.mark.parametrize('call', [('PUT', PATH), ('PUT', '/v1/images/' + IMAGE)])
def test_what_another_host_may_do_goes_there_and_the_action_keeps_the_reason(
        build, service, told, code, call):
    service.faults[call] = Fault(code, 'the words of the service')
    error = build.run()
    assert isinstance(error, exception.RescheduledException)
    [(event, reason)] = told
    assert event == 'driver_spawn'
    assert reason == faults.to_nova(
        faults.Fault(code, 500, 'the words of the service'),
        {'instance': UUID} if call[1] == PATH else {'image': IMAGE}).format_message()
    assert service.instances == {}


@pytest.mark.parametrize('values,ports,words', [
    ({'flavor': make_flavor(extra_specs={'hw:mem_page_size': 'large'})}, (), 'hw:mem_page_size=large'),
    ({}, [make_vif(vnic_type='baremetal')], 'vnic_type baremetal'),
    ({}, [make_vif(type='vhostuser', details={'vhostuser_socket': '/x'})], 'vif_type vhostuser'),
])
def test_what_the_driver_refuses_ends_the_build_with_its_words(build, service, values, ports, words):
    error = build.run(make_instance(**values), ports)
    assert isinstance(error, exception.BuildAbortException)
    assert words in error.format_message()
    assert service.calls('PUT') in ([], ['PUT /v1/images/' + IMAGE])


@pytest.mark.parametrize('raised', [
    exception.ImageNotFound(image_id=IMAGE), exception.ImageNotAuthorized(image_id=IMAGE)])
def test_an_image_that_glance_does_not_give_ends_the_build(build, driver, raised):
    driver.images.api.get.side_effect = raised
    error = build.run()
    assert isinstance(error, exception.BuildAbortException)
    assert raised.format_message() in error.format_message()


def test_a_volume_ends_the_build_with_words(driver, context, monkeypatch):
    """Nova asks for the connector before it spawns; what the base class raises has no words."""
    monkeypatch.setattr(manager.driver, 'get_block_device_info', lambda instance, bdms: {})
    monkeypatch.setattr(
        manager.driver_block_device, 'attach_block_devices',
        lambda mapping, context, instance, volumes, driver, **k: driver.get_volume_connector(instance))
    with pytest.raises(exception.InvalidBDM, match='does not attach volumes yet'):
        manager.ComputeManager._prep_block_device(
            mock.MagicMock(driver=driver), context, make_instance(),
            objects.BlockDeviceMappingList())


def test_a_port_that_is_not_bound_here_is_tried_elsewhere(build):
    error = build.run(ports=[make_vif(type='binding_failed')])
    assert isinstance(error, exception.RescheduledException)


# Rebuild.

def rebuild(driver, context, **values):
    instance = make_instance(
        task_state=task_states.REBUILDING, host=CONF.host, **values.pop('instance', {}))
    given = {'image_meta': META, 'network_info': [make_vif()], **values}
    driver.rebuild(context, instance, given.pop('image_meta'), [], None, {}, [], None, None, **given)


@pytest.fixture
def made(driver, context, service):
    driver.spawn(context, make_instance(), META, [], None, {}, [make_vif()])
    service.images.clear()
    service.requests.clear()
    return service.instances[UUID]


def test_a_rebuild_is_novas_own_once_the_image_is_here(driver, context, service, made):
    with pytest.raises(NotImplementedError):
        rebuild(driver, context)
    assert service.changes() == ['PUT /v1/images/' + IMAGE]


@pytest.mark.parametrize('values', [
    {'image_meta': objects.ImageMeta(id=IMAGE, properties=objects.ImageMetaProps(hw_numa_nodes=2))},
    {'network_info': [make_vif(vnic_type='direct')]}, {'accel_uuids': ['x']},
    {'instance': {'flavor': make_flavor(extra_specs={'hw:tpm_version': '2.0'})}}])
def test_a_rebuild_that_is_refused_leaves_the_server_as_it_was(
        driver, context, service, made, values):
    with pytest.raises(exception.InstanceFaultRollback) as error:
        rebuild(driver, context, **values)
    assert service.changes() == [] and service.instances[UUID] is made
    assert UUID in error.value.inner_exception.format_message()


@pytest.mark.parametrize('code', ['image-unacceptable', 'glance-forbidden', 'resources-exhausted'])
def test_a_rebuild_whose_image_does_not_come_leaves_the_server_as_it_was(
        driver, context, service, made, code):
    service.faults[('PUT', '/v1/images/' + IMAGE)] = Fault(code, 'the words of the service')
    with pytest.raises(exception.InstanceFaultRollback) as error:
        rebuild(driver, context)
    assert 'the words of the service' in error.value.inner_exception.format_message()
    assert service.instances[UUID] is made


def test_nova_puts_back_the_state_and_records_the_words(driver, context, service, made, monkeypatch):
    """Nova's own handler around `driver.rebuild`."""
    service.faults[('PUT', '/v1/images/' + IMAGE)] = Fault('image-unacceptable', 'a broken image')
    nova = mock.MagicMock()
    handler = manager.ComputeManager._error_out_instance_on_exception
    with pytest.raises(exception.BuildAbortException, match='a broken image'):
        with handler(nova, context, make_instance(), instance_state=vm_states.STOPPED):
            rebuild(driver, context)
    assert nova._instance_update.call_args.kwargs == {
        'vm_state': vm_states.STOPPED, 'task_state': None}


@pytest.mark.parametrize('code', ['resources-exhausted', 'host-unsupported'])
@pytest.mark.parametrize('task_state,host,is_lost', [
    (task_states.REBUILD_SPAWNING, None, True), (task_states.REBUILD_SPAWNING, 'the dead one', False),
    (task_states.SPAWNING, None, False)])
def test_a_rebuilt_server_whose_disks_are_gone_is_not_shown_as_active(
        driver, context, service, code, task_state, host, is_lost):
    """Nova takes ComputeResourcesUnavailable for a failed claim, and changes no state."""
    service.faults[('PUT', PATH)] = Fault(code, 'the words of the service')
    instance = make_instance(task_state=task_state, host=host or CONF.host)
    with pytest.raises(exception.NovaException, match='the words of the service') as error:
        driver.spawn(context, instance, META, [], None, {}, [make_vif()])
    assert isinstance(error.value, exception.ComputeResourcesUnavailable) is not is_lost


# The action's event.

def test_a_missing_event_hides_no_reason(driver, context, service, monkeypatch):
    monkeypatch.setattr(objects.InstanceActionEvent, 'event_start', mock.Mock(
        side_effect=exception.InstanceActionNotFound(request_id='x', instance_uuid=UUID)))
    service.faults[('PUT', PATH)] = Fault('internal', 'the words of the service')
    with pytest.raises(exception.InternalError, match='the words of the service'):
        driver.spawn(context, make_instance(), META, [], None, {}, [])


def test_a_success_adds_no_event(driver, context, told):
    driver.spawn(context, make_instance(), META, [], None, {}, [make_vif()])
    assert told == []


def test_the_event_is_recorded_as_nova_records_its_own(driver, context, service, monkeypatch):
    """Without the notebook: what reaches Nova's database."""
    monkeypatch.undo()
    sent = []
    monkeypatch.setattr('nova.db.main.api.action_event_start',
                        lambda context, values: sent.append(values))
    monkeypatch.setattr('nova.db.main.api.action_event_finish',
                        lambda context, values: sent.append(values))
    from nova.virt.berth import told
    try:
        raise exception.InvalidInput(reason='the words')
    except exception.InvalidInput as error:
        told._tell(context, make_instance(), 'driver_spawn', error)
    start, end = sent
    assert start['event'] == end['event'] == 'driver_spawn'
    assert start['request_id'] == end['request_id'] == context.request_id
    assert (end['result'], end['details']) == ('Error', 'Invalid input received: the words')


def test_a_want_of_memory_is_an_action_of_its_own(monkeypatch):
    monkeypatch.undo()
    sent = []
    for name in ('action_start', 'action_event_start', 'action_event_finish', 'action_finish'):
        monkeypatch.setattr('nova.db.main.api.%s' % name,
                            lambda context, values, name=name: sent.append((name, values)))
    from nova.virt.berth import told
    told.of_want_of_memory(UUID)
    assert [name for name, _ in sent] == [
        'action_start', 'action_event_start', 'action_event_finish', 'action_finish']
    assert len({values['request_id'] for _, values in sent}) == 1
    assert {values['instance_uuid'] for _, values in sent} == {UUID}
    assert sent[0][1]['action'] == 'out_of_memory'
    assert (sent[2][1]['result'], sent[2][1]['details'][:27]) == ('Error', 'The server is out of memory')
    # Of a server that Nova does not know, nothing is left undone.
    monkeypatch.setattr('nova.db.main.api.action_start', mock.Mock(side_effect=ValueError))
    told.of_want_of_memory(UUID)
