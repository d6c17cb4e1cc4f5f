"""HTTP servers in threads of a test: an application's, and one that takes what is posted."""

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from socketserver import BaseServer
from typing import Any

from werkzeug.serving import make_server

Answer = tuple[int, Mapping[str, str], bytes]


@contextmanager
def in_a_thread(server: BaseServer) -> Iterator[str]:
    """A server that is bound to a port answers; gives `127.0.0.1:port`."""
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), name="http-server")
    thread.start()
    try:
        yield f"127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@contextmanager
def serving(application: Any) -> Iterator[str]:
    """The address of a WSGI application under werkzeug's server."""
    with in_a_thread(make_server("127.0.0.1", 0, application, threaded=True)) as address:
        yield address


@contextmanager
def taking_posts(take: Callable[[str, dict[str, str], bytes], Answer], port: int = 0) -> Iterator[str]:
    """The address of a server that answers each POST with what `take` gives for its path, its headers (names in lower case) and its body:
    status, headers, body. `take` is called in several threads.
    """

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            status, headers, answer = take(self.path, {name.lower(): text for name, text in self.headers.items()}, body)
            self.send_response(status)
            for name, text in (headers if status == 204 else {**headers, "Content-Length": str(len(answer))}).items():
                self.send_header(name, text)
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, *_: object) -> None:
            """Nothing on standard error."""

    server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
    server.daemon_threads = False
    with in_a_thread(server) as address:
        yield address
