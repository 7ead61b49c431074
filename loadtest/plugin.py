"""Hooks the load test into locust: its options, its summary, the exit status, and results of worker processes."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import gevent
from locust.runners import WorkerRunner

from clients import access
from clients.client import DEFAULT_ADDRESS
from loadtest import command, thresholds
from loadtest.choice import chosen, served
from loadtest.pacing import ARRIVALS
from loadtest.results import Recorder, table


def register(events: Any, recorder: Recorder) -> None:
    """Call once, from a locustfile, with locust's ``events``."""
    summary: list[str] = []

    def choose(environment: Any, **_: Any) -> None:
        gevent.get_hub().loop.update_now()  # its clock stood still during the imports, and --run-time is set next
        if not environment.parsed_options.user_classes:  # none was named
            environment.user_classes = chosen(environment.user_classes, served(environment.parsed_options))

    def finish(environment: Any, **_: Any) -> None:
        if isinstance(environment.runner, WorkerRunner) or environment.process_exit_code is not None:
            return
        options, rows = environment.parsed_options, recorder.rows()
        verdicts = thresholds.judge(rows, vars(options))
        code = environment.process_exit_code = thresholds.exit_code(rows, verdicts)
        summary.append(table(rows) if rows else "no request was sent")
        summary.extend(str(verdict) for verdict in verdicts)
        summary.append("the load test passed" if code == 0 else "the load test FAILED")
        if options.summary_json:
            content = {
                "passed": code == 0,
                "rate_per_s": options.rate,
                "arrivals": options.arrivals,
                "rows": [asdict(row) | {"failure_rate": row.failure_rate} for row in rows],
                "thresholds": thresholds.held(verdicts),
            }
            options.summary_json.write_text(thresholds.to_json(content))

    def show(**_: Any) -> None:  # the last event, after locust's own tables
        if summary:
            print("\n" + "\n".join(summary), flush=True)

    def send(client_id: str, data: dict[str, Any], **_: Any) -> None:
        data["open_loop"] = recorder.drain()

    def receive(client_id: str, data: dict[str, Any], **_: Any) -> None:
        recorder.merge(data.get("open_loop", {}))

    events.init_command_line_parser.add_listener(add_arguments)
    events.init.add_listener(choose)
    events.report_to_master.add_listener(send)
    events.worker_report.add_listener(receive)
    events.quitting.add_listener(finish)
    events.quit.add_listener(show)


def add_arguments(parser: Any) -> None:
    """The options of the load test itself; but for --tls, --tls-ca and --token, each may be given as LOADTEST_<NAME>
    in the environment."""
    load = parser.add_argument_group("load", "open loop: requests arrive at a set rate, whatever the server does")

    def add(option: str, **settings: Any) -> None:
        variable = "LOADTEST_" + option.removeprefix("--").replace("-", "_").upper()
        load.add_argument(option, env_var=variable, **settings)

    add("--rate", type=command.positive, default=50.0, metavar="N", help="requests a second of all users, %(default)s")
    add("--arrivals", choices=tuple(ARRIVALS), default="even", help="spacing of the arrivals, %(default)s")
    add("--deadline", type=command.positive, default=5.0, metavar="SECONDS", help="of a request, %(default)s")
    in_flight = "requests of one user under way at once, %(default)s; arrivals beyond are dropped and count as failed"
    add("--max-in-flight", type=command.count, default=128, metavar="N", help=in_flight)
    add("--grpc-address", default=DEFAULT_ADDRESS["grpc"], metavar="HOST:PORT", help="not --host; %(default)s")
    add("--http-address", default=DEFAULT_ADDRESS["http"], metavar="HOST:PORT", help="%(default)s")
    access.add_arguments(load)
    utterances = "mean length of what a real-time stream says before it begins anew, 0: no end; %(default)s"
    add("--utterance", type=command.not_negative, default=10.0, metavar="SECONDS", help=utterances)
    add("--summary-json", type=command.new_file, default=None, metavar="FILE", help="write the summary there")
    thresholds.add_arguments(parser)
