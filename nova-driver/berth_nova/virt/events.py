"""The service's events as Nova's lifecycle events, and what its silence means.

One thread reads the stream. When it breaks, the thread connects again and
asks for what it missed; when that is no longer kept, it tells Nova the present
state of every instance instead. Nova compares an event with `get_info` and
ignores what is no longer true, so an event too many does no harm.

The service withholds STOPPED during a reboot from inside, so none is held
back here.
"""

import json
import threading
import time

from oslo_log import log as logging

from nova import conf as nova_conf
from nova import context as nova_context
from nova import exception
from nova import objects
from nova.virt import event as virtevent
from nova.virt.berth import client as berth_client
from nova.virt.berth import faults
from nova.virt.berth import told
from nova.virt.berth import translate

LOG = logging.getLogger(__name__)
CONF = nova_conf.CONF

TRANSITIONS = {
    'started': virtevent.EVENT_LIFECYCLE_STARTED,
    'stopped': virtevent.EVENT_LIFECYCLE_STOPPED,
    'paused': virtevent.EVENT_LIFECYCLE_PAUSED,
    'resumed': virtevent.EVENT_LIFECYCLE_RESUMED,
    'suspended': virtevent.EVENT_LIFECYCLE_SUSPENDED,
}
STATES = {
    'RUNNING': virtevent.EVENT_LIFECYCLE_STARTED,
    'SHUTDOWN': virtevent.EVENT_LIFECYCLE_STOPPED,
    'CRASHED': virtevent.EVENT_LIFECYCLE_STOPPED,
    'PAUSED': virtevent.EVENT_LIFECYCLE_PAUSED,
    'SUSPENDED': virtevent.EVENT_LIFECYCLE_SUSPENDED,
}
# Seconds between attempts to reach a service that is away.
PAUSE = 1
# Seconds between actions that tell of one server's want of memory.
WANT = 3600
# What Nova's own drivers write before a reason that they may take back.
AUTO = 'AUTO: '
REASON = AUTO + 'the berth service does not answer'


def messages(lines):
    """A server-sent event stream's messages: (id, data), either may be None."""
    last_id, data = None, []
    for line in lines:
        if not line:
            if data:
                yield last_id, '\n'.join(data)
            data = []
            continue
        name, _, value = line.partition(':')
        value = value[1:] if value.startswith(' ') else value
        if name == 'id':
            last_id = value
        elif name == 'data':
            data.append(value)
        # Comments (no name) and other fields say nothing to us.


class Reader:
    """The thread that reads the stream."""

    def __init__(self, client, options, emit, switch):
        """
        :param emit: called with each LifecycleEvent
        :param switch: an `AvailabilitySwitch`
        """
        self.client = client
        self.options = options
        self.emit = emit
        self.switch = switch
        self.last_id = None
        self.missed = False
        self.wants = {}
        self.heard = time.monotonic()
        self.stream = None
        self.stopped = threading.Event()
        self.thread = threading.Thread(
            target=self._run, name='berth-events', daemon=True)

    def start(self):
        self.thread.start()

    def stop(self):
        self.stopped.set()
        if stream := self.stream:
            stream.interrupt()
        if self.thread.is_alive():
            self.thread.join(self.options.connect_timeout)

    def _run(self):
        while not self.stopped.is_set():
            try:
                self._read()
            except faults.EventsGone:
                LOG.info('Events were missed; the state of every instance is told anew')
                self.last_id, self.missed = None, True
                continue
            except (berth_client.Broken, berth_client.Unreachable,
                    exception.NovaException) as error:
                LOG.debug('The stream of events is broken: %s', error)
            except Exception:
                LOG.exception('The stream of events ended unexpectedly')
            if self.stopped.is_set():
                return
            if time.monotonic() - self.heard >= self.options.disable_after:
                self.switch.off()
            self.stopped.wait(PAUSE)

    def _read(self):
        """Reads one connection's events until it ends."""
        headers = {'Accept': 'text/event-stream'}
        if self.last_id is not None:
            headers['Last-Event-ID'] = self.last_id
        stream = self.client.stream('/v1/events', headers, self.options.event_timeout)
        self.stream = stream
        try:
            if self.stopped.is_set():
                return  # `stop` did not see this stream.
            self.switch.on()
            if self.missed:
                # The stream is open already: nothing falls between the two.
                self._tell_all()
                self.missed = False
            for last_id, data in messages(stream):
                self._handle(data)
                # Afterwards: an event that was not handled comes again.
                self.last_id = last_id or self.last_id
        finally:
            self.heard = time.monotonic()
            # Without a place to resume from, whatever comes meanwhile is missed.
            self.missed = self.missed or self.last_id is None
            stream.close()

    def _handle(self, data):
        try:
            event = json.loads(data)
            kind, uuid = event['kind'], event['instance_id']
        except (ValueError, KeyError, TypeError):
            LOG.error('Not an event: %s', data)
            return
        if kind in TRANSITIONS:
            self._tell(uuid, TRANSITIONS[kind])
        elif kind == 'out_of_memory' and self._is_news(uuid):
            told.of_want_of_memory(uuid)

    def _is_news(self, uuid):
        """A server that is out of memory is so again and again."""
        now = time.monotonic()
        self.wants = {u: at for u, at in self.wants.items() if now - at < WANT}
        return now == self.wants.setdefault(uuid, now)

    def _tell_all(self):
        for instance in self.client.get('/v1/instances')['instances']:
            state = instance['power_state']
            if state in STATES and translate.PROJECT in instance['metadata']:
                self._tell(instance['id'], STATES[state])

    def _tell(self, uuid, transition):
        self.emit(virtevent.LifecycleEvent(uuid, transition))


class AvailabilitySwitch:
    """Takes this compute service out of scheduling while berth is away.

    Never touches what an operator disabled.
    """

    def __init__(self, virtapi):
        self.virtapi = virtapi
        self.is_on = None

    def on(self):
        if self.is_on is not True:
            self.is_on = self._set(True) or None

    def off(self):
        if self.is_on is not False:
            self.is_on = False if self._set(False) else None

    def _set(self, enabled):
        """Whether it is so now, and need not be tried again."""
        context = nova_context.get_admin_context()
        try:
            service = objects.Service.get_by_compute_host(context, CONF.host)
            by_us = (service.disabled_reason or '').startswith(AUTO)
            if service.disabled == (not enabled) or (service.disabled and not by_us):
                return True
            service.disabled = not enabled
            service.disabled_reason = None if enabled else REASON
            service.save()
            LOG.warning('This compute service is %s: %s', 'enabled' if enabled else 'disabled',
                        'berth answers again' if enabled else REASON)
            self.virtapi.update_compute_provider_status(
                context, service.compute_node.uuid, enabled)
            return True
        except exception.ComputeHostNotFound:
            return True  # Not registered yet: nothing is scheduled here.
        except Exception:
            LOG.warning('The status of this compute service could not be set; '
                        'it is tried again', exc_info=True)
            return False
