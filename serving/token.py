"""``python -m serving.token``: print a signed token for the front door.

    python -m serving.token --subject alice --expires 8h > alice.token

Needs the key of the door: run it where that lies, and hand out only what it prints.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from optimize.errors import UserError
from serving.front_door import tokens
from serving.front_door.credentials import DEFAULT_FOLDER, Credentials


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m serving.token", description="Print a token for the front door.")
    parser.add_argument("--subject", required=True, metavar="NAME", help="who asks; limits are counted for each")
    parser.add_argument("--expires", default="1h", metavar="TIME", help="30s, 15m, 8h, 30d; default: %(default)s")
    parser.add_argument(
        "--key", type=Path, default=Credentials(DEFAULT_FOLDER).token_key, metavar="FILE", help="default: %(default)s"
    )
    options = parser.parse_args(arguments)
    try:
        expires_at_s = int(time.time()) + tokens.duration_s(options.expires)
        print(tokens.issue(tokens.read_key(options.key), options.subject, expires_at_s))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
