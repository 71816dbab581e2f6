"""The first run: what it prints is true, and bad options are said clearly."""

import re

import jax
import numpy as np
import pytest
from scipy.optimize import minimize as scipy_minimize

from jaxqn.__main__ import main
from jaxqn.demo import iris as iris_demo


@pytest.fixture(scope="module")
def iris():
    return iris_demo.load_iris("float64")


def independent_loss(iris):
    """The lowest regularised loss, by NumPy and SciPy alone."""
    start, unravel = jax.flatten_util.ravel_pytree(iris_demo.zero_params(iris))
    shares = np.asarray(iris_demo.equal_shares(iris))
    X, Y = np.asarray(iris.X), np.asarray(iris.Y)

    def fun(flat):
        params = jax.tree.map(np.asarray, unravel(flat))
        scores = np.asarray(iris_demo.logits(params, X))
        top = scores.max(axis=1, keepdims=True)
        log_p = scores - top - np.log(np.exp(scores - top).sum(axis=1, keepdims=True))
        return -np.sum(shares * np.sum(Y * log_p, axis=1))

    def penalty(flat):
        params = unravel(flat)
        return float(iris_demo.loss(params, X, Y, shares)) - fun(flat)

    both = scipy_minimize(lambda flat: fun(flat) + penalty(flat), np.asarray(start), method="BFGS")
    return both.fun


def test_the_data_are_fishers(iris):
    assert iris.X.shape == (150, 4)
    np.testing.assert_allclose(np.asarray(iris.X).mean(axis=0), 0, atol=1e-12)
    assert np.asarray(iris.Y).sum(axis=0).tolist() == [50, 50, 50]


def test_the_table_is_true(iris, capsys):
    """The printed loss is the one that an independent fit reaches, for every method printed."""
    arguments = ["--dtype", "float64", "--resamples", "20"]
    assert main([*arguments, "--method", "osbfgs", "--method", "bfgs"]) == 0
    out = capsys.readouterr().out
    rows = {line.split()[0]: line.split() for line in out.splitlines() if line.strip()}
    expected = independent_loss(iris)
    for name in ("osbfgs", "bfgs"):
        assert "converged" in rows[name]
        assert abs(float(rows[name][-1]) - expected) < 1e-6
    assert re.search(r"^20 bootstrap resamples", out, re.MULTILINE)
    assert len(re.findall(r"^(?:setosa|versicolor|virginica) ", out, re.MULTILINE)) == 15


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--method", "simplex"], ["simplex", *iris_demo.METHODS]),
        (["--dtype", "float16"], ["float16", "float32", "float64"]),
        (["--resamples", "-3"], ["-3"]),
        (["--plot", "picture.xyz"], ["picture.xyz", ".png"]),
    ],
)
def test_bad_options(arguments, words, capsys):
    with pytest.raises(SystemExit) as end:
        main(arguments)
    assert end.value.code == 2
    message = capsys.readouterr().err
    assert [word for word in words if word not in message] == []


def test_no_picture_into_a_folder(tmp_path, capsys):
    path = tmp_path / "iris.PNG"
    path.mkdir()
    with pytest.raises(SystemExit):
        main(["--plot", str(path)])
    assert "this is a folder" in capsys.readouterr().err


def test_the_picture(tmp_path, capsys):
    path = tmp_path / "iris.png"
    assert main(["--method", "osbfgs", "--resamples", "10", "--plot", str(path)]) == 0
    assert path.read_bytes().startswith(b"\x89PNG")
    assert "iris.png" in capsys.readouterr().out


def test_help(capsys):
    with pytest.raises(SystemExit) as end:
        main(["--help"])
    assert end.value.code == 0
    assert "--resamples" in capsys.readouterr().out
