"""A web server on loopback that delivers one file well or badly."""

from __future__ import annotations

import contextlib
import http.server
import threading
import time


class _Handler(http.server.BaseHTTPRequestHandler):
  protocol_version = "HTTP/1.1"

  def log_message(self, *_):
    pass

  def do_GET(self):
    server, name = self.server, self.path.rpartition("/")[2]
    server.requests.append(self.path)
    content = b"" if name == "empty" else server.content
    if name == "absent" or name == "broken":
      self.send_error(404 if name == "absent" else 503)
    elif name == "moved":
      self.send_response(302)
      self.send_header("Location", "/elsewhere/whole")
      self.send_header("Content-Length", "0")
      self.end_headers()
    elif name == "chunked":
      self.send_response(200)
      self.send_header("Transfer-Encoding", "chunked")
      self.end_headers()
      self.wfile.write(b"%x\r\n%s\r\n0\r\n\r\n" % (len(content), content))
    else:
      self._send(name, content)
    self.close_connection = True

  def _send(self, name, content):
    self.send_response(200)
    kind = "text/html" if name == "page" else "application/octet-stream"
    self.send_header("Content-Type", kind)
    if name != "endless":
      self.send_header("Content-Length", str(len(content)))
    self.end_headers()
    half = len(content) // 2
    self.wfile.write(content[:half])
    self.wfile.flush()
    if name == "cut":
      return
    if name == "silent":
      self.server.released.wait(60)
    elif name == "slow":
      time.sleep(0.6)
    with contextlib.suppress(OSError):
      self.wfile.write(content[half:])


@contextlib.contextmanager
def serve(content: bytes):
  """Yields a server of `content`; the end of a path says how it is sent.

  whole (or any other name), cut, silent after half, slow, endless (without its
  length), chunked, page, moved, absent, broken. `requests` are the paths asked
  for; `released` ends the silence.
  """
  server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
  server.content, server.requests = content, []
  server.released = threading.Event()
  server.url = f"http://127.0.0.1:{server.server_address[1]}"
  thread = threading.Thread(target=server.serve_forever, args=(0.05,))
  thread.start()
  try:
    yield server
  finally:
    server.released.set()
    server.shutdown()
    thread.join()
    server.server_close()
