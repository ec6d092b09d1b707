"""Sheets as people make them, to tables; cells as people type them, to numbers and dates."""

from __future__ import annotations

import datetime as dt
import random

import pytest

from tinyseek.knowledge.tables.find import tables_of
from tinyseek.knowledge.tables.typed import date, number, typed

N = None


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1,234.50", 1234.5),
        ("¥3.2万", 32000),
        ("￥1,200", 1200),
        ("12%", 0.12),
        ("12.3％", 0.123),
        ("(45)", -45),
        ("-$1,000.5", -1000.5),
        ("$800K", 800_000),
        ("1.5 million", 1_500_000),
        ("3亿元", 300_000_000),
        ("1e3", 1000),
        ("5 M", N),
        ("1,23,4", N),
        ("A1", N),
        ("", N),
        ("9e999", N),
        ("１２３", 123),
        ("−5", -5),
    ],
)
def test_numbers_as_people_write_them(text: str, value: float | None) -> None:
    assert number(text) == value


@pytest.mark.parametrize(
    ("text", "day"),
    [
        ("2024-03-01", (2024, 3, 1)),
        ("2024/3/1", (2024, 3, 1)),
        ("2024年3月1日", (2024, 3, 1)),
        ("2024年3月", (2024, 3, 1)),
        ("1 Mar 2024", (2024, 3, 1)),
        ("March 1st, 2024", (2024, 3, 1)),
        ("Sep-2024", (2024, 9, 1)),
        ("3/1/2024", (2024, 3, 1)),
        ("2024-13-01", N),
        ("2024", N),
        ("hello 2024", N),
    ],
)
def test_dates_as_people_write_them(text: str, day: tuple[int, int, int] | None) -> None:
    assert date(text) == (dt.datetime(*day) if day else None)


def test_a_column_has_the_narrowest_type_that_fits() -> None:
    assert typed(["1", "2,000", N, "-"]).type == "integer"
    assert typed(["1", "2.5"]).values == [1.0, 2.5]
    assert typed(["10%", "5%"]).percent
    assert typed(["00123", "00456"]).type == "text"  # names, not quantities
    assert typed(["110101199003078515", "110101199003078516"]).type == "text"  # more digits than a float holds
    assert typed(["13/1/2024", "1/2/2024"]).values == [dt.date(2024, 1, 13), dt.date(2024, 2, 1)]  # day first
    assert typed(["1.234,50", "99,90"]).values == [1234.5, 99.9]  # decimal commas
    assert typed([True, False, N]).type == "boolean"
    assert typed([dt.datetime(2024, 1, 1), dt.date(2024, 1, 2)]).type == "date"
    assert typed([dt.datetime(2024, 1, 1, 8)]).type == "timestamp"
    assert typed([0.1, "n/a", 3]).values == [0.1, N, 3.0]
    assert typed(["#DIV/0!", 1]).values == [N, 1]
    odd = typed([*range(20), "about 5"])
    assert (odd.type, odd.odd, odd.values[-1]) == ("integer", (20,), N)
    assert typed([1, 2, "about 5"]).type == "text"  # too many to be left out


def test_titles_heads_totals_and_neighbours_are_told_apart() -> None:
    rows = [
        ["2024 sales", N, N, N, N, N],
        [N, N, N, N, N, N],
        ["Region", "Q1", "Q2", N, "Name", "Age"],
        ["East", 10, 20, N, "Ann", 30],
        ["West", 5, "1,000", N, "Bob", 40],
        ["Total", 15, 1020, N, N, N],
    ]
    first, second = tables_of(rows, top=1, left=1)
    assert [column.title for column in first.columns] == ["Region", "Q1", "Q2"]
    assert first.columns[2].values == [20, 1000]
    assert first.rows == (4, 5)
    assert first.cells == "A3:C6"
    assert "row 6" in first.notes[0]
    assert [column.name for column in second.columns] == ["Name", "Age"]
    assert (second.cells, second.columns[1].number) == ("E3:F5", 6)


def test_a_head_over_two_rows_gives_each_column_both_names() -> None:
    rows = [
        ["部门", "2023年", N, "2024年", N],
        [N, "收入", "支出", "收入", "支出"],
        ["甲", 1, 2, 3, 4],
        [N, 5, 6, 7, 8],
    ]
    merged = [(0, 0, 2, 1), (0, 1, 1, 2), (0, 3, 1, 2), (2, 0, 2, 1)]
    (table,) = tables_of(rows, 1, 1, merged)
    assert [c.name for c in table.columns] == ["部门", "2023年_收入", "2023年_支出", "2024年_收入", "2024年_支出"]
    assert table.columns[0].values == ["甲", "甲"]  # merged downwards
    assert table.columns[4].values == [4, 8]


def test_years_may_be_names_of_columns_and_a_sheet_may_have_no_head() -> None:
    (table,) = tables_of([["Country", 2021, 2022], ["China", 17.8, 17.9], ["France", 2.9, 2.8]])
    assert [c.name for c in table.columns] == ["Country", "2021", "2022"]
    (bare,) = tables_of([["a", 1], ["b", 2]], top=7, left=3)
    assert [c.name for c in bare.columns] == ["column_C", "column_D"]
    assert bare.rows == (7, 8)


def test_an_empty_row_does_not_cut_a_table_in_two() -> None:
    (table,) = tables_of([["k", "v"], ["a", 1], ["b", 2], [N, N], ["c", 3]])
    assert table.columns[1].values == [1, 2, 3]
    assert table.rows == (2, 3, 5)


def test_names_are_made_different() -> None:
    (table,) = tables_of([["x", "X", "a b", "a-b", "单价(元)"], [1, 2, 3, 4, 5]])
    assert [c.name for c in table.columns] == ["x", "X_2", "a_b", "a_b_2", "单价_元"]


def test_no_cell_of_a_plain_table_is_lost_wherever_it_stands() -> None:
    seed = 11
    print("seed", seed)
    chance = random.Random(seed)
    for _ in range(30):
        height, width = chance.randint(1, 12), chance.randint(1, 6)
        body = [[chance.randint(0, 99) for _ in range(width)] for _ in range(height)]
        above, before = chance.randint(0, 3), chance.randint(0, 3)
        rows = [[N] * (before + width) for _ in range(above)]
        rows += [[N] * before + [f"c{at}" for at in range(width)]]
        rows += [[N] * before + row for row in body]
        found = tables_of(rows, top=5, left=2)
        assert len(found) == 1
        assert [list(row) for row in zip(*(column.values for column in found[0].columns), strict=True)] == body
        assert found[0].rows == tuple(range(5 + above + 1, 5 + above + 1 + height))
        assert [column.number for column in found[0].columns] == list(range(2 + before, 2 + before + width))


def test_nothing_is_no_table() -> None:
    assert tables_of([]) == []
    assert tables_of([[N, N]]) == []
    assert tables_of([["only a title"]]) == []
