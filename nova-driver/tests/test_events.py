"""The event stream: what Nova is told, and when this compute service is taken out."""

import threading
from unittest import mock

import pytest
from conftest import CONF, IMAGE, UUID
from fake_service import wait_until
from nova import exception
from nova import objects
from nova.virt import event as virtevent
from nova.virt.berth import client as berth_client
from nova.virt.berth import events


@pytest.mark.parametrize('text,expected', [
    ('', []),
    (': alive\n\n', []),
    ('id: 5\nevent: started\ndata: {"a":\ndata: 1}\n\n', [('5', '{"a":\n1}')]),
    ('id:5\ndata:x\n\ndata: y\n\n', [('5', 'x'), ('5', 'y')]),
    ('data: cut off', []),
    ('retry: 5\nnonsense\ndata: x\n\n', [(None, 'x')]),
])
def test_messages(text, expected):
    assert list(events.messages(text.splitlines())) == expected


class Told:
    def __init__(self):
        self.events = []

    def __call__(self, event):
        assert isinstance(event, virtevent.LifecycleEvent)
        self.events.append((event.get_instance_uuid(), event.get_transition()))


@pytest.fixture
def switch():
    return mock.Mock()


@pytest.fixture
def reader(service, switch, monkeypatch):
    monkeypatch.setattr(events, 'PAUSE', 0.05)
    client = berth_client.Client(CONF.berth)
    made = events.Reader(client, CONF.berth, Told(), switch)
    made.start()
    assert wait_until(lambda: switch.on.called)
    yield made
    made.stop()
    client.close()
    assert not made.thread.is_alive()


def test_lifecycle_events(reader, service):
    for kind in ('started', 'stopped', 'paused', 'resumed', 'suspended', 'guest_rebooted',
                 'created', 'updated', 'deleted', 'of_a_later_version'):
        service.emit(kind, UUID)
    service.emit('started', IMAGE)
    assert wait_until(lambda: len(reader.emit.events) == 6)
    assert reader.emit.events == [(UUID, n) for n in range(5)] + [(IMAGE, 0)]


def test_a_want_of_memory_is_told_and_not_again_and_again(reader, service, monkeypatch):
    wants = []
    monkeypatch.setattr(events.told, 'of_want_of_memory', wants.append)
    for uuid in (UUID, UUID, IMAGE, UUID):
        service.emit('out_of_memory', uuid)
    service.emit('started', UUID)
    assert wait_until(lambda: len(reader.emit.events) == 1)
    assert wants == [UUID, IMAGE]


def test_events_during_a_break_are_not_missed(reader, service):
    service.emit('started', UUID)
    assert wait_until(lambda: reader.last_id is not None)
    service.stop()
    service.emit('stopped', UUID)
    service.start()
    assert wait_until(lambda: len(reader.emit.events) == 2)
    assert [t for _, t in reader.emit.events] == [0, 1]


def state(service, uuid, power_state, mine=True):
    service.instances[uuid] = {
        'id': uuid, 'power_state': power_state, 'power_state_number': 0,
        'metadata': {'nova:project_id': 'p'} if mine else {}}


@pytest.mark.parametrize('seen_one', [True, False])
def test_missed_events_are_made_up_for(reader, service, seen_one):
    """Whether the service was restarted or nothing had come before the break."""
    if seen_one:
        service.emit('created', UUID)
        assert wait_until(lambda: reader.last_id is not None)
    service.stop()
    state(service, UUID, 'SHUTDOWN')
    state(service, IMAGE, 'RUNNING', mine=False)
    service.kept_from = service.sequence = service.sequence + 1000
    service.start()
    assert wait_until(lambda: reader.emit.events)
    assert reader.emit.events == [(UUID, virtevent.EVENT_LIFECYCLE_STOPPED)]
    service.emit('started', UUID)
    assert wait_until(lambda: len(reader.emit.events) == 2)


def test_nonsense_in_the_stream_is_passed_over(reader, service):
    service.events.append({'sequence': service.sequence + 1, 'kind': 'started'})
    service.sequence += 1
    service.emit('started', UUID)
    assert wait_until(lambda: reader.emit.events == [(UUID, 0)])


def test_a_failing_listener_ends_nothing(reader, service):
    service.emit('created', UUID)
    assert wait_until(lambda: reader.last_id is not None)
    told, reader.emit = reader.emit, mock.Mock(side_effect=[RuntimeError('a bug'), None])
    service.emit('started', UUID)
    # It was not handled, so it comes again.
    assert wait_until(lambda: reader.emit.call_count == 2)
    reader.emit = told
    service.emit('stopped', UUID)
    assert wait_until(lambda: told.events == [(UUID, 1)])


def test_the_service_away_and_back(reader, service, switch):
    switch.on.reset_mock()
    service.stop()
    assert wait_until(lambda: switch.off.called)
    assert not switch.on.called
    service.start()
    assert wait_until(lambda: switch.on.called)


def test_a_short_break_disables_nothing(service, switch, monkeypatch):
    monkeypatch.setattr(events, 'PAUSE', 0.05)
    CONF.set_override('disable_after', 60, group='berth')
    client = berth_client.Client(CONF.berth)
    reader = events.Reader(client, CONF.berth, Told(), switch)
    reader.start()
    assert wait_until(lambda: switch.on.called)
    service.stop()
    assert wait_until(lambda: not threading.Event().wait(0.3))
    service.start()
    assert wait_until(lambda: switch.on.call_count == 2)
    assert not switch.off.called
    reader.stop()


# The switch.

AUTO = events.REASON


@pytest.mark.parametrize('act,disabled,reason,expected', [
    ('off', False, None, (True, AUTO)),
    ('off', True, 'maintenance', (True, 'maintenance')),
    ('off', True, AUTO, (True, AUTO)),
    ('on', True, AUTO, (False, None)),
    ('on', True, 'AUTO: another driver said so', (False, None)),
    ('on', True, 'maintenance', (True, 'maintenance')),
    ('on', True, None, (True, None)),
    ('on', False, None, (False, None)),
])
def test_the_operator_is_always_right(nova_service, virtapi, act, disabled, reason, expected):
    nova_service.disabled, nova_service.disabled_reason = disabled, reason
    getattr(events.AvailabilitySwitch(virtapi), act)()
    assert (nova_service.disabled, nova_service.disabled_reason) == expected
    changed = expected != (disabled, reason)
    assert nova_service.save.called is changed
    assert virtapi.update_compute_provider_status.called is changed


def test_the_database_is_asked_once(nova_service, virtapi):
    switch = events.AvailabilitySwitch(virtapi)
    for _ in range(3):
        switch.off()
    assert nova_service.save.call_count == 1
    switch.on()
    assert nova_service.disabled is False


def test_a_status_that_could_not_be_set_is_tried_again(nova_service, virtapi):
    nova_service.save.side_effect = [exception.NovaException('no conductor'), None]
    switch = events.AvailabilitySwitch(virtapi)
    switch.off()
    nova_service.disabled = False
    switch.off()
    assert nova_service.save.call_count == 2


def test_before_the_service_is_registered(monkeypatch, virtapi):
    def get(context, host):
        raise exception.ComputeHostNotFound(host=host)

    monkeypatch.setattr(objects.Service, 'get_by_compute_host', get)
    events.AvailabilitySwitch(virtapi).off()
