"""What every correction must do in a stream, whatever it keeps of the past."""

import io
import math

import pytest
import torch
from corrections_cases import (
    CASES,
    N_TASKS,
    STREAMS,
    Case,
    StopAfter,
    assert_same,
    learner_of,
)

from bayesrule.config.compose import group_options
from bayesrule.tasks.continual.loop import make_correction
from bayesrule.tasks.signals import Stopped

every_case = pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])


def state_of(learner):
    """Return what decides everything that comes, and everything that was measured."""
    return {
        "model": learner.model.state_dict(),
        "optimizer": learner.optimizer.state_dict(),
        "correction": learner.correction.state_dict(),
        "scores": learner.scores.state_dict(),
    }


@pytest.fixture(scope="module")
def learnt(tmp_path_factory):
    """Return finished learners of the stream with heads, each made once; never changed."""
    made = {}

    def get(case):
        if case.name not in made:
            learner = learner_of(tmp_path_factory.mktemp("learnt"), case, "heads")
            sizes = []
            leave = learner._leave

            def note(t, path):
                sizes.append((learner.correction.n_items(), learner.correction.nbytes()))
                leave(t, path)

            learner._leave = note
            learner.run()
            made[case.name] = learner, sizes
        return made[case.name]

    return get


def killed(*_):
    raise InterruptedError


def test_every_option_has_a_row():
    assert {case.option for case in CASES} == set(group_options("correction"))
    assert len({case.name for case in CASES}) == len(CASES)


@pytest.fixture(scope="module")
def uncorrected(tmp_path_factory):
    """Return the network after one experience without a correction, by posterior."""
    made = {}

    def get(words):
        if words not in made:
            folder = tmp_path_factory.mktemp("none")
            learner = learner_of(folder, Case("none", words), "heads", tasks=1)
            learner.run()
            made[words] = learner.model.state_dict()
        return made[words]

    return get


@every_case
def test_the_first_experience_is_learnt_without_a_correction(case, uncorrected, tmp_path):
    if not case.waits:
        pytest.skip("it replays the current experience as well")
    learner = learner_of(tmp_path, case, "heads", tasks=1)
    learner.run()
    words = tuple(word for word in case.words if word.startswith("posterior"))
    assert_same(learner.model.state_dict(), uncorrected(words))


@every_case
def test_what_is_measured_is_finite_and_complete(case, learnt):
    learner, sizes = learnt(case)
    assert len(sizes) == N_TASKS
    found = learner.scores.summary()
    for name in ("acc", "nll", "ece", "forgetting", "bwt", "fwt", "learning_acc", "class_il_acc"):
        assert math.isfinite(found[f"test/{name}@mean"]), name
    assert all(torch.isfinite(p).all() for p in learner.model.parameters())


@every_case
@pytest.mark.parametrize("stream", sorted(set(STREAMS) - {"heads"}))
def test_other_streams(case, stream, tmp_path):
    first = next(each for each in CASES if each.option == case.option)
    if stream == "permuted" and case is not first:
        pytest.skip("one row of each option is enough")
    learner = learner_of(tmp_path, case, stream, tasks=2)
    learner.run()
    assert 0.0 <= learner.scores.summary()["test/acc@mean"] <= 1.0


@every_case
def test_memory_is_bounded(case, learnt):
    _, sizes = learnt(case)
    items, nbytes = zip(*sizes, strict=True)
    if case.items is not None:
        assert max(items) <= case.items
    if not case.growing:
        assert nbytes[-1] == nbytes[1], f"{case.name} grows: {nbytes}"
    else:
        assert nbytes[-1] > nbytes[0]


@every_case
def test_state_round_trip(case, learnt):
    """A correction made anew from stored state gives the same loss and gradient, and stores it."""
    learner, _ = learnt(case)
    buffer = io.BytesIO()
    torch.save(learner.correction.state_dict(), buffer)
    buffer.seek(0)
    state = torch.load(buffer, weights_only=True)
    results = []
    for correction in (learner.correction, make_correction(learner.problem.config["correction"])):
        correction.load_state_dict(state)
        assert_same(correction.state_dict(), state)
        correction.begin(learner.stream[-1], learner.past())
        with torch.no_grad():
            before = [p.clone() for p in learner.model.parameters()]
            for p in learner.model.parameters():
                p.mul_(1.01)
        torch.manual_seed(0)  # of dropout
        learner.model.train()
        learner.model.zero_grad()
        loss = correction.loss(learner.model)
        if loss is not None:
            loss.backward()
        grads = [torch.zeros(0) if p.grad is None else p.grad.clone()
                 for p in learner.model.parameters()]  # fmt: skip
        results.append([torch.zeros(()) if loss is None else loss.detach(), grads])
        with torch.no_grad():
            for p, value in zip(learner.model.parameters(), before, strict=True):
                p.copy_(value)
        correction.load_state_dict(state)
    assert_same(*results)


@every_case
def test_stopped_within_and_between_experiences(case, learnt, tmp_path):
    """Checkpoints at every step; stopped after several of them, the run ends bit-equal."""
    whole, _ = learnt(case)
    for looks in (3, 9, 8):
        learner = learner_of(tmp_path, case, "heads", stop=StopAfter(looks))
        with pytest.raises(Stopped):
            learner.run()
    learner = learner_of(tmp_path, case, "heads")
    learner._leave = killed  # an experience is learnt and absorbed, its position not yet written
    with pytest.raises(InterruptedError):
        learner.run()
    learner = learner_of(tmp_path, case, "heads")
    learner.run()
    assert_same(state_of(learner), state_of(whole))
