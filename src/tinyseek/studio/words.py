# ruff: noqa: E501  (a phrase and its translation stand on one line)
"""Every word of the page in English and Chinese. The English phrase is the key."""

from __future__ import annotations

import re
from collections.abc import Sequence

from tinyseek.serve.language import Language, preferred

__all__ = ["CHINESE", "TRIES", "Language", "Words", "preferred"]

_HAN = re.compile("[\u4e00-\u9fff]")


class Words:
    """Says the page's phrases in one language: `Words("zh")("{count} tokens", count="12")`."""

    def __init__(self, language: Language) -> None:
        self.language: Language = language

    def __call__(self, phrase: str, **values: object) -> str:
        said = phrase if self.language == "en" else CHINESE[phrase]
        return said.format(**values) if values else said

    def tries(self, own: Sequence[str] = ()) -> list[tuple[str, str]]:
        """Four topics and questions that an empty conversation offers: those of `own` in this language first; then without topics."""
        fitting = [("", text) for text in own if bool(_HAN.search(text)) == (self.language == "zh")]
        usual = [("" if fitting else topic, text) for topic, text in TRIES[self.language]]
        return [*fitting, *usual][:4]


TRIES: dict[Language, list[tuple[str, str]]] = {
    "en": [
        ("Get to know it", "Who are you?"),
        ("Reckon", "How much is 7 plus 960?"),
        ("Ask", "What is the capital of France?"),
        ("Write", "Write a short poem about the sea."),
    ],
    "zh": [
        ("认识一下", "你是谁？"),
        ("算一算", "7加960等于多少？"),
        ("问一问", "法国的首都是哪里？"),
        ("写一写", "写一首关于大海的小诗。"),
    ],
}

CHINESE = {
    # the list
    "New chat": "新对话",
    "Search": "搜索",
    "Search conversations": "搜索对话",
    "No conversations yet.": "还没有对话。",
    "Nothing found.": "没有找到。",
    "Today": "今天",
    "Yesterday": "昨天",
    "Last seven days": "最近七天",
    "Earlier": "更早",
    "Rename": "重命名",
    "Delete": "删除",
    "Undo": "撤销",
    "“{title}” was deleted.": "已删除“{title}”。",
    "Writing": "正在写",
    "Conversations": "对话列表",
    "Close": "关闭",
    "Language": "语言",
    "Theme: as the system": "主题：跟随系统",
    "Theme: light": "主题：浅色",
    "Theme: dark": "主题：深色",
    # the conversation
    "What would you like to know?": "想聊点什么？",
    "You are talking to {name}, and can look inside every answer.": "你在和 {name} 对话，每个回答都可以看到它的内部。",
    "Ask anything": "问点什么",
    "Message": "消息",
    "Send": "发送",
    "Stop": "停止",
    "sends": "发送",
    "new line": "换行",
    "stops": "停止",
    "To the end": "到最后",
    "Copy": "复制",
    "Copied": "已复制",
    "Edit": "编辑",
    "Cancel": "取消",
    "Another answer": "换一个回答",
    "Look inside": "看看内部",
    "Settings": "设置",
    "Previous version": "上一版",
    "Next version": "下一版",
    "Thinking …": "思考中……",
    "Thought for {time}": "思考了 {time}",
    "Thoughts": "思考",
    "{count} s": "{count} 秒",
    "{minutes} min {seconds} s": "{minutes} 分 {seconds} 秒",
    "{count} tokens": "{count} 个词元",
    "{count} tokens/s": "{count} 词元/秒",
    "{count} read": "读入 {count}",
    "{count} read, {cached} of them from memory": "读入 {count}，其中 {cached} 来自缓存",
    "{count} older messages left out": "未读更早的 {count} 条消息",
    "stopped": "已停止",
    "cut off at the longest length": "到达最大长度",
    "Calls a tool": "调用工具",
    "Result": "结果",
    "Type the tool's result": "填写工具返回的结果",
    "The answer could not be finished.": "回答没能完成。",
    "Try again": "再试一次",
    "The model said nothing.": "模型什么也没说。",
    "An answer is still being written here; wait for it or stop it.": "这里的回答还没写完，请等一等或先停止。",
    "You have {count} answers being written already; wait for one to end.": "你已有 {count} 个回答正在写，请等其中一个结束。",
    "This conversation is gone.": "这个对话已不存在。",
    "Connection lost.": "连接断开。",
    "Trying to reconnect …": "正在重新连接……",
    # settings
    "How the model answers in this conversation. New ones begin with the same.": "模型在本对话中如何回答。新对话沿用同样的设置。",
    "System prompt": "系统提示词",
    "Model": "模型",
    "who answers": "由谁来回答",
    "Thinking": "思考",
    "Temperature": "温度",
    "Top-p": "Top-p",
    "Longest answer": "最大长度",
    "Seed": "随机种子",
    "Top-k": "Top-k",
    "Min-p": "Min-p",
    "Repetition penalty": "重复惩罚",
    "Presence penalty": "存在惩罚",
    "Frequency penalty": "频率惩罚",
    "Tools": "工具",
    "automatic": "自动",
    "on": "开",
    "off": "关",
    "Automatic": "自动",
    "More": "更多",
    "instructions that stand before the conversation": "放在对话之前的指示",
    "whether the model thinks before it answers": "回答之前是否先思考",
    "0 takes the likeliest token; about 0.7 is lively": "0 总取最可能的词元；0.7 左右较活泼",
    "draw among the likeliest tokens that together hold this much probability": "只在合计占这么多概率的词元里抽取",
    "longest answer, in tokens": "回答最多多少个词元",
    "the same seed draws the same answer": "种子相同，抽到的回答就相同",
    "draw among this many likeliest tokens": "只在这么多个最可能的词元里抽取",
    "leave out tokens less likely than this share of the likeliest": "排除概率低于最可能者这个比例的词元",
    "above 1 discourages tokens that were used": "大于 1 时少用已出现过的词元",
    "above 0 asks for new subjects": "大于 0 时多谈新内容",
    "above 0 discourages saying the same often": "大于 0 时少说同样的话",
    "functions that the model may call: a JSON list, as OpenAI has it": "模型可以调用的函数：JSON 列表，格式同 OpenAI",
    # inside
    "Reading …": "正在读……",
    "Only a model that runs here can be looked into.": "只有在本机运行的模型才能看到内部。",
    "expected": "意料之中",
    "surprising": "意料之外",
    "tokens in the answer": "回答的词元数",
    "were the likeliest choice": "是最可能的选择",
    "bits of surprise a token": "每词元的意外（比特）",
    "Click a token of the answer to see what else the model considered, which experts worked on it and where it looked.": "点一下回答中的词元，看看模型还考虑过什么、由哪些专家处理、注意到了哪里。",
    "Ask something first; then look into the answer.": "先问点什么，再看回答的内部。",
    "Where it hesitated": "犹豫之处",
    "The answer's least expected tokens, with the probability that the model gave them.": "回答中最出乎意料的词元，以及模型给它们的概率。",
    "probability": "概率",
    "no. {rank}": "第 {rank}",
    "of {count}": "共 {count}",
    "Token before": "前一个词元",
    "Token after": "后一个词元",
    "Alternatives": "其他可能",
    "as open as {count} equal choices": "相当于 {count} 选一",
    "no doubt at all": "毫不犹豫",
    "What the model thought could come here, before temperature and top‑p have their say.": "模型认为此处可能出现的词元（温度和 top-p 作用之前）。",
    "Layer by layer": "逐层",
    "What the model would have said had it stopped after each layer; the stronger the shade, the surer. Framed: what came.": "若停在每一层之后，模型会说什么：颜色越深越有把握；带框的就是实际出现的词元。",
    "after layer {layer}: {share}; the token that came: {own}": "第 {layer} 层之后：{share}；实际词元：{own}",
    "Experts": "专家",
    "This model has no experts: every token goes through the same layers.": "这个模型没有专家：每个词元都经过相同的层。",
    "one dense layer for all": "稠密层，所有词元共用",
    "all": "共享",
    "layer {layer}, expert {expert}: {share}": "第 {layer} 层，专家 {expert}：{share}",
    "shared: every token goes here": "共享专家：每个词元都经过",
    "{active} of {count} a layer": "每层 {count} 选 {active}",
    "In each layer (a row) a router sent this token to a few experts; the figure is each one's share of the work, in per cent.": "每一层（一行）由路由器把这个词元交给少数几位专家；数字是各自分担的百分比。",
    " The striped one is shared by all tokens.": "斜纹的一列为所有词元共享。",
    "Attention": "注意力",
    "Everything that the model had read when it stood at this token; the bluer, the more it looked there.": "模型走到这个词元时读过的全部内容；越蓝，表示看得越多。",
    "layer": "层",
    "head": "头",
    "mean": "平均",
    "… {count} earlier tokens: {share} ": "……更早的 {count} 个词元：{share} ",
    "Memory": "缓存",
    "The beginning of this prompt that the model had read before was not read again.": "提示词开头读过的部分没有再读一遍。",
    "{count} reused": "{count} 复用",
    "{count} read anew": "{count} 新读",
    "of {count} tokens": "共 {count} 个词元",
    "The engine's blocks of {size} tokens: in use now, kept in case a prompt begins alike, and free.": "引擎的缓存块，每块 {size} 个词元：使用中、留给开头相同的提示词、空闲。",
    "{count} in use": "{count} 使用中",
    "{count} kept": "{count} 保留",
    "{count} free": "{count} 空闲",
}
