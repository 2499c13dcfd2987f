"""Episodes as text, on a terminal and as pictures; render modes; Gymnasium's recorders over both environments."""

import copy
import io
import subprocess
import sys
import unicodedata
import warnings
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from gymnasium.vector import AutoresetMode
from moviepy import VideoFileClip
from rich.console import Console
from stable_baselines3.common.env_util import make_vec_env
from tokenizers import Tokenizer, decoders, models

from tests.textgym.cases import MODES
from textgym.env import TextGenEnv
from textgym.rendering import HumanRenderer, View, render_ansi, render_rgb
from textgym.vector_env import TextGenVectorEnv

ROOT = Path(__file__).parents[2]
HOSTILE = ["\x1b[2J", "\u202e", "\u2028", "\x07", "\x9b", "\u200b", "\U000e0041"]
CODES = [r"\x1b[2J", r"\u202e", r"\u2028", r"\x07", r"\x9b", r"\u200b", r"\U000e0041"]
UNSAFE = {"Cc", "Cf", "Zl", "Zp"}
KEYWORDS = dict(
    tokenizer=["The ", "cat ", "sat", "\n", "<eos>", *HOSTILE],
    prompts=["The cat "],
    reward=lambda completions: [0.5] * len(completions),
    max_new_tokens=len(HOSTILE) + 2,
)
BEGUN = View("2+2=", "", 0, 0, reward=0.0, episode_return=0.0, score=0.0)
ENDED = View("2+2=", "4!", 1, 3, reward=0.25, episode_return=0.75, score=0.5)
DIM, BOLD, PLAIN = "\x1b[2m", "\x1b[1m", "\x1b[0m"


@pytest.fixture(autouse=True)
def plain_files(monkeypatch):
    """Rich styles what goes to a terminal only, unless the surroundings ask it for more."""
    for name in ("FORCE_COLOR", "TTY_COMPATIBLE"):
        monkeypatch.delenv(name, raising=False)


def running(completion, num_tokens, prompt="2+2="):
    return BEGUN._replace(prompt=prompt, completion=completion, num_tokens=num_tokens)


# ansi


def test_ansi_shows_prompt_and_completion_as_unbroken_text():
    env = gym.make("TextGen-v0", render_mode="ansi", **KEYWORDS)
    env.reset()
    assert "The cat " in env.render()
    for action in (2, 3, 0, 1, 2, 4):
        env.step(action)
    shown = env.render()
    assert "The cat \n" in shown and "sat\nThe cat sat\n" in shown
    assert "stop" in shown and "0.5" in shown
    assert "<eos>" not in shown


def test_ansi_does_not_break_or_cut_a_long_text():
    prompt, completion = "The cat " * 50, "sat The " * 70
    lines = render_ansi(running(completion, 140, prompt=prompt)).split("\n")
    assert lines[:2] == [f"prompt: {prompt}", f"completion: {completion}"]


def test_ansi_shows_no_character_that_a_terminal_would_obey():
    env = gym.make("TextGen-v0", render_mode="ansi", **KEYWORDS)
    env.reset(options={"prompt": "".join(HOSTILE[:1]) + "sat"})
    for action in range(5, 5 + len(HOSTILE)):
        env.step(action)
    shown = env.render()
    assert not [char for char in shown if char != "\n" and unicodedata.category(char) in UNSAFE]
    assert all(code in shown for code in CODES)


def test_a_vector_environment_renders_each_row_as_text():
    envs = gym.make_vec("TextGen-v0", num_envs=2, render_mode="ansi", **KEYWORDS)
    envs.reset()
    envs.step(np.array([0, 2]))
    first, second = envs.render()
    assert "completion: The \n" in first and "completion: sat\n" in second


def test_joiners_do_not_break_a_text():
    text = "\U0001f469\u200d\U0001f4bb"  # an emoji of two, joined
    assert text in render_ansi(running(text, 1)) and text in render_ansi(running("", 0, prompt=text))
    assert text in shown_on_terminal(running(text, 1))


def test_the_view_of_a_row_is_what_the_steps_returned():
    env = gym.make("TextGen-v0", task="sort", scheme="prefix_delta").unwrapped
    observation, _ = env.reset(options={"prompt": "3120"})
    rewards = [env.step(action)[1] for action in (0, 1, 3, 3)]
    assert rewards == [0.25, 0.25, 0.0, 0.25]  # sorted, 0123: the third is wrong
    view = env._transition.view(0)
    assert view == View("3120", "0133", 2, 4, reward=0.25, episode_return=0.75, score=0.75)
    env.reset(options={"prompt": "3120"})
    assert env._transition.view(0) == View("3120", "", 0, 0, reward=0.0, episode_return=0.0, score=0.0)


# human


def terminal(width=200):
    return Console(file=io.StringIO(), force_terminal=True, color_system="standard", width=width)


def shown_on_terminal(*views, width=200):
    """What a terminal receives."""
    console = terminal(width)
    renderer = HumanRenderer(console)
    for view in views:
        renderer.show(view)
    return console.file.getvalue()


def shown(*views):
    """What a file receives: no styles."""
    file = io.StringIO()
    renderer = HumanRenderer(Console(file=file))
    for view in views:
        renderer.show(view)
    return file.getvalue()


def test_an_episode_streams_on_one_line_and_ends_with_its_summary():
    views = [BEGUN, running("4", 1), running("4!", 2), ENDED]
    assert shown(*views) == "2+2=4!\nstop, 3 tokens, reward 0.25, return 0.75, score 0.5\n"
    assert shown_on_terminal(*views).startswith(f"{DIM}2+2={PLAIN}{BOLD}4{PLAIN}{BOLD}!{PLAIN}")


def test_each_token_is_written_as_it_comes():
    file = io.StringIO()
    renderer = HumanRenderer(Console(file=file))
    so_far = []
    for view in (BEGUN, running("4", 1), running("4!", 2)):
        renderer.show(view)
        so_far.append(file.getvalue())
    assert so_far == ["2+2=", "2+2=4", "2+2=4!"]


def test_the_same_view_is_not_drawn_twice():
    assert shown(BEGUN, BEGUN, running("4", 1), running("4", 1), ENDED, ENDED) == shown(BEGUN, running("4", 1), ENDED)


def test_a_new_episode_starts_on_a_new_line():
    ended = "2+2=4!\nstop, 3 tokens, reward 0.25, return 0.75, score 0.5\n"
    assert shown(BEGUN, ENDED, BEGUN, ENDED) == ended * 2
    assert shown(running("4", 1), BEGUN, running("5", 1)) == "2+2=4\n2+2=5"  # reset in its middle
    assert shown(running("4", 1), running("4", 1, prompt="2*2=")) == "2+2=4\n2*2=4"
    assert shown(running("€", 3), running("\ufffd", 1)) == "2+2=€\n2+2="  # a start from one byte
    assert shown(ENDED, running("4!", 3)) == ended + "2+2=4!"  # a start from a prefix, as long as the last


def test_the_bytes_of_a_character_are_held_back_until_it_is_whole():
    tokens = [running("a", 1), running("a\ufffd", 2), running("a\ufffd\ufffd", 3), running("a€", 4)]
    assert [shown(*tokens[:count]) for count in (1, 2, 3, 4)] == ["2+2=a", "2+2=a", "2+2=a", "2+2=a€"]
    assert shown(running("a\ufffdb", 3)) == "2+2=a\ufffdb"  # it stays: what follows shows that no byte is awaited
    taken_back = [running("€", 3), running("\ufffd" * 4, 4), running("\ufffd" * 5, 5), running("€日", 6)]
    assert shown(*taken_back) == "2+2=€日"  # as some decoders do with a run of bytes
    assert shown(running("a\ufffd", 2), ENDED._replace(completion="a\ufffd")).startswith("2+2=a\ufffd\nstop")


def test_a_tokenizer_of_bytes_streams_whole_characters(capsys, tmp_path):
    vocabulary = {f"<0x{byte:02X}>": byte for byte in range(256)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[], byte_fallback=True))
    tokenizer.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    env = gym.make(
        "TextGen-v0",
        tokenizer=str(tmp_path / "tokenizer.json"),
        prompts=["é"],
        reward=lambda completions: [1.0] * len(completions),
        max_new_tokens=6,
        render_mode="human",
    )
    env.reset()
    pieces = [capsys.readouterr().out]
    for byte in "€日".encode():
        env.step(byte)
        pieces.append(capsys.readouterr().out)
    last = "日\nlimit, 6 tokens, reward 1, return 1, score 1\n"
    assert pieces == ["é", "", "", "€", "", "", last]


@pytest.mark.parametrize(("before", "after"), [("do n", "don't"), ("ab", "a")])
def test_a_decoder_that_changes_earlier_text_leads_to_a_fresh_line(before, after):
    assert shown(running(before, 2), running(after, 3)) == f"2+2={before}\n2+2={after}"


def test_a_terminal_receives_no_control_character_and_no_markup_is_read():
    text = "".join(HOSTILE) + "[bold]x[/] :smile: [link=a]b"
    expected = "".join(CODES) + "[bold]x[/] :smile: [link=a]b"
    assert shown(running(text, 9, prompt=text)) == expected * 2
    received = shown_on_terminal(running(text, 9, prompt=text)).replace(DIM, "").replace(BOLD, "").replace(PLAIN, "")
    assert received == expected * 2


@pytest.mark.parametrize("text", ["word " * 50, "x" * 300, "a  b \n\n c\n", "\n", " "], ids=repr)
def test_texts_are_neither_wrapped_nor_trimmed(text):
    assert shown_on_terminal(running("", 0, prompt=text), width=20) == f"{DIM}{text}{PLAIN}".replace(
        "\n", f"{PLAIN}\n{DIM}"
    ).replace(f"{DIM}{PLAIN}", "")


def test_a_terminal_without_a_character_shows_its_code():
    raw = io.BytesIO()
    renderer = HumanRenderer(Console(file=io.TextIOWrapper(raw, encoding="ascii")))
    renderer.show(running("é€", 1))
    assert raw.getvalue() == rb"2+2=\xe9\u20ac"


def test_rows_that_ended_get_a_line_each():
    file = io.StringIO()
    renderer = HumanRenderer(Console(file=file))
    renderer.show_rows({})
    long = ENDED._replace(prompt="a" * 1000 + "END", completion="[red]\n\x1b[2J")
    renderer.show_rows({3: ENDED, 11: long})
    first, second = file.getvalue().splitlines()
    assert first == "row 3  2+2= → 4!  stop, 3 tokens, reward 0.25, return 0.75, score 0.5"
    assert second.startswith("row 11  ...aaa") and r"aEND → [red]\n\x1b[2J  stop" in second and len(second) < 200


def test_rows_have_styles_on_a_terminal():
    console = terminal()
    HumanRenderer(console).show_rows({0: ENDED})
    assert f"row 0  {DIM}2+2={PLAIN} → {BOLD}4!{PLAIN}  stop" in console.file.getvalue()


def test_human_draws_at_every_reset_and_step_of_the_scalar_environment(capsys):
    env = gym.make("TextGen-v0", render_mode="human", **KEYWORDS)
    env.reset()
    assert capsys.readouterr().out == "The cat "
    assert env.render() is None
    env.step(2)
    assert env.render() is None
    assert capsys.readouterr().out == "sat"
    env.step(4)
    assert capsys.readouterr().out == "\nstop, 2 tokens, reward 0.5, return 0.5, score 0.5\n"
    env.reset()
    assert capsys.readouterr().out == "The cat "


def test_an_environment_that_draws_can_be_copied_in_the_middle_of_an_episode(capsys):
    env = gym.make("TextGen-v0", render_mode="human", **KEYWORDS)
    env.reset()
    other = copy.deepcopy(env)
    other.step(2)
    env.step(1)
    assert capsys.readouterr().out == "The cat satcat "


@pytest.mark.parametrize("mode", MODES, ids=lambda mode: mode.name)
def test_human_prints_each_ended_row_of_a_vector_environment_once(capsys, mode):
    envs = gym.make_vec("TextGen-v0", num_envs=3, render_mode="human", autoreset_mode=mode, **KEYWORDS)
    envs.reset()
    envs.step(np.array([2, 4, 2]))
    line = "row {}  The cat  → {}  stop, {} tokens, reward 0.5, return 0.5, score 0.5\n"
    assert capsys.readouterr().out == line.format(1, "", 1)
    envs.step(np.array([4, 0, 0]))
    assert capsys.readouterr().out == line.format(0, "sat", 2)
    envs.step(np.array([0, 0, 0]))
    assert envs.render() is None
    assert capsys.readouterr().out == ""


def test_a_closed_pipe_does_not_end_the_run():
    code = (
        "import gymnasium as gym, textgym, sys\n"
        "env = gym.make('TextGen-v0', render_mode='human')\n"
        "for episode in range(500):\n"
        "    env.reset(seed=episode)\n"
        "    while not env.step(0)[2]: pass\n"
        "print('still printing')\n"
        "print('done', file=sys.stderr)\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout.readline()
    process.stdout.close()
    assert process.stderr.read() == "done\n"
    assert process.wait() == 0


# rgb_array


def ink(frame):
    """Which pixels are not paper."""
    return (frame != 255).any(axis=2)


def test_a_frame_has_constant_size_and_memory_of_its_own():
    frames = [render_rgb(view) for view in (BEGUN, ENDED, running("x" * 5000, 9), running("", 0, prompt=""))]
    assert {(frame.dtype.str, frame.shape) for frame in frames} == {("|u1", (360, 640, 3))}
    assert frames[0].flags.writeable
    frames[0][:] = 0
    assert render_rgb(BEGUN).max() == 255


def test_equal_views_give_equal_frames_and_different_ones_different():
    views = [
        BEGUN,
        ENDED,
        ENDED._replace(prompt="2+3="),
        ENDED._replace(completion="5"),
        ENDED._replace(finish_reason=2),
        ENDED._replace(num_tokens=4),
        ENDED._replace(reward=1.0),
        ENDED._replace(episode_return=1.0),
        ENDED._replace(score=1.0),
        ENDED._replace(prompt="2+2=4", completion="!"),
    ]
    assert len({render_rgb(view).tobytes() for view in views}) == len(views)
    for view in views:
        assert np.array_equal(render_rgb(view), render_rgb(view))


def test_the_prompt_is_grey_and_the_completion_dark_and_heavier():
    def body(view):
        return render_rgb(view)[:310]

    as_prompt, as_completion = body(running("", 0, prompt="same")), body(running("same", 1, prompt=""))
    assert as_prompt.min() > 100 and as_completion.min() < 50
    assert ink(as_completion).sum() > 1.2 * ink(as_prompt).sum() > 0
    both = body(running("same", 1, prompt="same "))
    assert both[:, :60].min() > 100 and both[:, 70:].min() < 50


def test_a_text_that_is_too_long_shows_its_end_after_an_ellipsis():
    fits, cut = running("end", 1), running("x " * 5000 + "end", 9)
    margin = np.s_[:310, :20]
    assert not ink(render_rgb(fits)[margin]).any()
    assert ink(render_rgb(cut)[margin]).any()
    assert np.array_equal(render_rgb(cut), render_rgb(cut._replace(completion="y " + cut.completion)))
    assert not np.array_equal(render_rgb(cut), render_rgb(cut._replace(completion=cut.completion + "."))), "the end"
    assert ink(render_rgb(running(" " * 5000 + "x", 9))[margin]).any()
    lines = [running("\n".join(["x"] * count), 1) for count in (12, 13)]
    assert [ink(render_rgb(view)[margin]).any() for view in lines] == [False, True]


def test_a_long_prompt_leaves_room_for_the_completion():
    for prompt in ("word " * 5000, "\x07" * 2300):  # the codes of the second are longer than a page
        frame = render_rgb(running("answer", 1, prompt=prompt))[:310]
        assert frame.min() < 50 and frame[:250].min() > 100 and ink(frame[:, :20]).any()


@pytest.mark.parametrize(
    "text",
    [
        "i" * 3000,
        "W" * 3000,
        "j" * 99,
        "\u0301" * 3000,
        "日" * 500,
        "\x1b" * 999,
        " " * 3000 + "x",
        "word " * 999,
        "\n" * 99,
    ],
    ids=lambda text: ascii(text[:1]) + text[-1:],
)
def test_no_ink_leaves_the_text_s_place(text):
    frame = ink(render_rgb(running(text, 1, prompt=text[:5])))
    assert not frame[:20].any() and not frame[302:318].any()
    assert not frame[:, 620:].any() and not frame[50:, :20].any()


def test_lines_break_between_words_and_long_words_anywhere():
    breaks = [count for count in range(1, 30) if same("word " * 30, "word " * count + "\n" + "word " * (30 - count))]
    assert len(breaks) == 2 and breaks[1] == 2 * breaks[0]  # as many words on every line, none cut
    assert same("word " * breaks[0] + "words", "word " * breaks[0] + "\nwords")
    assert not same("a b", "ab") and not same("a  b", "a b")
    long = [count for count in range(1, 300) if same("m" * 300, "m" * count + "\n" + "m" * (300 - count))]
    assert long == list(range(long[0], 300, long[0]))


def same(one, other):
    return np.array_equal(render_rgb(running(one, 1, prompt="")), render_rgb(running(other, 1, prompt="")))


@pytest.mark.parametrize(("text", "code"), [*zip(HOSTILE, CODES, strict=True), ("é日", r"\xe9\u65e5"), ("\t", "    ")])
def test_what_the_font_lacks_or_a_terminal_obeys_is_drawn_as_its_code(text, code):
    assert same(f"a{text}b", f"a{code}b")


def test_frames_of_both_environments():
    env = gym.make("TextGen-v0", render_mode="rgb_array", **KEYWORDS)
    envs = gym.make_vec("TextGen-v0", num_envs=2, render_mode="rgb_array", **KEYWORDS)
    env.reset(), envs.reset()
    env.step(2), envs.step(np.array([0, 2]))
    first, second = envs.render()
    assert np.array_equal(env.render(), second) and not np.array_equal(first, second)
    assert np.array_equal(second, render_rgb(View("The cat ", "sat", 0, 1, 0.0, 0.0, 0.0)))


# render modes and their libraries


@pytest.mark.parametrize(
    ("mode", "kind"), [(None, type(None)), ("ansi", str), ("human", type(None)), ("rgb_array", np.ndarray)]
)
@pytest.mark.parametrize("make", [gym.make, gym.make_vec])
def test_usable_render_modes_are_accepted_in_silence(make, mode, kind):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        env = make("TextGen-v0", render_mode=mode)
        env.reset()
        frame = env.render()
    assert env.render_mode == mode
    assert isinstance(frame[0] if isinstance(frame, tuple) else frame, kind)


@pytest.mark.parametrize("kind", [TextGenEnv, TextGenVectorEnv])
def test_the_render_modes_are_listed(kind):
    assert kind.metadata["render_modes"] == ["ansi", "human", "rgb_array"]
    assert kind.metadata["render_fps"] > 0


@pytest.mark.parametrize("mode", ["hologram", "ansi_list"])
@pytest.mark.parametrize("kind", [TextGenEnv, TextGenVectorEnv])
def test_any_other_render_mode_is_none_with_a_warning(kind, mode):
    with pytest.warns(UserWarning, match=f"render_mode='{mode}'.*allowed: ansi, human, rgb_array"):
        env = kind(render_mode=mode)
    assert env.render_mode is None
    env.reset()
    assert env.render() is None


@pytest.mark.filterwarnings("ignore:.*render_mode")
@pytest.mark.parametrize("make", [gym.make, gym.make_vec])
def test_gymnasium_makes_an_environment_with_any_render_mode(make):
    env = make("TextGen-v0", render_mode="hologram").unwrapped
    env.reset()
    assert (env.render_mode, env.render()) == (None, None)


@pytest.mark.parametrize("mode", [None, "ansi", "human", "rgb_array"])
def test_gymnasium_has_no_complaint_about_rendering(mode):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_env(gym.make("TextGen-v0", render_mode=mode, **KEYWORDS).unwrapped, skip_render_check=False)


def without(monkeypatch, library):
    for name in [name for name in sys.modules if name.split(".")[0] == library]:
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setitem(sys.modules, library, None)


@pytest.mark.parametrize("make", [gym.make, gym.make_vec])
def test_without_rich_human_says_what_to_install(monkeypatch, make):
    without(monkeypatch, "rich")
    with pytest.raises(ImportError, match=r"'human'.*pip install 'textgym\[render\]'"):
        make("TextGen-v0", render_mode="human")


@pytest.mark.parametrize("make", [gym.make, gym.make_vec])
def test_without_pillow_rgb_array_runs_and_says_what_to_install_when_drawn(monkeypatch, make):
    without(monkeypatch, "PIL")
    env = make("TextGen-v0", render_mode="rgb_array")
    env.reset()
    env.step(env.action_space.sample())
    with pytest.raises(ImportError, match=r"'rgb_array'.*pip install 'textgym\[render\]'"):
        env.render()


def test_no_render_library_is_loaded_before_something_is_drawn():
    code = (
        "import sys, gymnasium as gym, textgym\n"
        "env = gym.make('TextGen-v0', render_mode='rgb_array'); env.reset(); env.step(0)\n"
        "print('PIL' in sys.modules, 'rich' in sys.modules); env.render(); print('PIL' in sys.modules)"
    )
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert run.stdout.split() == ["False", "False", "True"]


# recorders of other libraries


def frames_of(file):
    with VideoFileClip(str(file)) as clip:
        return round(clip.duration * clip.fps), tuple(clip.size)


def test_gymnasium_records_a_video_of_an_episode(tmp_path):
    env = gym.make("TextGen-v0", render_mode="rgb_array", **KEYWORDS)
    env = gym.wrappers.RecordVideo(env, str(tmp_path / "videos"), episode_trigger=lambda episode: True)
    for actions in ((2, 4), (0, 1, 2, 4)):
        env.reset()
        for action in actions:
            env.step(action)
    env.close()
    files = [tmp_path / "videos" / f"rl-video-episode-{episode}.mp4" for episode in (0, 1)]
    assert [frames_of(file) for file in files] == [(3, (640, 360)), (5, (640, 360))]  # one at reset, one a step


def test_gymnasium_records_a_video_of_a_vector_environment(tmp_path):
    envs = gym.make_vec("TextGen-v0", num_envs=4, render_mode="rgb_array", **KEYWORDS)
    envs = gym.wrappers.vector.RecordVideo(envs, str(tmp_path / "videos"), episode_trigger=lambda episode: True)
    envs.reset()
    for action in (2, 2, 4):
        envs.step(np.full(4, action))
    envs.close()
    assert frames_of(tmp_path / "videos" / "rl-video-episode-0.mp4") == (4, (1280, 720))  # two by two


def test_stable_baselines3_makes_and_draws_environments_in_silence():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        envs = make_vec_env("textgym:TextGen-v0", n_envs=4, seed=0)
        envs.reset()
        assert envs.render().shape == (720, 1280, 3)


def test_episode_statistics_of_a_scalar_environment():
    env = gym.wrappers.RecordEpisodeStatistics(gym.make("TextGen-v0", task="sort", scheme="prefix_delta"))
    for actions, total in (((0, 1, 2, 3), 1.0), ((0, 1, 3, 3), 0.75)):
        env.reset(options={"prompt": "3120"})
        infos = [env.step(action)[-1] for action in actions]
        assert [info.get("episode", {}).get("l") for info in infos] == [None, None, None, 4]
        assert infos[-1]["episode"]["r"] == pytest.approx(total)


@pytest.mark.parametrize("mode", MODES, ids=lambda mode: mode.name)
def test_episode_statistics_of_a_vector_environment(mode):
    keywords = dict(
        tokenizer=["a", "<eos>"],
        prompts=[""],
        max_new_tokens=3,
        scheme="prefix_delta",
        reward=lambda completions: [float(len(text)) for text in completions],
    )
    envs = gym.make_vec("TextGen-v0", num_envs=2, autoreset_mode=mode, **keywords)
    envs = gym.wrappers.vector.RecordEpisodeStatistics(envs)
    envs.reset()
    ended = []  # (row, return, length) as the episodes end
    remaining = [[3, 1, 2], [1, 3, 2]]  # tokens of the episodes of each row; the stop token comes last, if it fits
    written = np.zeros(2, dtype=int)
    starts_now = np.zeros(2, dtype=bool)
    for _ in range(12):
        actions = np.array([int(written[row] + 1 == remaining[row][0]) for row in range(2)])
        *_, terminated, _, infos = envs.step(actions)
        written += ~starts_now
        for row in np.flatnonzero(terminated):
            ended.append((int(row), infos["episode"]["r"][row], infos["episode"]["l"][row]))
            remaining[row] = remaining[row][1:] or [99]
            written[row] = 0
        starts_now = terminated if mode is AutoresetMode.NEXT_STEP else np.zeros(2, dtype=bool)
        if mode is AutoresetMode.DISABLED and terminated.any():
            envs.reset(options={"reset_mask": terminated.copy()})
    of_rows = [[(total, length) for row, total, length in ended if row == wanted][:3] for wanted in range(2)]
    assert of_rows == [[(2.0, 3), (0.0, 1), (1.0, 2)], [(0.0, 1), (2.0, 3), (1.0, 2)]]
