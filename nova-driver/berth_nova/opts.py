"""The entry point by which oslo.config's tools find the `[berth]` options."""


def list_opts():
    # By the one name under which Nova loads the driver: imported by another,
    # classes would exist twice.
    from nova.virt.berth import conf
    return [(conf.GROUP, conf.OPTIONS)]
