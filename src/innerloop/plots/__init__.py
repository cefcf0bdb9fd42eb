"""Data to figure: the house style and the few kinds of picture that experiments share."""

from innerloop.plots.lines import alignment_panel, caption, heat_map, learner_lines, line_with_band
from innerloop.plots.style import MEASURES, house_style, learner_style

__all__ = [
    "MEASURES",
    "alignment_panel",
    "caption",
    "heat_map",
    "house_style",
    "learner_lines",
    "learner_style",
    "line_with_band",
]
