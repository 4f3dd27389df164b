"""The replay buffer: what is drawn is what happened; segments bring it back."""

import pytest
import torch

from bayesrule.errors import CorruptFile
from bayesrule.tasks.rl.replay import Replay, ReplaySegments


def play(replay, steps, seed=0):
    """Play episodes of random length; return what truly happened, by time."""
    generator = torch.Generator().manual_seed(seed)
    stack = replay.stack
    happened = []

    def frame():
        return torch.randint(0, 256, (2, 3), generator=generator, dtype=torch.uint8)

    obs, age = None, 0
    for _ in range(steps):
        if obs is None:
            first = frame()
            obs, age = (first.expand(stack, 2, 3).clone() if stack > 1 else first), 0
        new = frame()
        after = torch.cat([obs[1:], new[None]]) if stack > 1 else new
        action = int(torch.randint(0, 4, (), generator=generator))
        ends = bool(torch.rand((), generator=generator) < 0.2)
        replay.add(obs, action, float(action), after, ends, age)
        happened.append((obs, action, float(action), after, float(ends)))
        obs, age = (None, 0) if ends else (after, age + 1)
    return happened


def assert_equal(batch, happened, times):
    for place, time in enumerate(times.tolist()):
        obs, action, reward, after, done = happened[time]
        assert torch.equal(batch.obs[place], obs)
        assert torch.equal(batch.next_obs[place], after)
        assert (batch.action[place], batch.reward[place], batch.done[place]) == (
            action,
            reward,
            done,
        )


@pytest.mark.parametrize("stack", [1, 4])
@pytest.mark.parametrize("steps", [5, 37, 200])
def test_transitions_come_back_as_they_were(stack, steps):
    shape = (stack, 2, 3) if stack > 1 else (2, 3)
    replay = Replay(50, shape, torch.uint8, stack=stack)
    happened = play(replay, steps)
    assert len(replay) == min(50, steps)
    times = torch.arange(steps - len(replay), steps)
    assert_equal(replay.at(times), happened, times)


def test_draws_cover_the_buffer_and_nothing_else():
    replay = Replay(20, (1,))
    for time in range(33):
        replay.add(torch.tensor([float(time)]), 0, 0.0, torch.zeros(1), False, 0)
    drawn = replay.sample(5000, torch.Generator().manual_seed(0)).obs[:, 0]
    counts = torch.bincount(drawn.long(), minlength=33)
    assert counts[:13].sum() == 0
    assert (counts[13:] > 150).all()  # 250 expected


@pytest.mark.parametrize("stack", [1, 3])
@pytest.mark.parametrize("saves", [[4], [4, 30, 31], [10, 47, 80, 149], [120]])
def test_segments_restore_the_buffer_exactly(tmp_path, stack, saves):
    shape = (stack, 2, 3) if stack > 1 else (2, 3)
    replay = Replay(40, shape, torch.uint8, stack=stack)
    whole = Replay(200, shape, torch.uint8, stack=stack)
    play(whole, max(saves))
    segments, before = ReplaySegments(tmp_path), 0
    for last in saves:
        for time in range(before, last):
            one = whole.at(torch.tensor([time]))
            age = int(whole.columns["age"][time])
            replay.add(
                one.obs[0],
                int(one.action),
                float(one.reward),
                one.next_obs[0],
                bool(one.done),
                age,
            )
        segments.save(replay, still_needed=before)
        before = last
    back = Replay(40, shape, torch.uint8, stack=stack)
    ReplaySegments(tmp_path).load(back, replay.added)
    times = torch.arange(replay.added - len(replay), replay.added)
    mine, theirs = back.at(times), replay.at(times)
    for name in ("obs", "action", "reward", "next_obs", "done"):
        assert torch.equal(getattr(mine, name), getattr(theirs, name)), name


def save_twice(folder):
    replay = Replay(10, (1,))
    segments = ReplaySegments(folder)
    for time in range(14):
        replay.add(torch.tensor([float(time)]), time, 0.0, torch.zeros(1), False, 0)
        if time in (7, 13):
            segments.save(replay, still_needed=8 if time == 13 else 0)
    return replay


def test_what_no_checkpoint_needs_goes(tmp_path):
    replay = Replay(10, (1,))
    segments, before = ReplaySegments(tmp_path), 0
    for time in range(100):
        replay.add(torch.tensor([float(time)]), time, 0.0, torch.zeros(1), False, 0)
        if time % 5 == 4:
            segments.save(replay, still_needed=before)
            before = time + 1
    assert len(list(tmp_path.glob("*.segment"))) == 3  # from 85 on: 10 behind the one before
    back = Replay(10, (1,))
    ReplaySegments(tmp_path).load(back, 95)
    assert back.at(torch.arange(85, 95)).action.tolist() == list(range(85, 95))


def test_segments_of_an_unused_checkpoint_are_dropped(tmp_path):
    save_twice(tmp_path)
    back, segments = Replay(10, (1,)), ReplaySegments(tmp_path)
    segments.load(back, 8)
    assert back.added == segments.saved == 8
    assert len(list(tmp_path.glob("*.segment"))) == 1
    assert back.at(torch.arange(8)).action.tolist() == list(range(8))


@pytest.mark.parametrize("damage", ["flipped", "missing", "truncated"])
def test_damage_is_noticed(tmp_path, damage):
    save_twice(tmp_path)
    path = sorted(tmp_path.glob("*.segment"))[0]
    content = bytearray(path.read_bytes())
    if damage == "missing":
        path.unlink()
    elif damage == "flipped":
        content[len(content) // 2] ^= 1
        path.write_bytes(content)
    else:
        path.write_bytes(content[:100])
    with pytest.raises(CorruptFile):
        ReplaySegments(tmp_path).load(Replay(10, (1,)), 14)
