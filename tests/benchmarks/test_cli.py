"""The command as a stranger runs it: exit codes, messages, files."""

import json
import signal
import subprocess
import sys
from importlib.metadata import entry_points

import pytest

from benchmarks.cli import HELP, main

COMMAND = "import sys; from benchmarks.cli import main; sys.exit(main())"


def bench(*arguments, cwd=None, code=COMMAND):
    return subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, cwd=cwd)


def test_the_console_script_is_this_command():
    (script,) = entry_points(group="console_scripts", name="textgym-bench")
    assert script.load() is main


def test_an_unknown_command_is_wrong_usage():
    done = bench("schems")
    assert done.returncode == 2
    assert "Did you mean 'schemes'?" in done.stderr


def test_nothing_heavy_is_loaded_before_the_arguments_are_read():
    code = "import sys; from benchmarks.cli import main; main(['schems']); print(*sys.modules)"
    loaded = set(bench(code=code).stdout.split())
    assert "textgym" in loaded
    assert not loaded & {"torch", "scipy", "transformers", "tyro"}


@pytest.mark.parametrize("command", ["diagnostics"])
def test_a_command_that_is_not_built_is_refused(command, capsys):
    assert main([command, "--quick"]) == 2
    assert "not built yet; built: schemes, estimators, agents, speed" in capsys.readouterr().err


@pytest.mark.parametrize(
    "flags, message",
    [
        (["--task", "sotr"], "Did you mean 'sort'?"),
        (["--level", "99"], "level=99"),
        (["--algorithm", "rlo"], "Did you mean 'rloo'?"),
        (["--seeds", "1"], "at least 2"),
        (["--total-timesteps", "0"], "at least 1"),
        (["--task", "\x1b[2J"], "\\x1b[2J"),
    ],
)
def test_a_wrong_value_is_wrong_usage(flags, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["schemes", *flags]) == 2
    shown = capsys.readouterr().err
    assert message in shown
    assert "\x1b" not in shown
    assert not list(tmp_path.iterdir())


def test_an_unknown_flag_is_wrong_usage(capsys):
    with pytest.raises(SystemExit) as end:
        main(["schemes", "--sedes", "3"])
    assert end.value.code == 2
    assert "--seeds" in capsys.readouterr().err


def test_help_fits_a_screen(capsys):
    assert main(["--help"]) == 0
    assert capsys.readouterr().out == HELP
    with pytest.raises(SystemExit) as end:
        main(["schemes", "--help"])
    assert end.value.code == 0
    shown = capsys.readouterr().out
    assert len(shown.splitlines()) <= 60
    for flag in ("quick", "task", "level", "algorithm", "seeds", "total-timesteps", "output"):
        assert f"--{flag} " in shown


def test_no_command_is_wrong_usage(capsys):
    assert main([]) == 2
    assert capsys.readouterr().err == HELP


@pytest.mark.parametrize("module", ["tyro", "torch"])
def test_a_missing_library_is_one_line_that_says_what_to_install(module, tmp_path):
    code = f"import sys; sys.modules[{module!r}] = None; from benchmarks.cli import main; sys.exit(main(['schemes']))"
    done = bench(code=code, cwd=tmp_path)
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert module in done.stderr and 'pip install -e ".[benchmarks]"' in done.stderr


def test_a_folder_that_cannot_be_made_is_a_failure(tmp_path, capsys):
    (tmp_path / "file").write_text("mine")
    assert main(["schemes", "--output", str(tmp_path / "file" / "x")]) == 1
    assert str(tmp_path / "file") in capsys.readouterr().err


@pytest.fixture(scope="module")
def two_runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bench")
    arguments = ["schemes", "--task", "bandit", "--seeds", "2", "--total-timesteps", "300"]
    code = f"from benchmarks.cli import main; import sys; sys.exit(main({arguments}) or main({arguments}))"
    return folder, bench(cwd=folder, code=code)


def test_a_run_ends_with_a_table_and_files(two_runs):
    folder, done = two_runs
    assert done.returncode == 0, done.stderr
    files = folder / "results" / "schemes-bandit-reinforce_to_go"
    assert {file.name for file in files.iterdir()} == {"runs.jsonl", "table.md", "summary.json"}
    runs = [json.loads(line) for line in (files / "runs.jsonl").read_text().splitlines()]
    assert [(run["config"]["seed"], run["config"]["scheme"]) for run in runs] == [
        (0, "terminal"),
        (0, "prefix_delta"),
        (1, "terminal"),
        (1, "prefix_delta"),
    ]
    assert len({run["config_hash"] for run in runs}) == 4
    table = (files / "table.md").read_text()
    assert table in done.stdout
    assert "prefix_delta - terminal" in table and "too few: 2 seeds" in table
    summary = json.loads((files / "summary.json").read_text())
    assert summary["command"] in table
    assert summary["differences"][0]["intervals"]["normalized_score"]["mean"] == 0  # horizon 1: one problem


def test_a_second_run_overwrites_nothing_and_finds_the_same(two_runs):
    folder, _ = two_runs
    first, second = (folder / "results" / f"schemes-bandit-reinforce_to_go{end}" for end in ("", "-2"))
    assert {file.name for file in (folder / "results").iterdir()} == {first.name, second.name}
    for name in ("runs.jsonl", "summary.json"):
        assert (first / name).read_bytes() == (second / name).read_bytes()


def test_ctrl_c_ends_with_130_and_keeps_what_was_finished(tmp_path):
    arguments = ["schemes", "--task", "bandit", "--seeds", "1000", "--total-timesteps", "300", "--output", "out"]
    # Whoever runs the tests in the background may have had the signal ignored, which children take over.
    heard = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)"
    process = subprocess.Popen(
        [sys.executable, "-c", f"{heard}; {COMMAND}", *arguments],
        cwd=tmp_path,
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
    )
    assert process.stderr is not None
    for line in process.stderr:
        if line.startswith("run 1 of"):
            break
    process.send_signal(signal.SIGINT)
    rest = process.stderr.read()
    assert process.wait(timeout=60) == 130
    assert "interrupted" in rest and "Traceback" not in rest
    lines = (tmp_path / "out" / "runs.jsonl").read_text().splitlines()
    assert json.loads(lines[0])["config"]["task"] == "bandit"
    assert not (tmp_path / "out" / "table.md").exists()
