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
    stream = io.BytesIO()
    figure.savefig(stream, format="png", metadata={"Software": None})
    return stream.getvalue()


def calm(axes) -> None:
    axes.spines[["top", "right", "left", "bottom"]].set_visible(False)
    axes.tick_params(length=0, labelsize=8.5, labelcolor=INK)


def signed(value: float, _: object = None) -> str:
    return "0" if abs(value) < 1e-9 else f"{value:+.2g}".replace("-", "−")
