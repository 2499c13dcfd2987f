"""The page shows the table that its command made."""

import json
from pathlib import Path

FOLDER = Path(__file__).parents[2] / "benchmarks"


def test_the_page_shows_the_saved_table_and_its_command():
    page = (FOLDER / "README.md").read_text(encoding="utf-8")
    saved = (FOLDER / "results" / "schemes" / "table.md").read_text(encoding="utf-8")
    command = json.loads((FOLDER / "results" / "schemes" / "summary.json").read_text(encoding="utf-8"))["command"]
    assert f"    {command}\n" in page and f"    {command}\n" in saved
    assert saved[saved.index("| scheme") :] in page


def test_the_page_shows_both_tables_of_the_estimators_and_their_command():
    page = (FOLDER / "README.md").read_text(encoding="utf-8")
    saved = (FOLDER / "results" / "estimators" / "table.md").read_text(encoding="utf-8")
    command = json.loads((FOLDER / "results" / "estimators" / "summary.json").read_text(encoding="utf-8"))["command"]
    assert f"    {command}\n" in page and f"    {command}\n" in saved
    lines = [line for line in saved.splitlines() if line.startswith("|")]
    assert len(lines) > 20 and all(f"{line}\n" in page for line in lines)


def test_the_page_names_every_file():
    page = (FOLDER / "README.md").read_text(encoding="utf-8")
    files = {path.name for path in FOLDER.glob("*.py")} - {"__init__.py"}
    listed = page.split("## Files")[1].split("```")[1].splitlines()
    assert sorted(word for line in listed for word in line.split("   ")[0].split() if word in files) == sorted(files)
