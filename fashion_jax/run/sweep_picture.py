"""The picture of a sweep: what each field's values brought."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fashion_jax.run.sweep_space import Range, Space
from fashion_jax.system import files
from fashion_jax.system.pictures import RIGHT, UNKNOWN, render_png, shorten

_COLUMNS = 4
_LONGEST_VALUE, _LONGEST_NAME = 14, 34  # characters


def write_sweep_picture(path: Path, trials: Sequence[Mapping[str, Any]], space: Space, metric: str) -> None:
    """Draws the scores of a sweep's trials over the values of each field, a panel per field, as a PNG.

    Trained trials are filled, pruned ones hollow (by the best that they had reached); the best has a ring. Failed ones
    have no score and are counted in the title.

    Args:
        path: to write.
        trials: as `sweep` returns them, the best first.
        space: what was searched.
        metric: name of the score.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    scored = [trial for trial in trials if trial["score"] is not None]
    columns = min(_COLUMNS, len(space))
    rows = -(-len(space) // columns)
    figure = Figure(figsize=(max(6.0, 3.4 * columns), 0.8 + 2.9 * rows), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(rows, columns, squeeze=False, sharey=True).ravel()
    for axes, (name, entry) in zip(panels, space.items(), strict=False):
        listed = None if isinstance(entry, Range) else list(entry)
        for trial in scored:
            value = float(trial[name]) if listed is None else listed.index(str(trial[name]))
            whole = trial["state"] == "complete"
            axes.scatter([value], [trial["score"]], s=26, color=RIGHT, facecolors=None if whole else "none", zorder=3)
            if trial is scored[0]:
                axes.scatter([value], [trial["score"]], s=110, color=UNKNOWN, facecolors="none", linewidths=1.2)
        if listed is None:
            if isinstance(entry, Range) and entry.log:
                axes.set_xscale("log")
                axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
                axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
                axes.xaxis.set_minor_formatter(NullFormatter())
        else:
            axes.set_xticks(range(len(listed)), [shorten(value, _LONGEST_VALUE) for value in listed], parse_math=False)
            axes.set_xlim(-0.5, len(listed) - 0.5)
        axes.set_xlabel(shorten(name, _LONGEST_NAME), parse_math=False)
        axes.grid(axis="y", linewidth=0.4)
    for axes in panels[::columns]:
        axes.set_ylabel(metric, parse_math=False)
    for axes in panels[len(space) :]:
        axes.set_visible(False)
    states = {"complete": "complete (filled)", "pruned": "pruned (hollow)", "failed": "failed"}
    counts = [f"{sum(t['state'] == state for t in trials)} {shown}" for state, shown in states.items()]
    figure.suptitle(f"{len(trials)} trials: {', '.join(counts)}", fontsize=10)
    files.write_bytes(path, render_png(figure))
