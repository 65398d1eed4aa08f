"""Ports in every shape that Nova knows: plugged, or refused before anything is made."""

import pytest
from conftest import IMAGE, PORT, UUID, make_instance, make_vif
from nova import exception
from nova import objects
from nova.network import model
from nova.network import os_vif_util
from nova.virt.berth import vif

VIF_TYPES = sorted(value for name, value in vars(model).items() if name.startswith('VIF_TYPE_'))
VNIC_TYPES = sorted(value for name, value in vars(model).items()
                    if name.startswith('VNIC_TYPE_') and isinstance(value, str))
# What Neutron's bindings say beside the types.
DETAILS = {
    'port_filter': True, 'vhostuser_socket': '/run/vhu', 'vhostuser_mode': 'client',
    'ovs_hybrid_plug': False, 'macvtap_source': 'eth0', 'macvtap_mode': 'bridge',
    'physical_interface': 'eth0', 'profileid': 'x', 'vlan': '7'}
PROFILE = {'pci_slot': '0000:00:01.0', 'pci_vendor_info': '8086:10ed', 'physical_network': 'x'}


def spawn(driver, context, port):
    driver.spawn(context, make_instance(), objects.ImageMeta(id=IMAGE), [], None, {}, [port])


def plugged_here(vif_type):
    """Those that are made of a device which the host's end of a veth pair can be."""
    if vif_type == model.VIF_TYPE_BRIDGE:
        # Newer Novas take it for nothing.
        return not _is_removed(vif_type)
    return vif_type in (model.VIF_TYPE_OVS, model.VIF_TYPE_AGILIO_OVS)


def _is_removed(vif_type):
    vif.initialize()
    try:
        os_vif_util.nova_to_osvif_vif(make_vif(type=vif_type))
    except exception.NovaException:
        return True
    return False


def test_novas_lists_are_there():
    assert len(VIF_TYPES) > 15 and len(VNIC_TYPES) > 8
    assert [kind for kind in VIF_TYPES if plugged_here(kind)]


@pytest.mark.parametrize('vif_type', [*VIF_TYPES, None, 'of a later Nova'])
@pytest.mark.parametrize('details', [
    {}, {'vhostuser_ovs_plug': True}, {'vhostuser_fp_plug': True},
    {'vhostuser_vrouter_plug': True}, {'ovs_hybrid_plug': True}])
def test_a_port_is_plugged_or_refused_with_words(
        driver, context, service, os_vif_calls, monkeypatch, vif_type, details):
    monkeypatch.setattr(vif, 'linux_net', None)
    port = make_vif(type=vif_type, details={**DETAILS, **details}, profile=PROFILE)
    if plugged_here(vif_type):
        spawn(driver, context, port)
        [(what, plugged)] = os_vif_calls
        assert what == 'plug' and plugged.plugin in ('ovs', 'linux_bridge')
        return
    with pytest.raises(exception.NovaException) as error:
        spawn(driver, context, port)
    assert PORT in str(error.value) and str(vif_type) in str(error.value)
    # Another host may do where Neutron bound nothing here.
    unbound = vif_type in (None, 'unbound', 'binding_failed')
    assert isinstance(error.value, exception.InvalidInput) is not unbound
    assert service.instances == {}
    if not unbound:
        assert 'PUT /v1/instances/' + UUID not in service.calls()
        assert os_vif_calls == []


@pytest.mark.parametrize('vnic_type', VNIC_TYPES)
@pytest.mark.parametrize('vif_type', ['ovs', 'hw_veb', 'macvtap', 'hostdev_physical', None])
def test_a_vnic_type_is_normal_or_refused_with_words(
        driver, context, service, os_vif_calls, vnic_type, vif_type):
    port = make_vif(type=vif_type, vnic_type=vnic_type, details=dict(DETAILS), profile=PROFILE)
    if (vnic_type, vif_type) == ('normal', 'ovs'):
        spawn(driver, context, port)
        return
    with pytest.raises(exception.NovaException) as error:
        spawn(driver, context, port)
    assert service.instances == {} and not [w for w, _ in os_vif_calls if w == 'plug']
    if vnic_type != 'normal':
        assert isinstance(error.value, exception.InvalidInput)
        assert 'vnic_type %s' % vnic_type in str(error.value)


@pytest.mark.parametrize('values', [
    {'vnic_type': 'macvtap'}, {'vnic_type': 'direct'}, {'type': 'vhostuser'}, {'type': 'tap'}])
def test_an_attach_of_it_changes_nothing_and_the_action_says_why(
        driver, context, service, os_vif_calls, told, values):
    spawn(driver, context, make_vif())
    before = len(service.changes()), len(os_vif_calls)
    with pytest.raises(exception.InvalidInput):
        driver.attach_interface(
            context, make_instance(), objects.ImageMeta(id=IMAGE), make_vif(port=IMAGE, **values))
    assert (len(service.changes()), len(os_vif_calls)) == before
    [(event, reason)] = told
    assert event == 'driver_attach_interface' and list(values.values())[0] in reason


@pytest.mark.parametrize('values', [
    {'type': 'binding_failed'}, {'type': 'unbound'}, {'type': None}, {'type': 'vhostuser'},
    {'vnic_type': 'direct'}])
def test_none_of_them_ends_the_start_of_nova_compute(driver, values):
    """Nova waits for this exception alone, in `_init_instance`."""
    with pytest.raises(exception.VirtualInterfacePlugException):
        driver.plug_vifs(make_instance(), [make_vif(**values)])


def test_what_nova_does_with_a_port_that_is_refused(driver, context, service, told):
    """The words are in the server's fault: `_build_and_run_instance` ends the build by them."""
    with pytest.raises(exception.InvalidInput) as error:
        spawn(driver, context, make_vif(vnic_type='baremetal'))
    words = error.value.format_message()
    assert told == [('driver_spawn', words)]
    assert len(exception.BuildAbortException(instance_uuid=UUID, reason=words).format_message()) < 255
