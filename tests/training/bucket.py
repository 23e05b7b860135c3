"""A bucket in this process's memory, under gs://, as Google's servers would have it.

What `serve()` replaces is the outside: tensorstore talks HTTP to a server here, epath
goes to an fsspec file system, and orbax's question about the bucket's kind is answered.
Objects are flat: no folders, no renaming, no appending, and an object is there when all
of it was sent. Nothing of it is a local path.
"""

import http.server
import json
import os
import sys
import threading
import types
import urllib.parse

import fsspec


class Objects:
    """name ("bucket/key") -> bytes, with the generation that counts its writes."""

    def __init__(self):
        self.found, self.generation, self.lock = {}, 0, threading.Lock()

    def put(self, name: str, data: bytes, wanted: str | None = None) -> int | None:
        """The new generation; None where another than the wanted one is there."""
        with self.lock:
            there = self.found.get(name, (b"", 0))[1]
            if wanted is not None and int(wanted) != there:
                return None
            self.generation += 1
            self.found[name] = data, self.generation
            return self.generation


def serve() -> Objects:
    """Makes gs:// work. Call it before jax, orbax or epath open anything."""
    objects = Objects()
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _handler(objects))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    os.environ["TENSORSTORE_GCS_HTTP_URL"] = f"http://127.0.0.1:{server.server_port}"
    os.environ["EPATH_USE_TF"] = "false"  # TensorFlow's client knows one server only
    _FileSystem.objects = objects
    for name in ("gcs", "gs"):
        fsspec.register_implementation(name, _FileSystem, clobber=True)
    kind = types.SimpleNamespace(hierarchical_namespace_enabled=False)
    client = types.SimpleNamespace(get_bucket=lambda name: kind)
    storage = types.ModuleType("google.cloud.storage")
    storage.Client = lambda: client
    cloud = types.ModuleType("google.cloud")
    cloud.storage = storage
    sys.modules |= {"google.cloud": cloud, "google.cloud.storage": storage}
    return objects


class _FileSystem(fsspec.AbstractFileSystem):
    protocol = ("gcs", "gs")
    objects: Objects

    def __init__(self, **options):
        super().__init__(use_listings_cache=False)

    def ls(self, path, detail=True, **_):
        path = self._strip_protocol(path).rstrip("/")
        found = {}
        for name, (data, _) in list(self.objects.found.items()):
            if name == path:
                found[name] = {"name": name, "size": len(data), "type": "file"}
            elif name.startswith(f"{path}/"):
                child = f"{path}/" + name[len(path) + 1 :].split("/")[0]
                file = child == name
                size = len(data) if file else 0
                kind = "file" if file else "directory"
                found[child] = {"name": child, "size": size, "type": kind}
        if not found and "/" in path:
            raise FileNotFoundError(path)
        rows = [found[name] for name in sorted(found)]
        return rows if detail else [row["name"] for row in rows]

    def listdir(self, path, detail=True, **_):
        return self.ls(path, detail)

    def makedirs(self, path, exist_ok=False):
        """Nothing: there are no folders."""

    def mkdir(self, path, create_parents=True, **_):
        """Likewise."""

    def rmdir(self, path):
        """Likewise."""

    def rm_file(self, path):
        path = self._strip_protocol(path)
        with self.objects.lock:
            self.objects.found.pop(path, None)

    def cp_file(self, path1, path2, **_):
        if (name := self._strip_protocol(path1)) in self.objects.found:  # no folder
            self.objects.put(self._strip_protocol(path2), self.objects.found[name][0])

    def _open(self, path, mode="rb", **_):
        if "a" in mode:
            raise NotImplementedError(f"append to the object {path}")
        return _File(self, path, mode)


class _File(fsspec.spec.AbstractBufferedFile):
    """Read by ranges; written when closed."""

    def _fetch_range(self, start, end):
        return self.fs.objects.found[self.path][0][start:end]

    def _initiate_upload(self):
        self._parts = []

    def _upload_chunk(self, final=False):
        self._parts.append(self.buffer.getvalue())
        if final:
            self.fs.objects.put(self.path, b"".join(self._parts))
        return True


def _handler(objects: Objects):
    """The part of the JSON API that tensorstore uses."""

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_):
            pass

        def _asked(self):
            url = urllib.parse.urlsplit(self.path)
            query = dict(urllib.parse.parse_qsl(url.query))
            bucket, _, key = url.path.partition("/b/")[2].partition("/o")
            return query, bucket, urllib.parse.unquote(key.removeprefix("/"))

        def _answer(self, code, body=b"", **headers):
            self.send_response(code)
            for name, value in headers.items():
                self.send_header(name.replace("_", "-"), str(value))
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def _meta(self, code, name):
            data, generation = objects.found[name]
            described = {
                "name": name.partition("/")[2],
                "size": str(len(data)),
                "generation": str(generation),
            }
            self._answer(code, json.dumps(described).encode())

        def do_GET(self):
            query, bucket, key = self._asked()
            if not key:
                return self._list(query, bucket)
            data, generation = objects.found.get(f"{bucket}/{key}", (b"", 0))
            if not generation:
                return self._answer(404)
            if query.get("ifGenerationNotMatch") == str(generation):
                return self._answer(304)
            wanted = query.get("ifGenerationMatch")
            if wanted is not None and wanted != str(generation):
                return self._answer(412)
            if query.get("alt") != "media":
                return self._meta(200, f"{bucket}/{key}")
            about = {"x-goog-generation": generation}
            span = self.headers.get("Range")
            if not span:
                return self._answer(200, data, **about)
            first, _, last = span.removeprefix("bytes=").partition("-")
            if first:
                first, last = int(first), min(int(last or len(data)), len(data) - 1)
            else:
                first, last = max(0, len(data) - int(last)), len(data) - 1
            about["Content-Range"] = f"bytes {first}-{last}/{len(data)}"
            self._answer(206, data[first : last + 1], **about)

        def _list(self, query, bucket):
            prefix = f"{bucket}/{query.get('prefix', '')}"
            names = [n for n in sorted(list(objects.found)) if n.startswith(prefix)]
            items = [
                {"name": n.partition("/")[2], "size": str(len(objects.found[n][0]))}
                for n in names
            ]
            self._answer(200, json.dumps({"items": items}).encode())

        def do_POST(self):
            query, bucket, _ = self._asked()
            data = self.rfile.read(int(self.headers["Content-Length"]))
            name = f"{bucket}/{query['name']}"
            if objects.put(name, data, query.get("ifGenerationMatch")) is None:
                return self._answer(412)
            self._meta(200, name)

        def do_DELETE(self):
            _, bucket, key = self._asked()
            with objects.lock:
                there = objects.found.pop(f"{bucket}/{key}", None)
            self._answer(204 if there else 404)

    return Handler
