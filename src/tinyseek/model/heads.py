"""A head that reads a text as a whole: a class for each, or one number (a reward, a value), over any CausalLM without its own head.

On disk it is transformers' ...ForSequenceClassification: the trunk's tensors, `score.weight` [labels, D], and the labels' names and
`pad_token_id` in config.json. The head reads the last token that is not `pad_token_id`, found just as transformers finds it: in the
ids themselves, so that a text whose real last token is that one is read at the token before, here as there.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tinyseek.errors import UserError
from tinyseek.model import adapter, interchange, lora
from tinyseek.model.adapter import Base
from tinyseek.model.config import ModelConfig
from tinyseek.model.lora_config import LoraConfig
from tinyseek.model.transformer import CausalLM

SCALAR = ("LABEL_0",)  # what transformers calls the one output of a reward model
_ENDS_WITH = "ForSequenceClassification"


class SequenceClassifier(nn.Module):
    """A trunk and a linear head on its last norm's output. One label makes it a reward or value model.

    classifier = SequenceClassifier.load(folder)              # ours or transformers'
    logits_BL = classifier(ids_BT)                            # rows padded at their right with classifier.pad_id
    values_BTL = classifier.per_token(ids_BT, documents_BT)   # PPO's values
    classifier.save(folder)
    """

    def __init__(self, trunk: CausalLM, labels: Sequence[str] = SCALAR, pad_id: int | None = None) -> None:
        """A fresh head over a trunk, which is used as it is: shared if it is somebody else's too.

        Args:
            labels: names of the classes, in order.
            pad_id: the token that is no text; none: every row is text to its end.
        Raises:
            ValueError: no label.
        """
        super().__init__()
        if not labels:
            raise ValueError("a head needs a label at least")
        self.trunk = trunk
        self.labels = list(labels)
        self.pad_id = pad_id
        self.score = nn.Linear(trunk.config.hidden_size, len(labels), bias=False, device=trunk.device)
        nn.init.normal_(self.score.weight, 0.0, trunk.config.initializer_range)

    @property
    def config(self) -> ModelConfig:
        """The trunk's."""
        return self.trunk.config

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.score.weight.device

    # ---- reading ----

    def forward(self, ids_BT: Tensor, last_B: Tensor | None = None) -> Tensor:
        """Each row's logits, float32 [B, labels].

        Args:
            ids_BT: token ids, rows padded at their right.
            last_B: where to read each row; none: `last_real`.
        """
        last_B = self.last_real(ids_BT) if last_B is None else last_B
        hidden_BTD, _, _ = self.trunk.hidden(ids_BT)
        return self.scored(hidden_BTD[torch.arange(len(ids_BT), device=ids_BT.device), last_B])

    def at(self, ids_BT: Tensor, documents_BT: Tensor | None, places_M: Tensor) -> Tensor:
        """Logits at chosen places of rows that hold several texts, float32 [M, labels].

        Args:
            documents_BT: which text of its row each token belongs to.
            places_M: positions among the B * T.
        """
        hidden_BTD, _, _ = self.trunk.hidden(ids_BT, documents_BT)
        return self.scored(hidden_BTD.flatten(0, 1).index_select(0, places_M))

    def per_token(self, ids_BT: Tensor, documents_BT: Tensor | None = None) -> Tensor:
        """Logits at every position, float32 [B, T, labels]: PPO's values, with one label."""
        hidden_BTD, _, _ = self.trunk.hidden(ids_BT, documents_BT)
        return self.scored(hidden_BTD)

    def scored(self, hidden: Tensor) -> Tensor:
        """The head on hidden states [..., D], in float32 always: rewards are differences of close numbers."""
        with torch.autocast(hidden.device.type, enabled=False):
            return F.linear(hidden.float(), self.score.weight.float())

    def last_real(self, ids_BT: Tensor) -> Tensor:
        """Where transformers reads each row, int64 [B]: at its last token that is not `pad_id`; at 0 if all are."""
        if self.pad_id is None:
            return torch.full((len(ids_BT),), ids_BT.shape[1] - 1, device=ids_BT.device)
        index_T = torch.arange(ids_BT.shape[1], device=ids_BT.device)
        return ((ids_BT != self.pad_id) * index_T).argmax(-1)

    def last_of(self, ids: Sequence[int]) -> int:
        """`last_real` of one text that is not padded."""
        return next((at for at in range(len(ids) - 1, -1, -1) if ids[at] != self.pad_id), 0)

    # ---- on disk ----

    @classmethod
    def load(
        cls, folder: str | Path, dtype: torch.dtype = torch.float32, device: str | torch.device = "cpu"
    ) -> SequenceClassifier:
        """Read a ...ForSequenceClassification folder, ours or transformers', or an adapter that has such a head.

        Raises:
            UserError: no such folder, a folder of something else, damaged or missing tensors.
        """
        folder = Path(folder)
        if adapter.is_adapter(folder):
            return load_adapter(folder, dtype, torch.device(device))
        head = read_head(folder)
        if head is None:
            raise UserError(
                f"{folder}: has no head for classes (config.json is not of a ...{_ENDS_WITH}); train one with tinyseek classify"
            )
        from tinyseek.model import checkpoint

        trunk = checkpoint.load(CausalLM, folder, dtype, torch.device(device), head=False)
        classifier = cls(trunk, head.labels, head.pad_id)
        weight = checkpoint.tensor(folder, "score.weight")
        if weight.shape != classifier.score.weight.shape:
            raise UserError(
                f"{folder}: score.weight is {list(weight.shape)}, but config.json makes it {list(classifier.score.weight.shape)}"
            )
        classifier.score.weight = nn.Parameter(weight.to(device, torch.float32))
        return classifier.eval()

    def save(self, folder: str | Path, dtype: torch.dtype | None = None) -> None:
        """Write the folder that `load` and transformers read.

        Args:
            dtype: of the weights on disk; none keeps the trunk's.
        Raises:
            UserError: the folder cannot be written, or the disk is full.
        """
        from tinyseek.model import checkpoint

        dtype = dtype or self.trunk.dtype
        config = self.config.model_copy(update={"num_nextn_predict_layers": 0})
        body = {
            name: tensor
            for name, tensor in self.trunk.state_dict().items()
            if name != "lm_head.weight" and not name.startswith("mtp.")
        }
        tensors = dict(interchange.tensors_to_hf(config, body)) | {"score.weight": self.score.weight}
        checkpoint.write(tensors, interchange.config_to_hf(config, dtype) | self.head_config(), Path(folder), dtype)

    def head_config(self) -> dict[str, Any]:
        """What config.json says of the head."""
        family = interchange.ARCHITECTURES[self.config.model_type].partition("For")[0].removesuffix("LMHeadModel")
        return {
            "architectures": [f"{family}{_ENDS_WITH}"],
            "id2label": {str(number): label for number, label in enumerate(self.labels)},
            "label2id": {label: number for number, label in enumerate(self.labels)},
            "pad_token_id": self.pad_id,
            "problem_type": "single_label_classification" if len(self.labels) > 1 else "regression",
            "use_cache": False,
        }


@dataclass(frozen=True)
class Head:
    """What a folder says of its head."""

    labels: tuple[str, ...]
    pad_id: int | None


def read_head(folder: Path) -> Head | None:
    """The head of a model folder or an adapter, none if it has none; weights are not read.

    Raises:
        UserError: a config.json that cannot be read, or labels that are not numbered from 0.
    """
    if adapter.is_adapter(folder):
        said = adapter.read_extra(folder).get("head")
        return Head(tuple(said["labels"]), said["pad_id"]) if said else None
    file = folder / "config.json"
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{folder}: no config.json in it, so it is no model folder") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{file}: cannot be read as JSON ({error})") from None
    if not isinstance(values, dict) or not any(
        str(name).endswith(_ENDS_WITH) for name in values.get("architectures") or ()
    ):
        return None
    names = values.get("id2label")
    if not names:
        names = {str(number): f"LABEL_{number}" for number in range(int(values.get("num_labels") or 2))}
    numbers = [str(number) for number in range(len(names))]
    if not isinstance(names, dict) or sorted(map(str, names)) != sorted(numbers):
        raise UserError(f"{file}: id2label should name the labels 0 to {len(names) - 1}, each once")
    pad = values.get("pad_token_id")
    return Head(tuple(str(names[number]) for number in numbers), pad if isinstance(pad, int) and pad >= 0 else None)


def is_classifier(folder: Path) -> bool:
    """Whether a folder holds a model or an adapter with such a head."""
    try:
        return read_head(folder) is not None
    except UserError:
        return False


# ---- over a base -----------------------------------------------------------------------------------------------------------------


def load_trunk(folder: Path, dtype: torch.dtype = torch.float32, device: str | torch.device = "cpu") -> CausalLM:
    """A model for a head to lie on: without its own head, of whatever kind, and without token prediction ahead.

    A head that shares its weight with the embedding stays, since it takes no memory.

    Raises:
        UserError: see `CausalLM.load`.
    """
    if not adapter.is_adapter(folder) and read_head(folder) is not None:
        return SequenceClassifier.load(folder, dtype, device).trunk
    return without_head(CausalLM.load(folder, dtype, device))


def without_head(model: CausalLM) -> CausalLM:
    """The same model without what only writes text: the head, unless it is the embedding too, and the modules that look ahead."""
    if model.config.num_nextn_predict_layers:
        model.mtp = nn.ModuleList()
        model.config = model.config.model_copy(update={"num_nextn_predict_layers": 0})
    if not model.config.tie_word_embeddings:
        model.lm_head = no_words(model.config)
    return model


def no_words(config: ModelConfig) -> nn.Linear:
    """The head of a model that writes nothing: no rows."""
    head = nn.Linear(config.hidden_size, 1, bias=False, device="meta")  # with no rows at once, torch would warn
    head.out_features = 0
    head.weight = nn.Parameter(torch.empty(0, config.hidden_size), requires_grad=False)
    return head


# ---- adapters --------------------------------------------------------------------------------------------------------------------


def save_adapter(
    classifier: SequenceClassifier, folder: Path, config: LoraConfig, base: Base, near: Path | None = None
) -> str:
    """Write the trunk's changes and the head as an adapter: PEFT's of the task SEQ_CLS, with the head among `modules_to_save`.

    Returns:
        Why PEFT cannot read it, or "" where it can. See `adapter.save_adapter`.
    """
    head = {"labels": classifier.labels, "pad_id": classifier.pad_id}
    beside = {"score.weight": classifier.score.weight.detach()}
    return adapter.save_adapter(classifier.trunk, folder, config, base, near, "SEQ_CLS", beside, {"head": head})


def load_adapter(
    folder: Path, dtype: torch.dtype = torch.float32, device: torch.device | None = None, base: Path | None = None
) -> SequenceClassifier:
    """An adapter with a head, merged into its base.

    Raises:
        UserError: an adapter without a head; no base or another one; a damaged file.
    """
    where = base or adapter.find_base(folder)
    trunk = load_trunk(where, dtype, device or "cpu") if is_classifier(where) else None
    trunk = trunk or CausalLM.load(where, dtype, device or "cpu")
    adapter.check_base(folder, adapter.fingerprint(trunk), str(where))
    head = read_head(folder)
    read = adapter.read_adapter(folder, trunk.config)
    weight = read.whole.get("score.weight")
    if weight is None:
        raise UserError(f"{folder}: an adapter without a head for classes (no score.weight in it)")
    labels = head.labels if head else tuple(f"LABEL_{number}" for number in range(len(weight)))
    classifier = SequenceClassifier(without_head(trunk), labels, head.pad_id if head else None)
    lay_on(classifier, read)
    lora.merge(classifier.trunk)
    return classifier.requires_grad_(True).eval()


@torch.no_grad()
def lay_on(classifier: SequenceClassifier, read: adapter.Adapter) -> None:
    """Lay an adapter's changes on the trunk, and put its head in.

    Raises:
        UserError: it is for another model, or for other labels.
    """
    weight = read.whole.pop("score.weight", None)
    if weight is None or weight.shape != classifier.score.weight.shape:
        found = "none" if weight is None else str(list(weight.shape))
        raise UserError(f"{read.folder}: its head is {found}, but {list(classifier.score.weight.shape)} is wanted")
    adapter.lay_on(classifier.trunk, read)
    classifier.score.weight.copy_(weight)
