"""The end of ``make demo``: start the server, ask it for a forecast by gRPC and HTTP, and say what to try next."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import pandas as pd

import clients.__main__
from optimize.data import electricity
from optimize.data.dataset import find
from optimize.errors import UserError
from serving.config import ServerConfig
from serving.launcher import Server

NEXT = """
What to try next
  python -m serving                                          serve it yourself (Ctrl-C stops it), then, elsewhere:
  python -m clients forecast --csv {csv} --plot forecast.png
  locust -f loadtest/locustfile.py --headless --run-time 30s
  python -m loadtest.bench                                   every stage, in process and through Triton
  python -m optimize.export --quantize --recipe FILE         your own model
The report: {report}
"""


def main() -> int:
    argparse.ArgumentParser(description=__doc__).parse_args()
    csv = find(electricity.FILE)
    if csv is None:
        csv = Path("artifacts/demo/demand.csv")
        print("no data under $DATA_DIR or ./data: what follows is the synthetic stand-in, its actual values too")
        csv.parent.mkdir(parents=True, exist_ok=True)
        electricity.synthetic().to_csv(csv, index_label="time_utc", date_format="%Y-%m-%dT%H:%M:%SZ")
    at = (electricity.read_csv(csv).index[-1] - pd.Timedelta(hours=23)).isoformat()
    try:
        with Server(ServerConfig(http_port=0, grpc_port=0, metrics_port=0)) as server:
            for protocol, address in (("grpc", server.grpc), ("http", server.http)):
                print(f"\nTriton at {address} ({protocol}):", flush=True)
                arguments = ["forecast", "--csv", str(csv), "--at", at, "--protocol", protocol, "--url", address]
                if status := clients.__main__.main(arguments):
                    return status
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(NEXT.format(csv=csv, report=Path("artifacts/load_forecast/lstm/report.html").resolve()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
