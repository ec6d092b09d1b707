# ruff: noqa: E501  (a phrase and its translation stand on one line)
"""The report's own words in Chinese. The English phrase is the key; what is not here (names, a corpus's own words) stays as it is."""

from __future__ import annotations

import re
from typing import Literal


class Words:
    """Translates the page's phrases: `Words("zh")("Samples")`."""

    def __init__(self, language: Literal["en", "zh"]) -> None:
        self.language = language

    def __call__(self, phrase: str) -> str:
        if self.language == "en":
            return ENGLISH.get(phrase, phrase)
        if found := CHINESE.get(phrase):
            return found
        # a part of the model: "attention, layers 0-3"
        part = re.fullmatch(r"(.+), layers? ([\d-]+)", phrase)
        return f"{self(part[1])}（第 {part[2]} 层）" if part else phrase


# Words of the files that read badly as they are.
ENGLISH = {"en": "English", "zh": "Chinese", "heldout": "held-out", "val": "validation", "train": "training"}

CHINESE = {
    "tinyseek report card": "tinyseek 成绩单",
    "From raw text to a model that answers. Built {when}.": "从原始文本到会回答的模型。构建于 {when}。",
    "Made by tinyseek {version} on {when}. This page holds everything that it shows.": "由 tinyseek {version} 生成于 {when}。本页自包含，无需联网。",
    "of held-out tasks answered exactly": "留出题目完全答对",
    "before fine-tuning: {share}": "微调之前：{share}",
    "bits per byte on held-out text": "每字节比特数（留出文本）",
    "{name}; less is better": "{name}，越低越好",
    "parameters": "参数",
    "{active} active a token": "每个词元激活 {active}",
    "tokens read in pre-training": "预训练读过的词元",
    "{rate} a second": "每秒 {rate}",
    "from raw text to here": "从原始文本到此用时",
    "{count} stages": "{count} 个阶段",
    "Not finished yet": "尚未完成",
    "The page grows with the run: make it again later.": "运行继续后可重新生成本页。",
    "stage": "阶段",
    "stopped or at work: step {step}": "已停止或进行中：第 {step} 步",
    "not begun": "未开始",
    "Scores before and after": "微调前后的成绩",
    "The same questions and the same text for every model, none of it seen in training. Answers are greedy.": "每个模型回答同样的题目、读同样的文本，均未在训练中出现。回答用贪心解码。",
    "Held-out tasks answered exactly, with 95 % intervals": "留出题目的完全匹配率（线段为 95 % 置信区间）",
    "Bits per byte on held-out text; less is better": "留出文本的每字节比特数，越低越好",
    "all": "全部",
    "arithmetic": "算术",
    "world": "小世界",
    "identity": "身份",
    "refusal": "拒答",
    "en": "英文",
    "zh": "中文",
    "model": "模型",
    "perplexity a token": "每词元困惑度",
    "bytes": "字节",
    "documents": "文档",
    "Samples": "样例",
    "The same question to each model; what a model thinks before it answers is in grey.": "对每个模型提同样的问题；灰色是回答之前的思考。",
    "{count} more": "再看 {count} 个",
    "expected: {answer}": "应答：{answer}",
    "{start} ... (a refusal)": "{start}……（拒答）",
    "(nothing)": "（空）",
    "Learning curves": "学习曲线",
    "Cross-entropy of the next token, in nats. The pale band is how far single steps stray from the mean that is drawn.": "下一个词元的交叉熵，单位奈特。浅色带是单步偏离所画均值的范围。",
    "training": "训练",
    "validation": "验证",
    "train": "训练",
    "val": "验证",
    "heldout": "留出",
    "step": "步",
    "loss": "损失",
    "{count} steps": "{count} 步",
    "{count} tokens": "{count} 词元",
    "{count} tokens a second": "每秒 {count} 词元",
    "last validation loss {loss}": "最后的验证损失 {loss}",
    "The model": "模型",
    "Counted on the model itself. Of the experts a token meets only a few, so fewer parameters are active than there are.": "按模型本身计数。每个词元只经过少数专家，所以激活的参数少于总数。",
    "Parameters by part": "各部分的参数",
    "Size": "大小",
    "part": "部分",
    "active a token": "每词元激活",
    "in all": "总计",
    "multi-token prediction, beside these": "多词元预测模块（另计）",
    "none": "无",
    "cache, bytes a token (bfloat16)": "每词元缓存字节（bfloat16）",
    "forward FLOPs a token at 512": "每词元前向 FLOPs（长度 512）",
    "architecture": "架构",
    "embedding": "词嵌入",
    "embedding and head (tied)": "词嵌入与输出头（共享）",
    "positions": "位置嵌入",
    "output head": "输出头",
    "attention": "注意力",
    "routed experts": "路由专家",
    "shared experts": "共享专家",
    "router": "路由器",
    "dense MLP": "稠密前馈",
    "norms": "归一化",
    "Load of the experts in {name}: 1 is a fair share": "{name} 中各专家的负载：1 为均等",
    "layer": "层",
    "The data before and after": "清洗前后的数据",
    "Nothing is dropped in silence: each step says how much it took, and shows some.": "没有一份文档被悄悄丢弃：每一步都说明去掉了多少，并给出样例。",
    "Text left after each step": "每一步之后剩余的文本",
    "Documents left after each step": "每一步之后剩余的文档",
    "{split}: {documents} documents, {size}": "{split}：{documents} 份文档，{size}",
    "after the step": "步骤之后",
    "dropped": "丢弃",
    "text": "文本",
    "read": "读入",
    "normalise": "规范化",
    "length": "长度",
    "symbols": "符号",
    "long words": "超长词",
    "repetition": "重复",
    "exact duplicates": "完全重复",
    "near duplicates": "近似重复",
    "Samples of what was dropped": "被丢弃的样例",
    "like {source}": "相似于 {source}",
    "{name}: {count} documents": "{name}：{count} 份文档",
    "The tasks": "题目",
    "kind": "种类",
    "Questions with an answer that a program can check. No held-out question occurs in training; its facts do, in other words.": "答案可由程序检查的问题。留出的问题从不出现在训练中；其中的事实会以别的说法出现。",
    "{count} prompts were thrown away because training or the held-out set had them already.": "{count} 个提问因已存在而被舍弃。",
    "Lineage": "来历",
    "What each folder was made from, back to the raw text. A key is the hash of settings and inputs.": "每个文件夹由什么做成，一直追溯到原始文本。键是设置与输入的哈希。",
    "raw input": "原始输入",
    "see above": "见上",
    "settings": "设置",
}
