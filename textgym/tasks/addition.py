"""addition: write the sum of two numbers, then stop.

Diagnoses generalising against memorising, and stopping: answers differ in length, and the stop token is part of the
right one. The horizon leaves room for one token more than the longest sum, so that every right text ends by choice.
"""

from textgym.escape import excerpt
from textgym.tasks.base import Task

DESCRIPTION = "the sum of two numbers; generalising, stopping"

SYMBOLS = (*"0123456789+=", "<eos>")

# level: digits of a summand
LEVELS = {1: 1, 2: 2, 3: 3, 4: 4}


class Sums:
    """The prompts "a+b=" of all pairs of summands below a bound; row i is a = i // bound, b = i % bound.

    >>> Sums(100)[1207]
    '12+7='
    """

    def __init__(self, bound: int) -> None:
        self.bound = bound

    def __len__(self) -> int:
        return self.bound**2

    def __getitem__(self, index: int) -> str:
        if not 0 <= index < len(self):
            raise IndexError(f"row {index} of {len(self)}")
        return "{}+{}=".format(*divmod(index, self.bound))


def sum_of(prompt: str) -> str:
    """The right answer to a prompt "a+b=".

    Raises:
        ValueError: the prompt is none.

    >>> sum_of("12+7=")
    '19'
    """
    first, plus, second = prompt.removesuffix("=").partition("+")
    if not (plus and first.isdecimal() and second.isdecimal()):
        raise ValueError(f"the prompt {excerpt(prompt)} asks for no sum; write it as '12+7='")
    return str(int(first) + int(second))


def exact_sum(prompts: list[str], completions: list[str]) -> list[float]:
    """1 where the completion is the sum and nothing else, 0 elsewhere.

    A text that is not ended yet is judged as it stands: the first digit of a longer sum is wrong, the whole sum right.

    >>> exact_sum(prompts=["9+8=", "9+8=", "9+8="], completions=["17", "1", "170"])
    [1.0, 0.0, 0.0]
    """
    return [float(completion == sum_of(prompt)) for prompt, completion in zip(prompts, completions, strict=True)]


def uniform_success(digits: int) -> float:
    """Probability that the uniform policy writes the sum and then stops, the mean over all prompts.

    An answer of n digits is n + 1 right tokens of V, the stop token included.
    """
    bound = 10**digits
    below = [_pairs_below(10**length, bound) for length in range(1, digits + 2)]
    of_length = [more - less for more, less in zip(below, [0, *below], strict=False)]
    right = sum(count * len(SYMBOLS) ** -(length + 1.0) for length, count in enumerate(of_length, start=1))
    return right / bound**2


def _pairs_below(limit: int, bound: int) -> int:
    """Pairs of summands in 0..bound-1 whose sum is below the limit.

    >>> _pairs_below(3, bound=10), _pairs_below(18, bound=10), _pairs_below(100, bound=10)
    (6, 99, 100)
    """
    if limit <= bound:
        return limit * (limit + 1) // 2  # a sum s < bound has s + 1 pairs
    above = max(0, 2 * bound - 1 - limit)  # sums from the limit to 2 bound - 2; the largest has one pair, the next two
    return bound**2 - above * (above + 1) // 2


def make(level: int) -> Task:
    """The task at a level; the optimum is 1, a uniform policy gets `uniform_success`."""
    digits = LEVELS[level]
    return Task(
        name="addition",
        level=level,
        tokenizer=list(SYMBOLS),
        prompts=Sums(10**digits),
        max_prompt_tokens=2 * digits + 2,
        max_new_tokens=digits + 2,
        reward=exact_sum,
        optimum=1.0,
        uniform=uniform_success(digits),
        solution=sum_of,
    )
