"""The pages: Python snippets of the README and of textgym's page are stories that the suite runs, others run here."""

import re
from pathlib import Path

import pytest

from tests.stories.run import run

ROOT = Path(__file__).parents[1]
STORIES = {"README.md": 6, "textgym/README.md": 6}  # snippets of each page
PAGES = ("agents/README.md", "agents/adapters/README.md", "benchmarks/README.md")


def snippets(page):
    return re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(encoding="utf-8"), flags=re.DOTALL)


@pytest.mark.parametrize(("page", "count"), STORIES.items())
def test_every_snippet_of_the_readme_is_a_story(page, count):
    stories = {path.name: path.read_text(encoding="utf-8") for path in (ROOT / "tests" / "stories").glob("*.py")}
    found = [name for snippet in snippets(page) for name, text in stories.items() if text == snippet]
    assert len(found) == len(snippets(page)) == count
    for name in found:
        assert f"tests/stories/{name})" in (ROOT / page).read_text(encoding="utf-8")
        assert name in (ROOT / "tests" / "stories" / "test_stories.py").read_text(encoding="utf-8")


@pytest.mark.parametrize("page", PAGES)
def test_snippets_of_the_package_pages_run(page, tmp_path):
    for snippet in snippets(page):
        (tmp_path / "snippet.py").write_text(snippet, encoding="utf-8")
        result = run("snippet.py", cwd=tmp_path)
        assert result.returncode == 0, result.stderr


def test_every_file_of_the_tree_exists():
    tree = (ROOT / "README.md").read_text(encoding="utf-8").split("## The tree")[1].split("```")[1]
    package = None
    for line in tree.strip().splitlines():
        names = re.match(r"\s*((?:\S+\.py |\S+/ |\S+/$|\S+\.py$)+)", line).group(1).split()
        if not line.startswith(" "):
            package = ROOT / names[0]
            names = [""]
        assert all((package / name).exists() for name in names), line
