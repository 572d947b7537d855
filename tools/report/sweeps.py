"""Dice over the share of training patients, and the difference over the ratio of synthetic to real draws."""

import numpy as np

from tools.comparison.arms import REFERENCE, arm_name, arm_of, arm_title, is_painted
from tools.plotting import INK, PANEL, dress, name_axes, new_figure, png_bytes, signed
from tools.report.figures import sentence
from tools.tissues import words

# Lines that stand for arms; the markers, and their characters for a legend in text, tell them apart without colour.
ARM_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
MARKERS = {"o": "●", "s": "■", "^": "▲", "D": "◆", "v": "▼", "P": "✚"}
LINES_AT_MOST = len(ARM_COLOURS)


def tissue_mean(rows: list[dict], arm: str, tissues: list[str]) -> float | None:
    """Return an arm's mean over tissues, each tissue counting alike; None if the arm lacks one of them."""
    means = {row["tissue"]: row["mean"] for row in rows if row["arm"] == arm}
    values = [means.get(tissue) for tissue in tissues]
    return float(np.mean(values)) if values and None not in values else None


def learning_curve(rows: list[dict], pathological: list[str]) -> dict | None:
    """Return the figures of Dice over the share of training patients: the mean over the tissues, then each tissue.

    At most ``LINES_AT_MOST`` painted arms are drawn: the best of those with several shares, by mean Dice over
    the tissues with all patients.

    Returns:
        ``figures`` (title and PNG), ``legend`` (arm, colour, marker), ``dropped`` (number of arms not drawn) and
        ``replaced`` (a sentence: how few patients with painted tissue do as well as all without it). None without a
        curve.
    """
    fractions = sorted({row["fraction"] for row in rows})
    tissues = [name for name in pathological if any(row["tissue"] == name and row["patients"] for row in rows)]
    by_share = {fraction: [row for row in rows if row["fraction"] == fraction] for fraction in fractions}

    def points(arm: str, names: list[str]) -> list[tuple]:
        found = [(fraction, tissue_mean(by_share[fraction], arm, names)) for fraction in fractions]
        spans = [_seed_span(by_share[fraction], arm, names) for fraction in fractions]
        return [(x, mean, *span) for (x, mean), span in zip(found, spans) if mean is not None]

    arms = [arm for arm in dict.fromkeys(row["arm"] for row in rows) if arm == REFERENCE or is_painted(arm)]
    whole = {arm: points(arm, tissues) for arm in arms}
    whole = {arm: found for arm, found in whole.items() if len(found) > 1}
    painted = sorted((arm for arm in whole if arm != REFERENCE), key=lambda arm: -whole[arm][-1][1])
    drawn = [arm for arm in whole if arm == REFERENCE or arm in painted[:LINES_AT_MOST]]
    if not drawn:
        return None
    styles = arm_styles(drawn)
    panels = [("mean of the pathological tissues", tissues)] * (len(tissues) > 1)
    panels += [(words(name), [name]) for name in tissues]
    axis = "share of the training patients"
    images = [
        (title, curves({arm: points(arm, names) for arm in drawn}, styles, title, axis)) for title, names in panels
    ]
    legend = [(arm, colour, MARKERS[marker]) for arm, (colour, marker) in styles.items()]
    replaced = _replaced(whole, painted)
    return {"figures": images, "legend": legend, "dropped": len(whole) - len(drawn), "replaced": replaced}


def _seed_span(rows: list[dict], arm: str, tissues: list[str]) -> tuple[float | None, float | None]:
    """Return the lowest and highest mean over tissues among the seeds."""
    seeds = [row["mean_per_seed"] for row in rows if row["arm"] == arm and row["tissue"] in tissues]
    means = [
        np.mean([seed[key] for seed in seeds]) for key in (seeds[0] if seeds else ()) if all(key in s for s in seeds)
    ]
    return (float(min(means)), float(max(means))) if len(means) > 1 else (None, None)


def _replaced(whole: dict[str, list[tuple]], painted: list[str]) -> str | None:
    """Say which share of the patients, with painted tissue, gives the Dice that all of them give without it."""
    if REFERENCE not in whole or not painted:
        return None
    share, goal = whole[REFERENCE][-1][:2]
    arm = painted[0]
    enough = [point for point in whole[arm] if point[1] >= goal and point[0] < share]
    start = (
        f"Real only, with {100 * share:.0f} % of the training patients, has a mean Dice of {goal:.3f} over the tissues."
    )
    if not enough:
        return f"{start} {sentence(arm_title(arm))} reaches it with none of the smaller shares that were tried."
    point = enough[0]
    return f"{start} {sentence(arm_title(arm))} reaches {point[1]:.3f} with {100 * point[0]:.0f} % of them."


def ratio_sweep(rows: list[dict], pathological: list[str]) -> dict | None:
    """Return the figures of the difference to real over the ratio of synthetic to real draws, tissue by tissue.

    Returns:
        ``figures`` (title and PNG) and ``legend`` (arm, colour, marker); None if no arm was run with several ratios.
    """
    keys: dict[str, list[str]] = {}
    for row in rows:
        keys.setdefault(arm_name(row["arm"]), []).append(row["arm"])
    arms = [name for name, own in keys.items() if len(set(own)) > 1]
    if not arms:
        return None
    styles = arm_styles(arms)
    images = []
    for tissue in pathological:
        series: dict[str, list[tuple]] = {}
        for row in rows:
            name = arm_name(row["arm"])
            if row["tissue"] == tissue and name in arms and row["difference"] is not None:
                point = (arm_of(row["arm"])[1], row["difference"], *(row["interval"] or (None, None)))
                series.setdefault(name, []).append(point)
        if series:
            series = {name: sorted(points) for name, points in series.items()}
            axis = "ratio of synthetic to real draws"
            images.append((words(tissue), curves(series, styles, words(tissue), axis, ratio=True)))
    legend = [(arm, colour, MARKERS[marker]) for arm, (colour, marker) in styles.items()]
    return {"figures": images, "legend": legend}


def arm_styles(arms: list[str]) -> dict[str, tuple[str, str]]:
    """Return a colour and a marker for each arm that is drawn as a line; real is black."""
    others = [arm for arm in arms if arm != "real"]
    kinds = list(MARKERS)
    pairs = [(ARM_COLOURS[i % LINES_AT_MOST], kinds[(i + i // LINES_AT_MOST) % len(kinds)]) for i in range(len(others))]
    styles = dict(zip(others, pairs))
    return ({"real": (INK, "o")} if "real" in arms else {}) | styles


def curves(
    series: dict[str, list[tuple]], styles: dict[str, tuple[str, str]], title: str, axis: str, ratio: bool = False
) -> bytes:
    """Draw one panel of lines with whiskers: Dice over the share of patients, or a difference over the ratio; a PNG.

    ``series`` is arm to points (x, value, low, high), low and high None where there are none. With ``ratio``, x is one,
    drawn by powers of two, with signed differences above it.
    """
    figure = new_figure(PANEL, 2.5)
    axes = figure.add_subplot()
    dress(axes, title, grid="y")
    name_axes(axes, axis)
    xs = sorted({point[0] for points in series.values() for point in points})
    place = (lambda x: np.log2(x)) if ratio else (lambda x: x)
    width = 0.02 * (place(xs[-1]) - place(xs[0]) or 1)
    for number, (arm, points) in enumerate(series.items()):
        colour, marker = styles[arm]
        shift = (number - (len(series) - 1) / 2) * width  # whiskers side by side
        for x, _, low, high in points:
            if low is not None:
                axes.plot([place(x) + shift] * 2, [low, high], color=colour, linewidth=1.1, alpha=0.6)
        axes.plot(
            [place(point[0]) + shift for point in points], [point[1] for point in points], color=colour, marker=marker,
            markersize=5, linewidth=1.5, linestyle="--" if arm == "real" else "-", markeredgecolor="white",
        )  # fmt: skip
    axes.set_xticks([place(x) for x in xs], [f"{x:g}" if ratio else f"{100 * x:.0f} %" for x in xs])
    axes.locator_params(axis="y", nbins=5)
    if ratio:
        axes.axhline(0, color=INK, linewidth=0.9, zorder=0)
        axes.yaxis.set_major_formatter(signed)
    return png_bytes(figure)
