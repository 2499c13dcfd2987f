"""`textgym sample`: what a model writes after prompts, as text or as JSON lines."""

import json
from collections.abc import Iterator
from typing import Any

import numpy as np

from agents.display import say
from agents.greedy import Greedy
from agents.opening import SetupError, check_length, make_envs, open_policy, prepare, setup_errors, wave_envs
from agents.policy import TransformerPolicy
from agents.rollout import Rollout, collect
from agents.sample_settings import NUM_TASK_PROMPTS, SampleSettings
from textgym.escape import escape
from textgym.finish import FinishReason
from textgym.problem import Problem

_ENDS = {
    FinishReason.STOP: "ended by a stop token or string",
    FinishReason.LIMIT: "cut off at the limit",
    FinishReason.DEAD_END: "ended where no token is legal",
    FinishReason.ILLEGAL_ACTION: "ended by an illegal token",
}


def sample(settings: SampleSettings) -> int:
    """Sample as the settings say; returns the exit code.

    Raises:
        SetupError, OSError: something cannot be read or built.
        textgym.RewardError, FloatingPointError, ValueError: the sampling failed; what was printed stays.
    """
    prepare(settings)
    with setup_errors():
        problem = make_envs(settings.env_keywords()).problem
        policy = open_policy(settings, problem.vocabulary, settings.seed)
    check_length(policy, problem)
    _check_first_token(problem, policy)
    for rollout in _rollouts(settings, problem, policy):
        for row in range(len(rollout.length)):
            if settings.json:
                say(_json_line(rollout, row, settings.is_scored))
            else:
                _show(rollout, row, settings.is_scored)
    return 0


def _check_first_token(problem: Problem, policy: TransformerPolicy) -> None:
    prompts = problem.prompts
    if len(prompts) == 1 and not len(prompts[0].ids) and policy.bos_id is None:
        raise SetupError(
            "the model has no BOS token to begin a text with; give --prompt TEXT, --prompts FILE or --task NAME"
        )


def _rollouts(settings: SampleSettings, problem: Problem, policy: TransformerPolicy) -> Iterator[Rollout]:
    """The samples, wave after wave, so that the first are shown while the others are still to come."""
    there = len(problem.prompts)
    count = min(settings.num_prompts or (NUM_TASK_PROMPTS if settings.draws_prompts else there), there)
    in_order = count == there or not settings.draws_prompts  # drawn where that leaves some of them out
    envs = wave_envs(problem, count * settings.num, in_order)
    prompts_per_wave = max(1, envs.num_envs // settings.num)
    generator = np.random.default_rng(settings.seed)
    actor = Greedy(policy) if settings.greedy else policy
    for first in range(0, count, prompts_per_wave):
        episodes = min(prompts_per_wave, count - first) * settings.num
        yield collect(actor, envs, episodes, generator, group_size=settings.num, first_prompt=first)


def _show(rollout: Rollout, row: int, is_scored: bool) -> None:
    """Print a sample; the prompt where it is the first of its prompt. Every text is escaped, and stays on its line."""
    prompt, completion = map(escape, rollout.texts(row))
    if row == 0 or rollout.group[row] != rollout.group[row - 1]:
        say(f"prompt: {prompt}")
    steps = int(rollout.mask[row].sum())
    end = f"{_ENDS[FinishReason(rollout.finish_reason[row])]} after {steps} token{'s' if steps > 1 else ''}"
    score = f", {_score_in_words(rollout, row)}" if is_scored else ""
    say(f"completion: {completion}\n  {end}, log-prob {_log_prob(rollout, row):.4g}{score}")


def _score_in_words(rollout: Rollout, row: int) -> str:
    if not rollout.valid[row]:
        return "no score: the reward function failed"
    true = "" if rollout.true_score is None else f", true score {rollout.true_score[row]:.4g}"
    return f"score {rollout.score[row]:.4g}{true}"


def _log_prob(rollout: Rollout, row: int) -> float:
    """Log-probability of the completion, Σ_t log π(a_t | s_t)."""
    return float(rollout.log_probs[row].sum(dtype=np.float64))


def _json_line(rollout: Rollout, row: int, is_scored: bool) -> str:
    prompt, completion = rollout.texts(row)
    start, length = int(rollout.prompt_length[row]), int(rollout.length[row])
    entry: dict[str, Any] = {
        "prompt": prompt,
        "completion": completion,
        "completion_ids": rollout.tokens[row, start:length].tolist(),
        "log_probs": rollout.log_probs[row, : length - start].tolist(),
        "finish_reason": int(rollout.finish_reason[row]),
        "score": float(rollout.score[row]) if is_scored and rollout.valid[row] else None,
    }
    return json.dumps(entry, allow_nan=False)  # in ASCII, control characters as codes
