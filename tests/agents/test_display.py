"""What the training shows: no more than a screen, the optimum beside the return, nothing that a text smuggles in."""

import io
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from rich.console import Console

import textgym  # noqa: F401
from agents import Rollout, TransformerPolicy, Update, collect
from agents.display import Display
from agents.metrics import rollout_metrics
from agents.run_folder import trajectory_entry

HOSTILE = ["\x1b[2J", "\x1b]0;title\x07", "\u202etxet", "[bold red]", "\r\n", "\u2028"]


def update_of(prompts, tokenizer):
    envs = gym.make_vec(
        "TextGen-v0",
        num_envs=2,
        prompts=prompts,
        tokenizer=tokenizer,
        reward=lambda completions: [0.0] * len(completions),
        max_new_tokens=3,
    )
    rollout = collect(TransformerPolicy.small(envs), envs, 2, np.random.default_rng(0))
    return as_update(rollout)


def as_update(rollout: Rollout, **changes: Any) -> Update:
    rollout = rollout._replace(**changes)
    metrics = rollout_metrics(rollout, ("f",)) | {"loss": 0.0, "entropy": 1.0, "grad_norm": 1.0}
    return Update(1, rollout.num_tokens, metrics, rollout, np.zeros(rollout.mask.shape))


def shown(update, terminal, *earlier):
    out = io.StringIO()
    display = Display(100, 1.0, 0.125, console=Console(file=out, force_terminal=terminal, width=100, highlight=False))
    for one in (*earlier, update):
        display.show(one)
    display.close()
    return out.getvalue()


def test_the_table_has_at_most_12_rows_and_names_the_optimum():
    text = shown(update_of(["ab"], ["a", "b"]), terminal=True)
    rows = [line for line in text.split("time left")[0].splitlines() if "│" in line]
    assert 5 <= len(rows) <= 12
    assert "optimum 1, uniform policy 0.125" in text


def test_off_a_terminal_there_are_plain_lines():
    lines = shown(update_of(["ab"], ["a", "b"]), terminal=False).splitlines()
    assert lines[0].startswith("update    1  return 0.000 (optimum 1, uniform policy 0.125)")
    assert len(lines) == 3  # and two samples
    assert "\x1b" not in "".join(lines)


@pytest.mark.parametrize("terminal", [False, True])
def test_a_hidden_score_is_shown_where_there_is_one(terminal):
    plain = update_of(["ab"], ["a", "b"])
    hidden = as_update(plain.rollout, true_score=np.array([0.25, 0.5]))
    assert "true score" not in shown(plain, terminal)
    text = shown(hidden, terminal)
    assert "0.375" in text
    assert [f"score 0, true score {score}" in text for score in (0.25, 0.5)] == [True, True]


@pytest.mark.parametrize("terminal", [False, True])
def test_dropped_episodes_are_told(terminal):
    plain = update_of(["ab"], ["a", "b"])
    some = as_update(plain.rollout, valid=np.array([False, True]))
    assert "dropped" not in shown(plain, terminal)
    text = shown(some, terminal)
    assert "1 of 2 episodes" in text
    lines = [line for line in text.splitlines() if "→" in line]
    assert lines[-2].endswith("dropped") and lines[-1].endswith("score 0")


@pytest.mark.parametrize("terminal", [False, True])
def test_an_update_without_an_episode_does_not_move_the_shown_return(terminal):
    plain = update_of(["ab"], ["a", "b"])
    mask = plain.rollout.mask
    paid = as_update(plain.rollout, rewards=0.75 * mask / mask.sum(axis=1, keepdims=True))
    none = as_update(plain.rollout, valid=np.zeros(2, dtype=bool))
    assert "not known yet (optimum 1, uniform policy 0.125)" in shown(none, terminal)
    both = shown(none, terminal, paid)
    assert "0.750 (optimum 1, uniform policy 0.125)" in both and "0.375" not in both


def test_everything_at_once_still_fits():
    plain = update_of(["ab"], ["a", "b"])
    full = as_update(plain.rollout, valid=np.array([False, True]), true_score=np.array([0.25, 0.5]))
    rows = [line for line in shown(full, terminal=True).split("time left")[0].splitlines() if "│" in line]
    assert 8 <= len(rows) <= 11  # and that of the time left


def test_a_trajectory_says_whether_it_counts():
    plain = update_of(["ab"], ["a", "b"])
    entry = trajectory_entry(plain, 0)
    assert entry["valid"] is True and "true_score" not in entry
    full = as_update(plain.rollout, valid=np.array([False, True]), true_score=np.array([0.25, 0.5]))
    first, second = (trajectory_entry(full, row) for row in (0, 1))
    assert (first["valid"], first["true_score"]) == (False, 0.25)
    assert (second["valid"], second["true_score"]) == (True, 0.5)


@pytest.mark.parametrize("terminal", [False, True])
@pytest.mark.parametrize("hostile", HOSTILE)
def test_hostile_text_is_escaped(hostile, terminal):
    plain = shown(update_of(["safe"], ["safe"]), terminal)
    text = shown(update_of([hostile], [hostile]), terminal)
    if hostile != "[bold red]":
        assert hostile not in text
        control = [character for character in hostile if not character.isprintable()]
        assert all(text.count(character) == plain.count(character) for character in control if character != "\n")
    else:
        assert "[bold red]" in text


def test_no_signal_is_said_in_words():
    plain = update_of(["ab"], ["a", "b"])  # every return is 0
    for terminal in (True, False):
        assert "no signal: the returns of every group are equal" in shown(plain, terminal)
        learned = plain._replace(advantages=np.where(plain.rollout.mask, [[0.5], [-0.5]], 0.0))
        assert "no signal" not in shown(learned, terminal)
        other = plain._replace(metrics=plain.metrics | {"frac_reward_zero_std": 0.5})
        assert "no signal: every advantage is 0" in shown(other, terminal)
        dropped = as_update(plain.rollout, valid=np.zeros(2, dtype=bool))
        assert "no signal" not in shown(dropped, terminal)  # it says that all were dropped
