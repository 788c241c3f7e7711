"""An HTTP server on localhost for tests, in a thread of its own."""

import http.server
import threading


class LocalServer:
    """A server whose handlers know it by an attribute.

    Args:
      handler: class of the handlers.
      name: of their attribute that holds this object.

    Attributes:
      url: address of the server.
    """

    def __init__(self, handler, name):
        bound = type("Handler", (handler,), {name: self})
        self._http = http.server.ThreadingHTTPServer(("127.0.0.1", 0), bound)
        self.url = f"http://127.0.0.1:{self._http.server_port}"
        threading.Thread(
            target=self._http.serve_forever, args=(0.02,), daemon=True
        ).start()

    def close(self):
        self._http.shutdown()
        self._http.server_close()
