"""A server's sockets on one event loop: a lean stand-in for asyncio's transports, for clients by the thousand.

    sockets = Sockets(loop, lambda: Connection(server))     # an asyncio.Protocol
    await sockets.listen("127.0.0.1", 8080)
    sockets.stop_listening()

All clients lie in one selector, which the loop watches as a single file: one callback serves all that are ready. A
client that closes its sending side counts as gone.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import selectors
import socket
from collections.abc import Callable

log = logging.getLogger(__name__)
BACKLOG = 1024  # connections that wait to be accepted
READ_BYTES = 262144  # that one read may bring
HIGH_WATER, LOW_WATER = 65536, 16384  # unsent bytes from which on the protocol is to pause, and to go on
REST_S = 1.0  # without accepting, where the process can open no more files
NO_MORE = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)
READ, WRITE = selectors.EVENT_READ, selectors.EVENT_WRITE


class Sockets:
    """Ports, and the connections that came through them."""

    def __init__(self, loop: asyncio.AbstractEventLoop, protocol: Callable[[], asyncio.Protocol]):
        self.loop, self.protocol = loop, protocol
        self.listening: list[socket.socket] = []
        self.selector, self.received = selectors.DefaultSelector(), memoryview(bytearray(READ_BYTES))
        loop.add_reader(self.selector.fileno(), self._serve)

    async def listen(self, host: str, port: int, reuse_port: bool = False) -> None:
        """Accept from now on. Raises OSError where the address cannot be had."""
        bound = await self.loop.create_server(
            self.protocol, host, port, reuse_port=reuse_port or None, start_serving=False
        )
        self.listening = [held.dup() for held in bound.sockets]
        bound.close()
        for listening in self.listening:
            listening.setblocking(False)
            listening.listen(BACKLOG)
        self._accept_on()

    def stop_listening(self) -> None:
        """Take the connections that the kernel has made already, then close: closing at once would reset them."""
        ports, self.listening = self.listening, []
        for port in ports:
            self.loop.remove_reader(port.fileno())
            self._accept(port)
            port.close()

    def close(self) -> None:
        """The connections must be closed before."""
        self.loop.remove_reader(self.selector.fileno())
        self.selector.close()

    def _accept_on(self) -> None:
        for port in self.listening:
            self.loop.add_reader(port.fileno(), self._accept, port)

    def _accept(self, port: socket.socket) -> None:
        for _ in range(BACKLOG + 1):  # the kernel takes one more than it is told
            try:
                client, _ = port.accept()
            except BlockingIOError:
                return
            except ConnectionAbortedError:
                continue
            except OSError as error:
                if error.errno not in NO_MORE:
                    raise
                log.error("no connection can be accepted for %.0f s: %s", REST_S, error)
                for held in self.listening:
                    self.loop.remove_reader(held.fileno())
                self.loop.call_later(REST_S, self._accept_on)
                return
            Transport(self, client)

    def _serve(self) -> None:
        for key, events in self.selector.select(0):
            key.data(events)


class Transport:
    """One client's socket: of asyncio.Transport what a server needs. The constructor calls `connection_made`."""

    __slots__ = ("closing", "eof", "paused", "protocol", "socket", "sockets", "unsent", "watched")

    def __init__(self, sockets: Sockets, client: socket.socket):
        client.setblocking(False)
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.sockets, self.socket, self.unsent = sockets, client, bytearray()
        self.watched, self.closing, self.eof, self.paused = READ, False, False, False
        self.protocol = sockets.protocol()
        sockets.selector.register(client, READ, self._ready)
        self.protocol.connection_made(self)

    def _ready(self, events: int) -> None:
        try:
            if events & WRITE:
                self._send_rest()
            if events & READ & self.watched:
                self._read()
        except Exception as error:  # a slip of the protocol must not cost the others
            log.exception("a connection failed, and is closed")
            self._lose(error)

    def _read(self) -> None:
        received = self.sockets.received
        try:
            count = self.socket.recv_into(received)
        except BlockingIOError:
            return
        except OSError as error:
            self._lose(error)
            return
        if count:
            self.protocol.data_received(bytes(received[:count]))
        else:
            self.close()

    def write(self, data: bytes) -> None:
        """Send now what the socket takes, and the rest when it can."""
        if self.closing:
            return
        sent = 0 if self.unsent else self._send(data)
        if sent < len(data) and not self.closing:
            self.unsent += memoryview(data)[sent:]
            self._watch(self.watched | WRITE)
            if len(self.unsent) > HIGH_WATER and not self.paused:
                self.paused = True
                self.protocol.pause_writing()

    def _send(self, data: bytes | bytearray) -> int:
        try:
            return self.socket.send(data)
        except BlockingIOError:
            return 0
        except OSError as error:
            self._lose(error)
            return 0

    def _send_rest(self) -> None:
        del self.unsent[: self._send(self.unsent)]
        if not self.unsent and self.watched & WRITE:
            self._watch(self.watched & ~WRITE)
            if self.closing:
                self._lose(None)
            elif self.eof:
                self._shut()
        if self.paused and len(self.unsent) <= LOW_WATER and not self.closing:
            self.paused = False
            self.protocol.resume_writing()

    def _watch(self, events: int) -> None:
        if events == self.watched:
            return
        selector, before, self.watched = self.sockets.selector, self.watched, events
        if not events:
            selector.unregister(self.socket)
        elif before:
            selector.modify(self.socket, events, self._ready)
        else:
            selector.register(self.socket, events, self._ready)

    def pause_reading(self) -> None:
        """What arrives from now on waits in the kernel."""
        self._watch(self.watched & ~READ)

    def resume_reading(self) -> None:
        """Undo `pause_reading`."""
        if not self.closing:
            self._watch(self.watched | READ)

    def write_eof(self) -> None:
        """Close the sending side, after what is unsent; the client is still heard."""
        if not (self.closing or self.eof):
            self.eof = True
            if not self.unsent:
                self._shut()

    def _shut(self) -> None:
        try:
            self.socket.shutdown(socket.SHUT_WR)
        except OSError as error:  # the client has reset the connection, as proxies do
            self._lose(error)

    def close(self) -> None:
        """Read no more, and close after what is unsent."""
        if not self.closing:
            self.closing = True
            self._watch(self.watched & ~READ)
            if not self.unsent:
                self._lose(None)

    def abort(self) -> None:
        """Close now; what is unsent is lost."""
        self._lose(None)

    def _lose(self, error: Exception | None) -> None:
        if self.socket.fileno() < 0:  # it is lost already
            return
        self._watch(0)
        self.closing = True
        self.unsent.clear()
        self.socket.close()
        self.sockets.loop.call_soon(self.protocol.connection_lost, error)
        self.protocol = None  # no circle, which only the garbage collector would find
