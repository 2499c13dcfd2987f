"""The state of N episodes, as arrays, and what is told of it: texts, infos, masks, a view.

How it changes is the business of `textgym.transition`.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from textgym.constraints import legal_tokens
from textgym.draws import GeneratorOf
from textgym.finish import FinishReason
from textgym.problem import Problem
from textgym.rendering import View
from textgym.rewards import Texts

RUNNING = int(FinishReason.RUNNING)  # numpy is several times slower over a member of an enum
MAX_CELLS = 2**28  # tokens of all histories together; with copies and spaces some 10 GiB


class Episodes:
    """The state of N rows.

    Args:
        problem: what is asked.
        num_rows: N.
        generator_of: the generator of a row, which a reward function may ask for.

    Attributes:
        tokens: int64 [N, L], the histories: prompt, generated tokens, then PAD.
        prompt_length: int64 [N], tokens of the prompt.
        length: int64 [N], tokens of prompt and completion together.
        finish_reason: int64 [N], a `FinishReason`.
        running: bool [N], started and not ended.
        legal: bool [N, V], which tokens are legal now; [N, 0] where the task constrains nothing.
        score: float64 [N], the score of an ended episode, 0 before.
        scores: float64 [N, K], one a reward function; 0 before the end.
        scores_valid: bool [N, K], False before the end.
        true_score: float64 [N], the hidden gold score of an ended episode, 0 before.
        valid: bool [N], False for a dropped episode.
        reward: float64 [N], what the last step paid.
        episode_return: float64 [N], what the steps of the episode have paid together.

    Raises:
        ValueError: the histories would take more than `MAX_CELLS` tokens; nothing has been allocated then.
    """

    # The arrays that hold the whole state of the rows, together with their prompts and columns.
    ARRAYS = (
        "tokens",
        "prompt_length",
        "length",
        "finish_reason",
        "running",
        "score",
        "scores",
        "scores_valid",
        "true_score",
        "valid",
        "reward",
        "episode_return",
        "prefix_score",
        "potentials",
    )

    def __init__(self, problem: Problem, num_rows: int, generator_of: GeneratorOf) -> None:
        _check_size(problem, num_rows)
        self.problem, self.generator_of = problem, generator_of
        functions = len(problem.reward.names)
        size = problem.vocabulary.size
        self.tokens = np.full((num_rows, problem.max_length), problem.vocabulary.pad_id, dtype=np.int64)
        self.prompt_length = np.zeros(num_rows, dtype=np.int64)
        self.length = np.zeros(num_rows, dtype=np.int64)
        self.finish_reason = np.zeros(num_rows, dtype=np.int64)
        self.running = np.zeros(num_rows, dtype=bool)
        self.legal = np.zeros((num_rows, size if problem.constraint else 0), dtype=bool)
        self.score = np.zeros(num_rows)
        self.scores = np.zeros((num_rows, functions))
        self.scores_valid = np.zeros((num_rows, functions), dtype=bool)
        self.true_score = np.zeros(num_rows)
        self.valid = np.ones(num_rows, dtype=bool)
        self.reward = np.zeros(num_rows)
        self.episode_return = np.zeros(num_rows)
        self.prefix_score = np.zeros(num_rows)  # f(text so far), where the scheme asks for it
        self.potentials = np.zeros((num_rows, len(problem.potentials)))  # Φ(state)
        self.prompts: list[str] = [""] * num_rows
        self.columns: list[dict[str, Any]] = [{} for _ in range(num_rows)]
        names = ["prompt_length", "length", "finish_reason", "score", "scores", "scores_valid", "valid"]
        names += ["true_score"] if problem.true_reward is not None else []
        self._reported = {name: getattr(self, name) for name in names}  # arrays that are changed in place alone
        self.is_stop = np.zeros(size, dtype=bool)
        self.is_stop[list(problem.vocabulary.stop_ids)] = True

    def action_masks(self) -> np.ndarray:
        """Which tokens are legal now, bool [N, V]; all of them where no episode is running."""
        if self.problem.constraint is None:
            return np.ones((len(self.length), self.problem.vocabulary.size), dtype=bool)
        return self.legal | ~self.running[:, None]

    def infos(self) -> dict[str, np.ndarray]:
        """The info keys of all rows, as fresh arrays with one entry a row."""
        infos = {name: values.copy() for name, values in self._reported.items()}
        if self.problem.constraint is not None:
            infos["action_mask"] = self.action_masks().view(np.int8)  # an array of its own
        if self.problem.text_info:
            infos |= self._text_infos()
        return infos

    def info(self, row: int) -> dict[str, Any]:
        """The info keys of one row: Python numbers, which Gymnasium batches into the dtypes of `infos`, and arrays."""
        if self.problem.constraint is None and not self.problem.text_info:
            return {
                name: values.item(row) if values.ndim == 1 else values[row].copy()
                for name, values in self._reported.items()
            }
        infos = self.infos().items()
        return {name: values.item(row) if values.ndim == 1 else values[row] for name, values in infos}

    def _text_infos(self) -> dict[str, np.ndarray]:
        """Prompt and completion of the rows that have ended, "" elsewhere; object [N]."""
        infos = {name: np.full(len(self.length), "", dtype=object) for name in ("prompt", "completion")}
        ended = np.flatnonzero(self.finish_reason != RUNNING)
        if len(ended):
            texts = self.texts(ended)
            infos["prompt"][ended], infos["completion"][ended] = texts.prompts, texts.completions
        return infos

    def view(self, row: int) -> View:
        """What there is to show of a row, finished or not."""
        texts = self.texts(np.array([row]))
        return View(
            prompt=texts.prompts[0],
            completion=texts.completions[0],
            finish_reason=int(self.finish_reason[row]),
            num_tokens=int(self.length[row] - self.prompt_length[row]),
            reward=float(self.reward[row]),
            episode_return=float(self.episode_return[row]),
            score=float(self.score[row]),
        )

    def legal_next(self, prompts: Sequence[str], completions: Sequence[Sequence[int]]) -> np.ndarray:
        """What the task's constraint allows after n completions, given as ids; bool [n, V], [n, 0] without one."""
        legal = np.zeros((len(prompts), self.legal.shape[1]), dtype=bool)
        if self.problem.constraint is not None:
            for place, (prompt, ids) in enumerate(zip(prompts, completions, strict=True)):
                left = self.problem.max_new_tokens - len(ids)
                legal[place] = legal_tokens(self.problem.constraint, prompt, ids, left, self.problem.vocabulary.size)
        return legal

    def completion_ids(self, row: int) -> list[int]:
        """The tokens generated so far in a row."""
        return self.tokens[row, self.prompt_length[row] : self.length[row]].tolist()

    def texts(self, rows: np.ndarray) -> Texts:
        """What a reward function sees of `rows`, int64 [n], finished or not."""
        places = rows.tolist()
        prompts, columns = [self.prompts[row] for row in places], [self.columns[row] for row in places]
        return self.texts_of(places, prompts, columns, [self.completion_ids(row) for row in places])

    def texts_of(
        self,
        rows: Sequence[int],
        prompts: list[str],
        columns: Sequence[dict[str, Any]],
        ids: list[list[int]],
    ) -> Texts:
        """What a reward function sees of completions of these ids, in rows whose own texts may be others still."""
        shown = [sequence[:-1] if sequence and self.is_stop[sequence[-1]] else sequence for sequence in ids]
        completions = self.problem.vocabulary.decode_batch(shown)
        if self.problem.stop:
            completions = [self.problem.stop.cut(text) for text in completions]
        names = dict.fromkeys([*(name for one in columns for name in one), *self.problem.asked_columns])
        return Texts(
            prompts=prompts,
            completions=completions,
            completion_ids=ids,
            columns={name: [one.get(name) for one in columns] for name in names},
            generators=[self.generator_of(row) for row in rows],
        )


def _check_size(problem: Problem, num_rows: int) -> None:
    if num_rows * problem.max_length > MAX_CELLS:
        raise ValueError(
            f"{num_rows} environments with histories of {problem.max_length} tokens (the longest prompt's "
            f"{problem.max_prompt_tokens} and max_new_tokens={problem.max_new_tokens}) are more than {MAX_CELLS} "
            f"tokens ({MAX_CELLS * 8 / 2**30:.3g} GiB); lower max_new_tokens or max_prompt_tokens, shorten the "
            "longest prompt, or make fewer environments"
        )
