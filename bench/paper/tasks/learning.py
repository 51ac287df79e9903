"""Task 1, spectrum learning: the singular values of every layer through training.

Do they move and then stabilise? A learning rate that falls to zero stills any spectrum, so that
LeNets are trained at a constant rate as well: what settles there settles of itself.
"""

from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bench.paper.reporting.numbers import Records, distinct, values
from bench.paper.reporting.output import Result, panels, style
from bench.paper.reporting.statistics import mean_interval
from bench.paper.runs.dense import trained
from bench.paper.runs.jobs import Settings, kept, run_all
from bench.tables import Table
from bench.tidy import Row, as_written, records

#: Singular values whose course is kept and drawn, by index from 0.
SHOWN = (0, 1, 2, 4, 8, 16, 32, 64, 128, 256)
#: A value has settled once it stays within this share of where it ends.
TOLERANCE = 0.02
#: The shares of the training at which the tables say how far the values have moved.
MOMENTS = (0.1, 0.25, 0.5)
#: The shares of the training at which the CSV has the distance still to go.
KEPT = (0.0, 0.1, 0.25, 0.5, 0.75)
NOTES = {
    "variants": "the schedules of the learning rate; a setting is a layer",
    "settled": f"the epoch from which on it is within {TOLERANCE:.0%} of where it ends",
    "left out": "the singular values; their distance to the end, but at five moments of the "
    "training; validation accuracy, but that of the last epoch",
}


def schedules(settings: Settings) -> tuple[str, ...]:
    """The network's own schedule; for LeNets, which are cheap, a constant rate too."""
    own = settings.recipe.schedule
    return (own, "constant") if settings.network.startswith("lenet") else (own,)


def run(settings: Settings) -> Result:
    """Train, record, and tell when each layer and each of its values had settled."""
    cases = [(schedule, seed) for schedule in schedules(settings) for seed in settings.runs]
    found = run_all(settings, [partial(one, settings, *case) for case in cases])
    runs = [
        {"schedule": schedule, "seed": seed, **result}
        for (schedule, seed), result in zip(cases, found, strict=True)
    ]
    told = as_written(numbers(runs))
    return Result(
        "learning", settings, told, tables(told), {"": figure(settings, runs)}, notes=NOTES
    )


def one(settings: Settings, schedule: str, seed: int) -> dict[str, Any]:
    """One training: its accuracies, and for each layer what `course` tells."""
    recipe = replace(settings.recipe, schedule=schedule)

    def measure() -> dict[str, Any]:
        dense = trained(settings, seed, recipe)
        epochs = dense.tracker.steps / dense.steps_per_epoch
        settled = dense.tracker.stabilised()
        return {
            "test": dense.test,
            "validation": [row["validation"] for row in dense.history],
            "epochs": epochs.tolist(),
            "layers": {
                name: {
                    "settled": None if step is None else step / dense.steps_per_epoch,
                    **course(dense.tracker.singular_values(name), epochs),
                }
                for name, step in settled.items()
            },
        }

    return dict(kept(settings, "learning", measure, recipe, seed, TOLERANCE, SHOWN, MOMENTS))


def course(values: NDArray[np.float64], epochs: NDArray[np.float64]) -> dict[str, Any]:
    """Of singular values (T, k): distance to the end, when each settled, a few of them drawn.

    distance: ||sigma(t) - sigma(T)|| / ||sigma(T)||; moved: the share of the way from sigma(0) to
    sigma(T) that is behind it at `MOMENTS` of the training; value_settled: epochs, of all values
    """
    last = values[-1]
    distance = np.linalg.norm(values - last, axis=1) / np.linalg.norm(last)
    off = np.abs(values - last) > TOLERANCE * last
    moving = np.where(off.any(0), len(off) - np.argmax(off[::-1], axis=0), 0)
    settled = epochs[np.minimum(moving, len(epochs) - 1)]
    places = [int(share * (len(epochs) - 1)) for share in MOMENTS]
    shown = [index for index in SHOWN if index < len(last)]
    return {
        "distance": distance.tolist(),
        "moved": (1.0 - distance[places] / max(float(distance[0]), 1e-12)).tolist(),
        "value_settled": {str(index): float(settled[index]) for index in shown},
        "value_settled_median": float(np.median(settled)),
        "values": values[:, shown].tolist(),
        "first": values[0].tolist() if len(last) <= 64 else values[0][:64].tolist(),
        "last": last[:64].tolist(),
    }


def numbers(runs: list[dict[str, Any]]) -> list[Row]:
    """What `one` gives, for each seed; of the courses a few moments."""
    found = []
    for run in runs:
        place, epochs = (run["schedule"], run["seed"]), run["epochs"]
        told = {"test": run["test"], "validation": run["validation"][-1], "epochs": epochs[-1]}
        found += [Row(*place, "", None, name, value) for name, value in told.items()]
        for name, layer in run["layers"].items():
            distance = layer["distance"]
            told = {
                "settled": layer["settled"],
                "median value settled": layer["value_settled_median"],
                **{
                    f"moved at {share:.0%}": moved
                    for share, moved in zip(MOMENTS, layer["moved"], strict=True)
                },
                **{
                    f"distance at {share:.0%}": distance[int(share * (len(epochs) - 1))]
                    for share in KEPT
                },
                **{
                    f"sigma_{int(index) + 1} settled": epoch
                    for index, epoch in layer["value_settled"].items()
                },
            }
            found += [Row(*place, name, None, key, x) for key, x in told.items() if x is not None]
    return found


def tables(rows: list[Row]) -> list[Table]:
    """One a schedule: a row a layer, over the seeds."""
    found = records(rows)
    return [
        table(schedule, [record for record in found if record["variant"] == schedule])
        for schedule in distinct(found, "variant", "test")
    ]


def table(schedule: str, found: Records) -> Table:
    """A row a layer, over the seeds."""
    test = mean_interval(values(found, "test"))
    shown = Table(
        f"rate {schedule}: test accuracy {test.show(100, 2)} % after "
        f"{values(found, 'epochs')[0]:.0f} epochs",
        ("layer", "moved by", *(f"moved at {share:.0%}" for share in MOMENTS),
         "settled, epoch", "of runs", "sigma_1 settled", "median value settled"),
    )  # fmt: skip
    for name in distinct(found, "setting", "median value settled"):
        layers = [record for record in found if record["setting"] == name]
        settled = values(layers, "settled")
        shown.rows.append(
            (
                name,
                mean_interval(values(layers, "distance at 0%")).show(digits=2),
                *(
                    mean_interval(values(layers, f"moved at {share:.0%}")).show(100, 0) + " %"
                    for share in MOMENTS
                ),
                mean_interval(settled).show(),
                f"{len(settled)}/{len(layers)}",
                mean_interval(values(layers, "sigma_1 settled")).show(),
                mean_interval(values(layers, "median value settled")).show(),
            )
        )
    return shown


def figure(settings: Settings, runs: list[dict[str, Any]]) -> Any:
    """Above, some singular values of each layer in the first run; below, the distance to the end
    in all runs.
    """
    names = list(runs[0]["layers"])
    if len(names) > 5:
        names = [names[place] for place in np.linspace(0, len(names) - 1, 5).astype(int)]
    drawn, axes = panels(f"Singular values in training, {settings.label}", len(names), 2, 3.6, 3.0)
    for place, name in enumerate(names):
        first = runs[0]["layers"][name]
        for index, line in enumerate(np.array(first["values"]).T):
            label = f"{SHOWN[index] + 1}"
            axes[place].plot(runs[0]["epochs"], line, linewidth=1, label=label)
        axes[place].set(title=f"{name}, rate {runs[0]['schedule']}", yscale="log")
        below = axes[len(names) + place]
        for index, schedule in enumerate(dict.fromkeys(one["schedule"] for one in runs)):
            for one in runs:
                if one["schedule"] == schedule:
                    below.plot(
                        one["epochs"], one["layers"][name]["distance"],
                        color=style(4 + index)["color"], linewidth=0.8,
                        label=schedule if one["seed"] == 0 else None,
                    )  # fmt: skip
        below.set(xlabel="epoch", ylim=(0, None))
    axes[0].set_ylabel("singular value")
    axes[0].legend(fontsize=6, ncols=2, title="index", title_fontsize=6)
    axes[len(names)].set_ylabel("relative distance to the end")
    axes[len(names)].legend(fontsize=7)
    for axis in axes:
        axis.title.set_fontsize(8)
    return drawn
