"""Walks over a task without an environment: its texts, their probabilities and their scores; and through one."""

import inspect
import itertools

import gymnasium as gym
import numpy as np

EPSILON = {1: 0.1, 2: 0.3, 3: 0.1, 4: 0.3}  # of the noisy verifier, at each level
MOST_LEAVES = 200_000  # a tree of this many leaves is walked whole


def row(task, index):
    entry = task.prompts[index]
    return entry if isinstance(entry, dict) else {"prompt": entry}


def score(task, rows, completions):
    """Expected scores of texts, each after its own row: of a noisy verdict, the mean over its flips."""
    columns = {name: [entry[name] for entry in rows] for name in rows[0] if name != "prompt"}
    function = task.reward if task.true_reward is None else task.true_reward
    known = {"prompts": [entry["prompt"] for entry in rows], "completions": completions, **columns}
    taken = inspect.signature(function).parameters
    scores = np.array(function(**{name: value for name, value in known.items() if name in taken}))
    if task.name == "noisy_verifier":
        epsilon = EPSILON[task.level]
        scores = (1 - epsilon) * scores + epsilon * (1 - scores)
    return scores


def text(task, ids):
    return "".join(task.tokenizer[token] for token in ids if task.tokenizer[token] != "<eos>")


def legal_tokens(task, prompt, ids):
    if task.constraint is None:
        return range(len(task.tokenizer))
    mask = task.constraint(prompt, ids, task.max_new_tokens - len(ids))
    assert mask.dtype == bool and mask.shape == (len(task.tokenizer),)
    return np.flatnonzero(mask).tolist()


def is_complete(task, ids):
    return len(ids) == task.max_new_tokens or (len(ids) > 0 and task.tokenizer[ids[-1]] == "<eos>")


def leaves(task, prompt):
    """Every complete text after a prompt, with its probability under the policy uniform over the legal tokens."""
    stack = [((), 1.0)]
    while stack:
        ids, probability = stack.pop()
        if is_complete(task, ids):
            yield probability, text(task, ids)
            continue
        legal = legal_tokens(task, prompt, ids)
        stack += [((*ids, token), probability / len(legal)) for token in legal]


def is_small(task):
    """Whether all prompts together have at most `MOST_LEAVES` complete texts; masks are walked for the first prompt."""
    if task.constraint is not None:
        most = MOST_LEAVES // len(task.prompts)
        return sum(1 for _ in itertools.islice(leaves(task, row(task, 0)["prompt"]), most + 1)) <= most
    content = sum(symbol != "<eos>" for symbol in task.tokenizer)
    ended = sum(content**length for length in range(task.max_new_tokens)) * (len(task.tokenizer) - content)
    return len(task.prompts) * (ended + content**task.max_new_tokens) <= MOST_LEAVES


def played(name, level, prompt_indices, completions):
    """Returns of completions [n, W], each after its own prompt, through the environment; rows that end early wait."""
    envs = gym.make_vec("TextGen-v0", num_envs=len(completions), task=name, level=level, autoreset_mode="Disabled")
    envs.reset(seed=0, options={"rows": {"prompt_index": prompt_indices}})
    rewards = np.array([envs.step(tokens)[1] for tokens in completions.T])  # [W, n]
    return rewards.sum(axis=0)
