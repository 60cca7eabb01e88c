"""A fake of the Hugging Face Hub, over real HTTP on the loopback interface, that takes models."""

import base64
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class FakeHub:
    """Serves what `create_repo` and `upload_folder` ask for, in a thread.

    Args:
        token: The token that it requires.
        private: Whether a repository that is there already is private; None without one.
        refuse: Part of a path -> the status of its answer.
    """

    def __init__(self, token="secret-token", private=None, refuse=None):
        self.token = token
        self.private = private
        self.refuse = refuse or {}
        self.files = {}
        """Path in the repository -> content, as committed."""
        self.asked = []
        """Paths of all requests."""
        self._blobs = {}

    def __enter__(self):
        hub = self

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *said): ...

            def _answer(self):
                body = self.rfile.read(int(self.headers.get("content-length", 0)))
                status, reply = hub._reply(self.path, self.headers, body)
                data = json.dumps(reply).encode()
                self.send_response(status)
                self.send_header("content-type", "application/json")
                self.send_header("content-length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            do_GET = do_POST = do_PUT = _answer

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()
        return self

    def __exit__(self, *error):
        self._server.shutdown()
        self._server.server_close()

    def _reply(self, path, headers, body):
        self.asked.append(path)
        for part, status in self.refuse.items():
            if part in path:
                return status, {"error": f"refused with {status}: {headers.get('authorization')}"}
        if path.startswith("/lfs/"):
            self._blobs[path.removeprefix("/lfs/")] = body
            return 200, {}
        if headers.get("authorization") != f"Bearer {self.token}":
            return 401, {"error": "Invalid credentials in Authorization header"}
        if path == "/api/repos/create":
            asked = json.loads(body)
            url = f"{self.url}/{asked['organization']}/{asked['name']}"
            if self.private is not None:
                return 409, {"error": "You already created this model repo", "url": url}
            self.private = asked.get("visibility") == "private"
            return 200, {"url": url}
        if path == "/api/validate-yaml":
            return 200, {"errors": [], "warnings": []}
        if path.endswith("/preupload/main"):
            return 200, {"files": [_mode(file["path"]) for file in json.loads(body)["files"]]}
        if path.endswith(".git/info/lfs/objects/batch"):
            return 200, {
                "transfer": "basic",
                "objects": [self._place(one) for one in json.loads(body)["objects"]],
            }
        if path.endswith("/commit/main"):
            self._commit([json.loads(line) for line in body.splitlines()])
            return 200, {"commitUrl": f"{self.url}/x/y/commit/1", "commitOid": "1", "hookOutput": ""}
        return 200, {"id": path.removeprefix("/api/models/"), "private": self.private, "siblings": []}

    def _place(self, blob):
        href = f"{self.url}/lfs/{blob['oid']}"
        return blob | {"actions": {"upload": {"href": href}}}

    def _commit(self, lines):
        for line in lines:
            value = line["value"]
            if line["key"] == "file":
                self.files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                self.files[value["path"]] = self._blobs[value["oid"]]


def _mode(path):
    return {
        "path": path,
        "shouldIgnore": False,
        "uploadMode": "lfs" if path.endswith(".safetensors") else "regular",
    }
