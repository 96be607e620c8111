"""A stand-in of the Hugging Face Hub on the loopback address, with the calls of `huggingface_hub`."""

import base64
import hashlib
import json
import re
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote


class Hub(ThreadingHTTPServer):
    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.repositories, self.asked, self.calls, self.tokens = {}, {}, [], set()

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *arguments):
        pass

    def body(self):
        if self.headers.get("transfer-encoding") == "chunked":
            parts = []
            while size := int(self.rfile.readline(), 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(parts)
        return self.rfile.read(int(self.headers.get("content-length", 0)))

    def answer(self, status, value=None, content=None, **headers):
        content = json.dumps(value).encode() if content is None else content
        self.send_response(status)
        for name, text in {"Content-Type": "application/json", **headers}.items():
            self.send_header(name.replace("_", "-"), text)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def handle_call(self):
        body, path = self.body(), unquote(self.path).split("?")[0]
        self.server.calls.append(f"{self.command} {path}")
        self.server.tokens.add(self.headers.get("authorization"))
        for pattern, method in ROUTES.items():
            if found := re.fullmatch(pattern, f"{self.command} {path}"):
                if found.groups() and found[1] not in self.server.repositories:
                    return self.answer(404, {"error": "not found"}, X_Error_Code="RepoNotFound")
                return method(self, body, *found.groups())
        return self.answer(404, {"error": "no such route"})

    do_GET = do_HEAD = do_POST = handle_call  # noqa: N815 - the names that http.server calls

    def create(self, body):
        asked = json.loads(body)
        name = f"{asked['organization']}/{asked['name']}" if asked.get("organization") else asked["name"]
        known = name in self.server.repositories
        self.server.asked[name] = asked
        self.server.repositories.setdefault(name, {})
        self.answer(409 if known else 200, {"url": f"{self.server.url}/{name}", "name": name})

    def validate(self, body):
        self.answer(200, {"errors": [], "warnings": []})

    def preupload(self, body, name):
        files = [
            {**file, "uploadMode": "regular", "shouldIgnore": False} for file in json.loads(body)["files"]
        ]
        self.answer(200, {"files": files})

    def commit(self, body, name):
        lines = [json.loads(line) for line in body.splitlines()]
        for line in lines:
            if line["key"] == "file":
                content = base64.b64decode(line["value"]["content"])
                self.server.repositories[name][line["value"]["path"]] = content
        url = f"{self.server.url}/{name}/commit/{self.sha(name)}"
        self.answer(200, {"commitUrl": url, "commitOid": self.sha(name), "success": True})

    def sha(self, name):
        return hashlib.sha1(repr(sorted(self.server.repositories[name].items())).encode()).hexdigest()  # noqa: S324

    def info(self, body, name):
        files = [{"rfilename": path} for path in self.server.repositories[name]]
        self.answer(200, {"id": name, "modelId": name, "sha": self.sha(name), "siblings": files})

    def tree(self, body, name):
        files = self.server.repositories[name].items()
        self.answer(
            200,
            [
                {"type": "file", "path": path, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}  # noqa: S324
                for path, content in files
            ],
        )

    def resolve(self, body, name, path):
        content = self.server.repositories[name].get(path)
        if content is None:
            return self.answer(404, {"error": "not found"}, X_Error_Code="EntryNotFound")
        tag = hashlib.sha256(content).hexdigest()
        return self.answer(
            200, content=content, ETag=f'"{tag}"', X_Repo_Commit=self.sha(name), Accept_Ranges="bytes"
        )


REPOSITORY = r"([\w-]+/[\w.-]+)"
ROUTES = {
    "POST /api/repos/create": Handler.create,
    "POST /api/validate-yaml": Handler.validate,
    f"POST /api/models/{REPOSITORY}/preupload/main": Handler.preupload,
    f"POST /api/models/{REPOSITORY}/commit/main": Handler.commit,
    f"GET /api/models/{REPOSITORY}(?:/revision/[^/]+)?": Handler.info,
    f"GET /api/models/{REPOSITORY}/tree/[^/]+": Handler.tree,
    f"(?:GET|HEAD) /{REPOSITORY}/resolve/[^/]+/(.+)": Handler.resolve,
}


@contextmanager
def stand_in():
    """Yield a hub that serves."""
    hub = Hub()
    thread = threading.Thread(target=hub.serve_forever)
    thread.start()
    try:
        yield hub
    finally:
        hub.shutdown()
        thread.join()
        hub.server_close()
