"""Reinforcement learning: Q-values learnt from an environment by any optimiser of the repository.

`losses` has the mathematics (temporal differences, target networks, functional regularisation),
`training` the outer loop, `qlearning` the task.
"""

from bayesrule.tasks.rl.qlearning import QLearning

__all__ = ["QLearning"]
