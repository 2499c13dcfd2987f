"""The command that trains on: it says again whatever was not a default."""

from pathlib import Path

from agents.settings import AdvancedSettings, TrainSettings


def test_the_default_run_goes_on_with_its_task():
    assert TrainSettings().next_command(Path("run/policy")) == "textgym train --model run/policy --task sort"


def test_what_was_asked_for_is_asked_for_again():
    settings = TrainSettings(
        prompts=Path("my prompts.jsonl"),
        reward="r.py:f",
        model=Path("old"),
        scheme="prefix_delta",
        algorithm="reinforce",
        run_dir=Path("run"),
        overwrite=True,
        advanced=AdvancedSettings(max_prompt_tokens=40, temperature=0.5, d_model=32),
    )
    assert settings.next_command(Path("run/policy")) == (
        "textgym train --model run/policy --prompts 'my prompts.jsonl' --reward r.py:f --scheme prefix_delta "
        "--algorithm reinforce --max-prompt-tokens 40"
    )
