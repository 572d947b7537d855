"""The figures of the report, as PNG bytes: differences with intervals, patients one by one, and CT slices."""

import io

import numpy as np

# Okabe and Ito's colours, which stay apart for colour-blind readers; in the order of the label values.
TISSUE_COLOURS = ("#8a8a8a", "#56b4e9", "#e69f00", "#009e73", "#cc79a7", "#f0e442", "#0072b2", "#d55e00")
INK, QUIET, RULE = "#1f2933", "#616e7c", "#cbd2d9"
LUNG_WINDOW_HU = (-1350, 150)
RESOLUTION = 200  # dots per inch
PANEL_INCHES = 2.2

ARM_TITLES = {
    "real": "real only",
    "oversampled": "oversampled",
    "copy_paste": "copy-paste",
    "synthetic": "painted",
    "synthetic_oversampled": "painted and oversampled",
}


def words(name: str) -> str:
    """Return a tissue's or setting's name as it is read.

    Example:
        >>> words("ground_glass")
        'ground glass'
    """
    return name.replace("_", " ")


def tissue_colours(labels: dict[str, int]) -> dict[str, str]:
    """Return a colour for every tissue, the same in every figure; background has none."""
    names = [name for name in sorted(labels, key=labels.get) if name != "background"]
    return {name: TISSUE_COLOURS[index % len(TISSUE_COLOURS)] for index, name in enumerate(names)}


def new_figure(width: float, height: float):
    """Return a figure that knows no global state, so that plotting changes nothing for a caller."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure((width, height), dpi=RESOLUTION, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def png_bytes(figure) -> bytes:
    stream = io.BytesIO()
    figure.savefig(stream, format="png", metadata={"Software": None})
    return stream.getvalue()


def calm(axes) -> None:
    axes.spines[["top", "right", "left", "bottom"]].set_visible(False)
    axes.tick_params(length=0, labelsize=8.5, labelcolor=INK)


def forest(rows: list[dict], labels: dict[str, int]) -> bytes:
    """Draw the difference to the arm real, with its interval, for every tissue and arm.

    Args:
        rows: of ``verdicts.summarise``.
        labels: tissue name to value.

    Returns:
        A PNG.
    """
    rows = [row for row in rows if row.get("difference") is not None]
    tissues = list(dict.fromkeys(row["tissue"] for row in rows))
    colours = tissue_colours(labels)
    height = len(rows) * 0.22 + len(tissues) * 0.42 + 0.5
    figure = new_figure(5.2, height)
    axes = figure.add_subplot()
    calm(axes)
    y, places, heads = 0.0, {}, {}
    for tissue in tissues:
        heads[y] = words(tissue)
        for row in (row for row in rows if row["tissue"] == tissue):
            y -= 1
            places[y] = ARM_TITLES.get(row["arm"], words(row["arm"]))
            if row["interval"]:
                axes.plot(row["interval"], [y, y], color=colours[tissue], linewidth=2.4, solid_capstyle="round")
            face = colours[tissue] if row["verdict"] in ("gain", "loss") else "white"
            axes.plot(
                row["difference"],
                y,
                "o",
                markersize=6,
                color=colours[tissue],
                markerfacecolor=face,
                markeredgewidth=1.6,
            )
        y -= 1.4
    ticks = heads | places
    axes.set_yticks(list(ticks), list(ticks.values()))
    for label in axes.get_yticklabels()[: len(heads)]:
        label.set_weight("bold")
    axes.set_ylim(y + 0.8, 0.6)
    axes.axvline(0, color=INK, linewidth=0.9, zorder=0)
    axes.grid(axis="x", color=RULE, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.xaxis.set_major_formatter(lambda value, _: "0" if abs(value) < 1e-9 else f"{value:+.2g}")
    axes.set_xlabel("Dice minus Dice of real only", fontsize=8.5, color=INK)
    return png_bytes(figure)


def patients(records: list[dict], tissue: str, arms: list[str], colour: str) -> bytes:
    """Draw the Dice of every patient (a thin line from arm to arm) and the mean (a dot) for one tissue.

    Args:
        records: rows of results.csv; the seeds of a patient are averaged.
        tissue: which.
        arms: from left to right.
        colour: of the mean.

    Returns:
        A PNG.
    """
    values: dict[str, dict[str, list[float]]] = {}
    for record in records:
        if record["tissue"] == tissue and record["dice"] is not None:
            values.setdefault(record["patient"], {}).setdefault(record["arm"], []).append(record["dice"])
    lines = np.array([[np.mean(row[arm]) if arm in row else np.nan for arm in arms] for row in values.values()])
    from matplotlib import patheffects, ticker

    figure = new_figure(2.9, 2.5)
    axes = figure.add_subplot()
    calm(axes)
    places = np.arange(len(arms))
    for line in lines:
        axes.plot(places, line, color=QUIET, alpha=0.5, linewidth=0.8, marker=".", markersize=3.5)
    means = [column[np.isfinite(column)].mean() if np.isfinite(column).any() else np.nan for column in lines.T]
    axes.plot(places, means, color=colour, linewidth=0, marker="o", markersize=8, markeredgecolor="white", zorder=5)
    halo = [patheffects.withStroke(linewidth=2.5, foreground="white")]
    for place, mean in zip(places, means):
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
    axes.set_xticks(places, [ARM_TITLES.get(arm, words(arm)).replace(" and ", "\nand ") for arm in arms], fontsize=7.5)
    if len(arms) > 3:
        axes.tick_params(axis="x", rotation=20)
    axes.grid(axis="y", color=RULE, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.set_title(f"{words(tissue)} (n = {len(lines)})", fontsize=9, weight="bold", color=INK, loc="left")
    return png_bytes(figure)


def ct_slice(
    hu: np.ndarray,
    spacing: tuple[float, float],
    outlines: list[tuple[np.ndarray, str]] = (),
    frame: tuple[slice, slice] | None = None,
) -> bytes:
    """Draw one axial slice in the lung window, as radiologists see it (the patient's right on the left).

    Args:
        hu: shape (W, H), axes to the patient's right and front (RAS+).
        spacing: voxel size along both axes, mm.
        outlines: masks of shape (W, H), each with the colour of its outline.
        frame: part of the slice to mark with a white frame.

    Returns:
        A PNG without margins.
    """
    width, height = hu.shape[0] * spacing[0], hu.shape[1] * spacing[1]
    scale = PANEL_INCHES / max(width, height)
    figure = new_figure(max(width * scale, 0.2), max(height * scale, 0.2))
    figure.set_layout_engine("none")
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_axis_off()
    low, high = LUNG_WINDOW_HU
    axes.imshow(hu.T, cmap="gray", vmin=low, vmax=high, origin="lower", aspect="auto", interpolation="bilinear")
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
