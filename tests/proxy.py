"""A way to a server that can be cut, or go silent while both ends believe that it is there."""

from __future__ import annotations

import selectors
import socket
import threading
from urllib.parse import quote

from psycopg.conninfo import conninfo_to_dict


class Proxy:
    """Listens on ``port`` and passes everything on to a Postgres server; ``url`` leads through."""

    def __init__(self, database_url: str) -> None:
        told = conninfo_to_dict(database_url)
        host, number = str(told.get("host", "localhost")), str(told.get("port") or 5432)
        self._target: str | tuple[str, int] = (
            f"{host}/.s.PGSQL.{number}" if host.startswith("/") else (host, int(number))
        )
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listening.getsockname()[1]
        user, name = told.get("user") or "", told["dbname"]
        self.url = f"postgresql://{quote(str(user))}@127.0.0.1:{self.port}/{name}"
        self._flows = threading.Event()
        self._flows.set()
        self._pairs: list[tuple[socket.socket, socket.socket]] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def freeze(self) -> None:
        """Pass nothing on, and close nothing."""
        self._flows.clear()

    def thaw(self) -> None:
        """Pass on again, what came meanwhile first."""
        self._flows.set()

    def close(self) -> None:
        """Cut every connection, and let none in."""
        self._listening.close()
        for pair in self._pairs:
            for end in pair:
                end.close()
        self._flows.set()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listening.accept()
                server = self._reach()
            except OSError:
                return
            self._pairs.append((client, server))
            threading.Thread(target=self._pass_on, args=(client, server), daemon=True).start()

    def _reach(self) -> socket.socket:
        if isinstance(self._target, tuple):
            return socket.create_connection(self._target)
        server = socket.socket(socket.AF_UNIX)
        server.connect(self._target)
        return server

    def _pass_on(self, client: socket.socket, server: socket.socket) -> None:
        other = {client: server, server: client}
        with selectors.DefaultSelector() as ready, client, server:
            for end in other:
                ready.register(end, selectors.EVENT_READ)
            try:
                while True:
                    for key, _ in ready.select():
                        self._flows.wait()
                        end = key.fileobj
                        data = end.recv(1 << 16)  # type: ignore[union-attr]
                        if not data:
                            return
                        other[end].sendall(data)  # type: ignore[index]
            except OSError:
                return
