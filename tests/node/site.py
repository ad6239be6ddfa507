"""A web application for browsers that runs in a sprite: python3 site.py PORT.

/seen       the fields of this request, and how many times something was posted, as JSON
/ws         a WebSocket (RFC 6455): says the field Cookie of its request, then sends back short texts
otherwise   a page that says which host it is of, and leaves a cookie

What is posted is counted, wherever it goes.
"""

from __future__ import annotations

import base64
import hashlib
import html
import json
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

# The icon of nothing, so that a browser asks for none after the page is there.
PAGE = '<!doctype html><title>An application</title><link rel="icon" href="data:,"><h1>{host}</h1>'
_GUID = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"  # RFC 6455 1.3
_FIN_TEXT, _CLOSE = 0x81, 0x88


class Site(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    posts = 0

    def do_GET(self) -> None:
        if self.path == "/ws":
            self.talk()
        elif self.path == "/seen":
            seen = {"fields": self.headers.items(), "posts": Site.posts}
            self.reply("application/json", json.dumps(seen))
        else:
            self.reply("text/html", PAGE.format(host=html.escape(self.headers["Host"])), "its=own; Path=/")

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length", "0")))
        Site.posts += 1
        self.reply("text/plain", "taken")

    def reply(self, kind: str, text: str, cookie: str = "") -> None:
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(text.encode())))
        if cookie:
            self.send_header("Set-Cookie", cookie)
        self.end_headers()
        self.wfile.write(text.encode())

    def talk(self) -> None:
        key = self.headers["Sec-WebSocket-Key"]
        self.send_response(101)
        self.send_header("Connection", "Upgrade")
        self.send_header("Upgrade", "websocket")
        self.send_header(
            "Sec-WebSocket-Accept", base64.b64encode(hashlib.sha1((key + _GUID).encode()).digest()).decode()
        )
        self.end_headers()
        self.say(self.headers.get("Cookie", "").encode())
        while (head := self.rfile.read(2)) and head[0] != _CLOSE:
            mask = self.rfile.read(4)
            text = self.rfile.read(head[1] & 0x7F)
            self.say(bytes(byte ^ mask[place % 4] for place, byte in enumerate(text)))
        self.close_connection = True

    def say(self, text: bytes) -> None:
        self.wfile.write(bytes([_FIN_TEXT, len(text)]) + text)


if __name__ == "__main__":
    ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Site).serve_forever()
