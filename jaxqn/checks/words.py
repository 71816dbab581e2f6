"""Words that other libraries use, and what they are called here."""

import difflib
import functools
import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

__all__ = ["answered", "answered_part", "check_keywords", "nearest"]

ELSEWHERE = {
    "tol": "the tolerance is gtol=, for the largest entry of the gradient; ftol= and xtol= are for "
    "the change of the value and of x",
    "options": "options are arguments here: options={'gtol': 1e-5, 'maxiter': 99} is gtol=1e-5, "
    "maxiter=99",
    "jac": "JAX differentiates fun; to bring your own gradient, put jax.custom_vjp around fun",
    "hess": "JAX makes the Hessian: method='newton' takes it",
    "hessp": "JAX makes Hessian-vector products, and no method needs them of you",
    "constraints": "there are bounds= and no other constraints",
    "max_iter": "it is maxiter=",
    "max_steps": "it is maxfun= for evaluations, or maxiter= for steps",
    "max_nfev": "it is maxfun=",
    "maxfev": "it is maxfun=",
    "max_evals": "it is maxfun=",
    "disp": "it is progress=True",
    "verbose": "it is progress=True",
    "progress": "minimize and least_squares have it, and minimize_stream, for a batch in chunks",
    "callback": "minimize and least_squares have it; many problems at once are one program",
    "history": "minimize and least_squares have it, also under jax.vmap",
    "state": "minimize and least_squares have it; minimize_stream(folder=...) goes on after a kill",
    "return_all": "a callback sees every result: callback=lambda result: points.append(result.x)",
    "rtol": "a run stops by its gradient, gtol=; xtol= is relative to the size of x",
    "atol": "a run stops by its gradient, gtol=; ftol= and xtol= are relative",
    "throw": "nothing is thrown: see result.status and result.message",
    "x": "the first point is x0",
    "y0": "the first point is x0",
    "init_params": "the first point is x0",
    "fn": "the objective is fun",
    "f": "the objective is fun",
    "lr": "there is no learning rate: a line search finds the step",
    "learning_rate": "a line search finds the step; with a learning rate of your own, take "
    "optax.chain with jaxqn.scale_by_bfgs()",
    "implicit_diff": "it is implicit=, and on by default",
    "jit": "it is always compiled",
    "hess_inv": "it is hess_inv0=",
    "history_length": "it is method=jaxqn.lbfgs_memory(20)",
    "history_size": "it is method=jaxqn.lbfgs_memory(20)",
    "maxcor": "it is method=jaxqn.lbfgs_memory(20)",
    "line_search": "it is linesearch=",
    "max_linesearch_steps": "it is linesearch=jaxqn.wolfe(max_trials=20)",
    "solver": "it is method=, a name or a jaxqn.QuasiNewton",
    "diff_step": "JAX differentiates exactly: there are no differences",
    "n_jobs": "minimize_batch and multi_start use all cores, and mesh= several devices",
}
"""Arguments of SciPy, optax, optimistix and jaxopt, and what to write instead."""

SAME = {
    "lr": "learning_rate",
    "step_size": "learning_rate",
    "stepsize": "learning_rate",
    "memory_size": "memory",
    "history_size": "memory",
    "history_length": "memory",
    "maxcor": "memory",
    "line_search": "linesearch",
}
"""Words of other libraries for arguments that some functions have by another name."""

SEPARATE = (
    "it gives directions only: put optax.scale_by_learning_rate(0.1), or jaxqn.scale_by_linesearch "
    "and optax.scale(-1.0), after it in an optax.chain"
)
PARTS = ELSEWHERE | dict.fromkeys(
    ("lr", "learning_rate", "step_size", "stepsize", "linesearch", "line_search"), SEPARATE
)
"""What to write instead where a transformation is one part of a chain."""

Function = TypeVar("Function", bound=Callable[..., Any])


def nearest(word: str, known: Iterable[str]) -> str:
    """`` (did you mean 'this'?)``, or nothing if no known word is like it."""
    close = difflib.get_close_matches(word.casefold(), list(known), n=1)
    return f" (did you mean {close[0]!r}?)" if close else ""


def check_keywords(
    caller: str, given: Iterable[str], known: Iterable[str], words: Mapping[str, str] = ELSEWHERE
) -> None:
    """Raise for a keyword that the caller does not take, with what to write instead."""
    known = list(known)
    for word in sorted(set(given) - set(known)):
        if SAME.get(word, "") in known:
            raise TypeError(f"{caller} has no argument {word!r}: it is {SAME[word]}=")
        if word in words:
            raise TypeError(f"{caller} has no argument {word!r}: {words[word]}")
        raise TypeError(
            f"{caller} has no argument {word!r}{nearest(word, known)}; it takes "
            f"{', '.join(sorted(known))}"
        )


def answered(function: Function, words: Mapping[str, str] = ELSEWHERE) -> Function:
    """The function, which answers an argument that it does not know by what to write instead."""
    parameters = inspect.signature(function).parameters
    known = list(parameters)
    places = [name for name, p in parameters.items() if p.kind is p.POSITIONAL_OR_KEYWORD]

    @functools.wraps(function)
    def door(*args: Any, **kwargs: Any) -> Any:
        check_keywords(function.__name__, kwargs, known, words)
        if len(args) > len(places):
            raise TypeError(
                f"{function.__name__} takes {', '.join(places) or 'nothing'} by position and all "
                f"else by name, but it was given {len(args)} by position"
            )
        return function(*args, **kwargs)

    return door  # type: ignore[return-value]


def answered_part(function: Function) -> Function:
    """:func:`answered` for a transformation that is one part of a chain."""
    return answered(function, PARTS)
