"""Whether an automaton says what a task's reward does, on some texts: a sample, which proves nothing of the others.

The texts are the shortest that reach each of its states, and random ones that go on from there up to the horizon, after
prompts that are drawn. That every text of a built-in task scores what its automaton says is left to the tests.
"""

from collections import deque

import numpy as np

from textgym.automata import Automaton
from textgym.episodes import Episodes
from textgym.escape import excerpt
from textgym.problem import Problem

_STATES = 256  # that a shortest text is tried of
_TEXTS = 64  # that go on at random
_TOKENS = 2**18  # of all texts, at a large horizon
_TOLERANCE = 1e-9  # of the largest score


def check_automaton(problem: Problem, automaton: Automaton, horizon: int) -> None:
    """Refuse an automaton that differs from the reward on one of the texts; the same ones each time.

    Args:
        problem: with a reward that does not draw.
        automaton: of the problem's tokens.
        horizon: W, the most tokens of a text.

    Raises:
        ValueError: it differs, or the reward drops a text.
        textgym.RewardError: the reward failed.
    """
    generator = np.random.default_rng(0)
    completions = _completions(automaton, horizon, problem.vocabulary.stop_ids, generator)
    prompts = [problem.prompts.draw(generator) for _ in completions]
    texts = Episodes(problem, 1, lambda row: generator).texts_of(  # the reward does not draw from it
        [0] * len(completions), [prompt.text for prompt in prompts], [prompt.columns for prompt in prompts], completions
    )
    scores = problem.reward(texts)
    written = [ids[:-1] if ids[-1] in problem.vocabulary.stop_ids else ids for ids in completions]
    expected = np.array([automaton.score_of(ids) for ids in written])
    wrong = ~scores.kept | (np.abs(scores.score - expected) > _TOLERANCE * np.abs(automaton.score).max())
    if wrong.any():
        place = int(wrong.argmax())
        said = f"scores it {scores.score[place]}" if scores.kept[place] else "fails on it"
        raise ValueError(
            f"the automaton says that the completion {excerpt(texts.completions[place])} scores {expected[place]}, and "
            f"the reward {said}, after the prompt {excerpt(texts.prompts[place])}; give the task an automaton of what "
            "its reward pays for every text, whatever the prompt, or leave automaton= out"
        )


def _completions(
    automaton: Automaton, horizon: int, stop_ids: tuple[int, ...], generator: np.random.Generator
) -> list[list[int]]:
    """Complete texts of W tokens at most, their stop tokens included."""
    content = np.setdiff1d(np.arange(automaton.num_tokens), stop_ids)
    shortest = _shortest(automaton, horizon, content)
    longest = horizon if len(content) else 0
    most = max(1, _TOKENS // horizon)  # that may be as long as the horizon
    begun = [(ids, len(ids)) for ids in (shortest if stop_ids else shortest[:most])]
    for place in generator.integers(len(shortest), size=min(_TEXTS, most)).tolist():
        begun.append((shortest[place], int(generator.integers(len(shortest[place]), longest, endpoint=True))))
    found = []
    for ids, length in begun:
        more = (length if stop_ids else horizon) - len(ids)
        text = [*ids, *generator.choice(content, size=more).tolist()] if more else ids
        found.append([*text, int(generator.choice(stop_ids))] if len(text) < horizon else text)
    return found


def _shortest(automaton: Automaton, horizon: int, content: np.ndarray) -> list[list[int]]:
    """A shortest text to each of the states that are reached first, the empty one to the start."""
    found: dict[int, list[int]] = {automaton.start: []}
    queue = deque([automaton.start])
    while queue and len(found) < _STATES:
        state = queue.popleft()
        if len(found[state]) == horizon:
            break
        reached, first = np.unique(automaton.transitions[state, content], return_index=True)
        for following, token in zip(reached.tolist(), content[first].tolist(), strict=True):
            if following not in found:
                found[following] = [*found[state], token]
                queue.append(following)
    return list(found.values())
