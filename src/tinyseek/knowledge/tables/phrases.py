"""The few words by which English and Chinese ask for a sum, a group, an order: patterns over a question whose own columns and cells
have been replaced by marks (mentions.py). Width is one and capitals are gone."""

from __future__ import annotations

import re

OPEN, CLOSE = "\ue000", "\ue001"  # around the number of a mention in what is left of the question
MARK = rf"{OPEN}(\d+){CLOSE}"
DIGITS = {"一": 1, "二": 2, "两": 2, "三": 3, "四": 4, "五": 5, "六": 6, "七": 7, "八": 8, "九": 9, "十": 10}
ENGLISH_DIGITS = {"two": 2, "three": 3, "four": 4, "five": 5, "six": 6, "seven": 7, "eight": 8, "nine": 9, "ten": 10}
_NUMBER = rf"(\d+|[{''.join(DIGITS)}]|{'|'.join(ENGLISH_DIGITS)})"
_COUNTED = "[个条行人名家种次笔件台位项款所只部本张份户支辆间门天月年]"  # measure words


def _any(english: str, chinese: str) -> str:
    return rf"\b(?:{english})\b|{chinese}"


MOST_WORDS = (
    "max(?:imum)?|highest|largest|biggest|greatest|most expensive|most|latest|newest|longest|tallest|top|best|oldest"
    "|priciest"
)
LEAST_WORDS = (
    "min(?:imum)?|lowest|smallest|least expensive|least|fewest|earliest|cheapest|shortest|worst|bottom|youngest"
)
EXTREMES = [
    ("max", _any(MOST_WORDS, "最(?:高|大|多|晚|新|贵|长|好|近|老)|第一(?:名)?")),
    ("min", _any(LEAST_WORDS, "最(?:低|小|少|早|便宜|短|差|年轻)|倒数")),
]
# In this order: "how many different" before "how many".
KINDS = [
    (
        "distinct",
        _any(
            "(?:how many|number of|count(?: the)?)(?: of)? (?:different|distinct|unique)",
            "有?(?:多少|几)[个种]?不同的?|(?:多少|几)种|不重复的?(?:个数|数量)?",
        ),
    ),
    (
        "count",
        _any(
            "how many|(?:number|count) of|count",
            rf"(?:一?共)?有?(?:多少|几){_COUNTED}|多少(?={OPEN})|有多少|个数|[人次件户家台]数|数目|计数|数一数",
        ),
    ),
    ("median", _any("median", "中位数|中值")),
    ("avg", _any("(?:on )?(?:average|avg|mean)", "平均(?:值|数|是)?|均值")),
    (
        "sum",
        _any(
            "(?:grand |in )?total(?:s|ed)?(?: of)?|sum(?: of| up)?|altogether|in all|combined",
            "总(?:和|计|共|额|量|数|的)?|合计|一共|共计|加起来|累计",
        ),
    ),
    *EXTREMES,
]
CALLED = {  # what a result's column is called, after and before the column's own title
    "sum": ("总和", "total"),
    "avg": ("平均值", "average"),
    "median": ("中位数", "median"),
    "max": ("最大值", "highest"),
    "min": ("最小值", "lowest"),
}
GROUP = re.compile(
    rf"(?:\b(?:by|per|for each|for every|of each|in each|each|every|grouped? by|broken down by|across|split by)\s+(?:the\s+)?"
    rf"|各个?|每一?个?|每{_COUNTED}|按照?|分)\s*{MARK}"
)
_EACH = "(?:by|per|each|every)"
PERIODS = {
    "year": _any(f"{_EACH} year|yearly|annual(?:ly)?", "(?:各|每个?|按|分)年(?:份|度)?"),
    "quarter": _any(f"{_EACH} quarter|quarterly", "(?:各|每个?|按|分)季度?"),
    "month": _any(f"{_EACH} month|monthly", "(?:各个?|每个?|按|分)月(?:份|度)?"),
    "week": _any(f"{_EACH} week|weekly", "(?:各|每个?|按|分)(?:周|星期)"),
    "day": _any(f"{_EACH} (?:day|date)|daily", "(?:各|每|按|分)(?:天|日)"),
}
TOP = re.compile(
    rf"\b(?:first|last|{MOST_WORDS}|{LEAST_WORDS})\s+{_NUMBER}\b|\b{_NUMBER}\s+(?:{MOST_WORDS}|{LEAST_WORDS})\b"
    rf"|前\s*{_NUMBER}\s*{_COUNTED}?|后\s*{_NUMBER}\s*{_COUNTED}|最\S的\s*{_NUMBER}\s*{_COUNTED}"
)
WHICH = re.compile(rf"(?:\b(?:which|what)\s+(?:is\s+the\s+|are\s+the\s+)?|哪一?{_COUNTED}?|哪些|什么)\s*{MARK}")
WHO = re.compile(r"\b(?:who|whose)\b|谁")
SORT = re.compile(rf"\b(?:sort|order|rank)(?:ed)? by\s+{MARK}|按照?\s*{MARK}\s*(?:排序|排列|(?=从))")
DOWN = re.compile(r"\bdesc(?:ending)?\b|\bhighest first\b|从[高大多]到|降序|倒序")
NO_GROUP = re.compile(r"\s*(?:排序|排列|从)")
BY_NUMBER = re.compile(r"\b(?:most|fewest|least)\b|最[多少]")  # of how much there is, not of how high it is
AMOUNTS = re.compile(r"quantity|qty|\bunits$|count$|amount|数量|件数|销量|台数|人数|金额")  # columns
COMPARE = re.compile(r"\b(?:compare|versus|vs\.?|respectively|difference|each)\b|分别|对比|比较|各")
NOT = r"\bnot(?: in| from| by)?|\bexcept(?: for)?|\bexcluding|\bother than|\bwithout|除了?|不包括|不含|不是|非"
NOT_BEFORE = re.compile(rf"(?:{NOT})(?:\s+the)?\s*$")
NOT_LEFT = re.compile(rf"(?:{NOT}|以外|之外)(?![a-z])")
# Words that say which column is meant without its name: columns whose titles hold the second are compared by the first.
HINTS = [
    (
        re.compile(r"cheap|expensive|pric(?:y|iest)|cost|贵|便宜|多少钱"),
        re.compile(r"price|cost|amount|fee|单价|价格|售价|价|费用|金额"),
    ),
    (re.compile(r"oldest|youngest|年长|年轻|最老"), re.compile(r"\bage\b|年龄|岁")),
    (re.compile(r"latest|newest|earliest|most recent|最近|最早|最晚|最新"), re.compile(r"date|time|day|日期|时间|日$")),
    (re.compile(r"paid|earns?|salary|工资|薪"), re.compile(r"salary|wage|pay|income|薪|工资|收入")),
]
ROW = re.compile(r"最\S{1,2}的\s*[\u4e00-\u9fff]")  # "the ... with the highest": a row is asked for, not a number
KEYS = re.compile(r"(?:^|[\W_])(?:id|no|nr|number|index|code|year)$|编号|序号|号码|代码|年份|^年$|工号|学号")  # columns
NAMES = re.compile(
    r"name|姓名|名称|名字|人员|employee|customer|person|员工|客户|产品|商品|product|item|title|标题"
)  # columns
# What a question may hold without saying anything that the rules would have to use.
SMALL = re.compile(
    r"\b(?:the|a|an|of|in|on|at|is|are|was|were|be|been|do|does|did|has|have|had|what|which|who|whose|how|much|many|show|list|give"
    r"|tell|find|get|me|us|i|we|you|all|any|please|and|or|for|from|with|to|by|per|that|there|their|its|it|this|these|those|table"
    r"|sheet|file|rows?|records?|entries|items?|when|where|can|could|would|will|each|every|than|as|s|made|sold|only|more"
    r"|less|most|least|number|name|names|data|long|sort|order|sorted|ordered|ascending|descending|desc|asc|chart|plot|graph|draw|bar"
    r"|line|compare|versus|vs|respectively)\b"
    r"|请问?|告诉|给出|列出|显示|查询|查找|找出|统计|计算|看看|一下|我|你|的|了|是|在|有|和|与|及|或|为|吗|呢|吧|什么|哪些?|哪一?[个种位]?|多少"
    r"|怎么样|所有|全部|这|那|里|中|之|个|各|每|按照?|分别?|排名|其中|记录|数据|表格?|行|条|人|名|位|款|种|请|图表?|画|用|它|们|来|都|又|从|到"
    r"|高|低|大|小|排序|排列|降序|升序|谁|几|钱|对比|比较|出|算|求"
)
