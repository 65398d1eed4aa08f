"""A stand-in for the service, on a Unix socket: the API's semantics in memory.

It refuses what the real one refuses — unknown fields, other bodies under the
same id, actions that the state does not allow — and remembers every request.
"""

import contextlib
import http.server
import json
import os
import re
import socketserver
import threading
import time
import uuid
from urllib.parse import parse_qs, urlsplit

NUMBERS = {'NOSTATE': 0, 'RUNNING': 1, 'PAUSED': 3, 'SHUTDOWN': 4, 'CRASHED': 6, 'SUSPENDED': 7}
STATUS = {'invalid-input': 400, 'instance-not-found': 404, 'image-not-found': 404,
          'interface-not-found': 404, 'operation-not-found': 404, 'not-found': 404,
          'instance-exists': 409, 'image-exists': 409, 'instance-invalid-state': 409, 'image-in-use': 409,
          'interface-exists': 409, 'events-gone': 410, 'service-unavailable': 503,
          'peer-unavailable': 502}
CREATE_FIELDS = {'name', 'hostname', 'image_id', 'flavor', 'vifs', 'dns', 'environment', 'command',
                 'files', 'metadata'}
FLAVOR_FIELDS = {'name', 'vcpus', 'memory_mb', 'root_gb', 'ephemeral_gb', 'swap_mb', 'extra_specs'}
RESCUE_FIELDS = {'image_id', 'environment', 'files'}
VIF_FIELDS = {'id', 'devname', 'address', 'name', 'mtu', 'checksum_offload', 'addresses', 'routes',
              'bridge'}
IMPORT_FIELDS = {'name', 'source', 'hash', 'size', 'verification'}
# verb: (states in which it does something, in which it does nothing, state after)
VERBS = {
    'start': (('SHUTDOWN', 'CRASHED', 'NOSTATE'), ('RUNNING',), 'RUNNING', 'started'),
    'stop': (('RUNNING', 'PAUSED', 'SUSPENDED'), ('SHUTDOWN', 'CRASHED', 'NOSTATE'),
             'SHUTDOWN', 'stopped'),
    'pause': (('RUNNING',), ('PAUSED',), 'PAUSED', 'paused'),
    'unpause': (('PAUSED',), ('RUNNING',), 'RUNNING', 'resumed'),
    'suspend': (('RUNNING', 'PAUSED'), ('SUSPENDED',), 'SUSPENDED', 'suspended'),
    'resume': (('SUSPENDED',), ('RUNNING',), 'RUNNING', 'resumed'),
}


class Fault(Exception):
    def __init__(self, code, detail='as the test wants it', status=None):
        super().__init__(code)
        self.code = code
        self.detail = detail
        self.status = status or STATUS.get(code, 500)

    def problem(self):
        return {'type': 'urn:berth:fault:' + self.code, 'title': self.code, 'status': self.status,
                'code': self.code, 'detail': self.detail, 'request_id': 'req-of-the-service'}


class FakeService:
    def __init__(self, directory):
        self.path = os.path.join(str(directory), 'berth.sock')
        self.lock = threading.Condition()
        self.instances, self.images, self.operations = {}, {}, {}
        self.requests = []       # (method, path, body, headers)
        self.faults = {}         # (method, regex): Fault, raised once
        self.drop = {}           # (method, regex): 'before' or 'after': close without an answer
        self.slow = False        # operations outlive their request
        self.image_config = {'entrypoint': [], 'cmd': [], 'init': 'systemd'}
        self.events, self.sequence, self.kept_from = [], 1000, 1000
        self.peer = None         # the service that instances move to
        self.epoch = 0           # streams of an earlier one end
        self.extra = {}          # (method, regex): answer, for endpoints of later
        self.server = None
        self.start()

    # Its life.

    def start(self):
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self.path)
        self.server = Server(self.path, Handler)
        self.server.fake = self
        self.server.connections = set()
        threading.Thread(target=self.server.serve_forever, args=(0.05,), daemon=True).start()

    def stop(self):
        with self.lock:
            self.epoch += 1
            self.lock.notify_all()
        self.server.shutdown()
        self.server.server_close()
        for connection in list(self.server.connections):
            with contextlib.suppress(OSError):
                connection.shutdown(2)
        os.unlink(self.path)

    @property
    def url(self):
        return 'unix://' + self.path

    def calls(self, method=None):
        return ['%s %s' % (m, p) for m, p, _, _ in self.requests if method in (None, m)]

    def changes(self):
        return [call for call in self.calls() if not call.startswith('GET')]

    def body(self, method, path):
        return [b for m, p, b, _ in self.requests if m == method and p == path][-1]

    def emit(self, kind, instance_id, state='RUNNING'):
        with self.lock:
            self.sequence += 1
            self.events.append({
                'sequence': self.sequence, 'kind': kind, 'instance_id': instance_id,
                'power_state': state, 'at': '2026-01-01T00:00:00Z'})
            self.lock.notify_all()

    # Its API.

    def answer(self, method, url, body):
        split = urlsplit(url)
        query = {name: values[0] for name, values in parse_qs(split.query).items()}
        for (wanted, pattern), fault in list(self.faults.items()):
            if wanted == method and re.fullmatch(pattern, split.path):
                del self.faults[(wanted, pattern)]
                raise fault
        for (wanted, pattern), result in self.extra.items():
            if wanted == method and re.fullmatch(pattern, split.path):
                return result
        parts = split.path.strip('/').split('/')
        if parts.pop(0) != 'v1':
            raise Fault('not-found')
        handler = getattr(self, '%s_%s' % (method.lower(), parts[0]), None)
        if handler is None:
            raise Fault('not-found')
        with self.lock:
            return handler(*parts[1:], body=body, query=query)

    def get_host(self, what=None, **_):
        if what == 'stats':
            return {'cpu_kernel_ns': 1, 'cpu_user_ns': 2, 'cpu_idle_ns': 3, 'cpu_iowait_ns': 4,
                    'cpu_mhz': 2500, 'memory_total': 1, 'memory_available': 1,
                    'load': [0.5, 0.25, 0.125], 'service_memory': 1}
        return {
            'hypervisor_hostname': 'compute1', 'hypervisor_type': 'berth', 'version': '0.1.0',
            'hypervisor_version': 1000, 'api_version': 'v1', 'architecture': 'x86_64',
            'kernel': '6.18.0', 'uptime': 90061, 'service_started_at': '2026-01-01T00:00:00Z',
            'inventory': {
                'vcpus': 6, 'pcpus': 2, 'memory_mb': 8192, 'local_gb': 100, 'vcpus_used': 1,
                'pcpus_used': 0, 'memory_mb_used': 512, 'local_gb_used': 10,
                'disk_available_gb': 80, 'disk_reserved_gb': 1, 'instances': len(self.instances),
                'running_instances': 0, 'cpu_model': 'A CPU', 'cpu_vendor': 'A vendor',
                'cpu_flags': ['sse', 'sse4_1', 'pni', 'avx2', 'svm', 'fma', 'not_a_trait'],
                'cpu_sockets': 1, 'cpu_cores': 4, 'cpu_threads': 2},
            'capabilities': {}}

    def get_instances(self, uuid=None, *rest, query, **_):
        if uuid is None:
            return {'instances': list(self.instances.values())}
        instance = self._instance(uuid)
        if rest == ('console', 'output'):
            return b'login: \xff\n' * 5 if int(query['length']) else b''
        if rest == ('stats',):
            return self._stats(uuid)
        return instance

    def put_instances(self, uuid, *rest, body, **_):
        if rest and rest[0] == 'remote-consoles':
            self._instance(uuid)
            check_fields(body, {'address', 'first_port', 'last_port'})
            return {'protocol': rest[1], 'address': body['address'], 'port': body['first_port'] + 7}
        if rest:
            return self._put_interface(uuid, rest[1], body)
        check_fields(body, CREATE_FIELDS)
        check_fields(body['flavor'], FLAVOR_FIELDS)
        for vif in body['vifs']:
            check_fields(vif, VIF_FIELDS)
        if body['image_id'] not in self.images:
            raise Fault('image-not-found')
        if uuid in self.instances:
            if self.instances[uuid]['_body'] != json.dumps(body, sort_keys=True):
                raise Fault('instance-exists')
            return self.instances[uuid]
        self.instances[uuid] = {
            **body, '_body': json.dumps(body, sort_keys=True), 'id': uuid, 'generation': 1,
            'rescue_image_id': None, 'vifs': [whole_vif(vif) for vif in body['vifs']]}
        self.set_state(uuid, 'SHUTDOWN')
        return self._operation(uuid, self.instances[uuid])

    def post_instances(self, uuid, verb, *rest, body, **_):
        instance = self._instance(uuid)
        state = instance['power_state']
        if verb == 'resize':
            return self._operation(uuid, self._resize(uuid, *rest, body=body))
        if verb == 'migrate':
            return self._operation(uuid, self._migrate(uuid, *rest, body=body))
        if verb == 'reboot':
            check_fields(body, {'type', 'timeout'})
            if body['type'] == 'SOFT' and state != 'RUNNING':
                raise Fault('instance-invalid-state')
            return self._operation(uuid, self.set_state(uuid, 'RUNNING'))
        if verb == 'rescue':
            return self._rescue(uuid, body)
        if verb == 'unrescue':
            instance['rescue_image_id'] = None
            self.emit('started', uuid)
            return self._operation(uuid, self.set_state(uuid, 'RUNNING'))
        if verb not in VERBS:
            raise Fault('not-found')
        does, nothing, after, event = VERBS[verb]
        if instance.get('migration') and verb != 'stop':
            raise Fault('instance-invalid-state', 'it has moved')
        if state in does:
            self.set_state(uuid, after)
            self.emit(event, uuid, after)
        elif state not in nothing:
            raise Fault('instance-invalid-state')
        return self._operation(uuid, instance)

    def delete_instances(self, uuid, *rest, **_):
        instance = self._instance(uuid)
        if rest:
            left = [v for v in instance['vifs'] if v['id'] != rest[1]]
            if left == instance['vifs']:
                raise Fault('interface-not-found')
            instance['vifs'] = left
        else:
            del self.instances[uuid]
        return self._operation(uuid, None)

    def get_images(self, image_id=None, **_):
        if image_id is None:
            return {'images': list(self.images.values())}
        if image_id not in self.images:
            raise Fault('image-not-found')
        return self.images[image_id]

    def put_images(self, image_id, body, **_):
        check_fields(body, IMPORT_FIELDS)
        if image_id in self.images and body.get('hash') != self.images[image_id]['_hash']:
            raise Fault('image-exists')
        image = self.images.setdefault(image_id, {
            'id': image_id, 'name': body['name'], 'users': [], 'config': self.image_config,
            '_hash': body.get('hash'), 'verifications': [], 'last_used_at': '2026-01-01T00:00:00Z'})
        image['verifications'] += [body['verification']] if 'verification' in body else []
        return self._operation(image_id, self.images[image_id])

    def delete_images(self, image_id, **_):
        if image_id not in self.images:
            raise Fault('image-not-found')
        if self.images[image_id]['users']:
            raise Fault('image-in-use')
        del self.images[image_id]
        return None

    def get_operations(self, operation_id, **_):
        if operation_id not in self.operations:
            raise Fault('operation-not-found')
        operation = self.operations[operation_id]
        answer = dict(operation)
        operation['status'] = operation.pop('_next', operation['status'])
        answer.pop('_next', None)
        return answer

    # Parts.

    def _instance(self, uuid):
        if uuid not in self.instances:
            raise Fault('instance-not-found')
        return self.instances[uuid]

    def set_state(self, uuid, state):
        instance = self.instances[uuid]
        instance['power_state'] = state
        instance['power_state_number'] = NUMBERS[state]
        return instance

    def _resize(self, uuid, what=None, *, body):
        instance = self._instance(uuid)
        kept = instance.get('unconfirmed_resize')
        if what == 'confirm':
            instance['unconfirmed_resize'] = None
        elif what == 'revert' and kept:
            instance['unconfirmed_resize'] = None
            instance.update(flavor=kept['flavor'], disk=kept['_disk'])
            self.set_state(uuid, 'SHUTDOWN')
        elif what is None:
            check_fields(body, {'flavor', 'keep', 'timeout'})
            check_fields(body['flavor'], FLAVOR_FIELDS)
            if kept and instance['flavor'] != body['flavor']:
                raise Fault('instance-invalid-state')
            if body['flavor']['root_gb'] < instance['flavor']['root_gb']:
                raise Fault('invalid-input', 'a root disk only grows')
            if body.get('keep') and not kept:
                instance['unconfirmed_resize'] = {
                    'flavor': instance['flavor'], 'since': '2026-01-01T00:00:00Z',
                    '_disk': instance.get('disk')}
                self.set_state(uuid, 'SHUTDOWN')
            instance['flavor'] = body['flavor']
        return instance

    def _migrate(self, uuid, what=None, *, body):
        instance = self._instance(uuid)
        gone = instance.get('migration')
        if what == 'revert':
            check_fields(body or {}, {'force'})
            instance['migration'] = None
            return instance
        check_fields(body, {'to', 'flavor', 'timeout'})
        check_fields(body['flavor'], FLAVOR_FIELDS)
        if not body['to'].startswith('https://'):
            raise Fault('invalid-input', 'must be https://host:port')
        if gone and gone['to'] != body['to']:
            raise Fault('instance-invalid-state')
        if not gone:
            self.set_state(uuid, 'SHUTDOWN')
            there = {**instance, 'flavor': body['flavor'], 'migration': None}
            instance['migration'] = {'to': body['to'], 'state': 'moved', 'since': 'now'}
            if self.peer is not None:
                self.peer.instances[uuid] = there
        return instance

    def _rescue(self, uuid, body):
        check_fields(body, RESCUE_FIELDS)
        instance = self.instances[uuid]
        if body['image_id'] not in self.images:
            raise Fault('image-not-found')
        if instance['power_state'] != 'SHUTDOWN':
            raise Fault('instance-invalid-state')
        instance['rescue_image_id'] = body['image_id']
        self.emit('started', uuid)
        return self._operation(uuid, self.set_state(uuid, 'RUNNING'))

    def _put_interface(self, uuid, port, body):
        check_fields(body, VIF_FIELDS)
        vifs = self._instance(uuid)['vifs']
        for known in vifs:
            if known['id'] == port:
                if known != whole_vif(body):
                    raise Fault('interface-exists')
                return None
        vifs.append(whole_vif(body))
        return self._operation(uuid, None)

    def _operation(self, target, result, fault=None):
        if not self.slow:
            return result
        operation = {'id': str(uuid.uuid4()), 'kind': 'x', 'target': target, 'status': 'running',
                     '_next': 'failed' if fault else 'succeeded', 'fault': fault}
        self.operations[operation['id']] = operation
        return Accepted(operation)

    @staticmethod
    def _stats(uuid):
        return {
            'id': uuid, 'at': '2026-01-01T00:00:00Z', 'uptime': 12,
            'cpu': {'usage_ns': 5000, 'user_ns': 3000, 'system_ns': 2000},
            'memory': {'usage': 3 << 20, 'limit': 64 << 20, 'peak': 4 << 20, 'rss': 1 << 20,
                       'cache': 0, 'swap': 0, 'oom_kills': 0},
            'pids': {'current': 3, 'limit': 4096},
            'block': [{'name': 'root', 'read_bytes': 10, 'write_bytes': 20, 'read_ops': 1,
                       'write_ops': 2, 'used': 5, 'size': 100}],
            'interfaces': [{'devname': 'tap0', 'address': 'fa:16:3e:00:00:01', 'rx_bytes': 7,
                            'rx_packets': 1, 'rx_errors': 0, 'rx_dropped': 0, 'tx_bytes': 8,
                            'tx_packets': 2, 'tx_errors': 0, 'tx_dropped': 0}],
            'pressure': None}


class Accepted:
    def __init__(self, operation):
        self.operation = operation


def whole_vif(vif):
    return {'mtu': 1500, 'addresses': [], 'routes': [], 'bridge': False, **vif}


def check_fields(body, known):
    for name in body:
        if name not in known:
            raise Fault('invalid-input', 'unknown field `%s`' % name)


class Server(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    daemon_threads = True
    request_queue_size = 128

    def process_request_thread(self, request, client_address):
        self.connections.add(request)
        try:
            super().process_request_thread(request, client_address)
        finally:
            self.connections.discard(request)

    def handle_error(self, request, client_address):
        pass


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = 'HTTP/1.1'
    timeout = 30

    def address_string(self):
        return 'unix'

    def log_message(self, *args):
        pass

    def handle_any(self):
        fake = self.server.fake
        length = int(self.headers.get('Content-Length') or 0)
        body = json.loads(self.rfile.read(length)) if length else None
        path = urlsplit(self.path).path
        fake.requests.append((self.command, path, body, dict(self.headers)))
        dropped = next((fake.drop.pop(key) for key in list(fake.drop)
                        if key[0] == self.command and re.fullmatch(key[1], path)), None)
        if dropped == 'before':
            self.close_connection = True
            return
        if path == '/v1/events':
            self.stream(fake)
            return
        try:
            result = fake.answer(self.command, self.path, body)
        except Fault as fault:
            self.send(fault.status, json.dumps(fault.problem()).encode())
            return
        if dropped == 'after':
            self.close_connection = True
        elif isinstance(result, Accepted):
            self.send(202, json.dumps(result.operation).encode(),
                      {'Location': '/v1/operations/' + result.operation['id']})
        elif isinstance(result, bytes):
            self.send(200, result)
        elif result is None:
            self.send(204, b'')
        else:
            self.send(200, json.dumps(result).encode())

    do_GET = do_PUT = do_POST = do_DELETE = handle_any

    def send(self, status, data, headers=None):
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        if status != 204:
            self.send_header('Content-Length', str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def stream(self, fake):
        last = self.headers.get('Last-Event-ID')
        with fake.lock:
            position = int(last) if last else fake.sequence
            epoch = fake.epoch
        if not fake.kept_from <= position <= fake.sequence:
            fault = Fault('events-gone')
            self.send(fault.status, json.dumps(fault.problem()).encode())
            return
        self.send_response(200)
        self.send_header('Transfer-Encoding', 'chunked')
        self.end_headers()
        self.chunk(b': berth\n\n')
        while True:
            with fake.lock:
                fresh = [e for e in fake.events if e['sequence'] > position]
                if not fresh:
                    fake.lock.wait(0.05)
                ended = fake.epoch != epoch
            for event in fresh:
                position = event['sequence']
                self.chunk(('id: %d\nevent: %s\ndata: %s\n\n' % (
                    position, event['kind'], json.dumps(event))).encode())
            if ended:
                self.close_connection = True
                return

    def chunk(self, data):
        self.wfile.write(b'%x\r\n%s\r\n' % (len(data), data))
        self.wfile.flush()


def wait_until(condition, seconds=10):
    """For tests: true as soon as `condition()` is, false when it never is."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if condition():
            return True
        time.sleep(0.01)
    return False
