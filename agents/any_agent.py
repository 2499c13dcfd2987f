"""Any agent as something that can be played: a model's folder, a zip, an object of one's own, a baseline.

A baseline is a row of a table.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from agents.baselines import GreedyOracle, RandomAgent, TabularAgent
from agents.called_agent import CalledAgent, predicts
from agents.evaluate_settings import BASELINES, EvaluateSettings
from agents.evaluation import DEFAULT_EPISODES
from agents.greedy import Greedy
from agents.opening import check_length, open_policy
from agents.playing import Actor
from agents.policy import TransformerPolicy
from agents.sb3_zip import NetworkAgent, open_zip
from textgym.problem import Problem
from textgym.rewards.sources import import_function


class Playable(NamedTuple):
    """An agent: what it can be played as, "greedy", "sampled" or "as it acts"."""

    actors: dict[str, Actor]
    note: str = ""  # what has to be known of it
    certain: bool = True  # whether "greedy" chooses the same every time
    episodes: int | None = None  # where none are asked for, and it is too slow for all prompts

    def chosen(self, names: tuple[str, ...]) -> dict[str, Actor]:
        """Those of these names, or all where none is given.

        Raises:
            ValueError: it cannot be played as one of them.
        """
        for name in names:
            if name not in self.actors:
                raise ValueError(f"--{name} does not go with this agent, which plays {' and '.join(self.actors)} alone")
        return {name: self.actors[name] for name in names} if names else self.actors


AS_IT_ACTS = "as it acts"


def open_agent(settings: EvaluateSettings, problem: Problem) -> Playable:
    """The agent that the settings name, over a problem.

    Raises:
        FileNotFoundError, ImportError, AttributeError, TypeError, ValueError: it cannot be opened, or does not fit.
    """
    named = settings.agent
    if named is None:
        return _of_policy(open_policy(settings, problem.vocabulary, settings.seed), problem)
    if named in BASELINES:
        return _BASELINES[named](settings, problem)
    if named.endswith(".zip"):
        return _zip(Path(named), settings, problem)
    return _object(named, settings, problem)


def _of_policy(policy: TransformerPolicy, problem: Problem) -> Playable:
    check_length(policy, problem)
    return Playable({"greedy": Greedy(policy), "sampled": policy})


def _zip(path: Path, settings: EvaluateSettings, problem: Problem) -> Playable:
    policy = open_zip(path, problem.vocabulary.size, problem.max_length, settings.seed)
    if isinstance(policy, TransformerPolicy):
        return _of_policy(policy, problem)
    greedy: dict[str, Actor] = {"greedy": _GreedyNetwork(policy)}
    return Playable(greedy | {"sampled": policy} if policy.draws else greedy)


def _object(place: str, settings: EvaluateSettings, problem: Problem) -> Playable:
    agent = import_function(place, "agent", must_be_callable=False)

    def called(deterministic: bool) -> CalledAgent:
        wanted = None if settings.observation is None else settings.observation == "dict"
        return CalledAgent(agent, problem.vocabulary.size, f"agent {place!r}", deterministic, wanted)

    if not predicts(agent):
        return Playable({AS_IT_ACTS: called(False)})
    note = "draws as it likes, whatever the seed"
    return Playable({"greedy": called(True), "sampled": called(False)}, note, certain=False)


class _GreedyNetwork:
    def __init__(self, network: NetworkAgent) -> None:
        self.network = network

    def act(self, observations: Any, generator: Any = None, action_mask: Any = None) -> Any:
        return self.network.act(observations, generator, action_mask, deterministic=True)


def _tabular(settings: EvaluateSettings, problem: Problem) -> Playable:
    agent = TabularAgent(problem, settings.seed).learn(settings.agent_timesteps)
    return Playable({"greedy": agent}, f"trained on {settings.agent_timesteps:,} tokens of the task before")


_BASELINES: dict[str, Callable[[EvaluateSettings, Problem], Playable]] = {
    "random": lambda settings, problem: Playable(
        {"sampled": RandomAgent(problem.vocabulary.size, settings.seed, legal_only=False)}
    ),
    "uniform-legal": lambda settings, problem: Playable(
        {"sampled": RandomAgent(problem.vocabulary.size, settings.seed, legal_only=True)}
    ),
    "greedy-oracle": lambda settings, problem: Playable({"greedy": GreedyOracle(problem)}, episodes=DEFAULT_EPISODES),
    "tabular": _tabular,
}
assert set(_BASELINES) == set(BASELINES)
