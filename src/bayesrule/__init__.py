"""bayesrule: the Bayesian learning rule, its optimisers, posteriors and papers, in one place.

Importing the package is free of heavy dependencies; rooms are imported by name::

    from bayesrule.optim import IVON
    from bayesrule.posteriors import DiagonalGaussian
"""

__version__ = "0.1.0"
__all__ = ["__version__"]
