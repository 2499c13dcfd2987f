"""The direction of imports, what `import textgym` loads and how long it takes, and calls that must not occur."""

import ast
import re
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("textgym", "agents", "benchmarks")  # each may import those before it
HEAVY = ("torch", "transformers", "pandas", "stable_baselines3")
FILES = [file for package in PACKAGES for file in sorted((ROOT / package).rglob("*.py"))]
FORBIDDEN = [
    r"pickle\.loads?\(",
    r"allow_pickle\s*=\s*True",
    r"weights_only\s*=\s*False",
    r"trust_remote_code\s*=\s*True",
    r"yaml\.load\(",
    r"np\.random\.seed\(",
]


def module_name(file: Path) -> str:
    parts = file.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(file): file for file in FILES}


def imports(source: str) -> set[str]:
    """The modules that a source imports, at the top or inside functions."""
    names = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative imports hide the direction"
            whole = {f"{node.module}.{alias.name}" for alias in node.names}
            submodules = whole & set(MODULES)
            names |= submodules if len(submodules) == len(whole) else submodules | {str(node.module)}
    return names


def cycle(graph: dict[str, set[str]]) -> list[str]:
    """The modules of one cycle, or none."""
    try:
        TopologicalSorter(graph).prepare()
    except ValueError as error:
        return error.args[1]
    return []


def in_fork(source: str, position: int) -> bool:
    """Whether a call stands in a block that restores torch's generator."""
    return "fork_rng" in "".join(source[:position].splitlines(keepends=True)[-4:])


@pytest.mark.parametrize("name", MODULES)
def test_packages_import_one_way(name):
    package = name.split(".")[0]
    later = PACKAGES[PACKAGES.index(package) + 1 :]
    found = {imported.split(".")[0] for imported in imports(MODULES[name].read_text(encoding="utf-8"))}
    assert not found & set(later)
    assert not found & {"tests"}
    if package == "textgym":
        assert not found & set(HEAVY)


def test_modules_import_each_other_without_a_cycle():
    graph = {name: imports(file.read_text(encoding="utf-8")) & set(MODULES) for name, file in MODULES.items()}
    assert graph["textgym.env"] >= {"textgym.transition", "textgym.problem"}
    assert cycle(graph) == []


def test_a_cycle_would_be_found():
    assert set(cycle({"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a"}})) == {"a", "b", "c"}


def python(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, cwd=ROOT).stdout


def test_the_environment_loads_no_heavy_library():
    loaded = python(
        "import sys, textgym, gymnasium as gym, numpy as np\n"
        "env = gym.make('TextGen-v0'); env.reset(seed=0); env.step(0)\n"
        "envs = gym.make_vec('TextGen-v0', num_envs=2); envs.reset(seed=0); envs.step(np.array([0, 1]))\n"
        "print(*{name.split('.')[0] for name in sys.modules})"
    ).split()
    assert "tokenizers" in loaded
    assert not set(loaded) & {*HEAVY, "agents", "benchmarks", "jinja2"}


def test_import_takes_less_than_half_a_second():
    code = "import time; start = time.perf_counter(); import textgym; print(time.perf_counter() - start)"
    assert min(float(python(code)) for _ in range(5)) < 0.5


@pytest.mark.parametrize("pattern", FORBIDDEN)
def test_no_package_holds_an_unsafe_call(pattern):
    assert not [str(file) for file in FILES if re.search(pattern, file.read_text(encoding="utf-8"))]


@pytest.mark.parametrize("name", MODULES)
def test_global_random_state_is_set_only_where_it_is_restored(name):
    source = MODULES[name].read_text(encoding="utf-8")
    for match in re.finditer(r"torch\.manual_seed\(", source):
        assert in_fork(source, match.start()), source.count("\n", 0, match.start()) + 1
