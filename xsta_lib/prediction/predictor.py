"""Logits to answer texts: the predictor behind evaluation, the command line and the notebooks."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from tqdm.auto import tqdm

from ..data.batches import collate_windows
from ..data.squad import Question
from ..data.windows import Windows, WindowSpec, build_windows, pair_windows
from ..model.modeling import Encoded, XStaForQuestionAnswering, XStaOutput
from ..training.cpu import tuned

# The distributions an answer can be read from; see XStaOutput.
READINGS = ("calibrated", "target", "teacher")


# How a span is chosen: the best of so many starts and ends, so many tokens long at most (the release's values).
N_BEST, MAX_ANSWER_TOKENS = 20, 30


class Prediction(NamedTuple):
    """A predicted answer: its text, and its score ``p_start * p_end``, 0 to 1."""

    text: str
    score: float


# Predictions by reading, language and question id: the one nesting from here to the tables.
Predictions = dict[str, dict[str, dict[str, Prediction]]]


def best_spans(
    p: Tensor, allowed: Tensor, n_best: int = N_BEST, max_tokens: int = MAX_ANSWER_TOKENS
) -> tuple[Tensor, Tensor, Tensor]:
    """The best span of each row.

    Args:
        p: (B, N, 2) start and end probabilities.
        allowed: (B, N) true on context tokens; no other token can start or end an answer.
        n_best, max_tokens: limits of the search.

    Returns:
        ``(start, end, score)``, (B,) each; the score is ``p_start * p_end``.
    """
    p = p.masked_fill(~allowed[..., None], -1.0)
    n = min(n_best, p.shape[1])
    p_start, starts = p[..., 0].topk(n, dim=1)
    p_end, ends = p[..., 1].topk(n, dim=1)
    length = ends[:, None, :] - starts[:, :, None] + 1
    valid = (length >= 1) & (length <= max_tokens) & (p_start[:, :, None] >= 0) & (p_end[:, None, :] >= 0)
    scores = (p_start[:, :, None] * p_end[:, None, :]).masked_fill(~valid, -1.0).flatten(1)
    score, index = scores.max(1)
    start = starts.gather(1, (index // n)[:, None])[:, 0]
    end = ends.gather(1, (index % n)[:, None])[:, 0]
    return start, end, score


def context_mask(windows: Windows, indices: Sequence[int], length: int) -> Tensor:
    """(B, N) true on the context tokens of some windows."""
    allowed = torch.zeros(len(indices), length, dtype=torch.bool)
    for i, index in enumerate(indices):
        first = windows.context_start[index]
        allowed[i, first : first + len(windows.char_starts[index])] = True
    return allowed


def like_lengths(windows: Windows, indices: np.ndarray, size: int) -> Iterator[np.ndarray]:
    """Cut window indices into batches of like lengths."""
    order = indices[np.argsort(windows.length[indices], kind="stable")]
    for low in range(0, len(order), size):
        yield order[low : low + size]


class Predictor:
    """Answers questions of several languages, computing every source window once.

    Args:
        model: a trained model, on its device.
        tokenizer: its tokenizer.
        batch_size: windows a batch.
        spec: window lengths.
        cache: folder for token windows.
        autocast: run the encoder in bfloat16.
        chunk: how many source questions' states are held in memory at a time.
        multiple: lengths are rounded up to a multiple of it.
    """

    def __init__(
        self,
        model: XStaForQuestionAnswering,
        tokenizer,
        batch_size: int = 32,
        spec: WindowSpec | None = None,
        cache=None,
        autocast: bool = False,
        chunk: int = 256,
        multiple: int = 8,
    ):
        self.model, self.tokenizer = model, tokenizer
        self.batch_size, self.spec = batch_size, spec or WindowSpec()
        self.cache, self.autocast, self.chunk, self.multiple = cache, autocast, chunk, multiple

    def windows(self, questions: Sequence[Question]) -> Windows:
        """Token windows of some questions."""
        return build_windows(questions, self.tokenizer, self.spec, self.cache)

    @contextmanager
    def passes(self) -> Iterator[None]:
        """What the model's passes run in: no gradients, no dropout, bfloat16 where asked for, tuned to the device.

        The model is left as it was.
        """
        was_training = self.model.training
        autocast = torch.autocast(self.model.device.type, dtype=torch.bfloat16, enabled=self.autocast)
        with torch.inference_mode(), autocast, tuned(self.model, self.autocast):
            self.model.eval()
            try:
                yield
            finally:
                self.model.train(was_training)

    def predict(
        self,
        targets: Mapping[str, Sequence[Question]],
        source: Sequence[Question] | None = None,
        progress: bool = False,
        readings: Sequence[str] = READINGS,
    ) -> Predictions:
        """Answer questions of several languages that share one source.

        Args:
            targets: questions by language. The source language itself is read alone (S = T).
            source: the same questions in the source language, by id; ``None`` reads every target alone. A target
                question without its source is answered by the target alone too.
            progress: show a bar over windows.
            readings: which distributions to decode; without a teacher all are the target's own.
        """
        source_language = self.model.config.source_language
        windows = {language: self.windows(questions) for language, questions in targets.items()}
        use_source = source is not None and self.model.config.reads_pairs
        source_windows = self.windows(source) if use_source else None
        found: Predictions = {reading: {language: {} for language in targets} for reading in readings}
        same = use_source and targets.get(source_language) == source  # the source's own pass answers them
        paired = {}
        for language, part in windows.items():
            if same and language == source_language:
                continue
            alone = not use_source or language == source_language
            paired[language] = np.full(len(part), -1) if alone else pair_windows(part, source_windows, by_answer=False)
        bar = tqdm(total=sum(map(len, windows.values())), desc="answering", unit="window", disable=not progress)
        with bar, self.passes():
            for language, places in paired.items():
                self._read_alone(windows[language], np.flatnonzero(places < 0), language, found, bar)
            if use_source:
                self._read_pairs(windows, paired, source_windows, found, bar, same)
        return found

    def _read_alone(self, windows: Windows, indices: np.ndarray, language: str, found: Predictions, bar: tqdm) -> None:
        for batch in like_lengths(windows, indices, self.batch_size):
            output = self.model(**self.inputs(windows, batch), language=language)
            self._decode(output, windows, batch, language, found)
            bar.update(len(batch))

    def _read_pairs(
        self,
        windows: Mapping[str, Windows],
        paired: Mapping[str, np.ndarray],
        source_windows: Windows,
        found: Predictions,
        bar: tqdm,
        answer_source: bool,
    ) -> None:
        """Chunks of source windows: encode each once, then read all languages' windows that belong to it.

        With ``answer_source`` the source's own passes answer its questions.
        """
        for low in range(0, len(source_windows), self.chunk):
            high = min(low + self.chunk, len(source_windows))
            chosen = {name: np.flatnonzero((p >= low) & (p < high)) for name, p in paired.items()}
            used = [paired[language][indices] for language, indices in chosen.items()]
            needed = np.arange(low, high) if answer_source else np.unique(np.concatenate([*used, np.array([], int)]))
            store = self._encode_source(source_windows, needed, found, bar, answer_source)
            for language, indices in chosen.items():
                part = windows[language]
                for batch in like_lengths(part, indices, self.batch_size):
                    source = stack([store[int(i)] for i in paired[language][batch]])
                    output = self.model(**self.inputs(part, batch), language=language, source=source)
                    self._decode(output, part, batch, language, found)
                    bar.update(len(batch))

    def _encode_source(
        self, windows: Windows, needed: np.ndarray, found: Predictions, bar: tqdm, answer: bool
    ) -> dict[int, Encoded]:
        store = {}
        for batch in like_lengths(windows, needed, self.batch_size):
            encoded = self.model.encode(**self.inputs(windows, batch))
            if answer:
                output = self.model.distributions(encoded)
                self._decode(output, windows, batch, self.model.config.source_language, found)
                bar.update(len(batch))
            for row, index in enumerate(batch):
                length = int(windows.length[index])
                store[int(index)] = encoded.map(lambda value, row=row, n=length: value[row, :n])
        return store

    def inputs(self, windows: Windows, indices: Sequence[int]) -> dict[str, Tensor]:
        """The model's arguments for some windows, on its device."""
        batch = collate_windows(windows, indices, self.tokenizer.pad_token_id, self.multiple)
        names = ("input_ids", "attention_mask", "token_type_ids")
        return {name: batch[name].to(self.model.device) for name in names if name in batch}

    def _decode(
        self, output: XStaOutput, windows: Windows, batch: Sequence[int], language: str, found: Predictions
    ) -> None:
        """Keep each question's best answer so far, of this batch's windows and the earlier ones."""
        allowed = context_mask(windows, batch, output.target.shape[1]).to(output.target.device)
        for reading, by_language in found.items():
            p, known = getattr(output, reading), by_language[language]
            start, end, score = best_spans(output.target if p is None else p, allowed)
            for index, first, last, value in zip(batch, start.tolist(), end.tolist(), score.tolist(), strict=True):
                key = windows.id_of(index)
                if key not in known or value > known[key].score:
                    known[key] = Prediction(windows.text(index, first, last) if value >= 0 else "", value)


def stack(rows: Sequence[Encoded]) -> Encoded:
    """Encoded rows of different lengths (no batch axis) to one batch, padded with zeros."""
    names = [name for name, value in vars(rows[0]).items() if value is not None]
    stacked = {
        name: torch.nn.utils.rnn.pad_sequence([getattr(row, name) for row in rows], batch_first=True) for name in names
    }
    missing = {name: None for name in vars(rows[0]) if name not in stacked}
    return Encoded(**stacked, **missing)
