"""Servers whose making the end of nova-compute cut short.

At its start Nova puts them in ERROR, and does not say why. Here it is told.
"""

from oslo_log import log as logging

from nova import exception
from nova import objects
from nova.compute import task_states
from nova.compute import utils as compute_utils
from nova.compute import vm_states
from nova.scheduler.client import report

LOG = logging.getLogger(__name__)

MAKING = (task_states.SCHEDULING, task_states.BLOCK_DEVICE_MAPPING, task_states.NETWORKING,
          task_states.SPAWNING, task_states.REBUILDING,
          task_states.REBUILD_BLOCK_DEVICE_MAPPING, task_states.REBUILD_SPAWNING)
REASON = 'nova-compute was restarted while it made the server'


def say_why(context, instances, nodename):
    """Records a fault for each server that Nova is about to give up.

    :param instances: those of this host
    """
    try:
        known = {instance.uuid for instance in instances}
        for instance in [*instances, *_waiting(context, known, nodename)]:
            if instance.vm_state == vm_states.BUILDING or instance.task_state in MAKING:
                compute_utils.add_instance_fault_from_exc(
                    context, instance,
                    exception.BuildAbortException(
                        instance_uuid=instance.uuid, reason=REASON))
    except Exception:
        # A missing explanation must not keep nova-compute from starting.
        LOG.exception('Servers that were being made are not explained')


def _waiting(context, known, nodename):
    """Servers that were sent here and not begun: only Placement knows of them."""
    try:
        node = objects.ComputeNode.get_by_nodename(context, nodename)
    except exception.ComputeHostNotFound:
        return []  # The host's first start.
    allocations = report.report_client_singleton().get_allocations_for_resource_provider(
        context, node.uuid).allocations
    waiting = set(allocations) - known
    if not waiting:
        return []
    return objects.InstanceList.get_by_filters(
        context, {'vm_state': vm_states.BUILDING, 'uuid': list(waiting)}, expected_attrs=[])
