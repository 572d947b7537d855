"""What all figures share: ink, sizes, the lung window."""

import io

INK, QUIET, RULE = "#1f2933", "#616e7c", "#cbd2d9"
LUNG_WINDOW_HU = (-1350, 150)
RESOLUTION = 200  # dots per inch
PANEL = 3.4  # inches; shown at 300 pixels and more, so that 7.5 points stay readable on a phone


def new_figure(width: float, height: float):
    """Return a figure that knows no global state, so that plotting changes nothing for a caller."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure((width, height), dpi=RESOLUTION, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def png_bytes(figure) -> bytes:
    """Return a figure as a PNG."""
    stream = io.BytesIO()
    figure.savefig(stream, format="png", metadata={"Software": None})
    return stream.getvalue()


def calm(axes) -> None:
    """Take the frame and the ticks off axes."""
    axes.spines[["top", "right", "left", "bottom"]].set_visible(False)
    axes.tick_params(length=0, labelsize=8.5, labelcolor=INK)


def dress(axes, title: str = "", grid: str = "both", ticks: float = 7.5, size: float = 9, rule: float = 0.6) -> None:
    """Give axes a grid behind what is drawn, and a bold title at the left.

    Args:
        axes: Axes of matplotlib.
        title: Title of the panel.
        grid: Direction of the grid: x, y or both.
        ticks: Size of the numbers in points.
        size: Size of the title in points.
        rule: Width of the lines of the grid in points.
    """
    calm(axes)
    axes.tick_params(labelsize=ticks)
    axes.grid(axis=grid, color=RULE, linewidth=rule)
    axes.set_axisbelow(True)
    axes.set_title(title, fontsize=size, weight="bold", color=INK, loc="left")


def name_axes(axes, across: str = "", up: str = "", size: float = 7.5) -> None:
    """Write what runs across and upwards."""
    axes.set_xlabel(across, fontsize=size, color=INK)
    axes.set_ylabel(up, fontsize=size, color=INK)


def show_ct(axes, hu, **view) -> None:
    """Draw a slice, shape (W, H), in the lung window, as radiologists see it: the patient's right on the left."""
    low, high = LUNG_WINDOW_HU
    axes.set_axis_off()
    axes.imshow(hu.T, cmap="gray", vmin=low, vmax=high, origin="lower", **view)
    axes.set_xlim(hu.shape[0] - 0.5, -0.5)


def signed(value: float, _: object = None) -> str:
    """Return a number with its sign, as axes of differences show it."""
    return "0" if abs(value) < 1e-9 else f"{value:+.2g}".replace("-", "−")
