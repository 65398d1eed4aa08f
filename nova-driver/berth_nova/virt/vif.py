"""Ports of Neutron: plugged by os-vif, behind veth pairs that the service makes.

The service makes the pair, its host end under the name os-vif expects; then
os-vif makes it a port of the integration bridge; then Neutron binds it and
tells Nova.
"""

import contextlib
import os

import os_vif
from os_vif import exception as os_vif_exception
from os_vif.objects import vif as os_vif_objects
from oslo_log import log as logging

from nova import conf as nova_conf
from nova import exception
from nova.network import model
from nova.network import os_vif_util
from nova.virt.berth import translate

try:
    from vif_plug_ovs import linux_net
except ImportError:  # os-vif without its OVS plug-in plugs nothing hybrid.
    linux_net = None

LOG = logging.getLogger(__name__)
CONF = nova_conf.CONF

PLUGGED = 'network-vif-plugged'
# What Neutron could not bind, or not yet.
UNBOUND = (None, model.VIF_TYPE_UNBOUND, model.VIF_TYPE_BINDING_FAILED)
# What os-vif makes of a device that is there already, and by which of its plug-ins.
PLUGGED_VIFS = (os_vif_objects.VIFOpenVSwitch, os_vif_objects.VIFBridge)
PLUGINS = ('ovs', 'linux_bridge')
SYS_CLASS_NET = '/sys/class/net'


def event_timeout_class():
    """What a wait for Neutron raises in the end.

    Nova 2025.1 raises eventlet's own timeout. It always runs on eventlet; to
    import that anywhere else would end the process.
    """
    try:
        return exception.InstanceEventTimeout
    except AttributeError:
        from eventlet import timeout
        return timeout.Timeout


def initialize():
    """Loads os-vif's plug-ins."""
    os_vif.initialize()


def check(network_info):
    """Refuses ports that no container can have, before anything is made of them.

    A port that Neutron did not bind here is another matter: another host may do.
    """
    for nova_vif in network_info:
        if nova_vif.get('type') not in UNBOUND:
            _os_vif(nova_vif)


def device_exists(nova_vif):
    """Whether the host's end is there."""
    return os.path.exists(os.path.join(SYS_CLASS_NET, translate.device_name(nova_vif)))


def plug(instance, nova_vif):
    """Makes the host's end a port. Done again, it changes nothing."""
    vif = _os_vif(nova_vif)
    try:
        os_vif.plug(vif, os_vif_util.nova_to_osvif_instance(instance))
    except os_vif_exception.ExceptionBase as error:
        raise exception.VirtualInterfacePlugException(
            'os-vif: %s' % error) from error
    if isinstance(vif, os_vif_objects.VIFBridge) and linux_net:
        # Hybrid plugging: os-vif makes the bridge, the hypervisor's side is ours.
        linux_net.add_bridge_port(vif.bridge_name, vif.vif_name)


def unplug(instance, nova_vif):
    """Takes the port away; its absence is success."""
    try:
        os_vif.unplug(_os_vif(nova_vif), os_vif_util.nova_to_osvif_instance(instance))
    except os_vif_exception.ExceptionBase as error:
        raise exception.VirtualInterfaceUnplugException(reason=str(error)) from error


def unplug_all(instance, network_info):
    """Unplugs what can be; a failure is logged and leaves the others to be done."""
    for nova_vif in network_info or []:
        try:
            unplug(instance, nova_vif)
        except Exception:
            LOG.exception('Port %s could not be unplugged', nova_vif['id'], instance=instance)


def _os_vif(nova_vif):
    """The VIF as os-vif knows it: on a veth pair that is there already."""
    vnic_type = nova_vif.get('vnic_type') or model.VNIC_TYPE_NORMAL
    if vnic_type != model.VNIC_TYPE_NORMAL:
        raise exception.InvalidInput(
            reason='port %s: vnic_type %s cannot be given to a container: use normal'
            % (nova_vif['id'], vnic_type))
    if nova_vif.get('type') in UNBOUND:
        raise exception.VirtualInterfacePlugException(
            'port %s: Neutron has not bound it to this host (vif_type %s)'
            % (nova_vif['id'], nova_vif.get('type')))
    vif = _convert(nova_vif)
    # Anything else is for a device that os-vif or a virtual machine makes.
    if not isinstance(vif, PLUGGED_VIFS) or vif.plugin not in PLUGINS:
        raise exception.InvalidInput(
            reason='port %s: vif_type %s cannot be given to a container'
            % (nova_vif['id'], nova_vif['type']))
    if isinstance(vif, os_vif_objects.VIFOpenVSwitch):
        # Nobody but os-vif adds the port; the device is the service's.
        vif.port_profile.create_port = True
        if 'create_tap' in vif.port_profile.fields:
            vif.port_profile.create_tap = False
    return vif


def _convert(nova_vif):
    """None where Nova has no such VIF for os-vif, or not with these details."""
    try:
        return os_vif_util.nova_to_osvif_vif(nova_vif)
    except exception.NovaException:
        return None


@contextlib.contextmanager
def awaited(virtapi, instance, network_info):
    """Around plugging: returns when Neutron says that the ports are up.

    Nova's `vif_plugging_timeout` and `vif_plugging_is_fatal` hold.
    """
    events = [(PLUGGED, v['id']) for v in network_info if v.get('active', True) is False]
    timeout = CONF.vif_plugging_timeout
    if not events or not timeout:
        yield
        return
    try:
        with virtapi.wait_for_instance_event(
                instance, events, timeout=timeout, error_callback=_plugging_failed):
            yield
    except event_timeout_class() as error:
        LOG.warning('Neutron did not plug the ports within %s seconds: %s',
                    timeout, [port for _, port in events], instance=instance)
        if CONF.vif_plugging_is_fatal:
            raise exception.VirtualInterfaceCreateException() from error


def _plugging_failed(event_name, instance):
    LOG.error('Neutron could not plug %s', event_name, instance=instance)
    if CONF.vif_plugging_is_fatal:
        raise exception.VirtualInterfaceCreateException()
