"""Requirements and how findings are shown, with numbers worked by hand."""

from benchmarks.finding import Finding, missing_lines, requirement_records, requirement_table
from benchmarks.requirement import Requirement
from benchmarks.timing import Spread, Timing

FAST, SLOW, GONE = Timing((30.0, 40.0, 20.0)), Timing((10.0, 10.0, 10.0)), Timing(missing="peer is not installed")
TIMINGS = {"ours": FAST, "peer": SLOW, "gone": GONE}


def test_the_median_ratio_decides():
    assert Requirement("ours", "peer", 3.0).measured(TIMINGS) == Spread(3.0, 2.0, 4.0)
    for at_least, verdict in ((3.0, "met"), (3.01, "NOT MET"), (None, "")):
        requirement = Requirement("ours", "peer", at_least)
        assert requirement.verdict(requirement.measured(TIMINGS)) == verdict


def test_what_is_missing_is_neither_beaten_nor_hidden():
    requirement = Requirement("ours", "gone", 2.0)
    assert requirement.verdict(requirement.measured(TIMINGS)) == "not measured"
    table = requirement_table([requirement], TIMINGS)
    assert "missing" in table and "not measured" in table and "at least 2" in table
    [record] = requirement_records([requirement], TIMINGS)
    assert record["ratio"] is None and record["verdict"] == "not measured"
    assert missing_lines(TIMINGS) == "Missing: gone: peer is not installed.\n"


def test_a_page_has_the_command_the_machine_and_everything_found():
    finding = Finding("Speed of x", "Ten of them.", 3, ["| a |\n"], "Read it so.", {})
    machine = {"cpu": "Some \x1b[2J CPU", "cpus": 2, "system": "Linux x86_64", "threads": 1}
    page = finding.page("textgym-bench speed x", {"torch": "2.13"}, machine)
    for part in ("# Speed of x", "    textgym-bench speed x\n", "torch 2.13", "1 thread.", "Ten of them.", "| a |"):
        assert part in page
    assert page.endswith("Read it so.\n") and "\x1b" not in page
