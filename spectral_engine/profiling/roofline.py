"""The roofline of a profile: how near each case comes to what the device can move and multiply."""

from pathlib import Path

import numpy as np
from matplotlib import colormaps
from matplotlib.figure import Figure

from spectral_engine.profiling.records import Profile


def plot_roofline(profile: Profile, path: Path) -> Path:
    """Draw operations a second against operations a byte, under the two measured ceilings.

    Args:
        profile: of one run.
        path: the image file.

    Returns:
        The path.

    Source: Williams, Waterman and Patterson, CACM 52(4), 2009.
    """
    figure = Figure(figsize=(8, 5.5), layout="constrained")
    axes = figure.subplots()
    intensity = np.array([row.operations / row.bytes for row in profile.rows])
    ridge = profile.products_per_s / profile.copy_bytes_per_s
    reach = np.geomspace(min(intensity.min(), ridge) / 4, max(intensity.max(), ridge) * 4, 200)
    roof = np.minimum(profile.copy_bytes_per_s * reach, profile.products_per_s)
    axes.plot(reach, roof, color="black", linewidth=1.2, label="copy bandwidth, matrix product")
    methods = sorted({row.case.method for row in profile.rows})
    colours = colormaps["viridis"](np.linspace(0.0, 0.85, len(methods)))
    for method, colour in zip(methods, colours, strict=True):
        rows = [row for row in profile.rows if row.case.method == method]
        axes.scatter(
            [row.operations / row.bytes for row in rows],
            [row.operations / row.seconds for row in rows],
            color=colour,
            label=method,
        )
    axes.set(
        xscale="log",
        yscale="log",
        xlabel="operations a byte moved at least",
        ylabel="operations a second",
        title=profile.device if profile.model is None else f"{profile.model}, {profile.device}",
    )
    axes.grid(alpha=0.3, which="both")
    axes.legend(frameon=False)
    figure.savefig(path)
    return path
