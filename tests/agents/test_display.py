"""What the training shows: no more than a screen, the optimum beside the return, nothing that a text smuggles in."""

import io

import gymnasium as gym
import numpy as np
import pytest
from rich.console import Console

import textgym  # noqa: F401
from agents import TransformerPolicy, Update, collect
from agents.display import Display
from agents.metrics import rollout_metrics

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
    metrics = rollout_metrics(rollout, ("f",)) | {"loss": 0.0, "entropy": 1.0, "grad_norm": 1.0}
    return Update(1, rollout.num_tokens, metrics, rollout, np.zeros(rollout.mask.shape))


def shown(update, terminal):
    out = io.StringIO()
    display = Display(100, 1.0, 0.125, console=Console(file=out, force_terminal=terminal, width=100, highlight=False))
    display.show(update)
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
