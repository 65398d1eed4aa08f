"""What the host has, for Nova's resource tracker and for Placement. Pure."""

import json

import os_resource_classes as orc
import os_traits

from nova import conf as nova_conf
from nova.objects import fields

CONF = nova_conf.CONF

X86 = 'HW_CPU_X86_'
# Traits whose names are not the flag's without underscores.
ALIASES = {
    'pni': 'SSE3', 'pclmulqdq': 'CLMUL', 'fma': 'FMA3', 'aes': 'AESNI', 'bmi1': 'BMI',
    'sha_ni': 'SHA', 'rtm': 'TSX', 'ibpb': 'AMD_IBPB', 'virt_ssbd': 'AMD_VIRT_SSBD',
    'pcid': 'INTEL_PCID', 'md_clear': 'INTEL_MD_CLEAR',
    'avx512ifma': 'AVX512IFMA', 'avx512vbmi': 'AVX512VBMI',
}
# A container sees these flags and cannot use what they stand for.
NOT_FOR_CONTAINERS = {'VMX', 'SVM', 'SGX', 'INTEL_VMX', 'AMD_SVM', 'AMD_SEV', 'AMD_SEV_ES',
                      'AMD_SEV_SNP', 'INTEL_TDX', 'ASF'}
# Image properties that berth need not obey to satisfy: every interface is
# paravirtual, every disk is a file system.
ALWAYS = (
    os_traits.COMPUTE_NET_VIF_MODEL_VIRTIO,
    os_traits.COMPUTE_STORAGE_BUS_LXC,
    os_traits.COMPUTE_STORAGE_BUS_VIRTIO,
)
ARCHITECTURES = ('X86_64', 'AARCH64', 'PPC64LE', 'RISCV64', 'S390X')


def available(host):
    """The resource tracker's dictionary, of `GET /v1/host`."""
    has = host['inventory']
    return {
        'vcpus': has['vcpus'] + has['pcpus'],
        'vcpus_used': has['vcpus_used'] + has['pcpus_used'],
        'memory_mb': has['memory_mb'],
        'memory_mb_used': has['memory_mb_used'],
        'local_gb': has['local_gb'],
        'local_gb_used': has['local_gb_used'],
        'disk_available_least': has['disk_available_gb'],
        'hypervisor_type': host['hypervisor_type'],
        'hypervisor_version': host['hypervisor_version'],
        'hypervisor_hostname': host['hypervisor_hostname'],
        'cpu_info': json.dumps(_cpu_info(host)),
        'supported_instances': supported_instances(host['architecture']),
        'numa_topology': None,
        'stats': {},
    }


def _cpu_info(host):
    has = host['inventory']
    return {
        'arch': host['architecture'],
        'model': has['cpu_model'],
        'vendor': has['cpu_vendor'],
        'features': has['cpu_flags'],
        'topology': {'sockets': has['cpu_sockets'], 'cores': has['cpu_cores'],
                     'threads': has['cpu_threads']},
    }


def supported_instances(architecture):
    """Nova's list of hypervisors is closed; `lxc` is its word for containers."""
    names = [architecture]
    if architecture == fields.Architecture.X86_64:
        names.append(fields.Architecture.I686)
    return [(name, fields.HVType.LXC, fields.VMMode.EXE) for name in names]


def inventories(host, ratios, reserved_disk_gb):
    """Placement's inventories; a class of which there is nothing is left out.

    :param ratios: allocation ratios by resource class
    :param reserved_disk_gb: what Nova's configuration keeps back; the service says what
        it cannot give, the reserve of its own included
    """
    has = host['inventory']
    # An older service does not say.
    reserved_disk_gb = max(reserved_disk_gb, has.get('disk_reserved_gb', 0))
    wanted = {
        orc.VCPU: (has['vcpus'], CONF.reserved_host_cpus, ratios[orc.VCPU]),
        orc.PCPU: (has['pcpus'], 0, 1.0),
        orc.MEMORY_MB: (has['memory_mb'], CONF.reserved_host_memory_mb, ratios[orc.MEMORY_MB]),
        orc.DISK_GB: (has['local_gb'], reserved_disk_gb, ratios[orc.DISK_GB]),
    }
    return {
        name: {
            'total': total,
            # Placement refuses more than there is.
            'reserved': min(reserved, total),
            'min_unit': 1,
            'max_unit': total,
            'step_size': 1,
            'allocation_ratio': ratio,
        }
        for name, (total, reserved, ratio) in wanted.items() if total > 0
    }


def traits(host):
    """The traits that this host has, of those in `owned_traits`."""
    architecture = host['architecture'].upper()
    names = {'HW_ARCH_' + architecture, 'COMPUTE_ARCH_' + architecture}
    if architecture == 'X86_64':
        names |= {X86 + _flag(flag) for flag in host['inventory']['cpu_flags']}
    return (names | set(ALWAYS)) & owned_traits()


def owned_traits():
    """The traits that the driver sets and removes; all others are not its own."""
    names = set(ALWAYS)
    names |= {'HW_ARCH_' + name for name in ARCHITECTURES}
    names |= {'COMPUTE_ARCH_' + name for name in ARCHITECTURES}
    names |= {name for name in os_traits.get_traits(X86)
              if name[len(X86):] not in NOT_FOR_CONTAINERS}
    return names & set(os_traits.get_traits())


def _flag(flag):
    """The trait's last part for a flag of /proc/cpuinfo."""
    return ALIASES.get(flag) or flag.replace('_', '').upper()
