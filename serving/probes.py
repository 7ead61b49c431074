"""Three questions by HTTP on this machine, of Kubernetes, a proxy, Prometheus: is it alive, is it ready, what was done?

    GET /live    200 while Triton answers; a worker that died is the watchman's business, not a reason to restart all
    GET /metrics what Triton's own page lacks, for Prometheus (``worker_metrics.py``); where there are workers
    GET /ready   200 when every model's canary is answered and no model waits for its workers; else 503

Life and readiness say why in JSON, ``/ready`` also how many workers were lost and models reloaded. Canaries are asked
at most once a second, however many ask here.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from optimize.errors import UserError
from serving import canary, health
from serving.watchman import Watchman

HOST = "127.0.0.1"
_KEPT_S = 1.0


class Probes:
    """Answers for the server at ``http``. models: what it serves now, None when it does not say. watchman, page: None
    where there are no workers.

    Raises UserError when the port is taken; 0 is any free one.
    """

    def __init__(
        self,
        port: int,
        http: str,
        models: Callable[[], list[str] | None],
        watchman: Watchman | None,
        page: Callable[[], str] | None = None,
    ) -> None:
        self._http = http
        self._models = models
        self._watchman = watchman
        self.page = page
        self._asking = threading.Lock()
        self._answer: tuple[bool, dict[str, Any]] = False, {}
        self._answered_at = -_KEPT_S
        try:
            self._server = ThreadingHTTPServer((HOST, port), _handler(self))
        except OSError as error:
            raise UserError(
                f"port {port} (--health-port) on {HOST}: {error.strerror}; choose another, 0 for any"
            ) from None
        self.address = f"{HOST}:{self._server.server_address[1]}"
        threading.Thread(target=self._server.serve_forever, name="probes", daemon=True).start()

    def live(self) -> tuple[bool, dict[str, Any]]:
        """Whether it is, and what there is to say about it."""
        live = health.is_live(self._http)
        return live, {"live": live}

    def ready(self) -> tuple[bool, dict[str, Any]]:
        """The same; what was found out less than a second ago is not asked again."""
        with self._asking:
            if time.monotonic() - self._answered_at > _KEPT_S:
                self._answer = self._ask()
                self._answered_at = time.monotonic()
            return self._answer

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def _ask(self) -> tuple[bool, dict[str, Any]]:
        recovering = self._watchman.recovering if self._watchman is not None else []
        served = self._models() or []
        with ThreadPoolExecutor(max(len(served), 1)) as threads:
            refusals = threads.map(lambda model: canary.refusal(self._http, model), served)
            models = {model: why or "ready" for model, why in zip(served, refusals, strict=True)}
        models |= dict.fromkeys(recovering, "its worker was lost; it is being reloaded")
        ready = set(models.values()) == {"ready"}
        losses = self._watchman.losses if self._watchman is not None else {}
        return ready, {
            "ready": ready,
            "models": models,
            "losses": {model: asdict(counts) for model, counts in list(losses.items())},
        }


def _handler(probes: Probes) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if self.path == "/metrics" and probes.page is not None:
                self._send(200, "text/plain; version=0.0.4; charset=utf-8", probes.page())
                return
            question = {"/live": probes.live, "/ready": probes.ready}.get(self.path)
            good, said = question() if question else (False, {"error": f"'{self.path}': ask /live, /ready or /metrics"})
            self._send(200 if good else 503 if question else 404, "application/json", json.dumps(said))

        def _send(self, status: int, kind: str, text: str) -> None:
            body = text.encode()
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: Any) -> None:
            """Probes come all the time."""

    return Handler
