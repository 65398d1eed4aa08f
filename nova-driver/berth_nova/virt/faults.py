"""The service's faults as Nova's exceptions.

Which exception it is decides what Nova does. When an instance is built
(`_build_and_run_instance` of Nova's manager): `InvalidInput`, `ImageUnacceptable`
and the `Flavor…TooSmall` ones end the build, for no other host would do better,
and their words are the server's fault; anything else is tried on another host. An
unknown code counts as the host's trouble.

`TABLE` is the only place where codes meet exceptions. A test compares it with
the service's `src/fault.rs`.
"""

from nova import exception


class EventsGone(exception.NovaException):
    """The events asked for are no longer kept; the present state tells."""

    msg_fmt = 'The events asked for are no longer kept: %(reason)s'


class OperationGone(exception.NovaException):
    """The service does not know the operation (any more)."""

    msg_fmt = 'The operation is not known: %(reason)s'


class ImageRefused(exception.ImageUnacceptable):
    """An image that berth does not take, in the service's own words and no others.

    Nova keeps 255 bytes of a server's fault and puts its own words first. The image's id is
    the server's, and its owner sees it there.
    """

    msg_fmt = '%(reason)s'


class Fault:
    """What the service answered instead of a result."""

    def __init__(self, code, status, detail, field=None, request_id=None):
        self.code = code
        self.status = status
        self.detail = detail
        self.field = field
        self.request_id = request_id

    @classmethod
    def from_answer(cls, status, body):
        """Reads an RFC 9457 problem; `body` may be anything at all."""
        problem = body if isinstance(body, dict) else {}
        return cls(problem.get('code') or 'unknown', status,
                   problem.get('detail') or 'HTTP status %s without a problem' % status,
                   problem.get('field'), problem.get('request_id'))

    def __str__(self):
        where = ' (%s)' % self.field if self.field else ''
        return '%s%s: %s' % (self.code, where, self.detail)


def _message(cls):
    return lambda fault, target: cls(str(fault))


def _reason(cls, **names):
    """`cls` with the fault as its reason and ids of the target under `names`."""
    return lambda fault, target: cls(
        reason=str(fault), **{name: target.get(kind) for name, kind in names.items()})


def _id(cls, name, kind):
    return lambda fault, target: cls(**{name: target.get(kind)})


def _invalid_state(fault, target):
    return exception.InstanceInvalidState(
        instance_uuid=target.get('instance'), attr='power_state',
        state=fault.detail, method=target.get('verb') or 'do this')


def _image_refused(fault, target):
    return ImageRefused(reason=fault.detail)


def _glance_unavailable(fault, target):
    return exception.GlanceConnectionFailed(server='Glance', reason=str(fault))


def _glance_forbidden(fault, target):
    if 'image' not in target:
        return exception.Forbidden(str(fault))
    return exception.ImageUnacceptable(image_id=target['image'], reason=str(fault))


TABLE = {
    # What was asked for is wrong: no other host would do better.
    'invalid-input': _reason(exception.InvalidInput),
    'payload-too-large': _reason(exception.InvalidInput),
    'image-unacceptable': _image_refused,
    'image-corrupt': _image_refused,
    'flavor-disk-too-small': _message(exception.FlavorDiskTooSmall),
    'flavor-memory-too-small': _message(exception.FlavorMemoryTooSmall),
    # With the same token it is refused everywhere.
    'glance-forbidden': _glance_forbidden,
    # What runs inside does not take it, or is not there.
    'instance-unsupported': _reason(exception.InvalidInput),
    # What it was asked for is not there, or there already.
    'instance-not-found': _id(exception.InstanceNotFound, 'instance_id', 'instance'),
    'image-not-found': _id(exception.ImageNotFound, 'image_id', 'image'),
    'interface-not-found': _id(exception.PortNotFound, 'port_id', 'port'),
    'operation-not-found': _reason(OperationGone),
    'instance-exists': _id(exception.InstanceExists, 'name', 'instance'),
    'instance-invalid-state': _invalid_state,
    'image-in-use': _reason(exception.ImageDeleteConflict),
    'image-exists': _message(exception.InternalError),
    'interface-exists': _id(exception.PortInUse, 'port_id', 'port'),
    'events-gone': _reason(EventsGone),
    'volume-not-found': _id(exception.DiskNotFound, 'location', 'volume'),
    'volume-exists': _reason(exception.VolumeAttachFailed, volume_id='volume'),
    'volume-busy': _reason(exception.DeviceDetachFailed, device='volume'),
    # Glance.
    'glance-unavailable': _glance_unavailable,
    # This host cannot, another may.
    'host-unsupported': _reason(exception.ComputeResourcesUnavailable),
    'resources-exhausted': _reason(exception.ComputeResourcesUnavailable),
    # The other host of a move.
    'peer-unavailable': _reason(exception.MigrationError),
    'network-failed': _message(exception.VirtualInterfacePlugException),
    'runtime-failed': _message(exception.InternalError),
    'timeout': _message(exception.InternalError),
    'internal': _message(exception.InternalError),
    'service-unavailable': _message(exception.HypervisorUnavailable),
    # Driver and service do not understand each other.
    'forbidden': _message(exception.Forbidden),
    'not-found': _message(exception.InternalError),
    'method-not-allowed': _message(exception.InternalError),
    'unsupported-media-type': _message(exception.InternalError),
}

# Codes by which the service says that it, the host or the instance does not offer something.
UNSUPPORTED = frozenset({
    'not-found', 'method-not-allowed', 'host-unsupported', 'instance-unsupported'})


def to_nova(fault, target):
    """The exception for a fault; it carries the fault as `berth_fault`.

    :param target: what the call was about: `instance`, `image`, `port`, `verb`
    """
    make = TABLE.get(fault.code, _message(exception.InternalError))
    error = make(fault, target)
    error.berth_fault = fault
    return error


def code_of(error):
    """The service's code behind an exception, None when it has none."""
    fault = getattr(error, 'berth_fault', None)
    return fault and fault.code


def detail_of(error):
    """What the service said, or the exception's own words."""
    if isinstance(error, ImageRefused):
        return error.format_message()
    return str(getattr(error, 'berth_fault', None) or error)
