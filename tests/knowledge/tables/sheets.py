"""Workbooks that the tests of tables ask, made by openpyxl."""

from __future__ import annotations

import datetime as dt
import random
from pathlib import Path
from typing import Any

from openpyxl import Workbook

REGIONS, PRODUCTS = ("East", "West", "North"), ("Widget", "Gadget", "Gizmo")


def orders(file: Path, seed: int = 1, count: int = 60) -> list[dict[str, Any]]:
    """A workbook of orders; its rows, each with `row`, its number in the sheet."""
    chance = random.Random(seed)
    workbook = Workbook()
    sheet = workbook.active
    assert sheet is not None
    sheet.title = "Orders"
    names = ["Order ID", "Date", "Region", "Product", "Quantity", "Unit price ($)", "Revenue"]
    sheet.append(names)
    rows = []
    for at in range(count):
        quantity, price = chance.randint(1, 9), chance.choice([2.5, 3, 10])
        day = dt.date(2023 + at % 2, 1 + at % 12, 1 + at % 28)
        row = [1000 + at, day, chance.choice(REGIONS), chance.choice(PRODUCTS), quantity, price, quantity * price]
        sheet.append(row)
        rows.append({"row": at + 2, **dict(zip(names, row, strict=True))})
    sheet.append(["Total", None, None, None, None, None, sum(row["Revenue"] for row in rows)])
    workbook.save(file)
    return rows


def staff(file: Path) -> None:
    """五名员工。"""
    workbook = Workbook()
    sheet = workbook.active
    assert sheet is not None
    sheet.title = "员工"
    sheet.append(["员工名册"])
    sheet.merge_cells("A1:F1")
    sheet.append(["工号", "姓名", "部门", "入职日期", "月薪(元)", "年龄"])
    people = [("张三", "研发部"), ("李四", "市场部"), ("王五", "研发部"), ("赵六", "财务部"), ("钱七", "市场部")]
    for at, (name, department) in enumerate(people):
        sheet.append([at + 1, name, department, dt.date(2018 + at, 3 + at, 5), 8000 + at * 1500, 25 + at * 3])
    workbook.save(file)
