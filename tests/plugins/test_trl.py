"""TRL both ways: a problem of TextGen-v0 for its GRPOTrainer, and its reward functions in TextGen-v0."""

import asyncio
import doctest

import gymnasium as gym
import numpy as np
import pytest

import textgym
from agents.policy import TransformerPolicy
from tests.stories.run import ROOT, run
from tests.textgym.chat_templates import CHATML, write_folder

pytestmark = pytest.mark.plugins

DIGITS = [*"0123456789+", "<eos>"]
SUMS = [{"prompt": "2+3", "answer": "5"}, {"prompt": "7+5", "answer": "12"}]
CHATS = [
    {"prompt": [{"role": "user", "content": "2+3?"}], "answer": "5"},
    {"prompt": [{"role": "system", "content": "Brief."}, {"role": "user", "content": "7+5?"}], "answer": "12"},
]


def right(completions, answer, **kwargs):
    return [float(text == correct) for text, correct in zip(completions, answer, strict=True)]


def even(completions):
    """Does not apply to texts that are no number."""
    return [float(int(text) % 2 == 0) if text.isdigit() else None for text in completions]


async def brief(completions, completion_ids):
    await asyncio.sleep(0)
    return [1 / (len(text) + len(ids)) for text, ids in zip(completions, completion_ids, strict=True)]


def problem(**keywords):
    return {"tokenizer": DIGITS, "prompts": SUMS, "reward": right, "max_new_tokens": 3} | keywords


def completed(ids, prompt_index, **keywords):
    """What TextGen-v0 says of one text."""
    env = gym.make("TextGen-v0", **keywords)
    env.reset(options={"prompt_index": prompt_index})
    for action in ids:
        _, _, terminated, _, info = env.step(action)
    assert terminated
    return info


def make_trainer(inputs, folder, completion_ids, **settings):
    """TRL's own trainer, which is told what it generated."""
    from trl import GRPOConfig, GRPOTrainer

    count = len(completion_ids)
    config = GRPOConfig(
        output_dir=str(folder),
        per_device_train_batch_size=count,
        num_generations=count // len(inputs.train_dataset),
        max_completion_length=inputs.max_completion_length,
        reward_weights=inputs.reward_weights,
        shuffle_dataset=False,
        max_steps=1,
        logging_steps=1,
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        report_to="none",
        save_strategy="no",
        disable_tqdm=True,
        **settings,
    )
    trainer = GRPOTrainer(
        TransformerPolicy.small(len(inputs.processing_class) + 1, d_model=32, num_layers=1).model,
        reward_funcs=list(inputs.reward_funcs),
        args=config,
        train_dataset=inputs.train_dataset,
        processing_class=inputs.processing_class,
    )
    trainer._generate_single_turn = lambda *_: (completion_ids, None)
    return trainer


def metrics_of(inputs, folder, completion_ids):
    trainer = make_trainer(inputs, folder, completion_ids)
    trainer.train()
    return trainer.state.log_history[0]


def assert_trl_pays_what_the_environment_pays(inputs, folder, completion_ids, keywords):
    each = len(completion_ids) // len(inputs.train_dataset)
    infos = [completed(ids, place // each, **keywords) for place, ids in enumerate(completion_ids)]
    metrics = metrics_of(inputs, folder, completion_ids)
    scores = [info["score"] for info in infos]
    assert len(set(scores)) > 1
    assert metrics["reward"] == pytest.approx(np.mean(scores), rel=1e-5)
    for column, function in enumerate(inputs.reward_funcs):
        said = [info["scores"][column] for info in infos if info["scores_valid"][column]]
        assert metrics[f"rewards/{function.__name__}/mean"] == pytest.approx(np.mean(said), rel=1e-5)


@pytest.mark.parametrize("name", ["trl_grpo.py", "textgym_grpo.py"])
def test_the_script_reaches_90_percent_of_the_optimum(name, tmp_path):
    result = run(ROOT / "benchmarks" / "plugins" / name, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert float(result.stdout.split()[-1]) >= 0.9  # a uniform policy gets .125


def test_the_examples_hold():
    from agents.adapters import trl

    assert doctest.testmod(trl).attempted >= 4
    assert doctest.testmod(trl).failed == 0


def test_a_task_becomes_its_prompts_and_functions():
    from agents.adapters.trl import grpo_inputs

    inputs = grpo_inputs(task="addition", level=2)
    env = gym.make("TextGen-v0", task="addition", level=2).unwrapped
    prompts = [env.problem.prompts[index] for index in range(len(env.problem.prompts))]
    assert inputs.train_dataset["prompt"] == [prompt.text for prompt in prompts]
    for name in env.problem.prompts.column_names:
        assert inputs.train_dataset[name] == [prompt.columns[name] for prompt in prompts]
    assert [function.__name__ for function in inputs.reward_funcs] == list(env.problem.reward.names)
    assert inputs.max_completion_length == env.problem.max_new_tokens
    tokenizer = inputs.processing_class
    assert tokenizer.eos_token_id in env.vocabulary.stop_ids and tokenizer.pad_token_id is not None
    assert tokenizer(prompts[7].text)["input_ids"] == prompts[7].ids.tolist()


def test_prompts_are_drawn_by_the_seed():
    from agents.adapters.trl import grpo_inputs

    first, same, other = (grpo_inputs(num_prompts=20, seed=seed, task="sort").train_dataset for seed in (1, 1, 2))
    assert len(first) == 20
    assert first["prompt"] == same["prompt"] != other["prompt"]


def test_prompts_of_a_function_are_drawn():
    from agents.adapters.trl import grpo_inputs

    def drawn(generator):
        return {"prompt": f"{generator.integers(10)}+1", "answer": "1"}

    keywords = problem(prompts=drawn, max_prompt_tokens=3)
    with pytest.raises(ValueError, match="made by a function; give num_prompts"):
        grpo_inputs(**keywords)
    inputs = grpo_inputs(num_prompts=5, **keywords)
    assert inputs.train_dataset["answer"] == ["1"] * 5
    assert len(set(inputs.train_dataset["prompt"])) > 1


def test_where_no_token_ends_a_text_the_end_is_a_token_of_its_own():
    from agents.adapters.trl import grpo_inputs

    inputs = grpo_inputs(task="sort")
    assert inputs.processing_class.eos_token_id == inputs.processing_class.pad_token_id == 8
    [function] = inputs.reward_funcs
    # TRL may sample it, and ends the text there.
    assert function(prompts=["3120"], completions=["01"], completion_ids=[[0, 1, 8]]) == [0.5]


@pytest.mark.parametrize("task", ["sort", "addition", "copy", "reverse"])
def test_trls_trainer_pays_what_the_environment_pays(task, tmp_path):
    from agents.adapters.trl import grpo_inputs

    env = gym.make("TextGen-v0", task=task).unwrapped
    rows = [env.problem.prompts[index] for index in (3, 7)]
    keywords = {"task": task, "prompts": [{"prompt": row.text, **row.columns} for row in rows]}
    stops, horizon = env.vocabulary.stop_ids, env.problem.max_new_tokens
    completion_ids = []
    for row in rows:
        solution = env.vocabulary.encode(env.problem.task.solution(row.text))
        right_one = (solution + list(stops))[:horizon]
        wrong_one = [(id_ + 1) % (env.vocabulary.size - 1) for id_ in solution]
        completion_ids += [right_one, (wrong_one + list(stops))[:horizon]]
    assert_trl_pays_what_the_environment_pays(grpo_inputs(**keywords), tmp_path, completion_ids, keywords)


def test_several_functions_with_weights_none_and_async(tmp_path):
    from agents.adapters.trl import grpo_inputs

    keywords = problem(reward={"right": (right, 2.0), "even": even, "brief": (brief, 0.5)})
    inputs = grpo_inputs(**keywords)
    assert inputs.reward_weights == [2.0, 1.0, 0.5]
    completion_ids = [[5, 11], [10, 10, 11], [1, 2, 11], [10, 4, 4]]
    assert_trl_pays_what_the_environment_pays(inputs, tmp_path, completion_ids, keywords)
    found = [
        function(prompts=["2+3"] * 2, completions=["5", "+"], completion_ids=[[5, 11], [10, 11]], answer=["5", "5"])
        for function in inputs.reward_funcs
    ]
    assert found == [[1.0, 0.0], [0.0, None], [1 / 3, 1 / 3]]


def test_a_batch_is_scored_once(tmp_path):
    from agents.adapters.trl import grpo_inputs

    calls = []

    def first(completions):
        calls.append(len(completions))
        return [0.5] * len(completions)

    def second(completions):
        return [float(len(text)) for text in completions]

    inputs = grpo_inputs(**problem(reward=[first, second]))
    metrics_of(inputs, tmp_path, [[5, 11], [4, 11], [1, 2, 11], [3, 3, 3]])
    assert calls == [4]


def test_what_trl_hands_to_a_function_reaches_it(tmp_path):
    from agents.adapters.trl import grpo_inputs

    steps = []

    def logged(completions, answer, trainer_state, log_extra, log_metric):
        steps.append(trainer_state.global_step)
        log_extra("answer", answer)
        log_metric("longest", float(max(map(len, completions))))
        return [float(len(text)) for text in completions]

    inputs = grpo_inputs(**problem(reward=logged))
    metrics = metrics_of(inputs, tmp_path, [[5, 11], [4, 11], [1, 2, 11], [3, 3, 3]])
    assert steps == [0]
    assert metrics["longest"] == 3.0


def test_a_function_sees_what_the_environment_shows_it():
    """The ids with the stop token, the text without; other special tokens, which TRL drops, are visible."""
    from agents.adapters.trl import grpo_inputs

    seen = []

    def watching(prompts, completions, completion_ids, answer):
        seen.append((prompts, completions, completion_ids, answer))
        return [1.0] * len(prompts)

    keywords = problem(reward=watching)
    [function] = grpo_inputs(**keywords).reward_funcs
    function(
        prompts=["7+5"],
        completions=["of TRL"],
        completion_ids=[[1, 2, 11]],
        answer=["12"],
        environments=None,
        other=[3],
    )
    completed([1, 2, 11], 1, **keywords)
    assert seen[0] == seen[1] == (["7+5"], ["12"], [[1, 2, 11]], ["12"])


def test_columns_that_a_dataset_would_change_reach_the_function_as_they_are():
    from agents.adapters.trl import grpo_inputs

    seen = []

    def watching(completions, spec, answer):
        seen.extend(zip(spec, answer, strict=True))
        return [1.0] * len(completions)

    rows = [{"prompt": "1", "spec": {"a": 1}, "answer": "x"}, {"prompt": "2", "spec": {"b": (2,)}, "answer": None}]
    inputs = grpo_inputs(**problem(prompts=rows, reward=watching))
    assert inputs.train_dataset.column_names == ["prompt", "answer", "prompt_row"]
    [function] = inputs.reward_funcs
    batch = inputs.train_dataset[[1, 0]]
    texts = {"prompts": batch.pop("prompt"), "completions": ["", ""], "completion_ids": [[11], [11]]}
    function(**texts, **batch)
    assert seen == [({"b": (2,)}, None), ({"a": 1}, "x")]


def test_functions_that_draw_get_a_generator():
    from agents.adapters.trl import grpo_inputs

    def drawing(completions, rng):
        return [float(generator.integers(1000)) for generator in rng]

    texts = {"prompts": ["1", "2"], "completions": ["", ""]}
    drawn = []
    for seed in (1, 1, 2):
        [function] = grpo_inputs(seed=seed, **problem(reward=drawing)).reward_funcs
        drawn.append([function(**texts, completion_ids=[[11], [11]]) for _ in range(2)])
    assert drawn[0] == drawn[1] != drawn[2]
    assert drawn[0][0] != drawn[0][1]


def test_chats_go_through_trls_own_template(tmp_path):
    from agents.adapters.trl import conversational, grpo_inputs

    seen = []

    def of_messages(prompts, completions, answer, **kwargs):
        seen.append(prompts)
        return [float(one[0]["content"] == correct) for one, correct in zip(completions, answer, strict=True)]

    folder = write_folder(tmp_path / "model", CHATML)
    keywords = problem(tokenizer=folder, prompts=CHATS, reward=conversational(of_messages))
    inputs = grpo_inputs(**keywords)
    assert inputs.train_dataset["prompt"] == [row["prompt"] for row in CHATS]
    env = gym.make("TextGen-v0", **keywords).unwrapped
    [stop] = env.vocabulary.stop_ids[:1]
    texts = ["5", "6", "12", "2"]
    completion_ids = [(env.vocabulary.encode(text, rendered=True) + [stop])[:3] for text in texts]
    assert_trl_pays_what_the_environment_pays(inputs, tmp_path, completion_ids, keywords)
    assert seen[-1] == [CHATS[0]["prompt"]] * 2 + [CHATS[1]["prompt"]] * 2


def test_a_function_of_messages_that_is_async_or_names_little(tmp_path):
    from agents.adapters.trl import conversational

    async def awaited(completions, trainer_state, answer):
        assert trainer_state is None
        return [float(one[0]["content"] == correct) for one, correct in zip(completions, answer, strict=True)]

    def bare(completions):
        return [float(one[0]["role"] == "assistant") for one in completions]

    folder = write_folder(tmp_path / "model", CHATML)
    reward = [conversational(awaited), conversational(bare)]
    keywords = problem(tokenizer=folder, prompts=CHATS, reward=reward, max_new_tokens=1)
    env = gym.make("TextGen-v0", **keywords).unwrapped
    info = completed(env.vocabulary.encode("5", rendered=True), 0, **keywords)
    assert info["scores"].tolist() == [1.0, 1.0]
    assert env.problem.reward.names == ("awaited", "bare")
    with pytest.raises(textgym.RewardError, match="is no chat"):
        completed(
            env.vocabulary.encode("5", rendered=True),
            0,
            **keywords | {"prompts": [{"prompt": "x", "answer": "", "messages": None}]},
        )


def test_a_function_written_for_trl_runs_in_the_environment_unchanged():
    """What TextGen-v0 passes, and what it omits: no trainer, hence no state and logs that nobody reads."""
    seen = {}

    def for_trl(prompts, completions, completion_ids, answer, trainer_state, log_extra, log_metric, **kwargs):
        log_extra("answer", answer)
        log_metric("mean", 1.0)
        seen.update(kwargs, trainer_state=trainer_state, prompts=prompts, completion_ids=completion_ids)
        return [
            None if text == "" else float(text == correct) for text, correct in zip(completions, answer, strict=True)
        ]

    async def for_trl_too(prompts, completions, **kwargs):
        assert not {"trainer_state", "log_extra", "log_metric", "environments"} & kwargs.keys()
        return [0.25] * len(prompts)

    keywords = problem(prompts=[row | {"source": "book"} for row in SUMS], reward=[for_trl, for_trl_too])
    info = completed([1, 2, 11], 1, **keywords)
    assert info["scores"].tolist() == [1.0, 0.25] and info["score"] == 1.25
    assert seen == {"source": ["book"], "trainer_state": None, "prompts": ["7+5"], "completion_ids": [[1, 2, 11]]}
    info = completed([11], 1, **keywords)
    assert info["scores_valid"].tolist() == [False, True] and info["score"] == 0.25


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"task": "brackets"}, "action masks"),
        ({"task": "bandit"}, "prompt is empty"),
        (problem(stop=["+"]), "stop strings"),
        (problem(scheme="prefix_delta"), "PrefixDelta"),
        (problem(on_reward_error="drop"), "on_reward_error='drop'"),
        (problem(prompts=[{"prompt": "1", "images": 3, "answer": ""}]), "'images'"),
        ({"task": "sort", "num_prompts": 0}, "num_prompts=0"),
        ({"task": "sort", "prompt": "1"}, "prompt"),
    ],
)
def test_what_trl_cannot_be_given_is_refused(keywords, message):
    from agents.adapters.trl import grpo_inputs

    with pytest.raises((TypeError, ValueError), match=message):
        grpo_inputs(**keywords)


def test_a_text_that_goes_on_after_its_stop_token_is_refused():
    from agents.adapters.trl import grpo_inputs

    [function] = grpo_inputs(**problem()).reward_funcs
    texts = {"prompts": ["2+3"], "completions": ["5"], "answer": ["5"]}
    assert function(**texts, completion_ids=[[5, 11, 11]]) == [1.0]  # padding
    with pytest.raises(textgym.RewardError, match="generation_config.eos_token_id to \\[11\\]"):
        function(**texts, completion_ids=[[5, 11, 4]])


def test_a_reward_that_fails_says_so_through_trl(tmp_path):
    from agents.adapters.trl import grpo_inputs

    def wrong(completions):
        return [float("nan")] * len(completions)

    inputs = grpo_inputs(**problem(reward=wrong))
    with pytest.raises(textgym.RewardError, match="'wrong'"):
        metrics_of(inputs, tmp_path, [[5, 11], [4, 11], [1, 2, 11], [3, 3, 3]])
