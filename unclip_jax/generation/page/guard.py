"""Which requests the page answers: an ASGI middleware.

A page on another site can make a browser ask this one, under a name of its own that
it points at this machine (DNS rebinding). So the request's Host must be a name of ours,
and its Origin, which browsers send along, the same.
"""

import ipaddress
import socket
import urllib.parse

LOOPBACK = ("localhost", "127.0.0.1", "::1")
EVERYWHERE = ("0.0.0.0", "::", "")
BODY_MOST = 2**20  # bytes of a request other than an upload


class Guard:
    """Refuses requests for other hosts, from other sites, and with huge bodies."""

    def __init__(self, app, host: str):
        """`app` is what answers the others; `host` is the address listened on."""
        self._app = app
        self._names = {*LOOPBACK, host.lower()}
        self._any_address = host in EVERYWHERE
        if self._any_address:
            self._names |= {socket.gethostname().lower(), socket.getfqdn().lower()}

    async def __call__(self, scope, receive, send) -> None:
        """Answers one request or connection."""
        problem = None
        if scope["type"] in ("http", "websocket"):
            problem = self._problem(scope)
        if problem is None:
            await self._app(scope, receive, send)
            return
        if scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008, "reason": problem[1]})
            return
        status, text = problem
        body, headers = text.encode(), [(b"content-type", b"text/plain; charset=utf-8")]
        await send(
            {"type": "http.response.start", "status": status, "headers": headers}
        )
        await send({"type": "http.response.body", "body": body})

    def _problem(self, scope) -> tuple[int, str] | None:
        """The status and the reason of a refusal."""
        headers = {key: value.decode("latin-1") for key, value in scope["headers"]}
        host = headers.get(b"host", "")
        if not self._is_ours(host):
            return 403, f"host {host!r} is not this page's: open it by its address"
        origin = headers.get(b"origin")
        if origin is not None and urllib.parse.urlsplit(origin).netloc != host:
            return 403, f"a request from {origin!r}, another site, is not answered"
        if scope.get("method") == "POST" and not scope["path"].endswith("/upload"):
            length = headers.get(b"content-length", "")
            if not length.isdecimal():
                return 411, "a request must say how long it is"
            if int(length) > BODY_MOST:
                return 413, f"a request of {int(length):,} bytes: {BODY_MOST:,} at most"
        return None

    def _is_ours(self, host: str) -> bool:
        try:
            name = urllib.parse.urlsplit(f"//{host}").hostname or ""
        except ValueError:
            return False
        if name in self._names:
            return True
        if not self._any_address:
            return False
        try:  # no name can be pointed at us where there is none
            ipaddress.ip_address(name)
        except ValueError:
            return False
        return True
