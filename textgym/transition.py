"""The decision process itself: N episodes side by side, as arrays.

The state of a row is its token history; an action appends a token; a stop token or the horizon ends the episode, and
the texts that ended together are scored in one call. The scalar and the vector environment both run this, so that there
is one process and not two. Autoreset, spaces and Gymnasium's conventions are left to them.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from textgym.finish import FinishReason
from textgym.problem import Problem
from textgym.rendering import View
from textgym.rewards import Scores, Texts
from textgym.schemes import Payment
from textgym.starts import Start

MAX_CELLS = 2**31  # tokens of all histories together; an array of them then takes 16 GiB


class Transition:
    """N rows of the token-level decision process.

    Attributes:
        tokens: int64 [N, L], the histories: prompt, generated tokens, then PAD.
        prompt_length: int64 [N], tokens of the prompt.
        length: int64 [N], tokens of prompt and completion together.
        finish_reason: int64 [N], a `FinishReason`.
        running: bool [N], started and not ended.
        score: float64 [N], the score of an ended episode, 0 before.
        scores: float64 [N, K], one a reward function; 0 before the end.
        scores_valid: bool [N, K], False before the end.
        reward: float64 [N], what the last step paid.
        episode_return: float64 [N], what the episode has paid so far.

    Raises:
        ValueError: the histories would take more than `MAX_CELLS` tokens; nothing has been allocated then.
    """

    def __init__(self, problem: Problem, num_rows: int) -> None:
        _check_size(problem, num_rows)
        self.problem = problem
        functions = len(problem.reward.names)
        self.tokens = np.full((num_rows, problem.max_length), problem.vocabulary.pad_id, dtype=np.int64)
        self.prompt_length = np.zeros(num_rows, dtype=np.int64)
        self.length = np.zeros(num_rows, dtype=np.int64)
        self.finish_reason = np.zeros(num_rows, dtype=np.int64)
        self.running = np.zeros(num_rows, dtype=bool)
        self.score = np.zeros(num_rows)
        self.scores = np.zeros((num_rows, functions))
        self.scores_valid = np.zeros((num_rows, functions), dtype=bool)
        self.reward = np.zeros(num_rows)
        self.episode_return = np.zeros(num_rows)
        self._prefix_score = np.zeros(num_rows)  # f(text so far), where the scheme asks for it
        self._prompts: list[str] = [""] * num_rows
        self._columns: list[dict[str, Any]] = [{} for _ in range(num_rows)]
        self._is_stop = np.zeros(problem.vocabulary.size, dtype=bool)
        self._is_stop[list(problem.vocabulary.stop_ids)] = True

    def start(self, rows: np.ndarray, starts: Sequence[Start]) -> None:
        """Begin an episode in each of `rows`, int64 [n], from `starts`, n of them.

        Raises:
            RewardError: the scheme pays by prefixes and the score of a starting prefix failed.
        """
        self.running[rows] = False  # until nothing can fail any more
        self.tokens[rows] = self.problem.vocabulary.pad_id
        for row, (prompt, completion_ids) in zip(rows, starts, strict=True):
            prompt_length, length = len(prompt.ids), len(prompt.ids) + len(completion_ids)
            self.tokens[row, :prompt_length] = prompt.ids
            self.tokens[row, prompt_length:length] = completion_ids
            self.prompt_length[row], self.length[row] = prompt_length, length
            self._prompts[row], self._columns[row] = prompt.text, prompt.columns
        self.finish_reason[rows] = FinishReason.RUNNING
        self.reward[rows] = self.episode_return[rows] = 0.0
        self.score[rows] = self.scores[rows] = self._prefix_score[rows] = 0.0
        self.scores_valid[rows] = False
        if self.problem.scheme.scores_prefixes:
            begun = rows[self.length[rows] > self.prompt_length[rows]]
            if len(begun):
                self._prefix_score[begun] = self.problem.reward(self._texts(begun)).score
        self.running[rows] = True

    def step(self, actions: np.ndarray, rows: np.ndarray) -> None:
        """Take one action in each of `rows`; the others stay as they are.

        Args:
            actions: int64 [N]; those of other rows are not looked at.
            rows: int64 [n], running rows.

        Raises:
            ValueError: an action outside 0..V-1; nothing has changed then.
            RewardError: the reward function failed; nothing has changed then, and the step can be taken again.
        """
        chosen = actions[rows]
        self._check(chosen, rows)
        self.tokens[rows, self.length[rows]] = chosen
        self.length[rows] += 1
        stopped = self._is_stop[chosen]
        ended = stopped | (self.length[rows] - self.prompt_length[rows] >= self.problem.max_new_tokens)
        try:
            self._pay(rows, ended)
        except BaseException:
            self.length[rows] -= 1
            self.tokens[rows, self.length[rows]] = self.problem.vocabulary.pad_id
            raise
        self.finish_reason[rows] = np.where(stopped, FinishReason.STOP, np.where(ended, FinishReason.LIMIT, 0))
        self.running[rows] = ~ended

    def infos(self) -> dict[str, np.ndarray]:
        """The info keys of all rows, as fresh arrays with one entry a row."""
        return {
            "prompt_length": self.prompt_length.copy(),
            "length": self.length.copy(),
            "finish_reason": self.finish_reason.copy(),
            "score": self.score.copy(),
            "scores": self.scores.copy(),
            "scores_valid": self.scores_valid.copy(),
            "valid": np.ones(len(self.length), dtype=bool),
        }

    def text(self, row: int) -> tuple[str, str]:
        """Prompt and completion of a row; the completion without its stop token, finished or not."""
        texts = self._texts(np.array([row]))
        return texts.prompts[0], texts.completions[0]

    def view(self, row: int) -> View:
        """What there is to see of a row, finished or not."""
        prompt, completion = self.text(row)
        return View(
            prompt=prompt,
            completion=completion,
            finish_reason=int(self.finish_reason[row]),
            num_tokens=int(self.length[row] - self.prompt_length[row]),
            reward=float(self.reward[row]),
            episode_return=float(self.episode_return[row]),
            score=float(self.score[row]),
        )

    def _check(self, chosen: np.ndarray, rows: np.ndarray) -> None:
        size = self.problem.vocabulary.size
        outside = (chosen < 0) | (chosen >= size)
        if outside.any():
            place = int(outside.argmax())
            raise ValueError(
                f"action {chosen[place]} of row {rows[place]} is outside the action space; actions are 0 to {size - 1} "
                f"(PAD = {size} is never an action)"
            )

    def _pay(self, rows: np.ndarray, ended: np.ndarray) -> None:
        """Score what must be scored and set the rewards; the state changes only once nothing can fail any more."""
        scheme = self.problem.scheme
        where = np.ones(len(rows), dtype=bool) if scheme.scores_prefixes else ended
        score = np.zeros(len(rows))
        if where.any():
            result: Scores = self.problem.reward(self._texts(rows[where]))
            score[where] = result.score
        reward = scheme.pay(Payment(self._prefix_score[rows], score, ended))
        self.reward[rows] = reward
        self.episode_return[rows] += reward
        if ended.any():
            done, of_scored = rows[ended], ended[where]
            self.score[done] = result.score[of_scored]
            self.scores[done] = result.scores[of_scored]
            self.scores_valid[done] = result.valid[of_scored]
        if scheme.scores_prefixes:
            self._prefix_score[rows] = score

    def _texts(self, rows: np.ndarray) -> Texts:
        ids = [
            self.tokens[row, start:end].tolist()
            for row, start, end in zip(rows, self.prompt_length[rows], self.length[rows], strict=True)
        ]
        shown = [sequence[:-1] if sequence and self._is_stop[sequence[-1]] else sequence for sequence in ids]
        names = dict.fromkeys(name for row in rows for name in self._columns[row])
        return Texts(
            prompts=[self._prompts[row] for row in rows],
            completions=self.problem.vocabulary.decode_batch(shown),
            completion_ids=ids,
            columns={name: [self._columns[row].get(name) for row in rows] for name in names},
        )


def _check_size(problem: Problem, num_rows: int) -> None:
    if num_rows * problem.max_length > MAX_CELLS:
        raise ValueError(
            f"{num_rows} environments with histories of {problem.max_length} tokens (the longest prompt's "
            f"{problem.max_prompt_tokens} and max_new_tokens={problem.max_new_tokens}) are more than {MAX_CELLS} "
            f"tokens ({MAX_CELLS * 8 / 2**30:.3g} GiB); lower max_new_tokens or max_prompt_tokens, shorten the "
            "longest prompt, or make fewer environments"
        )
