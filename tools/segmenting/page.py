"""One HTML page of labelled CTs, which needs no other file: what was found, by which weights, and what they are not."""

import base64
from collections.abc import Mapping, Sequence
from pathlib import Path

from tools.tissues import tissue_colours, words
from tools.workflows.origin import Weights

TEMPLATE = "page.html.j2"


def render(cases: Sequence, weights: Weights, labels: dict[str, int], failed: Mapping[str, str]) -> str:
    """Return the page.

    Args:
        cases: Of ``tools.segmenting.segment``: name, found, picture, remarks and files.
        weights: Of the segmenter.
        labels: Tissue name to value.
        failed: Name of a CT that could not be labelled to the reason.
    """
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=jinja2.StrictUndefined,
        lstrip_blocks=True, trim_blocks=True,
    )  # fmt: skip
    environment.filters |= {"words": words, "base64": lambda png: base64.b64encode(png).decode()}
    colours = tissue_colours(labels)
    return environment.get_template(TEMPLATE).render(
        cases=cases,
        weights=weights,
        colours=colours,
        failed=failed,
        diseases=[name for name in colours if name != "healthy"],
    )
