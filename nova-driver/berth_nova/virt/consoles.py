"""Where Nova's own proxies find an instance's console.

Nova's options say where: `[serial_console]` and `[vnc]` of nova.conf, as for
libvirt.
"""

import socket

from nova import conf as nova_conf
from nova.console import type as ctype

CONF = nova_conf.CONF

# Those that libvirt gives its displays.
VNC_PORTS = (5900, 65535)


def serial(client, path):
    """For nova-serialproxy."""
    host = CONF.serial_console.proxyclient_address
    first, last = CONF.serial_console.port_range.split(':')
    found = _open(client, path, 'serial', host, int(first), int(last))
    return ctype.ConsoleSerial(host=host, port=found['port'])


def vnc(client, path):
    """For nova-novncproxy."""
    found = _open(client, path, 'vnc', CONF.vnc.server_listen, *VNC_PORTS)
    return ctype.ConsoleVNC(host=CONF.vnc.server_proxyclient_address, port=found['port'])


def _open(client, path, protocol, host, first, last):
    """The service takes addresses; Nova's options may have names."""
    address = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)[0][4][0]
    return client.put_at_once('%s/remote-consoles/%s' % (path, protocol), {
        'address': address, 'first_port': first, 'last_port': last})
