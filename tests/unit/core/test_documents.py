"""A file that a person wrote is read as plain values, or refused with the place of its fault; never a traceback."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from pal_dist.core import documents
from pal_dist.core.documents import brief, load_json, load_mapping, load_yaml, there_is
from pal_dist.core.errors import UserError

ALIASES = "\n".join(f"v{n}: &v{n} [{', '.join([f'*v{n - 1}' if n else 'x'] * 10)}]" for n in range(10))
"""Ten lines that say ten billion values."""

BAD_YAML = {
    "5: 6": "line 1, column 1: the key 5 is no name",
    "true: 6": "the key True is no name",
    "? [a]\n: 3": "the key .'a'. is no name",
    "a: 1\nb: 2\na: 3": "line 3, column 1: 'a' stands twice",
    "s: {a: 1, a: 2}": "'a' stands twice",
    "a: " + "9" * 400: "the whole number 9+...9+ is too large; at most 9,223,372,036,854,775,807",
    "a: " + "9" * 5000: "line 1, column 4: '9+...9+' is no whole number that can be read",
    "a: !!int x": "'x' is no whole number",
    "a: !!bool x": "'x' is no boolean",
    "a: !!float ''": "'' is no number",
    "a: !!timestamp 2020-13-45": "line 1, column 4: the tag .* has no meaning here",
    "a: !!binary x": "the tag .* has no meaning here",
    "a: !python/none x": "the tag .* has no meaning here",
    "[" * 3000: "too deep",
    "a: " + "[" * 60 + "]" * 60: "too deep",
    "a: &x [*x]": "recursive",
    ALIASES: "at most 100,000 values",
    ":\n:": "line 1, column 1",
    "\ta: 1": "line 1, column 1",
    "a: 1\n--- \nb: 2": "another document",
    'a: "\\0"': "NUL",
    'a: "\\ud800"': "surrogate",
    "a: \x01": "not readable as yaml",
}

BAD_JSON = {
    '{"a": 1, "a": 2}': "'a' stands twice",
    '{"a": %s}' % ("9" * 400): "is too large",
    '{"a": %s}' % ("9" * 5000): "is too large",
    "[" * 100_000: "too deep",
    "[" * 60 + "]" * 60: "too deep",
    '{"a": "\\ud800"}': "surrogate",
    '{"a": "\\u0000"}': "NUL",
    '{"a": 1': "line 1, column 8",
    "": "line 1, column 1",
    "{a: 1}": "line 1, column 2",
}


@pytest.mark.parametrize(("text", "says"), BAD_YAML.items(), ids=range(len(BAD_YAML)))
def test_yaml_that_is_refused(text: str, says: str, tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_text(text)
    with pytest.raises(UserError, match=says) as caught:
        load_yaml(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize(("text", "says"), BAD_JSON.items(), ids=range(len(BAD_JSON)))
def test_json_that_is_refused(text: str, says: str, tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text(text)
    with pytest.raises(UserError, match=says) as caught:
        load_json(path, where="--config a")
    assert str(caught.value).startswith("--config a: ")
    assert len(str(caught.value)) < 400


def test_yaml_says_what_it_looks_like(tmp_path: Path) -> None:
    """Version 1.1 makes a boolean, 8, 750, a date and 1000 of some of these."""
    path = tmp_path / "a.yaml"
    path.write_text("a: [no, yes, on, 010, 12:30, 2020-13-45, 1_000, 1e-3, 3, -2, 0.5, .inf, true, null, ~]\nb:\n")
    content = load_yaml(path)
    texts = ["no", "yes", "on", "010", "12:30", "2020-13-45", "1_000"]
    assert content == {"a": [*texts, 1e-3, 3, -2, 0.5, math.inf, True, None, None], "b": None}
    path.write_text("a: &x {b: 1}\nc: *x\n")
    assert load_yaml(path) == {"a": {"b": 1}, "c": {"b": 1}}
    path.write_text("")
    assert load_yaml(path) is None


@pytest.mark.parametrize("load", [load_yaml, load_json, load_mapping])
def test_what_is_no_text_file(load: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert callable(load)
    (tmp_path / "folder.yaml").mkdir()
    (tmp_path / "latin").write_bytes(b"a: b\nc: caf\xe9\n")
    (tmp_path / "large").write_bytes(b"#" * 101)
    monkeypatch.setattr(documents, "LARGEST_FILE", 100)
    for name, says in {
        "folder.yaml": "expected a file, found a folder",
        "latin": "line 2: expected text in UTF-8, found the byte 0xe9",
        "large": "more than 100 bytes",
        "nowhere": "there is no such file",
        "x" * 3000: "not readable: File name too long",
        "a\0b": "there is no such file",
    }.items():
        with pytest.raises(UserError, match=says):
            load(tmp_path / name)


def test_a_byte_order_mark_is_no_content(tmp_path: Path) -> None:
    for name in ("a.yaml", "a.json"):
        (tmp_path / name).write_bytes(b'\xef\xbb\xbf{"a": 1}')
        assert load_mapping(tmp_path / name) == {"a": 1}
    (tmp_path / "a.json").write_text("[1]")
    with pytest.raises(UserError, match=r"expected `name: value` pairs, found \[1\]"):
        load_mapping(tmp_path / "a.json")


def test_there_is_no_file_of_an_impossible_name(tmp_path: Path) -> None:
    (tmp_path / "a").touch()
    assert there_is(tmp_path / "a")
    assert not any(there_is(tmp_path / name) for name in ("b", "x" * 3000, "a\0b"))


def test_a_quoted_value_is_brief() -> None:
    for value in (10**5000, "x" * 9999, list(range(9999)), {"a": {"b": {"c": {"d": [1] * 99}}}}):
        assert len(brief(value)) < 120
