"""Every fault of the service has its exception, and the right fate."""

import inspect
import os
import re

import pytest
from nova import exception
from nova.compute import manager
from nova.virt.berth import faults

FAULT_RS = os.path.join(os.path.dirname(__file__), '..', '..', 'src', 'fault.rs')
# What nova.compute.manager does not reschedule when it builds an instance.
ABORTS = (exception.FlavorDiskTooSmall, exception.FlavorMemoryTooSmall, exception.ImageNotActive,
          exception.ImageUnacceptable, exception.InvalidDiskInfo, exception.InvalidDiskFormat,
          exception.InvalidInput, exception.BuildAbortException, exception.NoMoreFixedIps,
          exception.VirtualInterfaceCreateException,
          exception.VirtualInterfaceMacAddressException)
TARGET = {'instance': 'an-instance', 'image': 'an-image', 'port': 'a-port', 'volume': 'a-volume',
          'verb': 'pause'}


def rust_table():
    with open(FAULT_RS) as file:
        text = file.read()
    body = text[text.index('fault_kinds! {'):]
    found = re.findall(r'^\s+\w+ = "([a-z-]+)", (\d+),', body[:body.index('\n}')], re.M)
    return {code: int(status) for code, status in found}


def test_the_table_covers_the_services_faults():
    assert len(rust_table()) > 20
    assert set(rust_table()) == set(faults.TABLE)


@pytest.mark.parametrize('code', sorted(faults.TABLE))
def test_every_exception_says_what_happened(code):
    fault = faults.Fault(code, 500, 'the disk is on fire', 'flavor.root_gb')
    error = faults.to_nova(fault, TARGET)
    assert isinstance(error, exception.NovaException)
    assert faults.code_of(error) == code
    assert 'the disk is on fire' in faults.detail_of(error)
    # No field of the message is left unfilled.
    assert '%(' not in str(error) and 'None' not in str(error)


# Whether a build ends with it. What is not here is met by no build, or by its cleaning up.
ABORTING = {
    'invalid-input', 'payload-too-large', 'image-unacceptable', 'image-corrupt',
    'flavor-disk-too-small', 'flavor-memory-too-small', 'glance-forbidden',
    'instance-unsupported'}


@pytest.mark.parametrize('code', [*sorted(faults.TABLE), 'a-new-one'])
def test_abort_or_another_host(code):
    error = faults.to_nova(faults.Fault(code, 500, 'x'), TARGET)
    assert isinstance(error, ABORTS) is (code in ABORTING)


def test_what_ends_a_build_is_what_novas_manager_says():
    """The list above against the source of the manager."""
    source = inspect.getsource(manager.ComputeManager._build_and_run_instance)
    kept = source[source.index('except (exception.FlavorDiskTooSmall'):]
    kept = kept[:kept.index(') as e')]
    for error in (exception.FlavorDiskTooSmall, exception.FlavorMemoryTooSmall,
                  exception.ImageUnacceptable, exception.InvalidInput):
        assert 'exception.%s' % error.__name__ in kept


@pytest.mark.parametrize('body', [None, [], 'text', {}, {'title': 'x'}])
def test_any_answer_can_be_read(body):
    fault = faults.Fault.from_answer(500, body)
    assert fault.code == 'unknown' and '500' in fault.detail
    assert isinstance(faults.to_nova(fault, {}), exception.InternalError)
