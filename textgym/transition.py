"""The decision process itself: N episodes side by side, as arrays.

The state of a row is its token history; an action appends a token; a stop token, a stop string or the horizon ends the
episode, and the texts that ended together are scored in one call. The scalar and the vector environment both run this,
so that there is one process and not two. Autoreset, spaces and Gymnasium's conventions are left to them.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from textgym.draws import GeneratorOf
from textgym.episodes import RUNNING, Episodes
from textgym.escape import excerpt
from textgym.finish import FinishReason
from textgym.problem import Problem
from textgym.rewards import Scores, Texts
from textgym.rewards.texts import generator_states, put_back
from textgym.schemes import Payment
from textgym.starts import Start

_FIRST = np.array([0])


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


class StartPlan(NamedTuple):
    """What n episodes begin with, before they do."""

    rows: np.ndarray  # int64 [n]
    starts: Sequence[Start]
    legal: np.ndarray  # bool [n, V], the tokens that are legal; [n, 0] without a constraint
    prefix_score: np.ndarray  # float64 [n], of the starting states where the scheme asks for it
    potentials: np.ndarray  # float64 [n, P]
    kept: np.ndarray  # bool [n], False where the episode is dropped


class Transition(Episodes):
    """N rows of the token-level decision process; see `Episodes` for the arguments and the state."""

    def __init__(self, problem: Problem, num_rows: int, generator_of: GeneratorOf) -> None:
        super().__init__(problem, num_rows, generator_of)
        # Whether a step that ends no episode only appends a token and pays nothing.
        self._only_appends = problem.constraint is None and not problem.stop and problem.scheme.pays_at_end_alone
        self._draws = problem.draws

    def plan(self, rows: np.ndarray, starts: Sequence[Start]) -> StartPlan:
        """What an episode in each of `rows`, int64 [n], begins with; nothing changes.

        Raises:
            RewardError: the scheme needs the score or the potential of a starting state, and that failed.
            ValueError: the task allows no token at all in a starting state.
        """
        prompts = [start.prompt.text for start in starts]
        ids = [start.completion_ids.tolist() for start in starts]
        legal = self.legal_next(prompts, ids)
        if self.problem.constraint is not None and not legal.any(axis=1).all():
            place = int(legal.any(axis=1).argmin())
            raise ValueError(
                f"the task's constraint allows no token at all at the start, for the prompt {excerpt(prompts[place])} "
                f"and {len(ids[place])} tokens generated; start elsewhere, or mend it"
            )
        score, kept = np.zeros(len(rows)), np.ones(len(rows), dtype=bool)

        def texts(places: np.ndarray) -> Texts:
            chosen = places.tolist()
            columns = [starts[place].prompt.columns for place in chosen]
            return self.texts_of(
                rows[places].tolist(), [prompts[place] for place in chosen], columns, [ids[place] for place in chosen]
            )

        begun = np.flatnonzero([bool(own) for own in ids])
        if self.problem.scheme.scores_prefixes and len(begun):
            scores = self.problem.reward(texts(begun))
            score[begun], kept[begun] = scores.score, scores.kept
        potentials = self._weigh(texts, kept.copy(), kept)
        return StartPlan(rows, starts, legal, score, potentials, kept)

    def begin(self, plan: StartPlan) -> None:
        """Begin the planned episodes."""
        rows = plan.rows
        self.tokens[rows] = self.problem.vocabulary.pad_id
        for row, (prompt, completion_ids) in zip(rows.tolist(), plan.starts, strict=True):
            prompt_length, length = len(prompt.ids), len(prompt.ids) + len(completion_ids)
            self.tokens[row, :prompt_length] = prompt.ids
            self.tokens[row, prompt_length:length] = completion_ids
            self.prompt_length[row], self.length[row] = prompt_length, length
            self.prompts[row], self.columns[row] = prompt.text, prompt.columns
        self.finish_reason[rows] = RUNNING
        for values in (self.reward, self.episode_return, self.score, self.scores, self.true_score):
            values[rows] = 0.0
        self.scores_valid[rows] = False
        self.legal[rows], self.potentials[rows] = plan.legal, plan.potentials
        self.prefix_score[rows], self.valid[rows] = plan.prefix_score, plan.kept
        self.running[rows] = True

    def step(self, actions: np.ndarray, rows: np.ndarray, prepare: Callable[[np.ndarray], None] | None = None) -> None:
        """Take one action in each of `rows`; the others stay as they are.

        Args:
            actions: int64 [N]; those of other rows are not looked at.
            rows: int64 [n], running rows.
            prepare: called with the rows that end, int64, before anything of the step is kept.

        Raises:
            ValueError: an action outside 0..V-1, or an illegal one; nothing has changed then.
            RewardError: the reward function failed; nothing has changed then, and the step can be taken again. So it
                is with whatever `prepare` raises.
        """
        chosen = actions[rows]
        self._check(chosen, rows)
        illegal = self._illegal(chosen, rows)
        self.tokens[rows, self.length[rows]] = chosen
        self.length[rows] += 1
        judged = self._judged(chosen, rows)
        # What a reward function drew is drawn again where something fails after it.
        states = generator_states(self.generator_of(row) for row in rows[judged].tolist()) if self._draws else ()
        try:
            step = self._outcome(chosen[judged], rows[judged], illegal[judged]) if judged.any() else None
            if prepare is not None:
                prepare(rows[judged][step.finish_reason != RUNNING] if step is not None else rows[:0])
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
        if self._only_appends and on and 0 <= action < len(self.is_stop) and not self.is_stop.item(action):
            self.tokens[0, length] = action
            self.length[0] = length + 1
            self.reward[0] = 0.0
        else:
            self.step(np.array([action]), _FIRST)

    def _judged(self, chosen: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """Where the step changes more than the history, bool [n]: all rows, unless only an end does."""
        if self._only_appends:
            return self.is_stop[chosen] | self._at_limit(rows)
        return np.ones(len(rows), dtype=bool)

    def _at_limit(self, rows: np.ndarray) -> np.ndarray:
        return self.length[rows] - self.prompt_length[rows] >= self.problem.max_new_tokens

    def _outcome(self, chosen: np.ndarray, rows: np.ndarray, illegal: np.ndarray) -> _Step:
        """What the step leads to; the token is in the history already, nothing else has changed."""
        finish_reason, legal = self._finish(chosen, rows, illegal)
        ended, kept = finish_reason != RUNNING, self.valid[rows].copy()
        asked = kept & ~illegal  # a text that broke the rules scores 0, whatever it says
        scored = asked if self.problem.scheme.scores_prefixes else asked & ended
        scores = self.problem.reward(self.texts(rows[scored])) if scored.any() else None
        score = np.zeros(len(rows))
        if scores is not None:
            score[scored], kept[scored] = scores.score, scores.kept
        true_score = np.zeros(len(rows))
        final = np.flatnonzero(asked & ended & kept)
        if self.problem.true_reward is not None and len(final):
            truth = self.problem.true_reward(self.texts(rows[final]))
            true_score[final], kept[final] = truth.score, truth.kept
        potentials = self._weigh(lambda places: self.texts(rows[places]), kept & ~ended, kept)
        reward = np.zeros(len(rows))
        reward[kept] = self._pay(rows[kept], chosen[kept], ended[kept], score[kept], potentials[kept])
        return _Step(finish_reason, legal, kept, scored, scores, true_score, potentials, reward)

    def _pay(
        self, rows: np.ndarray, chosen: np.ndarray, ended: np.ndarray, score: np.ndarray, potentials: np.ndarray
    ) -> np.ndarray:
        """What the scheme pays for the step, float64 [n]."""
        payment = Payment(
            previous_score=self.prefix_score[rows],
            score=score,
            ended=ended,
            previous_potentials=self.potentials[rows],
            potentials=potentials,
            observations=self._states_before(rows),
            actions=chosen,
        )
        return self.problem.scheme.pay(payment) if len(rows) else score

    def _finish(self, chosen: np.ndarray, rows: np.ndarray, illegal: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """How each episode ends by this step, int64 [n], and the tokens that are legal next, bool [n, V]."""
        stopped = self.is_stop[chosen]
        if self.problem.stop:
            rest = np.flatnonzero(~stopped)
            stopped[rest] = self.problem.stop.completed([self.completion_ids(row) for row in rows[rest]])
        reason = np.zeros(len(rows), dtype=np.int64)
        reason[self._at_limit(rows)] = FinishReason.LIMIT
        reason[stopped] = FinishReason.STOP
        reason[illegal] = FinishReason.ILLEGAL_ACTION
        legal = np.zeros((len(rows), self.legal.shape[1]), dtype=bool)
        if self.problem.constraint is not None:
            going_on = np.flatnonzero(reason == RUNNING)
            places = rows[going_on].tolist()
            legal[going_on] = self.legal_next(
                [self.prompts[row] for row in places], [self.completion_ids(row) for row in places]
            )
            reason[going_on[~legal[going_on].any(axis=1)]] = FinishReason.DEAD_END
        return reason, legal

    def _keep(self, step: _Step, rows: np.ndarray) -> None:
        ended = step.finish_reason != RUNNING
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

    def _weigh(self, texts: Callable[[np.ndarray], Texts], where: np.ndarray, kept: np.ndarray) -> np.ndarray:
        """Φ of n states, float64 [n, P], 0 outside `where`; `kept` becomes False where a function drops a text."""
        potentials = np.zeros((len(where), len(self.problem.potentials)))
        if potentials.shape[1] and where.any():
            places = np.flatnonzero(where)
            seen = texts(places)
            for column, potential in enumerate(self.problem.potentials):
                weighed = potential(seen)
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
