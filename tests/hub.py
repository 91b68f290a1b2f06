"""A Hugging Face hub of this machine, as far as uploading and loading a model asks for it."""

import base64
import hashlib
import json
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from urllib.parse import unquote, urlsplit

COMMIT = "c" * 40


class Hub(BaseHTTPRequestHandler):
    """Keeps the files of one repository in memory; `server.files` has them by path."""

    protocol_version = "HTTP/1.1"

    def do_POST(self):
        path, body = self._asked()
        if path == "/api/repos/create":
            self.server.created.append(json.loads(body))
            self._answer({"url": f"{self.server.address}/{self.server.name}"})
        elif path == "/api/validate-yaml":
            self._answer({"warnings": [], "errors": []})
        elif path == f"/api/models/{self.server.name}/preupload/main":
            files = [file["path"] for file in json.loads(body)["files"]]
            answer = [{"path": p, "uploadMode": "regular", "shouldIgnore": False} for p in files]
            self._answer({"files": answer})
        elif path == f"/api/models/{self.server.name}/commit/main" and self.server.takes:
            self._commit([json.loads(line) for line in body.splitlines()])
            address = f"{self.server.address}/{self.server.name}/commit/{COMMIT}"
            self._answer({"commitUrl": address, "commitOid": COMMIT})
        else:
            self._answer({"error": "no"}, 403)

    def _commit(self, lines):
        for line in lines:
            value = line["value"]
            if line["key"] == "file":
                self.server.files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "deletedFile":
                del self.server.files[value["path"]]

    def do_GET(self):
        path, _ = self._asked()
        model = f"/api/models/{self.server.name}"
        if path.startswith(f"{model}/tree/"):
            self._answer([self._entry(name) for name in self.server.files])
        elif path in (model, f"{model}/revision/main", f"{model}/revision/{COMMIT}"):
            siblings = [{"rfilename": name} for name in self.server.files]
            self._answer({"id": self.server.name, "sha": COMMIT, "siblings": siblings})
        else:
            self._send_file(path)

    def do_HEAD(self):
        self._send_file(self._asked()[0])

    def _send_file(self, path):
        _, _, name = path.partition("/resolve/")
        content = self.server.files.get(name.partition("/")[2])
        if content is None:
            self._answer({"error": "no such file"}, 404, **{"X-Error-Code": "EntryNotFound"})
        else:
            etag = hashlib.sha1(content).hexdigest()
            self._answer(content, **{"ETag": f'"{etag}"', "X-Repo-Commit": COMMIT})

    def _entry(self, name):
        content = self.server.files[name]
        oid = hashlib.sha1(content).hexdigest()
        return {"type": "file", "path": name, "size": len(content), "oid": oid}

    def _asked(self):
        length = int(self.headers.get("Content-Length") or 0)
        path = unquote(urlsplit(self.path).path)
        self.server.asked.append(f"{self.command} {path}")
        return path, self.rfile.read(length)

    def _answer(self, content, status=200, **headers):
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in {"Content-Length": len(body), **headers}.items():
            self.send_header(name, str(value))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, *_):
        pass


@contextmanager
def hub(name):
    """Serves one repository.

    Args:
        name: its id, "owner/name".

    Yields:
        The server: `address`, `files` by path, `created` (what was asked to be made), `asked` (all
        requests), and `takes`, which may be set to False to have it refuse a commit.
    """
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    server.name, server.takes = name, True
    server.address = f"http://127.0.0.1:{server.server_address[1]}"
    server.files, server.created, server.asked = {}, [], []
    thread = Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
