"""Reasons that Nova itself drops, kept in the server's actions.

Of a port that was not attached Nova says only that it failed, and of a server that was
tried on every host only that none is left. An event of the action that was under way
has the reason: `openstack server event show`, to whom Nova's policy shows details. What happens
to a server by itself has an action of its own.
"""

import functools
import sys

from oslo_log import log as logging

from nova import conf as nova_conf
from nova import context as nova_context
from nova import exception
from nova import objects

LOG = logging.getLogger(__name__)
CONF = nova_conf.CONF


def in_the_action(event):
    """The driver's method, of a context and an instance: what it fails by becomes `event`."""
    def decorate(method):
        @functools.wraps(method)
        def watched(self, context, instance, *arguments, **named):
            try:
                return method(self, context, instance, *arguments, **named)
            except exception.NovaException as error:
                _tell(context, instance, event, error)
                raise
        return watched
    return decorate


def _tell(context, instance, event, error):
    events = objects.InstanceActionEvent
    try:
        events.event_start(context, instance.uuid, event, want_result=False, host=CONF.host)
        events.event_finish_with_failure(
            context, instance.uuid, event, exc_val=error, exc_tb=sys.exc_info()[2],
            want_result=False)
    except Exception:
        # The reason is in the log too, and comes before that of a missing record.
        LOG.warning('No event tells of the failure: %s', error, instance=instance, exc_info=True)


def of_want_of_memory(uuid):
    """An action of the server's own, which has failed: `openstack server event list`."""
    context = nova_context.get_admin_context()
    action, event = objects.InstanceAction, 'out_of_memory'
    error = exception.NovaException(
        'The server is out of memory: the kernel killed processes of it. '
        'Its console log and diagnostics say how many')
    try:
        action.action_start(context, uuid, event, want_result=False)
        objects.InstanceActionEvent.event_start(
            context, uuid, event, want_result=False, host=CONF.host)
        # Without a traceback Nova would take it for a success; this one has none.
        objects.InstanceActionEvent.event_finish_with_failure(
            context, uuid, event, exc_val=error, exc_tb='', want_result=False)
        action.action_finish(context, uuid, want_result=False)
    except Exception:
        # One that Nova does not know was made by hand.
        LOG.warning('No action tells of the want of memory of %s', uuid, exc_info=True)
