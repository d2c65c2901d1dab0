"""Makes text of a table's bytes, and says in which encoding they were written and how sure that is."""

from __future__ import annotations

import codecs
import functools
import math
import re
import unicodedata
from dataclasses import dataclass

from fashion_jax.system.errors import UserError

# The encodings that are told apart, the likeliest first. A superset stands for its subsets: Windows-1252 for
# ISO-8859-1, cp949 for EUC-KR, GB18030 for GBK.
_CANDIDATES = {
    "cp1252": "Windows-1252 (Western Europe)",
    "cp1250": "Windows-1250 (Central Europe)",
    "cp1251": "Windows-1251 (Cyrillic)",
    "gb18030": "GB18030 (Chinese)",
    "cp932": "Shift-JIS (Japanese)",
    "cp949": "EUC-KR (Korean)",
    "big5": "Big5 (Chinese)",
    "euc-jp": "EUC-JP (Japanese)",
    "cp1254": "Windows-1254 (Turkish)",
    "cp1253": "Windows-1253 (Greek)",
    "cp1257": "Windows-1257 (Baltic)",
    "cp1255": "Windows-1255 (Hebrew)",
    "cp1256": "Windows-1256 (Arabic)",
    "cp874": "Windows-874 (Thai)",
    "koi8-r": "KOI8-R (Cyrillic)",
    "iso-8859-2": "ISO-8859-2 (Central Europe)",
    "cp866": "CP866 (Cyrillic, DOS)",
    "mac-roman": "Mac Roman",
    "cp850": "CP850 (Western Europe, DOS)",
    "cp852": "CP852 (Central Europe, DOS)",
}
_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"), (codecs.BOM_UTF32_LE, "utf-32"), (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"), (codecs.BOM_UTF16_BE, "utf-16"),
)  # fmt: skip
# What follows the first sign of a word that is not ASCII, and what may stand before it.
_WORD_BYTES, _BEFORE_BYTES = re.compile(rb"[\x80-\xff][^\x00-\x20,;|\"]*"), re.compile(rb"[^\x00-\x20,;|\"]*\Z")
_WORD, _BEFORE = re.compile(r"[^\x00-\x7f][^\x00-\x20,;|\"]*"), re.compile(r"[^\x00-\x20,;|\"]*\Z")
_ASCII = bytes(range(128))
_LONGEST_ASCII = 40  # characters of a word before and after its others; some words are files in base64
_MOST_WORDS, _MOST_BYTES = 2000, 500_000  # different words that a guess looks at
# Signs that are a currency beside a number, and words in capitals, in the encodings of Western Europe.
_MONEY = re.compile(
    rb"(?<=\d)[ \xa0]?([\x80\xa3\xa5])(?![\w\x80-\xff])|(?<![\w\x80-\xff])([\x80\xa3\xa5])[ \xa0]?(?=\d)"
)
_PRICE = re.compile(rb"[^A-Za-z\x80-\xff]*[\x80\xa3\xa5][^A-Za-z\x80-\xff]*")
_CAPITALS = re.compile(
    rb"(?:[^a-z\x80-\xff]|(?<![\x80-\xff])[\xc0-\xd6\xd8-\xde](?=[A-Z .'-]|\Z)"
    rb"|(?<![A-Z\x80-\xff])[\x80\xa3\xa5](?![A-Z\x80-\xff]))*"
)
_WINDOWS = {"cp1252", "cp1250", "cp1254", "cp1257"}  # the encodings that write the Latin alphabet with these capitals
_SAMPLE = 5  # words that are shown
_BAD_SHARE = 0.1  # share of impossible words from which an encoding is none of the possible ones
_CLEAR = 1.5, 2.0  # how much likelier the best reading must be than the next: within the Latin alphabet, and elsewhere
_PROVE_NOTHING, _PROVE_LITTLE = 4, 6  # fewer different letters than these prove nothing, or little, about an alphabet
_CLEAR_OF_FEW = 4.0  # how much likelier the best reading of so few letters must be
_SIGNS = set("©®™°€£¥§«»‹›“”„‘’‚–—…•·½¼¾²³¹±×´¨¿¡ªº№¢†‡‰¸")
_SIGN_IN_WORD = re.compile(r"[^\W\d_][¹²³¼½¾§£¥¢¿¡¨¸¬¦¤±©®][^\W\d_]|(?:^|(?<=[^\w]))[¹²³][^\W\d_]")
_EAST_ASIAN = ("CJK", "HIRAGANA", "KATAKANA", "HANGUL", "KATAKANA-HIRAGANA", "HALFWIDTH", "FULLWIDTH", "IDEOGRAPHIC")


@dataclass(frozen=True, slots=True)
class Text:
    """A text that was made of bytes."""

    text: str
    encoding: str  # its name for people, such as "UTF-8" or "Windows-1252 (Western Europe)"
    words: tuple[str, ...] = ()  # the first words that are not ASCII, at most five
    is_guess: bool = False  # whether the encoding was told from the words alone
    other: str = ""  # another reading of the words that is nearly as likely, in words for people
    repairs: tuple[tuple[str, int], ...] = ()  # (name of a repair, how often)


def decode_text(name: str, data: bytes, encoding: str = "") -> Text:
    """Returns a file's text.

    A byte-order mark, valid UTF-8, and the zero bytes of UTF-16 decide. Other texts are read in the encoding that fits
    their words; a text that fits several scripts equally well is refused.

    Args:
        name: of the file, for messages.
        data: its bytes.
        encoding: of the schema; empty: it is found.

    Raises:
        UserError: the encoding is unknown or does not fit, or it cannot be told.
    """
    if encoding:
        return _decode_as(name, data, encoding)
    for mark, codec in _MARKS:
        if data.startswith(mark):
            text = data.decode(codec, errors="replace")
            return Text(text, codec.upper().removesuffix("-SIG"), _sample(text), repairs=(("byte-order mark", 1),))
    wide = _find_wide(data)
    if wide:
        text = data.decode(wide, errors="replace")
        return Text(text, wide.upper(), _sample(text), repairs=((f"{wide.upper()} without a byte-order mark", 1),))
    if data.isascii():
        return Text(data.decode("ascii"), "UTF-8")
    try:
        text = data.decode("utf-8")
        return Text(text, "UTF-8", _sample(text))
    except UnicodeDecodeError:
        pass
    text = data.decode("utf-8", errors="replace")
    broken, whole = text.count("\ufffd"), len(re.findall(r"[^\x00-\x7f\ufffd]", text))
    if broken * 20 <= whole:  # UTF-8 with damaged places, as where an export was cut within a letter
        return Text(text, "UTF-8", _sample(text), repairs=(("letters that are damaged UTF-8, read as \ufffd", broken),))
    return _guess(name, data)


def _decode_as(name: str, data: bytes, encoding: str) -> Text:
    try:
        text = data.decode(encoding).removeprefix("\ufeff")
    except UnicodeError as error:
        raise UserError(
            f'{name} is not written in the schema\'s encoding {encoding!r} ({error}); correct the key "encoding", or '
            "remove it to have the encoding found"
        ) from error
    except Exception as error:  # codecs raise whatever they like
        raise UserError(f"the schema's encoding {encoding!r} is not a known text encoding; {_examples()}") from error
    return Text(text, encoding, _sample(text))


def _find_wide(data: bytes) -> str:
    """Returns the UTF-16 that a text without a mark is written in, or "". Every ASCII letter then has a zero byte."""
    start = data[:65536]
    even, odd = start[::2].count(0), start[1::2].count(0)
    few = len(start) // 20
    if odd > few and odd > 20 * even:
        return "utf-16-le"
    return "utf-16-be" if even > few and even > 20 * odd else ""


def _sample(text: str) -> tuple[str, ...]:
    found: dict[str, None] = {}
    if not text.isascii():
        for match in _WORD.finditer(text):
            before = _BEFORE.search(text[max(match.start() - _LONGEST_ASCII, 0) : match.start()])
            found[((before.group() if before else "") + match.group()[:_LONGEST_ASCII])[:40]] = None
            if len(found) == _SAMPLE:
                break
    return tuple(found)


def _guess(name: str, data: bytes) -> Text:
    sample, money = _find_words(data)
    readings: dict[str, str] = {}  # text of the words -> the first encoding that gives it
    likely = set()
    for codec in _CANDIDATES:
        try:
            text = sample.decode(codec)
            data.decode(codec)
        except UnicodeDecodeError:
            continue
        parts = text.split(" ")
        if sum(map(_is_impossible, parts)) <= _BAD_SHARE * len(parts):
            readings.setdefault(text, codec)
            if all(unicodedata.category(sign.decode(codec, "replace")[:1]) == "Sc" for sign in money):
                likely.add(text)
    if "cp1252" in readings.values() and _CAPITALS.fullmatch(sample):
        likely = {text for text in likely if readings[text] in _WINDOWS}
    readings = {text: codec for text, codec in readings.items() if text in likely} or readings
    ranked = _rank(sample, readings)
    if not ranked:
        raise UserError(
            f"the encoding of {name} cannot be told: {_show(sample.decode('latin-1'))} fits none of those that are "
            f"known; {_way_out()}"
        )
    best, *others = ranked
    text = data.decode(best[1])
    latin = [item for item in others if _is_latin(item[2]) and _is_latin(best[2])]
    letters = len({letter for letter in best[2] if not letter.isascii()})
    clear = math.inf if letters < _PROVE_NOTHING else _CLEAR_OF_FEW if letters < _PROVE_LITTLE else _CLEAR[1]
    doubtful = [item for item in others if item not in latin and (item[0] or 1e-9) * clear >= best[0]]
    if doubtful:
        shown = "; ".join(f'{_show(words)} with "{codec}"' for _, codec, words in [best, *doubtful][:3])
        raise UserError(f"the encoding of {name} cannot be told: its words are {shown}; {_way_out()}")
    close = next((item for item in latin if item[0] * _CLEAR[0] >= best[0]), None)
    other = f"{_CANDIDATES[close[1]]}: {_show(_differing(close[2], best[2]))}" if close else ""
    repair = f"not UTF-8, read as {_CANDIDATES[best[1]]}"
    return Text(text, _CANDIDATES[best[1]], _sample(text), is_guess=True, other=other, repairs=((repair, 1),))


def _find_words(data: bytes) -> tuple[bytes, set[bytes]]:
    """Returns different words that are not ASCII, joined by spaces, and the signs that look like a currency."""
    words: dict[bytes, bool] = {}  # word -> whether it is a price at most
    size = 0
    for match in _WORD_BYTES.finditer(data):
        before = _BEFORE_BYTES.search(data[max(match.start() - _LONGEST_ASCII, 0) : match.start()])
        end = len(match.group().rstrip(_ASCII)) + _LONGEST_ASCII
        word = (before.group() if before else b"") + match.group()[:end]
        if word not in words:
            size += len(word)
            words[word] = _PRICE.fullmatch(word) is not None
            if len(words) == _MOST_WORDS or size > _MOST_BYTES:
                break
    chosen = [word for word, is_price in words.items() if not is_price] or words
    return b" ".join(chosen), {one or two for one, two in _MONEY.findall(data)}


def _rank(sample: bytes, readings: dict[str, str]) -> list[tuple[float, str, str]]:
    """Returns (score, encoding, words) of every reading, the likeliest first."""
    if len(readings) < 2:
        return [(1.0, codec, text) for text, codec in readings.items()]
    try:
        import chardet
    except ImportError:  # All readings are then equally likely, so that only Latin ones are read.
        found = []
    else:
        found = chardet.detect_all(sample, ignore_threshold=True, include_encodings=list(_CANDIDATES))
    scores: dict[str, float] = {}
    for item in found:
        if item["encoding"]:
            text = sample.decode(item["encoding"], errors="replace")
            scores[text] = max(scores.get(text, 0.0), item["confidence"])
    top = max(scores.get(text, 0.0) for text in readings)
    # Of nearly equal readings, that in Windows-1252 is the likeliest, because most files are written in it.
    return sorted(
        ((scores.get(text, 0.0) + (0.15 * top if codec == "cp1252" else 0), codec, text)
         for text, codec in readings.items()), key=lambda item: -item[0],
    )  # fmt: skip


def _is_impossible(word: str) -> bool:
    """True for a word that nobody writes: two alphabets, control signs, or a capital after a small letter."""
    if _SIGN_IN_WORD.search(word):
        return True
    run, before, scripts = 0, "", set()
    for letter in word:
        if letter.isascii():
            script = "LATIN" if letter.isalpha() else ""
            run = 0
        elif letter.isalpha() or unicodedata.category(letter) in ("Mn", "Mc"):
            script = _script(letter)
            run += script == "LATIN"
        else:
            if letter not in _SIGNS and not letter.isspace() and unicodedata.category(letter) not in ("Po", "Pd"):
                return True
            script, run = "", 0
        if script in _EAST_ASIAN:
            if before.isascii() and before.islower():
                return True
        elif script:
            scripts.add(script)
        if run >= 4 or len(scripts) > 1 or (not letter.isascii() and letter.isupper() and before.islower()):
            return True
        if letter.islower() and letter.isascii() and before and not before.isascii() and _script(before) in _EAST_ASIAN:
            return True
        before = letter
    return False


@functools.cache
def _script(letter: str) -> str:
    return unicodedata.name(letter, "").split(" ")[0]


def _is_latin(text: str) -> bool:
    return all(_script(letter) == "LATIN" for letter in text if letter.isalpha() and letter not in "ªº")


def _differing(words: str, others: str) -> str:
    """Returns the words of one reading that another reading has differently."""
    pairs = zip(words.split(" "), others.split(" "), strict=False)
    return " ".join(one for one, two in pairs if one != two)


def _show(words: str) -> str:
    return ", ".join(repr(word[:20]) for word in words.split(" ")[:3])


def _examples() -> str:
    return 'examples are "utf-8", "cp1252", "cp1251", "gb18030", "shift_jis" and "euc_kr"'


def _way_out() -> str:
    return (
        'save the table as UTF-8 ("CSV UTF-8" in a spreadsheet), or name its encoding under the key "encoding" of a '
        f"schema.json; {_examples()}"
    )
