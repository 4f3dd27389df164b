"""Environments: restored bit by bit, four rooms as described, Atari rules on a stand-in console."""

import numpy as np
import pytest
import torch

from bayesrule.config import compose
from bayesrule.errors import BayesruleError, DataUnavailable
from bayesrule.tasks.availability import resources, unavailable
from bayesrule.tasks.rl.environments import Environment, make_environment

gymnasium = pytest.importorskip("gymnasium")
ATARI = ("beam_rider", "breakout", "pong", "qbert", "seaquest", "space_invaders")


def env_config(name):
    return compose(["task=rl", f"env={name}"])["env"]


@pytest.mark.parametrize("name", ["cartpole", "acrobot", "mountain_car", "four_rooms"])
def test_a_game_comes_back_where_it_was(name):
    game = make_environment(env_config(name), training=True)
    generator = torch.Generator().manual_seed(0)

    def action():
        return int(torch.randint(game.game.action_space.n, (), generator=generator))

    game.begin(7)
    for _ in range(19):
        if game.step(action()).ends:
            game.begin(8)
    state = game.state_dict()
    other = make_environment(env_config(name), training=True)
    other.load_state_dict(state)
    for _ in range(30):
        chosen = action()
        mine, theirs = game.step(chosen), other.step(chosen)
        assert torch.equal(mine.obs, theirs.obs)
        assert (mine.reward, mine.done, mine.game_return) == (
            theirs.reward,
            theirs.done,
            theirs.game_return,
        )
        if mine.ends:
            assert torch.equal(game.begin(9), other.begin(9))


def test_a_game_that_does_not_come_back_is_noticed():
    game = make_environment(env_config("cartpole"), training=True)
    game.begin(7)
    game.step(1)
    state = game.state_dict()
    state["obs"] = state["obs"] + 1e-3
    with pytest.raises(BayesruleError, match="did not come back"):
        make_environment(env_config("cartpole"), training=True).load_state_dict(state)


def test_a_time_limit_is_no_terminal_state():
    game = make_environment(env_config("mountain_car"), training=True)
    game.begin(0)
    for _ in range(199):
        assert not game.step(1).ends
    last = game.step(1)
    assert last.ends
    assert not last.done
    assert (last.game_return, last.game_length) == (-200.0, 200)


# ------------------------------------------------------------------------ four rooms


def test_four_rooms_is_the_grid_of_the_paper():
    game = make_environment(env_config("four_rooms"), training=True)
    states, q = game.exact_q(0.99)
    assert len(states) == 104  # free cells
    assert torch.equal(q[0], torch.full((4,), 0.99, dtype=torch.float64))  # the goal
    # breadth-first distances: 20 moves from the start, then one action in the goal
    best = q.amax(1)
    expected = 0.99**20 * 0.99 - 0.01 * (1 - 0.99**20) / 0.01
    assert float(best[-1]) == pytest.approx(expected, abs=1e-9)
    # Bellman's equation on every free cell and action, from the steps of the game itself
    for place in range(0, 104, 7):
        for action in range(4):
            game.begin(0)
            game.game.unwrapped.state = int(states[place].argmax())
            after = game.step(action)
            value = 0.0 if after.done else float(best[(states == after.obs).all(1)])
            assert float(q[place, action]) == pytest.approx(after.reward + 0.99 * value, abs=1e-9)


def test_the_greedy_policy_of_four_rooms_takes_21_steps():
    game = make_environment(env_config("four_rooms"), training=False)
    states, q = game.exact_q(0.99)
    obs = game.begin(0)
    while True:
        after = game.step(int(q[(states == obs).all(1)].argmax()))
        obs = after.obs
        if after.ends:
            break
    assert after.game_length == 21
    assert after.done
    assert after.game_return == pytest.approx(0.79)


# ----------------------------------------------------------------------------- Atari


class Console(gymnasium.Env):
    """Frames that count steps; a life is lost every 10, three lives; it waits for fire."""

    class ale:
        lives = staticmethod(lambda: Console.left)

    left = 3

    def __init__(self):
        self.observation_space = gymnasium.spaces.Box(0, 255, (6, 6), np.uint8)
        self.action_space = gymnasium.spaces.Discrete(4)

    def get_action_meanings(self):
        return ["NOOP", "FIRE", "RIGHT", "LEFT"]

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.offset = int(self.np_random.integers(0, 100))
        self.count, Console.left = 0, 3
        return self._frame(), {}

    def step(self, action):
        self.count += 1
        Console.left = 3 - self.count // 10
        over = Console.left == 0
        return self._frame(), 5.0 * (action - 1), over, False, {}

    def _frame(self):
        return np.full((6, 6), self.offset + self.count, np.uint8)


def console(**options):
    return Environment(Console(), stack=3, **options)


def test_lives_end_episodes_and_games_go_on():
    game = console(episodic_life=True, fire=False, clip_reward=True)
    game.begin(3)
    offset = int(game.obs[0, 0, 0])
    assert game.obs[:, 0, 0].tolist() == [offset] * 3
    ends = []
    for step in range(1, 29):
        after = game.step(3)
        assert after.reward == 1.0  # clipped: it is 10
        if after.ends:
            assert after.done
            ends.append(step)
            if after.game_return is not None:
                break
            frames = game.begin(99)  # the next life of the same game, after one no-op
            assert frames[:, 0, 0].unique().numel() == 1
    # of steps 10 and 20 of the console, one is the no-op between two lives
    assert ends == [10, 19, 28]
    assert after.game_return == pytest.approx(28 * 10.0 - 2 * 5.0)
    assert after.game_length == 30


def test_evaluation_plays_whole_games_with_their_own_rewards():
    game = console(episodic_life=False, clip_reward=False)
    game.begin(3)
    for _ in range(29):
        after = game.step(0)
        assert not after.ends
        assert after.reward == -5.0
    assert game.step(0).game_return == pytest.approx(-150.0)


def test_fire_at_the_start():
    game = console(fire=True)
    game.begin(3)
    assert game.game.count == 2
    assert game.step(2).game_return is None


def test_a_game_in_its_second_life_comes_back():
    game = console(episodic_life=True, fire=True, clip_reward=True)
    game.begin(3)
    for _ in range(15):
        if game.step(2).ends:
            game.begin(4)
    other = console(episodic_life=True, fire=True, clip_reward=True)
    other.load_state_dict(game.state_dict())
    assert other.game.count == game.game.count
    assert other._return == game._return
    assert not other.over


@pytest.mark.parametrize("name", ATARI)
def test_atari_is_refused_with_what_to_install(name, monkeypatch):
    monkeypatch.setattr(
        "bayesrule.tasks.rl.environments.util.find_spec",
        lambda module: None if module == "ale_py" else object(),
    )
    config = compose(["task=rl", f"env={name}"])
    with pytest.raises(DataUnavailable, match="pip install ale-py opencv-python-headless"):
        make_environment(config["env"], training=True)
    known = {}
    assert "ale-py" in unavailable(config, known)
    assert "ale-py" in unavailable(config, known)  # asked once
    ((found, answer),) = resources(config).items()
    assert found == name
    assert not answer.here


def test_an_environment_that_is_not_what_is_declared():
    with pytest.raises(BayesruleError, match="declares 3 actions"):
        make_environment({**env_config("cartpole"), "n_actions": 3}, training=True)
