"""Inside other libraries: their own interfaces, with the loop of jaxqn behind.

Importing jaxqn imports none of these modules, and this package imports no other library. Each
module imports its library when it is imported itself, and says how to install it if it is missing:
``jaxqn.adapters.optimistix``, ``jaxqn.adapters.numpyro``, ``jaxqn.adapters.pyhf`` and
``jaxqn.adapters.nemos``.
"""

__all__: list[str] = []
