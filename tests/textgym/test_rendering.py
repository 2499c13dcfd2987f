"""Episodes as text, and render modes."""

import unicodedata
import warnings

import gymnasium as gym
import numpy as np
import pytest

from textgym.env import TextGenEnv
from textgym.vector_env import TextGenVectorEnv

HOSTILE = ["\x1b[2J", "\u202e", "\u2028", "\x07", "\x9b", "\u200b", "\U000e0041"]
KEYWORDS = dict(
    tokenizer=["The ", "cat ", "sat", "\n", "<eos>", *HOSTILE],
    prompts=["The cat "],
    reward=lambda completions: [0.5] * len(completions),
    max_new_tokens=len(HOSTILE) + 2,
)


def test_ansi_shows_prompt_and_completion_as_unbroken_text():
    env = gym.make("TextGen-v0", render_mode="ansi", **KEYWORDS)
    env.reset()
    assert "The cat " in env.render()
    for action in (2, 3, 0, 1, 2, 4):
        env.step(action)
    shown = env.render()
    assert "The cat \n" in shown and "sat\nThe cat sat\n" in shown
    assert "stop" in shown and "0.5" in shown
    assert "<eos>" not in shown


def test_ansi_shows_no_character_that_a_terminal_would_obey():
    env = gym.make("TextGen-v0", render_mode="ansi", **KEYWORDS)
    env.reset(options={"prompt": "".join(HOSTILE[:1]) + "sat"})
    for action in range(5, 5 + len(HOSTILE)):
        env.step(action)
    shown = env.render()
    assert not [char for char in shown if char != "\n" and unicodedata.category(char) in {"Cc", "Cf", "Zl", "Zp"}]
    for code in (r"\x1b[2J", r"\u202e", r"\u2028", r"\x07", r"\x9b", r"\u200b", r"\U000e0041"):
        assert code in shown


def test_a_vector_environment_renders_each_row():
    envs = gym.make_vec("TextGen-v0", num_envs=2, render_mode="ansi", **KEYWORDS)
    envs.reset()
    envs.step(np.array([0, 2]))
    first, second = envs.render()
    assert "completion: The \n" in first and "completion: sat\n" in second


@pytest.mark.parametrize("mode", [None, "ansi"])
@pytest.mark.parametrize("make", [gym.make, gym.make_vec])
def test_usable_render_modes_are_accepted_in_silence(make, mode):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        env = make("TextGen-v0", render_mode=mode)
    assert env.render_mode == mode
    env.reset()
    assert (env.unwrapped.render() is None) == (mode is None)


@pytest.mark.parametrize("mode", ["human", "rgb_array", "hologram", "ansi_list"])
@pytest.mark.parametrize("kind", [TextGenEnv, TextGenVectorEnv])
def test_any_other_render_mode_is_none_with_a_warning(kind, mode):
    with pytest.warns(UserWarning, match=f"render_mode='{mode}'.*allowed: ansi"):
        env = kind(render_mode=mode)
    assert env.render_mode is None
    env.reset()
    assert env.render() is None


@pytest.mark.filterwarnings("ignore:.*render_mode")
@pytest.mark.parametrize("make", [gym.make, gym.make_vec])
@pytest.mark.parametrize("mode", ["human", "rgb_array", "hologram"])
def test_gymnasium_makes_an_environment_with_any_render_mode(make, mode):
    make("TextGen-v0", render_mode=mode).reset()


def test_joiners_do_not_break_a_text():
    text = "\U0001f469\u200d\U0001f4bb"  # an emoji of two, joined
    env = gym.make(
        "TextGen-v0",
        prompts=[text],
        tokenizer=[text],
        reward=lambda completions: [0.0] * len(completions),
        render_mode="ansi",
    )
    env.reset()
    assert text in env.render()
