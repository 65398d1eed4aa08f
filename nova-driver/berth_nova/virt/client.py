"""HTTP to the service: pooled connections, deadlines, faults as exceptions.

Standard library only, and nothing but blocking sockets, locks and threads: so
the same code runs on native threads and, patched by Nova, on eventlet.

A call that did not reach the service is tried again for `retry_timeout`
seconds. One whose answer got lost is tried again too, because the API's
changes are idempotent — except those made with `once=True`.
"""

import collections
import http.client
import json
import socket
import ssl
import threading
import time
import urllib.parse

from oslo_context import context as oslo_context
from oslo_log import log as logging

from nova import exception
from nova.virt.berth import faults

LOG = logging.getLogger(__name__)

# Seconds for which an operation's end is awaited within one exchange.
WAIT = 20
# Seconds that an exchange may take beyond what it waits for.
MARGIN = 30
# Seconds after which an idle connection is not trusted any more; servers
# commonly close them after five.
IDLE = 3
# Seconds between two attempts, at first and at most.
PAUSE, LONGEST_PAUSE = 0.1, 2


class Unreachable(Exception):
    """The request did not reach the service."""


class Broken(Exception):
    """The request may have reached the service; its answer did not come."""


class Deadline:
    """A moment by which something must be done."""

    def __init__(self, seconds):
        self.end = time.monotonic() + seconds

    def left(self):
        return max(0.0, self.end - time.monotonic())


class UnixConnection(http.client.HTTPConnection):
    """HTTP over a Unix socket."""

    def __init__(self, path, timeout):
        super().__init__('berth', timeout=timeout)
        self.path = path

    def connect(self):
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        try:
            self.sock.connect(self.path)
        except OSError:
            self.close()
            raise


class Pool:
    """Connections to one service, the latest used first."""

    def __init__(self, options):
        self.options = options
        self.url = _checked(options)
        self.tls = self._tls() if self.url.scheme == 'https' else None
        self.idle = collections.deque(maxlen=options.pool_size)
        self.lock = threading.Lock()

    def _tls(self):
        try:
            tls = ssl.create_default_context(cafile=self.options.ca_certificates)
            tls.load_cert_chain(self.options.certificate, self.options.private_key)
        except (OSError, ssl.SSLError) as error:
            raise exception.InvalidConfiguration(
                '[berth] ca_certificates, certificate, private_key: %s' % error) from error
        return tls

    def connect(self):
        """A new, connected connection."""
        timeout = self.options.connect_timeout
        if self.tls:
            connection = http.client.HTTPSConnection(
                self.url.hostname, self.url.port, timeout=timeout, context=self.tls)
        else:
            connection = UnixConnection(self.url.path, timeout)
        try:
            connection.connect()
        except OSError as error:
            raise Unreachable(str(error)) from error
        return connection

    def take(self):
        """An idle connection that is still good, or a new one."""
        while True:
            with self.lock:
                if not self.idle:
                    break
                connection, since = self.idle.pop()
            if time.monotonic() - since < IDLE and not self._dropped(connection):
                return connection
            connection.close()
        return self.connect()

    def give(self, connection):
        """Keeps a connection for later."""
        with self.lock:
            full = len(self.idle) == self.idle.maxlen
            if not full:
                self.idle.append((connection, time.monotonic()))
        if full:
            connection.close()

    def _dropped(self, connection):
        """Whether the other side closed it. (TLS cannot be peeked into.)"""
        if self.tls:
            return False
        connection.sock.setblocking(False)
        try:
            # An end of file, or an answer to nothing: of no use either way.
            connection.sock.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT)
            return True
        except BlockingIOError:
            return False
        except OSError:
            return True
        finally:
            connection.sock.setblocking(True)

    def close(self):
        with self.lock:
            idle, self.idle = self.idle, collections.deque(maxlen=self.idle.maxlen)
        for connection, _ in idle:
            connection.close()


class Client:
    """The service's API. Paths are as its OpenAPI document writes them."""

    def __init__(self, options):
        self.options = options
        self.pool = Pool(options)

    # What the driver calls.

    def get(self, path, **query):
        """What `path` is."""
        return self._json('GET', _with_query(path, query))

    def get_bytes(self, path, **query):
        """What `path` holds, as bytes."""
        deadline = Deadline(self.options.request_timeout)
        return self._attempts('GET', _with_query(path, query), None, {}, deadline)[1]

    def put(self, path, body, seconds=None):
        """Makes it so; returns when it is."""
        self._change('PUT', path, body, seconds)

    def put_at_once(self, path, body):
        """Makes it so, which takes no time; what it is then."""
        return self._json('PUT', path, body)

    def post(self, path, body=None, seconds=None, once=False):
        """Does it; returns when it is done. `once`: never do it twice."""
        self._change('POST', path, body, seconds, once)

    def delete(self, path, seconds=None):
        """Takes it away; returns when it is gone."""
        self._change('DELETE', path, None, seconds)

    def stream(self, path, headers, timeout):
        """Opens a stream of lines; `timeout` is the longest silence."""
        return Stream(self.pool, path, self._headers(headers), timeout)

    def close(self):
        self.pool.close()

    # How it is done.

    def _json(self, method, path, body=None):
        deadline = Deadline(self.options.request_timeout)
        return _decode(self._attempts(method, path, body, {}, deadline)[1])

    def _change(self, method, path, body, seconds, once=False):
        """A change, whose operation is followed to its end."""
        deadline = Deadline(seconds or self.options.operation_timeout)
        location = self._begin(method, path, body, deadline, once)
        while location:
            if not deadline.left():
                raise faults.to_nova(_timeout('%s %s' % (method, path)), _target(path))
            try:
                operation = self._follow(location, deadline)
            except faults.OperationGone:
                # The service was restarted, and finished or undid the work.
                if once:
                    raise
                location = self._begin(method, path, body, deadline, once)
                continue
            if operation['status'] == 'failed':
                problem = operation.get('fault') or {}
                fault = faults.Fault.from_answer(problem.get('status'), problem)
                raise faults.to_nova(fault, _target(path))
            if operation['status'] == 'succeeded':
                return

    def _begin(self, method, path, body, deadline, once):
        """Asks for a change; where to follow it, None when it is done."""
        wait = min(WAIT, int(deadline.left()))
        headers = {'Prefer': 'respond-async, wait=%d' % wait}
        status, _, location = self._attempts(method, path, body, headers, deadline, once)
        return location if status == 202 else None

    def _follow(self, location, deadline):
        wait = min(WAIT, int(deadline.left()))
        path = _with_query(location, {'wait': wait})
        return _decode(self._attempts('GET', path, None, {}, deadline)[1])

    def _attempts(self, method, path, body, headers, deadline, once=False):
        """Exchanges until there is an answer; faults become exceptions."""
        give_up = None
        pause = PAUSE
        while True:
            try:
                status, data, location = self._exchange(
                    method, path, body, headers, deadline, fresh=once)
                if status < 400:
                    return status, data, location
                fault = faults.Fault.from_answer(status, _decode(data))
                if fault.code != 'service-unavailable':
                    raise faults.to_nova(fault, _target(path))
            except (Unreachable, Broken) as error:
                fault = faults.Fault(
                    'service-unavailable', 503, 'berth at %s: %s'
                    % (self.options.url, error or type(error).__name__))
                if once and isinstance(error, Broken):
                    raise faults.to_nova(fault, _target(path)) from error
            # From the first failure on, and never beyond the deadline.
            give_up = give_up or Deadline(min(self.options.retry_timeout, deadline.left()))
            if give_up.left() < pause:
                raise faults.to_nova(fault, _target(path))
            LOG.debug('%s %s is tried again: %s', method, path, fault)
            time.sleep(pause)
            pause = min(2 * pause, LONGEST_PAUSE)

    def _exchange(self, method, path, body, headers, deadline, fresh):
        """One request and its answer: status, body, Location."""
        connection = self.pool.connect() if fresh else self.pool.take()
        data = None if body is None else json.dumps(body).encode()
        try:
            connection.sock.settimeout(max(1, min(deadline.left(), WAIT + MARGIN)))
            connection.request(method, path, data, self._headers(headers, data))
            response = connection.getresponse()
            answer = response.read()
        except TimeoutError as error:
            connection.close()
            raise faults.to_nova(_timeout('%s %s' % (method, path)), _target(path)) from error
        except (OSError, http.client.HTTPException) as error:
            connection.close()
            raise Broken(str(error) or type(error).__name__) from error
        except BaseException:
            # Also a thread that is killed: half an answer is on the line.
            connection.close()
            raise
        if response.will_close:
            connection.close()
        else:
            self.pool.give(connection)
        return response.status, answer, response.getheader('Location')

    @staticmethod
    def _headers(extra, data=None):
        headers = {'Accept': 'application/json, */*', **extra}
        if data is not None:
            headers['Content-Type'] = 'application/json'
        context = oslo_context.get_current()
        if context is not None and context.request_id:
            headers['X-Openstack-Request-Id'] = context.request_id
        return headers


class Stream:
    """A connection over which lines come until one side closes it."""

    def __init__(self, pool, path, headers, timeout):
        self.connection = pool.connect()
        try:
            self.connection.sock.settimeout(timeout)
            self.connection.request('GET', path, headers=headers)
            self.response = self.connection.getresponse()
            if self.response.status >= 400:
                fault = faults.Fault.from_answer(
                    self.response.status, _decode(self.response.read()))
                raise faults.to_nova(fault, _target(path))
        except (OSError, http.client.HTTPException) as error:
            self.connection.close()
            raise Broken(str(error)) from error
        except BaseException:
            self.connection.close()
            raise

    def __iter__(self):
        """The lines, without their ends. `Broken` when the line is."""
        try:
            while line := self.response.readline():
                yield line.decode('utf-8', 'replace').rstrip('\r\n')
        except (OSError, http.client.HTTPException) as error:
            raise Broken(str(error)) from error

    def interrupt(self):
        """Ends the stream under the feet of the thread that reads it.

        That thread closes it: on eventlet a reader that waits cannot be
        entered by another.
        """
        sock = self.connection.sock
        if sock is not None:
            try:
                sock.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass  # It is closed already.

    def close(self):
        """For the thread that reads."""
        self.connection.close()


def _checked(options):
    """The parts of the service's URL."""
    url = urllib.parse.urlsplit(options.url)
    if url.scheme == 'unix':
        if not url.netloc and url.path.startswith('/'):
            return url
    elif url.scheme == 'https' and url.hostname and url.port:
        for name in ('certificate', 'private_key', 'ca_certificates'):
            if not options[name]:
                raise exception.InvalidConfiguration(
                    '[berth] url is https, so %s must be set' % name)
        return url
    raise exception.InvalidConfiguration(
        '[berth] url must be unix:///path/of/a/socket or https://host:port, not %s' % options.url)


def _timeout(what):
    return faults.Fault('timeout', 504, '%s did not finish in time' % what)


def _decode(data):
    try:
        return json.loads(data) if data else None
    except ValueError:
        return None


def _with_query(path, query):
    query = {name: value for name, value in query.items() if value is not None}
    return '%s?%s' % (path, urllib.parse.urlencode(query)) if query else path


def _target(path):
    """What a path is about, for the words of an exception."""
    parts = path.split('?')[0].strip('/').split('/')[1:]
    target = {}
    if parts[:1] == ['instances'] and len(parts) > 1:
        target['instance'] = parts[1]
        if parts[2:3] == ['interfaces'] and len(parts) > 3:
            target['port'] = parts[3]
        elif len(parts) > 2:
            target['verb'] = parts[2]
    elif parts[:1] == ['images'] and len(parts) > 1:
        target['image'] = parts[1]
    return target
