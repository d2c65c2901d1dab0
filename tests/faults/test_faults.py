"""The short form of the fault tests: some damage of every kind, kills and troubles. `make faults` is the long form."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from faults.__main__ import Expected, Trials, format_bad, judge, run_kills, run_troubles
from faults.damage import WAYS, Case, Stored, apply, list_files
from faults.kinds import KINDS, NOT_VERIFIED

SEED = 1
KINDS_AT_ONCE = 2


@pytest.fixture(scope="session")
def things(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("faults") / "things"


@pytest.fixture
def trials(things):
    things.mkdir(exist_ok=True)
    trials = Trials(things, SEED, KINDS_AT_ONCE)
    yield trials
    trials.close()


@pytest.mark.slow
def test_damage_is_refused_mended_or_without_effect(trials, things):
    trials.make(list(KINDS))
    outcomes = trials.run({name: max(2, kind.share // 30) for name, kind in KINDS.items()})
    assert not format_bad(outcomes, things, SEED)
    assert {one.kind for one in outcomes} == set(KINDS) and len({one.case.way for one in outcomes}) > len(WAYS) // 2


@pytest.mark.slow
def test_killed_writers_lose_nothing(trials, things, tmp_path):
    trials.make(["records", "package"])
    assert not run_kills(things, tmp_path, 1, SEED)[1]


@pytest.mark.slow
def test_writers_in_trouble_say_so(trials, things, tmp_path):
    trials.make(["records", "package"])
    assert not run_troubles(things, tmp_path, ["prepare", "index update"])[1]


@pytest.mark.parametrize("way", WAYS)
def test_every_way_of_damage_changes_the_thing(tmp_path, way):
    """Damage without effect would make every promise look kept."""
    text = b'{"a": [1, 2], "b": "c",\n"digest": "%s",\n"d": 5}\n'
    lines = "".join(f"line {n}\n" for n in range(9)).encode()
    for folder, middle in (("copy", lines), ("twin", lines.replace(b"line", b"row"))):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "lines.txt").write_bytes(middle)
        inner = b'{"x": 1, "y": "%s"}' % folder.encode()
        (tmp_path / folder / "inner.json").write_bytes(inner)
        (tmp_path / folder / "outer.json").write_bytes(text % hashlib.sha256(inner).hexdigest().encode())
    before = {name: (tmp_path / "copy" / name).read_bytes() for name in list_files(tmp_path / "copy")}
    file = "lines.txt" if "record" in way else "inner.json"
    stored = Stored(tmp_path / "copy", tmp_path / "twin", {})
    damage = next(filter(None, (apply(Case(n, file, way), stored, SEED, "test") for n in range(9))), None)
    after = {name: (tmp_path / "copy" / name).read_bytes() for name in list_files(tmp_path / "copy")}
    assert damage and before != after
    if way.endswith("signed"):  # the other file holds the new digest
        assert hashlib.sha256(after["inner.json"]).hexdigest() in after["outer.json"].decode()
    else:
        assert before["outer.json"] == after["outer.json"]


@pytest.mark.parametrize(
    ("answer", "end"),
    [
        ({"end": "result", "parts": {"a": "1"}, "said": ""}, "right"),
        ({"end": "result", "parts": {"a": "1"}, "said": "made anew\n"}, "mended"),
        ({"end": "result", "parts": {"a": "0"}, "said": "an earlier one is taken\n"}, "mended"),
        ({"end": "result", "parts": {"a": "0"}, "said": ""}, "silent"),
        ({"end": "result", "parts": {"a": "2"}, "said": "something\n"}, "silent"),
        ({"end": "result", "parts": {}, "said": "something\n"}, "silent"),
        ({"end": "refused", "parts": {}, "said": "error: /x/f.json is damaged\n"}, "refused"),
        ({"end": "refused", "parts": {}, "said": "error: /x/f.json is damaged (zlib error: -3)\n"}, "refused"),
        ({"end": "refused", "parts": {}, "said": "error: it is damaged\n"}, "unnamed"),
        ({"end": "refused", "parts": {}, "said": f"{NOT_VERIFIED}\nerror: /x/f.json is damaged\n"}, "silent"),
        ({"end": "refused", "parts": {}, "said": "Traceback (most recent call last)\nerror: /x/f.json\n"}, "traceback"),
        ({"end": "raised", "parts": {}, "said": ""}, "traceback"),
        ({"end": "died", "parts": {}, "said": ""}, "traceback"),
        ({"end": "hang", "parts": {}, "said": ""}, "hang"),
        ({"end": "result", "parts": {"a": "1"}, "said": "", "code": True}, "code"),
    ],
)
def test_ends_are_told_apart(answer, end):
    expected = Expected({"a": "1"}, [{"a": "0"}], frozenset())
    assert judge(KINDS["records"], Case(0, "f.json", "flip"), answer, expected, Path("/x")) == end


def test_a_signed_edit_and_an_unchecked_format_may_give_another_result():
    other = {"end": "result", "parts": {"a": "2"}, "said": ""}
    expected = Expected({"a": "1"}, [], frozenset())
    assert judge(KINDS["records"], Case(0, "f.json", "edit, signed"), other, expected, Path("/x")) == "signed"
    assert judge(KINDS["source tar"], Case(0, "shop.tar", "flip"), other, expected, Path("/x")) == "unchecked"
