"""The figures of the report, as PNG bytes: differences with intervals, patients, curves over shares, CT slices."""

import textwrap

import numpy as np

from tools.comparison.arms import arm_title, is_painted
from tools.plotting import INK, PANEL, QUIET, dress, name_axes, new_figure, png_bytes, show_ct, signed
from tools.tissues import words

PANEL_INCHES = 2.2

LABEL_LETTERS = 27  # of an arm's title before it breaks
ARMS_AS_LINES = 5  # with more arms, patients are drawn as dots, one row per arm


def sentence(text: str) -> str:
    """Return a text with a capital first letter; the others stay as they are.

    Example:
        >>> sentence("painted, CBMAT")
        'Painted, CBMAT'
    """
    return text[:1].upper() + text[1:]


def _rows_of_arms(arms: list[str], heading: str):
    """Return a figure and its axes with one row per arm, titled at the left, the first on top."""
    titles = [textwrap.fill(arm_title(arm), LABEL_LETTERS) for arm in arms]
    lines = sum(1 + title.count("\n") for title in titles)
    figure = new_figure(PANEL, 0.85 + 0.13 * lines + 0.09 * len(arms))
    axes = figure.add_subplot()
    dress(axes, heading, grid="x")
    heights = np.array([1 + 0.6 * title.count("\n") for title in titles])
    places = np.cumsum(heights) - heights / 2
    axes.set_yticks(places, titles, fontsize=7.5)
    axes.set_ylim(heights.sum() + 0.2, -0.2)
    axes.axvline(0, color=INK, linewidth=0.9, zorder=0)
    axes.xaxis.set_major_formatter(signed)
    axes.locator_params(axis="x", nbins=4)
    name_axes(axes, "Dice minus Dice of real only")
    return figure, axes, places


def forest(rows: list[dict], tissue: str, colour: str) -> bytes:
    """Draw the difference of every arm to the arm real, with its interval, for one tissue; a PNG.

    ``rows`` are of ``verdicts.summarise``; the axis spans all tissues, so that figures can be compared. Painted arms
    have the colour, the others are grey.
    """
    rows = [row for row in rows if row.get("difference") is not None]
    spans = [value for row in rows for value in (row["difference"], *(row["interval"] or ()))]
    own = [row for row in rows if row["tissue"] == tissue]
    figure, axes, places = _rows_of_arms([row["arm"] for row in own], words(tissue))
    for row, y in zip(own, places):
        shade = colour if is_painted(row["arm"]) else QUIET
        if row["interval"]:
            axes.plot(row["interval"], [y, y], color=shade, linewidth=2.2, solid_capstyle="round")
        face = shade if row["verdict"] in ("gain", "loss") else "white"
        marker = "o" if is_painted(row["arm"]) else "s"
        style = {"markersize": 5.5, "markerfacecolor": face, "markeredgewidth": 1.5}
        axes.plot(row["difference"], y, marker, color=shade, **style)
    margin = 0.05 * (max(spans + [0]) - min(spans + [0])) or 0.01
    axes.set_xlim(min(spans + [0]) - margin, max(spans + [0]) + margin)
    return png_bytes(figure)


def patients(records: list[dict], tissue: str, arms: list[str], colour: str) -> bytes:
    """Draw every patient for one tissue: with few arms the Dice, joined from arm to arm; else differences to real.

    The seeds of a patient are averaged; arms run from left to right, or from top to bottom; the mean has the colour.
    Returns a PNG.
    """
    values: dict[str, dict[str, list[float]]] = {}
    for record in records:
        if record["tissue"] == tissue and record["dice"] is not None:
            values.setdefault(record["patient"], {}).setdefault(record["arm"], []).append(record["dice"])
    lines = np.array([[np.mean(row[arm]) if arm in row else np.nan for arm in arms] for row in values.values()])
    if len(arms) > ARMS_AS_LINES:
        return _patient_dots(lines, tissue, arms, colour)
    return _patient_lines(lines, tissue, arms, colour)


def _patient_dots(lines: np.ndarray, tissue: str, arms: list[str], colour: str) -> bytes:
    """Draw a row per arm but the first of ``arms`` named real, a dot per patient; ``lines`` is (patients, arms)."""
    differences = np.delete(lines - lines[:, [arms.index("real")]], arms.index("real"), axis=1)
    others = [arm for arm in arms if arm != "real"]
    figure, axes, places = _rows_of_arms(others, f"{words(tissue)} (n = {len(lines)})")
    rng = np.random.default_rng(0)  # spreads dots that would hide each other
    for column, y in zip(differences.T, places):
        seen = column[np.isfinite(column)]
        axes.plot(seen, y + rng.uniform(-0.22, 0.22, len(seen)), ".", color=QUIET, alpha=0.5, markersize=4.5, mew=0)
        if len(seen):
            axes.plot(seen.mean(), y, "o", color=colour, markersize=6, markeredgecolor="white", zorder=5)
    return png_bytes(figure)


def _patient_lines(lines: np.ndarray, tissue: str, arms: list[str], colour: str) -> bytes:
    """Draw a thin line per patient from arm to arm, and the means; ``lines`` has shape (patients, arms)."""
    from matplotlib import patheffects, ticker

    figure = new_figure(PANEL, 2.7)
    axes = figure.add_subplot()
    dress(axes, f"{words(tissue)} (n = {len(lines)})", grid="y")
    places = np.arange(len(arms))
    for line in lines:
        axes.plot(places, line, color=QUIET, alpha=0.5, linewidth=0.8, marker=".", markersize=3.5)
    means = [column[np.isfinite(column)].mean() if np.isfinite(column).any() else np.nan for column in lines.T]
    axes.plot(places, means, color=colour, linewidth=0, marker="o", markersize=8, markeredgecolor="white", zorder=5)
    halo = [patheffects.withStroke(linewidth=2.5, foreground="white")]
    for place, mean in zip(places, means):
        if np.isfinite(mean):
            axes.annotate(
                f"{mean:.2f}", (place, mean), (0, 7), textcoords="offset points", fontsize=8, color=INK, ha="center",
                weight="bold", path_effects=halo, zorder=6,
            )  # fmt: skip
    axes.set_xlim(-0.4, len(arms) - 0.6)
    low, high = np.nanmin(lines), np.nanmax(lines)
    room = max(0.3 - (high - low), 0.06) / 2  # the axis spans 0.3 at least, so that noise does not look like an effect
    top = min(high + room, 1.02)
    axes.set_ylim(top - (high - low) - 2 * room, top)
    axes.yaxis.set_major_locator(ticker.MaxNLocator(4))
    axes.set_xticks(places, [textwrap.fill(arm_title(arm), 13) for arm in arms], fontsize=7)
    return png_bytes(figure)


def ct_slice(
    hu: np.ndarray,
    spacing: tuple[float, float],
    outlines: list[tuple[np.ndarray, str]] = (),
    frame: tuple[slice, slice] | None = None,
) -> bytes:
    """Draw one axial slice in the lung window, as radiologists see it (the patient's right on the left).

    Args:
        hu: HU of shape (W, H), axes to the patient's right and front (RAS+).
        spacing: Voxel size along both axes, mm.
        outlines: Masks of shape (W, H), each with the colour of its outline.
        frame: Part of the slice to mark with a white frame.

    Returns:
        A PNG without margins.
    """
    width, height = hu.shape[0] * spacing[0], hu.shape[1] * spacing[1]
    scale = PANEL_INCHES / max(width, height)
    figure = new_figure(max(width * scale, 0.2), max(height * scale, 0.2))
    figure.set_layout_engine("none")
    axes = figure.add_axes((0, 0, 1, 1))
    show_ct(axes, hu, aspect="auto", interpolation="bilinear")
    for mask, colour in outlines:
        if mask.any():
            padded = np.pad(mask.astype(float), 1)  # closes the outlines at the border
            xs, ys = np.arange(-1, mask.shape[0] + 1), np.arange(-1, mask.shape[1] + 1)
            axes.contour(xs, ys, padded.T, levels=[0.5], colors=["black"], linewidths=1.9, alpha=0.5)
            axes.contour(xs, ys, padded.T, levels=[0.5], colors=[colour], linewidths=1.1)
    if frame is not None:
        (x0, x1), (y0, y1) = ((part.start, part.stop - 1) for part in frame)
        for colour, line in (("black", 2.4), ("white", 1.2)):
            axes.plot([x0, x1, x1, x0, x0], [y0, y0, y1, y1, y0], color=colour, linewidth=line)
    axes.set_xlim(hu.shape[0] - 0.5, -0.5)  # the patient's right is drawn on the left
    axes.set_ylim(-0.5, hu.shape[1] - 0.5)
    return png_bytes(figure)
