"""Connections, retries, deadlines and operations, against the fake service."""

import os
import ssl
import subprocess
import threading

import pytest
from conftest import CONF, IMAGE, UUID
from fake_service import Fault, wait_until
from nova import exception
from nova.virt.berth import client as berth_client
from nova.virt.berth import faults

PATH = '/v1/instances/%s' % UUID


@pytest.fixture
def client(service):
    made = berth_client.Client(CONF.berth)
    yield made
    made.close()


def test_connections_are_used_again(client, service):
    for _ in range(5):
        client.get('/v1/host')
    assert len(client.pool.idle) == 1


def test_many_threads_at_once(client, service):
    results = []
    threads = [threading.Thread(target=lambda: results.append(client.get('/v1/host')))
               for _ in range(50)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 50
    assert len(client.pool.idle) <= CONF.berth.pool_size


def test_the_request_id_is_passed_on(client, service, context):
    client.get('/v1/host')
    assert service.requests[-1][3]['X-Openstack-Request-Id'] == context.request_id


def test_faults_become_exceptions(client, service):
    with pytest.raises(exception.InstanceNotFound, match=UUID) as caught:
        client.get(PATH)
    assert caught.value.berth_fault.request_id == 'req-of-the-service'


def test_a_restart_of_the_service_is_not_noticed(client, service):
    client.get('/v1/host')
    service.stop()
    threading.Timer(0.3, service.start).start()
    assert client.get('/v1/host')['hypervisor_hostname'] == 'compute1'


def test_a_service_that_stays_away(client, service):
    CONF.set_override('retry_timeout', 0, group='berth')
    service.stop()
    with pytest.raises(exception.HypervisorUnavailable, match='berth.sock'):
        client.get('/v1/host')


def test_an_unready_service_is_asked_again(client, service):
    service.faults[('POST', '.*/reboot')] = Fault('service-unavailable')
    service.instances[UUID] = {'power_state': 'RUNNING'}
    client.post(PATH + '/reboot', {'type': 'HARD'}, once=True)
    assert service.changes() == ['POST %s/reboot' % PATH] * 2


@pytest.mark.parametrize('when', ['before', 'after'])
def test_a_lost_answer_to_an_idempotent_change(client, service, when):
    service.instances[UUID] = {'power_state': 'SHUTDOWN'}
    service.drop[('POST', '.*/start')] = when
    client.post(PATH + '/start')
    assert service.instances[UUID]['power_state'] == 'RUNNING'
    assert len(service.changes()) == 2


@pytest.mark.parametrize('when', ['before', 'after'])
def test_a_lost_answer_to_what_may_not_be_done_twice(client, service, when):
    service.instances[UUID] = {'power_state': 'RUNNING'}
    service.drop[('POST', '.*/reboot')] = when
    with pytest.raises(exception.HypervisorUnavailable):
        client.post(PATH + '/reboot', {'type': 'HARD'}, once=True)
    assert len(service.changes()) == 1


def test_what_did_not_reach_the_service_is_tried_again_even_so(client, service):
    service.instances[UUID] = {'power_state': 'RUNNING'}
    service.stop()
    threading.Timer(0.3, service.start).start()
    client.post(PATH + '/reboot', {'type': 'HARD'}, once=True)
    assert len(service.changes()) == 1


def test_an_operation_is_followed_to_its_end(client, service):
    service.slow = True
    service.instances[UUID] = {'power_state': 'SHUTDOWN'}
    client.post(PATH + '/start')
    assert 'respond-async' in service.requests[0][3]['Prefer']
    [operation] = service.operations
    assert service.calls('GET') == ['GET /v1/operations/' + operation] * 2


def test_a_failed_operation_is_its_fault(client, service):
    service.slow = True
    service.instances[UUID] = {'power_state': 'SHUTDOWN'}
    fault = Fault('resources-exhausted', 'no ids left', 507).problem()
    start = service._operation
    service._operation = lambda target, result: start(target, result, fault)
    with pytest.raises(exception.ComputeResourcesUnavailable, match='no ids left'):
        client.post(PATH + '/start')


def test_an_operation_that_a_restart_made_forgotten(client, service):
    service.slow = True
    service.instances[UUID] = {'power_state': 'SHUTDOWN'}
    service.faults[('GET', '/v1/operations/.*')] = Fault('operation-not-found')
    client.post(PATH + '/start')
    assert len(service.changes()) == 2


def test_a_forgotten_operation_that_may_not_be_done_twice(client, service):
    service.slow = True
    service.instances[UUID] = {'power_state': 'RUNNING'}
    service.faults[('GET', '/v1/operations/.*')] = Fault('operation-not-found')
    with pytest.raises(faults.OperationGone):
        client.post(PATH + '/reboot', {'type': 'HARD'}, once=True)
    assert len(service.changes()) == 1


def test_a_deadline(client, service):
    service.slow = True
    service.instances[UUID] = {'power_state': 'SHUTDOWN'}
    service.extra[('GET', '/v1/operations/.*')] = {'status': 'running'}
    with pytest.raises(exception.InternalError, match='did not finish in time'):
        client.post(PATH + '/start', seconds=0.2)


def test_an_answer_that_is_no_json(client, service):
    service.extra[('GET', '/v1/host')] = b'<html>'
    assert client.get('/v1/host') is None


@pytest.mark.parametrize('url', [
    'http://127.0.0.1:1', 'unix://relative', 'unix:relative', '/run/berth.sock', '',
    'https://host', 'https://host:8443'])
def test_bad_urls_are_refused(url):
    CONF.set_override('url', url, group='berth')
    with pytest.raises(exception.InvalidConfiguration, match=r'\[berth\]|must be'):
        berth_client.Client(CONF.berth)


@pytest.mark.parametrize('path,expected', [
    ('/v1/instances', {}),
    (PATH, {'instance': UUID}),
    (PATH + '/pause', {'instance': UUID, 'verb': 'pause'}),
    (PATH + '/interfaces/p', {'instance': UUID, 'port': 'p'}),
    ('/v1/images/%s' % IMAGE, {'image': IMAGE}),
    (PATH + '/console/output?length=5', {'instance': UUID, 'verb': 'console'}),
    ('/v1/host', {}),
])
def test_what_a_path_is_about(path, expected):
    assert berth_client._target(path) == expected


def certificate(directory, name, ca=None, san='DNS:localhost'):
    """A key and a certificate, self-signed or signed by `ca`."""
    key, cert = os.path.join(directory, name + '.key'), os.path.join(directory, name + '.pem')
    signer = ['-CA', ca[1], '-CAkey', ca[0]] if ca else []
    subprocess.run(
        ['openssl', 'req', '-x509', '-newkey', 'ec', '-pkeyopt', 'ec_paramgen_curve:P-256',
         '-nodes', '-keyout', key, '-out', cert, '-subj', '/CN=' + name, '-days', '2',
         '-addext', 'subjectAltName=' + san, *signer], check=True, capture_output=True)
    return key, cert


def test_mutual_tls(tmp_path, service):
    """Over TCP both sides show a certificate; without one there is no answer."""
    import socketserver

    from fake_service import Handler
    ca = certificate(str(tmp_path), 'ca')
    server_key, server_cert = certificate(str(tmp_path), 'server', ca)
    client_key, client_cert = certificate(str(tmp_path), 'client', ca)
    stranger_key, stranger_cert = certificate(str(tmp_path), 'stranger')
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(server_cert, server_key)
    tls.load_verify_locations(ca[1])
    tls.verify_mode = ssl.CERT_REQUIRED

    class Server(socketserver.ThreadingTCPServer):
        daemon_threads = True

        def get_request(self):
            connection, address = super().get_request()
            return tls.wrap_socket(connection, server_side=True), address

        def handle_error(self, request, client_address):
            pass

    server = Server(('127.0.0.1', 0), Handler)
    server.fake = service
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    try:
        CONF.set_override('url', 'https://localhost:%d' % server.server_address[1], group='berth')
        CONF.set_override('ca_certificates', ca[1], group='berth')
        CONF.set_override('retry_timeout', 0, group='berth')
        for key, cert, welcome in ((client_key, client_cert, True),
                                   (stranger_key, stranger_cert, False)):
            CONF.set_override('private_key', key, group='berth')
            CONF.set_override('certificate', cert, group='berth')
            made = berth_client.Client(CONF.berth)
            if welcome:
                assert made.get('/v1/host')['api_version'] == 'v1'
                assert made.get('/v1/host')['api_version'] == 'v1'
            else:
                with pytest.raises(exception.HypervisorUnavailable):
                    made.get('/v1/host')
            made.close()
    finally:
        server.shutdown()
        server.server_close()


def test_a_stream_ends_when_it_is_interrupted_by_another_thread(client, service):
    stream = client.stream('/v1/events', {}, timeout=30)
    lines, ended = [], threading.Event()

    def read():
        try:
            for line in stream:
                lines.append(line)
        except berth_client.Broken:
            pass
        ended.set()

    threading.Thread(target=read, daemon=True).start()
    assert wait_until(lambda: lines)
    stream.interrupt()
    assert ended.wait(10)
    stream.close()
    assert lines[0] == ': berth'
