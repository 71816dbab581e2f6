"""Chunks of a batch through one program: the same results, also after a kill."""

import functools
import json
import os
import signal
import subprocess
import sys
import time
import types
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from programs import TraceCounter

import jaxqn
from jaxqn.drivers.chunk_files import without_addresses
from jaxqn.drivers.minimize_stream import minimize_stream

HERE = Path(__file__).parent
COUNT = 103


def bowl(x, centre, scale):
    """A smooth bowl with its own bottom; what it cost and where it is, as auxiliary output."""
    away = x["a"] - centre
    value = scale * jnp.sum(jnp.cosh(away)) + 0.5 * (x["b"] - jnp.sum(centre)) ** 2
    return value, {"away": away, "small": jnp.max(jnp.abs(away)).astype(jnp.bfloat16)}


@functools.cache
def inputs():
    """NumPy arrays; problems along the last axis of some, and not at all along others."""
    rng = np.random.default_rng(0)
    x0 = {"a": rng.normal(size=(COUNT, 2)), "b": np.zeros(())}
    return x0, (2 * rng.normal(size=(2, COUNT)), np.float64(1.5))


AXES = ({"a": 0, "b": None}, -1, None)
stream = functools.partial(
    minimize_stream, bowl, in_axes=AXES, chunk=20, lanes=4, has_aux=True, gtol=1e-8
)


@pytest.fixture(scope="module")
def whole():
    x0, args = inputs()
    return stream(x0, args)


def assert_equal(a, b):
    """Bit for bit, with the same types."""
    assert jax.tree.structure(a) == jax.tree.structure(b)

    def check(a, b):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a, b)

    jax.tree.map(check, a, b)


def test_it_is_the_batch(whole):
    """The last chunk holds 3 of 20."""
    x0, args = inputs()
    batch = jaxqn.minimize_batch(
        bowl, x0, args, in_axes=AXES, lanes=4, has_aux=True, gtol=1e-8
    )._replace(state=None)
    assert all(isinstance(leaf, np.ndarray) for leaf in jax.tree.leaves(whole))
    assert whole.state is None
    assert jax.tree.map(jnp.shape, whole) == jax.tree.map(jnp.shape, batch)
    assert jax.tree.map(lambda a: a.dtype, whole) == jax.tree.map(lambda a: a.dtype, batch)
    for field in ("status", "nit", "nfev"):
        np.testing.assert_array_equal(getattr(whole, field), getattr(batch, field))
    for field in ("x", "fun", "jac", "aux"):
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(
                a.astype(float), b.astype(float), rtol=1e-9, atol=1e-9
            ),
            getattr(whole, field),
            getattr(batch, field),
        )
    assert whole.success.all()
    np.testing.assert_allclose(whole.x["a"], args[0].T, atol=1e-7)


def test_one_program_for_all_chunks_and_calls(capsys):
    """Nor does progress, printed without tqdm, compile anything."""
    fun = TraceCounter(lambda x, centre: jnp.sum((x - centre) ** 4))
    centres = np.random.default_rng(1).normal(size=(31, 2))
    call = functools.partial(minimize_stream, fun, np.zeros(2), in_axes=(None, 0), lanes=2, chunk=5)
    call((centres[:5],))
    traces = fun.traces
    call((centres,))
    result = call((1 - centres,), gtol=1e-2)
    assert fun.traces == traces
    assert result.success.all()
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("has_tqdm", [True, False])
def test_progress(has_tqdm, monkeypatch, capsys, whole):
    """tqdm's bar if there is one; else lines, the last of which counts all problems."""
    shown = []

    class Bar:
        def __init__(self, total, unit):
            self.total, self.unit, self.n = total, unit, 0

        def update(self, more):
            self.n += more
            shown.append((self.n, self.total))

    monkeypatch.setitem(sys.modules, "tqdm", types.SimpleNamespace(tqdm=Bar) if has_tqdm else None)
    x0, args = inputs()
    assert_equal(stream(x0, args, progress=True), whole)
    out, err = capsys.readouterr()
    assert not out
    if has_tqdm:
        assert shown == [(done, COUNT) for done in (20, 40, 60, 80, 100, 103)]
        assert not err
    else:
        assert err.splitlines()[-1] == f"{COUNT} of {COUNT} problems"


def test_files_on_disk_are_read_chunk_by_chunk(tmp_path, whole):
    """``np.memmap``, in whatever order of axes."""
    x0, args = inputs()
    np.save(tmp_path / "centres.npy", args[0])
    mapped = np.load(tmp_path / "centres.npy", mmap_mode="r")
    assert isinstance(mapped, np.memmap)
    assert_equal(stream(x0, (mapped, args[1])), whole)


def test_float32():
    centres = np.random.default_rng(2).normal(size=(9, 2)).astype(np.float32)

    def fun(x, centre):
        return jnp.sum((x - centre) ** 2)

    result = minimize_stream(fun, 0 * centres, (centres,), chunk=4)
    assert result.x.dtype == result.fun.dtype == result.jac.dtype == np.float32
    np.testing.assert_allclose(result.x, centres, rtol=1e-5)


# On disk.


def chunk_files(folder):
    return sorted(folder.glob("from-*.npz"))


@pytest.fixture
def kept(tmp_path, whole):
    """A folder with all chunks."""
    x0, args = inputs()
    folder = tmp_path / "results" / "run"
    assert_equal(stream(x0, args, folder=folder), whole)
    assert len(chunk_files(folder)) == 6
    return folder


def computed(monkeypatch):
    """A list that grows by one for every chunk that is solved, and so written, from now on."""
    calls, savez = [], np.savez

    def counted(file, **arrays):
        calls.append(len(arrays["leaf0"]))
        savez(file, **arrays)

    monkeypatch.setattr(np, "savez", counted)
    return calls


def test_what_is_there_is_not_computed_again(kept, whole, monkeypatch, capsys):
    calls = computed(monkeypatch)
    monkeypatch.setitem(sys.modules, "tqdm", None)
    x0, args = inputs()
    assert_equal(stream(x0, args, folder=str(kept), progress=True), whole)
    assert calls == []
    assert capsys.readouterr().err.splitlines()[-1] == f"{COUNT} of {COUNT} problems"


def test_damaged_files_are_computed_again(kept, whole, monkeypatch):
    """Cut short, empty, garbled, something else, or missing."""
    files = chunk_files(kept)
    data = files[0].read_bytes()
    files[0].write_bytes(data[: len(data) // 2])
    files[1].write_bytes(b"")
    data = bytearray(files[2].read_bytes())
    place = data.index(whole.fun[40:42].tobytes())
    data[place] ^= 1
    files[2].write_bytes(data)
    np.savez(files[3], other=np.zeros(3))
    files[4].unlink()
    (kept / "from-000000080.unfinished").write_bytes(data[:100])
    calls = computed(monkeypatch)
    x0, args = inputs()
    assert_equal(stream(x0, args, folder=kept), whole)
    assert calls == [20] * 5
    assert_equal(stream(x0, args, folder=kept), whole)
    assert len(calls) == 5


def steeper(x, centre, scale):
    value, aux = bowl(x, centre, scale)
    return value + jnp.sum(x["a"] ** 2), aux


@pytest.mark.parametrize(
    ("words", "changes"),
    [
        ("chunk: 20 there, 30 here", {"chunk": 30}),
        (
            "gtol: 1e-08 there, 1e-06 here; maxfun: None there, 9.0 here",
            {"gtol": 1e-6, "maxfun": 9},
        ),
        ("lanes: 4 there, 5 here", {"lanes": 5}),
        ("method: osbfgs there, bfgs here", {"method": "bfgs"}),
        ("another objective, method or line search", {"linesearch": jaxqn.backtracking()}),
        ("another objective, method or line search", {"fun": steeper}),
        ("digest of what all problems share: ", {"scale": np.float64(1.25)}),
        ("digest of what all problems share: ", {"hess_inv0": 2 * np.eye(3)}),
        ("inputs of from-000000060.npz have changed", {"centre": (0, 70, 1e-9)}),
        ("problems: 103 there, 102 here", {"first": 102}),
    ],
)
def test_another_call_is_refused(kept, words, changes):
    """What differs, and what to do; nothing in the folder is touched."""
    before = {path: path.read_bytes() for path in kept.iterdir()}
    x0, (centre, scale) = inputs()
    scale = changes.pop("scale", scale)
    if "centre" in changes:
        *where, change = changes.pop("centre")
        centre = centre.copy()
        centre[*where] += change
    first = changes.pop("first", COUNT)
    x0, centre = x0 | {"a": x0["a"][:first]}, centre[:, :first]
    options = stream.keywords | {"folder": kept} | changes
    with pytest.raises(ValueError, match="holds the results of another call") as error:
        minimize_stream(options.pop("fun", bowl), x0, (centre, scale), **options)
    assert words in str(error.value)
    assert str(kept) in str(error.value)
    assert "give another folder, or delete that one" in str(error.value)
    assert {path: path.read_bytes() for path in kept.iterdir()} == before


def test_the_manifest_can_be_read(kept):
    manifest = json.loads((kept / "manifest.json").read_text("utf-8"))
    assert manifest["problems"] == COUNT
    assert manifest["chunk"] == 20
    assert manifest["method"] == "osbfgs"
    assert manifest["gtol"] == 1e-8
    assert "float64(2,)" in manifest["arrays"]


KILLED = """
import sys, time
import jax, numpy as np
jax.config.update("jax_enable_x64", True)
from test_stream import inputs, stream

savez, solved = np.savez, 0

def counted(file, **arrays):
    global solved
    solved += 1
    savez(file, **arrays)
    time.sleep(float(sys.argv[2]))

np.savez = counted
x0, args = inputs()
result = stream(x0, args, folder=sys.argv[1])
print("solved", solved)
"""


def run_apart(folder, pause):
    """The same call in a process of its own, which waits after every chunk."""
    path = os.pathsep.join([str(HERE), str(HERE.parent), str(HERE.parents[1])])
    return subprocess.Popen(
        [sys.executable, "-c", KILLED, str(folder), str(pause)],
        env=os.environ | {"PYTHONPATH": path},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_a_killed_run_goes_on(tmp_path, whole, monkeypatch):
    """SIGKILL as soon as two chunks are there; then the rest, bit for bit."""
    folder = tmp_path / "run"
    process = run_apart(folder, pause=0.5)
    try:
        limit = time.monotonic() + 120
        while len(chunk_files(folder)) < 2 and process.poll() is None:
            assert time.monotonic() < limit
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        output = process.communicate()
    finally:
        process.kill()
    assert process.returncode == -signal.SIGKILL, output
    there = len(chunk_files(folder))
    assert 2 <= there < 6
    calls = computed(monkeypatch)
    x0, args = inputs()
    assert_equal(stream(x0, args, folder=folder), whole)
    assert len(calls) == 6 - there


# Errors.


def test_tracing_is_refused():
    x0, args = inputs()
    with pytest.raises(TypeError, match=r"runs on the host.*minimize_batch"):
        jax.jit(lambda x0: stream(x0, args))(x0)
    with pytest.raises(TypeError, match="being traced"):
        jax.jit(lambda gtol: stream(x0, args, gtol=gtol))(1e-3)


@pytest.mark.parametrize(
    ("error", "words", "changes"),
    [
        (ValueError, "chunk must be a whole number of at least 1, but it is 0", {"chunk": 0}),
        (ValueError, "chunk must be .* but it is True", {"chunk": True}),
        (ValueError, "chunk must be .* but it is 1.5", {"chunk": 1.5}),
        (ValueError, "lanes must be", {"lanes": 0}),
        (ValueError, "simplex", {"method": "simplex"}),
        (ValueError, "nothing runs over problems", {"in_axes": None}),
        (ValueError, "in_axes has 2 entries, but there are 3", {"in_axes": (0, 0)}),
        (ValueError, "differ in size", {"in_axes": ({"a": 0, "b": None}, 0, None)}),
        (TypeError, "args must be a tuple", {"args": np.ones((COUNT, 2))}),
        (
            TypeError,
            r"x0\['a'\] has dtype int",
            {"x0": {"a": np.ones((COUNT, 2), int), "b": np.zeros(())}},
        ),
        (TypeError, r"must return a scalar.*has_aux=True", {"has_aux": False}),
        (TypeError, "mesh must be a jax.sharding.Mesh", {"mesh": [None]}),
        (
            TypeError,
            r"args\[0\] has dtype >f8, whose bytes are in the other order",
            {"args": (np.ones((2, COUNT), ">f8"), 1.5)},
        ),
        (
            TypeError,
            "x0 has dtype >f8",
            {"x0": {"a": np.ones((COUNT, 2), ">f8"), "b": np.zeros(())}},
        ),
        (
            TypeError,
            "random keys cannot run over problems",
            {
                "args": (jax.random.split(jax.random.key(0), COUNT), 1.5),
                "in_axes": (AXES[0], 0, None),
            },
        ),
    ],
)
def test_bad_input(error, words, changes, tmp_path):
    """Said before anything is computed or written."""
    x0, args = inputs()
    call = stream.keywords | {"x0": x0, "args": args, "folder": tmp_path / "new"} | changes
    with pytest.raises(error, match=words):
        minimize_stream(bowl, **call)
    assert not (tmp_path / "new").exists()


def test_axes_without_a_tuple_hold_for_every_argument():
    """As in a batch."""

    def fun(x):
        return jnp.sum((x["a"] - x["b"]) ** 2)

    x0, axes = {"a": np.zeros((3, 2)), "b": np.ones(2)}, {"a": 0, "b": None}
    result = minimize_stream(fun, x0, in_axes=axes)
    batch = jaxqn.minimize_batch(fun, x0, in_axes=axes)
    np.testing.assert_allclose(result.x["a"], batch.x["a"], rtol=1e-12)


def test_a_manifest_that_is_none(tmp_path):
    x0, args = inputs()
    for words in ("", "[]", "[1]"):
        (tmp_path / "manifest.json").write_text(words)
        with pytest.raises(ValueError, match=r"manifest\.json cannot be read"):
            stream(x0, args, folder=tmp_path)


# What JAX has and NumPy has not.


def test_a_random_key_for_all_problems(tmp_path):
    def noisy(x, key):
        return jnp.sum((x - jax.random.normal(key, (2,))) ** 2), key

    key, x0 = jax.random.key(0), np.zeros((3, 2))
    call = functools.partial(minimize_stream, args=(key,), in_axes=(0, None))
    result = call(lambda x, key: noisy(x, key)[0], x0, folder=tmp_path)
    np.testing.assert_allclose(result.x, [jax.random.normal(key, (2,))] * 3, atol=1e-7)
    with pytest.raises(TypeError, match="fun returns random keys"):
        call(noisy, x0, has_aux=True)


def test_a_matrix_to_start_from_in_single_precision(rng):
    """Input of NumPy's float64, run in float32, of which the matrix is the inverse."""
    A = rng.normal(size=(6, 6))
    with jax.enable_x64(False):
        H0 = jnp.linalg.inv(jnp.asarray(A @ A.T + 0.1 * np.eye(6), jnp.float32))
        fun = lambda x, t: jnp.sum((x - t) ** 2)  # noqa: E731
        result = minimize_stream(fun, np.zeros((3, 6)), (np.ones((3, 6)),), hess_inv0=H0, maxiter=1)
    assert result.x.dtype == np.float32


def test_a_function_in_the_structure_is_named_without_its_address():
    structure = jax.tree.structure(jax.tree_util.Partial(bowl, 1.0))
    assert "bowl" in without_addresses(structure)
    assert "0x" in str(structure)
    assert "0x" not in without_addresses(structure)
