"""Transports on real sockets: what asyncio's own do, ours do too."""

import asyncio
import errno
import gc
import socket
import struct
import weakref

import pytest

from common import sockets as sockets_module
from common.sockets import HIGH_WATER, Sockets

PATIENCE_S = 20


class Recorder(asyncio.Protocol):
    """Keeps what happens to it; a test waits with `until`."""

    def __init__(self):
        self.data, self.lost, self.told, self.error = b"", False, [], None

    def connection_made(self, transport):
        self.transport = transport

    def data_received(self, data):
        self.data += data
        if data == b"fail":
            raise RuntimeError("a slip of the protocol")

    def pause_writing(self):
        self.told.append("pause")

    def resume_writing(self):
        self.told.append("resume")

    def connection_lost(self, exc):
        assert not self.lost
        self.lost, self.error = True, exc


async def until(condition):
    loop = asyncio.get_running_loop()
    end = loop.time() + PATIENCE_S
    while not condition():
        assert loop.time() < end, "it did not happen in time"
        await asyncio.sleep(0.002)


def on_sockets(test):
    """Run `test(sockets, connect)`; connect() gives a client's socket and the protocol that serves it."""

    async def main():
        protocols = []
        sockets = Sockets(asyncio.get_running_loop(), lambda: protocols.append(Recorder()) or protocols[-1])
        await sockets.listen("127.0.0.1", 0)
        clients = []

        async def connect():
            before = len(protocols)
            client = socket.create_connection(sockets.listening[0].getsockname()[:2])
            client.setblocking(False)
            clients.append(client)
            await until(lambda: len(protocols) > before)
            return client, protocols[-1]

        try:
            await test(sockets, connect)
        finally:
            for client in clients:
                client.close()
            for protocol in protocols:
                protocol.transport.abort()
            sockets.stop_listening()
            sockets.close()

    asyncio.run(main(), debug=True)


async def read(client, count=None):
    """`count` bytes, or all up to the end."""
    loop, data = asyncio.get_running_loop(), b""
    while count is None or len(data) < count:
        part = await asyncio.wait_for(loop.sock_recv(client, 1 << 20), PATIENCE_S)
        if not part:
            break
        data += part
    return data


def test_bytes_go_both_ways_and_a_client_that_ends_is_gone():
    async def test(sockets, connect):
        client, protocol = await connect()
        client.send(b"hello")
        await until(lambda: protocol.data == b"hello")
        protocol.transport.write(b"world")
        assert await read(client, 5) == b"world"
        client.shutdown(socket.SHUT_WR)
        await until(lambda: protocol.lost)
        assert protocol.error is None
        assert await read(client) == b""
        protocol.transport.write(b"to nobody")

    on_sockets(test)


@pytest.mark.parametrize("end", ["close", "write_eof"])
def test_a_slow_reader_gets_everything_before_the_end(end):
    async def test(sockets, connect):
        client, protocol = await connect()
        sent = b"".join(struct.pack(">I", number) for number in range(2_000_000))
        protocol.transport.write(sent)
        assert protocol.told == ["pause"]
        protocol.transport.write(b"and this")
        getattr(protocol.transport, end)()
        assert await read(client) == sent + b"and this"
        assert protocol.told == (["pause"] if end == "close" else ["pause", "resume"])
        assert protocol.lost == (end == "close")
        client.close()
        await until(lambda: protocol.lost)
        assert protocol.error is None

    on_sockets(test)


def test_what_one_write_takes_pauses_nobody():
    async def test(sockets, connect):
        client, protocol = await connect()
        protocol.transport.write(b"a" * (HIGH_WATER // 4))
        assert await read(client, HIGH_WATER // 4)
        assert protocol.told == []

    on_sockets(test)


def test_a_paused_client_is_read_when_it_goes_on():
    async def test(sockets, connect):
        client, protocol = await connect()
        other, beside = await connect()
        protocol.transport.pause_reading()
        client.send(b"later")
        other.send(b"now")
        await until(lambda: beside.data == b"now")
        assert protocol.data == b""
        protocol.transport.resume_reading()
        await until(lambda: protocol.data == b"later")
        protocol.transport.pause_reading()
        protocol.transport.write_eof()  # a half-closed connection still hears its client
        protocol.transport.resume_reading()
        client.close()
        await until(lambda: protocol.lost)

    on_sockets(test)


def test_a_reset_and_a_slip_of_the_protocol_cost_one_connection(caplog):
    async def test(sockets, connect):
        client, protocol = await connect()
        failing, fails = await connect()
        other, beside = await connect()
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        client.close()
        failing.send(b"fail")
        await until(lambda: protocol.lost and fails.lost)
        assert isinstance(protocol.error, ConnectionResetError)
        assert isinstance(fails.error, RuntimeError)
        assert "a connection failed, and is closed" in caplog.text
        other.send(b"fine")
        await until(lambda: beside.data == b"fine")

    on_sockets(test)


def test_the_end_for_a_client_that_reset_its_connection():
    async def test(sockets, connect):
        client, protocol = await connect()
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        client.close()
        protocol.transport.write_eof()
        await until(lambda: protocol.lost)
        assert isinstance(protocol.error, OSError)
        for call in ("write_eof", "close", "abort", "resume_reading", "pause_reading"):
            getattr(protocol.transport, call)()
        await asyncio.sleep(0.01)

    on_sockets(test)


def test_a_connection_that_ended_leaves_nothing_to_the_garbage_collector():
    async def test(sockets, connect):
        made = []
        sockets.protocol = lambda: made.append(Recorder()) or made[-1]
        client = socket.create_connection(sockets.listening[0].getsockname()[:2])
        await until(lambda: made)
        client.close()
        await until(lambda: made[0].lost)
        gone = weakref.ref(made.pop())
        await asyncio.sleep(0.01)  # the loop lets go of its last callback
        assert gone() is None

    gc.disable()
    try:
        on_sockets(test)
    finally:
        gc.enable()


def test_connections_that_wait_in_the_kernel_are_served_after_the_port_is_closed():
    async def test(sockets, connect):
        await connect()
        address = sockets.listening[0].getsockname()[:2]
        waiting = [socket.create_connection(address) for _ in range(50)]
        served = []
        sockets.protocol = lambda: served.append(Recorder()) or served[-1]
        sockets.stop_listening()
        assert len(served) == 50
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(address)
        for client, protocol in zip(waiting, served, strict=True):
            protocol.transport.write(b"still here")
            protocol.transport.close()
            client.setblocking(False)
            assert await read(client) == b"still here"
            client.close()

    on_sockets(test)


def test_without_files_for_more_connections_those_there_are_go_on(caplog, monkeypatch):
    monkeypatch.setattr(sockets_module, "REST_S", 0.05)

    class Full:
        """A port whose process has no files left, at first."""

        def __init__(self, port):
            self.port, self.left = port, 2

        def accept(self):
            self.left -= 1
            if self.left >= 0:
                raise OSError(errno.EMFILE, "Too many open files")
            return self.port.accept()

        def __getattr__(self, name):
            return getattr(self.port, name)

    async def test(sockets, connect):
        client, protocol = await connect()
        sockets._accept(full := Full(sockets.listening[0]))
        sockets.listening = [full]
        client.send(b"hello")
        await until(lambda: protocol.data == b"hello")
        await connect()
        assert caplog.text.count("no connection can be accepted") == 2
        assert full.left < 0

    on_sockets(test)


def test_a_taken_port_is_an_error():
    async def main():
        sockets = Sockets(asyncio.get_running_loop(), Recorder)
        with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(OSError, match="in use"):
            await sockets.listen(*taken.getsockname()[:2])
        sockets.close()

    asyncio.run(main())
