"""Plain questions by rules, in two languages: their answers are reckoned again here, in Python, from the rows."""

from __future__ import annotations

import datetime as dt
import operator
import random
import statistics
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from knowledge.tables.sheets import PRODUCTS, REGIONS, orders, staff

from tinyseek.knowledge.tables.mentions import normal
from tinyseek.knowledge.tables.plain import plain_query
from tinyseek.knowledge.tables.room import SheetFile, TableRoom

Rows = list[dict[str, Any]]


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[TableRoom, Rows]]:
    folder = tmp_path_factory.mktemp("sheets")
    rows = orders(folder / "orders.xlsx", seed=5)
    staff(folder / "员工.xlsx")
    with TableRoom([SheetFile(folder / name, name) for name in ("orders.xlsx", "员工.xlsx")]) as room:
        yield room, rows


def asked(room: TableRoom, question: str) -> list[tuple[Any, ...]]:
    query = plain_query(question, room.tables, room.mentions(question))
    assert query is not None, question
    assert not query.unused, (question, query)
    return list(room.run(query.sql).rows)


def by(rows: Rows, column: str, of: Callable[[Rows], Any]) -> list[tuple[Any, Any]]:
    keys = sorted({row[column] for row in rows})
    return [(key, of([row for row in rows if row[column] == key])) for key in keys]


def revenue(rows: Rows) -> float:
    return float(sum(row["Revenue"] for row in rows))


def where(rows: Rows, **columns: Any) -> Rows:
    return [row for row in rows if all(row[name] == value for name, value in columns.items())]


QUESTIONS: list[tuple[str, Callable[[Rows], list[tuple[Any, ...]]]]] = [
    ("What is the total revenue?", lambda r: [(revenue(r),)]),
    ("How many orders are there?", lambda r: [(len(r),)]),
    ("how many orders in the West", lambda r: [(len(where(r, Region="West")),)]),
    ("How many different products?", lambda r: [(len({x["Product"] for x in r}),)]),
    ("Total revenue by region", lambda r: by(r, "Region", revenue)),
    ("average quantity per product", lambda r: by(r, "Product", lambda g: statistics.mean(x["Quantity"] for x in g))),
    ("median quantity of gadgets", lambda r: [(statistics.median(x["Quantity"] for x in where(r, Product="Gadget")),)]),
    ("max revenue in each region", lambda r: by(r, "Region", lambda g: max(x["Revenue"] for x in g))),
    ("Which product has the highest total revenue?", lambda r: [max(by(r, "Product", revenue), key=lambda p: p[1])]),
    (
        "which region sold the most widgets?",
        lambda r: [
            max(by(where(r, Product="Widget"), "Region", lambda g: sum(x["Quantity"] for x in g)), key=lambda p: p[1])
        ],
    ),
    ("total revenue not in the West", lambda r: [(revenue([x for x in r if x["Region"] != "West"]),)]),
    ("total revenue in 2024", lambda r: [(revenue([x for x in r if x["Date"].year == 2024]),)]),
    (
        "total revenue in March 2023",
        lambda r: [(revenue([x for x in r if (x["Date"].year, x["Date"].month) == (2023, 3)]),)],
    ),
    ("total revenue in Q2", lambda r: [(revenue([x for x in r if 4 <= x["Date"].month <= 6]),)]),
    ("number of orders with quantity above 7", lambda r: [(len([x for x in r if x["Quantity"] > 7]),)]),
    (
        "how many orders with quantity at least 7 in the East",
        lambda r: [(len([x for x in where(r, Region="East") if x["Quantity"] >= 7]),)],
    ),
    (
        "count the orders between 2023-03-01 and 2023-09-30",
        lambda r: [(len([x for x in r if dt.date(2023, 3, 1) <= x["Date"] <= dt.date(2023, 9, 30)]),)],
    ),
    (
        "How many orders with revenue over 20 and quantity less than 5?",
        lambda r: [(len([x for x in r if x["Revenue"] > 20 and x["Quantity"] < 5]),)],
    ),
    ("total revenue by year", lambda r: [(y, revenue([x for x in r if x["Date"].year == y])) for y in (2023, 2024)]),
    ("What is the revenue of order 1005?", lambda r: [(1005, r[5]["Revenue"])]),
    ("list the regions", lambda r: sorted({(x["Region"],) for x in r})),
    ("compare the revenue of East and West", lambda r: by([x for x in r if x["Region"] != "North"], "Region", revenue)),
    (
        "average revenue of Widget in the East",
        lambda r: [(statistics.mean(x["Revenue"] for x in where(r, Region="East", Product="Widget")),)],
    ),
]
STAFF: list[tuple[str, list[tuple[Any, ...]]]] = [
    ("平均月薪是多少？", [(11000,)]),
    ("每个部门的平均月薪", [("市场部", 11750), ("研发部", 9500), ("财务部", 12500)]),
    ("研发部有多少人？", [(2,)]),
    ("各部门有多少人", [("市场部", 2), ("研发部", 2), ("财务部", 1)]),
    ("谁的月薪最高？", [("钱七", 14000)]),
    ("年龄最大的员工是谁", [("钱七", 37)]),
    ("月薪最高的3个人", [("钱七", 14000), ("赵六", 12500), ("王五", 11000)]),
    ("月薪前两名", [("钱七", 14000), ("赵六", 12500)]),
    ("月薪最低的两个人", [("张三", 8000), ("李四", 9500)]),
    ("哪个部门的月薪总和最高？", [("市场部", 23500)]),
    ("张三的入职日期", [("张三", "2018-03-05")]),
    ("除了研发部，平均年龄是多少", [(33,)]),
    ("年龄在30到35之间的员工的月薪", [("王五", 11000, 31), ("赵六", 12500, 34)]),  # and what was compared
    ("月薪超过1万的有多少人", [(3,)]),
    ("月薪不低于1.1万的人数", [(3,)]),
    ("2020年以后入职的有几人", [(3,)]),
    ("2021年入职的员工的月薪", [("赵六", 12500)]),
    ("员工一共有多少人", [(5,)]),
    ("最低月薪", [(8000,)]),
    ("一共有几个部门", [(3,)]),
    ("月薪总和", [(55000,)]),
    ("年龄小于30岁的员工的平均月薪", [(8750,)]),
]


def same(got: list[tuple[Any, ...]], wanted: list[tuple[Any, ...]]) -> bool:
    """Equal, but for the last bits of sums."""
    return len(got) == len(wanted) and all(
        len(here) == len(there)
        and all(a == (pytest.approx(b) if isinstance(b, float) else b) for a, b in zip(here, there, strict=True))
        for here, there in zip(got, wanted, strict=True)
    )


@pytest.mark.parametrize(("question", "answer"), QUESTIONS, ids=[question for question, _ in QUESTIONS])
def test_a_plain_question_is_answered(
    both: tuple[TableRoom, Rows], question: str, answer: Callable[[Rows], list[tuple[Any, ...]]]
) -> None:
    room, rows = both
    got, wanted = asked(room, question), answer(rows)
    assert same(got, wanted), (got, wanted)


@pytest.mark.parametrize(("question", "answer"), STAFF, ids=[question for question, _ in STAFF])
def test_and_a_chinese_one(both: tuple[TableRoom, Rows], question: str, answer: list[tuple[Any, ...]]) -> None:
    got = asked(both[0], question)
    assert same(got, answer), (got, answer)


SHOP = """SKU,Item name,Category,In stock,Unit cost,Supplier,Last ordered
A-1,Desk lamp,Lighting,14,$12.50,Lumina,2024-01-15
A-2,Floor lamp,Lighting,3,$45.00,Lumina,2024-03-02
B-1,Office chair,Furniture,8,$120.00,SitWell,2023-11-20
B-2,Standing desk,Furniture,0,$310.00,SitWell,2024-02-11
C-1,Stapler,Supplies,120,$4.20,PaperCo,2023-06-30
"""
MARKS = """学号,姓名,班级,语文,数学,总分
001,张伟,一班,88,92,180
002,王芳,二班,95,81,176
003,李娜,一班,72,99,171
004,刘洋,二班,60,58,118
005,陈静,三班,90,88,178
"""
EVERYDAY: list[tuple[str, list[tuple[Any, ...]]]] = [
    ("most expensive item", [("Standing desk", 310.0)]),
    ("cheapest item in Lighting", [("Desk lamp", 12.5)]),
    ("Which supplier has the most items?", [("Lumina", 2), ("SitWell", 2)]),  # both
    ("items with in stock below 5", [("Floor lamp", 3), ("Standing desk", 0)]),
    ("How much does the stapler cost?", [("Stapler", 4.2)]),
    ("Which items cost more than $40?", [("Floor lamp", 45.0), ("Office chair", 120.0), ("Standing desk", 310.0)]),
    ("list items ordered before March 2024 that cost over $200", [("Standing desk", 310.0, "2024-02-11")]),
    ("items ordered after February 2024", [("Floor lamp", "2024-03-02")]),
    ("total in stock per supplier sorted by in stock", [("SitWell", 8), ("Lumina", 17), ("PaperCo", 120)]),
    ("number of suppliers", [(3,)]),
    ("数学最高分是谁", [("李娜", 99)]),
    ("数学最高的人", [("李娜", 99)]),
    ("各班的平均总分", [("一班", 175.5), ("三班", 178.0), ("二班", 147.0)]),
    ("总分超过175分的有几人", [(3,)]),
    ("语文低于75分的有谁", [("李娜", 72), ("刘洋", 60)]),
    ("总分排名前两名", [("张伟", 180), ("陈静", 178)]),
    ("按总分从高到低排序列出姓名", [("张伟", 180), ("陈静", 178), ("王芳", 176), ("李娜", 171), ("刘洋", 118)]),
    ("哪个班人数最多", [("一班", 2), ("二班", 2)]),
    ("张伟和王芳的总分", [("张伟", 180), ("王芳", 176)]),
    ("学号002的姓名", [("002", "王芳")]),
]


@pytest.fixture(scope="module")
def everyday(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TableRoom]:
    folder = tmp_path_factory.mktemp("everyday")
    (folder / "shop.csv").write_text(SHOP)
    (folder / "成绩单.csv").write_text(MARKS)
    with TableRoom([SheetFile(folder / name, name) for name in ("shop.csv", "成绩单.csv")]) as room:
        yield room


@pytest.mark.parametrize(("question", "answer"), EVERYDAY, ids=[question for question, _ in EVERYDAY])
def test_everyday_questions(everyday: TableRoom, question: str, answer: list[tuple[Any, ...]]) -> None:
    got = asked(everyday, question)
    assert same(got, answer), (got, answer)


@pytest.mark.parametrize(
    "question", ["Which items are out of stock?", "语文不及格的学生", "show me the shop", "女生有多少"]
)
def test_a_question_that_says_more_than_the_rules_know_is_not_half_answered(everyday: TableRoom, question: str) -> None:
    assert plain_query(question, everyday.tables, everyday.mentions(question)) is None


def test_top_of_a_ranking(both: tuple[TableRoom, Rows]) -> None:
    room, rows = both
    best = sorted((row["Revenue"] for row in rows), reverse=True)[:3]
    assert [row[-1] for row in asked(room, "top 3 orders by revenue")] == best
    listed = asked(room, "Show all orders with quantity above 7 in the East")
    assert [row[0] for row in listed] == [x["Order ID"] for x in where(rows, Region="East") if x["Quantity"] > 7]


@pytest.mark.parametrize(
    "question", ["What's the weather in Paris?", "今天天气怎么样", "你好", "?", "sum", "DROP TABLE"]
)
def test_what_the_rules_do_not_understand_they_leave(both: tuple[TableRoom, Rows], question: str) -> None:
    room, _ = both
    assert plain_query(question, room.tables, room.mentions(question)) is None


def test_words_that_were_not_used_are_told(both: tuple[TableRoom, Rows]) -> None:
    room, _ = both
    query = plain_query("total revenue of returned refrigerators", room.tables, [])
    assert query is not None
    assert query.unused == ("returned", "refrigerators")


def test_random_filters_and_groups_give_what_python_gives(both: tuple[TableRoom, Rows]) -> None:
    room, rows = both
    seed = 7
    print("seed", seed)
    chance = random.Random(seed)
    for _ in range(40):
        region, product, bound = chance.choice(REGIONS), chance.choice(PRODUCTS), chance.randint(1, 9)
        word, keeps = chance.choice(
            [("above", operator.gt), ("at most", operator.le), ("under", operator.lt), ("at least", operator.ge)]
        )
        verb, of = chance.choice(
            [
                ("total", revenue),
                ("average", lambda g: statistics.mean(x["Revenue"] for x in g)),
                ("highest", lambda g: max(x["Revenue"] for x in g)),
            ]
        )
        question = f"{verb} revenue of {product.lower()}s in the {region} with quantity {word} {bound}"
        chosen = [x for x in where(rows, Region=region, Product=product) if keeps(x["Quantity"], bound)]
        assert asked(room, question) == [(pytest.approx(of(chosen)) if chosen else None,)], question


def test_places_stay_where_they_are_when_a_text_is_folded() -> None:
    chance = random.Random(3)
    for _ in range(200):
        text = "".join(
            chr(chance.choice([chance.randint(32, 0x2FFF), chance.randint(0x3000, 0xFFFF)])) for _ in range(20)
        )
        assert len(normal(text)) == len(text)
