"""Cold migration and resize to another host: Nova's steps against two fake services."""

from unittest import mock

import fake_service
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
THERE = '192.0.2.2'
OLD = make_flavor()
NEW = make_flavor(name='m1.small', flavorid='2', memory_mb=1024, root_gb=5)
META = objects.ImageMeta(id=IMAGE)


@pytest.fixture
def other(tmp_path, service):
    """The other host's service."""
    directory = tmp_path / 'other'
    directory.mkdir()
    service.peer = fake_service.FakeService(directory)
    yield service.peer
    service.peer.stop()


@pytest.fixture
def driver_there(other, virtapi, nova_service, driver):
    """The other host's driver."""
    from nova.virt.berth import client
    from nova.virt.berth import driver as berth
    options = mock.MagicMock(wraps=CONF.berth)
    for name in CONF.berth:
        setattr(options, name, CONF.berth[name])
    options.url = other.url
    made = berth.BerthDriver(virtapi, client.Client(options))
    yield made
    made.cleanup_host('other')


@pytest.fixture
def nova(driver, driver_there, context):
    return Nova(driver, driver_there, context)


class Nova:
    """The parts of both hosts' managers around their drivers."""

    def __init__(self, here, there, context):
        self.here, self.there, self.context = here, there, context
        self.vifs = [make_vif()]

    def migrate(self, instance, flavor=NEW, dest=THERE, timeout=60):
        instance.task_state = task_states.RESIZE_MIGRATING
        return self.here.migrate_disk_and_power_off(
            self.context, instance, dest, flavor, self.vifs, None, timeout, 10)

    def finish(self, instance, disk_info, power_on=True):
        instance.old_flavor, instance.flavor = instance.flavor, NEW
        instance.task_state = task_states.RESIZE_FINISH
        self.there.finish_migration(
            self.context, mock.Mock(), instance, disk_info, self.vifs, META, True, {}, None, power_on)

    def resize(self, instance, power_on=True):
        self.finish(instance, self.migrate(instance), power_on)
        instance.vm_state, instance.task_state = vm_states.RESIZED, None

    def confirm(self, instance):
        self.here.confirm_migration(self.context, mock.Mock(), instance, self.vifs)

    def revert(self, instance, power_on=True):
        """As `revert_resize` on the destination and `finish_revert_resize` on the source."""
        instance.task_state = task_states.RESIZE_REVERTING
        CONF.set_override('host', 'there')
        data = self.there.check_instance_shared_storage_local(self.context, instance)
        CONF.set_override('host', 'here')
        shared = self.here.check_instance_shared_storage_remote(self.context, data)
        self.there.destroy(self.context, instance, self.vifs, None, not shared)
        instance.flavor = instance.old_flavor
        self.here.finish_revert_migration(
            self.context, instance, self.vifs, mock.Mock(), None, power_on)


def state(driver):
    return driver.get_info(make_instance()).state


def test_a_port_is_bound_again_before_it_is_plugged(nova, instance, os_vif_calls):
    """A port that stayed plugged would be told of when Nova binds it, and waited for in vain."""
    nova.migrate(instance)
    assert os_vif_calls[-1][0] == 'unplug'
    CONF.set_override('host', 'here')
    nova.here.finish_revert_migration(
        nova.context, instance, nova.vifs, mock.Mock(), None, True)
    assert os_vif_calls[-1][0] == 'plug'


@pytest.mark.parametrize('power_on', [True, False])
def test_a_confirmed_move(nova, driver, driver_there, service, other, instance, os_vif_calls, power_on):
    if not power_on:
        driver.power_off(instance)
        instance.vm_state = vm_states.STOPPED
    nova.resize(instance, power_on)
    assert service.body('POST', PATH + '/migrate') == {
        'to': 'https://192.0.2.2:8788', 'flavor': translate.flavor(NEW), 'timeout': 60}
    expected = power_state.RUNNING if power_on else power_state.SHUTDOWN
    assert (state(driver), state(driver_there)) == (power_state.SHUTDOWN, expected)
    assert other.instances[UUID]['disk'] == 'old data'
    assert other.instances[UUID]['flavor'] == translate.flavor(NEW)
    assert os_vif_calls[-1][0] == 'plug'
    # It came with its interfaces: they are not made anew.
    assert not other.calls('PUT')
    nova.confirm(instance)
    assert UUID not in service.instances
    assert os_vif_calls[-1][0] == 'unplug'
    assert state(driver_there) == expected
    nova.confirm(instance)  # As far as it can be.


@pytest.mark.parametrize('power_on', [True, False])
def test_a_reverted_move(nova, driver, service, other, instance, os_vif_calls, power_on):
    nova.resize(instance)
    other.instances[UUID]['disk'] = 'new data'
    nova.revert(instance, power_on)
    assert UUID not in other.instances
    made = service.instances[UUID]
    assert (made['flavor'], made['disk'], made['migration']) == (
        translate.flavor(OLD), 'old data', None)
    assert state(driver) == (power_state.RUNNING if power_on else power_state.SHUTDOWN)
    assert [what for what, _ in os_vif_calls][-2:] == ['unplug', 'plug']


def test_a_migration_keeps_the_flavor(nova, other, instance):
    nova.migrate(instance, flavor=instance.flavor)
    assert other.instances[UUID]['flavor'] == translate.flavor(OLD)


def test_where_the_other_host_is(nova, service, instance):
    CONF.set_override('migration_port', 4711, group='berth')
    nova.migrate(instance, dest='2001:db8::2')
    assert service.body('POST', PATH + '/migrate')['to'] == 'https://[2001:db8::2]:4711'


def test_disk_info_survives_the_message_bus(nova, instance):
    assert isinstance(nova.migrate(instance), str)


@pytest.mark.parametrize('code', ['peer-unavailable', 'resources-exhausted', 'invalid-input',
                                  'host-unsupported', 'instance-exists'])
@pytest.mark.parametrize('vm_state,expected', [
    (vm_states.ACTIVE, power_state.RUNNING), (vm_states.STOPPED, power_state.SHUTDOWN)])
def test_a_refused_move_leaves_it_as_it_was(
        nova, driver, service, other, instance, code, vm_state, expected):
    instance.vm_state = vm_state
    if vm_state == vm_states.STOPPED:
        driver.power_off(instance)
    service.faults[('POST', PATH + '/migrate')] = Fault(code, 'said the service')
    with pytest.raises(exception.InstanceFaultRollback) as error:
        nova.migrate(instance)
    assert 'said the service' in str(error.value.inner_exception)
    assert state(driver) == expected
    assert UUID not in other.instances


def test_one_that_cannot_be_put_back_is_an_error(nova, service, instance):
    service.faults[('POST', PATH + '/migrate')] = Fault('timeout', status=504)
    service.faults[('POST', PATH + '/migrate/revert')] = Fault('peer-unavailable')
    with pytest.raises(exception.MigrationError):
        nova.migrate(instance)


@pytest.mark.parametrize('path', [PATH + '/migrate', PATH + '/migrate/revert'])
@pytest.mark.parametrize('when', ['before', 'after'])
def test_lost_answers(nova, driver, service, instance, path, when):
    service.drop[('POST', path)] = when
    nova.resize(instance)
    nova.revert(instance)
    assert state(driver) == power_state.RUNNING
    assert service.instances[UUID]['flavor'] == translate.flavor(OLD)
    assert ('POST', path) not in service.drop


def test_a_restart_of_nova_compute_in_the_middle(
        nova, driver, context, service, other, instance, virtapi):
    """`_init_instance` asks for a revert, and Neutron's events do not come yet."""
    nova.vifs = [make_vif(active=False)]
    nova.migrate(instance)
    driver.finish_revert_migration(context, instance, nova.vifs, mock.Mock(), None, True)
    assert service.calls('POST')[-2:] == ['POST %s/migrate/revert' % PATH, 'POST %s/start' % PATH]
    assert state(driver) == power_state.RUNNING
    virtapi.wait_for_instance_event.assert_not_called()


def test_what_does_not_come_up_there_is_an_error(nova, service, other, instance):
    disk_info = nova.migrate(instance)
    other.faults[('POST', PATH + '/start')] = Fault('runtime-failed', 'said the other')
    with pytest.raises(exception.InternalError, match='said the other'):
        nova.finish(instance, disk_info)
    assert other.instances[UUID]['power_state'] == 'SHUTDOWN'
    assert service.instances[UUID]['migration']['state'] == 'moved'


def test_what_neutron_changed_meanwhile(nova, other, instance):
    disk_info = nova.migrate(instance)
    port = '55555555-5555-4555-8555-555555555555'
    nova.vifs = [make_vif(), make_vif(port=port, mac='fa:16:3e:00:00:02')]
    nova.finish(instance, disk_info)
    assert [v['id'] for v in other.instances[UUID]['vifs']] == [PORT, port]
