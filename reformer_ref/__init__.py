"""reformer_ref: the Reformer (Kitaev, Kaiser, Levskaya, ICLR 2020), every component written twice.

Each room (``hashing``, ``lsh_attention``, ``reversible``, …) holds a plain NumPy ``spec`` that
reads like the paper, a ``pytorch`` version that is fast, and the ``checks`` that both must pass.
Importing the package itself imports neither torch nor numpy.
"""

__version__ = "0.1.0"
