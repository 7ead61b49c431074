"""The forecast as a picture: three days of history, the next day's forecast, and what happened where it is known."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from optimize.data.electricity import HISTORY_HOURS, TIMEZONE
from optimize.errors import UserError

if TYPE_CHECKING:
    from clients.forecast import Forecast

FORMATS = (".png", ".svg", ".pdf")


def check(path: Path) -> None:
    """Raise UserError if a picture cannot be drawn there: matplotlib missing, unknown ending, no such folder."""
    try:
        import matplotlib  # noqa: F401
    except ModuleNotFoundError:
        raise UserError("--plot needs matplotlib: pip install 'matplotlib==3.11.*'") from None
    if path.suffix.lower() not in FORMATS:
        raise UserError(f"--plot {path}: expected a name ending in {', '.join(FORMATS)}")
    if not path.parent.is_dir():
        raise UserError(f"--plot {path}: the folder '{path.parent}' does not exist; create it first")


def draw(forecast: Forecast, path: Path) -> None:
    """Write the picture. Raises UserError where the file cannot be written."""
    # The object interface: no pyplot, no display, no global state.
    from matplotlib import rc_context
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    window = forecast.window
    # Matplotlib's dates take naive times as they are, which is what a local axis needs.
    past = pd.DatetimeIndex(window.history.index).tz_convert(TIMEZONE).tz_localize(None).to_numpy()
    future = window.targets.tz_convert(TIMEZONE).tz_localize(None).to_numpy()
    observed = window.history["demand_mw"].to_numpy()

    figure = Figure(figsize=(10, 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    with rc_context({"date.converter": "concise"}):
        axes.plot(past, observed, color="0.35", label=f"history, {HISTORY_HOURS} hours")
    if np.isfinite(window.actual).any():
        axes.plot(future, window.actual, color="0.35", linestyle=":", label="what happened")
    joined = np.concatenate([observed[-1:], forecast.demand_mw])
    axes.plot(np.concatenate([past[-1:], future]), joined, color="tab:blue", linewidth=2, label="forecast")
    axes.axvline(future[0], color="0.8", linewidth=1, zorder=0)
    error = forecast.error_mw()
    axes.set_title(
        f"{forecast.model} version {forecast.version}"
        + (f": mean absolute error {error:.0f} MW" if error is not None else "")
    )
    axes.set_ylabel("demand, MW")
    axes.set_xlabel(TIMEZONE)
    axes.grid(alpha=0.3)
    axes.legend(loc="upper left", ncols=3, frameon=False)
    axes.margins(x=0.01, y=0.15)
    try:
        figure.savefig(path, dpi=120)
    except OSError as error:
        raise UserError(f"--plot {path}: {error.strerror or error}") from None
