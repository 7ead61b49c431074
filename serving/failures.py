"""Why a Triton ended, in one line, out of the pages that it logs."""

from __future__ import annotations

import json
import re
import signal

_ERROR = re.compile(r"^E\d{4} \S+ \d+ \S+\] (?P<message>.*)$", re.MULTILINE)
_FATAL = re.compile(r"^error: (?P<message>.*)$", re.MULTILINE)
_LOAD = re.compile(r"failed to load '(?P<model>[^']+)' version (?P<version>\d+): (?P<reason>.*)", re.DOTALL)
_PARSE = re.compile(r"Error parsing text-format \S+: (?P<message>.*)")
_TRACEBACK = re.compile(r"\s*\bAt:\n.*", re.DOTALL)

# Logged as an error on every machine without a GPU.
_HARMLESS = "CudaDriverHelper has not been initialized"


def explain(log: str, status: int) -> str:
    """The reason in one line.

    log: what Triton wrote. status: its exit status as subprocess gives it, negative for the signal that ended it.
    """
    if status < 0:  # it could not say why; what it logged before that was about something else
        return f"ended by {signal.Signals(-status).name}"
    errors = [text for match in _ERROR.finditer(log) if _HARMLESS not in (text := _unquote(match["message"]))]
    reasons = [
        f"model '{load['model']}' version {load['version']}: {load['reason']}"
        for load in map(_LOAD.match, errors)
        if load
    ]
    if not reasons:
        reasons = errors + [match["message"] for match in _PARSE.finditer(log)]
    if not reasons:
        reasons = [match["message"] for match in _FATAL.finditer(log)]
    condensed = dict.fromkeys(map(condense, reasons))
    return "; ".join(condensed) or f"exit status {status}, last line: {(log.splitlines() or ['none'])[-1]}"


def condense(reason: str) -> str:
    """A reason as Triton gives it, on one line and without the traceback of the backend's Python."""
    return " ".join(_TRACEBACK.sub("", reason).split())


def _unquote(message: str) -> str:
    """Triton 24.10 writes messages as JSON strings, on one line whatever they hold; others write them bare."""
    try:
        return str(json.loads(message))
    except ValueError:
        return message.strip('"')
