"""`textgym train`: settings to a trained policy in a run folder."""

import contextlib
import os
import signal
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import torch

from agents.axes import AXES
from agents.defaults import default_episodes, default_timesteps
from agents.display import Display, known, samples, say
from agents.learner import Callback, PolicyGradient, Update
from agents.opening import described, make_envs, open_policy, prepare, sampling_keywords, setup_errors
from agents.policy import TransformerPolicy
from agents.rollout import collect
from agents.run_folder import RunFolder, check_run_dir, choose_run_dir
from agents.self_check import in_a_line, refuse_failed, self_check
from agents.settings import TrainSettings
from textgym.escape import escape
from textgym.problem import Problem
from textgym.vector_env import TextGenVectorEnv

_TRIAL_PROMPTS = 3


class StopSignal:
    """The first SIGINT or SIGTERM, remembered until the update is done; a second one ends the process at once."""

    def __init__(self) -> None:
        self.number = 0

    def receive(self, number: int, frame: FrameType | None) -> None:
        """The signal handler."""
        if self.number:
            os._exit(128 + number)
        self.number = number
        with contextlib.suppress(OSError):  # nobody may be reading
            os.write(2, b"\nstopping after this update, then saving; once more to stop at once\n")

    @property
    def exit_code(self) -> int:
        """0, or 128 and the signal's number."""
        return 128 + self.number if self.number else 0


@contextlib.contextmanager
def stop_on_signals() -> Iterator[StopSignal]:
    """Remember SIGINT and SIGTERM instead of dying of them."""
    stop = StopSignal()
    before = {number: signal.signal(number, stop.receive) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def train(settings: TrainSettings) -> int:
    """Train as the settings say; returns the exit code.

    Raises:
        SetupError, OSError: something cannot be read, built or written.
        textgym.RewardError, FloatingPointError: the training failed; what was written stays.
    """
    with stop_on_signals() as stop:
        check_run_dir(settings.run_dir, settings.overwrite, settings.inputs())  # before any work
        learner, timesteps = _build(settings)
        _print_header(settings, learner)
        _check_itself(learner)
        if settings.on_own_prompts:
            _try_reward(learner)
        run = RunFolder(
            choose_run_dir(settings.run_dir, settings.name(), settings.overwrite),
            settings.as_json()
            | {axis: getattr(learner.algorithm, axis) for axis in AXES}
            | learner.settings
            | {"total_timesteps": timesteps, "temperature": learner.policy.temperature}
            | asdict(learner.policy.truncation),
            settings.advanced.trajectory_interval,
        )
        return _run(settings, learner, run, timesteps, stop)


def _build(settings: TrainSettings) -> tuple[PolicyGradient, int]:
    """The learner, and the tokens that it generates."""
    prepare(settings)
    with setup_errors():
        envs = make_envs(settings.env_keywords())
        policy = _make_policy(settings, envs)
        row, horizon = settings.row(), envs.problem.max_new_tokens
        usual = default_timesteps(policy, envs.problem.max_prompt_tokens, horizon, row.batch_multiple)
        episodes = settings.advanced.episodes_per_update or default_episodes(
            usual, horizon, settings.group_size, row.batch_multiple
        )
        timesteps = settings.total_timesteps or usual
        return _make_learner(settings, policy, TextGenVectorEnv(episodes, problem=envs.problem), timesteps), timesteps


def _problem(learner: PolicyGradient) -> Problem:
    return learner.envs.unwrapped.problem  # type: ignore[attr-defined]


def _run(settings: TrainSettings, learner: PolicyGradient, run: RunFolder, timesteps: int, stop: StopSignal) -> int:
    envs: TextGenVectorEnv = learner.envs.unwrapped  # type: ignore[assignment]
    display = Display(timesteps, envs.optimum, envs.uniform)
    begun = time.perf_counter()

    def after_update(update: Update) -> bool:
        run.write(update)
        display.show(update)
        return not stop.number

    try:
        policy_folder = run.save_policy(learner.policy)  # what cannot be saved fails now rather than after the training
        with contextlib.closing(display):
            _learn(learner, timesteps, after_update, run, stop)
    finally:
        run.close()
    _print_last_line(settings, learner, policy_folder, time.perf_counter() - begun, stop)
    return stop.exit_code


def _learn(learner: PolicyGradient, timesteps: int, after_update: Callback, run: RunFolder, stop: StopSignal) -> None:
    try:
        if not stop.number:
            learner.learn(timesteps, after_update)
    except FloatingPointError:
        raise  # what has diverged does not replace what was saved
    except BaseException:
        run.save_policy(learner.policy)
        raise
    run.save_policy(learner.policy)


def _make_policy(settings: TrainSettings, envs: TextGenVectorEnv) -> TransformerPolicy:
    advanced = settings.advanced
    keywords: dict[str, Any] = {
        "lora_rank": advanced.lora_rank,
        "gradient_checkpointing": advanced.gradient_checkpointing,
        "compile_decoding": advanced.compile_decoding,
    }
    if settings.model is not None:
        return open_policy(settings, envs.vocabulary, settings.seed, **keywords)
    keywords |= {"dtype": getattr(torch, advanced.dtype), "device": settings.device}
    return TransformerPolicy.small(
        envs, advanced.d_model, advanced.num_layers, seed=settings.seed, **sampling_keywords(settings), **keywords
    )


def _make_learner(
    settings: TrainSettings, policy: TransformerPolicy, envs: TextGenVectorEnv, timesteps: int
) -> PolicyGradient:
    advanced = settings.advanced
    decay = (round(timesteps * (1 - advanced.decay_share)), timesteps)
    return PolicyGradient(
        policy,
        envs,
        settings.row(),
        group_size=settings.group_size,
        episodes_per_update=envs.num_envs,
        learning_rate=settings.learning_rate,
        decay_timesteps=decay if decay[0] < decay[1] else None,
        entropy_coef=advanced.entropy_coef,
        kl_coef=advanced.kl_coef,
        kl_target=advanced.kl_target,
        reference=advanced.reference,
        max_grad_norm=advanced.max_grad_norm,
        tokens_per_microbatch=advanced.tokens_per_microbatch,
        seed=settings.seed,
    )


def _print_header(settings: TrainSettings, learner: PolicyGradient) -> None:
    problem = _problem(learner)
    weights = sum(parameter.numel() for parameter in learner.policy.parameters())
    say(
        f"textgym train: {described(problem)}; {settings.algorithm}, scheme {settings.scheme}; "
        f"{problem.vocabulary.size} tokens, up to {problem.max_new_tokens} new ones; {weights:,} weights; "
        f"seed {settings.seed}"
    )


def _check_itself(learner: PolicyGradient) -> None:
    problem = _problem(learner)
    checks = self_check(learner.policy, problem.vocabulary, problem.max_length)
    refuse_failed(checks)
    say(in_a_line(checks))


def _try_reward(learner: PolicyGradient) -> None:
    """Score a completion of the untrained policy for three prompts, so that a broken reward fails before the run."""
    generator, actions = np.random.default_rng(0), torch.Generator().manual_seed(0)
    rollout = collect(learner.policy, learner.envs, _TRIAL_PROMPTS, generator, action_generator=actions)
    say(f"the reward {escape(', '.join(learner.reward_names))} on {_TRIAL_PROMPTS} prompts:")
    for line in samples(rollout, _TRIAL_PROMPTS):
        say(line)


def _print_last_line(
    settings: TrainSettings, learner: PolicyGradient, policy: Path, seconds: float, stop: StopSignal
) -> None:
    result = _result_on_fresh_episodes(settings, learner) if learner.num_updates and not stop.number else ""
    reached = _held_to(settings, learner, policy.parent) if stop.number else {}
    next_command = escape(settings.next_command(policy, stopped=bool(stop.number), **reached))
    say(
        f"{'stopped' if stop.number else 'done'}: {result}{learner.num_timesteps:,} tokens in {learner.num_updates} "
        f"updates and {seconds:.0f} s; files in {escape(str(policy.parent))}; next: {next_command}"
    )


def _held_to(settings: TrainSettings, learner: PolicyGradient, folder: Path) -> dict[str, Any]:
    """What a training that goes on must be told of the KL: by itself it would be held to the policy as it is now."""
    if learner.reference is None:
        return {}
    reference = settings.advanced.reference or settings.model or learner.reference.save(folder)
    return {"reference": reference, "kl_coef": learner.kl_coef}


def _result_on_fresh_episodes(settings: TrainSettings, learner: PolicyGradient) -> str:
    """What the policy gets now, as many episodes as an update has; words that end in a comma."""
    envs: TextGenVectorEnv = learner.envs.unwrapped  # type: ignore[assignment]
    generator, actions = np.random.default_rng(settings.seed + 1), torch.Generator().manual_seed(settings.seed + 1)
    rollout = collect(learner.policy, envs, envs.num_envs, generator, action_generator=actions)
    fresh = rollout.without_dropped()
    count, dropped = len(fresh.valid), len(rollout.valid) - len(fresh.valid)
    if not count:
        return f"all {dropped} fresh episodes dropped, "
    true = "" if fresh.true_score is None else f", true score {fresh.true_score.mean():.3f}"
    more = f" and {dropped} dropped" if dropped else ""
    mean = f"{fresh.returns.mean():.3f}{known(envs.optimum, envs.uniform)}"
    return f"return {mean}{true} over {count} fresh episodes{more}, "
