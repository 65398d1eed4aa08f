"""What Nova is told where the service has no such instance.

Nova takes `InstanceNotFound` for a delete that came between: it keeps quiet,
records no fault, and may leave a task state for good. Where it did not ask
whether the instance is there, a lost instance must be an error that is seen.
"""

import functools

from nova import exception


def is_an_error(method):
    """The driver's `method` needs the instance, which a caller told of."""
    @functools.wraps(method)
    def checked(*arguments, **named):
        try:
            return method(*arguments, **named)
        except exception.InstanceNotFound as error:
            raise exception.InternalError(
                'the service on this host has no such instance, and its disks are lost with it: '
                'rebuild the server, or delete it (%s)' % error) from error
    return checked
