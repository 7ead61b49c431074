"""``python -m clients <system> ...``: ask a running server from the command line.

One file for each system: it adds its options to a parser and runs. A mistake of the user's, or a server that cannot
answer, is one line on standard error and exit status 2.
"""

from __future__ import annotations

import argparse
import os
import sys

from clients import classify, detokenize, forecast, options, tokenize, transcribe, translate, value
from optimize.errors import UserError

COMMANDS = {
    "forecast": forecast,
    "transcribe": transcribe,
    "translate": translate,
    "classify": classify,
    "value": value,
    "tokenize": tokenize,
    "detokenize": detokenize,
}


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m clients", description="Ask a running Triton server.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="|".join(COMMANDS))
    for name, module in COMMANDS.items():
        summary = (module.__doc__ or "").splitlines()[0]
        command = commands.add_parser(name, help=summary, description=summary)
        module.add_arguments(command)
        options.add_arguments(command)
        command.set_defaults(run=module.run)
    chosen = parser.parse_args(arguments)
    try:
        chosen.run(chosen)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # the reader of what is printed has gone, such as `| head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or the interpreter complains at its exit
        return 141
    return 0


if __name__ == "__main__":
    sys.exit(main())
