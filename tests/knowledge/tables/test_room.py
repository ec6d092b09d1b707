"""The process with the tables: what runs, what is refused, where results come from, what it survives."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from knowledge.tables.sheets import orders, staff

from tinyseek.errors import UserError
from tinyseek.knowledge.tables.options import TableSettings
from tinyseek.knowledge.tables.room import QueryError, SheetFile, TableRoom
from tinyseek.knowledge.tables.schema import ranges


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("sheets")


@pytest.fixture(scope="module")
def rows(folder: Path) -> list[dict[str, object]]:
    return orders(folder / "orders.xlsx")


@pytest.fixture(scope="module")
def room(folder: Path, rows: list[dict[str, object]]) -> Iterator[TableRoom]:
    staff(folder / "员工.xlsx")
    (folder / "grades.csv").write_text("姓名;成绩\n张三;1,5\n\n李四;2,25\n", encoding="gbk")
    (folder / "secret.csv").write_text("a,b\n1,2\n")
    names = ["orders.xlsx", "员工.xlsx", "grades.csv"]
    files = [SheetFile(folder / name, name, at + 1) for at, name in enumerate(names)]
    with TableRoom(files, TableSettings(seconds=1, memory_mb=256, rows=100)) as made:
        yield made


def test_every_cell_is_there(room: TableRoom, rows: list[dict[str, object]]) -> None:
    result = room.run("SELECT * FROM orders")
    assert result.columns == ("Order_ID", "Date", "Region", "Product", "Quantity", "Unit_price", "Revenue")
    there = [tuple(str(v) if k == "Date" else v for k, v in row.items() if k != "row") for row in rows]
    assert list(result.rows) == there
    assert all(
        cells == tuple(f"{c}{row['row']}" for c in "ABCDEFG") for cells, row in zip(result.cells, rows, strict=True)
    )
    assert room.run("SELECT sum(成绩) FROM grades").rows == ((3.75,),)  # GBK, semicolons, decimal commas
    assert room.run("SELECT 姓名 FROM grades WHERE 成绩 > 2").cells == (("A4",),)  # beyond an empty line


def test_results_say_their_cells(room: TableRoom, rows: list[dict[str, object]]) -> None:
    result = room.run("SELECT Region, sum(Revenue) AS total, max(Quantity) FROM orders GROUP BY 1 ORDER BY total DESC")
    for (region, total, most), cells in zip(result.rows, result.cells, strict=True):
        own = [row for row in rows if row["Region"] == region]
        assert total == sum(row["Revenue"] for row in own)
        assert cells[1] == ranges([row["row"] for row in own], [7])
        assert int(cells[2].removeprefix("E")) in [row["row"] for row in own if row["Quantity"] == most]
    (whole,) = room.run("SELECT count(*), avg(Revenue) FROM orders WHERE Revenue > 20").cells
    assert whole[1] == ranges([row["row"] for row in rows if row["Revenue"] > 20], [7])
    ranked = room.run("SELECT Product, Revenue FROM orders ORDER BY Revenue DESC, Order_ID LIMIT 3")
    best = sorted(rows, key=lambda row: (-row["Revenue"], row["Order ID"]))[:3]
    assert [cells[1] for cells in ranked.cells] == [f"G{row['row']}" for row in best]
    joined = room.run("SELECT a.姓名, 成绩, 年龄 FROM 员工 a JOIN grades b USING (姓名) ORDER BY 1")
    assert (joined.cells, set(joined.tables)) == ((), {"员工", "grades"})  # of several tables only the tables are known
    assert room.run("SELECT * EXCLUDE (Date) FROM orders LIMIT 1").cells == (("A2", "C2", "D2", "E2", "F2", "G2"),)
    assert room.run("SELECT count(DISTINCT Product) AS n FROM orders HAVING n > 100").rows == ()


REFUSED = [
    "DROP TABLE orders",
    "INSERT INTO orders VALUES (1)",
    "UPDATE orders SET Revenue = 0",
    "DELETE FROM orders",
    "WITH x AS (INSERT INTO orders SELECT * FROM orders RETURNING *) SELECT * FROM x",
    "WITH x AS (DELETE FROM orders RETURNING *) SELECT * FROM x",
    "CREATE TABLE t AS SELECT 1",
    "COPY orders TO '/tmp/stolen.csv'",
    "COPY (SELECT * FROM orders) TO '/tmp/stolen.csv'",
    "EXPORT DATABASE '/tmp/stolen'",
    "ATTACH '/tmp/other.db'",
    "INSTALL httpfs",
    "LOAD httpfs",
    "SET memory_limit = '100GB'",
    "RESET ALL",
    "PRAGMA database_list",
    "CALL duckdb_settings()",
    "SELECT 1; SELECT 2",
    "SELECT 1; DROP TABLE orders",
    "SELECT * FROM read_csv('{folder}/secret.csv')",
    "SELECT * FROM '{folder}/secret.csv'",
    "SELECT * FROM read_text('/etc/passwd')",
    "SELECT * FROM glob('/*')",
    "SELECT * FROM 'https://example.com/a.csv'",
    "SELECT (SELECT max(content) FROM read_text('/etc/passwd'))",
    "SELECT * FROM duckdb_settings()",
    "SELECT * FROM duckdb_settings",
    "SELECT * FROM information_schema.tables",
    "SELECT * FROM sqlite_master",
    "SELECT * FROM \"orders#rows\"",
    "SELECT * FROM memory.main.orders",
    "SELECT * FROM query('SELECT 1')",
    "SELECT * FROM query_table('orders')",
    "SELECT * FROM json_execute_serialized_sql('x')",
    "SELECT current_setting('memory_limit')",
    "SELECT getvariable('x')",
    "SELECT getenv('HOME')",
    "SELECT sleep_ms(100000)",
    "SELECT write_log('x')",
    "SELECT nextval('x')",
    "SELECT ?",
    "SELECT $1",
    "SHOW TABLES",
    "DESCRIBE orders",
    "SUMMARIZE orders",
    "EXPLAIN ANALYZE SELECT 1",
    "WITH \"/etc/passwd\" AS (SELECT 1) SELECT 1 FROM \"/etc/passwd\" UNION SELECT 1 FROM read_text('/etc/passwd')",
    "SELECT (WITH sqlite_master AS (SELECT 1) SELECT 1), * FROM sqlite_master",
    "",
    "not a query",
    "SELECT " + "(" * 3000 + "1" + ")" * 3000,
    "SELECT 1 --" + "x" * 30_000,
]  # fmt: skip


@pytest.mark.parametrize("sql", REFUSED, ids=lambda sql: sql[:40])
def test_what_is_not_one_select_over_the_tables_is_refused(room: TableRoom, folder: Path, sql: str) -> None:
    with pytest.raises(QueryError) as error:
        room.run(sql.replace("{folder}", str(folder)))
    assert "\n" not in str(error.value)
    assert not Path("/tmp/stolen.csv").exists()


ALLOWED = [
    "SELECT 1",
    "FROM orders LIMIT 1",
    "VALUES (1), (2)",
    "(SELECT Region FROM orders) UNION (SELECT 部门 FROM 员工)",
    "WITH a AS (SELECT * FROM orders), b AS (SELECT * FROM a) SELECT count(*) FROM b",
    "WITH RECURSIVE r AS (SELECT 1 AS n UNION ALL SELECT n + 1 FROM r WHERE n < 5) SELECT * FROM r",
    "SELECT x FROM range(5) t(x)",
    "SELECT * FROM orders o, LATERAL (SELECT o.Revenue * 2 AS double) LIMIT 1",
    "SELECT Region, sum(Revenue) FILTER (WHERE Quantity > 3), list_transform([1], lambda x: x + 1) FROM orders GROUP BY ALL",
    "SELECT *, rank() OVER (PARTITION BY Region ORDER BY Revenue) FROM orders QUALIFY rank() OVER (ORDER BY Revenue) < 3",
    "SELECT CASE WHEN Revenue BETWEEN 1 AND 20 THEN 'low' ELSE 'high' END AS c, count(*) FROM orders GROUP BY c",
    "SELECT strftime(Date, '%Y-%m'), Date + INTERVAL 1 DAY FROM orders WHERE Region IN (SELECT Region FROM orders)",
    "SELECT * FROM orders PIVOT (sum(Revenue) FOR Region IN ('East', 'West')) LIMIT 2",
    "SELECT columns('R.*') FROM orders LIMIT 1",
    "SELECT Region COLLATE nocase, {'a': 1}.a, [1, 2][1] FROM orders LIMIT 1;",
]  # fmt: skip


@pytest.mark.parametrize("sql", ALLOWED, ids=lambda sql: sql[:40])
def test_any_honest_select_runs(room: TableRoom, sql: str) -> None:
    assert room.run(sql).rows


def test_values_of_any_type_come_back_as_plain_ones(room: TableRoom) -> None:
    taken = {
        "uuid()::VARCHAR LIKE '%-%'": True,
        "DATE '2024-03-01'": "2024-03-01",
        "TIMESTAMP '2024-03-01 10:30:00'": "2024-03-01 10:30:00",
        "(TIMESTAMPTZ '2024-03-01 10:30:00+00' AT TIME ZONE 'Asia/Shanghai')": "2024-03-01 18:30:00",
        "1.10::DECIMAL(10, 2)": 1.1,
        "100::DECIMAL(20, 2)": 100,
        "2::HUGEINT << 70": str(2 << 70),
        "'NaN'::DOUBLE": "nan",
        "1 / 0": "inf",
        "[1, 2]": "[1, 2]",
        "INTERVAL 3 DAY": "3 days, 0:00:00",
        "'ab'::BLOB": "2 bytes",
        "NULL": None,
        "'半' || chr(128512)": "半😀",
    }
    result = room.run(f"SELECT {', '.join(taken)}, now(), TIMESTAMPTZ '2024-03-01 10:30:00+00' = now() AS a, 1 AS a;")
    assert list(result.rows[0][: len(taken)]) == list(taken.values())
    assert str(result.rows[0][len(taken)]).startswith("20")
    assert result.rows[0][-2:] == (False, 1)  # two columns of one name


def test_nothing_was_changed_by_any_of_it(room: TableRoom, rows: list[dict[str, object]]) -> None:
    assert room.run("SELECT count(*), sum(Revenue) FROM orders").rows == ((60, sum(row["Revenue"] for row in rows)),)


def test_a_long_answer_is_cut_and_says_so(room: TableRoom) -> None:
    result = room.run("SELECT x FROM range(100000) t(x)")
    assert (len(result.rows), result.more) == (100, True)
    assert len(str(room.run("SELECT repeat('x', 100000)").rows[0][0])) == 2000


def test_a_query_without_end_is_stopped_and_the_next_one_runs(room: TableRoom) -> None:
    began = time.monotonic()
    with pytest.raises(QueryError, match="more than 1 s"):
        room.run("SELECT count(*) FROM range(9999) a(x), range(9999) b(y), range(9999) c(z) WHERE (x * y + z) % 7 = 1")
    assert time.monotonic() - began < 8
    with pytest.raises(QueryError, match="memory"):
        room.run("SELECT list(a) FROM (SELECT a || repeat('x', 1000) AS a FROM range(10000000) t(a))")
    assert room.run("SELECT count(*) FROM 员工").rows == ((5,),)


def test_the_process_can_open_nothing_and_knows_no_secrets(room: TableRoom, monkeypatch: pytest.MonkeyPatch) -> None:
    room.run("SELECT 1")
    assert room._process is not None
    process = psutil.Process(room._process.pid)
    if hasattr(process, "rlimit"):
        assert process.rlimit(psutil.RLIMIT_FSIZE) == (0, 0)
        assert process.rlimit(psutil.RLIMIT_NOFILE)[1] <= 3
    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    room._end()
    room.run("SELECT 1")
    assert "OPENAI_API_KEY" in os.environ
    assert "OPENAI_API_KEY" not in psutil.Process(room._process.pid).environ()


def test_a_killed_process_is_started_again(room: TableRoom) -> None:
    assert room._process is not None
    room._process.kill()
    assert room.run("SELECT count(*) FROM orders").rows == ((60,),)


def test_a_bad_file_costs_its_own_tables_alone(tmp_path: Path) -> None:
    (tmp_path / "broken.xlsx").write_bytes(b"PK\x03\x04 nothing")
    (tmp_path / "empty.csv").write_text("")
    (tmp_path / "text.csv").write_bytes(b"%PDF-1.4 not a table")
    (tmp_path / "good.csv").write_text("a,b\n1,2\n")
    names = ["broken.xlsx", "empty.csv", "text.csv", "gone.csv", "good.csv"]
    with TableRoom([SheetFile(tmp_path / name, name) for name in names]) as room:
        assert [table.file for table in room.tables] == ["good.csv"]
        assert room.run("SELECT sum(a + b) FROM good").rows == ((3,),)
        failed = {file.name for file, _ in room.loaded.failed} | {note.split(":")[0] for note in room.loaded.notes}
        assert failed == set(names) - {"good.csv"}
        assert all("\n" not in why for _, why in room.loaded.failed)


def test_a_file_that_takes_too_long_is_given_up_and_the_others_are_read(tmp_path: Path) -> None:
    (tmp_path / "good.csv").write_text("a,b\n1,2\n")
    os.mkfifo(tmp_path / "endless.csv")  # whoever opens it waits for a writer
    files = [SheetFile(tmp_path / name, name) for name in ("endless.csv", "good.csv")]
    with TableRoom(files, TableSettings(load_seconds=2)) as room:
        assert [table.file for table in room.tables] == ["good.csv"]
        assert [file.name for file, _ in room.loaded.failed] == ["endless.csv"]


def test_too_many_files_or_cells_are_a_line(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("a,b\n" + "1,2\n" * 50)
    file = SheetFile(tmp_path / "a.csv", "a.csv")
    with pytest.raises(UserError, match="at most 2"):
        TableRoom([file] * 3, TableSettings(files=2))
    with TableRoom([file, file], TableSettings(cells=150)) as room:
        assert len(room.tables) == 1
        assert "cells" in room.loaded.failed[0][1]
