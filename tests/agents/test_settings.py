"""The command that comes next: it says again whatever made the environment, and the training, and was no default."""

from pathlib import Path

from agents.settings import AdvancedSettings, TrainSettings
from textgym.problem import make_problem


def test_the_default_run_is_evaluated_on_its_task():
    assert TrainSettings().next_command(Path("run/policy")) == "textgym evaluate --model run/policy --task sort"


def test_what_was_asked_for_is_asked_for_again():
    settings = TrainSettings(
        prompts=Path("my prompts.jsonl"),
        reward="r.py:f",
        model=Path("old"),
        scheme="prefix_delta",
        algorithm="reinforce",
        stop=("END", "--"),
        run_dir=Path("run"),
        overwrite=True,
        advanced=AdvancedSettings(max_prompt_tokens=40, temperature=0.5, d_model=32, isolate_reward=True),
    )
    assert settings.next_command(Path("run/policy")) == (
        "textgym evaluate --model run/policy --prompts 'my prompts.jsonl' --reward r.py:f --scheme prefix_delta "
        "--stop=END --stop=-- --max-prompt-tokens 40 --isolate-reward"
    )
    assert settings.next_command(Path("run/policy"), stopped=True) == (
        "textgym train --model run/policy --prompts 'my prompts.jsonl' --reward r.py:f --scheme prefix_delta "
        "--stop=END --stop=-- --algorithm reinforce --max-prompt-tokens 40 --isolate-reward"
    )


def test_the_environment_gets_its_settings_as_keywords():
    advanced = AdvancedSettings(
        prompt_order="sequential",
        on_limit="truncate",
        on_illegal_action="terminate",
        on_reward_error="drop",
        reward_timeout=2.5,
        isolate_reward=True,
    )
    keywords = TrainSettings(task="sort", stop=("00", "11"), advanced=advanced).env_keywords()
    assert keywords == {
        "task": "sort",
        "scheme": "terminal",
        "stop": ["00", "11"],
        "prompt_order": "sequential",
        "on_limit": "truncate",
        "on_illegal_action": "terminate",
        "on_reward_error": "drop",
        "reward_timeout": 2.5,
        "isolate_reward": True,
    }


def test_without_flags_the_environment_is_as_it_is_without_keywords():
    own, plain = make_problem(**TrainSettings().env_keywords()), make_problem()
    for name in ("prompt_order", "on_limit", "on_illegal_action", "max_new_tokens", "max_prompt_tokens", "optimum"):
        assert getattr(own, name) == getattr(plain, name)
    assert own.stop.strings == plain.stop.strings == ()
    assert own.task is plain.task


def test_a_training_that_goes_on_is_held_to_the_same_reference():
    settings = TrainSettings(advanced=AdvancedSettings(kl_coef=0.1, kl_target=0.2))
    assert settings.next_command(Path("run/policy"), True, kl_coef=0.125, reference=Path("run/reference")) == (
        "textgym train --model run/policy --kl-coef 0.125 --kl-target 0.2 --reference run/reference --task sort"
    )
