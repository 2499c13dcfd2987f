"""`textgym evaluate`: its means are those of the model, its intervals hold the exact return, its output is safe."""

import json
import re
import shlex

import numpy as np
import pytest
from scipy import stats

from agents.evaluate import table
from agents.evaluation import Measure
from tests.agents import tiny
from tests.agents.commands import HOSTILE, exit_code, greedy_ids, next_log_probs, save_policy, token_log_probs, unsafe
from tests.stories.run import textgym
from tests.textgym import cases
from textgym.finish import FinishReason
from textgym.tasks import make_task

TINY = ("--reward", "tests.agents.tiny:score", "--max-new-tokens", tiny.HORIZON)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A policy over the symbols of `tiny`, and its prompts as a file."""
    folder = tmp_path_factory.mktemp("evaluate")
    save_policy(folder / "model", tiny.SYMBOLS)
    (folder / "prompts.txt").write_text("\n".join(tiny.PROMPTS) + "\n")
    return folder


@pytest.fixture(scope="module")
def on_tiny(folder):
    """The flags of the problem of `tiny`."""
    return ("--model", folder / "model", "--prompts", folder / "prompts.txt", *TINY)


@pytest.fixture
def evaluated(tmp_path, capsys):
    """Runs `textgym evaluate` and returns what it prints and what it writes."""
    count = iter(range(100))

    def run(*flags):
        output = tmp_path / f"output-{next(count)}.json"
        code = exit_code("evaluate", *flags, "--output", output)
        said = capsys.readouterr()
        assert code == 0, said.err
        return said.out, json.loads(output.read_text(encoding="utf-8"))

    return run


def measure(written, policy, name):
    (found,) = [one for one in written["measures"] if (one["policy"], one["measure"]) == (policy, name)]
    return found


def names(written):
    return {(one["policy"], one["measure"]) for one in written["measures"]}


# --- against exact enumeration


@pytest.fixture(scope="module")
def exact(folder):
    """Every episode with its probability, a prompt each of the two in turn."""
    episodes = tiny.every_episode()
    probs = [np.exp(sum(token_log_probs(folder / "model", one.prompt, one.completion))) / 2 for one in episodes]
    assert sum(probs) == pytest.approx(1, abs=1e-5)
    return episodes, np.array(probs)


def test_the_interval_holds_the_exact_return(on_tiny, exact, evaluated):
    episodes, probs = exact
    returns = np.array([sum(one.rewards) for one in episodes])
    lengths = np.array([len(one.completion) for one in episodes])
    _, written = evaluated(*on_tiny, "--sampled", "--fixed-prompts", "--episodes", 4000, "--confidence", 0.999)
    found = measure(written, "sampled", "return")
    assert found["low"] < probs @ returns < found["high"] and found["high"] - found["low"] < 0.05
    assert found["episodes"] == 4000 and found["mean"] == measure(written, "sampled", "rewards/score")["mean"]
    assert found["tokens"] == pytest.approx(probs @ lengths, abs=4.5 * np.sqrt(probs @ lengths**2 / 4000))
    for reason in (FinishReason.STOP, FinishReason.LIMIT):
        chosen = np.array([one.finish_reason == reason for one in episodes])
        share = probs[chosen].sum()
        found = measure(written, "sampled", f"finish_reason/{reason.name.lower()}")
        assert found["share"] == found["episodes"] / 4000
        assert found["share"] == pytest.approx(share, abs=4.5 * np.sqrt(share * (1 - share) / 4000))
        assert found["low"] < probs[chosen] @ returns[chosen] / share < found["high"]
        assert 0.05 < share < 0.95


def cooled(probs, temperature):
    return probs ** (1 / temperature) / (probs ** (1 / temperature)).sum()


def nucleus(probs, least):
    """The fewest tokens, the most probable first, that reach `least` together."""
    order = np.argsort(-probs)
    count = int(np.argmax(np.cumsum(probs[order]) >= least)) + 1
    kept = np.where(np.isin(np.arange(len(probs)), order[:count]), probs, 0)
    return kept / kept.sum()


@pytest.mark.parametrize(
    ("flags", "changed"),
    [
        (["--temperature", 0.3], lambda probs: cooled(probs, 0.3)),
        (["--temperature", 3], lambda probs: cooled(probs, 3)),
        (["--top-k", 1], lambda probs: nucleus(probs, 1e-9)),
        (["--top-p", 0.7], lambda probs: nucleus(probs, 0.7)),
    ],
)
def test_flags_of_the_policy_change_the_sampled_return(flags, changed, folder, on_tiny, exact, evaluated):
    episodes, plain = exact
    probs = [
        np.prod(
            [
                changed(next_log_probs(folder / "model", one.prompt + one.completion[:step]).exp().numpy())[token]
                for step, token in enumerate(one.completion)
            ]
        )
        for one in episodes
    ]
    assert sum(probs) == pytest.approx(2, abs=1e-6)  # of two prompts
    returns = np.array([sum(one.rewards) for one in episodes])
    given = ("--sampled", "--fixed-prompts", "--episodes", 6000, "--confidence", 0.999, "--score-range", 0, 1)
    _, written = evaluated(*on_tiny, *given, *flags)
    found = measure(written, "sampled", "return")
    assert found["low"] < np.array(probs) @ returns / 2 < found["high"]
    assert not found["low"] < plain @ returns < found["high"]


def test_the_greedy_return_is_that_of_an_argmax_loop(folder, on_tiny, evaluated):
    env, returns, lengths = tiny.make_env(), [], []
    for index in range(len(tiny.PROMPTS)):
        observation, info = env.reset(options={"prompt_index": index})
        prompt_ids = observation[: info["prompt_length"]].tolist()
        chosen = greedy_ids(folder / "model", prompt_ids, [tiny.STOP], tiny.HORIZON)
        for token in chosen:
            _, reward, terminated, _, _ = env.step(token)
        assert terminated
        returns.append(reward)
        lengths.append(len(chosen))
    text, written = evaluated(*on_tiny, "--greedy", "--fixed-prompts")
    found = measure(written, "greedy", "return")
    assert found["mean"] == found["low"] == found["high"] == pytest.approx(np.mean(returns), abs=1e-12)
    assert (found["episodes"], found["tokens"]) == (2, np.mean(lengths))
    assert re.search(rf"^greedy +return +2 +{np.mean(returns):.4g} +exact +{np.mean(lengths):.2f}$", text, re.M)
    assert "greedy: each of 2 prompts once, as it leads to the same every time; the means over them are exact" in text


@pytest.mark.parametrize(("task", "symbols"), [("brackets", ["(", ")", "<eos>"]), ("sort", "01234567")])
def test_a_uniform_policy_gets_what_the_task_says(task, symbols, tmp_path, evaluated):
    """Masks included: of the legal tokens, each is as probable as the others."""
    model = save_policy(tmp_path / "model", symbols, scale=0.0)
    text, written = evaluated("--model", model, "--task", task, "--sampled", "--episodes", 5000, "--confidence", 0.999)
    found, uniform = measure(written, "sampled", "return"), make_task(task).uniform
    assert written["uniform"] == uniform and written["optimum"] == 1 and written["score_range"] == [0, 1]
    assert found["low"] < uniform < found["high"] and found["high"] - found["low"] < 0.05
    assert f"return: (optimum 1, uniform policy {uniform:g})" in text
    assert "intervals: scores lie within 0 to 1" in text


def test_a_hidden_score_has_a_line_of_its_own(tmp_path, evaluated):
    model = save_policy(tmp_path / "model", make_task("noisy_verifier").tokenizer, scale=0.0)
    flags = ("--model", model, "--task", "noisy_verifier", "--episodes", 6000, "--confidence", 0.999)
    text, written = evaluated(*flags)
    paid, true = (measure(written, "sampled", name) for name in ("return", "true_score"))
    assert paid["low"] < make_task("noisy_verifier").uniform < paid["high"]
    assert true["low"] < make_task("addition").uniform < true["high"] and true["high"] < paid["low"]
    greedy = measure(written, "greedy", "return")  # always wrong, and the verdict turned round in a tenth
    assert greedy["low"] < 0.1 < greedy["high"] and greedy["episodes"] == 6000
    assert (
        "greedy: each of 100 prompts 60 times; the intervals are about these prompts, and cover chance in the sc"
        in text
    )
    assert "and cover chance in the texts and the scores" in text


def uniform_returns(prompt, completion=()):
    """(probability, paid, true score, reason) of every episode of the task no_repeat, each legal token alike."""
    legal = np.flatnonzero(cases.no_repeat(prompt, completion, 4 - len(completion))).tolist()
    text = "".join("abcd"[token] for token in completion if token < 4)
    stopped = completion[-1:] == (4,)
    if stopped or not legal or len(completion) == 4:
        reason = FinishReason.STOP if stopped else FinishReason.DEAD_END
        return [(1.0, sum(char in "ac" for char in text) / 3, len(text) / 3, reason)]
    following = [one for token in legal for one in uniform_returns(prompt, (*completion, token))]
    return [(prob / len(legal), *rest) for prob, *rest in following]


def test_dead_ends_of_a_masked_task_are_counted(tmp_path, evaluated):
    model = save_policy(tmp_path / "model", ["a", "b", "c", "d", "<eos>"], scale=0.0)
    episodes = [one for prompt in ("a", "", "bc") for one in uniform_returns(prompt)]
    probs, paid, true, reasons = map(np.array, zip(*episodes, strict=True))
    probs = probs / 3
    flags = ("--model", model, "--task", "no_repeat", "--sampled", "--episodes", 3000, "--confidence", 0.999)
    _, written = evaluated(*flags)
    assert written["score_range"] is None  # of a registered task nothing is known
    for name, values in (("return", paid), ("true_score", true)):
        found = measure(written, "sampled", name)
        assert found["low"] < probs @ values < found["high"]
    for reason in (FinishReason.STOP, FinishReason.DEAD_END):
        share = probs[reasons == reason].sum()
        found = measure(written, "sampled", f"finish_reason/{reason.name.lower()}")
        assert found["share"] == pytest.approx(share, abs=4.5 * np.sqrt(share * (1 - share) / 3000))


# --- which prompts are played, and what is said of it


def prompts_file(folder, count):
    texts = ["".join("abc"[(number // 3**place) % 3] for place in range(5)) for number in range(count)]
    (folder / "many.txt").write_text("\n".join(texts) + "\n")
    return folder / "many.txt"


@pytest.mark.parametrize(
    ("count", "flags", "plan", "words"),
    [
        (100, [], (200, 2, "alike"), "each of 100 prompts 2 times; the intervals are about prompts like these, of"),
        (100, ["--fixed-prompts"], (200, 2, "these"), "the intervals are about these prompts, and cover chance in the"),
        (100, ["--episodes", 99], (99, 1, "drawn"), "99 prompts drawn of 100; the intervals are about all of them,"),
        (100, ["--episodes", 350], (300, 3, "alike"), "each of 100 prompts 3 times"),
        (100, ["--greedy"], (100, 1, "alike"), "each of 100 prompts once, as it leads to the same every time; the"),
        (100, ["--greedy", "--episodes", 7], (7, 1, "drawn"), "7 prompts drawn of 100"),
        (1, ["--episodes", 50], (50, 50, "these"), "the prompt 50 times; the intervals are about this prompt, and"),
        (1, ["--greedy"], (1, 1, "exact"), "the prompt once, as it leads to the same every time; the means over them"),
    ],
)
def test_prompts_are_shared_out_as_the_notes_say(count, flags, plan, words, folder, tmp_path, evaluated):
    policy = "greedy" if "--greedy" in flags else "sampled"
    flags = [*flags, *([] if policy == "greedy" else ["--sampled"])]
    text, written = evaluated(
        "--model", folder / "model", "--prompts", prompts_file(tmp_path, count), *TINY, "--seed", 3, *flags
    )
    found = written["plans"][policy]
    assert (found["num_prompts"], found["episodes"], found["repeats"], found["basis"]) == (count, *plan)
    assert list(written["plans"]) == [policy] and {one for one, _ in names(written)} == {policy}
    assert measure(written, policy, "return")["episodes"] == plan[0]
    assert f"{policy}: " in text and words in text
    assert f"; {plan[0]} episode{'' if plan[0] == 1 else 's'} {policy}; seed 3" in text.splitlines()[0]


def test_both_policies_are_measured_by_default(on_tiny, evaluated):
    text, written = evaluated(*on_tiny)
    assert [line.split()[0] for line in text.splitlines()[2:4]] == ["greedy", "greedy"]
    assert {policy for policy, _ in names(written)} == {"greedy", "sampled"}
    _, both = evaluated(*on_tiny, "--greedy", "--sampled")
    assert both["measures"] == written["measures"]


def test_the_table_says_what_the_file_says(on_tiny, evaluated):
    text, written = evaluated(*on_tiny, "--episodes", 60)
    rows = text.splitlines()[1 : 2 + len(written["measures"])]
    assert rows[0].split() == ["measure", "episodes", "share", "mean", "95%", "interval", "tokens"]
    for row, one in zip(rows[1:], written["measures"], strict=True):
        cells = re.split(r"  +", row)
        expected = [one["policy"], one["measure"], str(one["episodes"])]
        expected += [] if one["share"] is None else [f"{one['share']:.1%}"]
        expected += [f"{one['mean']:.4g}"]
        if one["low"] is not None:
            expected += [f"{one['low']:.4g} to {one['high']:.4g}"]
        elif not one["measure"].startswith("rewards/"):
            expected += ["unknown"]
        assert cells == [*expected, f"{one['tokens']:.2f}"]
    assert written["settings"]["episodes"] == 60 and written["settings"]["reward"] == "tests.agents.tiny:score"
    assert written["notes"] and all(note in text for note in written["notes"])


def test_a_seed_is_the_whole_of_chance(on_tiny, evaluated):
    first, again, other = (evaluated(*on_tiny, "--seed", seed) for seed in (1, 1, 2))
    assert first[0] == again[0] and first[1]["measures"] == again[1]["measures"]
    assert other[1]["measures"] != first[1]["measures"]
    greedy = [[one for one in run[1]["measures"] if one["policy"] == "greedy"] for run in (first, other)]
    assert greedy[0] == greedy[1]


def test_a_wider_confidence_is_a_wider_interval_in_the_table(on_tiny, evaluated):
    widths = []
    for confidence in (0.5, 0.95, 0.999):
        text, written = evaluated(*on_tiny, "--sampled", "--fixed-prompts", "--confidence", confidence)
        found = measure(written, "sampled", "return")
        widths.append(found["high"] - found["low"])
        assert f"{confidence * 100:g}% interval" in text
    assert widths == sorted(widths) and widths[2] > 3 * widths[0]


def test_what_differs_between_prompts_alone_is_open_for_prompts_like_them_and_not_for_these(
    folder, tmp_path, evaluated
):
    (tmp_path / "reward.py").write_text(
        "def score(prompts, completions): return [(text.count('a') / 5) ** 2 for text in prompts]\n"
    )
    prompts = prompts_file(tmp_path, 20)
    scores = [(text.count("a") / 5) ** 2 for text in prompts.read_text().split()]
    flags = ("--model", folder / "model", "--prompts", prompts, "--reward", f"{tmp_path / 'reward.py'}:score")
    low, high = stats.t.interval(0.95, 19, np.mean(scores), stats.sem(scores))
    _, written = evaluated(*flags, "--max-new-tokens", 3)  # each of 20 prompts once, and 12 times
    for policy, count in (("greedy", 20), ("sampled", 240)):
        found = measure(written, policy, "return")
        assert found["episodes"] == count
        assert (found["mean"], found["low"], found["high"]) == pytest.approx((np.mean(scores), low, high), rel=1e-9)
    _, written = evaluated(*flags, "--max-new-tokens", 1, "--fixed-prompts", "--stop=a", "--stop=b", "--stop=c")
    greedy, sampled = (measure(written, policy, "return") for policy in ("greedy", "sampled"))
    assert greedy["low"] == greedy["high"] == pytest.approx(np.mean(scores))
    assert sampled["mean"] == pytest.approx(np.mean(scores)) and sampled["low"] is None  # equal within each prompt
    ended = measure(written, "sampled", "finish_reason/stop")  # all episodes, and so the same interval
    assert ended["share"] == 1 and ended["low"] is None


# --- scores that say little


def reward_file(folder, body):
    (folder / "reward.py").write_text(f"def score(completions):\n    return [{body} for text in completions]\n")
    return ("--reward", f"{folder / 'reward.py'}:score")


def test_equal_scores_are_certain_only_where_their_range_is_known(folder, tmp_path, evaluated):
    flags = ("--model", folder / "model", "--prompts", prompts_file(tmp_path, 8), *reward_file(tmp_path, "1.0"))
    text, written = evaluated(*flags, "--greedy")
    found = measure(written, "greedy", "return")
    assert (found["mean"], found["low"], found["high"]) == (1, None, None)
    assert re.search(r"greedy +return +8 +1 +unknown", text) and "give --score-range LOW HIGH" in text
    text, written = evaluated(*flags, "--greedy", "--score-range", 0, 1)
    found = measure(written, "greedy", "return")
    assert found["high"] == 1 and found["low"] == pytest.approx(0.5883, abs=1e-4)  # as in test_intervals
    assert "intervals: scores lie within 0 to 1" in text and "unknown" not in text


def test_dropped_episodes_are_left_out_and_counted(folder, tmp_path, evaluated):
    reward = reward_file(tmp_path, "float('nan') if 'c' in text else text.count('a') / 4")
    flags = ("--model", folder / "model", "--prompts", folder / "prompts.txt", *reward, "--on-reward-error", "drop")
    with pytest.warns(UserWarning, match="dropped"):
        text, written = evaluated(*flags, "--sampled", "--max-new-tokens", 3, "--episodes", 400)
    found = measure(written, "sampled", "return")
    dropped = int(re.search(r"; (\d+) of 400 episodes dropped and left out", text).group(1))
    assert 0 < dropped < 400 and found["episodes"] == 400 - dropped
    ends = [one["episodes"] for one in written["measures"] if one["measure"].startswith("finish_reason/")]
    assert sum(ends) == found["episodes"]


def test_where_all_are_dropped_there_is_no_number(folder, tmp_path, evaluated):
    flags = ("--model", folder / "model", "--prompts", folder / "prompts.txt", *reward_file(tmp_path, "float('nan')"))
    with pytest.warns(UserWarning, match="dropped"):
        text, written = evaluated(*flags, "--on-reward-error", "drop", "--episodes", 20)
    for policy, count in (("greedy", 2), ("sampled", 20)):
        assert f"; {count} of {count} episodes dropped and left out" in text
        found = measure(written, policy, "return")
        assert found["episodes"] == 0 and found["mean"] is found["low"] is found["high"] is None


def test_a_function_that_scores_some_texts_is_counted_by_those(folder, tmp_path, evaluated):
    reward = reward_file(tmp_path, "1.0 if len(text) % 2 else None")
    flags = ("--model", folder / "model", "--prompts", folder / "prompts.txt", *reward, "--on-reward-error", "drop")
    with pytest.warns(UserWarning, match="dropped"):
        _, written = evaluated(*flags, "--sampled", "--max-new-tokens", 3)
    found = measure(written, "sampled", "rewards/score")
    assert 0 < found["episodes"] < 256 and found["mean"] == 1


# --- what a model, a file or a reward may hold


def test_hostile_texts_never_reach_the_output(tmp_path, capsys):
    model = save_policy(tmp_path / "mod\x1b[31mel", [*HOSTILE, "<eos>"], scale=0.0)
    rows = [{"prompt": text} for text in HOSTILE]
    (tmp_path / "prompts.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n", encoding="utf-8")
    flags = ("--model", model, "--prompts", tmp_path / "prompts.jsonl", "--max-new-tokens", 9)
    assert exit_code("evaluate", *flags, *reward_file(tmp_path, "len(text) / 99")) == 0
    good = capsys.readouterr()
    assert exit_code("evaluate", *flags, *reward_file(tmp_path, "1 / 0")) == 1
    bad = capsys.readouterr()
    assert "ZeroDivisionError" in bad.err and "\\x1b" in bad.err
    assert unsafe(good.out + good.err + bad.out + bad.err) == set()


def test_the_name_of_a_reward_function_is_escaped():
    line = Measure("sampled", "rewards/" + "".join(HOSTILE), 1, None, 0.5, None, None, 1.0)
    assert unsafe(table([line], 0.95)) == set() and r"rewards/\x1b[31m" in table([line], 0.95)


# --- refusals


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ([], "which model? Give --model FOLDER"),
        (["--model", "m", "--episodes", 0], "--episodes 0; give a finite number above 0"),
        (["--model", "m", "--confidence", 1], "--confidence 1.0; give a number between 0 and 1"),
        (["--model", "m", "--confidence", 95], "--confidence 95.0"),
        (["--model", "m", "--confidence", "nan"], "--confidence nan"),
        (["--model", "m", "--score-range", 1, 0], "--score-range 1.0 0.0; give two finite numbers, the lower one"),
        (["--model", "m", "--score-range", 0, "inf"], "--score-range 0.0 inf"),
        (["--model", "m", "--score-range", "nan", 1], "--score-range nan 1.0"),
        (["--model", "m", "--score-range", 1], "--score-range"),
        (["--model", "m", "--seed", -1], "--seed -1"),
        (["--model", "m", "--prompts", "p.txt"], "--prompts needs a --reward"),
        (["--model", "m", "--task", "sotr"], "Did you mean 'sort'"),
        (["--model", "m", "--top-p", 2], "--top-p 2.0"),
        (["--model", "m", "--episode", 5], "--episodes"),
    ],
)
def test_wrong_usage_is_refused_with_2(flags, words, capsys):
    assert exit_code("evaluate", *flags) == 2
    said = capsys.readouterr()
    assert words in said.out + said.err


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--model", "nowhere"], "nowhere"),
        (["--device", "cuda:99"], "--device 'cuda:99' is not available; here are cpu"),
        (["--output", "there.json"], "--output 'there.json' exists already; remove it, or give another name"),
        (["--output", "no/where.json"], "there is no folder 'no'; make it first"),
        (["--prompts", "absent.txt"], "absent.txt"),
        (["--reward", "reward.py:fails"], "ZeroDivisionError"),
        (["--reward", "reward.py:absent"], "absent"),
        (["--score-range", 2, 3], "outside the range 2 to 3; give another --score-range"),
        (
            ["--max-new-tokens", 1024],
            "prompts of up to 2 tokens and 1,024 new ones are more than the 1,024 that the model",
        ),
        (["--temperature", 1e-45, "--sampled"], "not finite"),
        (["--temperature", 1e-45, "--greedy"], "not finite"),
    ],
)
def test_failures_end_with_1_and_one_message(flags, words, folder, on_tiny, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "there.json").write_text("mine")
    (tmp_path / "reward.py").write_text("def fails(completions): return 1 / 0\n")
    output = [] if "--output" in flags else ["--output", "new.json"]
    assert exit_code("evaluate", *on_tiny, *flags, *output) == 1
    said = capsys.readouterr()
    assert said.err.startswith("textgym: error: ") and words in said.err.replace("\n", " ")
    assert "Traceback" not in said.err
    assert (tmp_path / "there.json").read_text() == "mine" and not (tmp_path / "new.json").exists()


def test_the_help_fits_a_screen(capsys):
    assert exit_code("evaluate", "--help") == 0
    short = capsys.readouterr().out
    assert len(short.splitlines()) <= 60 and "--score-range " in short and "--top-p" not in short
    assert exit_code("evaluate", "--help-all") == 0
    assert "--top-p" in capsys.readouterr().out


# --- from a training to a stranger


def test_the_last_line_of_a_training_is_a_command_that_runs(tmp_path, folder, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    reward = reward_file(tmp_path, "text.count('a') / 9")
    flags = ["--prompts", folder / "prompts.txt", *reward, "--stop", "cc", "--stop=--", "--max-new-tokens", 5]
    flags += ["--top-p", 0.9, "--scheme", "prefix_delta", "--total-timesteps", 200, "--run-dir", "my run"]
    assert exit_code("train", "--model", folder / "model", *flags) == 0
    command = shlex.split(capsys.readouterr().out.splitlines()[-1].split("next: ")[1])
    assert command[:4] == ["textgym", "evaluate", "--model", "my run/policy"]
    assert exit_code(*command[1:], "--output", "table.json") == 0
    said = json.loads((tmp_path / "table.json").read_text())
    assert said["settings"]["stop"] == ["cc", "--"] and said["settings"]["max_new_tokens"] == 5
    assert said["settings"]["scheme"] == "prefix_delta" and measure(said, "sampled", "return")["episodes"] == 256


def test_a_stranger_evaluates(tmp_path):
    save_policy(tmp_path / "model", make_task("bandit").tokenizer)
    result = textgym("evaluate", "--model", "model", "--task", "bandit", "--output", "table.json", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    lines = result.stdout.splitlines()
    first = "textgym evaluate: task bandit, level 1; model; up to 1 new tokens; 1 episode greedy and 256 episodes"
    assert lines[0] == f"{first} sampled; seed 0"
    assert "return: (optimum 1, uniform policy 0.5)" in lines
    assert json.loads((tmp_path / "table.json").read_text())["optimum"] == 1
    assert result.stderr == ""
