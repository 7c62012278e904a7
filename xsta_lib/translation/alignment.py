"""Which span of a translation a span of the source became: token similarities, and a model of spans over them.

Every token of both passages is a state of an encoder's middle layer that was never trained on translations; similar
states mean similar words. The model is linear and small: 261 numbers, fitted on half of XQuAD (see
:mod:`~xsta_lib.experiments.projection`), that weigh how much of each side's similarity falls on the other's tokens.

Axes: B rows, N_S and N_T source and target tokens, H hidden size, K features of a target token, D span lengths.
"""

import json
import unicodedata
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..data.files import is_blank, write_text_atomically
from ..data.squad import Answer, Question
from ..data.windows import WindowSpec, answer_tokens
from ..encoders.backbones import E5_NAME, load_backbone
from ..prediction.predictor import Predictor, like_lengths
from ..training.machine import has_bf16
from ..training.ranks import device

WEIGHTS = Path(__file__).with_name("span_model.json")
LAYER = 7  # of 12, counted from 1; layers 6 to 8 align best
TEMPERATURE = 0.05  # of the softmaxes over cosine similarities
BESIDE = 4  # how many source tokens on either side of the span count as its neighbours
REACH = 2  # how many target tokens on either side a token's score looks at
MOST = 2.0  # a target token's share of the source span's tokens, cut there: long spans would drown short ones
BATCH = 8  # windows a pass
KEPT = 256  # passages whose states stay in memory: about 300 kB each
FEATURES = 17


class Passage(NamedTuple):
    """A passage as its tokens.

    Attributes:
        states: (N, H) of length 1, the passage's mean taken out, float32.
        starts, ends: (N,) the characters of each token.
    """

    states: Tensor
    starts: np.ndarray
    ends: np.ndarray

    def tokens(self, text: str, start: int, end: int) -> tuple[int, int] | None:
        """The first and last token that cover some characters of the passage; ``None`` where there are none."""
        return answer_tokens([Answer(text[start:end], start)], self.starts, self.ends)

    def characters(self, text: str, first: int, last: int) -> tuple[int, int]:
        """The characters of the tokens from one to another (included), without white space around them."""
        start, end = int(self.starts[first]), int(self.ends[last])
        piece = text[start:end]
        return start + len(piece) - len(piece.lstrip()), end - len(piece) + len(piece.rstrip())


class PassageEncoder:
    """Token states of passages, each read once as long as it is among the last ``KEPT``.

    Args:
        backbone: an encoder with BERT's layers, by name; its first ``LAYER`` layers are read, on a GPU if any.
    """

    def __init__(self, backbone: str = E5_NAME):
        model, tokenizer = load_backbone(backbone)
        model.encoder.layer = model.encoder.layer[:LAYER]
        self.predictor = Predictor(model.to(device()), tokenizer, autocast=has_bf16(device()))
        self.kept: OrderedDict[str, Passage] = OrderedDict()

    def __call__(self, texts: Sequence[str]) -> dict[str, Passage]:
        """The passages by their text. A long one is read in windows that overlap, and put together again."""
        new = [text for text in dict.fromkeys(texts) if text not in self.kept]
        windows = self.predictor.windows([Question(str(i), "", text, ()) for i, text in enumerate(new)])
        states: list[Tensor] = [torch.empty(0)] * len(windows)
        for batch in like_lengths(windows, np.arange(len(windows)), BATCH):
            with self.predictor.passes():
                read = self.predictor.model(**self.predictor.inputs(windows, batch)).last_hidden_state.float().cpu()
            for index, found in zip(batch, read, strict=True):
                first = windows.context_start[index]
                states[index] = found[first : first + len(windows.char_starts[index])]
        for row, text in enumerate(new):
            own = np.flatnonzero(windows.row == row)
            self.kept[text] = _join([(states[i], windows.char_starts[i], windows.char_ends[i]) for i in own])
        found = {text: self.kept[text] for text in texts}
        for text in found:
            self.kept.move_to_end(text)
        while len(self.kept) > KEPT:
            self.kept.popitem(last=False)
        return found


def _join(windows: Sequence[tuple[Tensor, np.ndarray, np.ndarray]]) -> Passage:
    """One passage of its windows: of the tokens that two share each gives the half that it sees more around."""
    half, last = WindowSpec().stride // 2, len(windows) - 1
    cuts = [slice(half if n else 0, -half if n < last else None) for n in range(len(windows))]
    states, starts, ends = (
        [part[cut] for part, cut in zip(side, cuts, strict=True)] for side in zip(*windows, strict=True)
    )
    whole = torch.cat(states)
    return Passage(F.normalize(whole - whole.mean(0), dim=-1), np.concatenate(starts), np.concatenate(ends))


class Pair:
    """A passage and its translation: how alike their tokens are.

    Args:
        source, target: the passages.
        text: the target's.

    Attributes:
        similarity: (N_S, N_T) cosines.
        to_source, to_target: their softmaxes over the source's tokens, and over the target's.
        visible: (N_T,) whether a target token has something to see.
    """

    def __init__(self, source: Passage, target: Passage, text: str):
        self.source, self.target, self.text = source, target, text
        self.similarity = source.states @ target.states.T
        self.to_source = (self.similarity / TEMPERATURE).softmax(0)
        self.to_target = (self.similarity / TEMPERATURE).softmax(1)
        self.edges = _edges(text, target)
        pieces = zip(target.starts.tolist(), target.ends.tolist(), strict=True)
        self.visible = np.array([not is_blank(text[start:end]) for start, end in pieces], bool)

    def shares(self, first: int, last: int) -> tuple[Tensor, Tensor]:
        """How much of each target token falls on a source span's tokens, and how much of theirs on it: (N_T,) each."""
        span = slice(first, last + 1)
        return self.to_source[span].sum(0), self.to_target[span].sum(0)

    def features(self, first: int, last: int) -> Tensor:
        """What tells of each target token whether it belongs to the translation of a source span: (N_T, K).

        ``first`` and ``last`` are the span's tokens, both included.
        """
        rest = torch.ones(len(self.similarity), dtype=torch.bool)
        rest[first : last + 1] = False
        beside = slice(max(0, first - BESIDE), first), slice(last + 1, last + 1 + BESIDE)
        sides = self.to_source, self.to_target
        own, back = self.shares(first, last)
        columns = [own, back.clamp_max(MOST), (own * back.clamp_max(1)).sqrt()]
        columns += [side[edge] for side in sides for edge in (first, last)]
        columns += [side[part].sum(0).clamp_max(MOST) for side in sides for part in beside]
        columns.append(self.similarity[~rest].amax(0))
        columns.append(self.similarity[rest].amax(0) if rest.any() else torch.zeros_like(own))
        return torch.cat([torch.stack(columns, 1), self.edges], 1)


def _edges(text: str, passage: Passage) -> Tensor:
    """Of each token (N_T, 4): whether a word begins and ends with it, whether it has no letter, its length (0 to 1)."""
    padded = f" {text} "

    def inside(character: str) -> bool:
        return unicodedata.category(character)[0] in "LNM"

    rows = []
    for start, end in zip(passage.starts.tolist(), passage.ends.tolist(), strict=True):
        begins = not inside(padded[start]) or not inside(padded[start + 1])
        letterless = not any(map(inside, text[start:end]))
        rows.append((begins, not inside(padded[end + 1]), letterless, min(end - start, 8) / 8))
    return torch.tensor(rows, dtype=torch.float32).view(-1, 4)


class SpanModel(nn.Module):
    """A distribution over the spans of a target: a log-linear model whose terms are start, end, inside and length.

    ``log p(i, j) = start_i + end_j + sum of inside_i..j + a r + b r^2 + c m - log Z``, where start, end and inside are
    linear in the features of the tokens around, r is the logarithm of the span's tokens over the source span's, and m,
    from 0 to 1, says how well the span's text matches the answer's own translation.
    """

    def __init__(self):
        super().__init__()
        self.token = nn.Conv1d(FEATURES, 3, 2 * REACH + 1, padding=REACH)
        self.length = nn.Parameter(torch.zeros(2))
        self.match = nn.Parameter(torch.zeros(()))

    def forward(self, tokens: Tensor, allowed: Tensor, lengths: Tensor, limits: Tensor, matches: Tensor) -> Tensor:
        """``log p`` of the spans that begin at each token, (B, N_T, D); -inf where no span may be.

        Args:
            tokens: (B, N_T, K) features, 0 on padding.
            allowed: (B, N_T) true where a span may begin and end.
            lengths: (B,) tokens of the source spans.
            limits: (B,) how many tokens a row's span has at most; D is the largest of them.
            matches: (B, N_T, D) see above.
        """
        count, longest = matches.shape[1:]
        start, end, inside = self.token(tokens.transpose(1, 2)).unbind(1)  # (B, N_T) each
        before = F.pad(inside.cumsum(1), (1, 0))
        first, size = torch.arange(count)[:, None], torch.arange(longest)
        last = (first + size).clamp_max(count - 1)
        ratio = ((size + 1).to(tokens.dtype) / lengths[:, None]).log()[:, None]  # (B, 1, D)
        scores = start[..., None] + end[:, last] + before[:, last + 1] - before[:, :count, None]
        scores = scores + self.length[0] * ratio + self.length[1] * ratio.square() + self.match * matches
        possible = allowed[..., None] & allowed[:, last] & (first + size < count)
        possible = possible & (size < limits[:, None])[:, None]
        return scores.masked_fill(~possible, -torch.inf).flatten(1).log_softmax(1).view_as(scores)

    def save(self, path: Path, about: dict) -> None:
        """Write the weights as JSON, with what they were fitted on."""
        values = {name: np.round(value.numpy(), 4).tolist() for name, value in self.state_dict().items()}
        write_text_atomically(path, json.dumps({**about, "weights": values}) + "\n")

    @classmethod
    def load(cls, path: Path = WEIGHTS) -> "SpanModel":
        """The model with the weights of a file."""
        model = cls()
        values = json.loads(path.read_text("utf-8"))["weights"]
        model.load_state_dict({name: torch.tensor(value) for name, value in values.items()})
        return model.requires_grad_(False)
