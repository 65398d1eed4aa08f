"""Device tags: what Nova's own metadata says inside of what the driver noted."""

import base64
import json
import pathlib
import re
from unittest import mock

import pytest
from conftest import IMAGE, UUID, make_instance, make_vif
from fake_service import Fault
from nova import exception
from nova import objects
from nova.api.metadata import base
from nova.compute import manager
from nova.network import neutron
from nova.virt import driver as nova_driver
from nova.virt.berth import configdrive
from nova.virt.berth import tags

META = objects.ImageMeta(id=IMAGE)
OTHER = '55555555-5555-4555-8555-555555555555'


class Metadata(base.InstanceMetadata):
    """Nova's, without what else it looks up in the database."""

    def __init__(self, instance, **told):
        self.instance = instance

    def devices(self):
        return self._get_device_metadata(base.OPENSTACK_VERSIONS[-1])

    def metadata_for_config_drive(self):
        yield 'openstack/latest/meta_data.json', json.dumps({'devices': self.devices()}).encode()


def shown(instance):
    return Metadata(instance).devices()


def nic(tag, mac='fa:16:3e:00:00:01', port=OTHER):
    return objects.VirtualInterface(address=mac, uuid=port, tag=tag)


def disk(tag, **values):
    told = dict(source_type='blank', destination_type='local', guest_format=None, boot_index=-1,
                volume_id=None, device_name='/dev/vdb')
    return objects.BlockDeviceMapping(tag=tag, **{**told, **values})


NIC = {'type': 'nic', 'mac': 'fa:16:3e:00:00:01', 'tags': ['inner'], 'bus': 'none',
       'address': 'none', 'vf_trusted': False}


def spawn(driver, context, instance, ports=()):
    driver.spawn(context, instance, META, [], None, {}, list(ports))
    return instance


def test_nothing_is_tagged(driver, context, tagged):
    tagged['vifs'] = [nic(None), objects.VirtualInterface(address='fa:16:3e:00:00:02', uuid=OTHER)]
    tagged['disks'] = [disk(None, boot_index=0, source_type='image')]
    assert spawn(driver, context, make_instance()).device_metadata is None


def test_what_is_tagged_at_boot_is_shown_by_what_the_guest_finds(driver, context, tagged):
    tagged['vifs'] = [nic('inner'), nic(None, 'fa:16:3e:00:00:02')]
    tagged['disks'] = [
        disk('scratch'), disk('system', boot_index=0, source_type='image'), disk('more'),
        disk('swapped', guest_format='swap'),
        disk('volume', source_type='volume', destination_type='volume', volume_id=OTHER)]
    plain = UUID.replace('-', '')
    assert shown(spawn(driver, context, make_instance(), [make_vif()])) == [
        NIC,
        {'type': 'disk', 'serial': ('ephemeral0-' + plain)[:20], 'bus': 'none', 'address': 'none',
         'tags': ['more', 'scratch']},
        {'type': 'disk', 'serial': ('root-' + plain)[:20], 'bus': 'none', 'address': 'none',
         'tags': ['system']}]


def test_the_config_drive_says_it_too(driver, context, tagged, service, monkeypatch):
    monkeypatch.setattr(configdrive.base, 'InstanceMetadata', Metadata)
    tagged['vifs'] = [nic('inner')]
    spawn(driver, context, make_instance(config_drive='True'), [make_vif()])
    (file,) = service.instances[UUID]['files']
    assert file['path'] == '/config-drive/openstack/latest/meta_data.json'
    assert json.loads(base64.b64decode(file['content'])) == {'devices': [NIC]}


def test_a_serial_number_is_as_the_service_makes_it():
    """`serial` of src/runtime/disks.rs."""
    text = (pathlib.Path(__file__).parents[2] / 'src/runtime/disks.rs').read_text()
    assert int(re.search(r'const SERIAL: usize = (\d+);', text)[1]) == tags.SERIAL_MAX
    assert 'format!("{kind}-{}", instance.simple())' in text
    for kind in ('root', 'ephemeral0'):
        assert '=> "%s",' % kind in text


@pytest.fixture
def saved(monkeypatch):
    """What is shown of the instance each time that it is saved."""
    states = []
    monkeypatch.setattr(objects.Instance, 'save', lambda self: states.append(
        shown(self) if self.device_metadata else []))
    return states


def test_an_interface_that_is_attached_is_shown(driver, context, instance, tagged, saved):
    tagged['vifs'] = [nic('inner'), nic('outer', 'fa:16:3e:00:00:09')]
    driver.attach_interface(
        context, instance, META, make_vif(port=OTHER, mac='fa:16:3e:00:00:09'))
    assert [(device['mac'], device['tags']) for device in saved[-1]] == [
        ('fa:16:3e:00:00:01', ['inner']), ('fa:16:3e:00:00:09', ['outer'])]
    # Nova forgets it when it is detached.
    neutron.API._delete_nic_metadata(mock.Mock(), instance, tagged['vifs'][1])
    assert [device['mac'] for device in shown(instance)] == ['fa:16:3e:00:00:01']


def test_what_is_not_attached_is_not_shown(driver, context, instance, service, tagged, saved):
    tagged['vifs'] = [nic('outer', 'fa:16:3e:00:00:09')]
    service.faults['PUT', '/v1/instances/%s/interfaces/%s' % (UUID, OTHER)] = Fault(
        'invalid-input', 'no')
    with pytest.raises(exception.NovaException):
        driver.attach_interface(
            context, instance, META, make_vif(port=OTHER, mac='fa:16:3e:00:00:09'))
    assert saved == []


def test_novas_manager_lets_tags_through(driver, context):
    """Of interfaces and a server's own disks; a volume is refused, tagged or not."""
    nova = mock.Mock(driver=driver)
    asked = objects.NetworkRequestList(objects=[objects.NetworkRequest(tag='inner')])
    manager.ComputeManager._check_device_tagging(nova, asked, [disk('scratch')])
    assert driver.capabilities['supports_tagged_attach_interface']
    assert not driver.capabilities['supports_tagged_attach_volume']
    traits = nova_driver.ComputeDriver.capabilities_as_traits(driver)
    assert traits['COMPUTE_DEVICE_TAGGING'] and traits['COMPUTE_NET_ATTACH_INTERFACE_WITH_TAG']
