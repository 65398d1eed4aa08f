"""The `[berth]` section of nova.conf."""

from oslo_config import cfg

GROUP = cfg.OptGroup(
    'berth', title='berth',
    help='How nova-compute reaches the berth service on its host.')

OPTIONS = [
    cfg.StrOpt(
        'url', default='unix:///run/berth/berth.sock',
        help='Where the service listens: `unix://` and the absolute path of its '
             'socket, or `https://host:port`, which needs `certificate`, '
             '`private_key` and `ca_certificates`.'),
    cfg.StrOpt(
        'certificate',
        help='PEM file with the certificate chain that nova-compute shows to '
             'the service. For https only.'),
    cfg.StrOpt(
        'private_key', help="PEM file with the certificate's private key."),
    cfg.StrOpt(
        'ca_certificates',
        help="PEM file with the authorities that sign the service's "
             'certificate. For https only.'),
    cfg.IntOpt(
        'pool_size', default=32, min=1,
        help='Idle connections that are kept open. More may be in use.'),
    cfg.IntOpt(
        'connect_timeout', default=5, min=1,
        help='Seconds to wait for a connection.'),
    cfg.IntOpt(
        'request_timeout', default=60, min=1,
        help='Seconds that a question to the service may take as a whole.'),
    cfg.IntOpt(
        'operation_timeout', default=600, min=1,
        help='Seconds that a change to an instance may take as a whole, besides '
             'the time that the instance itself is given to shut down.'),
    cfg.IntOpt(
        'image_timeout', default=3600, min=1,
        help='Seconds that an image may take from Glance to the host, a '
             'snapshot from the host to Glance, the copy of its disks that '
             'a resize keeps, or the move of an instance to another host.'),
    cfg.PortOpt(
        'migration_port', default=8788, min=1,
        help='Port on which the service of every other host listens with TLS '
             '(`listen` in the section `service.tls` of its configuration). '
             'Instances are moved to it at the address that Nova has for the '
             "host, its `my_ip`, which the service's certificate must name."),
    cfg.IntOpt(
        'retry_timeout', default=30, min=0,
        help='Seconds for which a call is tried again while the service is '
             'away, as during its restart. Calls that may not be made twice '
             'are tried again only when they did not reach it.'),
    cfg.IntOpt(
        'start_timeout', default=120, min=0,
        help='Seconds that nova-compute waits for the service at its start; '
             'then it ends with an error.'),
    cfg.IntOpt(
        'event_timeout', default=60, min=5,
        help='Seconds without a sign of life after which the stream of events '
             'is opened anew.'),
    cfg.IntOpt(
        'disable_after', default=15, min=0,
        help='Seconds that the service may be away before this compute service '
             'is disabled, so that nothing is scheduled to it. It is enabled '
             'again when the service is back, unless an operator disabled it.'),
    cfg.IntOpt(
        'soft_reboot_timeout', default=120, min=0, max=3600,
        help='Seconds that an instance may take for a soft reboot before it '
             'becomes a hard one.'),
    cfg.StrOpt(
        'snapshot_format', default='docker-archive',
        choices=[
            ('docker-archive', 'the layers of the base image and, last, the '
             'difference; a host that has the base unpacks only that'),
            ('rootfs-tar', 'the root file system in one tarball; instances '
             'that start by the config of their image still get an archive'),
            ('qcow2', 'a disk of the layout of the base image, which boots as a '
             'machine too; instances of images that are no disks still get '
             'an archive'),
            ('as-base', 'what the base image is'),
        ],
        help='What a snapshot is in Glance: `container_format` docker for an '
             'archive, compressed for a tarball, both packed by zstd; '
             '`disk_format` qcow2 for a disk.'),
]


def register(conf):
    """Registers the options and returns the section."""
    conf.register_group(GROUP)
    conf.register_opts(OPTIONS, group=GROUP)
    return conf.berth
