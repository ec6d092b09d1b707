"""Encodings found without being told: Chinese, Japanese, Korean, Cyrillic, Western; broken text; UTF-16 without its mark."""

from __future__ import annotations

import codecs
from pathlib import Path

import pytest

from tinyseek.errors import UserError
from tinyseek.knowledge.documents.decode import decode, read_text
from tinyseek.knowledge.documents.limits import Limits

SIMPLIFIED = (
    "知识库把文件分成块，每一块都记住它在文件里的位置。用户提出问题以后，系统先找到最相关的几块，"
    "再让模型根据它们来回答，并且在答案里写出页码。"
    "如果文件里没有答案，就应该说没有找到，而不是编造一个。"
)
TRADITIONAL = (
    "知識庫把文件分成塊，每一塊都記住它在文件裡的位置。使用者提出問題以後，系統先找到最相關的幾塊，"
    "再讓模型根據它們來回答，並且在答案裡寫出頁碼。"
    "如果文件裡沒有答案，就應該說沒有找到，而不是編造一個。"
)
JAPANESE = (
    "これは文書を読むための試験です。ファイルの中の文字がどの符号で書かれているかを、"
    "教えられなくても見つけなければなりません。"
)
KOREAN = "이 시험은 문서의 문자 부호를 알려 주지 않아도 찾아내는지 확인합니다. 한국어 문장은 자주 쓰이는 글자로 알아볼 수 있습니다."
RUSSIAN = "Это проверка того, что кодировка текста определяется без подсказки. Русские слова состоят из букв, которые идут подряд."
GERMAN = "Über die Größe der Häuser läßt sich streiten; die Straße heißt „Grüner Weg“, und das Café ist geöffnet."
FRENCH = "L’été dernier, le garçon a été très étonné : la crème brûlée était déjà finie à onze heures."


@pytest.mark.parametrize(
    ("text", "encoding"),
    [
        (SIMPLIFIED, "gbk"),
        (SIMPLIFIED, "gb18030"),
        (SIMPLIFIED, "gb2312"),
        (SIMPLIFIED, "hz"),
        (TRADITIONAL, "big5"),
        (TRADITIONAL, "gbk"),
        (JAPANESE, "shift_jis"),
        (JAPANESE, "euc_jp"),
        (JAPANESE, "iso2022_jp"),
        (KOREAN, "euc_kr"),
        (RUSSIAN, "cp1251"),
        (RUSSIAN, "koi8_r"),
        (GERMAN, "cp1252"),
        (FRENCH, "cp1252"),
        *[
            (text, name)
            for text in (SIMPLIFIED, TRADITIONAL, GERMAN)
            for name in ("utf-8", "utf-8-sig", "utf-16", "utf-32")
        ],
    ],
)
def test_an_encoding_is_found(text: str, encoding: str) -> None:
    found = decode(text.encode(encoding))
    assert found.text == text, found.encoding
    assert found.notes == ()


@pytest.mark.parametrize(
    ("text", "encoding"), [(SIMPLIFIED, "gbk"), (TRADITIONAL, "big5"), (JAPANESE, "shift_jis"), (RUSSIAN, "cp1251")]
)
def test_short_texts_too(text: str, encoding: str) -> None:
    for length in (12, 20, 40):
        assert decode(text[:length].encode(encoding)).text == text[:length]


@pytest.mark.parametrize(
    ("texts", "encoding"),
    [
        (
            "Größe|Über|Café|São Paulo|coração|été|à la carte|Öl|façade|€ 5|20 °C|smørrebrød|Señor Muñoz|élève|çà et là",
            "cp1252",
        ),
        ("Да|да|Нет|Москва|Добрый день|Дата: 5|Цена 20 USD|Договор N 5|Иван Петров <ivan@x.ru>|и", "cp1251"),
        ("Да|Нет|Москва|Добрый день|Цена 20 USD|Иван Петров <ivan@x.ru>", "koi8_r"),
        ("Да|Нет|Москва|Добрый день|Цена 20 USD|Иван Петров <ivan@x.ru>", "cp866"),
    ],
)
def test_a_word_or_two_of_eight_bits(texts: str, encoding: str) -> None:
    for text in texts.split("|"):
        for whole in (text, f"1. {text}\n"):
            if len(text) > 1:  # a letter alone is Western
                assert decode(whole.encode(encoding)).text == whole


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be"])
@pytest.mark.parametrize(
    "text", ["plain English text, 1 2 3\n", SIMPLIFIED.replace("，", "\n"), "第一行\n第二行 2024\n"]
)
def test_utf_16_without_its_mark(text: str, encoding: str) -> None:
    assert decode(text.encode(encoding)).text == text


def test_damaged_utf_8_stays_utf_8_and_is_told() -> None:
    data = SIMPLIFIED.encode() * 5
    broken = data[:100] + b"\xff" + data[100:]
    found = decode(broken)
    assert found.encoding == "utf-8"
    assert found.text.replace("\ufffd", "")[:30] == SIMPLIFIED[:30]
    assert "broken" in found.notes[0]


def test_a_replacement_character_of_the_text_itself_is_not_broken() -> None:
    assert decode("honest \ufffd here 中文".encode()).notes == ()


def test_what_a_text_says_of_itself_is_believed_if_it_can_be() -> None:
    assert decode(GERMAN.encode("cp1252"), "iso-8859-1").text == GERMAN
    assert (
        decode(SIMPLIFIED.encode(), "gb2312").text == SIMPLIFIED
        or decode(SIMPLIFIED.encode(), "gb2312").encoding == "gb18030"
    )
    for lie in ("utf-16", "hex", "rot13", "idna", "no-such", "zip", "\0"):
        assert decode(SIMPLIFIED.encode(), lie).text == SIMPLIFIED


def test_line_ends_controls_and_lone_halves_of_characters() -> None:
    found = decode(b"a\r\nb\rc\x00\x08\x1b[31md\xed\xa0\x80e")
    assert found.text.startswith("a\nb\nc[31md")
    found.text.encode()  # nothing that UTF-8 cannot hold
    half = codecs.BOM_UTF16_LE + "x".encode("utf-16-le") + b"\x00\xd8" + "y".encode("utf-16-le")
    decode(half).text.encode()


def test_the_limit_is_known_before_a_file_is_read(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"x" * 4001)
    with pytest.raises(UserError, match="more than 1,000 characters"):
        read_text(tmp_path / "a.txt", Limits(characters=1000))
    (tmp_path / "b.txt").write_bytes("字".encode() * 1001)
    with pytest.raises(UserError, match="more than 1,000 characters"):
        read_text(tmp_path / "b.txt", Limits(characters=1000))
