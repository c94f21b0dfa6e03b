"""A relay between JAX's client and process 0, inside the client's process.

When process 0 ends, JAX's client (0.10.2) aborts its own process at once, with a stack trace of 40 lines and before any
Python can run. The relay keeps the client's connection open, so the client notices nothing. The relay tells the
process, which can then end in its own way.
"""

import contextlib
import socket
import threading
from collections.abc import Callable

BLOCK = 1 << 16


class Relay:
    """Passes data on between :attr:`address`, a port of this machine, and ``host:port``, in both directions.

    Until :attr:`on_lost` is set, a connection that ``host`` closes is closed here as well, and the client tries again.
    Later the relay leaves such a connection open and calls ``on_lost``.
    """

    def __init__(self, address: str):
        host, _, port = address.rpartition(":")
        self._target = host.strip("[]"), int(port)
        self.on_lost: Callable[[], None] | None = None
        self._server = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._server.getsockname()[1]}"
        _start(self._accept)

    def _accept(self) -> None:
        while True:
            client, _ = self._server.accept()
            try:
                target = socket.create_connection(self._target, timeout=10)
            except OSError:
                client.close()  # the client tries again
                continue
            target.settimeout(None)
            for end in (client, target):
                end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            connection = _Connection(client, target, self)
            _start(connection.pass_on)
            _start(connection.pass_back)


class _Connection:
    """A connection of the client, and the connection to process 0 that belongs to it."""

    def __init__(self, client: socket.socket, target: socket.socket, relay: Relay):
        self._client, self._target, self._relay = client, target, relay
        self._is_closed_here = False

    def pass_on(self) -> None:
        _pump(self._client, self._target)
        self._is_closed_here = True
        with contextlib.suppress(OSError):
            self._target.shutdown(socket.SHUT_RDWR)

    def pass_back(self) -> None:
        _pump(self._target, self._client)
        if self._is_closed_here:
            return
        if self._relay.on_lost is not None:
            self._relay.on_lost()
        else:
            self._client.close()


def _pump(source: socket.socket, sink: socket.socket) -> None:
    """Pass on the data of ``source`` until one of the two ends."""
    with contextlib.suppress(OSError):
        while block := source.recv(BLOCK):
            sink.sendall(block)


def _start(function: Callable[[], None]) -> None:
    threading.Thread(target=function, name="relay", daemon=True).start()
