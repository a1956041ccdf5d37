"""Serves a stand-in for Google Cloud Storage on 127.0.0.1, for `gs://` paths without a network.

It speaks the parts of the JSON API (https://cloud.google.com/storage/docs/json_api/v1) that four clients
need: gcsfs, under `etils.epath` (which orbax uses for directories, metadata and `commit_success.txt`);
TensorStore's driver `gcs` (array data); google-cloud-storage (which orbax asks whether a bucket has folders);
and that of array_record. `environment` points all of them here, so unchanged programs use it, also in other
processes:

    with FakeGcs() as gcs, mock.patch.dict(os.environ, gcs.environment):
        epath.Path("gs://bucket/run/a.txt").write_text("a")
        assert gcs.objects["bucket", "run/a.txt"].data == b"a"

Set the variables before gcsfs is imported, which happens at the first use of `gs://`. Use one server, and a
bucket for each test, because gcsfs caches listings.

Like the original it keeps a flat set of objects, which appear whole or not at all, without directories,
appending or locks. It has any number of buckets, without authentication, versions or folders. `refuse` makes
requests fail, as a network or a killed process would.
"""

import contextlib
import dataclasses
import email
import email.policy
import http.server
import itertools
import json
import pathlib
import re
import threading
import time
import urllib.parse
from collections.abc import Callable

from benchmarks import workers


@dataclasses.dataclass
class Object:
    """One version of an object."""

    data: bytes
    generation: int
    updated: float = dataclasses.field(default_factory=time.time)

    def resource(self, bucket: str, name: str) -> dict:
        """Returns its metadata in the API's form."""
        when = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(self.updated))
        when += f".{int(self.updated % 1 * 1000):03d}Z"
        return {
            "kind": "storage#object",
            "bucket": bucket,
            "name": name,
            "size": str(len(self.data)),
            "generation": str(self.generation),
            "metageneration": "1",
            "timeCreated": when,
            "updated": when,
        }


class Refused(Exception):
    """Ends a request with a status."""

    def __init__(self, status: int, message: str = ""):
        super().__init__(message)
        self.status = status


class FakeGcs:
    """The server and its objects; use it as a context manager.

    Attributes:
      objects: from (bucket, name) to the object.
      requests: (method, path with query) of every request so far.
      sent: how many bytes of object content were sent so far.
      refuse: maps method and path to a status to answer with, or None.
    """

    def __init__(self) -> None:
        self.objects: dict[tuple[str, str], Object] = {}
        self.uploads: dict[str, tuple[str, str, dict, bytearray]] = {}
        self.requests: list[tuple[str, str]] = []
        self.sent = 0
        self.refuse: Callable[[str, str], int | None] = lambda method, path: None
        self.lock = threading.RLock()
        self._generations = itertools.count(int(time.time() * 1e6))
        handler = type("Handler", (_Handler,), {"store": self})
        self._server = _Server(("127.0.0.1", 0), handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self.environment = {
            "STORAGE_EMULATOR_HOST": self.url,  # gcsfs and google-cloud-storage
            "FSSPEC_GCS": '{"token": "anon"}',  # gcsfs: no search for credentials (read when imported)
            "NO_GCE_CHECK": "true",  # google-auth: no request to the network for them
            "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false",  # gcsfs: no gRPC call for the bucket's kind
            "TENSORSTORE_GCS_HTTP_URL": self.url,
            "CLOUD_STORAGE_EMULATOR_ENDPOINT": self.url,  # array_record
            "GOOGLE_AUTH_TOKEN_FOR_TESTING": "none",  # TensorStore: no search for credentials
            "EPATH_USE_TF": "false",  # etils: gcsfs, even with TensorFlow installed
        }

    def __enter__(self) -> "FakeGcs":
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *_) -> None:
        self._server.shutdown()
        self._server.server_close()

    def names(self, bucket: str, prefix: str = "") -> list[str]:
        """Returns the names of a bucket's objects that begin with a prefix."""
        with self.lock:
            return sorted(n for b, n in self.objects if b == bucket and n.startswith(prefix))

    def get(self, bucket: str, name: str, query: dict) -> Object:
        """Returns an object that must exist and meet the request's conditions."""
        with self.lock:
            self._check(bucket, name, query)
            if (bucket, name) not in self.objects:
                raise Refused(404, f"No such object: {bucket}/{name}")
            return self.objects[bucket, name]

    def put(self, bucket: str, name: str, query: dict, data: bytes) -> dict:
        """Writes an object if the conditions are met, and returns its metadata."""
        with self.lock:
            self._check(bucket, name, query)
            self.objects[bucket, name] = Object(bytes(data), next(self._generations))
            return self.objects[bucket, name].resource(bucket, name)

    def delete(self, bucket: str, name: str, query: dict) -> None:
        """Deletes an object that must exist, if the conditions are met."""
        with self.lock:
            self.get(bucket, name, query)
            del self.objects[bucket, name]

    def list(self, bucket: str, query: dict) -> dict:
        """Returns one page of a listing; a page token is the page's first name."""
        prefix, delimiter = query.get("prefix", ""), query.get("delimiter")
        first = max(query.get("startOffset", ""), query.get("pageToken", ""))
        limit, items, prefixes = int(query.get("maxResults", 1000)), [], {}
        page = {"kind": "storage#objects"}
        for name in self.names(bucket, prefix):
            end = query.get("endOffset")
            if name < first or (end and name >= end):
                continue
            rest, found, _ = name[len(prefix) :].partition(delimiter) if delimiter else ("", "", "")
            group = prefix + rest + found
            if found and group in prefixes:
                continue
            if len(items) + len(prefixes) == limit:
                page["nextPageToken"] = name
                break
            if found:
                prefixes[group] = None
            elif (bucket, name) in self.objects:
                items.append(self.objects[bucket, name].resource(bucket, name))
        return page | {"items": items, "prefixes": list(prefixes)}

    def _check(self, bucket: str, name: str, query: dict) -> None:
        there = self.objects.get((bucket, name))
        generation = str(there.generation) if there else "0"
        if query.get("ifGenerationMatch", generation) != generation:
            raise Refused(412, "conditionNotMet")
        if query.get("ifGenerationNotMatch") == generation:
            raise Refused(304)


class _Server(http.server.ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 128  # a client that finds the queue full retries only after a second


class _Handler(http.server.BaseHTTPRequestHandler):
    """Answers one connection's requests."""

    store: FakeGcs
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = -1  # one piece per response: otherwise each header block waits for a delayed ACK

    def _handle(self) -> None:
        url = urllib.parse.urlsplit(self.path)
        query = dict(urllib.parse.parse_qsl(url.query, keep_blank_values=True))
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.store.requests.append((self.command, self.path))
        headers = {"Content-Type": "application/json"}
        try:
            if status := self.store.refuse(self.command, self.path):
                raise Refused(status, "refused")
            for method, pattern, function in _ROUTES:
                found = re.fullmatch(pattern, url.path)
                if found and self.command in method:
                    names = [urllib.parse.unquote(part) for part in found.groups()]
                    status, answer = function(self, headers, query, body, *names)
                    break
            else:
                raise Refused(501, f"{self.command} {self.path} is not part of the stand-in")
        except Refused as error:
            status, answer = error.status, {"error": {"code": error.status, "message": str(error)}}
        payload = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
        if status in (204, 304):
            payload = b""
        self.send_response(status)
        for name, value in (headers | {"Content-Length": str(len(payload))}).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(payload)
        self.wfile.flush()

    do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = _handle

    def handle_expect_100(self) -> bool:
        super().handle_expect_100()
        self.wfile.flush()  # or curl waits a second before it sends more than a megabyte
        return True

    def _bucket(self, headers, query, body, bucket):
        return 200, {"kind": "storage#bucket", "name": bucket, "id": bucket}

    def _list(self, headers, query, body, bucket):
        return 200, self.store.list(bucket, query)

    def _get(self, headers, query, body, bucket, name):
        found = self.store.get(bucket, name, query)
        if query.get("alt") != "media":
            return 200, found.resource(bucket, name)
        headers["Content-Type"] = "application/octet-stream"
        headers["X-Goog-Generation"] = str(found.generation)
        size = len(found.data)
        if not (span := re.fullmatch(r"bytes=(\d*)-(\d*)", self.headers.get("Range", ""))):
            self.store.sent += size
            return 200, found.data
        first, last = span.groups()
        if not first:
            first, last = max(size - int(last), 0), size - 1
        first, last = int(first), min(int(last or size - 1), size - 1)
        if first >= size:
            raise Refused(416, "requested range not satisfiable")
        self.store.sent += last + 1 - first
        headers["Content-Range"] = f"bytes {first}-{last}/{size}"
        return 206, found.data[first : last + 1]

    def _delete(self, headers, query, body, bucket, name):
        self.store.delete(bucket, name, query)
        return 204, b""

    def _copy(self, headers, query, body, bucket, name, to_bucket, to_name):
        with self.store.lock:
            found = self.store.get(bucket, name, {})
            resource = self.store.put(to_bucket, to_name, query, found.data)
        size = resource["size"]
        done = {"kind": "storage#rewriteResponse", "done": True, "objectSize": size}
        return 200, done | {"totalBytesRewritten": size, "resource": resource}

    def _move(self, headers, query, body, bucket, name, to_name):
        with self.store.lock:
            found = self.store.get(bucket, name, {})
            resource = self.store.put(bucket, to_name, query, found.data)
            self.store.delete(bucket, name, {})
        return 200, resource

    def _upload(self, headers, query, body, bucket):
        kind = query.get("uploadType")
        if kind == "media":
            return 200, self.store.put(bucket, query["name"], query, body)
        if kind == "multipart":
            head = f"Content-Type: {self.headers['Content-Type']}\r\n\r\n".encode()
            message = email.message_from_bytes(head + body, policy=email.policy.HTTP)
            name = json.loads(message.get_payload(0).get_payload())["name"]
            # The e-mail parser would change line ends in binary data, so cut the part out by hand.
            mark = b"--" + message.get_boundary().encode()
            part = body[body.index(mark, body.index(mark) + 1) : body.rindex(mark)]
            data = re.split(rb"\r?\n\r?\n", part, maxsplit=1)[1]
            data = data[:-2] if data.endswith(b"\r\n") and b"\r\n" in part[:100] else data[:-1]
            return 200, self.store.put(bucket, name, query, data)
        if kind == "resumable" and "upload_id" not in query:
            name = query.get("name") or json.loads(body)["name"]
            key = f"{time.time_ns()}-{len(self.store.uploads)}"
            self.store.uploads[key] = (bucket, name, query, bytearray())
            path = f"/upload/storage/v1/b/{bucket}/o?uploadType=resumable&upload_id={key}"
            headers["Location"] = self.store.url + path
            return 200, {}
        return self._continue(headers, query, body, bucket)

    def _continue(self, headers, query, body, bucket):
        """Takes one part of a resumable upload; it is the last if it gives the total length."""
        if query.get("upload_id") not in self.store.uploads:
            raise Refused(404, "no such upload")
        _, name, conditions, data = self.store.uploads[query["upload_id"]]
        data += body
        total = self.headers.get("Content-Range", "").rpartition("/")[2]
        if total != "*" and len(data) == int(total or len(data)):
            del self.store.uploads[query["upload_id"]]
            return 200, self.store.put(bucket, name, conditions, data)
        if data:
            headers["Range"] = f"bytes=0-{len(data) - 1}"
        return 308, {}

    def handle(self) -> None:
        with contextlib.suppress(ConnectionError):  # clients that end reset their connections
            super().handle()

    def log_message(self, *_) -> None:
        pass


_BUCKET = r"/storage/v1/b/([^/]+)"
_OBJECT = rf"{_BUCKET}/o/([^/]+)"
_ROUTES = (
    (("GET",), _BUCKET, _Handler._bucket),
    (("GET",), f"{_BUCKET}/o", _Handler._list),
    (("GET",), f"(?:/download)?{_OBJECT}", _Handler._get),
    (("DELETE",), _OBJECT, _Handler._delete),
    (("POST",), rf"{_OBJECT}/rewriteTo/b/([^/]+)/o/([^/]+)", _Handler._copy),
    (("POST",), rf"{_OBJECT}/moveTo/o/([^/]+)", _Handler._move),
    (("POST",), f"/upload{_BUCKET}/o", _Handler._upload),
    (("PUT",), f"/upload{_BUCKET}/o", _Handler._continue),
)


class _Served:
    """Serves the files in some directories from its own process; see `benchmarks.workers`."""

    def __init__(self, directories: list[str], bucket: str):
        self._gcs = FakeGcs()
        for directory in map(pathlib.Path, directories):
            for path in directory.rglob("*"):
                if path.is_file():
                    name = path.relative_to(directory.parent).as_posix()
                    self._gcs.put(bucket, name, {}, path.read_bytes())
        self._gcs.__enter__()

    def environment(self) -> dict[str, str]:
        """Returns the variables that point clients here."""
        return self._gcs.environment


if __name__ == "__main__":
    workers.serve(_Served)
