"""A first run on real data: ``python -m jaxqn``.

Classifies Fisher's irises with a few methods beside SciPy's BFGS, fits hundreds of bootstrap
resamples with one ``vmap``, and fits a curve with bounds and error bars by least squares.
"""

import argparse
import importlib.util
import os
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import jaxqn
from jaxqn.demo import iris as iris_demo
from jaxqn.demo import petals as petals_demo
from jaxqn.loop import default_method


class Column(NamedTuple):
    """One column of a printed table: numbers to the right, words (``format`` "s") to the left."""

    title: str
    width: int
    format: str


FIT_COLUMNS = (
    Column("method", max(len(name) for name in (*iris_demo.METHODS, "scipy BFGS")), "s"),
    Column("status", max(len(status.name) for status in jaxqn.Status), "s"),
    Column("iterations", 10, "d"),
    Column("evaluations", 11, "d"),
    Column("compile ms", 10, ".0f"),
    Column("run ms", 8, ".2f"),
    Column("max|gradient|", 13, ".1e"),
    Column("loss", 11, ".8f"),
)
SPREAD_COLUMNS = (
    Column("species", 12, "s"),
    Column("feature", 12, "s"),
    Column("estimate", 9, ".3f"),
    Column("bootstrap sd", 12, ".3f"),
    Column("2.5 %", 8, ".3f"),
    Column("97.5 %", 8, ".3f"),
)
FEW_METHODS = (default_method(iris_demo.loss), "lbfgs", "newton")
"""What is shown unless other methods are asked for: the default first."""

PLOT_SUFFIXES = (".pdf", ".png", ".svg")


def title_line(columns: Iterable[Column]) -> str:
    """The heading of a table."""
    return _line((column, column.title) for column in columns)


def row_line(columns: Iterable[Column], values: Iterable[Any]) -> str:
    """One row of a table, under the headings of `title_line`."""
    pairs = zip(columns, values, strict=True)
    return _line((column, f"{value:{column.format}}") for column, value in pairs)


def _line(cells: Iterable[tuple[Column, str]]) -> str:
    aligned = (f"{text:{'<' if col.format == 's' else '>'}{col.width}}" for col, text in cells)
    return "  ".join(aligned).rstrip()


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Reads the options; an option that cannot be followed is an error before the first fit."""
    parser = argparse.ArgumentParser(
        prog="python -m jaxqn",
        description="Classifies Fisher's irises with a few methods beside SciPy's BFGS, fits "
        "bootstrap resamples with one vmap, and fits a curve with bounds and error bars. It takes "
        "about 20 seconds.",
    )
    parser.add_argument(
        "--method",
        action="append",
        choices=iris_demo.METHODS,
        metavar="NAME",
        help=f"fit with this method only; may be repeated. One of {', '.join(iris_demo.METHODS)}",
    )
    parser.add_argument("--all", action="store_true", help="fit with every method")
    parser.add_argument(
        "--dtype", choices=tuple(iris_demo.GTOL), default="float32", help="default: %(default)s"
    )
    parser.add_argument(
        "--resamples", type=int, default=300, metavar="N", help="default: %(default)s, at least 2"
    )
    parser.add_argument("--plot", type=Path, metavar="FILE.png", help="draw spread and convergence")
    options = parser.parse_args(argv)
    if options.resamples < 2:
        parser.error(f"--resamples must be at least 2, got {options.resamples}")
    if options.plot is not None and (problem := plot_problem(options.plot)):
        parser.error(problem)
    return options


def plot_problem(path: Path) -> str | None:
    """Why no plot can be written to ``path``, or None."""
    if path.suffix.lower() not in PLOT_SUFFIXES:
        return f"--plot writes {', '.join(PLOT_SUFFIXES)}; {str(path)!r} has another ending"
    if path.is_dir():
        return f"--plot {str(path)!r}: this is a folder"
    if not path.absolute().parent.is_dir():
        return f"--plot {str(path)!r}: there is no such folder"
    if importlib.util.find_spec("matplotlib") is None:
        return "--plot needs matplotlib, which is missing here: python -m pip install matplotlib"
    return None


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit status."""
    options = parse(argv)
    try:
        run(options)
    except BrokenPipeError:  # the reader has closed the pipe, as in `python -m jaxqn | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    return 0


def run(options: argparse.Namespace) -> None:
    """Fits, resamples, prints and, if asked, plots."""
    if options.dtype == "float64":
        jax.config.update("jax_enable_x64", True)
    shown = iris_demo.METHODS if options.all else FEW_METHODS
    methods = tuple(dict.fromkeys(options.method or shown))
    iris = iris_demo.load_iris(options.dtype)
    say(introduction(iris))
    best, params = compare_methods(iris, methods)
    correct, rows = iris_demo.correctly_classified(iris, params), iris.X.shape[0]
    say(f"\nThe fit of {best.method} puts {correct} of {rows} flowers in their own species.\n")
    default = default_method(iris_demo.loss)
    chosen = default if default in methods else best.method
    spread = resample(iris, params, chosen, options.resamples)
    fitted = petals_demo.fit_curve(iris)
    say(curve_text(fitted))
    if options.plot is not None:
        plot(options.plot, iris, spread, convergence(iris, methods), fitted)
        say(f"\nPlot written to {options.plot}.")
    say(closing(options))


def say(text: str) -> None:
    """Prints at once, also into a pipe."""
    print(text, flush=True)


def introduction(iris: iris_demo.Dataset) -> str:
    """The data and the model."""
    rows, features = iris.X.shape
    parameters = (1 + features) * len(iris.species)
    return (
        f"jaxqn {jaxqn.__version__}, jax {jax.__version__} on {jax.default_backend()}, "
        f"{iris.X.dtype.name}\n"
        f"Fisher's irises: {rows} flowers, {features} measurements, {len(iris.species)} species.\n"
        f"Multinomial logistic regression, {parameters} parameters, all zero at the start; "
        f"a fit ends\nwhen no entry of the gradient exceeds {iris_demo.tolerance(iris):.0e}.\n"
    )


def compare_methods(iris: iris_demo.Dataset, methods: Sequence[str]) -> tuple[iris_demo.Fit, Any]:
    """Prints the table of methods; returns the row of the best one and its parameters.

    The best is the converged fit with the fewest evaluations, or the lowest loss if none converged.
    """
    say(title_line(FIT_COLUMNS))
    fits = []
    for method in methods:
        row, params = iris_demo.fit(iris, method)
        say(row_line(FIT_COLUMNS, row))
        fits.append((row, params))
    scipy_row = iris_demo.fit_scipy(iris)
    say(row_line(FIT_COLUMNS, scipy_row) if scipy_row else "(SciPy is not installed: no SciPy row)")
    converged = [pair for pair in fits if pair[0].status == "converged"]
    if converged:
        return min(converged, key=lambda pair: pair[0].nfev)
    return min(fits, key=lambda pair: pair[0].loss)


def resample(iris: iris_demo.Dataset, params: Any, method: str, resamples: int) -> iris_demo.Spread:
    """Prints the table of the parameters' bootstrap spread, and returns it."""
    result, compile_ms, run_ms = iris_demo.bootstrap(iris, params, method, resamples)
    spread = iris_demo.spread(params, result.x)
    endings, counts = np.unique(np.asarray(result.status), return_counts=True)
    ended = ", ".join(
        f"{count} {iris_demo.status_name(int(status))}"
        for status, count in zip(endings, counts, strict=True)
    )
    say(
        f"{resamples} bootstrap resamples, one vmap over {method} from that fit: {ended},\n"
        f"{result.nfev.min()} to {result.nfev.max()} evaluations each; "
        f"compile {compile_ms:.0f} ms, run {run_ms:.0f} ms.\n"
    )
    say(title_line(SPREAD_COLUMNS))
    for column, species in enumerate(iris.species):
        for row, feature in enumerate(("intercept", *iris.features)):
            numbers = (float(array[row, column]) for array in spread)
            say(row_line(SPREAD_COLUMNS, (species, feature, *numbers)))
    return spread


def curve_text(fitted: petals_demo.CurveFit) -> str:
    """The curve's parameters with their errors, and whether to believe these."""
    heading = (
        "\nA curve with bounds, the width of a petal by its length: width (length / 4 cm)^power,\n"
        "by jaxqn.least_squares, with the standard errors of jaxqn.covariance:\n"
    )
    summary = fitted.result.summary(errors=fitted.errors.standard_errors)
    return f"{heading}\n{summary}\nErrors: {fitted.errors.reason}."


def closing(options: argparse.Namespace) -> str:
    """How to read the tables, and suggestions for the next run."""
    other = "float32" if options.dtype == "float64" else "float64"
    return (
        "\nOf the methods the first is the default. The optimum is unique, so that all that\n"
        "converged agree on the loss; only the paths differ.\n"
        "Features are standardised; an interval on one side of zero marks a measurement that\n"
        "tells the species apart whichever flowers happened to be sampled.\n"
        f"Try next: python -m jaxqn --dtype {other} --plot iris.png\n"
        "In your own code: jaxqn.minimize(fun, x0, args) or jaxqn.least_squares(residuals, x0,\n"
        "args), under jit or vmap as here. Every method: python -m jaxqn --all"
    )


def convergence(iris: iris_demo.Dataset, methods: Sequence[str]) -> dict[str, list[float]]:
    """The loss at every evaluation of each fit, by method."""
    values = {method: iris_demo.values_seen(iris, method) for method in methods}
    scipy_values: list[float] = []
    if iris_demo.fit_scipy(iris, on_value=scipy_values.append):
        values["scipy BFGS"] = scipy_values
    return values


def plot(
    path: Path,
    iris: iris_demo.Dataset,
    spread: iris_demo.Spread,
    values: dict[str, list[float]],
    fitted: petals_demo.CurveFit,
) -> None:
    """Draws the parameters with their intervals, the convergence of each method, and the curve."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(15, 4.5), layout="constrained")
    left, middle, right = figure.subplots(1, 3)
    names = ("intercept", *iris.features)
    for column, species in enumerate(iris.species):
        estimate = spread.estimate[:, column]
        below, above = estimate - spread.lower[:, column], spread.upper[:, column] - estimate
        # An estimate may lie outside its percentile interval; a bar has no negative length.
        bars = np.maximum([below, above], 0)
        positions = np.arange(len(names)) + 0.2 * (column - 1)
        left.errorbar(positions, estimate, bars, fmt="o", capsize=3, label=species)
    left.axhline(0, color="grey", linewidth=0.8)
    left.set(xticks=range(len(names)), ylabel="parameter and 95 % interval", title="bootstrap")
    left.set_xticklabels(names, rotation=15)
    left.legend()
    lowest = min(min(seen) for seen in values.values())
    for method, seen in values.items():
        excess, width = np.minimum.accumulate(seen) - lowest, 3 if method == FEW_METHODS[0] else 1
        middle.loglog(1 + np.arange(len(seen)), excess, label=method, linewidth=width)
    middle.set(xlabel="evaluations", ylabel="loss above the lowest seen", title="convergence")
    middle.legend()
    draw_curve(right, iris, fitted)
    figure.savefig(path)


def draw_curve(axis: Any, iris: iris_demo.Dataset, fitted: petals_demo.CurveFit) -> None:
    """The petals, the curve, and two standard errors of it to either side."""
    length, width = petals_demo.petals(iris)
    grid = np.linspace(float(length.min()), float(length.max()), 100).astype(length.dtype)
    band = fitted.errors.transform(lambda p: petals_demo.curve(p, jnp.asarray(grid)))
    for column, species in enumerate(iris.species):
        chosen = np.asarray(iris.Y[:, column]) > 0
        axis.plot(length[chosen], width[chosen], "o", markersize=3, label=species)
    axis.plot(grid, band.value, "k")
    reach = 2 * band.standard_errors
    axis.fill_between(grid, band.value - reach, band.value + reach, color="k", alpha=0.2)
    axis.set(xlabel="petal length, cm", ylabel="petal width, cm", title="least squares")
    axis.legend()


if __name__ == "__main__":
    sys.exit(main())
