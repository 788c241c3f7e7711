"""Charts of the metrics of runs: one per metric, with a line for each run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from blip2_jax.reports.chart import line_chart
from blip2_jax.reports.markup import Html, concatenate, element
from blip2_jax.reports.run_record import EVALUATION, Points, RunRecord
from blip2_jax.reports.template import render_details

PRIOR = "itm_prior_entropy"
MAX_POINTS = 400  # of a line in a chart
_SMOOTH_FROM = 40  # points; shorter lines are drawn as they are
_LOG_FROM = 8.0  # ratio of the largest to the smallest loss for a logarithmic axis
_SHOWN_SCORES = 6

# Titles of groups, and the metrics in them; a name that ends with "*" is a beginning.
GROUPS = {
    "Losses": ("loss", "loss_*", "itm_accuracy", "accuracy", "*accuracy"),
    "Optimizer": ("learning_rate", "grad_norm", "temperature"),
    "Speed and memory": (
        "images_per_second_per_chip",
        "mfu",
        "seconds_per_step",
        "data_wait_share",
        "peak_memory_gb",
        "host_memory_gb",
    ),
}
_NO_CHART = (PRIOR, "compile_seconds", "tokens")


def render_charts(runs: Sequence[RunRecord]) -> Html:
    """Render the charts of all metrics, in groups."""
    names = list(dict.fromkeys(name for run in runs for name in run.series))
    parts: list[Html] = []
    if scores := _scores(runs, names):
        parts.append(element("h2", "Evaluation scores"))
        parts.append(_charts(runs, scores[:_SHOWN_SCORES]))
        if more := scores[_SHOWN_SCORES:]:
            parts.append(
                render_details(f"{len(more)} more scores", _charts(runs, more))
            )
    for title, patterns in GROUPS.items():
        members = [n for pattern in patterns for n in names if _matches(n, pattern)]
        if members := list(dict.fromkeys(members)):
            parts += [element("h2", title), _charts(runs, members)]
        names = [name for name in names if name not in members]
    others = [name for name in names if _has_chart(name, runs)]
    if others:
        charts = _charts(runs, others)
        parts.append(render_details(f"{len(others)} more metrics", charts))
    return concatenate(parts)


def _scores(runs: Sequence[RunRecord], names: Sequence[str]) -> list[str]:
    """Return the metrics that are scores, those that select checkpoints first."""
    selecting = [EVALUATION + run.selecting_metric for run in runs]
    scores = [name for name in names if name.startswith(EVALUATION)]
    return sorted(scores, key=lambda name: name not in selecting)


def _matches(name: str, pattern: str) -> bool:
    if pattern.startswith("*"):
        return name.endswith(pattern[1:]) and "/" not in name
    if pattern.endswith("*"):
        return name.startswith(pattern[:-1])
    return name == pattern


def _has_chart(name: str, runs: Sequence[RunRecord]) -> bool:
    """Return True for a metric beyond the groups that changes during a run."""
    if name.startswith((EVALUATION, "source/")) or name in _NO_CHART:
        return False
    return any(len({y for _, y in run.series.get(name, ())}) > 1 for run in runs)


def _charts(runs: Sequence[RunRecord], names: Sequence[str]) -> Html:
    figures = [element("figure", metric_chart(runs, name)) for name in names]
    return element("div", *figures, class_="curves")


def metric_chart(runs: Sequence[RunRecord], name: str) -> Html:
    """Draw a metric of all runs that have it; long lines smoothed, before raw ones."""
    lines = {run.name: run.series[name] for run in runs if name in run.series}
    long = {run: len(line) >= _SMOOTH_FROM for run, line in lines.items()}
    smoothed = name != "learning_rate" and any(long.values())
    values = [y for line in lines.values() for _, y in line]
    is_loss = name.startswith("loss") or name == "grad_norm"
    log = is_loss and min(values) > 0 and max(values) > _LOG_FROM * min(values)
    title = name.removeprefix(EVALUATION).replace("_", " ")
    return line_chart(
        title + (" (log)" if log else ""),
        {
            run: thin(smooth(line) if smoothed and long[run] else line)
            for run, line in lines.items()
        },
        faint={
            run: thin(line) for run, line in lines.items() if smoothed and long[run]
        },
        log=log,
        reference=_reference(runs, name),
    )


def _reference(runs: Sequence[RunRecord], name: str) -> tuple[str, float] | None:
    """Return the loss of a model that knows only how often pairs match."""
    if name not in ("loss_itm", f"{EVALUATION}loss_itm"):
        return None
    known: Iterator[Points] = (run.series[PRIOR] for run in runs if PRIOR in run.series)
    line = next(known, None)
    return ("learned nothing", line[-1][1]) if line else None


def smooth(line: Points) -> Points:
    """Return the exponential moving average; half of a weight is of 2 % of the line.

    Weights are normalised, so that the average does not begin at zero.
    """
    decay = 0.5 ** (1 / max(1.0, 0.02 * len(line)))
    total = weight = 0.0
    result = []
    for step, value in line:
        total = decay * total + (1 - decay) * value
        weight = decay * weight + (1 - decay)
        result.append((step, total / weight))
    return result


def thin(line: Points) -> Points:
    """Keep at most `MAX_POINTS` points: of each part of the line, least and largest.

    The first and the last point remain.
    """
    if len(line) <= MAX_POINTS:
        return line
    parts = MAX_POINTS // 2 - 1
    inner = line[1:-1]
    kept = [line[0]]
    for part in range(parts):
        points = inner[part * len(inner) // parts : (part + 1) * len(inner) // parts]
        ends = {min(points, key=lambda p: p[1]), max(points, key=lambda p: p[1])}
        kept += sorted(ends)
    return [*kept, line[-1]]


def best_score(run: RunRecord, name: str) -> tuple[float, float] | None:
    """Return step and value of the best score; None if there is no such score.

    Losses are best where they are lowest, the selecting score as the configuration
    says, all others where they are highest.
    """
    line = run.series.get(name)
    if not line:
        return None
    lowest = "loss" in name
    if name == EVALUATION + run.selecting_metric:
        lowest = run.minimises
    return max(line, key=lambda point: -point[1] if lowest else point[1])


def score_rows(runs: Sequence[RunRecord]) -> Mapping[str, list[str]]:
    """Return the cells of the table of scores, by score: first, best and last."""
    names = dict.fromkeys(n for run in runs for n in run.series)
    rows = {}
    for name in _scores(runs, list(names)):
        row: list[str] = []
        for run in runs:
            line, best = run.series.get(name), best_score(run, name)
            if not line or best is None:
                row += ["", "", ""]
                continue
            row += [
                f"{line[0][1]:.4g}",
                f"{best[1]:.4g} (step {best[0]:g})",
                f"{line[-1][1]:.4g}",
            ]
        rows[name.removeprefix(EVALUATION)] = row
    return rows
