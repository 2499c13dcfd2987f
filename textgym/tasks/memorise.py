"""memorise: each prompt has an arbitrary answer, drawn once and for all; write it.

Diagnoses capacity, and leakage between prompts: nothing but the prompt itself tells its answer. The whole answer must
be right; a share of right tokens would pay for the commonest symbol of each place, which takes no memory at all.
"""

import random

from textgym.tasks.base import Task
from textgym.tasks.pieces import ALPHABET, EveryString

DESCRIPTION = "arbitrary answers by heart; capacity, leakage"

# level: (pairs, symbols, length of a prompt, length of an answer)
LEVELS = {1: (8, 8, 2, 2), 2: (64, 8, 3, 2), 3: (512, 16, 4, 2), 4: (4096, 16, 5, 3)}


def exact_answer(completions: list[str], answer: list[str | None]) -> list[float]:
    """1 where the completion is the answer of its row, 0 elsewhere and for a prompt that has none.

    >>> exact_answer(completions=["07", "0", "07"], answer=["07", "07", None])
    [1.0, 0.0, 0.0]
    """
    return [float(completion == right) for completion, right in zip(completions, answer, strict=True)]


def make_pairs(level: int) -> dict[str, str]:
    """The answer of each prompt: distinct prompts, answers drawn with equal probability.

    The same on every machine: `random.Random(seed).random()` is what Python promises never to change.
    """
    pairs, symbols, prompt_length, answer_length = LEVELS[level]
    generator = random.Random(level)
    prompts, answers = (EveryString(ALPHABET[:symbols], length) for length in (prompt_length, answer_length))
    answer_of: dict[str, str] = {}
    while len(answer_of) < pairs:
        prompt = prompts[int(generator.random() * len(prompts))]
        answer_of[prompt] = answers[int(generator.random() * len(answers))]
    return answer_of


def make(level: int) -> Task:
    """The task at a level.

    One of V^W texts is right after each prompt, so that the optimum is 1 and a uniform policy gets V^-W.
    """
    _, symbols, prompt_length, answer_length = LEVELS[level]
    answer_of = make_pairs(level)
    return Task(
        name="memorise",
        level=level,
        tokenizer=list(ALPHABET[:symbols]),
        prompts=[{"prompt": prompt, "answer": answer} for prompt, answer in answer_of.items()],
        max_prompt_tokens=prompt_length,
        max_new_tokens=answer_length,
        reward=exact_answer,
        optimum=1.0,
        uniform=float(symbols) ** -answer_length,
        solution=answer_of.__getitem__,
    )
