"""Prompts with answers as ids, and how likely a model finds the answers: many in one forward pass, without padding.

Texts lie end to end in one row, each a document of its own, so that none sees another. The head works at the positions that predict
an answer's token, and nowhere else.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tinyseek.model.loss import token_logprobs
from tinyseek.model.transformer import CausalLM
from tinyseek.text.shards import TokenFile, write_tokens
from tinyseek.train.objective import on_device


@dataclass(frozen=True)
class Text:
    """A prompt and an answer, L ids."""

    ids_L: NDArray[np.int64]
    said_L: NDArray[np.bool_]  # what the assistant said in the answer, its end token with it

    @property
    def prompt(self) -> int:
        """How long the prompt is."""
        return int(self.said_L.argmax())

    def with_answer_of(self, other: Text, longest: int) -> Text:
        """This prompt with another's answer, cut at the end where that is too long."""
        ids = np.concatenate((self.ids_L[: self.prompt], other.ids_L[other.prompt :]))[:longest]
        said = np.concatenate((self.said_L[: self.prompt], other.said_L[other.prompt :]))[:longest]
        return Text(ids, said)


class Texts:
    """Texts by number, on disk."""

    def __init__(self, file: TokenFile) -> None:
        self.file = file
        self._starts = np.concatenate((np.zeros(1, np.int64), file.ends[:-1]))

    @staticmethod
    def write(folder: Path, split: str, ids: Iterable[array[int]], said: Iterable[array[int]], vocab: int) -> Texts:
        """Keep texts in a folder."""
        folder.mkdir(parents=True, exist_ok=True)
        write_tokens(folder, split, ids, vocab, loss_masks=([bool(one) for one in mask] for mask in said))
        return Texts(TokenFile.open(folder, split))

    def __len__(self) -> int:
        return self.file.documents

    def __getitem__(self, number: int) -> Text:
        span = slice(int(self._starts[number]), int(self.file.ends[number]))
        assert self.file.mask is not None
        return Text(self.file.ids[span].astype(np.int64), self.file.mask[span].astype(np.bool_))


@dataclass(frozen=True)
class Row:
    """S texts end to end, T positions; N of them predict a token of which the log-probability is wanted."""

    ids_1T: Tensor
    documents_1T: Tensor
    places_N: Tensor
    targets_N: Tensor
    owners_N: Tensor  # which text each is of
    said_N: Tensor  # float; 1 where the token is the assistant's
    tokens_S: Tensor  # float; how many the assistant's are

    @staticmethod
    def of(texts: Sequence[Text], device: torch.device, whole: int = 0) -> Row:
        """Lay texts end to end.

        Args:
            whole: of so many texts, the first, the prompt's tokens are wanted too.
        """
        ids, documents, places, targets, said = [], [], [], [], []
        begin = 0
        for number, text in enumerate(texts):
            wanted = text.said_L[1:].nonzero()[0] if number >= whole else np.arange(len(text.ids_L) - 1)
            ids.append(text.ids_L[:-1])  # the last id is only ever a target
            documents.append(np.full(len(text.ids_L) - 1, number, np.int32))
            places.append(begin + wanted)
            targets.append(text.ids_L[1:][wanted])
            said.append(text.said_L[1:][wanted].astype(np.float32))
            begin += len(text.ids_L) - 1
        owners = np.repeat(np.arange(len(texts)), [len(one) for one in places])
        return Row(
            on_device(np.concatenate(ids)[None], device),
            on_device(np.concatenate(documents)[None], device),
            on_device(np.concatenate(places), device),
            on_device(np.concatenate(targets), device),
            on_device(owners, device),
            on_device(np.concatenate(said), device),
            on_device(np.array([one.sum() for one in said], np.float32), device),
        )


@dataclass(frozen=True)
class Likelihood:
    """What a model thinks of a row of texts."""

    logps_N: Tensor
    answers_S: Tensor  # log-probability of each whole answer
    entropy: Tensor  # nats, summed over the assistant's tokens; told, not differentiated
    balance: Tensor  # of the experts: the term of the loss, with its weight


def likelihood(model: CausalLM, row: Row) -> Likelihood:
    """The log-probability of each text's answer, in one forward pass."""
    hidden_1TD, balances, _ = model.hidden(row.ids_1T, row.documents_1T)
    hidden_ND = hidden_1TD[0].index_select(0, row.places_N)
    logps_N, entropy_N = token_logprobs(hidden_ND, model.lm_head.weight, row.targets_N)
    answers_S = torch.zeros_like(row.tokens_S).index_add(0, row.owners_N, logps_N * row.said_N)
    balance = logps_N.new_zeros(())
    if balances:
        balance = model.config.balance_loss_weight * torch.stack(balances).float().sum()
    return Likelihood(logps_N, answers_S, (entropy_N * row.said_N).sum(), balance)
