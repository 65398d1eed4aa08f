"""Resize on the same host: Nova's steps against the fake service."""

import contextlib
from types import SimpleNamespace
from unittest import mock

import pytest
from conftest import CONF, IMAGE, PORT, UUID, make_flavor, make_instance, make_vif
from fake_service import Fault
from nova import exception
from nova import objects
from nova.compute import power_state
from nova.compute import task_states
from nova.compute import vm_states
from nova.virt.berth import translate

PATH = '/v1/instances/%s' % UUID
HERE = '192.0.2.1'  # `my_ip` of the tests
OLD = make_flavor()
NEW = make_flavor(name='m1.small', flavorid='2', memory_mb=1024, root_gb=5)
META = objects.ImageMeta(id=IMAGE)


@pytest.fixture
def nova(driver, context):
    return Nova(driver, context)


class Nova:
    """The parts of Nova's manager around the driver."""

    def __init__(self, driver, context):
        self.driver, self.context = driver, context
        self.vifs = [make_vif()]

    def migrate(self, instance, flavor=NEW, dest=HERE, bdi=None, timeout=60):
        instance.task_state = task_states.RESIZE_MIGRATING
        return self.driver.migrate_disk_and_power_off(
            self.context, instance, dest, flavor, self.vifs, bdi, timeout, 10)

    def finish(self, instance, disk_info='', power_on=True):
        instance.old_flavor, instance.flavor = instance.flavor, NEW
        instance.task_state = task_states.RESIZE_FINISH
        self.driver.finish_migration(
            self.context, mock.Mock(), instance, disk_info, self.vifs, META, True, {},
            None, power_on)

    def resize(self, instance, power_on=True):
        self.finish(instance, self.migrate(instance), power_on)
        instance.vm_state, instance.task_state = vm_states.RESIZED, None

    def confirm(self, instance):
        self.driver.confirm_migration(self.context, mock.Mock(), instance, self.vifs)

    def revert(self, instance, power_on=True):
        """As `revert_resize` and `finish_revert_resize` do it."""
        from nova.compute import manager
        instance.task_state = task_states.RESIZE_REVERTING
        this = SimpleNamespace(driver=self.driver, compute_rpcapi=self)
        shared = manager.ComputeManager._is_instance_storage_shared(
            this, self.context, instance, host=CONF.host)
        self.driver.destroy(self.context, instance, self.vifs, None, not shared)
        instance.flavor = instance.old_flavor
        self.driver.finish_revert_migration(
            self.context, instance, self.vifs, mock.Mock(), None, power_on)

    def check_instance_shared_storage(self, context, data, instance=None, host=None):
        return self.driver.check_instance_shared_storage_remote(context, data)


def state(driver):
    return driver.get_info(make_instance()).state


@pytest.mark.parametrize('power_on', [True, False])
def test_a_confirmed_resize(nova, driver, service, instance, os_vif_calls, power_on):
    if not power_on:
        driver.power_off(instance)
        instance.vm_state = vm_states.STOPPED
    nova.resize(instance, power_on)
    assert service.body('POST', PATH + '/resize') == {
        'flavor': translate.flavor(NEW), 'keep': True, 'timeout': 60}
    assert state(driver) == (power_state.RUNNING if power_on else power_state.SHUTDOWN)
    nova.confirm(instance)
    made = service.instances[UUID]
    assert (made['flavor'], made['disk']) == (translate.flavor(NEW), 'old data')
    assert made['unconfirmed_resize'] is None
    # The live instance was not touched.
    assert state(driver) == (power_state.RUNNING if power_on else power_state.SHUTDOWN)
    assert 'unplug' not in [what for what, _ in os_vif_calls]


@pytest.mark.parametrize('power_on', [True, False])
def test_a_reverted_resize(nova, driver, service, instance, os_vif_calls, power_on):
    nova.resize(instance)
    service.instances[UUID]['disk'] = 'new data'
    before = len(service.calls('PUT'))
    nova.revert(instance, power_on)
    # os-vif removed the host's end with the plug.
    assert any('/interfaces/' in call for call in service.calls('PUT')[before:])
    # Nova takes the instance off "the destination" first, and that is the same one.
    assert not service.calls('DELETE')
    made = service.instances[UUID]
    assert (made['flavor'], made['disk']) == (translate.flavor(OLD), 'old data')
    assert state(driver) == (power_state.RUNNING if power_on else power_state.SHUTDOWN)
    assert [what for what, _ in os_vif_calls][-2:] == ['unplug', 'plug']


def test_disk_info_survives_the_message_bus(nova, instance):
    assert isinstance(nova.migrate(instance), str)


@pytest.mark.parametrize('task_state', [None, task_states.DELETING, task_states.REBUILDING])
def test_storage_is_shared_by_a_revert_alone(driver, context, task_state):
    with pytest.raises(NotImplementedError):
        driver.check_instance_shared_storage_local(
            context, make_instance(task_state=task_state))
    reverting = make_instance(task_state=task_states.RESIZE_REVERTING)
    data = driver.check_instance_shared_storage_local(context, reverting)
    assert data, 'Nova takes an empty answer for yes'
    assert driver.check_instance_shared_storage_remote(context, data)
    CONF.set_override('host', 'another')
    assert not driver.check_instance_shared_storage_remote(context, data)


# Refusals: nothing changes.

def refused(call):
    with pytest.raises(exception.InstanceFaultRollback) as error:
        call()
    assert isinstance(error.value.inner_exception, exception.ResizeError)
    return str(error.value.inner_exception)


@pytest.mark.parametrize('values', [{'flavor': make_flavor(root_gb=2)}, {'flavor': make_flavor(root_gb=0)},
                                    {'flavor': make_flavor(root_gb=2), 'dest': '192.0.2.2'}])
def test_what_is_refused_without_the_service(nova, service, instance, values):
    refused(lambda: nova.migrate(instance, **values))
    assert service.calls() == []


def test_an_ephemeral_disk_of_the_users_does_not_shrink(nova, service, instance):
    bdi = {'ephemerals': [{'size': 4, 'guest_format': None}], 'swap': None,
           'block_device_mapping': []}
    refused(lambda: nova.migrate(instance, make_flavor(root_gb=5, ephemeral_gb=3), bdi=bdi))
    assert service.calls() == []
    nova.migrate(instance, make_flavor(root_gb=5, ephemeral_gb=6), bdi=bdi)
    assert service.body('POST', PATH + '/resize')['flavor']['ephemeral_gb'] == 4


@pytest.mark.parametrize('old,new,users,expected', [
    (0, 64, 0, 64), (64, 0, 64, 0), (64, 128, 32, 128), (64, 64, 32, 32)])
def test_swap_is_what_nova_makes_of_it(old, new, users, expected):
    bdi = {'swap': {'device_name': '/dev/vdb', 'swap_size': users}, 'ephemerals': []}
    body = translate.resize(make_flavor(swap=old), make_flavor(swap=new), bdi if users else None)
    assert body['flavor']['swap_mb'] == expected


@pytest.mark.parametrize('code', ['invalid-input', 'resources-exhausted', 'host-unsupported'])
def test_a_refused_resize_leaves_it_running(nova, driver, service, instance, code):
    service.faults[('POST', PATH + '/resize')] = Fault(code, 'said the service')
    assert 'said the service' in refused(lambda: nova.migrate(instance))
    assert state(driver) == power_state.RUNNING
    assert service.instances[UUID]['flavor'] == translate.flavor(OLD)


@pytest.mark.parametrize('vm_state,expected', [
    (vm_states.ACTIVE, power_state.RUNNING), (vm_states.STOPPED, power_state.SHUTDOWN)])
def test_a_resize_whose_end_is_not_known_is_undone(
        nova, driver, service, instance, vm_state, expected):
    instance.vm_state = vm_state
    driver.power_off(instance)
    post = service.post_instances

    def late(uuid, *parts, **values):
        answer = post(uuid, *parts, **values)
        if parts == ('resize',):
            raise Fault('timeout', status=504)
        return answer
    service.post_instances = late
    refused(lambda: nova.migrate(instance))
    assert service.instances[UUID]['flavor'] == translate.flavor(OLD)
    assert not service.instances[UUID]['unconfirmed_resize']
    assert state(driver) == expected


def test_one_that_cannot_be_put_back_is_an_error(nova, service, instance):
    service.faults[('POST', PATH + '/resize')] = Fault('internal')
    service.faults[('POST', PATH + '/resize/revert')] = Fault('internal')
    with pytest.raises(exception.InternalError):
        nova.migrate(instance)


def test_a_service_that_is_away_changes_nothing(nova, service, instance):
    CONF.set_override('retry_timeout', 0, group='berth')
    service.stop()
    refused(lambda: nova.migrate(instance))


def test_an_instance_that_is_gone_is_an_error(nova, service, instance):
    service.instances.clear()
    with pytest.raises(exception.InternalError, match='rebuild'):
        nova.migrate(instance)
    nova.confirm(instance)  # As far as it can be.


def test_what_nova_gave_up_is_never_reverted_to(nova, service, instance):
    nova.migrate(instance)
    # Nova fails here, and the user goes on with the instance.
    service.instances[UUID]['disk'] = 'written since'
    service.set_state(UUID, 'RUNNING')
    nova.migrate(instance, make_flavor(root_gb=9))
    instance.old_flavor = OLD
    nova.revert(instance)
    assert service.instances[UUID]['disk'] == 'written since'


# Failures half-way.

def test_what_does_not_come_up_gets_its_old_flavor_back(nova, service, instance):
    disk_info = nova.migrate(instance)
    service.faults[('POST', PATH + '/start')] = Fault('runtime-failed')
    with pytest.raises(exception.InternalError):
        nova.finish(instance, disk_info)
    made = service.instances[UUID]
    assert (made['flavor'], made['power_state']) == (translate.flavor(OLD), 'SHUTDOWN')
    assert made['unconfirmed_resize'] is None


def test_the_first_failure_is_told(nova, service, instance):
    disk_info = nova.migrate(instance)
    service.faults[('POST', PATH + '/start')] = Fault('runtime-failed', 'the first')
    service.faults[('POST', PATH + '/resize/revert')] = Fault('internal')
    with pytest.raises(exception.InternalError, match='the first'):
        nova.finish(instance, disk_info)


@pytest.mark.parametrize('came', ['nowhere', 'to the stop', 'to the resize'])
def test_a_restart_of_nova_compute_in_the_middle(
        nova, driver, context, service, instance, virtapi, came):
    """`_init_instance` asks for a revert, and Neutron's events do not come yet."""
    nova.vifs = [make_vif(active=False)]
    if came == 'to the stop':
        driver.power_off(instance)
    elif came == 'to the resize':
        nova.migrate(instance)
    instance.task_state = task_states.RESIZE_MIGRATING
    driver.finish_revert_migration(context, instance, nova.vifs, mock.Mock(), None, True)
    assert state(driver) == power_state.RUNNING
    assert service.instances[UUID]['flavor'] == translate.flavor(OLD)
    virtapi.wait_for_instance_event.assert_not_called()


@pytest.mark.parametrize('method,path', [
    ('POST', PATH + '/resize'), ('POST', PATH + '/resize/revert'),
    ('POST', PATH + '/resize/confirm')])
@pytest.mark.parametrize('when', ['before', 'after'])
def test_lost_answers(nova, driver, service, instance, method, path, when):
    service.drop[(method, path)] = when
    nova.resize(instance)
    if path.endswith('confirm'):
        nova.confirm(instance)
        assert service.instances[UUID]['flavor'] == translate.flavor(NEW)
    else:
        nova.revert(instance)
        assert service.instances[UUID]['disk'] == 'old data'
        assert service.instances[UUID]['flavor'] == translate.flavor(OLD)
    assert state(driver) == power_state.RUNNING
    assert (method, path) not in service.drop


# Network.

@contextlib.contextmanager
def noted(order, name):
    order.append(name + ' begins')
    yield
    order.append(name + ' ends')


@pytest.mark.parametrize('power_on', [True, False])
def test_ports_that_are_down_are_waited_for(
        nova, service, instance, virtapi, os_vif_calls, power_on):
    disk_info = nova.migrate(instance)
    nova.vifs = [make_vif(active=False)]
    order = []
    virtapi.wait_for_instance_event.side_effect = lambda *a, **k: noted(order, 'wait')
    nova.finish(instance, disk_info, power_on)
    assert order == (['wait begins', 'wait ends'] if power_on else [])
    assert os_vif_calls[-1][0] == 'plug'


def test_what_neutron_changed_meanwhile(nova, service, instance):
    disk_info = nova.migrate(instance)
    other = '55555555-5555-4555-8555-555555555555'
    nova.vifs = [make_vif(), make_vif(port=other, mac='fa:16:3e:00:00:02')]
    nova.finish(instance, disk_info)
    assert [v['id'] for v in service.instances[UUID]['vifs']] == [PORT, other]
