"""The decision process itself: N episodes side by side, as arrays.

The state of a row is its token history; an action appends a token; a stop token, a stop string or the horizon ends the
episode, and the texts that ended together are scored in one call. The scalar and the vector environment both run this,
so that there is one process and not two. Autoreset, spaces and Gymnasium's conventions are left to them.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from textgym.constraints import legal_tokens
from textgym.draws import GeneratorOf
from textgym.finish import FinishReason
from textgym.problem import Problem
from textgym.rendering import View
from textgym.rewards import Scores, Texts
from textgym.rewards.texts import generator_states, put_back
from textgym.schemes import Payment
from textgym.starts import Start

_FIRST = np.array([0])
_RUNNING = int(FinishReason.RUNNING)  # numpy is several times slower over a member of an enum
MAX_CELLS = 2**31  # tokens of all histories together; an array of them then takes 16 GiB


class _Step(NamedTuple):
    """What a step of n rows leads to, before anything of it is kept."""

    finish_reason: np.ndarray  # int64 [n]
    legal: np.ndarray  # bool [n, V], the tokens that are legal next; [n, 0] without a constraint
    kept: np.ndarray  # bool [n], False where the episode is dropped
    scored: np.ndarray  # bool [n], whether the reward functions were asked
    scores: Scores | None  # of the scored rows, None where there are none
    true_score: np.ndarray  # float64 [n], 0 until the end
    potentials: np.ndarray  # float64 [n, P]
    reward: np.ndarray  # float64 [n]


class Transition:
    """N rows of the token-level decision process.

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
        self.problem, self._generator_of = problem, generator_of
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
        # Whether a step that ends no episode only appends a token and pays nothing.
        self._only_appends = problem.constraint is None and not problem.stop and problem.scheme.pays_at_end_alone
        scorers = [problem.reward, *problem.potentials, *([problem.true_reward] if problem.true_reward else [])]
        self._draws = any(scorer.draws for scorer in scorers)
        self._is_stop = np.zeros(size, dtype=bool)
        self._is_stop[list(problem.vocabulary.stop_ids)] = True

    def start(self, rows: np.ndarray, starts: Sequence[Start]) -> None:
        """Begin an episode in each of `rows`, int64 [n], from `starts`, n of them.

        Raises:
            RewardError: the scheme needs the score or the potential of a starting state, and that failed.
            ValueError: the task allows no token at all in a starting state.
        """
        self.running[rows] = False  # until nothing can fail any more
        self.tokens[rows] = self.problem.vocabulary.pad_id
        for row, (prompt, completion_ids) in zip(rows.tolist(), starts, strict=True):
            prompt_length, length = len(prompt.ids), len(prompt.ids) + len(completion_ids)
            self.tokens[row, :prompt_length] = prompt.ids
            self.tokens[row, prompt_length:length] = completion_ids
            self.prompt_length[row], self.length[row] = prompt_length, length
            self.prompts[row], self.columns[row] = prompt.text, prompt.columns
        self.finish_reason[rows] = _RUNNING
        for values in (self.reward, self.episode_return, self.score, self.scores, self.true_score, self.prefix_score):
            values[rows] = 0.0
        self.scores_valid[rows] = False
        self.valid[rows] = True
        self._start_constraint(rows)
        self._start_scheme(rows)
        self.running[rows] = True

    def _start_constraint(self, rows: np.ndarray) -> None:
        if self.problem.constraint is None:
            return
        legal = self._legal(rows)
        stuck = ~legal.any(axis=1)
        if stuck.any():
            row = int(rows[stuck.argmax()])
            raise ValueError(
                f"the task's constraint allows no token at all at the start, for the prompt {self.prompts[row]!r:.200} "
                f"and {self.length[row] - self.prompt_length[row]} tokens generated; start elsewhere, or mend it"
            )
        self.legal[rows] = legal

    def _start_scheme(self, rows: np.ndarray) -> None:
        """Score and weigh the starting states where the scheme pays by differences."""
        if self.problem.scheme.scores_prefixes:
            begun = rows[self.length[rows] > self.prompt_length[rows]]
            if len(begun):
                scores = self.problem.reward(self._texts(begun))
                self.prefix_score[begun] = scores.score
                self.valid[begun] = scores.kept
        if self.problem.potentials:
            kept = np.ones(len(rows), dtype=bool)
            self.potentials[rows] = self._weigh(rows, self.valid[rows].copy(), kept)
            self.valid[rows] &= kept

    def step(self, actions: np.ndarray, rows: np.ndarray) -> None:
        """Take one action in each of `rows`; the others stay as they are.

        Args:
            actions: int64 [N]; those of other rows are not looked at.
            rows: int64 [n], running rows.

        Raises:
            ValueError: an action outside 0..V-1, or an illegal one; nothing has changed then.
            RewardError: the reward function failed; nothing has changed then, and the step can be taken again.
        """
        chosen = actions[rows]
        self._check(chosen, rows)
        illegal = self._illegal(chosen, rows)
        self.tokens[rows, self.length[rows]] = chosen
        self.length[rows] += 1
        judged = self._judged(chosen, rows)
        # What a reward function drew is drawn again where something fails after it.
        states = generator_states(self._generator_of(row) for row in rows[judged].tolist()) if self._draws else ()
        try:
            step = self._outcome(chosen[judged], rows[judged], illegal[judged]) if judged.any() else None
        except BaseException:
            put_back(states)
            self.length[rows] -= 1
            self.tokens[rows, self.length[rows]] = self.problem.vocabulary.pad_id
            raise
        self.reward[rows] = 0.0
        if step is not None:
            self._keep(step, rows[judged])

    def step_one(self, action: int) -> None:
        """`step` of row 0, which must be running; without the detour over arrays where a token is all that changes."""
        length = self.length.item(0)
        on = length + 1 - self.prompt_length.item(0) < self.problem.max_new_tokens
        if self._only_appends and on and 0 <= action < len(self._is_stop) and not self._is_stop.item(action):
            self.tokens[0, length] = action
            self.length[0] = length + 1
            self.reward[0] = 0.0
        else:
            self.step(np.array([action]), _FIRST)

    def _judged(self, chosen: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """Where the step changes more than the history, bool [n]: all rows, unless only an end does."""
        if self._only_appends:
            return self._is_stop[chosen] | self._at_limit(rows)
        return np.ones(len(rows), dtype=bool)

    def _at_limit(self, rows: np.ndarray) -> np.ndarray:
        return self.length[rows] - self.prompt_length[rows] >= self.problem.max_new_tokens

    def _outcome(self, chosen: np.ndarray, rows: np.ndarray, illegal: np.ndarray) -> _Step:
        """What the step leads to; the token is in the history already, nothing else has changed."""
        finish_reason, legal = self._finish(chosen, rows, illegal)
        ended, kept = finish_reason != _RUNNING, self.valid[rows].copy()
        asked = kept & ~illegal  # a text that broke the rules scores 0, whatever it says
        scored = asked if self.problem.scheme.scores_prefixes else asked & ended
        scores = self.problem.reward(self._texts(rows[scored])) if scored.any() else None
        score = np.zeros(len(rows))
        if scores is not None:
            score[scored], kept[scored] = scores.score, scores.kept
        true_score = np.zeros(len(rows))
        final = asked & ended & kept
        if self.problem.true_reward is not None and final.any():
            true_score[final] = self.problem.true_reward(self._texts(rows[final])).score
        potentials = self._weigh(rows, kept & ~ended, kept)
        payment = Payment(
            previous_score=self.prefix_score[rows],
            score=score,
            ended=ended,
            previous_potentials=self.potentials[rows],
            potentials=potentials,
            observations=self._states_before(rows),
            actions=chosen.copy(),
        )
        reward = np.where(kept, self.problem.scheme.pay(payment), 0.0)
        return _Step(finish_reason, legal, kept, scored, scores, true_score, potentials, reward)

    def _finish(self, chosen: np.ndarray, rows: np.ndarray, illegal: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """How each episode ends by this step, int64 [n], and the tokens that are legal next, bool [n, V]."""
        stopped = self._is_stop[chosen]
        if self.problem.stop:
            rest = np.flatnonzero(~stopped)
            stopped[rest] = self.problem.stop.completed([self._completion_ids(row) for row in rows[rest]])
        reason = np.zeros(len(rows), dtype=np.int64)
        reason[self._at_limit(rows)] = FinishReason.LIMIT
        reason[stopped] = FinishReason.STOP
        reason[illegal] = FinishReason.ILLEGAL_ACTION
        legal = np.zeros((len(rows), self.legal.shape[1]), dtype=bool)
        if self.problem.constraint is not None:
            going_on = np.flatnonzero(reason == _RUNNING)
            legal[going_on] = self._legal(rows[going_on])
            reason[going_on[~legal[going_on].any(axis=1)]] = FinishReason.DEAD_END
        return reason, legal

    def _keep(self, step: _Step, rows: np.ndarray) -> None:
        ended = step.finish_reason != _RUNNING
        self.finish_reason[rows] = step.finish_reason
        self.running[rows] = ~ended
        self.legal[rows] = step.legal
        self.valid[rows] = step.kept
        self.reward[rows] = step.reward
        self.episode_return[rows] += step.reward
        self.potentials[rows] = step.potentials
        self.true_score[rows] = step.true_score
        if step.scores is None:
            return
        scored, final = rows[step.scored], ended[step.scored]
        if self.problem.scheme.scores_prefixes:
            self.prefix_score[scored] = step.scores.score
        if final.any():
            self.score[scored[final]] = step.scores.score[final]
            self.scores[scored[final]] = step.scores.scores[final]
            self.scores_valid[scored[final]] = step.scores.valid[final]

    def _weigh(self, rows: np.ndarray, where: np.ndarray, kept: np.ndarray) -> np.ndarray:
        """Φ of the states, float64 [n, P], 0 outside `where`; `kept` becomes False where a function drops a text."""
        potentials = np.zeros((len(rows), len(self.problem.potentials)))
        if potentials.shape[1] and where.any():
            texts, places = self._texts(rows[where]), np.flatnonzero(where)
            for column, potential in enumerate(self.problem.potentials):
                weighed = potential(texts)
                potentials[places, column] = weighed.score
                kept[places] &= weighed.kept
        return potentials

    def _illegal(self, chosen: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """Which of the chosen tokens the mask forbids, bool [n].

        Raises:
            ValueError: there is one, and `on_illegal_action` is "raise".
        """
        if self.problem.constraint is None:
            return np.zeros(len(rows), dtype=bool)
        illegal = ~self.legal[rows, chosen]
        if illegal.any() and self.problem.on_illegal_action == "raise":
            place = int(illegal.argmax())
            allowed = np.flatnonzero(self.legal[rows[place]]).tolist()
            more = f" and {len(allowed) - 20} more" if len(allowed) > 20 else ""
            raise ValueError(
                f"action {chosen[place]} of row {rows[place]} is illegal now; legal are "
                f"{', '.join(map(str, allowed[:20]))}{more}. Choose by action_masks() or info['action_mask'], or make "
                "the environment with on_illegal_action='terminate'"
            )
        return illegal

    def _legal(self, rows: np.ndarray) -> np.ndarray:
        """What the task's constraint allows next, bool [n, V]."""
        assert self.problem.constraint is not None
        size = self.problem.vocabulary.size
        legal = np.zeros((len(rows), size), dtype=bool)
        for place, row in enumerate(rows.tolist()):
            ids = self._completion_ids(row)
            legal[place] = legal_tokens(self.problem.constraint, self.prompts[row], ids, size)
        return legal

    def set_legal(self) -> None:
        """Ask the constraint anew, for rows whose arrays were put in place from outside."""
        if self.problem.constraint is not None:
            rows = np.flatnonzero(self.running)
            self.legal[:] = False
            self.legal[rows] = self._legal(rows)

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
        ended = np.flatnonzero(self.finish_reason != _RUNNING)
        if len(ended):
            texts = self._texts(ended)
            infos["prompt"][ended], infos["completion"][ended] = texts.prompts, texts.completions
        return infos

    def view(self, row: int) -> View:
        """What there is to show of a row, finished or not."""
        texts = self._texts(np.array([row]))
        return View(
            prompt=texts.prompts[0],
            completion=texts.completions[0],
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

    def _states_before(self, rows: np.ndarray) -> np.ndarray:
        """The histories without the token that was just appended, int64 [n, L]; [n, 0] where no scheme reads them."""
        if not self.problem.scheme.reads_observations:
            return np.zeros((len(rows), 0), dtype=np.int64)
        states = self.tokens[rows]
        states[np.arange(len(rows)), self.length[rows] - 1] = self.problem.vocabulary.pad_id
        return states

    def _completion_ids(self, row: int) -> list[int]:
        return self.tokens[row, self.prompt_length[row] : self.length[row]].tolist()

    def _texts(self, rows: np.ndarray) -> Texts:
        places = rows.tolist()
        ids = [self._completion_ids(row) for row in places]
        shown = [sequence[:-1] if sequence and self._is_stop[sequence[-1]] else sequence for sequence in ids]
        completions = self.problem.vocabulary.decode_batch(shown)
        if self.problem.stop:
            completions = [self.problem.stop.cut(text) for text in completions]
        names = dict.fromkeys(name for row in places for name in self.columns[row])
        return Texts(
            prompts=[self.prompts[row] for row in places],
            completions=completions,
            completion_ids=ids,
            columns={name: [self.columns[row].get(name) for row in places] for name in names},
            generators=[self._generator_of(row) for row in places],
        )


def _check_size(problem: Problem, num_rows: int) -> None:
    if num_rows * problem.max_length > MAX_CELLS:
        raise ValueError(
            f"{num_rows} environments with histories of {problem.max_length} tokens (the longest prompt's "
            f"{problem.max_prompt_tokens} and max_new_tokens={problem.max_new_tokens}) are more than {MAX_CELLS} "
            f"tokens ({MAX_CELLS * 8 / 2**30:.3g} GiB); lower max_new_tokens or max_prompt_tokens, shorten the "
            "longest prompt, or make fewer environments"
        )
