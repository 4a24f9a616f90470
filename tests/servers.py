"""``mlflow server`` on loopback, as a process that can be killed and started again, and one that lies."""

import contextlib
import http.client
import os
import random
import signal
import socket
import threading
import time
import urllib.request
from collections.abc import Callable
from contextlib import closing
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from tests.conftest import clean_environment
from tests.forked import ForkedProcess
from tests.stores import place_store


class Server:
    """A server with a store and artifacts of its own in ``folder``; always on the same port."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.store = place_store(folder / "mlflow.db", "mlflow-artifacts:/0")
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.uri = f"http://127.0.0.1:{self.port}"
        self.process: ForkedProcess | None = None

    def start(self) -> None:
        """Starts it, and waits until it answers."""
        options = ["server", "--port", str(self.port), "--workers", "1"]
        options += ["--backend-store-uri", f"sqlite:///{self.store}"]
        options += ["--artifacts-destination", f"{self.folder}/served"]
        # Its job runners, seven processes, serve nothing that is tested here.
        environment = clean_environment(self.folder / "torch") | {
            "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"
        }
        log = self.folder / "server.log"
        self.process = ForkedProcess("mlflow", options, self.folder, environment, log=log, new_session=True)
        for _ in range(600):
            with contextlib.suppress(OSError):
                urllib.request.urlopen(f"{self.uri}/health", timeout=5)
                return
            assert self.process.poll() is None, (self.folder / "server.log").read_text()
            time.sleep(0.1)

    def kill(self) -> None:
        """Ends it and all its workers without a word."""
        if self.process is not None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait(30)
            self.process = None


HTML = b"<html><title>Log in</title></html>"
FAULTS = ("html", "empty", "half answer", "cut answer", "429", "503")


class Liar:
    """A proxy before a server, some of whose answers are not the server's.

    Attributes:
        lie: Names one of `FAULTS` for a request, by its method and path, or None for the truth.
    """

    def __init__(self, port: int) -> None:
        self.lie: Callable[[str, str], str | None] = lambda _method, _path: None
        self.told: list[str] = []
        liar = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_any(self) -> None:
                body = self._body()
                fault = liar.lie(self.command, self.path)
                liar.told += [fault] if fault else []
                if fault == "html":
                    self._answer(200, HTML, "text/html")
                elif fault == "empty":
                    self._answer(200, b"{}")
                elif fault in ("429", "503"):
                    self._answer(int(fault), b"later")
                else:
                    status, answer, kind = self._forward(body)
                    shown = answer[: len(answer) // 2] if fault else answer
                    self._answer(status, shown, kind, len(answer) if fault == "cut answer" else len(shown))

            do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = do_any  # noqa: N815

            def _body(self) -> bytes:
                if self.headers.get("Transfer-Encoding") != "chunked":
                    return self.rfile.read(int(self.headers.get("Content-Length", 0)))
                body = b""
                while size := int(self.rfile.readline(), 16):
                    body += self.rfile.read(size)
                    self.rfile.readline()
                self.rfile.readline()
                return body

            def _forward(self, body: bytes) -> tuple[int, bytes, str]:
                with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=60)) as upstream:
                    kept = {k: v for k, v in self.headers.items() if k.lower() in ("content-type", "accept")}
                    upstream.request(self.command, self.path, body, kept)
                    answer = upstream.getresponse()
                    return answer.status, answer.read(), answer.getheader("Content-Type") or "text/plain"

            def _answer(
                self, status: int, body: bytes, kind: str = "application/json", size: int | None = None
            ) -> None:
                self.send_response(status)
                self.send_header("Content-Type", kind)
                self.send_header("Content-Length", str(len(body) if size is None else size))
                self.send_header("Connection", "close")
                self.end_headers()
                self.wfile.write(body)
                self.close_connection = True

            def log_message(self, *_args: object) -> None:
                pass

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.uri = f"http://127.0.0.1:{self._http.server_port}"
        threading.Thread(target=self._http.serve_forever, daemon=True).start()

    def lie_at_random(self, seed: int, share: float) -> None:
        """From the moment that a run was made, give this share of the answers otherwise."""
        chance, has_run = random.Random(seed), False

        def lie(_method: str, path: str) -> str | None:
            nonlocal has_run
            if has_run:
                return chance.choice(FAULTS) if chance.random() < share else None
            has_run = path.endswith("/runs/create")
            return None

        self.lie = lie

    def stop(self) -> None:
        self._http.shutdown()
        self._http.server_close()
