"""Prompt files: what their rows are read as, and where and why a malformed one is refused."""

import csv
import json
import sys
from pathlib import Path

import pyarrow as pa
import pytest
from pyarrow import parquet

from textgym.prompt_files import Row, read_file
from textgym.prompts import load_prompts
from textgym.vocabulary import Vocabulary

LONG = "a" * 10_000_000
SYMBOLS = ["a", "b", "é", " ", "\n", '"', ",", "\r", "<eos>"]


def write(folder: Path, name: str, content: bytes | str) -> Path:
    path = folder / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def values(path: Path) -> list:
    return [row.value for row in read_file(path)]


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("a.txt", "ab\nb\n", ["ab", "b"]),
        ("a.txt", "ab\r\n\r\n \n b \r\nb", ["ab", " b ", "b"]),  # the last line may lack its end
        ("a.txt", b"\xef\xbb\xbfab\n\xc3\xa9\n", ["ab", "é"]),
        ("a.txt", "a\u2028b\x85b\x0bb\n", ["a\u2028b\x85b\x0bb"]),  # only \n ends a line
        ("A.TXT", "ab", ["ab"]),
        ("a.jsonl", '{"prompt": "ab"}\n\n{"prompt": "b", "n": [1, {"x": null}]}', [{}, {"n": [1, {"x": None}]}]),
        ("a.jsonl", b'\xef\xbb\xbf{"prompt": "ab"}\r\n \r\n{"prompt": "b"}\r\n', [{}, {}]),
        ("a.jsonl", '{"prompt": "ab", "s": "x\u2028y\\u0000"}', [{"s": "x\u2028y\0"}]),
        ("a.csv", "prompt,n\nab,1\nb,\n", [{"n": "1"}, {"n": ""}]),
        ("a.csv", "n,prompt\r\n1.50,ab\r\n\r\nnan,b\r\n", [{"n": "1.50"}, {"n": "nan"}]),
        ("a.csv", b"\xef\xbb\xbfprompt\nab\n", [{}]),
        ("a.csv", 'prompt,n\n"ab","x,""y""\n\nz"\nb,2\n', [{"n": 'x,"y"\n\nz'}, {"n": "2"}]),
    ],
)
def test_good_files(tmp_path, name, content, expected):
    read = values(write(tmp_path, name, content))
    if name.lower().endswith("txt"):
        assert read == expected
    else:
        assert [{key: row[key] for key in row if key != "prompt"} for row in read] == expected
        assert [row["prompt"] for row in read] == ["ab", "b"][: len(read)]


def test_a_parquet_file_keeps_its_types(tmp_path):
    rows = [{"prompt": "ab", "n": 1, "x": 0.5, "l": [1, 2], "s": {"y": "z"}}, {"prompt": "b", "n": None}]
    parquet.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")
    missing = {"n": None, "x": None, "l": None, "s": None}
    assert values(tmp_path / "a.parquet") == [rows[0], {"prompt": "b", **missing}]


@pytest.mark.parametrize(
    ("digits", "number"),
    [
        ("0.1", 0.1),
        ("-0.0", 0.0),
        ("1.50e3", 1500.0),
        ("0e999", 0.0),
        ("0.10000000000000001", 0.1),  # 17 digits, as C writes them
        ("0.00000000000000000000000000012345678901234567", 1.2345678901234567e-28),
        ("100000000000000000000000.0", 1e23),
        ("2.2250738585072014e-308", sys.float_info.min),
        ("123456789012345678901234567890", 123456789012345678901234567890),  # an integer of any length
    ],
)
def test_numbers_that_python_holds(tmp_path, digits, number):
    [row] = values(write(tmp_path, "a.jsonl", f'{{"prompt": "a", "n": {digits}}}'))
    assert (row["n"], type(row["n"])) == (number, type(number))


JSON_ROW = '{"prompt": "a"}\n'
MALFORMED = [
    ("a.txt", b"ab\nb\xe9\n", "a.txt line 2: the text is not UTF-8: byte 0xe9 at character 1. Save the file as UTF-8"),
    ("a.txt", b"ab\nb\0\n", "a.txt line 2: the text holds a NUL character at character 1"),
    ("a.txt", "ab\n".encode("utf-16"), "a.txt line 1: the text is not UTF-8: byte 0xff at character 0"),
    ("a.txt", b"ab\n\xed\xa0\x80", "a.txt line 2: the text is not UTF-8"),  # a surrogate, which UTF-8 does not have
    ("a.txt", "ab\n?\n", "a.txt line 2: field 'prompt': no token for '?' at character 0"),
    ("a.jsonl", JSON_ROW + '{"prompt": "a"\n', "a.jsonl line 2 is not JSON"),
    ("a.jsonl", JSON_ROW + "a\n", "a.jsonl line 2 is not JSON"),
    ("a.jsonl", JSON_ROW + '{"prompt": "a"} {"prompt": "b"}\n', "a.jsonl line 2 is not JSON: Extra data"),
    ("a.jsonl", JSON_ROW + "{\"prompt\": 'a'}\n", "a.jsonl line 2 is not JSON"),
    ("a.jsonl", JSON_ROW + "[1]\n", "a.jsonl line 2 is a JSON list; give an object"),
    ("a.jsonl", JSON_ROW + "null\n", "a.jsonl line 2 is a JSON NoneType; give an object"),
    ("a.jsonl", JSON_ROW + '{"promt": "a"}\n', "a.jsonl line 2 has no field 'prompt', only ['promt']. Did you mean"),
    ("a.jsonl", JSON_ROW + '{"prompt": 3}\n', "a.jsonl line 2: field 'prompt' is 3 of type int; give a str"),
    ("a.jsonl", JSON_ROW + '{"prompt": null}\n', "a.jsonl line 2: field 'prompt' is None of type NoneType"),
    ("a.jsonl", JSON_ROW + '{"prompt": "a", "prompt": "b"}', "a.jsonl line 2 has the key 'prompt' twice"),
    ("a.jsonl", JSON_ROW + '{"prompt": "a", "n": [{"x": 1, "x": 2}]}', "line 2: field 'n' has the key 'x' twice"),
    ("a.jsonl", JSON_ROW + '{"prompt": "a", "n": [NaN]}', "a.jsonl line 2: field 'n' holds NaN, which JSON does not"),
    ("a.jsonl", JSON_ROW + '{"prompt": "a", "n": -Infinity}', "a.jsonl line 2: field 'n' holds -Infinity"),
    ("a.jsonl", JSON_ROW + '{"prompt": "a", "n": {"x": 1e999}}', "line 2: field 'n' holds '1e999', which is beyond"),
    ("a.jsonl", JSON_ROW + '{"prompt": "a", "n": -1e-999}', "line 2: field 'n' holds '-1e-999', which is beyond"),
    ("a.jsonl", JSON_ROW + '{"prompt": "a", "n": 1.2345e-320}', "field 'n' holds '1.2345e-320', which is beyond"),
    ("a.jsonl", JSON_ROW + '{"prompt": "a", "n": 123456789012345678.5}', "has more digits than a float can hold"),
    ("a.jsonl", JSON_ROW + f'{{"prompt": "a", "n": {"9" * 5000}}}', "a.jsonl line 2 is not JSON: Exceeds the limit"),
    ("a.jsonl", JSON_ROW + '{"prompt": "a", "n": ' + "[" * 100_000, "a.jsonl line 2 is nested too deeply"),
    ("a.jsonl", JSON_ROW.encode() + b'{"prompt": "\xe9"}', "a.jsonl line 2: the line is not UTF-8: byte 0xe9 at char"),
    ("a.jsonl", JSON_ROW + '{"prompt": "\0"}', "a.jsonl line 2: the line holds a NUL character at character 12"),
    ("a.jsonl", JSON_ROW + '{"prompt": "a\\ud800"}', r"line 2: field 'prompt': '\ud800' at character 1 of"),
    ("a.jsonl", JSON_ROW + '{"prompt": "a", "rng": 1}', "a.jsonl line 2: a column may not be called 'rng'"),
    ("a.jsonl", JSON_ROW + f'{{"prompt": "a", "n": "{LONG}"', "a.jsonl line 2 is not JSON"),
    ("a.jsonl", JSON_ROW + f'{{"prompt": "b{LONG[:3000]}b"}}', "a.jsonl line 2: field 'prompt' has 3002 tokens"),
    ("a.jsonl", b"\xef\xbb\xbf\n \n", "'a.jsonl' holds no rows; give at least one row with a 'prompt'"),
    ("a.csv", "prompt,n\na,1\nb\n", "a.csv line 3 has 1 fields, the header has 2: 'prompt', 'n'"),
    ("a.csv", "prompt,n\n\n\na,1,2\n", "a.csv line 4 has 3 fields, the header has 2"),
    ("a.csv", 'prompt\na\n"b\na\n', "a.csv line 3 opens a quote that nothing closes"),
    ("a.csv", 'prompt\na\n"b"a\n', "a.csv line 3 is not CSV: ',' expected after '\"'"),
    ("a.csv", 'prompt\na\n"b\nb"\n?\n', "a.csv line 5: field 'prompt': no token for '?'"),
    ("a.csv", b"prompt,n\na,\xe9\n", "a.csv line 2: field 'n' is not UTF-8: byte 0xe9 at character 0"),
    ("a.csv", b"prompt,n\na\0,1\n", "a.csv line 2: field 'prompt' holds a NUL character at character 1"),
    ("a.csv", "prompt,n,n\na,1,2\n", "'a.csv' has the column 'n' twice; give each column once"),
    ("a.csv", "Prompt,n\na,1\n", "'a.csv' has no column 'prompt', only 'Prompt', 'n'. Did you mean 'Prompt'?"),
    ("a.csv", b"prompt\xe9\na\n", "'a.csv': the column name 'prompt\\udce9' is not UTF-8"),
    ("a.csv", '"prompt\na\n', "a.csv line 1 opens a quote that nothing closes"),
    ("a.csv", "prompt,completions\na,b\n", "a.csv line 2: a column may not be called 'completions'"),
    ("a.csv", "prompt\n", "'a.csv' holds no rows"),
    ("a.csv", "", "'a.csv' holds no rows"),
    ("a.txt", "\n \n", "'a.txt' holds no rows"),
    ("a.parquet", "prompt\na\n", "'a.parquet' is not a parquet file"),
    ("a.parquet", "", "'a.parquet' is not a parquet file"),
    ("a.tsv", "prompt\na\n", "'a.tsv' is not one of the files .txt, .jsonl, .csv, .parquet"),
    ("a.json", "[]", "Did you mean '.jsonl'? To use texts directly, give a list of them"),
    ("a", "", "'a' is not one of the files"),
]


def label(value: object) -> str | None:
    return f"{value!r:.30}" if isinstance(value, str | bytes) else None


@pytest.mark.parametrize(("name", "content", "message"), MALFORMED, ids=label)
def test_a_malformed_file_is_refused_with_its_place(tmp_path, monkeypatch, name, content, message):
    monkeypatch.chdir(tmp_path)
    write(tmp_path, name, content)
    with pytest.raises((TypeError, ValueError)) as error:
        load_prompts(name, Vocabulary.from_symbols(SYMBOLS), max_tokens=3000)
    assert message in str(error.value)
    assert len(str(error.value)) < 1500
    assert str(error.value).isprintable()


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"prompt": ["a", None]}, "a.parquet[1]: field 'prompt' is None of type NoneType"),
        ({"prompt": [1, 2]}, "a.parquet[0]: field 'prompt' is 1 of type int"),
        ({"prompts": ["a"]}, "'a.parquet' has no column 'prompt', only 'prompts'. Did you mean 'prompts'?"),
        ({"prompt": ["a", "b?"]}, "a.parquet[1]: field 'prompt': no token for '?' at character 1"),
        ({"prompt": pa.array([], pa.string())}, "'a.parquet' holds no rows"),
    ],
)
def test_a_malformed_parquet_file(tmp_path, monkeypatch, table, message):
    monkeypatch.chdir(tmp_path)
    parquet.write_table(pa.table(table), "a.parquet")
    with pytest.raises((TypeError, ValueError)) as error:
        load_prompts("a.parquet", Vocabulary.from_symbols(SYMBOLS))
    assert message in str(error.value)


def test_parquet_text_that_is_not_utf_8_is_refused_alone(tmp_path):
    texts = pa.array([b"ab", b"\xe9", b"b"], pa.binary()).view(pa.string())
    parquet.write_table(pa.table({"prompt": pa.array(["a", "b", "ab"]), "n": texts}), tmp_path / "a.parquet")
    first, second, third = read_file(tmp_path / "a.parquet")
    assert (first.value, third.value) == ({"prompt": "a", "n": "ab"}, {"prompt": "ab", "n": "b"})
    assert "a.parquet[1]: field 'n' cannot be read: UnicodeDecodeError" in str(second.problem)


def test_a_damaged_parquet_file_keeps_the_rows_before_the_damage(tmp_path):
    path, half = tmp_path / "a.parquet", 4096  # rows of a group, and rows that are read together
    table = pa.table({"prompt": [f"{index:05}" for index in range(2 * half)]})
    parquet.write_table(table, path, row_group_size=half, use_dictionary=False, compression="none")
    content = path.read_bytes()
    path.write_bytes(content.replace(b"\x05\0\0\0" + b"05001", b"\xff\xff\xff\x7f" + b"05001"))
    *good, bad = read_file(path)
    assert [row.value for row in good] == [{"prompt": f"{index:05}"} for index in range(half)]
    assert "a.parquet[4096] and what follows cannot be read" in str(bad.problem)


def test_a_parquet_file_with_a_column_twice(tmp_path):
    table = pa.Table.from_arrays([pa.array(["a"]), pa.array(["b"])], names=["prompt", "prompt"])
    parquet.write_table(table, tmp_path / "a.parquet")
    with pytest.raises(ValueError, match="has the column 'prompt' twice"):
        list(read_file(tmp_path / "a.parquet"))


def test_without_pyarrow_a_parquet_file_names_the_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ImportError, match=r"pip install 'textgym\[data\]'"):
        list(read_file(write(tmp_path, "a.parquet", "")))


def test_no_file(tmp_path):
    write(tmp_path, "prompts.jsonl", JSON_ROW)
    with pytest.raises(FileNotFoundError, match=r"no file '.*promts\.jsonl'\. Did you mean 'prompts\.jsonl'\?"):
        list(read_file(tmp_path / "promts.jsonl"))
    with pytest.raises(FileNotFoundError, match="no file 'nowhere/a.csv'"):
        list(read_file(Path("nowhere/a.csv")))
    (tmp_path / "folder.csv").mkdir()
    for folder in (tmp_path, tmp_path / "folder.csv"):
        with pytest.raises(ValueError, match="is a folder; give a file"):
            list(read_file(folder))


@pytest.mark.parametrize("suffix", ["txt", "jsonl", "csv"])
def test_a_field_of_ten_megabytes_is_read_and_no_global_limit_changes(tmp_path, suffix):
    before = csv.field_size_limit()
    lines = {"txt": ["b", LONG], "jsonl": [json.dumps({"prompt": text}) for text in ("b", LONG)]}
    rows = values(write(tmp_path, f"a.{suffix}", "\n".join(lines.get(suffix, ["prompt", "b", LONG]))))
    assert [row if suffix == "txt" else row["prompt"] for row in rows] == ["b", LONG]
    for _ in read_file(tmp_path / f"a.{suffix}"):
        assert csv.field_size_limit() == before  # between two rows too
    assert csv.field_size_limit() == before


@pytest.mark.parametrize(
    ("name", "content", "bad"),
    [
        ("a.txt", b"a\n\xe9\nb\n\0\n", [2, 4]),
        ("a.jsonl", b'{"prompt": "a"}\n{\n{"prompt": "\xe9"}\n{"prompt": "b"}\n[]\n{"x": NaN}\n', [2, 3, 5, 6]),
        ("a.csv", b'prompt,n\na,1\nb\n"a"b,1\na,\xe9\nb,2\n\n"b\n', [3, 4, 5, 8]),
    ],
)
def test_a_reader_goes_on_after_a_bad_row(tmp_path, monkeypatch, name, content, bad):
    monkeypatch.chdir(tmp_path)
    rows = list(read_file(write(tmp_path, name, content).relative_to(tmp_path)))
    problems = [row for row in rows if row.problem is not None]
    assert [row.place for row in problems] == [f"{name} line {number}" for number in bad]
    assert all(str(row.problem).startswith(row.place) for row in problems)
    good = [row.value if isinstance(row.value, str) else row.value["prompt"] for row in rows if row.problem is None]
    assert good == ["a", "b"]


def test_a_hostile_file_name_is_escaped(tmp_path):
    path = write(tmp_path, "\x1b[31m\u202e.txt", b"\xe9\n")
    [row] = read_file(path)
    assert isinstance(row, Row)
    assert str(row.problem).isprintable()
