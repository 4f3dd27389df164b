"""functional-q, linear policy evaluation: operators against recursions, and the known examples."""

import numpy as np
import pytest
import torch

from bayesrule.config import locate, root_dir


def of_paper(name, module="linear_td"):
    return locate(f"experiments.functional-q.{module}.{name}", root=root_dir())


two_state, three_state, baird = (of_paper(n) for n in ("two_state", "three_state", "baird"))
random_problem, spectral_radius = of_paper("random_problem"), of_paper("spectral_radius")
ETA = {"two_state": 0.01, "three_state": 0.1, "baird": 0.1, "random": 0.1}


def problems():
    stream = torch.Generator().manual_seed(0)
    return {
        "two_state": two_state(),
        "three_state": three_state(),
        "baird": baird().reduced(),
        "random": random_problem(stream, states=6, features=3, gamma=0.9),
    }


@pytest.mark.parametrize("name", ETA)
@pytest.mark.parametrize("method", ["td", "tn", "fr"])
@pytest.mark.parametrize("period", [1, 7])
def test_recursions_are_powers_of_the_operators(name, method, period):
    """I4: after K periods the error is M^K times the first one."""
    problem, eta, kappa, count = problems()[name], ETA[name], 0.7, 5
    start = torch.linspace(-1.0, 2.0, problem.b.numel(), dtype=torch.float64)
    end = problem.simulate(method, start, eta=eta, period=period, periods=count, kappa=kappa)
    operator = {
        "td": problem.td(eta, period),
        "tn": problem.tn(eta, period),
        "fr": problem.fr(eta, period, kappa),
    }[method]
    fixed = problem.fixed_point()
    expected = fixed + torch.linalg.matrix_power(operator, count) @ (start - fixed)
    torch.testing.assert_close(end, expected, rtol=1e-10, atol=1e-10)


def test_one_update_per_period_is_td():
    """A copy after every update leaves no lag: TN and FR are then TD."""
    for name, problem in problems().items():
        td = problem.td(ETA[name])
        torch.testing.assert_close(problem.tn(ETA[name], 1), td, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(problem.fr(ETA[name], 1, 0.7), td, rtol=1e-12, atol=1e-12)


def test_the_two_state_example():
    """I6: TD and FR converge, a target network diverges."""
    problem = two_state()
    numbers = {
        "C": (problem.C, 1.4),
        "A": (problem.A, 4.1661),
        "M_PVI": (problem.tn(0.01, None), -1.975786),
        "M_TD": (problem.td(0.01), 0.958339),
        "M_FR": (problem.fr(0.01, None, 1.0), 0.251523),
        "w*": (problem.fixed_point(), 0.228031),
    }
    for name, (found, expected) in numbers.items():
        assert float(found) == pytest.approx(expected, abs=5e-7), name


def test_bairds_star():
    """I7: per-period radii at eta = 0.1, T = 100, in the row space (eight weights, rank seven)."""
    star = baird()
    assert torch.linalg.matrix_rank(star.features) == 7
    problem = star.reduced()
    assert problem.features.shape == (7, 7)
    radii = {
        "td": (spectral_radius(problem.td(0.1, 100)), 10.636939),
        "tn": (spectral_radius(problem.tn(0.1, 100)), 0.989783),
        "fr 0.2": (spectral_radius(problem.fr(0.1, 100, 0.2)), 0.941046),
        "fr 1": (spectral_radius(problem.fr(0.1, 100, 1.0)), 0.990101),
    }
    for name, (found, expected) in radii.items():
        assert found == pytest.approx(expected, abs=5e-7), name


@pytest.mark.parametrize("seed", range(5))
def test_limits_are_the_fixed_point(seed):
    """I8: wherever TN or FR converges, it converges to A^-1 b."""
    stream = torch.Generator().manual_seed(seed)
    problem = random_problem(stream, states=5, features=2, gamma=0.8)
    start = torch.ones(2, dtype=torch.float64)
    fixed = torch.from_numpy(np.linalg.solve(problem.A.numpy(), problem.b.numpy()))
    converged = 0
    for method, operator in (
        ("tn", problem.tn(0.5, 40)),
        ("fr", problem.fr(0.5, 40, 0.5)),
        ("fr", problem.fr(0.5, 40, 1.5)),
    ):
        kappa = {2: 0.5, 3: 1.5}.get(converged + 1, 0.0) if method == "fr" else 0.0
        if spectral_radius(operator) < 0.95:
            options = {"eta": 0.5, "period": 40, "periods": 500, "kappa": kappa}
            end = problem.simulate(method, start, **options)
            torch.testing.assert_close(end, fixed, rtol=1e-8, atol=1e-8)
            converged += 1
    assert converged >= 2


def test_three_states_where_only_regularisation_converges():
    """C3: TD and TN diverge for every T; FR converges exactly in a window of kappa."""
    problem = three_state()
    lam = problem.modes()[0]
    low, high = -float(lam.real), float(lam.abs() ** 2 / (2 * -lam.real))
    assert (low, high) == pytest.approx((0.0607142857, 2.6247394958))
    assert spectral_radius(problem.td(0.01)) > 1.0
    for period in [*range(1, 200), 1000, 10_000]:
        assert spectral_radius(problem.tn(0.1, period)) > 1.0
    for kappa, converges in (
        (0.9 * low, False),
        (1.1 * low, True),
        (1.0, True),
        (0.98 * high, True),
        (1.02 * high, False),
    ):
        # T so large that the inner loop has converged, or blown up
        radius = spectral_radius(problem.fr(0.005, 400_000, kappa))
        assert (radius < 1.0) == converges, kappa


def test_conditions_from_the_modes():
    """TN(inf) multiplies a mode by 1 - lambda, FR(inf) by kappa / (kappa + lambda)."""
    for name, problem in problems().items():
        lam = problem.modes()
        tn = spectral_radius(problem.tn(0.1, None))
        assert tn == pytest.approx(float((1 - lam).abs().max()), rel=1e-9), name
        fr = spectral_radius(problem.fr(0.1, None, 0.5))
        assert fr == pytest.approx(float((0.5 / (0.5 + lam)).abs().max()), rel=1e-9), name


def test_the_extra_term_of_a_target_network_is_no_gradient():
    """C1: it is B (w - wbar) up to gamma, with an asymmetric B; FR's C is symmetric and >= 0."""
    problem = problems()["random"]
    w, wbar = (torch.randn(3, generator=torch.Generator().manual_seed(s)).double() for s in (1, 2))
    td = problem.b - problem.A @ w
    tn = problem.b + 0.9 * problem.B @ wbar - problem.C @ w
    torch.testing.assert_close(tn - td, -0.9 * problem.B @ (w - wbar))
    assert (problem.B - problem.B.T).norm() > 1e-2
    assert torch.equal(problem.C, problem.C.T) or torch.allclose(problem.C, problem.C.T, atol=1e-15)
    assert (torch.linalg.eigvalsh(problem.C) > 0).all()


def test_whitening_and_reduction_change_no_function():
    problem = problems()["random"]
    assert torch.allclose(problem.C, torch.eye(3, dtype=torch.float64), atol=1e-12)
    stream = torch.Generator().manual_seed(3)
    wide = torch.randn(6, 2, generator=stream, dtype=torch.float64)
    wide = torch.cat([wide, wide @ torch.ones(2, 3, dtype=torch.float64)], 1)
    doubled = problem._with(wide).reduced()
    assert doubled.features.shape == (6, 2)
    values = doubled.features @ doubled.fixed_point()
    plain = problem._with(wide[:, :2])
    torch.testing.assert_close(values, plain.features @ plain.fixed_point())


def test_four_rooms_as_a_chain():
    """P and d against the game itself."""
    mdp = of_paper("four_rooms_mdp", "four_rooms_mdp")(0.99)
    ends = mdp.chain.sum(1)
    assert ends[0] == 0.0
    assert torch.allclose(ends[1:], torch.ones(103, dtype=torch.float64))
    assert (mdp.weights > 0).all()
    assert float(mdp.weights.sum()) == pytest.approx(1.0)
    restarted = mdp.chain.clone()
    restarted[0, 103] = 1.0
    assert torch.allclose(mdp.weights @ restarted, mdp.weights, atol=1e-12)
    from bayesrule.tasks.rl.four_rooms import FourRooms

    game = FourRooms()
    free, _ = game.exact_q(0.99)
    for place in (1, 50, 103):
        state = int(free[place].argmax())
        after = torch.stack([free[:, int(game.after[state, a])] for a in range(4)]).double()
        assert torch.allclose(mdp.chain[place], after.mean(0))


@pytest.mark.parametrize("analysis", ["disks", "examples", "random", "four_rooms"])
def test_an_analysis_is_a_function_of_its_seed(analysis):
    made = of_paper("LinearAnalysis", "linear")(
        analysis, gamma=0.99, eta=0.1, period=50, kappas=[0.5, 1.0], mesh=12, problems=20, shown=4
    )
    first, second, other = made._answer(3), made._answer(3), made._answer(4)
    assert first == second
    assert first[0].keys() == other[0].keys()
    assert first[0] != other[0]


def test_the_disks_of_the_notebook():
    """Stable areas on a mesh of 100 x 100: FR wherever TD, TN not."""
    made = of_paper("LinearAnalysis", "linear")(
        "disks", gamma=0.995, eta=1e-3, period=10_000, kappas=[1.5], mesh=100, problems=1, shown=4
    )
    metrics, _ = made._answer(0)
    assert metrics["disks/td_not_fr"] == 0.0
    assert 0.04 < metrics["disks/td_not_tn"] < 0.07
    # one point of the mesh against the general operators
    problem = two_state((0.6, -0.8), (0.3, 0.7))
    C, A, B = float(problem.C), float(problem.A), float(problem.B)
    assert float(problem.tn(1e-3, 10_000)) == pytest.approx(
        (1 - 1e-3 * C) ** 10_000 * (1 - 0.995 * B / C) + 0.995 * B / C
    )
    assert float(problem.fr(1e-3, None, 1.5)) == pytest.approx(1.5 * C / (A + 1.5 * C))
