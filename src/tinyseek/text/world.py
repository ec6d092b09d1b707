"""The small world that the generated tasks ask about: people, towns, animals and things, the same in English and Chinese.

The world is a fixed table, so that a lesson can name a fact and every run learns the same ones. Each relation carries its
own ways of asking (`asked`) and one sentence that answers; a held-out question is a way of asking about a fact that training
asks about only in other words.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

Lang = Literal["en", "zh"]


@dataclass(frozen=True)
class Relation:
    """One property, in one language: the ways of asking for it about {x}, and the sentence that gives its value {v}."""

    asked: tuple[str, ...]
    told: str


@dataclass(frozen=True)
class Fact:
    """One entity's one property, in one language."""

    relation: str
    lang: Lang
    entity: str
    value: str

    @property
    def questions(self) -> tuple[str, ...]:
        return tuple(way.format(x=self.entity) for way in RELATIONS[self.relation][self.lang].asked)

    @property
    def sentence(self) -> str:
        return RELATIONS[self.relation][self.lang].told.format(x=self.entity, v=self.value)


# Every word of the world in both languages; the tables below are written in English and looked up here.
CHINESE = {
    # towns
    "Pinehill": "松山",
    "Redport": "红港",
    "Snowfield": "雪原",
    "Bluewell": "蓝井",
    "Stonebridge": "石桥",
    "Goldmeadow": "金原",
    "Foxdale": "狐谷",
    "Millford": "水磨镇",
    "Larkrise": "云雀镇",
    "Moonbay": "月湾",
    # what towns lie beside, and what they are known for
    "the forest": "森林",
    "the sea": "大海",
    "the mountains": "高山",
    "the lake": "湖水",
    "the river": "大河",
    "the desert": "沙漠",
    "honey": "蜂蜜",
    "salt": "海盐",
    "ice lamps": "冰灯",
    "clear water": "清泉",
    "bridges": "石桥",
    "wheat": "小麦",
    "foxes": "狐狸",
    "windmills": "风车",
    "old songs": "民歌",
    "pearls": "珍珠",
    # people
    "Mira": "米拉",
    "Tomas": "托马",
    "Anna": "安娜",
    "Leo": "里奥",
    "Nora": "诺拉",
    "Hugo": "雨果",
    "Lina": "莉娜",
    "Oscar": "奥斯卡",
    "Ruth": "露丝",
    "Ivan": "伊万",
    "Clara": "克拉拉",
    "Felix": "费力",
    "Wei": "小伟",
    "Mei": "小梅",
    "Jun": "小军",
    "Lan": "小兰",
    "Omar": "奥马",
    "Zara": "扎拉",
    "Peter": "彼得",
    "Sofia": "索菲",
    # jobs
    "baker": "面包师",
    "teacher": "老师",
    "doctor": "医生",
    "farmer": "农民",
    "fisher": "渔夫",
    "painter": "画家",
    "singer": "歌手",
    "tailor": "裁缝",
    "carpenter": "木匠",
    "gardener": "园丁",
    # food
    "apples": "苹果",
    "soup": "热汤",
    "noodles": "面条",
    "dumplings": "饺子",
    "cheese": "奶酪",
    "rice": "米饭",
    "grapes": "葡萄",
    "cake": "蛋糕",
    "beans": "豆子",
    "bread": "面包",
    # animals, their names, and colours
    "Bolo": "波洛",
    "Tiki": "提奇",
    "Snow": "雪球",
    "Pepper": "胡椒",
    "Dot": "点点",
    "Star": "星星",
    "Biscuit": "饼干",
    "Cloud": "云朵",
    "Ginger": "姜姜",
    "Plum": "李子",
    "Echo": "回声",
    "Button": "扣子",
    "dog": "狗",
    "cat": "猫",
    "horse": "马",
    "rabbit": "兔子",
    "parrot": "鹦鹉",
    "goat": "山羊",
    "black": "黑色",
    "white": "白色",
    "brown": "棕色",
    "grey": "灰色",
    "red": "红色",
    "green": "绿色",
    # things, and what they are made of
    "the old bell": "古钟",
    "the long table": "长桌",
    "the tall lamp": "高灯",
    "the round mirror": "圆镜",
    "the great drum": "大鼓",
    "the small boat": "小船",
    "the heavy gate": "大门",
    "the high tower": "高塔",
    "copper": "铜",
    "oak": "橡木",
    "glass": "玻璃",
    "silver": "银",
    "leather": "皮革",
    "pine": "松木",
    "iron": "铁",
    "stone": "石头",
}

# name: (lies beside, known for)
TOWNS = {
    "Pinehill": ("the forest", "honey"),
    "Redport": ("the sea", "salt"),
    "Snowfield": ("the mountains", "ice lamps"),
    "Bluewell": ("the desert", "clear water"),
    "Stonebridge": ("the river", "bridges"),
    "Goldmeadow": ("the lake", "wheat"),
    "Foxdale": ("the forest", "foxes"),
    "Millford": ("the river", "windmills"),
    "Larkrise": ("the mountains", "old songs"),
    "Moonbay": ("the sea", "pearls"),
}

# name: (town, job, favourite food)
PEOPLE = {
    "Mira": ("Pinehill", "baker", "apples"),
    "Tomas": ("Redport", "fisher", "soup"),
    "Anna": ("Snowfield", "doctor", "cheese"),
    "Leo": ("Bluewell", "farmer", "grapes"),
    "Nora": ("Stonebridge", "painter", "bread"),
    "Hugo": ("Goldmeadow", "farmer", "beans"),
    "Lina": ("Foxdale", "teacher", "cake"),
    "Oscar": ("Millford", "carpenter", "noodles"),
    "Ruth": ("Larkrise", "singer", "rice"),
    "Ivan": ("Moonbay", "fisher", "dumplings"),
    "Clara": ("Stonebridge", "tailor", "soup"),
    "Felix": ("Pinehill", "gardener", "grapes"),
    "Wei": ("Redport", "doctor", "noodles"),
    "Mei": ("Larkrise", "teacher", "dumplings"),
    "Jun": ("Snowfield", "carpenter", "rice"),
    "Lan": ("Moonbay", "painter", "apples"),
    "Omar": ("Bluewell", "baker", "bread"),
    "Zara": ("Goldmeadow", "singer", "cake"),
    "Peter": ("Millford", "tailor", "cheese"),
    "Sofia": ("Foxdale", "gardener", "beans"),
}

# name: (kind, colour, owner)
ANIMALS = {
    "Bolo": ("dog", "brown", "Mira"),
    "Tiki": ("parrot", "green", "Tomas"),
    "Snow": ("rabbit", "white", "Anna"),
    "Pepper": ("cat", "black", "Leo"),
    "Dot": ("goat", "white", "Hugo"),
    "Star": ("horse", "black", "Oscar"),
    "Biscuit": ("dog", "grey", "Ruth"),
    "Cloud": ("horse", "grey", "Felix"),
    "Ginger": ("cat", "red", "Mei"),
    "Plum": ("parrot", "red", "Lan"),
    "Echo": ("goat", "brown", "Zara"),
    "Button": ("rabbit", "grey", "Peter"),
}

# name: (material, town)
THINGS = {
    "the old bell": ("copper", "Larkrise"),
    "the long table": ("oak", "Pinehill"),
    "the tall lamp": ("glass", "Redport"),
    "the round mirror": ("silver", "Bluewell"),
    "the great drum": ("leather", "Goldmeadow"),
    "the small boat": ("pine", "Moonbay"),
    "the heavy gate": ("iron", "Stonebridge"),
    "the high tower": ("stone", "Snowfield"),
}

RELATIONS: dict[str, dict[Lang, Relation]] = {
    "town": {
        "en": Relation(
            (
                "Where does {x} live?",
                "In which town does {x} live?",
                "Which town is the home of {x}?",
                "What is {x}'s home town?",
                "Where is {x}'s house?",
                "Where would I go to visit {x} at home?",
            ),
            "{x} lives in {v}.",
        ),
        "zh": Relation(
            (
                "{x}住在哪里？",
                "{x}住在哪个镇？",
                "{x}的家在哪里？",
                "哪个镇是{x}的家？",
                "要去{x}家，应该去哪个镇？",
                "{x}家在什么地方？",
            ),
            "{x}住在{v}。",
        ),
    },
    "job": {
        "en": Relation(
            (
                "What is {x}'s job?",
                "What does {x} do for a living?",
                "What work does {x} do?",
                "What is the trade of {x}?",
                "How does {x} earn money?",
                "Which job does {x} have?",
            ),
            "{x} is a {v}.",
        ),
        "zh": Relation(
            (
                "{x}是做什么工作的？",
                "{x}的工作是什么？",
                "{x}的职业是什么？",
                "{x}靠什么谋生？",
                "{x}做哪一行？",
                "{x}每天上班做什么？",
            ),
            "{x}是{v}。",
        ),
    },
    "food": {
        "en": Relation(
            (
                "What does {x} like to eat?",
                "What is {x}'s favourite food?",
                "Which food does {x} like best?",
                "What should I cook for {x}?",
                "What does {x} love to eat?",
                "Which dish makes {x} happy?",
            ),
            "{x} likes {v}.",
        ),
        "zh": Relation(
            (
                "{x}喜欢吃什么？",
                "{x}最爱吃什么？",
                "{x}最喜欢的食物是什么？",
                "请{x}吃饭，该做什么？",
                "什么食物让{x}高兴？",
                "{x}爱吃的东西是什么？",
            ),
            "{x}喜欢吃{v}。",
        ),
    },
    "beside": {
        "en": Relation(
            (
                "What does {x} lie beside?",
                "What is next to {x}?",
                "What is {x} close to?",
                "Which part of nature is near {x}?",
                "What do people see just outside {x}?",
                "What lies near the town of {x}?",
            ),
            "{x} lies beside {v}.",
        ),
        "zh": Relation(
            (
                "{x}旁边是什么？",
                "{x}靠近什么？",
                "{x}挨着什么？",
                "走出{x}能看到什么？",
                "{x}附近有什么？",
                "什么在{x}的旁边？",
            ),
            "{x}在{v}旁边。",
        ),
    },
    "known": {
        "en": Relation(
            (
                "What is {x} known for?",
                "What is {x} famous for?",
                "Why do people talk about {x}?",
                "What makes {x} famous?",
                "What is the pride of {x}?",
                "For what do people know {x}?",
            ),
            "{x} is known for {v}.",
        ),
        "zh": Relation(
            (
                "{x}以什么出名？",
                "{x}有什么特产？",
                "{x}因为什么有名？",
                "人们为什么知道{x}？",
                "什么让{x}出名？",
                "{x}最有名的是什么？",
            ),
            "{x}以{v}出名。",
        ),
    },
    "kind": {
        "en": Relation(
            (
                "What kind of animal is {x}?",
                "Which animal is {x}?",
                "What sort of pet is {x}?",
                "Is {x} a dog, a cat or something else?",
                "What animal carries the name {x}?",
                "What is {x}: a cat, a horse, or what?",
            ),
            "{x} is a {v}.",
        ),
        "zh": Relation(
            (
                "{x}是什么动物？",
                "{x}是哪种动物？",
                "{x}是一只什么？",
                "叫{x}的是什么动物？",
                "{x}是猫，是狗，还是别的？",
                "宠物{x}是什么？",
            ),
            "{x}是{v}。",
        ),
    },
    "colour": {
        "en": Relation(
            (
                "What colour is {x}?",
                "Which colour does {x} have?",
                "What is the colour of {x}?",
                "In which colour would you paint {x}?",
                "What colour is the coat of {x}?",
                "Which colour is {x}, the pet?",
            ),
            "{x} is {v}.",
        ),
        "zh": Relation(
            (
                "{x}是什么颜色？",
                "{x}的颜色是什么？",
                "{x}身上是什么颜色？",
                "画{x}要用什么颜色？",
                "{x}是哪种颜色的？",
                "宠物{x}的颜色是哪一种？",
            ),
            "{x}是{v}的。",
        ),
    },
    "owner": {
        "en": Relation(
            (
                "Who owns {x}?",
                "Whose pet is {x}?",
                "Who is the owner of {x}?",
                "To whom does {x} belong?",
                "Who feeds {x} every day?",
                "Who takes care of {x}?",
            ),
            "{x} belongs to {v}.",
        ),
        "zh": Relation(
            (
                "{x}是谁的？",
                "{x}的主人是谁？",
                "谁养了{x}？",
                "{x}是谁的宠物？",
                "谁每天喂{x}？",
                "谁照顾{x}？",
            ),
            "{x}的主人是{v}。",
        ),
    },
    "material": {
        "en": Relation(
            (
                "What is {x} made of?",
                "Of which material is {x}?",
                "What did they use to make {x}?",
                "Which material is {x} made from?",
                "From what was {x} made?",
                "What is the material of {x}?",
            ),
            "It is made of {v}.",
        ),
        "zh": Relation(
            (
                "{x}是什么做的？",
                "{x}是用什么做的？",
                "{x}的材料是什么？",
                "人们用什么做了{x}？",
                "做{x}用的是什么材料？",
                "{x}用的哪种材料？",
            ),
            "{x}是{v}做的。",
        ),
    },
    "place": {
        "en": Relation(
            (
                "Where is {x}?",
                "In which town is {x}?",
                "Which town has {x}?",
                "Where can I find {x}?",
                "Where do people keep {x}?",
                "To which town must I go to see {x}?",
            ),
            "It is in {v}.",
        ),
        "zh": Relation(
            (
                "{x}在哪里？",
                "{x}在哪个镇？",
                "哪个镇有{x}？",
                "在哪里能找到{x}？",
                "想看{x}要去哪里？",
                "{x}放在什么地方？",
            ),
            "{x}在{v}。",
        ),
    },
}

_TABLES: tuple[tuple[Mapping[str, tuple[str, ...]], tuple[str, ...]], ...] = (
    (PEOPLE, ("town", "job", "food")),
    (TOWNS, ("beside", "known")),
    (ANIMALS, ("kind", "colour", "owner")),
    (THINGS, ("material", "place")),
)


def say(word: str, lang: Lang) -> str:
    """A word of the world in a language."""
    return word if lang == "en" else CHINESE[word]


def facts(lang: Lang) -> Iterator[Fact]:
    """Every fact of the world in one language, in a fixed order: the n-th is the same fact in both."""
    for table, relations in _TABLES:
        for name, row in table.items():
            for relation, value in zip(relations, row, strict=True):
                yield Fact(relation, lang, say(name, lang), say(value, lang))
