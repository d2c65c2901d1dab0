"""Encodings of tables: known ones are told apart, doubtful ones are told or refused, and the schema decides."""

from __future__ import annotations

import importlib.util
import time

import pytest

from fashion_jax.data.encodings import decode_text
from fashion_jax.system.errors import UserError

WORDS = {
    "cp1252": "bleu marine,écru,crème,à carreaux,grün,weiß,Größe",
    "cp1250": "červená,žlutá,růžová,światło,żółty,różowy",
    "cp1251": "красный,чёрный,футболка,платье,жёлтый",
    "koi8-r": "красный,чёрный,футболка,платье,жёлтый",
    "gb18030": "红色,蓝色,黑色,白色,连衣裙,牛仔裤,绿色,女装",
    "shift_jis": "シャツ,ワンピース,紺,スカート,長袖",
    "euc_kr": "셔츠,검정,원피스,신발,회색",
    "big5": "黑色,襯衫,連身裙,牛仔褲,外套",
    "cp1253": "κόκκινο,μπλε,μαύρο,φόρεμα",
    "cp1254": "kırmızı,yeşil,gömlek,ayakkabı,çocuk",
    "cp1255": "אדום,כחול,שחור,שמלה",
    "cp874": "สีแดง,สีน้ำเงิน,กางเกง,รองเท้า",
    "mac-roman": "écru,crème,rayé,grün,weiß,Größe",
}


def table(words: str) -> str:
    return "file,colour\n" + "".join(f"p/{i}.jpg,{word}\n" for i, word in enumerate([*words.split(","), "red"] * 3))


@pytest.mark.skipif(not importlib.util.find_spec("chardet"), reason="chardet ranks the readings")
@pytest.mark.parametrize("encoding", WORDS)
def test_usual_encodings_are_told_apart(encoding):
    text = table(WORDS[encoding])
    found = decode_text("t.csv", text.encode(encoding))
    assert found.text == text
    assert found.is_guess
    assert found.words[0] in text and not found.words[0].isascii()


@pytest.mark.parametrize(
    ("codec", "mark", "name"),
    [
        ("utf-8", b"", "UTF-8"), ("utf-8", b"\xef\xbb\xbf", "UTF-8"), ("utf-16-le", b"\xff\xfe", "UTF-16"),
        ("utf-16-be", b"\xfe\xff", "UTF-16"), ("utf-16-le", b"", "UTF-16-LE"), ("utf-16-be", b"", "UTF-16-BE"),
        ("utf-32-le", b"\xff\xfe\0\0", "UTF-32"),
    ],
)  # fmt: skip
def test_unicode_is_found_and_no_guess(codec, mark, name):
    for words in WORDS.values():
        found = decode_text("t.csv", mark + table(words).encode(codec))
        assert (found.text, found.encoding, found.is_guess) == (table(words), name, False)
        assert found.words[0] in words.replace(" ", ",").split(",")


def test_an_encoding_that_cannot_be_told_is_refused_with_its_readings():
    with pytest.raises(UserError, match=r'cannot be told.*赤.*"cp932".*the key "encoding"'):
        decode_text("t.csv", table("赤").encode("shift_jis"))


def test_a_latin_guess_that_is_close_to_another_is_told():
    found = decode_text("t.csv", table("crème,café").encode("cp1252"))
    assert found.text == table("crème,café")
    assert "crčme" in found.other


def test_the_schema_decides():
    assert decode_text("t.csv", table("赤").encode("shift_jis"), "Shift_JIS").text == table("赤")
    assert decode_text("t.csv", b"\xef\xbb\xbfa", "utf-8").text == "a"
    for encoding, message in (
        ("klingon", "not a known"),
        ("zlib", "not a known"),
        ("ascii", "not written in"),
        ("a\0b", "not a known"),
    ):
        with pytest.raises(UserError, match=message):
            decode_text("t.csv", table("赤").encode("shift_jis"), encoding)


def test_a_damaged_letter_does_not_make_utf_8_another_encoding():
    data = table("écru,crème,rayé").encode() * 5
    found = decode_text("t.csv", data.replace(b"\xc3\xa9cru", b"\xc3cru", 1))
    assert found.encoding == "UTF-8"
    assert found.repairs == (("letters that are damaged UTF-8, read as \ufffd", 1),)


@pytest.mark.skipif(not importlib.util.find_spec("chardet"), reason="chardet ranks the readings")
@pytest.mark.parametrize(
    ("words", "encoding"),
    [
        ("12€,40€,7€,99€,5€", "cp1252"), ("12 €,7 €", "cp1252"), ("£12,£ 7.50,£9", "cp1252"), ("¥100,¥ 20", "cp1252"),
        ("grün,12€,40€,7€,99€,5€,6€,8€,9€,10€,11€,14€", "cp1252"), ("MARRÓN,AÑIL", "cp1252"), ("AÑIL", "cp1252"),
        ("GRÜN,WEISS,HELLGRÜN", "cp1252"), ("MARRÓN,12€,AÑIL,40 €", "cp1252"), ("FONCÉ,ÉCRU,CRÈME", "cp1252"),
        ("2024 г.,5 г.,футболка,платье,жёлтый,красный,чёрный", "cp866"),
        ("12€,40€,красный,чёрный,футболка,платье", "cp1251"), ("T恤,POLO衫,V领,A字裙,XL码,红色,蓝色,黑色", "gb18030"),
    ],
)  # fmt: skip
def test_currencies_and_capitals_decide(words, encoding):
    assert decode_text("t.csv", table(words).encode(encoding)).text == table(words)


@pytest.mark.parametrize("letter", ["é", "日"])
@pytest.mark.parametrize("encoding", ["utf-8", "cp1252", "utf-16"])
def test_long_words_take_no_time(letter, encoding):
    data = "\n".join(["aGVsbG8/" * 20_000] * 20) + "\n" + (letter + "bc") * 3
    try:
        started = time.process_time()
        found = decode_text("t.csv", data.encode(encoding))
    except (UserError, UnicodeEncodeError):
        return
    finally:
        assert time.process_time() - started < 5
    assert found.words == ((letter + "bc") * 3,)


def test_a_word_is_shown_around_its_first_letter_that_is_not_ascii():
    for text, word in (
        ("x" * 99 + "é" + "y" * 99, "x" * 40),
        ("red,aé|b", "aé"),
        ('"é"', "é"),
        ("crème brûlée", "crème"),
    ):
        assert decode_text("t.csv", text.encode()).words[0] == word
