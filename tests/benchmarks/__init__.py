"""Benchmarks: jaxqn and its peers side by side, in one run.

``python -m tests.benchmarks`` runs them; only ratios within one run mean
anything. See `tests.benchmarks.__main__`.
"""
