"""How series of a report are drawn, with matplotlib, which is imported when something is drawn.

`PICTURES` says for each kind of series how it is drawn; colours mean one thing in all of them (`style`). This folder
imports nothing else of the package, so that `Report.plot` can use it.
"""

from collections.abc import Mapping

from tauspan.core.figures.accuracy import alpha_common, alpha_grid, bars, curves, front
from tauspan.core.figures.grids import map_common, maps, tables
from tauspan.core.figures.paths import trajectories, trajectory_grid
from tauspan.core.figures.picture import Drawing, Figures, Format, Picture, each, plotted, rendered
from tauspan.core.figures.spectra import energies, linearity, spectra, titled_common, widths
from tauspan.core.figures.starts import starts
from tauspan.core.figures.style import REGIMES, WIDTH, Series
from tauspan.core.figures.ways import ways

PICTURES: Mapping[str, Picture] = {
    "bars": Picture(bars, lambda members: (len(members), 1), width=WIDTH, share=False, height=2.7),
    "alpha": Picture(curves, alpha_grid, share="row", common=alpha_common, height=2.5),
    "front": Picture(each(front, legend=True), height=3.6),
    "xi": Picture(maps, layout="compressed", common=map_common, height=None),
    "spectrum": Picture(spectra),
    "energy": Picture(each(energies, legend=True)),
    "heat": Picture(
        tables,
        lambda members: ((len(members) + 1) // 2, min(2, len(members))),
        share=False,
        height=3.6,
        layout="compressed",
    ),
    "linearity": Picture(linearity, lambda members: (1, 1), share=False, common=titled_common, height=3.4),
    "widths": Picture(widths, lambda members: (1, 1), share=False, common=titled_common, height=3.4),
    "trajectory": Picture(trajectories, trajectory_grid, share=False, height=2.5),
    "starts": Picture(
        starts,
        lambda members: ((len(members) + 1) // 2, min(2, len(members))),
        share=False,
        height=3.2,
    ),
    "ways": Picture(ways, lambda members: (1, len(members)), width=WIDTH, share=False, height=4.6),
}

__all__ = [
    "PICTURES", "REGIMES", "Drawing", "Figures", "Format", "Picture", "Series", "each", "plotted", "rendered",
]  # fmt: skip
