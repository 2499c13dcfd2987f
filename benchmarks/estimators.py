"""Which estimators of the policy gradient are right: every algorithm of the table, and every form of the KL term.

The task is small enough to enumerate, so that bias, direction and variance are exact numbers and not estimates; what
they are taken from is production code. Files are left to the command.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch

from agents.algorithms import ALGORITHMS, make_algorithm
from agents.exact import kl_gradient, node_log_probs
from agents.policy import TransformerPolicy
from benchmarks.certificate import Certificate, certify, certify_kl
from benchmarks.fixture import Fixture, make_fixture, with_rewards
from benchmarks.tables import markdown_table
from textgym.env import TextGenEnv
from textgym.escape import escape
from textgym.oracle import Tree, Values, enumerate_tree, values
from textgym.schemes import Potential

KEYWORDS: dict[str, Any] = {"tokenizer": ["a", "b", "c", "d", "<eos>"], "prompts": ["a", "bc"], "max_new_tokens": 4}
_WEIGHT_SCALE = 2.0  # a near-uniform policy would hide wrong weights
_POLICY_SEED, _REFERENCE_SEED = 2, 1  # texts of every length are common
_NOTHING = 1e-10  # of the gradient: a shorter mean is rounding, and has no direction
_VARIANTS = (
    ("rloo with the group's mean", make_algorithm("rloo", advantages="group_mean"), "(G-1)/G ∇J"),
    ("rloo, sequence_mean", make_algorithm("rloo", aggregation="sequence_mean"), "∇E[A / length], A held fixed"),
    (
        "rloo, token_mean",
        make_algorithm("rloo", aggregation="token_mean"),
        "each token over the mean length of the group",
    ),
)
_SHAPED = (
    ("rloo with a potential", ALGORITHMS["rloo"], "as rloo: a potential adds the same to all returns of a prompt"),
    ("reinforce_to_go with a potential Φ", ALGORITHMS["reinforce_to_go"], "∇J, unbiased: the baseline is Φ(s)"),
)
_KL_FORMS = {
    "k1_reward": "KL(π‖π_ref) of whole sequences, exactly",
    "k1": "nothing: its mean is zero",
    "k2": "KL(π‖π_ref) in each visited state, how often it is visited held fixed",
    "k2_sequence": "KL(π‖π_ref) of whole sequences, exactly",
    "k3": "KL(π_ref‖π), the other direction, in each visited state, held fixed",
    "frozen": "as k2",
}
_NOTES = """\
Everything is exact, and of the first step of an update. Projection is E[g] along ∇J and bias ‖E[g] - ∇J‖, both in units
of ‖∇J‖; cosine is that of the angle between them. Variance is that of one episode's share, B (E‖g‖² - ‖E[g]‖²) for B
episodes, over ‖∇J‖²; per signal it is over the squared projection instead, so that a longer step is no noise. g is made
from the episodes named: one group where an algorithm compares those of a prompt, a batch of both prompts where it
compares all or divides by all their tokens. Dynamic sampling is left out: it keeps the direction of E[g] and divides its
length by the probability that the returns of a group differ. The critic of a2c and ppo sees the prompt and the position alone, and is right in the mean.
"""


class Line(NamedTuple):
    """One estimator beside the gradient that it should be."""

    name: str
    episodes: int  # B
    bias: float  # ‖E g - ∇J‖ / ‖∇J‖
    cosine: float | None  # None where E g is nothing
    projection: float  # ⟨E g, ∇J⟩ / ‖∇J‖²
    variance: float  # of an episode, over ‖∇J‖²
    ascends: str  # in words


class Findings(NamedTuple):
    """What was found."""

    group_size: int
    sequences: int
    objective: float  # J
    norm: float  # ‖∇J‖
    kl: float  # KL(π‖π_ref) in nats per sequence
    estimators: list[Line]
    kl_forms: list[Line]  # of the negative KL


def score(prompts: Sequence[str], completions: Sequence[str]) -> list[float]:
    """Half for a text that holds the prompt's last symbol, half for one in which no symbol follows itself.

    >>> score(["bc", "bc", "bc"], ["ac", "cc", "aa"])
    [1.0, 0.5, 0.0]
    """
    return [
        0.5 * (prompt[-1] in text) + 0.5 * _changes(text) for prompt, text in zip(prompts, completions, strict=True)
    ]


def potential(completions: Sequence[str]) -> list[float]:
    """The Φ of the rows with a potential: the share of `a` and `c` in the text so far, 1 before it begins.

    >>> potential(["ab", ""])
    [0.5, 1.0]
    """
    return [sum(symbol in "ac" for symbol in text) / len(text) if text else 1.0 for text in completions]


def make_policy(env: TextGenEnv, seed: int) -> TransformerPolicy:
    """A small policy in float64 that is far from uniform."""
    policy = TransformerPolicy.small(env, d_model=16, num_layers=1, seed=seed, dtype=torch.float64)
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.mul_(_WEIGHT_SCALE)
    return policy


def position_critic(tree: Tree, found: Values) -> np.ndarray:
    """The best critic that sees the prompt and the number of tokens written alone, float64 [N].

    Args:
        tree: N nodes.
        found: of the policy on it.
    """
    seen = tree.prompt * len(tree.levels) + tree.depth
    visits = np.bincount(seen, weights=found.visitation)
    return (np.bincount(seen, weights=found.visitation * found.v) / visits)[seen]


def run(group_size: int) -> Findings:
    """Certify every algorithm and every form of the KL term.

    Args:
        group_size: G, of the algorithms that compare the episodes of a prompt.
    """
    env = TextGenEnv(reward=score, **KEYWORDS)
    policy, reference = make_policy(env, _POLICY_SEED), make_policy(env, _REFERENCE_SEED)
    tree = enumerate_tree(env)
    log_probs = node_log_probs(policy, tree)
    fixture = make_fixture(policy, tree, position_critic(tree, values(tree, log_probs)))
    shaped_env = TextGenEnv(reward=score, scheme=["terminal", Potential(potential)], **KEYWORDS)
    shaped = with_rewards(fixture, enumerate_tree(shaped_env))
    rows = [(name, row, row.ascends) for name, row in ALGORITHMS.items()]
    truth = gradient_of(fixture)
    lines = [compare(name, certify(fixture, row, group_size), truth, words) for name, row, words in [*rows, *_VARIANTS]]
    lines += [compare(name, certify(shaped, row, group_size), truth, words) for name, row, words in _SHAPED]
    kl = kl_gradient(policy, tree, node_log_probs(reference, tree))
    descent = -flat(kl.gradient)
    return Findings(
        group_size=group_size,
        sequences=tree.num_sequences,
        objective=fixture.exact.objective,
        norm=float(np.linalg.norm(truth)),
        kl=kl.objective,
        estimators=lines,
        kl_forms=[
            compare(form, certify_kl(fixture, form, reference), descent, words) for form, words in _KL_FORMS.items()
        ],
    )


def compare(name: str, found: Certificate, truth: np.ndarray, ascends: str) -> Line:
    """An estimator beside the gradient [D] that it should be."""
    norm, length = np.linalg.norm(truth), np.linalg.norm(found.mean)
    along = float(found.mean @ truth)
    return Line(
        name=name,
        episodes=found.episodes,
        bias=float(np.linalg.norm(found.mean - truth) / norm),
        cosine=along / float(length * norm) if length > _NOTHING * norm else None,
        projection=along / float(norm**2),
        variance=found.variance / float(norm**2),
        ascends=ascends,
    )


def gradient_of(fixture: Fixture) -> np.ndarray:
    """∇J in one vector, float64 [D]."""
    return flat(fixture.exact.gradient)


def flat(gradient: Sequence[torch.Tensor]) -> np.ndarray:
    """A gradient by each parameter in one vector, float64 [D]."""
    return torch.cat([part.flatten() for part in gradient]).numpy()


def report(findings: Findings, command: str, versions: Mapping[str, str]) -> str:
    """Both tables, what was done, and how to read them."""
    libraries = ", ".join(f"{name} {number}" for name, number in versions.items())
    return "\n".join(
        [
            f"# Estimators of the policy gradient\n\n    {escape(command)}\n",
            f"{escape(libraries)}.\nV=5 with a stop token, W=4, two prompts, {findings.sequences} complete texts; "
            f"J = {findings.objective:.4f}, ‖∇J‖ = {findings.norm:.4f}.\nGroups of G = {findings.group_size}.\n",
            _table("estimator", findings.estimators, "ascends"),
            _NOTES,
            f"The KL term by itself, one episode at a time, against the exact gradient of KL(π‖π_ref); here it is "
            f"{findings.kl:.2f} nats a text.\n",
            _table("form", findings.kl_forms, "descends"),
        ]
    )


def _table(first: str, lines: Sequence[Line], last: str) -> str:
    rows = [
        [
            line.name,
            str(line.episodes),
            f"{line.bias:.3f}" if line.bias >= 5e-10 else "0",
            "-" if line.cosine is None else f"{line.cosine:.3f}",
            f"{line.projection:.3f}",
            f"{line.variance:,.3f}",
            "-" if line.cosine is None else f"{line.variance / line.projection**2:,.3f}",
            line.ascends,
        ]
        for line in lines
    ]
    return markdown_table(
        [first, "episodes", "bias", "cosine", "projection", "variance", "per signal", last], rows, [last]
    )


def _changes(text: str) -> bool:
    return all(first != second for first, second in zip(text, text[1:], strict=False))


def record(findings: Findings) -> dict[str, Any]:
    """Everything that was found as a JSON object."""
    lines = {name: [line._asdict() for line in getattr(findings, name)] for name in ("estimators", "kl_forms")}
    return findings._asdict() | lines
