"""The optimum and J(uniform) that each task declares, by means that do not read them off the task.

Every task of the table is walked at every level, so that a new one joins by existing: whole where its tree is small, by
a sample elsewhere. Where a sample would see nothing, an oracle of the table below counts by other means.
"""

import collections
import math

import gymnasium as gym
import numpy as np
import pytest

from tests.textgym.task_walk import EPSILON, is_complete, is_small, leaves, legal_tokens, played, row, score, text
from textgym import TASKS as ALL_TASKS
from textgym import make_task

TASKS = {name: family for name, family in ALL_TASKS.items() if family.make.__module__.startswith("textgym.")}
LEVELS = [(family.name, level) for family in TASKS.values() for level in family.levels]
PLAIN = [pair for pair in LEVELS if make_task(*pair).true_reward is None and make_task(*pair).constraint is None]


def sums_by_digits(task):
    """Counts the pairs of summands of each sum by a convolution; the answer is its digits and the stop token."""
    bound = math.isqrt(len(task.prompts))
    pairs = np.convolve(np.ones(bound), np.ones(bound))
    digits = np.array([len(str(total)) for total in range(len(pairs))])
    return float(pairs @ 13.0 ** -(digits + 1)) / bound**2


def noisy_sums(task):
    return EPSILON[task.level] + (1 - 2 * EPSILON[task.level]) * sums_by_digits(task)


def palindromes(task):
    """Palindromes grow by one symbol at both ends."""
    count = {0: 1, 1: len(task.tokenizer)}
    for length in range(2, task.max_new_tokens + 1):
        count[length] = len(task.tokenizer) * count[length - 2]
    return count[task.max_new_tokens] / len(task.tokenizer) ** task.max_new_tokens


def one_path(task):
    """The one right text, if a change anywhere makes it wrong: one token of V at each step."""
    return math.prod([1 / len(task.tokenizer)] * task.max_new_tokens)


def nested_brackets(task):
    """The distribution over (depth, deepest nesting), pushed forward through the constraint's own masks."""
    target = {1: 3, 2: 2, 3: 4}[task.level]
    ended, states = 0.0, {(0, 0): 1.0}
    for length in range(task.max_new_tokens):
        following = collections.Counter()
        for (depth, deepest), probability in states.items():
            ids = [0, 1] * ((length - depth) // 2) + [0] * depth  # "()()((", for one: the kinds are interchangeable
            legal = [task.tokenizer[token] for token in legal_tokens(task, "", ids)]
            for symbol in legal:
                if symbol == "<eos>":
                    ended += probability / len(legal) * (deepest == target)
                    continue
                inner = depth + 1 if symbol in "([{" else depth - 1
                following[inner, max(deepest, inner)] += probability / len(legal)
        states = following
    return ended + sum(probability for (_, deepest), probability in states.items() if deepest == target)


def matching_texts(task):
    """Texts of each length, counted by hand for each pattern; each ends by the stop token, or at the horizon."""
    size, horizon = len(task.tokenizer), task.max_new_tokens
    two = [0, 2, *(2 ** (length - 1) for length in range(2, horizon + 1))]  # 0, 1, and what begins with 1

    def count(length):
        if task.level == 1:  # a, b as often as needed, a
            return length >= 2
        if task.level == 2:  # a number, the point, digits of which the last is 1
            return sum(two[whole] * 2 ** (length - whole - 2) for whole in range(1, length - 1))
        if task.level == 3:  # terms of two kinds, joined in two ways
            return 2**length if length % 2 and length >= 5 else 0
        digits = [length - 2 - commas for commas in range(horizon)]  # in commas + 1 numbers of at least one
        return sum(math.comb(left - 1, commas) * 2**left for commas, left in enumerate(digits) if 0 < commas < left)

    stopped = sum(count(length) / size ** (length + 1) for length in range(horizon))
    return stopped + count(horizon) / size**horizon


ORACLES = {
    "addition": sums_by_digits,
    "brackets": nested_brackets,
    "combination_lock": one_path,
    "noisy_verifier": noisy_sums,
    "palindrome": palindromes,
    "regex": matching_texts,
}


def sample(task, count, seed):
    """Scores of random texts after random prompts."""
    rng = np.random.default_rng(seed)
    rows = [row(task, int(index)) for index in rng.integers(len(task.prompts), size=count)]
    completions = []
    for entry in rows:
        ids = ()
        while not is_complete(task, ids):
            ids = (*ids, int(rng.choice(legal_tokens(task, entry["prompt"], ids))))
        completions.append(text(task, ids))
    return score(task, rows, completions)


SMALL = [pair for pair in LEVELS if is_small(make_task(*pair))]


def test_every_task_has_a_level_that_is_small_or_an_oracle():
    assert {name for name, _ in SMALL} | {*ORACLES, "sort"} == set(TASKS)


@pytest.mark.parametrize(("name", "level"), SMALL)
def test_optimum_and_uniform_of_a_small_task_by_full_enumeration(name, level):
    task = make_task(name, level)
    means, best, total = [], [], []
    for index in range(len(task.prompts)):
        entry = row(task, index)
        probabilities, completions = zip(*leaves(task, entry["prompt"]), strict=True)
        scores = score(task, [entry] * len(completions), list(completions))
        means.append(np.dot(probabilities, scores))
        best.append(scores.max())
        total.append(sum(probabilities))
    np.testing.assert_allclose(total, 1.0, rtol=1e-9)
    assert task.uniform == pytest.approx(np.mean(means), rel=1e-9)
    assert task.optimum == pytest.approx(np.mean(best), rel=1e-12)


@pytest.mark.parametrize(("name", "level"), [pair for pair in LEVELS if pair[0] in ORACLES])
def test_uniform_of_a_task_by_an_oracle(name, level):
    task = make_task(name, level)
    assert task.uniform == pytest.approx(ORACLES[name](task), rel=1e-9)


@pytest.mark.parametrize(("name", "level"), LEVELS)
def test_random_texts_agree_with_uniform_and_never_exceed_the_optimum(name, level):
    task = make_task(name, level)
    scores = sample(task, 2000, seed=1000 + level)
    spread = scores.std(ddof=1)
    if spread < 1e-9:  # no text of the sample scored: then the spread of a rare event as rare as declared
        spread = math.sqrt(task.uniform * (1 - task.uniform))
    assert abs(scores.mean() - task.uniform) < 4 * spread / math.sqrt(len(scores))
    assert 0.0 <= scores.min() and scores.max() <= task.optimum + 1e-12 and task.optimum <= 1.0


@pytest.mark.parametrize(("name", "level"), LEVELS)
def test_the_solution_attains_the_optimum_and_is_legal(name, level):
    task = make_task(name, level)
    indices = np.random.default_rng(level).integers(len(task.prompts), size=200)
    rows = [row(task, int(index)) for index in indices]
    answers = [task.solution(entry["prompt"]) for entry in rows]
    assert score(task, rows, answers) == pytest.approx(task.optimum, rel=1e-12)
    for entry, answer in zip(rows, answers, strict=True):
        ids = [list(task.tokenizer).index(symbol) for symbol in answer]
        if len(ids) < task.max_new_tokens:
            ids.append(list(task.tokenizer).index("<eos>"))
        assert len(ids) <= task.max_new_tokens
        assert all(ids[place] in legal_tokens(task, entry["prompt"], ids[:place]) for place in range(len(ids)))


@pytest.mark.parametrize(("name", "level"), LEVELS)
def test_unfinished_texts_score_within_0_and_1(name, level):
    task = make_task(name, level)
    rng = np.random.default_rng(level)
    entry = row(task, len(task.prompts) // 2)
    solution = task.solution(entry["prompt"])
    begun = [solution[:length] for length in range(1, len(solution) + 1)]
    symbols = [symbol for symbol in task.tokenizer if symbol != "<eos>"]
    begun += ["".join(rng.choice(symbols, size=int(rng.integers(1, task.max_new_tokens + 1)))) for _ in range(200)]
    scores = score(task, [entry] * len(begun), begun)
    assert ((scores >= 0) & (scores <= 1)).all()


@pytest.mark.parametrize(("name", "level"), LEVELS)
def test_prompts_fit_and_lie_within_the_vocabulary(name, level):
    task = make_task(name, level)
    indices = {0, len(task.prompts) - 1, *np.random.default_rng(level).integers(len(task.prompts), size=200).tolist()}
    prompts = [row(task, index)["prompt"] for index in indices]
    assert max(map(len, prompts)) == task.max_prompt_tokens
    assert {symbol for prompt in prompts for symbol in prompt} <= set(task.tokenizer)
    assert len(set(prompts)) == len(indices)


@pytest.mark.parametrize(("name", "level"), PLAIN)
def test_the_environment_pays_the_score_of_the_task(name, level):
    task = make_task(name, level)
    rng = np.random.default_rng(level)
    indices = rng.integers(len(task.prompts), size=400).tolist()
    rows = [row(task, index) for index in indices]
    tokens = rng.integers(len(task.tokenizer), size=(400, task.max_new_tokens))
    for place in range(0, 400, 2):  # every other one is right, so that sparse tasks pay too
        ids = [list(task.tokenizer).index(symbol) for symbol in task.solution(rows[place]["prompt"])]
        tokens[place] = task.tokenizer.index("<eos>") if "<eos>" in task.tokenizer else 0
        tokens[place, : len(ids)] = ids
    texts = []
    for ids in tokens.tolist():
        stop = next((place for place, token in enumerate(ids) if task.tokenizer[token] == "<eos>"), len(ids))
        texts.append(text(task, ids[:stop]))
    paid = played(name, level, indices, tokens)
    np.testing.assert_array_equal(paid, score(task, rows, texts))
    assert paid[::2].mean() == task.optimum


@pytest.mark.parametrize(("name", "level"), [pair for pair in LEVELS if make_task(*pair).constraint is not None])
def test_the_environment_masks_what_the_task_forbids(name, level):
    task = make_task(name, level)
    ids = [list(task.tokenizer).index(symbol) for symbol in task.solution("")] + [task.tokenizer.index("<eos>")]
    env = gym.make("TextGen-v0", task=name, level=level)
    _, info = env.reset(seed=0)
    assert not info["action_mask"].all()
    for place, action in enumerate(ids):
        np.testing.assert_array_equal(
            info["action_mask"], task.constraint("", ids[:place], task.max_new_tokens - place)
        )
        assert info["action_mask"][action] == 1
        _, reward, terminated, _, info = env.step(action)
    assert (reward, terminated) == (task.optimum, True)


@pytest.mark.parametrize(("name", "level"), [pair for pair in LEVELS if make_task(*pair).true_reward is not None])
def test_the_environment_pays_the_proxy_and_tells_the_truth(name, level):
    task = make_task(name, level)
    count = 600
    envs = gym.make_vec("TextGen-v0", num_envs=count, task=name, level=level, autoreset_mode="Disabled")
    indices = np.random.default_rng(level).integers(len(task.prompts), size=count).tolist()
    envs.reset(seed=3, options={"rows": {"prompt_index": indices}})
    stop = task.tokenizer.index("<eos>")
    answers = [task.solution(row(task, index)["prompt"]) if index % 2 else "" for index in indices]
    ids = [[*(list(task.tokenizer).index(symbol) for symbol in answer), stop] for answer in answers]
    while (envs.unwrapped._transition.running).any():
        step = envs.unwrapped._transition.length - envs.unwrapped._transition.prompt_length
        actions = [own[place] if place < len(own) else stop for own, place in zip(ids, step, strict=True)]
        *_, infos = envs.step(np.array(actions))
    np.testing.assert_array_equal(infos["true_score"], np.array(indices) % 2)
    flipped = infos["score"] != infos["true_score"]
    rate = EPSILON[level]
    assert abs(flipped.mean() - rate) < 4 * math.sqrt(rate * (1 - rate) / count)


def counting_sort(prompt):
    return "".join(symbol * prompt.count(symbol) for symbol in "0123456789abcdefghijklmnopqrstuvwxyz")


def read_backwards(prompt):
    return "".join(prompt[len(prompt) - 1 - place] for place in range(len(prompt)))


def column_addition(prompt):
    first, second = prompt[:-1].split("+")
    width, carry, digits = max(len(first), len(second)), 0, ""
    for upper, lower in zip(reversed(first.zfill(width)), reversed(second.zfill(width)), strict=True):
        carry, digit = divmod(ord(upper) + ord(lower) - 2 * ord("0") + carry, 10)
        digits = chr(digit + ord("0")) + digits
    return "1" * carry + digits


SOLVERS = {
    "sort": counting_sort,
    "reverse": read_backwards,
    "copy": "".join,
    "addition": column_addition,
    "noisy_verifier": column_addition,
}


@pytest.mark.parametrize(("name", "level"), [pair for pair in LEVELS if pair[0] in SOLVERS])
def test_the_solution_agrees_with_another_program(name, level):
    task = make_task(name, level)
    for index in np.random.default_rng(level).integers(len(task.prompts), size=300).tolist():
        assert task.solution(task.prompts[index]) == SOLVERS[name](task.prompts[index])


def test_the_default_is_sort_at_its_easiest_level():
    env = gym.make("TextGen-v0").unwrapped
    assert (env.problem.task.name, env.problem.task.level) == ("sort", 1)
    assert (env.optimum, env.uniform) == (1.0, 1 / 8)


@pytest.mark.parametrize(("name", "level"), LEVELS)
def test_a_description_is_a_short_line(name, level):
    assert 0 < len(TASKS[name].description) < 50
    assert 0 < len(make_task(name, level).description) < 50


@pytest.mark.parametrize("name", TASKS)
def test_without_a_level_a_task_is_at_its_easiest(name):
    assert make_task(name) is make_task(name, 1)


@pytest.mark.parametrize(
    "own",
    [
        dict(prompts=["31"]),
        dict(reward=lambda completions: [0.0] * len(completions)),
        dict(max_new_tokens=3),
        dict(stop_ids=[0]),
        dict(tokenizer=list("01234567x")),
    ],
    ids=lambda own: next(iter(own)),
)
def test_what_is_known_of_a_task_is_not_claimed_of_a_changed_one(own):
    room = {"max_prompt_tokens": 4} if "tokenizer" in own else {}
    env = gym.make("TextGen-v0", task="sort", **own, **room).unwrapped
    assert env.optimum is None and env.uniform is None


@pytest.mark.parametrize("scheme", ["terminal", "prefix_delta"])
def test_a_scheme_that_pays_the_same_total_keeps_the_optimum(scheme):
    env = gym.make_vec("TextGen-v0", num_envs=2, scheme=scheme)
    assert (env.optimum, env.uniform) == (1.0, 1 / 8)
