"""A job's metrics for Prometheus: a function of the plan, the ledger and what is released anyway, and of nothing else.

Who is connected, who took part, what was refused and how long a round took are not here: metrics travel further than
an operator's terminal, and what is published must not tell who took part (docs/privacy.md, rules 7 and 12).
"""

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from fedrecall.protocol.errors import FedrecallError, UsageError
from fedrecall.server.operation.status import Spending, status

_LOG = logging.getLogger(__name__)
_TYPE = "text/plain; version=0.0.4; charset=utf-8"


def metrics_text(found: dict[str, Any]) -> str:
    """Return the metrics of a job in Prometheus' text format, from its ``status``."""
    release = found["release"] or {}
    lines: list[str] = []

    def add(name: str, kind: str, help: str, *values: tuple[str, float | int | None]) -> None:
        known = [f"fedrecall_{name}{labels} {value}" for labels, value in values if value is not None]
        if known:
            lines.extend([f"# HELP fedrecall_{name} {help}", f"# TYPE fedrecall_{name} {kind}", *known])

    add("rounds_done", "gauge", "Rounds of the plan that are over.", ("", found["rounds"]["done"]))
    add("rounds_planned", "gauge", "Rounds that the plan allows.", ("", found["rounds"]["planned"]))
    add("devices_planned", "gauge", "Devices that the plan is for.", ("", found["devices"]["planned"]))
    add("release_round", "gauge", "Round of the newest release.", ("", release.get("round")))
    add("release_timestamp_seconds", "gauge", "When the newest release was written.", ("", release.get("written")))
    add("up_seconds", "gauge", "Seconds since the server was started.", ("", found["uptime_s"]))
    restarts = [(f'{{process="{name}"}}', value) for name, value in sorted(found["restarts"].items())]
    add("restarts_total", "counter", "Restarts of the server's processes.", *restarts)
    spent = [(_labels(row), row["epsilon"]) for row in found["privacy"]]
    add("epsilon_spent", "gauge", "Epsilon of what was charged; absent where nothing bounds it.", *spent)
    return "\n".join(lines) + "\n"


@contextmanager
def serve_metrics(folder: Path, port: int) -> Iterator[int]:
    """Serve the metrics of the job in ``folder`` under ``/metrics`` to this machine alone; yield the port.

    Raises:
        UsageError: the port is taken.
    """
    spending, turn = Spending(folder), threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            """Answer one scrape."""
            if self.path != "/metrics":
                self.send_error(404)
                return
            try:
                with turn:
                    text = metrics_text(status(folder, spending)).encode()
            except FedrecallError as error:
                _LOG.warning("no metrics: %s", error)
                self.send_error(503)
                return
            self.send_response(200)
            self.send_header("Content-Type", _TYPE)
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

        def log_message(self, format: str, *args: object) -> None:
            """Say nothing of each scrape."""

    try:
        server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
    except OSError as error:
        raise UsageError(f"port {port} for metrics cannot be used ({error.strerror}): choose another") from error
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server.server_address[1]
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def _labels(row: dict[str, Any]) -> str:
    return f'{{adversary="{row["name"]}",unit="{row["unit"]}",delta="{row["delta"]:g}",adjacency="{row["adjacency"]}"}}'
