"""Snapshots: not offered by the service yet.

Nova has made the image's record already; it removes it and gives the instance
its state back, whatever the exception.
"""


def snapshot(context, instance, image_id, update_task_state):
    raise NotImplementedError('berth takes no snapshots yet')
