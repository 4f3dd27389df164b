"""The ridge study of gradient-matching-merging: exact where it must be, run through its task."""

import pytest

from bayesrule.config import compose
from bayesrule.runs import RunStore
from bayesrule.tasks.execute import execute


@pytest.mark.parametrize("seed", [0, 1])
def test_full_matrices_are_exact_and_diagonals_are_not(tmp_path, seed):
    config = compose(["experiment=gradient-matching-merging/ridge", f"seed={seed}"])
    record = execute(config, RunStore(tmp_path), tell=lambda text: None)
    assert record.status == "done", record.error
    found = record.metrics
    assert found["joint/ug"] < 1e-8
    assert found["removal/ug"] < 1e-8
    for name in ("joint/ug_diag", "joint/ta", "joint/fisher", "removal/ug_diag", "removal/ta"):
        assert found[name] > 1e-3
