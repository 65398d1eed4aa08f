"""Device tags: which of a server's devices the user gave which, in Nova's metadata.

The metadata service and the config drive say it inside, as `devices`. An interface is found there
by its MAC address (`/sys/class/net/*/address`), a disk by its serial number
(`/sys/block/*/serial`, `/dev/disk/by-id/virtio-*`); neither is on a bus.
"""

from nova import block_device
from nova import objects

# Most characters of a disk's serial number, as the service makes it (src/runtime/disks.rs).
SERIAL_MAX = 20


def note(context, instance):
    """Has the instance's `device_metadata` say what is tagged now. It is saved by Nova, or by
    who calls this."""
    devices = [*_interfaces(context, instance), *_disks(context, instance)]
    instance.device_metadata = (
        objects.InstanceDeviceMetadata(devices=devices) if devices else None)


def _interfaces(context, instance):
    vifs = objects.VirtualInterfaceList.get_by_instance_uuid(context, instance.uuid)
    return [objects.NetworkInterfaceMetadata(mac=vif.address, tags=[vif.tag])
            for vif in vifs if 'tag' in vif and vif.tag]


def _disks(context, instance):
    """All disks that a flavor's ephemeral_gb is divided into are one inside, with all tags."""
    tags = {}
    for bdm in objects.BlockDeviceMappingList.get_by_instance_uuid(context, instance.uuid):
        if bdm.tag and (kind := _kind(bdm)):
            tags.setdefault(kind, []).append(bdm.tag)
    return [objects.DiskMetadata(serial=serial(instance, kind), tags=sorted(told))
            for kind, told in tags.items()]


def _kind(bdm):
    """What the service calls the disk; None: it is a volume."""
    if not bdm.is_local:
        return None
    if bdm.boot_index == 0:
        return 'root'
    return None if block_device.new_format_is_swap(bdm) else 'ephemeral0'


def serial(instance, kind):
    return ('%s-%s' % (kind, instance.uuid.replace('-', '')))[:SERIAL_MAX]
