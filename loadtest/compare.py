"""Is a newer report worse than an older one? Compares two report.json files, also of different machines.

    make bench-compare OLD=before/report.json NEW=artifacts/load_forecast/lstm/report.json

Milliseconds of two machines say nothing, so every latency is first divided by that of a reference stage in the *same*
report (the torch teacher, else the first stage that both have; through Triton, the first stage that both served).

**Noise.** A median of n calls has the standard error 1.253 s / sqrt(n), where s is taken from the report as
(p95 - p50) / 1.645. The change of a ratio of ratios has four of them; it is a regression if the *lower* end of its
95 % interval is beyond what is allowed (5 %, for what else differs between machines and days). Batch throughput
likewise, with a tenth as many calls, which is how it is measured.

**The rest** is not timed: size (1 % more); the metric, if both used the same data (its new loss is beyond the old 95 %
interval); parity (half as much again, and above rounding); int8 shares (one point less); drift in company (the same,
and anything where there was none); flipped decisions; gates that fail, or are no longer there; stages that are gone.
What one of the reports does not tell is not compared.

Status: 0; 1 for a regression; 2 for a mistake.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from loadtest import command
from optimize.errors import UserError

SLOWER, LARGER, SHARE = 0.05, 0.01, 0.01
FACTOR = 1.5  # of parity and drift
ROUNDING = 1e-5  # parity and drift below it, as a share of the output's spread, are rounding
BATCH_ROUNDS = 0.1  # of the calls: how many batches are timed

Values = dict[str, Any]  # JSON
Stages = dict[str, Values]


@dataclass(frozen=True)
class Row:
    """One comparison. change: of new to old, in the words of its kind. allowed: likewise."""

    stage: str
    what: str
    old: str
    new: str
    change: str
    allowed: str
    worse: bool


def compare(old: Values, new: Values, reference: str | None = None, slower: float = SLOWER) -> list[Row]:
    """All comparisons that the two reports allow. slower: the growth of a latency ratio that is allowed, as a share.

    Raises UserError: reports of different models, no stage that both have, or not the one asked for.
    """
    for name in ("model", "variant"):
        if old.get(name) != new.get(name):
            raise UserError(f"the reports are of different {name}s: '{old.get(name)}' and '{new.get(name)}'")
    before, after = (_stages(report) for report in (old, new))
    both = [name for name in before if name in after]
    if not both:
        raise UserError(f"no stage is in both reports: {', '.join(before)}; {', '.join(after)}")
    base = reference or both[0]
    if base not in both:
        raise UserError(f"--reference '{base}' is not in both reports; these are: {', '.join(both)}")
    served = next((name for name in both if all(side[name].get("server_latency_ms") for side in (before, after))), "")
    rows: list[Row] = []
    for name in both:
        ours, theirs = before[name], after[name]
        for key, root in (("latency_ms", base), ("server_latency_ms", served)):
            if name != root and ours.get(key) and theirs.get(key):
                label = f"{key.removesuffix('_ms').replace('_', ' ')} p50 / {root}"
                rows.append(_latency(name, label, [each[key] for each in (ours, theirs, before[root], after[root])],
                                     slower))  # fmt: skip
        if name != base:
            rows += _throughput(name, ours, theirs, before[base], after[base], slower)
        rows += _untimed(name, ours, theirs, same_data=old.get("data") == new.get("data"))
    rows += [
        Row(name, "stage", "there", "gone", "", "", True)
        for name in before
        if name not in after and before[name].get("role", "chain") == "chain"
    ]
    return rows + list(_gates(old, new))


def read(path: Path) -> Values:
    """A report.json, of this version or an older one. Raises UserError for anything else."""
    try:
        report = json.loads(path.read_text())
        stages = [stage["name"] for stage in report["stages"]]
        complete = bool(stages) and all(stage["latency_ms"]["p50"] > 0 for stage in report["stages"])
    except OSError as error:
        raise UserError(f"'{path}' cannot be read: {error.strerror}; give a report.json") from None
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"'{path}' is no report.json ({type(error).__name__}: {error})") from None
    if not complete:
        raise UserError(f"'{path}' has no stages with latencies above 0; run python -m optimize.export again")
    found: Values = report
    return found


def _stages(report: Values) -> Stages:
    return {stage["name"]: stage for stage in report["stages"]}


def _latency(stage: str, what: str, latencies: Sequence[Values], slower: float) -> Row:
    """latencies: old and new of the stage, old and new of its reference."""
    ratios = latencies[0]["p50"] / latencies[2]["p50"], latencies[1]["p50"] / latencies[3]["p50"]
    return _ratio(stage, what, *ratios, math.hypot(*map(_error, latencies)), slower)


def _throughput(stage: str, old: Values, new: Values, old_base: Values, new_base: Values, slower: float) -> list[Row]:
    rates = [each.get("throughput_per_s") for each in (old_base, new_base, old, new)]
    if not all(rates):
        return []
    first, second, ours, theirs = (float(rate or 0) for rate in rates)
    errors = [_error(each["latency_ms"], BATCH_ROUNDS) for each in (old, new, old_base, new_base)]
    return [_ratio(stage, "time per item in batches", first / ours, second / theirs, math.hypot(*errors), slower)]


def _error(latency: Values, share: float = 1.0) -> float:
    """Standard error of a median, as a share of it."""
    spread = max(latency["p95"] - latency["p50"], 0.0) / 1.645
    return float(1.253 * spread / math.sqrt(max(latency["count"] * share, 1)) / latency["p50"])


def _ratio(stage: str, what: str, old: float, new: float, error: float, slower: float) -> Row:
    """Of quantities of which more is worse; error: of the logarithm of new to old."""
    change = new / old
    noise = math.exp(1.96 * error)
    worse = not change / noise <= 1 + slower  # NaN is worse
    words = f"{change - 1:+.1%} ({change / noise - 1:+.1%} to {change * noise - 1:+.1%})"
    return Row(stage, what, f"{old:.4g}", f"{new:.4g}", words, f"{slower:+.0%}", worse)


def _untimed(stage: str, old: Values, new: Values, same_data: bool) -> Iterator[Row]:
    size = new["size_bytes"] / old["size_bytes"] - 1
    sizes = f"{old['size_bytes']:,}", f"{new['size_bytes']:,}"
    yield Row(stage, "bytes", *sizes, f"{size:+.1%}", f"{LARGER:+.0%}", not size <= LARGER)
    if same_data:
        yield _metric(stage, old["metric"], new["metric"])
    for part, key in (("parity", "relative_rms"), ("parity", "relative"), ("batch_invariance", "max_abs_drift")):
        ours, theirs = _figures(old, new, part, key)
        if ours is not None and theirs is not None:
            floor = ROUNDING if part == "parity" or ours else 0.0
            limit = max(FACTOR * ours, floor)
            yield _plain(stage, f"{part.replace('_', ' ')}, {key}", ours, theirs, limit, not theirs <= limit)
    ours, theirs = _figures(old, new, "batch_invariance", "decision_flips")
    if ours is not None and theirs is not None:
        yield _plain(stage, "decisions flipped in company", ours, theirs, ours, theirs > ours)
    for key in ("weight_bytes_fraction", "mac_fraction"):
        ours, theirs = _figures(old, new, "quantized", key)
        if ours is not None and theirs is not None:
            yield _plain(stage, f"int8, {key}", ours, theirs, ours - SHARE, not theirs >= ours - SHARE)


def _metric(stage: str, old: Values, new: Values) -> Row:
    low, high = old["ci95"]
    worse = not (new["value"] >= low if old["higher_is_better"] else new["value"] <= high)
    words = old["name"], f"{old['value']:.4g}", f"{new['value']:.4g}", f"{new['value'] - old['value']:+.3g}"
    return Row(stage, *words, f"{low:.4g} to {high:.4g}", worse)


def _figures(old: Values, new: Values, part: str, key: str) -> tuple[float | None, float | None]:
    """Of a part that a stage may lack."""
    ours, theirs = ((side.get(part) or {}).get(key) for side in (old, new))
    return ours, theirs


def _plain(stage: str, what: str, old: float, new: float, limit: float, worse: bool) -> Row:
    return Row(stage, what, f"{old:.3g}", f"{new:.3g}", f"{new - old:+.3g}", f"{limit:.3g}", worse)


def _gates(old: Values, new: Values) -> Iterator[Row]:
    before, after = ({gate["name"]: gate["passed"] for gate in report.get("gates", ())} for report in (old, new))
    words = {True: "passed", False: "failed", None: "not there"}
    for name in {**before, **after}:
        ours, theirs = before.get(name), after.get(name)
        if ours != theirs:
            yield Row("", f"gate {name}", words[ours], words[theirs], "", "passed", theirs is not True)
    if old.get("published") and not new.get("published"):
        yield Row("", "published", "yes", "no", "", "yes", True)


def line(row: Row) -> str:
    """A comparison in words."""
    change = ", ".join(words for words in (row.change, row.allowed and f"allowed {row.allowed}") if words)
    told = f"{'WORSE' if row.worse else 'ok':6}{row.stage} {row.what}: {row.old} -> {row.new}"
    return f"{told}  {change}" if change else told


def main(arguments: Sequence[str] | None = None) -> int:
    parser = command.parser(__doc__)
    parser.add_argument("old", type=Path, metavar="OLD", help="a report.json")
    parser.add_argument("new", type=Path, metavar="NEW", help="a later one of the same model")
    parser.add_argument("--reference", metavar="STAGE", help="what latencies are divided by; default: the first stage")
    growth = "of a latency ratio, beyond noise, that is allowed; default: %(default)s"
    parser.add_argument("--slower", type=command.not_negative, default=SLOWER, metavar="SHARE", help=growth)
    parser.add_argument("--all", action="store_true", help="show what is not worse too")
    options = parser.parse_args(arguments)
    old, new = read(options.old), read(options.new)
    try:
        rows = compare(old, new, options.reference, options.slower)
    except (KeyError, TypeError, AttributeError, ZeroDivisionError) as error:
        raise UserError(f"a report lacks what every report.json has ({type(error).__name__}: {error})") from None
    worse = [row for row in rows if row.worse]
    for row in rows if options.all else worse:
        print(line(row))
    if old.get("data") != new.get("data"):
        print("the metric was not compared: the reports are of different data")
    print(f"{len(rows)} comparisons, {len(worse) or 'none'} worse")
    return 1 if worse else 0


if __name__ == "__main__":
    command.run(main)
