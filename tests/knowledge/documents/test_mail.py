"""E-mail: headers in any encoding, plain or rich text, attachments by name, mailboxes."""

from __future__ import annotations

from email.message import EmailMessage
from pathlib import Path

from tinyseek.knowledge.documents import mail
from tinyseek.knowledge.documents.limits import Limits


def message(subject: str = "报告 report") -> EmailMessage:
    message = EmailMessage()
    message["Subject"], message["From"], message["To"] = subject, "安 <ann@x.y>", "b@x.y"
    message["Date"] = "Mon, 06 May 2024 23:30:00 +0800"
    message.set_content("Dear all,\n\nplease see the report.\n> quoted line\n\nBye")
    return message


def test_a_message_in_full(tmp_path: Path) -> None:
    sent = message()
    sent.add_alternative("<p>Dear <b>all</b></p>", subtype="html")
    sent.add_attachment(b"x" * 5000, maintype="application", subtype="pdf", filename="年度报告.pdf")
    (tmp_path / "a.eml").write_bytes(bytes(sent))
    document = mail.parse(tmp_path / "a.eml", Limits())
    assert (document.title, document.author, document.date) == ("报告 report", "安 <ann@x.y>", "2024-05-06")
    assert [block.text for block in document.blocks] == [
        "报告 report",
        "From: 安 <ann@x.y>\nTo: b@x.y\nDate: Mon, 06 May 2024 23:30:00 +0800",
        "Dear all,",
        "please see the report.\n> quoted line",
        "Bye",
        "Attachments:\n- 年度报告.pdf (5 kB)",
    ]
    assert document.details == {"attachments": ["年度报告.pdf"]}
    assert document.blocks[-1].path == ("报告 report",)


def test_rich_text_is_read_where_the_plain_one_says_little(tmp_path: Path) -> None:
    sent = message()
    sent.set_content("See the HTML.")
    sent.add_alternative(
        f"<h2>Plan</h2><table><tr><th>a<th>b</tr><tr><td>1<td>2</tr></table><p>{'long text ' * 20}</p>", subtype="html"
    )
    (tmp_path / "a.eml").write_bytes(bytes(sent))
    found = mail.parse(tmp_path / "a.eml", Limits()).blocks
    assert [block.kind for block in found] == ["heading", "paragraph", "heading", "table", "paragraph"]


def test_old_encodings_and_broken_headers(tmp_path: Path) -> None:
    head = (
        b"Subject: =?gb2312?B?"
        + __import__("base64").b64encode("会议通知".encode("gbk"))
        + b"?=\r\nFrom: "
        + "王".encode("gbk")
        + b" <w@x.y>\r\n"
    )
    body = "今天下午三点开会，请大家准时参加。".encode("gbk")
    (tmp_path / "a.eml").write_bytes(
        head
        + b"Date: never\r\nContent-Type: text/plain; charset=no-such\r\nContent-Transfer-Encoding: 8bit\r\n\r\n"
        + body
    )
    document = mail.parse(tmp_path / "a.eml", Limits())
    assert document.title == "会议通知"
    assert document.date == ""
    assert document.blocks[-1].text == "今天下午三点开会，请大家准时参加。"


def test_a_mailbox_is_read_message_by_message(tmp_path: Path) -> None:
    box = b"".join(b"From a@b.c Mon May  6 10:00:00 2024\n" + bytes(message(f"Subject {n}")) + b"\n" for n in range(3))
    (tmp_path / "a.mbox").write_bytes(box)
    document = mail.parse(tmp_path / "a.mbox", Limits())
    assert [block.text for block in document.blocks if block.kind == "heading"] == [
        "Subject 0",
        "Subject 1",
        "Subject 2",
    ]
    assert {block.path for block in document.blocks if block.kind != "heading"} == {
        ("Subject 0",),
        ("Subject 1",),
        ("Subject 2",),
    }
