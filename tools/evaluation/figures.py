"""Figures of many small panels: what was asked for against what was painted, and quality over evaluations."""

import math

from tools.plotting import INK, QUIET, RULE, dress, name_axes, new_figure, png_bytes
from tools.tissues import tissue_colours, words

PANEL = (2.5, 2.2)  # inches
COLUMNS = 4
COLOUR = "#0072b2"
HISTOGRAM_COLOURS = {"real": INK, "unknown": "#d55e00", "told": "#0072b2"}
SAMPLER_STYLES = ("-", "--", ":", "-.")
MARKERS = "osD^vP*X"  # of the histories, which may lie on each other
AXES = {
    "mean_hu": "mean, HU", "median_hu": "median, HU", "abnormal_share": "share not healthy, by HU",
    "non_healthy_share": "share not healthy, segmented", "low_share": "share below -950 HU",
    "high_share": "share above -500 HU",
}  # fmt: skip
UNITS = {
    "density": "asked for, HU", "severity": "severity asked for", "age": "age asked for, years",
    "history": "real patients of that history",
}  # fmt: skip
SMALL = {"ticks": 7, "rule": 0.5}
QUALITY_ROWS = {
    "texture_distance": "texture distance", "auc": "told from real, AUC", "hu_wasserstein": "Wasserstein-1, HU",
}  # fmt: skip
FLOORS = {"texture_distance": "texture_floor", "auc": "auc_floor", "hu_wasserstein": "hu_wasserstein_floor"}


def draw_conditions(rows: list[dict], summary: dict, labels: dict[str, int]) -> bytes:
    """Draw a panel per condition and measure, asked for across, painted upwards, and the HU of lungs, as a PNG."""
    judgements, colours = summary["judgements"], tissue_colours(labels)
    count = len(judgements) + 1
    columns = min(COLUMNS, count)
    lines = math.ceil(count / columns)
    figure = new_figure(PANEL[0] * columns, PANEL[1] * lines)
    for number, judgement in enumerate(judgements, 1):
        axes = figure.add_subplot(lines, columns, number)
        title = " ".join(filter(None, (judgement["condition"], words(judgement["tissue"]))))
        dress(axes, f"{title}\n{judgement['verdict']}", **SMALL, size=8)
        name_axes(axes, UNITS[judgement["condition"]], AXES.get(judgement["measure"], words(judgement["measure"])))
        colour = colours.get(judgement["tissue"], COLOUR)
        if judgement["condition"] == "history":
            _history(axes, judgement)
        else:
            keys = ("condition", "tissue", "measure")
            _levels(axes, judgement, [r for r in rows if all(r[key] == judgement[key] for key in keys)], colour)
    _histograms(figure.add_subplot(lines, columns, count), summary["unknown"])
    return png_bytes(figure)


def _levels(axes, judgement: dict, rows: list[dict], colour: str) -> None:
    """Draw each host as a thin line, the means as dots, and what was to be expected as a dashed line."""
    for host in dict.fromkeys(row["case"] for row in rows):
        points = [(row["requested"], row["measured"]) for row in rows if row["case"] == host]
        axes.plot(*zip(*points), color=QUIET, alpha=0.5, linewidth=0.7)
    x, y = list(judgement["levels"]), list(judgement["levels"].values())
    axes.plot(x, y, "o-", color=colour, markersize=5, linewidth=1.4, markeredgecolor="white")
    expected = (x[0], x[0]), 1
    if judgement["condition"] != "density":  # only the slope of real lung: through the middle of the means
        expected = (sum(x) / len(x), sum(y) / len(y)), judgement.get("real_slope")
    if expected[1] is not None:
        axes.axline(expected[0], slope=expected[1], color=INK, linewidth=0.9, linestyle="--")


def _history(axes, judgement: dict) -> None:
    """Draw each history as a dot, its real patients across and its paintings upwards, and both means as lines."""
    names = list(judgement["levels"])
    x, y = [judgement["real"][name] for name in names], [judgement["levels"][name] for name in names]
    axes.axvline(sum(x) / len(x), color=RULE, linewidth=1.2)
    axes.axhline(sum(y) / len(y), color=RULE, linewidth=1.2)
    for number, (name, place) in enumerate(zip(names, zip(x, y))):
        marker, colour = MARKERS[number % len(MARKERS)], f"C{number}"
        axes.plot(*place, marker, color=colour, markersize=5, alpha=0.8, markeredgecolor="white", label=name)
    axes.legend(fontsize=6, frameon=False, handletextpad=0)
    axes.margins(0.25)


def _histograms(axes, unknown: dict) -> None:
    """Draw the HU of whole lungs: real, painted with nothing told, painted with everything told."""
    dress(axes, "whole lung\nnothing or all told", **SMALL, size=8)
    name_axes(axes, "HU", "share of voxels")
    for kind, heights in unknown["histograms"].items():
        axes.stairs(heights, unknown["bin_edges_hu"], color=HISTOGRAM_COLOURS[kind], linewidth=1.2, label=kind)
    axes.legend(fontsize=7, frameon=False)


def draw_curve(rows: list[dict], labels: dict[str, int]) -> bytes:
    """Draw quality over evaluations as a PNG: a row per measure, a line per sampler, dashed the floor."""
    colours = tissue_colours(labels)
    tissues = [name for name in colours if any(row["tissue"] == name for row in rows)]
    measures = [name for name in QUALITY_ROWS if any(row.get(name) is not None for row in rows)]
    samplers = list(dict.fromkeys(row["sampler"] for row in rows))
    figure = new_figure(PANEL[0] * len(tissues), PANEL[1] * len(measures))
    for line, name in enumerate(measures):
        for column, tissue in enumerate(tissues):
            axes = figure.add_subplot(len(measures), len(tissues), line * len(tissues) + column + 1)
            dress(axes, words(tissue) if line == 0 else "", **SMALL)
            known = [row for row in rows if row["tissue"] == tissue and row.get(name) is not None]
            for sampler, style in zip(samplers, SAMPLER_STYLES * len(samplers)):
                points = sorted((row["evaluations"], row[name]) for row in known if row["sampler"] == sampler)
                if points:
                    axes.plot(*zip(*points), "o" + style, color=colours[tissue], markersize=4, label=sampler)
            if not known:
                axes.text(0.5, 0.5, "too little of it", transform=axes.transAxes, fontsize=8, color=QUIET, ha="center")
            floors = [row[FLOORS[name]] for row in known if row.get(FLOORS[name]) is not None]
            if floors:
                axes.axhline(floors[0], color=INK, linewidth=0.9, linestyle=(0, (4, 3)))
            _evaluations(axes, sorted({row["evaluations"] for row in rows}))
            if column == 0:
                axes.set_ylabel(QUALITY_ROWS[name], fontsize=8, color=INK)
            if line == column == 0 and len(samplers) > 1:
                axes.legend(fontsize=7, frameon=False, handlelength=4)
    return png_bytes(figure)


def _evaluations(axes, evaluations: list[int]) -> None:
    """Label the axis of network evaluations."""
    axes.set_xscale("log")
    axes.set_xticks(evaluations, [str(number) for number in evaluations])
    axes.set_xticks([], minor=True)
    axes.set_ylim(0, 1.05 * axes.get_ylim()[1])
    axes.set_xlabel("network evaluations", fontsize=7.5, color=INK)
