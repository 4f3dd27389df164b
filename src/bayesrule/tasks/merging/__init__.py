"""task=merging: a base model and fine-tuned ones become one, or a task is removed from one."""

from bayesrule.tasks.merging.parts import Part, Parts
from bayesrule.tasks.merging.task import Merging
from bayesrule.tasks.merging.training import Ingredients

__all__ = ["Ingredients", "Merging", "Part", "Parts"]
