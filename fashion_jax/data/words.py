"""Labels as people type them: cleaned, compared with each other, and taken as missing."""

from __future__ import annotations

import json
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

import pandas as pd

# Signs without width: spaces and joints, marks of direction, the soft hyphen, and control signs. The joiners U+200C and
# U+200D stay, because Persian and Indian scripts spell with them.
_INVISIBLE = re.compile(
    "[\u200b\u200e\u200f\u202a-\u202e\u2060-\u2064\u2066-\u2069\ufeff\u00ad\u034f\u180e\u0000-\u0008\u000e-\u001b\u007f-\u0084\u0086-\u009f]"
)
_DASHES = re.compile("[\u2010-\u2015\u2212\ufe58\ufe63\uff0d]")
# What two spellings of one class may differ in: separators that do not stand between two digits, as in "36-38".
_SEPARATORS = re.compile(r"(?<!\d)[\s\-_'’`´.\u200c\u200d]+|[\s\-_'’`´.\u200c\u200d]+(?!\d)")
# What spreadsheets show where a formula failed, in several languages.
_FORMULA_ERROR = re.compile(
    "#[¡]?(?:REF|BEZUG|RIF|VALUE|WERT|VALEUR|VALOR|VALORE|DIV/0|NAME|NOM|NOMBRE|NOME|NULL|NUL|NUM|ZAHL|N/A|NV|N/D|SPILL|"
    "CALC|ССЫЛКА|ЗНАЧ|ДЕЛ/0|ИМЯ|Н/Д)[!?]?"
)
# Words that mostly say that nobody knows the label, and after which the name of the attribute may stand ("sin color").
_SUSPECTED = set(
    (
        "unknown|unk|not known|unspecified|not specified|none specified|not available|not provided|not set|"
        "not given|undefined|undetermined|missing|empty|blank|void|nil|no data|no value|no info|no information|"
        "tbd|tba|tbc|todo|n/d|nd|n.d.|s/d|n/s|unbekannt|nicht bekannt|nicht angegeben|nicht verfügbar|keine|"
        "keine angabe|keine angaben|k.a.|k. a.|ohne angabe|fehlt|inconnu|inconnue|non renseigné|non précisé|"
        "non spécifié|non défini|non disponible|n.c.|nc|desconocido|desconocida|sin datos|sin especificar|"
        "sin definir|no especificado|no definido|no disponible|desconhecido|não informado|não especificado|"
        "sem informação|sconosciuto|non specificato|non definito|onbekend|niet bekend|niet opgegeven|n.v.t.|"
        "okänd|ukjent|ukendt|tuntematon|nieznany|brak|brak danych|nie podano|neznámý|neuvedeno|ismeretlen|"
        "necunoscut|bilinmiyor|belirtilmemiş|нет|нет данных|неизвестно|неизвестный|не указано|не указан|"
        "не указана|не определено|невідомо|немає даних|άγνωστο|غير معروف|לא ידוע|未知|不明|不详|未填|未填写|暂无|"
        "无|無|なし|無し|未設定|未定|不詳|미상|미정|없음|알 수 없음|ไม่ระบุ|không rõ|sin color|no color|"
        "no colour|ohne farbe|sans couleur"
    ).split("|")
)
_WITHOUT = {"no", "without", "sin", "sans", "ohne", "senza", "sem", "bez", "без", "zonder"}
_DEFAULT_MISSING = {"na", "n/a", "nan", "null", "none"}
# Letters of other alphabets that look like Latin ones, and words and signs for "and".
_DOUBLES = str.maketrans("авекмнорстухіјѕɑοαβενκρτυχι", "abekmhopctyxijsaoabevkptuxi")
_ACCENTS = re.compile("(?<=[a-z])[\u0300-\u036f]+")
_AND = re.compile(r"(?<=[^\W\d_])(?:\s*[&+/]\s*|\s+(?:and|und|et|y|e|en|och|og|i|и)\s+)(?=[^\W\d_])")
_NOTABLE_SHARE = 0.02  # share of the rows from which a word that was taken as missing may be a class
_NOTABLE_ROWS = 3
_FEW_DIGITS = 10


def clean_label(text: str) -> tuple[str, tuple[str, ...]]:
    """Returns a label in its usual form, and the names of the repairs that it needed.

    The usual form has single spaces, "-" for every dash, no signs without width, and Unicode's composed letters (NFC).
    Letters' case and hyphens are kept.
    """
    repairs = []
    label = text
    if not text.isascii() or _INVISIBLE.search(text):
        for name, change in (
            ("labels with invisible signs", lambda t: _INVISIBLE.sub("", t)),
            ("labels with letters in two parts (not NFC)", lambda t: unicodedata.normalize("NFC", t)),
            ("labels with another dash", lambda t: _DASHES.sub("-", t)),
        ):
            changed = change(label)
            if changed != label:
                repairs.append(name)
            label = changed
    spaced = " ".join(label.split())
    if spaced != label:
        repairs.append("labels with surplus or unusual spaces")
    return spaced, tuple(repairs)


def clean_column(column: pd.Series, repairs: Counter[str]) -> pd.Series:
    """Returns a column of clean labels, and counts the rows that needed a repair."""
    texts = column.astype(str)
    counts = texts.value_counts()
    clean = {}
    for text, count in counts.items():
        clean[text], needed = clean_label(str(text))
        for name in needed:
            repairs[name] += int(count)
    return texts.map(clean)


def find_missing(column: pd.Series, missing: Iterable[str], classes: Iterable[str] = ()) -> Counter[str]:
    """Returns the words of a column that mean that there is no label, with their numbers of rows.

    Args:
        column: of clean labels.
        missing: the words; upper and lower case are the same. Failed formulas such as `#REF!` are always missing.
        classes: names of classes, which are never missing labels.
    """
    words = {clean_label(word)[0].casefold() for word in missing} | {"", "[]"}  # [] is an empty list
    known = set(classes)
    counts = column.value_counts()
    return Counter(
        {
            str(w): int(n)
            for w, n in counts.items()
            if w not in known and (str(w).casefold() in words or _FORMULA_ERROR.fullmatch(str(w)))
        }
    )


def notable_missing(words: Mapping[str, int], rows: int) -> dict[str, int]:
    """Returns the words with letters that were taken as missing so often that they may be a class.

    Args:
        words: taken as missing -> rows.
        rows: of the table.
    """
    least = max(_NOTABLE_ROWS, _NOTABLE_SHARE * rows)
    return {
        w: n for w, n in words.items() if n >= least and any(c.isalpha() for c in w) and not _FORMULA_ERROR.fullmatch(w)
    }


def suspect_missing(counts: Mapping[str, int], attribute: str, classes: Iterable[str] = ()) -> dict[str, int]:
    """Returns the classes that may be words for a missing label, such as "unknown" and "...".

    Args:
        counts: class -> rows.
        attribute: its name; "no colour" may be a missing colour.
        classes: the fixed classes, which are never suspected.
    """
    known, name = set(classes), attribute.casefold()
    has_numbers = any(word.isdecimal() and int(word) for word in counts if len(word) < _FEW_DIGITS)

    def is_suspected(word: str) -> bool:
        plain = word.casefold().strip("()[]<>{}*- ")
        first, _, rest = plain.partition(" ")
        if not any(map(str.isalnum, word)) or plain in _SUSPECTED or plain in _DEFAULT_MISSING:
            return True
        return (first in _WITHOUT and rest == name) or (word == "0" and not has_numbers)

    return {word: rows for word, rows in counts.items() if word not in known and is_suspected(word)}


def find_look_alikes(counts: Mapping[str, int], classes: Sequence[str] = ()) -> list[dict[str, int]]:
    """Returns groups of classes that differ only in case, spaces, hyphens, apostrophes, accents, signs for "and", or
    letters of two alphabets that look alike.

    Args:
        counts: class -> rows.
        classes: the fixed classes, if there are any; they come first in their group.

    Returns:
        For each group, class -> rows; the first is the one that the others may be merged into.
    """
    groups: dict[str, list[str]] = {}
    for name in dict.fromkeys([*classes, *counts]):
        key = unicodedata.normalize("NFKD", unicodedata.normalize("NFKC", name).casefold().translate(_DOUBLES))
        key = _AND.sub("&", unicodedata.normalize("NFC", _ACCENTS.sub("", key)))
        groups.setdefault(_SEPARATORS.sub("", key) or key, []).append(name)
    fixed = set(classes)
    found = []
    for names in groups.values():
        if len(names) > 1 and sum(name not in fixed for name in names):
            names.sort(key=lambda name: (name not in fixed, -counts.get(name, 0), name))
            found.append({name: counts.get(name, 0) for name in names})
    return sorted(found, key=lambda group: -sum(group.values()))


def merge_line(attribute: str, groups: Iterable[Mapping[str, int]], given: Mapping[str, str]) -> str:
    """Returns the attribute's entry of a schema.json that merges every group into its first class.

    Args:
        attribute: its name.
        groups: as `find_look_alikes` returns them.
        given: what the schema merges already.
    """
    new = {name: first for first, *others in groups for name in others}
    merge = {name: new.get(target, target) for name, target in given.items()} | new
    return json.dumps({"name": attribute, "merge": merge}, ensure_ascii=False)
