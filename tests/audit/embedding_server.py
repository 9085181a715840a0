"""A real HTTP embedding endpoint on this machine, whose faults can be queued."""

import base64
import hashlib
import io
import json
import threading
import time
from collections import deque
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
from PIL import Image


def embed(item, seed=0, dimension=8):
    """What the endpoint answers: a fixed random projection of a picture's pixels, or of a text's hash."""
    if item.startswith("data:"):
        item = item.partition(",")[2]
    try:
        pixels = Image.open(io.BytesIO(base64.b64decode(item, validate=True))).convert("RGB").resize((6, 6))
        features = np.asarray(pixels, dtype=np.float64).ravel() / 255 - 0.5
    except ValueError:
        features = np.frombuffer(hashlib.sha256(item.encode()).digest() * 4, np.uint8)[:108] / 255 - 0.5
    return (np.random.default_rng(seed).normal(size=(dimension, 108)) @ features).tolist()


class EmbeddingServer:
    """Faults are queued as dicts, one a request: `status`, `headers`, `body`, `hang`, `drop`, `dimension`, `edit`."""

    def __init__(self, url):
        self.url = url
        self.faults = deque()
        self.asked = []  # the items of every request that got an answer
        self.headers = []
        self.bodies = []
        self.seed = 0
        self.noise = 0.0
        self.most = None  # items a request may have
        self.on_request = lambda count: None

    @property
    def openai(self):
        return f"{self.url}/v1/embeddings#toy"

    @property
    def tei(self):
        return f"{self.url}/embed"

    def answer(self, handler, body):
        self.headers.append(dict(handler.headers))
        self.bodies.append(body)
        self.on_request(len(self.bodies))
        fault = self.faults.popleft() if self.faults else {}
        if "hang" in fault:
            time.sleep(fault["hang"])
        if "drop" in fault:
            handler.close_connection = True
            return
        items = body.get("input", body.get("inputs"))
        if self.most and len(items) > self.most:
            fault = {"status": 413}
        if "status" in fault:
            self.send(handler, fault["status"], fault.get("body", "no"), fault.get("headers", {}))
            return
        vectors = [embed(item, self.seed, fault.get("dimension", 8)) for item in items]
        if self.noise:
            vectors = [self.noisy(item, vector) for item, vector in zip(items, vectors, strict=True)]
        vectors = fault.get("edit", lambda same: same)(vectors)
        self.asked += items
        if handler.path.endswith("/embeddings"):
            answer = {"data": [{"index": i, "embedding": vector} for i, vector in reversed(list(enumerate(vectors)))]}
        else:
            answer = vectors
        self.send(handler, 200, json.dumps(answer), {})

    def noisy(self, item, vector):
        """Another noise each time an item is asked, and the same in every run: tests at level .05 fail by luck else."""
        asked = self.asked.count(item)
        drawn = np.random.default_rng([asked, *hashlib.sha256(item.encode()).digest()]).normal(size=len(vector))
        return (np.array(vector) + self.noise * drawn).tolist()

    @staticmethod
    def send(handler, status, body, headers):
        content = body.encode()
        handler.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(content))}.items():
            handler.send_header(name, value)
        handler.end_headers()
        handler.wfile.write(content)


@contextmanager
def serve():
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            try:
                endpoint.answer(self, body)
            except (BrokenPipeError, ConnectionResetError):  # the client gave up waiting
                self.close_connection = True

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    endpoint = EmbeddingServer(f"http://127.0.0.1:{server.server_port}")
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield endpoint
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
