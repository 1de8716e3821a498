"""HTTP over a transport that is none: order, limits before the body, deadlines, clients that go."""

from __future__ import annotations

import json
import re
from dataclasses import replace

import pytest

from bert_kd.serve.connection import HEADER_BYTES, LINGER_SECONDS, Clock, Connection
from bert_kd.serve.limits import Limits
from bert_kd.serve.messages import Response
from bert_kd.serve.wire import Failure, Refusal, encode

LIMITS = Limits(payload_bytes=1000, header_seconds=5, body_seconds=20, request_seconds=30)


class Time:
    """An event loop's clock, set by hand."""

    def __init__(self):
        self.now = 100.0

    def time(self):
        return self.now


class Work:
    cancelled = False

    def cancel(self):
        self.cancelled = True


class Application:
    """Answers a body with itself; `late` keeps the replies until they are asked for."""

    def __init__(self):
        self.limits = LIMITS
        self.late = False
        self.replies = []
        self.ended = []
        self.works = []

    def admit(self, request):
        if request.path == "/no":
            raise Refusal(404, "not_found", "no")
        request.admitted = True

    def handle(self, request, reply):
        request.work = Work()
        self.works.append(request.work)
        response = Response(200, bytes(request.body) or b"-")
        if self.late:
            self.replies.append(lambda: reply(response))
        else:
            reply(response)

    def refuse(self, refusal):
        body = encode(Failure(refusal.message, refusal.kind))
        return Response(refusal.status, body, headers=refusal.headers)

    def finished(self, request, response):
        self.ended.append(None if response is None else response.status)


class Transport:
    """Keeps what is written."""

    def __init__(self):
        self.written = b""
        self.closed = self.aborted = self.eof = self.paused = False

    def write(self, data):
        assert not self.closed and not self.eof
        self.written += data

    def close(self):
        self.closed = True

    def abort(self):
        self.aborted = True

    def write_eof(self):
        self.eof = True

    def pause_reading(self):
        self.paused = True

    def resume_reading(self):
        self.paused = False

    def is_closing(self):
        return self.closed


class Client:
    """The other end of a connection."""

    def __init__(self, application=None):
        self.application = application or Application()
        self.time = Time()
        self.clock = Clock(self.time)
        self.transport = Transport()
        self.connection = Connection(self.application, self.clock)
        self.connection.connection_made(self.transport)

    def send(self, *pieces):
        for piece in pieces:
            self.connection.data_received(piece)

    def wait(self, seconds):
        self.time.now += seconds
        self.clock.tick()

    def responses(self):
        """Return (status, headers, body) of all that came, and forget them."""
        data, self.transport.written = self.transport.written, b""
        found = []
        while data:
            head, _, data = data.partition(b"\r\n\r\n")
            lines = head.decode().split("\r\n")
            headers = dict(line.split(": ", 1) for line in lines[1:])
            size = int(headers.get("content-length", 0))
            found.append((int(lines[0].split()[1]), headers, data[:size]))
            data = data[size:]
        return found

    def refusal(self):
        """Return the status and type of the one response, after which nothing comes."""
        ((status, headers, body),) = self.responses()
        assert headers["connection"] == "close"
        return status, json.loads(body)["error_type"]


@pytest.fixture
def client():
    return Client()


def post(body, *headers, path="/predict", version="1.1"):
    lines = [f"POST {path} HTTP/{version}", "host: x", f"content-length: {len(body)}", *headers]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


def test_requests_one_after_another(client):
    for body in (b"a", b"b" * 999, b""):
        client.send(post(body))
        ((status, headers, answer),) = client.responses()
        assert (status, answer) == (200, body or b"-")
        assert "connection" not in headers
        assert re.fullmatch(r"[0-9a-f]{8}-[0-9a-f]+", headers["x-request-id"])
        assert headers["date"].endswith("GMT")
    assert not client.transport.closed
    assert client.application.ended == [200, 200, 200]


def test_a_request_in_single_bytes(client):
    client.send(*(bytes([byte]) for byte in post(b"film", "x-request-id: mine-1")))
    ((status, headers, body),) = client.responses()
    assert (status, body, headers["x-request-id"]) == (200, b"film", "mine-1")


def test_a_request_id_that_could_break_a_log_is_replaced(client):
    client.send(post(b"a", "x-request-id: a\tb"), post(b"a", f"x-request-id: {'a' * 129}"))
    for _, headers, _ in client.responses():
        assert re.fullmatch(r"[0-9a-f]{8}-[0-9a-f]+", headers["x-request-id"])


def test_chunked_bodies(client):
    head = b"POST /predict HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n"
    client.send(head, b"3\r\nfil\r\n", b"1\r\nm\r\n0\r\n\r\n")
    assert client.responses()[0][2] == b"film"
    client.send(head, *[b"64\r\n" + b"x" * 100 + b"\r\n"] * 11)
    assert client.refusal() == (413, "payload_too_large")


def test_pipelined_requests_are_answered_in_order_one_at_a_time(client):
    client.application.late = True
    client.send(post(b"a") + post(b"", path="/no") + post(b"c") + post(b"d")[:20])
    assert client.transport.paused
    assert len(client.application.replies) == 1
    client.application.replies.pop(0)()
    assert [(one[0], one[2][:1]) for one in client.responses()] == [(200, b"a"), (404, b"{")]
    client.application.replies.pop(0)()
    assert client.responses()[0][2] == b"c"
    assert not client.transport.paused
    client.send(post(b"d")[20:])
    client.application.replies.pop(0)()
    assert client.responses()[0][2] == b"d"


def test_a_refused_body_that_is_there_is_skipped_and_the_connection_stays(client):
    client.send(post(b"x" * 500, path="/no"), post(b"after"))
    assert [one[0] for one in client.responses()] == [404, 200]


def test_a_body_that_is_not_wanted_is_not_waited_for(client):
    head, body = post(b"x" * 500, path="/no")[:-500], b"x" * 500
    client.send(head)
    assert client.refusal() == (404, "not_found")
    assert client.transport.eof and not client.transport.closed  # the client may still be sending
    client.send(body, post(b"after"))
    assert client.responses() == []
    client.wait(LINGER_SECONDS + 1)
    assert client.transport.closed
    assert client.application.ended == [404]


def test_what_was_asked_before_is_answered_before_a_refusal(client):
    client.application.late = True
    client.send(post(b"a") + post(b"x" * 500, path="/no")[:-1])
    assert client.responses() == []
    client.application.replies.pop(0)()
    assert [one[0] for one in client.responses()] == [200, 404]
    assert client.transport.eof


def test_a_body_that_is_too_large_is_refused_before_it_is_read(client):
    head = b"POST /predict HTTP/1.1\r\nhost: x\r\ncontent-length: 10000000\r\n\r\n"
    client.send(head)
    assert client.refusal() == (413, "payload_too_large")
    assert client.transport.eof and not client.transport.closed  # the client may still be sending
    client.send(b"x" * 5000, post(b"more"))
    assert client.responses() == []
    client.wait(LINGER_SECONDS + 1)
    assert client.transport.closed


def test_whether_a_request_is_admitted_comes_before_how_large_it_is(client):
    client.send(b"POST /no HTTP/1.1\r\nhost: x\r\ncontent-length: 10000000\r\n\r\n")
    assert client.refusal() == (404, "not_found")


def test_expect_continue(client):
    head = b"POST %b HTTP/1.1\r\nhost: x\r\ncontent-length: 4\r\nexpect: 100-continue\r\n\r\n"
    client.send(head % b"/predict")
    assert client.transport.written == b"HTTP/1.1 100 Continue\r\n\r\n"
    client.send(b"film")
    assert [one[0] for one in client.responses()] == [100, 200]
    client.send(head % b"/no")
    assert client.refusal() == (404, "not_found")


EXPECTING = post(b"film", "expect: 100-continue")
CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"


def test_continue_is_not_said_before_an_earlier_answer(client):
    client.application.late = True
    client.send(post(b"a") + EXPECTING[:-4])
    assert client.transport.written == b""
    client.wait(LIMITS.body_seconds + 1)  # of which none is the client's
    client.application.replies.pop(0)()
    assert client.transport.written.startswith(b"HTTP/1.1 200 ")
    assert client.transport.written.endswith(CONTINUE)
    client.wait(LIMITS.body_seconds - 1)
    client.send(EXPECTING[-4:])
    client.application.replies.pop(0)()
    assert [one[0] for one in client.responses()] == [200, 100, 200]


def test_continue_is_said_after_an_answer_that_came_at_once(client):
    client.send(post(b"a") + EXPECTING[:-4])
    assert [one[0] for one in client.responses()] == [200, 100]


def test_continue_is_not_said_where_the_body_comes_unasked(client):
    client.application.late = True
    client.send(post(b"a") + EXPECTING[:-3])
    client.application.replies.pop(0)()
    client.send(EXPECTING[-3:])
    client.application.replies.pop(0)()
    assert [(one[0], one[2]) for one in client.responses()] == [(200, b"a"), (200, b"film")]


def test_a_body_that_comes_unasked_has_its_time(client):
    client.application.late = True
    client.send(post(b"a") + EXPECTING[:-3])
    client.wait(LIMITS.body_seconds + 1)
    client.application.replies.pop(0)()
    assert [one[0] for one in client.responses()] == [200, 408]


def test_a_body_that_was_asked_for_has_its_time(client):
    client.send(EXPECTING[:-4])
    client.wait(LIMITS.body_seconds + 1)
    assert [one[0] for one in client.responses()] == [100, 408]


def test_http_1_0_knows_no_continue(client):
    data = post(b"film", "expect: 100-continue", "connection: keep-alive", version="1.0")
    client.send(data[:-4])
    assert client.transport.written == b""
    client.send(data[-4:])
    assert [one[0] for one in client.responses()] == [200]


@pytest.mark.parametrize(
    "data",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",  # TLS
        b"nonsense\r\n\r\n",
        b"POST / HTTP/1.1\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\n",
        b"POST / HTTP/1.1\r\ncontent-length: 1\r\ntransfer-encoding: chunked\r\n\r\n",
        b"POST / HTTP/1.1\r\ncontent-length: -1\r\n\r\n",
        b"POST / HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    ],
)
def test_what_is_no_http_is_refused(client, data):
    client.send(data)
    assert client.refusal() == (400, "invalid_http")


def test_after_what_is_no_http_nothing_is_read(client):
    client.send(b"nonsense\r\n\r\n")
    client.responses()
    client.send(post(b"after"))
    assert client.responses() == []


def test_http_1_1_needs_a_host(client):
    client.send(b"GET / HTTP/1.1\r\n\r\n")
    ((status, _, body),) = client.responses()
    assert (status, json.loads(body)["error_type"]) == (400, "invalid_http")
    assert b"Host" in body


@pytest.mark.parametrize("more", ["", "connection: upgrade\r\nupgrade: h2c\r\n"])
@pytest.mark.parametrize("version", ["1.0", "1.1"])
@pytest.mark.parametrize("hosts", ["Host: x\r\nhost: y", "host: x\r\nhost: x", "host:\r\nhost:"])
def test_two_hosts_are_refused(client, hosts, version, more):
    client.send(f"GET / HTTP/{version}\r\n{hosts}\r\n{more}\r\n".encode() + post(b"after"))
    assert client.refusal() == (400, "invalid_http")
    assert client.application.works == []


def test_every_request_has_a_host_of_its_own(client):
    client.send(post(b"a") + post(b"b", *UPGRADE) + post(b"c"))
    assert [one[0] for one in client.responses()] == [200, 200, 200]


def test_http_1_0_needs_no_host(client):
    client.send(b"GET / HTTP/1.0\r\n\r\n")
    assert client.responses()[0][0] == 200


def head_of(size, *headers):
    """Return a request whose target and headers have so many bytes, as the limit counts them."""
    lines = ["host: x", *headers, "x-filler: "]
    missing = size - len("/") - sum(len(line) + len("\r\n") for line in lines)
    return "\r\n".join(["POST / HTTP/1.1", *lines]).encode() + b"a" * missing + b"\r\n\r\n"


@pytest.mark.parametrize("piece", [1 << 20, 40_000, 1000, 7])
def test_the_limit_of_headers_is_exact_however_they_arrive(piece):
    for size, status in ((HEADER_BYTES, 200), (HEADER_BYTES + 1, 431), (40_000, 431)):
        client = Client()
        data = head_of(size)
        client.send(*(data[at : at + piece] for at in range(0, len(data), piece)))
        assert [one[0] for one in client.responses()] == [status]


def test_headers_of_one_name_count_each(client):
    lines = b"".join(b"x-a: %d\r\n" % (10_000 + number) for number in range(4000))
    client.send(b"GET / HTTP/1.1\r\nhost: x\r\n" + lines + b"\r\n")
    assert client.refusal() == (431, "headers_too_large")


def test_what_came_before_does_not_count_as_headers(client):
    small = post(b"a")
    data = small * (3 * HEADER_BYTES // len(small)) + small[:-10]
    client.send(data, small[-10:])
    assert {one[0] for one in client.responses()} == {200}
    client.send(post(b"x" * 999, "x-a: " + "a" * (HEADER_BYTES - 200)) + small[:20], small[20:])
    assert [one[0] for one in client.responses()] == [200, 200]


def test_headers_without_end(client):
    client.send(b"GET / HTTP/1.1\r\nhost: x\r\n", *[b"x-a: " + b"a" * 1000 + b"\r\n"] * 40)
    assert client.refusal() == (431, "headers_too_large")


def test_a_target_without_end(client):
    client.send(b"GET /", *[b"a" * 1000] * (HEADER_BYTES // 1000 + 2))
    assert client.refusal() == (431, "headers_too_large")


@pytest.mark.parametrize(
    ("target", "path"),
    [
        (b"/info?x=1", "/info"),
        (b"/models/a%20b%2Fc", "/models/a b/c"),
        (b"http://host:80/info", "/info"),
        (b"http://host", "/"),
        (b"/models/%ff%00", "/models/\ufffd\x00"),
        (b"*", "*"),
    ],
)
def test_targets(client, target, path):
    seen = []
    client.application.admit = lambda request: seen.append(request.path)
    client.send(b"OPTIONS " + target + b" HTTP/1.1\r\nhost: x\r\n\r\n")
    assert seen == [path]


def test_head_has_no_body(client):
    client.send(b"HEAD / HTTP/1.1\r\nhost: x\r\n\r\n")
    assert b"content-length: 1\r\n" in client.transport.written
    assert client.transport.written.endswith(b"\r\n\r\n")


def test_connections_close_where_the_client_says_so(client):
    client.send(post(b"a", "connection: close"))
    assert client.responses()[0][1]["connection"] == "close"
    assert client.transport.closed


def test_http_1_0():
    client = Client()
    client.send(post(b"a", "connection: keep-alive", version="1.0"))
    assert client.responses()[0][1]["connection"] == "keep-alive"
    assert not client.transport.closed
    client.send(post(b"a", version="1.0"))
    assert client.transport.closed


UPGRADE = (
    "connection: Upgrade, HTTP2-Settings",
    "upgrade: h2c",
    "http2-settings: AAMAAABkAAQAAP__",
    "x-request-id: mine",
)
CHUNKED = (
    "\r\n".join(["POST /predict HTTP/1.1", "host: x", *UPGRADE, "transfer-encoding: chunked"])
).encode() + b"\r\n\r\n3\r\nfil\r\n1\r\nm\r\n0\r\n\r\n"


@pytest.mark.parametrize("data", [post(b"film", *UPGRADE), CHUNKED], ids=["length", "chunked"])
def test_a_wish_for_another_protocol_is_ignored(data):
    """As `curl --http2` and Java's client send it; however it is cut into pieces."""
    for at in range(1, len(data) + 1):
        client = Client()
        client.send(*filter(None, (data[:at], data[at:])), data, post(b"after"))
        responses = client.responses()
        assert [(one[0], one[2]) for one in responses] == [
            (200, b"film"), (200, b"film"), (200, b"after"),
        ]  # fmt: skip
        assert responses[0][1]["x-request-id"] == "mine"
        assert client.application.ended == [200, 200, 200]


def test_wishes_for_other_protocols_in_one_packet(client):
    client.send(post(b"a", *UPGRADE) + post(b"b") + CHUNKED + post(b"c", *UPGRADE))
    assert [one[2] for one in client.responses()] == [b"a", b"b", b"film", b"c"]


def test_a_refused_wish_for_another_protocol(client):
    client.send(post(b"film", *UPGRADE, path="/no")[:-4])
    assert client.refusal() == (404, "not_found")


def test_a_websocket_is_answered_as_a_request(client):
    client.send(b"GET / HTTP/1.1\r\nhost: x\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n")
    ((status, headers, _),) = client.responses()
    assert status == 200 and "upgrade" not in headers
    client.send(b"\x81\x05frame")
    assert client.refusal() == (400, "invalid_http")


def test_after_connect_nothing_is_read(client):
    client.send(post(b"a") + b"CONNECT no:443 HTTP/1.1\r\nhost: no:443\r\n\r\n\x16\x03")
    first, second = client.responses()
    assert (first[0], second[0]) == (200, 200)  # this application answers any method
    assert "connection" not in first[1] and second[1]["connection"] == "close"
    assert client.transport.closed


# --- deadlines -----------------------------------------------------------------------------------


def test_a_connection_that_says_nothing_is_closed(client):
    client.wait(4)
    assert not client.transport.closed
    client.wait(2)
    assert client.transport.closed and client.transport.written == b""


def test_slow_headers(client):
    for byte in b"GET /info":
        client.send(bytes([byte]))
        client.wait(0.6)
    assert client.refusal() == (408, "request_timeout")
    assert client.application.ended == [408]


def test_a_slow_body(client):
    client.send(post(b"x" * 900)[:200])
    for _ in range(9):
        client.wait(2)
        client.send(b"x")
    assert client.responses() == []
    client.wait(3)
    assert client.refusal() == (408, "request_timeout")
    client.wait(LINGER_SECONDS + 1)
    assert client.transport.closed


def test_a_late_answer(client):
    client.application.late = True
    client.send(post(b"a"))
    client.wait(31)
    ((status, headers, body),) = client.responses()
    assert (status, json.loads(body)["error_type"]) == (503, "timeout")
    assert headers["retry-after"] == "1"
    assert client.application.works[0].cancelled
    client.application.replies.pop(0)()  # too late: nothing is written
    assert client.responses() == []
    client.application.late = False
    client.send(post(b"b"))
    assert client.responses()[0][2] == b"b"


def test_an_idle_connection_is_closed(client):
    client.send(post(b"a"))
    client.responses()
    client.wait(LIMITS.idle_seconds - 1)
    assert not client.transport.closed
    client.wait(2)
    assert client.transport.closed and client.transport.written == b""


@pytest.mark.parametrize("cut", [30, -2], ids=["head", "body"])
def test_a_request_has_its_time_anew_when_it_is_read_on(client, cut):
    """What came while nothing was read did not come late, however long an answer took."""
    client.application.late = True
    third = post(b"film")
    client.send(post(b"a"), post(b"b") + third[:cut])
    assert client.transport.paused
    for seconds in (28, 28):
        client.wait(seconds)
        client.application.replies.pop(0)()
    assert not client.transport.paused
    client.wait(4)
    client.send(third[cut:])
    client.application.replies.pop(0)()
    assert [(one[0], one[2]) for one in client.responses()] == [
        (200, b"a"), (200, b"b"), (200, b"film"),
    ]  # fmt: skip


@pytest.mark.parametrize(("cut", "seconds"), [(30, 5), (-2, 20)], ids=["head", "body"])
def test_a_request_that_is_read_on_can_still_be_late(client, cut, seconds):
    client.application.late = True
    client.send(post(b"a"), post(b"b") + post(b"film")[:cut])
    for reply in (0, 0):
        client.application.replies.pop(reply)()
    client.responses()
    client.wait(seconds - 1)
    assert client.responses() == []
    client.wait(2)
    assert client.refusal() == (408, "request_timeout")


def test_a_client_that_reads_late_has_its_time_to_send(client):
    client.send(post(b"a") + post(b"film")[:30])
    client.responses()
    client.connection.pause_writing()
    client.wait(LIMITS.header_seconds + 1)
    client.connection.resume_writing()
    client.send(post(b"film")[30:])
    assert client.responses()[0][2] == b"film"


def test_an_answer_may_take_longer_than_a_connection_idles(client):
    client.application.limits = client.connection._limits = replace(LIMITS, idle_seconds=3)
    client.application.late = True
    client.send(post(b"a") + post(b"b"))
    client.application.replies.pop(0)()
    client.wait(4)
    assert not client.transport.closed


def test_a_client_that_does_not_read(client):
    client.send(post(b"a"))
    client.connection.pause_writing()
    assert client.transport.paused
    client.wait(19)
    client.connection.resume_writing()
    assert not client.transport.paused
    client.connection.pause_writing()
    client.wait(21)
    assert client.transport.aborted


# --- clients that go, servers that stop ----------------------------------------------------------


def test_a_client_that_goes_cancels_its_work(client):
    client.application.late = True
    client.send(post(b"a") + post(b"b") + post(b"c")[:50])
    client.connection.connection_lost(None)
    assert client.application.works[0].cancelled
    assert client.application.ended == [None, None, None]
    client.application.replies.pop(0)()
    assert client.transport.written == b""
    assert client.clock.connections == set()


def test_a_client_that_closes_its_half_is_still_answered(client):
    client.application.late = True
    client.send(post(b"a"))
    assert client.connection.eof_received()
    client.application.replies.pop(0)()
    assert client.responses()[0][2] == b"a"
    assert client.transport.closed
    assert not Client().connection.eof_received()


def test_half_a_request_and_then_the_end(client):
    client.send(post(b"film")[:-1])
    assert not client.connection.eof_received()
    assert client.application.ended == [None]


def test_stopping_answers_what_is_in_hand(client):
    client.application.late = True
    client.send(post(b"a"))
    client.clock.stopping = True
    client.connection.stop()
    assert not client.transport.closed
    client.application.replies.pop(0)()
    assert client.responses()[0][1]["connection"] == "close"
    assert client.transport.closed


def test_stopping_closes_what_is_idle(client):
    client.send(post(b"a"))
    client.responses()
    client.connection.stop()
    assert client.transport.closed


def test_any_split_of_a_request_is_read_alike(client):
    first, last = post(b"film", "x-a: b"), post(b"y")
    data = first + last
    for at in range(1, len(data)):
        client.send(data[:at], data[at:])
        assert [one[2] for one in client.responses()] == [b"film", b"y"]


def test_a_refusal_ends_the_connection_where_its_body_is_still_to_come():
    refused = post(b"xyz", path="/no")
    data = post(b"film") + refused + post(b"y")
    ends = len(data) - len(post(b"y"))
    for at in range(1, len(data)):
        client = Client()
        client.send(data[:at], data[at:])
        ended = ends - len(b"xyz") <= at < ends
        assert [one[0] for one in client.responses()] == ([200, 404] if ended else [200, 404, 200])
