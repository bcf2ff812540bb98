"""The figures of the paper, measured on trained networks and drawn: `report.py --figure=NAME`."""

from si_jax.paper.figures.table import FIGURES, Figure, make, redraw

__all__ = ['FIGURES', 'Figure', 'make', 'redraw']
