"""Classical algorithms, written without the rule: what its recipes are compared with.

NumPy loops, SciPy, scikit-learn and `torch.optim`. They share data, starts, batches and noise with
the recipes (`bayesrule.rule.problems`), and no code of the rule.
"""
