"""How fast another library's loop over the environment is: stable-baselines3's PPO, with and without the prefix cache.

Only collecting is timed, `PPO.collect_rollouts`, as stable-baselines3 has it. Sequences grow from 16 to 80 tokens; both
sides have the same network, and log-probs that are compared first.
"""

from collections.abc import Callable
from importlib.util import find_spec
from typing import Any, NamedTuple

import numpy as np
import torch
from gymnasium.vector import AutoresetMode

from benchmarks import workload
from benchmarks.finding import Finding, missing_lines, of_limit, rate, requirement_records, requirement_table
from benchmarks.requirement import Requirement
from benchmarks.roofline import bandwidth, decoding_limit
from benchmarks.tables import markdown_table
from benchmarks.timing import Work, interleave

REPEATS, QUICK_REPEATS = 3, 1
PROMPT_TOKENS = 16
AT_LEAST = 10.0
CACHED, PLAIN = "with the prefix cache", "without it"
_SEED = 0
_NOTES = """\
A step is a token of one environment. Both sides run stable-baselines3's own loop and buffer; they differ in an argument
of the policy. The largest difference of a log-prob is taken along one rollout of random tokens.
The limit is the machine's own: every token once, at the rates measured for products of these shapes and for memory.
"""


class Case(NamedTuple):
    """A model's size, and how many environments it acts in."""

    size: str
    num_envs: int


CASE, QUICK_CASE = Case("M", 256), Case("M", 64)


def measure(quick: bool, threads: int, say: Callable[[str], None]) -> Finding:
    """Time both sides in turns.

    Args:
        quick: fewer environments, once.
        threads: of torch, already set; noted alone.
        say: shows progress.
    """
    repeats, case = (QUICK_REPEATS, QUICK_CASE) if quick else (REPEATS, CASE)
    works: dict[Any, Work | str] = dict.fromkeys((CACHED, PLAIN), "stable-baselines3 is not installed")
    difference = None
    if find_spec("stable_baselines3"):
        loops = {name: Loop(case, cached=name == CACHED) for name in works}
        difference = largest_difference(loops[CACHED], loops[PLAIN])
        works = dict(loops)
    timings = interleave(works, repeats)
    say(f"{case.size}, {case.num_envs} environments: timed")
    requirements = [Requirement(CACHED, PLAIN, AT_LEAST)]
    shown = "missing" if difference is None else f"{difference:.1e}"
    size = workload.SIZES[case.size]
    lengths = np.full(case.num_envs, workload.HORIZON)
    seconds = decoding_limit(size, workload.VOCABULARY_SIZE, lengths, PROMPT_TOKENS, 1, bandwidth()).seconds
    limit = float(lengths.sum()) / seconds
    return Finding(
        title="Speed of another library's loop",
        workload=(
            f"stable-baselines3's PPO, {case.num_envs} environments, {workload.HORIZON} steps from prompts of "
            f"{PROMPT_TOKENS} tokens, no stop token, V={workload.VOCABULARY_SIZE:,}, float32, d={size.d_model}, "
            f"{size.num_layers} layers."
        ),
        repeats=repeats,
        tables=[
            markdown_table(
                ["PPO.collect_rollouts", "steps a second", "limit", "reached", "largest difference of a log-prob"],
                [
                    [name, rate(timings[name]), f"{limit:,.0f}", of_limit(timings[name], limit), shown]
                    for name in (CACHED, PLAIN)
                ],
            ),
            requirement_table(requirements, timings),
        ],
        notes=_NOTES + missing_lines(timings),
        record={
            "rates": {name: list(timing.rates) for name, timing in timings.items()},
            "requirements": requirement_records(requirements, timings),
            "largest_difference": difference,
            "limit": limit,
        },
    )


class Loop:
    """stable-baselines3's PPO, collecting one episode in each environment."""

    def __init__(self, case: Case, cached: bool) -> None:
        from stable_baselines3 import PPO
        from stable_baselines3.common.logger import Logger

        from agents.adapters.stable_baselines3 import TextGenPolicy, TextGenVecEnv

        envs = workload.make_envs(
            case.num_envs, PROMPT_TOKENS, stop_ids=[], autoreset_mode=AutoresetMode.SAME_STEP, prompt_order="sequential"
        )
        self.transformer = workload.make_policy(envs, workload.SIZES[case.size])
        self.steps = case.num_envs * workload.HORIZON
        self.envs = TextGenVecEnv(envs)
        with torch.random.fork_rng(devices=[]):  # which the library draws initial weights from
            self.model = PPO(
                TextGenPolicy,
                self.envs,
                n_steps=workload.HORIZON,
                batch_size=self.steps,
                device="cpu",
                policy_kwargs=workload.SIZES[case.size]._asdict() | {"seed": _SEED},
            )
        self.transformer.add_value_head()
        self.model.policy.transformer = self.transformer
        self.model.policy.cache = self.transformer.prefix_cache() if cached else None
        self.model.set_logger(Logger(folder=None, output_formats=[]))  # the default one leaves a folder behind
        _, self.callback = self.model._setup_learn(self.steps)

    def __call__(self) -> int:
        """Collect once; the number of steps."""
        policy: Any = self.model.policy
        if policy.cache is not None:
            policy.cache.forget()
        self.model._last_obs = self.envs.reset()
        self.model._last_episode_starts = np.ones(self.envs.num_envs, dtype=bool)
        self.model.collect_rollouts(self.envs, self.callback, self.model.rollout_buffer, workload.HORIZON)
        return self.steps

    def log_probs(self, observations: Any, actions: np.ndarray) -> np.ndarray:
        """What the policy says of actions, [N]."""
        policy: Any = self.model.policy
        with torch.no_grad():
            distribution = self.transformer.distribution(observations, cache=policy.cache)
            return distribution.log_prob(torch.as_tensor(actions)).numpy()


def largest_difference(one: Loop, other: Loop, steps: int = workload.HORIZON) -> float:
    """The largest difference of log-probs of the same actions in the same growing histories."""
    generator = np.random.default_rng(_SEED)
    observations = one.envs.reset()
    largest = 0.0
    for _ in range(steps):
        actions = generator.integers(workload.VOCABULARY_SIZE, size=len(observations))
        said = [loop.log_probs(observations, actions) for loop in (one, other)]
        largest = max(largest, float(np.abs(said[0] - said[1]).max()))
        one.envs.step_async(actions)
        observations, *_ = one.envs.step_wait()
    return largest
