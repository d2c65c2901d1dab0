"""What the heading of a column says: ids, photos, amounts, brands, splits. The words are those of shops in many
languages; the cells decide with them, in the module `columns`."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable

_WORD = re.compile(r"[A-Z]+(?![^\W\d_A-Z])|[A-Z]?[^\W\d_A-Z]+|\d+")
_BRACKETS = re.compile(r"\([^()]*\)|\[[^\[\]]*\]")


def fold(text: str) -> str:
    """Returns a text in small letters without accents: "Référence" becomes "reference"."""
    return unicodedata.normalize("NFC", _without_accents(text)).casefold()


def words_of(heading: str) -> list[str]:
    """Returns the words of a heading, folded: "unitPrice (EUR)" becomes unit, price, eur."""
    plain = unicodedata.normalize("NFC", _without_accents(heading))
    return [word.casefold() for word in _WORD.findall(plain)]


def _without_accents(text: str) -> str:
    if text.isascii():
        return text
    return "".join(c for c in unicodedata.normalize("NFKD", text) if not unicodedata.combining(c))


def _listed(text: str) -> list[str]:
    return [fold(word) for word in text.split()]


def _words(text: str) -> frozenset[str]:
    return frozenset(_listed(text))


# --- ids ---

# Words that name an id by themselves, the likeliest first.
_CODES = _listed(
    "sku asin gtin ean upc isbn barcode uuid guid uid pid mpn артикул "
    "商品番号 品番 型番 货号 商品id 商品编号 상품번호 품번"
)
# Words that name an id alone, and not as a part of a heading: "Código" is an id, and "código de color" is none.
_ALONE = _words("id reference referencia référence referenz ref réf codigo código codice kod cod 番号 编号 번호")
_NUMBERS = _words(
    "id no nr num number nummer numéro numero número n code codigo código codice kod cod key ref reference référence "
    "referencia referenz riferimento номер код 番号 コード 编号 编码 번호 코드"
)
_PRODUCTS = _words(
    "product item article artikel art variant style model modell design stock goods listing bestell part teile catalog "
    "catalogue katalog serial produkt produktu produit producto produto prodotto articulo artículo artigo articolo "
    "ürün товара towaru výrobku 商品 製品 产品 상품"
)
_GROUPS = _words("parent group master family base config configurable grouped gruppe groupe grupo gruppo")
# Words that may name ids or labels, the likeliest first: the cells decide.
_USUAL = _listed("handle item article artikel product code no number nr")
_MODELS = _words("model modell modelo modello modèle style")
_COMPOUNDS = {
    first + last: (first, last)
    for first in (*_PRODUCTS, *_GROUPS, *_CODES)
    for last in (*_NUMBERS, *_CODES)
    if len(last) > 1
}
# With such a word, an id is the number of a label, or of something else than a product.
_OF_OTHERS = _words(
    "of color colors colour colours farbe couleur colore cor kolor цвет size sizes größe taille talla taglia age "
    "category categories categoria catégorie kategorie class classes label labels type types kind season saison "
    "gender brand brands marke marca marque material fabric pattern country currency status department collection "
    "availability zip post postal phone hs tariff customs tax discount coupon promo language attribute option value "
    "count"
)


def id_kind(heading: str) -> str:
    """Returns what a heading says about ids.

    Returns:
        "sure": it names ids of products, such as "sku" or "Kod produktu"; "group": ids of groups of products, such as
        "parent_sku"; "usual": it names ids or labels, such as "item"; "model": it names models or styles; "other": ids
        of anything, such as "userID"; or "".
    """
    words = _words_of_id(heading)
    if not words:
        return ""
    if len(words) == 1 and words[0] in _USUAL:
        return "usual"
    if len(words) == 1 and words[0] in _MODELS:
        return "model"
    ends = {words[0], words[-1]}
    if set(words) & _OF_OTHERS:
        return ""
    if not set(words) & PHOTO_WORDS:
        named = (len(words) == 1 and words[0] in _ALONE) or ends & set(_CODES)
        numbered = ends & _NUMBERS or words[-1] == "handle"
        if named or (numbered and set(words) & (_PRODUCTS | _GROUPS)):
            return "group" if set(words) & _GROUPS else "sure"
    return "other" if "id" in ends else ""


def id_rank(heading: str) -> tuple[int, int, int]:
    """Returns a key that sorts the headings of one kind: the likeliest first."""
    words = _words_of_id(heading)
    kinds = ("sure", "group", "usual", "model", "other", "")
    own = set(words) <= {"id", "product"}
    codes = [_CODES.index(word) + 1 for word in words if word in _CODES]
    usual = [_USUAL.index(word) for word in words if word in _USUAL]
    return kinds.index(id_kind(heading)), 0 if own else min([*codes, 99]), min([*usual, 99])


def _words_of_id(heading: str) -> list[str]:
    """Returns a heading's words without brackets and numbers; compounds such as "artikelnummer" are taken apart."""
    bare = _BRACKETS.sub(" ", heading)
    whole = "".join(fold(bare).split())
    found = [whole] if whole in _CODES else [word for word in words_of(bare) if not word.isdigit()]
    return [part for word in found for part in _COMPOUNDS.get(word, (word,))]


# --- photos ---

PHOTO_WORDS = _words(
    "image images img imgs photo photos picture pictures pic pics foto fotos fotografia bild bilder imagen imagenes "
    "imagem imagens immagine immagini afbeelding afbeeldingen zdjęcie zdjecie zdjecia zdjęć obrázek obrazek obraz "
    "obrazy kép resim фото фотография изображение изображения изображений картинка 画像 写真 图片 圖片 照片 图 圖 사진 "
    "이미지"
)
_INSIDE = PHOTO_WORDS - _words("pic pics kép")  # all but those that other words hold, such as "topics"
# Words in the headings of columns that hold more photos of a product. Without them the headings are alike.
_FIRST = _words(
    "main primary first front base principal principale principales haupt featured cover hero default главное główne"
)
_MORE = _words(
    "additional other others more extra alt alternate alternative second secondary third fourth back rear side left "
    "right top bottom sole detail details hover model gallery zoom pack packshot flat worn look secondaire secondaires "
    "supplementaire secundaria secundario adicional adicionales aggiuntiva aggiuntive zusatz weitere weiteres rück "
    "rückseite rückansicht vorderseite seite seitenansicht vorne hinten arrière dos avant côté trasera lateral frontal "
    "achterkant voorkant доп дополнительное дополнительные dodatkowe 正面 背面"
)
_NEUTRAL = _words(
    "list all url urls link links src path paths file files filename filenames name no nr of de product item produkt"
)
_THUMBNAILS = _words("thumb thumbs thumbnail thumbnails small preview miniature miniatur vignette vorschau サムネイル")
# What such columns show is no product as a whole.
_NO_PRODUCTS = _words(
    "logo logos icon icons swatch swatches chart charts größentabelle brand brands marke marca marque flag flags mask "
    "masks segmentation segmentations segment parsing annotation depth pose guide banner badge ロゴ логотип"
)
_ENDS_OF_OTHERS = ("brandlogo", "markenlogo", "icon", "swatch", "chart", "charts", "mask")


def has_photo_heading(heading: str) -> bool:
    """True for a heading with a word for a photo, also inside of a longer word: "Artikelbilder", "imagepath"."""
    plain = fold(heading)
    return any(word in plain for word in _INSIDE) or not PHOTO_WORDS.isdisjoint(words_of(heading))


def photo_role(heading: str) -> str:
    """Returns what a column of photos holds: "photo", "thumbnail", or "other" for logos, masks, charts and swatches."""
    words = set(_photo_words(heading))
    if words & _NO_PRODUCTS or any(word.endswith(_ENDS_OF_OTHERS) for word in words):
        return "other"
    return "thumbnail" if words & _THUMBNAILS or any(word.startswith("thumb") for word in words) else "photo"


def photo_rank(heading: str) -> int:
    """Returns 0 for the heading of a product's photo, 1 for more photos, 2 for a heading without a word for photos."""
    words = set(_photo_words(heading))
    if not words & PHOTO_WORDS:
        return 2
    return 1 if words & _MORE and not words & _FIRST else 0


def plain_photo_heading(heading: str) -> frozenset[str]:
    """Returns the words of a heading that are no numbers, no words for photos, and no views such as "front"."""
    words = {word for word in _photo_words(heading) if not word.isdigit() and len(word) > 1}
    return frozenset(words - PHOTO_WORDS - _FIRST - _MORE - _NEUTRAL)


def _photo_words(heading: str) -> list[str]:
    """Returns a heading's words; "Zusatzbild" becomes zusatz, bild."""
    found = []
    for word in words_of(heading):
        photo = next((p for p in sorted(PHOTO_WORDS, key=len, reverse=True) if _is_compound(word, p)), "")
        found += [word.removesuffix(photo), photo] if photo else [word]
    return found


def _is_compound(word: str, photo: str) -> bool:
    return word not in PHOTO_WORDS and word.endswith(photo) and (len(photo) > 3 or not photo.isascii())


# --- what is no label ---

# Words in the headings of prices, counts, measures, ratings and times.
_AMOUNTS = _words(
    "msrp rrp mrp tax vat num nb nombre units weight length width height depth gewicht age date time timestamp day "
    "week month year years jahr año année anno год 年 score rank ranking likes views clicks votes position sort order "
    "sold sales qty qtd qta grams stk pcs szt шт кол"
)
# Words that also stand at an end of a longer word, such as "Lagerbestand" and "listprice".
_AMOUNT_ENDS = tuple(_words(
    "price prices cost discount rebate rabatt preis preise precio prix prezzo prezzi preço cena цена stock stocks "
    "inventory qty quantity amount count counts bestand bestände menge lager cantidad quantité quantità количество "
    "остаток rating ratings stars review reviews anzahl aantal antal voorraad existencias estoque giacenza ilość "
    "liczba stückzahl"
))  # fmt: skip
_AMOUNT_STARTS = ("price", "preis", "precio", "stock", "lager", "bestand", "anzahl", "qty", "quantity")
_NO_AMOUNTS = ("account", "stocking", "stockings")
_CHINESE_AMOUNTS = ("価格", "价格", "가격", "在庫", "库存", "재고", "個数", "数量", "수량")
# Words in the headings of what a shop does with a product.
_STATES = _words(
    "availability available verfügbarkeit verfügbar lieferbar disponibilité disponible disponibilidad disponibilidade "
    "disponibilità dostępność наличие published publish status visibility instock taxable "
    "shipping fulfillment fulfilment policy featured backorders downloadable"
)
_STATES_ALONE = _words("active visible enabled online")
# Words in the headings of makers.
_MAKERS = _words(
    "brand brands brandname marke marca marque vendor manufacturer hersteller supplier seller fabricante fabricant "
    "бренд ブランド 品牌 브랜드"
)
_FOLDS = _words("fold folds kfold cv split subset partition")
_CLASSES = _words("label labels class classes category target type kind attribute")
_SPLITS = _words("train training validation valid val dev test testing")
_OTHER_SPLITS = _words("query gallery holdout hold out unlabeled unlabelled eval evaluation trainval")
_FILLERS = _words("set data split part subset")


def names_amount(heading: str) -> bool:
    """True for the heading of a price, a count, a measure, a rating or a time."""
    return any(
        word in _AMOUNTS
        or (word.startswith(_AMOUNT_STARTS) and word not in _NO_AMOUNTS)
        or (word.endswith(_AMOUNT_ENDS) and word not in _NO_AMOUNTS)
        or any(part in word for part in _CHINESE_AMOUNTS)
        for word in words_of(heading)
    )


def names_state(heading: str) -> bool:
    """True for the heading of what a shop does with a product, such as availability and visibility."""
    words = set(words_of(heading))
    alone = words - _words("is product item variant")
    return bool(words & _STATES) or (len(alone) == 1 and alone <= _STATES_ALONE)


def names_maker(heading: str) -> bool:
    """True for the heading of brands and suppliers."""
    return bool(set(words_of(heading)) & _MAKERS)


def names_fold(heading: str) -> bool:
    """True for the heading of folds and splits."""
    return bool(set(words_of(heading)) & _FOLDS)


def names_classes(heading: str) -> bool:
    """True for the heading of labels, whose classes may have numbers as their names."""
    return bool(set(words_of(heading)) & _CLASSES)


def names_part(heading: str) -> bool:
    """True for headings such as `is_train`, which tell the parts of a split."""
    return bool(set(words_of(heading)) & _SPLITS)


def are_splits(texts: Iterable[str]) -> bool:
    """True for texts that all name parts of a split, such as train, query and gallery, or "Test set"."""
    found = [{word for word in words_of(text) if not word.isdigit()} - _FILLERS for text in texts]
    return any(words & _SPLITS for words in found) and all(
        words and words <= _SPLITS | _OTHER_SPLITS for words in found
    )
