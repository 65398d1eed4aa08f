"""Statistics in Nova's two forms. Pure."""

from nova import objects
from nova.virt import configdrive

# Nova's list of drivers is closed; the nearest. The hypervisor's name is free.
DRIVER, HYPERVISOR = 'libvirt', 'berth'
STATES = {0: 'pending', 1: 'running', 3: 'paused', 4: 'shutdown', 6: 'crashed', 7: 'suspended'}
# The file systems of an instance under the names that Nova's users know.
DISKS = {'root': 'vda', 'ephemeral': 'vdb'}


def free_form(stats):
    """The dictionary of the API before 2.48, with libvirt's keys."""
    memory = stats['memory']
    answer = {
        'cpu0_time': stats['cpu']['usage_ns'],
        'memory': memory['limit'] // 1024,
        'memory-actual': memory['limit'] // 1024,
        'memory-rss': memory['rss'] // 1024,
        'memory-swap_used': memory['swap'] // 1024,
        'memory-oom_kills': memory['oom_kills'],
        'processes': stats['pids']['current'],
    }
    for block in stats['block']:
        disk = DISKS.get(block['name'], block['name'])
        answer.update({
            disk + '_read': block['read_bytes'],
            disk + '_read_req': block['read_ops'],
            disk + '_write': block['write_bytes'],
            disk + '_write_req': block['write_ops'],
            disk + '_errors': -1,
        })
    for interface in stats['interfaces']:
        name = interface['devname']
        for way in ('rx', 'tx'):
            answer[name + '_' + way] = interface[way + '_bytes']
            answer['%s_%s_packets' % (name, way)] = interface[way + '_packets']
            answer['%s_%s_errors' % (name, way)] = interface[way + '_errors']
            answer['%s_%s_drop' % (name, way)] = interface[way + '_dropped']
    return answer


def standard(stats, instance, power_state, hypervisor_os):
    """The object of API 2.48 and later.

    A container has CPU time, not CPUs' times: it is one entry.
    """
    answer = objects.Diagnostics(
        state=STATES.get(power_state, 'pending'), driver=DRIVER, hypervisor=HYPERVISOR,
        hypervisor_os=hypervisor_os, uptime=stats['uptime'],
        config_drive=bool(configdrive.required_by(instance)))
    mebibyte = 1024 * 1024
    answer.memory_details = objects.MemoryDiagnostics(
        maximum=stats['memory']['limit'] // mebibyte,
        used=stats['memory']['usage'] // mebibyte)
    answer.add_cpu(id=0, time=stats['cpu']['usage_ns'])
    for block in stats['block']:
        answer.add_disk(
            read_bytes=block['read_bytes'], read_requests=block['read_ops'],
            write_bytes=block['write_bytes'], write_requests=block['write_ops'],
            errors_count=0)
    for interface in stats['interfaces']:
        answer.add_nic(
            mac_address=interface['address'],
            rx_octets=interface['rx_bytes'], rx_packets=interface['rx_packets'],
            rx_errors=interface['rx_errors'], rx_drop=interface['rx_dropped'],
            tx_octets=interface['tx_bytes'], tx_packets=interface['tx_packets'],
            tx_errors=interface['tx_errors'], tx_drop=interface['tx_dropped'])
    return answer
