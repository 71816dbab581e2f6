"""The regression problems of NIST (StRD), read from a folder outside of this one.

``nist.json`` maps a name to ``start1``, ``start2``, ``certified``, ``sd`` (of
the parameters), ``rss`` (the sum of squares), ``rsd`` (the residuals' standard
deviation), ``x`` and ``y``; ``models.residual(name)`` in ``models.py`` is a
function ``(b, x, y) -> model - y``.
"""

import functools
import importlib.util
import json
import pathlib
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

QUICK = 5


class Problem(NamedTuple):
    """One regression problem.

    Attributes:
      name: as NIST calls it.
      residual: ``(b, x, y) -> (m,)``, the same object at every call, so that
        nothing is compiled twice.
      data: ``(x, y)``.
      starts: the two first points, the farther one first.
      certified: the solution, to 11 digits.
      sd: the certified standard deviations of the parameters.
      cost: half of the certified sum of squares.
      deviation: certified standard deviation of the residuals.
    """

    name: str
    residual: Callable
    data: tuple[Any, Any]
    starts: tuple[Any, Any]
    certified: Any
    sd: Any
    cost: float
    deviation: float

    def runs(self):
        """``(label, first point)`` of both starts."""
        return [(f"{self.name} {k}", start) for k, start in enumerate(self.starts, 1)]


@functools.cache
def read(folder: str) -> tuple[Problem, ...]:
    """All problems of a folder."""
    path = pathlib.Path(folder)
    spec = importlib.util.spec_from_file_location("nist_models", path / "models.py")
    models = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(models)
    return tuple(
        Problem(
            name=name,
            residual=models.residual(name),
            data=(np.array(p["x"], float), np.array(p["y"], float)),
            starts=(np.array(p["start1"], float), np.array(p["start2"], float)),
            certified=np.array(p["certified"], float),
            sd=np.array(p["sd"], float),
            cost=0.5 * p["rss"],
            deviation=p["rsd"],
        )
        for name, p in json.loads((path / "nist.json").read_text()).items()
    )


def problems(options) -> list[Problem]:
    """The problems asked for."""
    return list(read(options.nist))[:: QUICK if options.quick else 1]


def digits(value, certified) -> float:
    """Correct digits of the worst parameter, between 0 and 11."""
    value = np.asarray(value, float)
    if not np.all(np.isfinite(value)):
        return 0.0
    error = np.max(np.abs(value - certified) / np.abs(certified))
    return float(np.clip(-np.log10(max(error, 1e-30)), 0.0, 11.0))
