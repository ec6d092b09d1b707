"""tinyseek: build your own DeepSeek from zero, and put it to work.

    from tinyseek import CausalLM, ChatModel, Tokenizer
    model = CausalLM.load(folder)
    tokenizer = Tokenizer.load(folder)
    answer = ChatModel.open(folder).complete([{"role": "user", "content": "Who are you?"}])

Names are loaded when they are first used, so that `import tinyseek` costs milliseconds and torch is imported only
where it is needed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
__all__ = ["CausalLM", "ChatModel", "ModelConfig", "Tokenizer", "UserError", "__version__"]

if TYPE_CHECKING:
    from tinyseek.errors import UserError
    from tinyseek.llm.base import ChatModel
    from tinyseek.model.config import ModelConfig
    from tinyseek.model.transformer import CausalLM
    from tinyseek.text.tokenizer import Tokenizer

_HOME = {
    "CausalLM": "tinyseek.model.transformer",
    "ChatModel": "tinyseek.llm.base",
    "ModelConfig": "tinyseek.model.config",
    "Tokenizer": "tinyseek.text.tokenizer",
    "UserError": "tinyseek.errors",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'tinyseek' has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(_HOME[name]), name)
