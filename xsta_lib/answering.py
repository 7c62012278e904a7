"""Logits to answer texts: the predictor behind evaluation, the command line and the notebooks."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor
from tqdm.auto import tqdm

from .batching import collate_windows
from .corpus import Question
from .features import Windows, WindowSpec, build_windows, pair_windows
from .modeling import XStaForQuestionAnswering
from .passes import tune_passes

# The distributions an answer can be read from; see XStaOutput.
READINGS = ("calibrated", "target", "teacher")


@dataclass(frozen=True)
class DecodingSpec:
    """How a span is chosen: the best of n_best starts x n_best ends, at most max_tokens long (the release's values)."""

    n_best: int = 20
    max_tokens: int = 30


@dataclass
class Answers:
    """Predicted answers of one language: by reading, id to text and id to score (p_start * p_end, 0 to 1)."""

    texts: dict[str, dict[str, str]] = field(default_factory=dict)
    scores: dict[str, dict[str, float]] = field(default_factory=dict)

    def offer(self, reading: str, key: str, text: str, score: float) -> None:
        """Keep the better of the known answer and this one (a question may have several windows)."""
        scores = self.scores.setdefault(reading, {})
        if score > scores.get(key, -1.0):
            scores[key] = score
            self.texts.setdefault(reading, {})[key] = text


def best_spans(p: Tensor, allowed: Tensor, spec: DecodingSpec) -> tuple[Tensor, Tensor, Tensor]:
    """The best span of each row.

    Args:
        p: (B, N, 2) start and end probabilities.
        allowed: (B, N) true on context tokens; no other token can start or end an answer.
        spec: limits of the search.

    Returns:
        ``(start, end, score)``, (B,) each; the score is ``p_start * p_end``.
    """
    p = p.masked_fill(~allowed[..., None], -1.0)
    n = min(spec.n_best, p.shape[1])
    p_start, starts = p[..., 0].topk(n, dim=1)
    p_end, ends = p[..., 1].topk(n, dim=1)
    length = ends[:, None, :] - starts[:, :, None] + 1
    valid = (length >= 1) & (length <= spec.max_tokens) & (p_start[:, :, None] >= 0) & (p_end[:, None, :] >= 0)
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
        model: a trained model, on its device; it is put in evaluation mode and suited to the device.
        tokenizer: its tokenizer.
        batch_size: windows a batch.
        spec: window lengths.
        decoding: how spans are chosen.
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
        decoding: DecodingSpec | None = None,
        cache=None,
        autocast: bool = False,
        chunk: int = 256,
        multiple: int = 8,
    ):
        self.model, self.tokenizer = model.eval(), tokenizer
        tune_passes(model, model.device, autocast)
        self.batch_size, self.spec, self.decoding = batch_size, spec or WindowSpec(), decoding or DecodingSpec()
        self.cache, self.autocast, self.chunk, self.multiple = cache, autocast, chunk, multiple

    def windows(self, questions: Sequence[Question]) -> Windows:
        """Token windows of some questions."""
        return build_windows(questions, self.tokenizer, self.spec, self.cache)

    @torch.inference_mode()
    def predict(
        self,
        targets: Mapping[str, Sequence[Question]],
        source: Sequence[Question] | None = None,
        progress: bool = False,
        readings: Sequence[str] = READINGS,
    ) -> dict[str, Answers]:
        """Answer questions of several languages that share one source.

        Args:
            targets: questions by language. The source language itself is read alone (S = T).
            source: the same questions in the source language, by id; ``None`` reads every target alone. A target
                question without its source is answered by the target alone too.
            progress: show a bar over windows.
            readings: which distributions to decode; without a teacher all are the target's own.
        """
        self.model.eval()
        source_language = self.model.config.source_language
        windows = {language: self.windows(questions) for language, questions in targets.items()}
        use_source = source is not None and self.model.config.reads_pairs
        source_windows = self.windows(source) if use_source else None
        answers = {language: Answers() for language in windows}
        bar = tqdm(total=sum(map(len, windows.values())), desc="answering", unit="window", disable=not progress)
        same = use_source and targets.get(source_language) == source  # the source's own pass answers them
        paired = {}
        for language, part in windows.items():
            if same and language == source_language:
                continue
            alone = not use_source or language == source_language
            paired[language] = np.full(len(part), -1) if alone else pair_windows(part, source_windows, by_answer=False)
            self._read_alone(part, np.flatnonzero(paired[language] < 0), language, answers[language], readings, bar)
        if use_source:
            own = answers[source_language] if same else None
            self._read_pairs(windows, paired, source_windows, answers, readings, bar, own)
        bar.close()
        return answers

    def _read_alone(self, windows: Windows, indices, language: str, answers: Answers, readings, bar) -> None:
        for batch in like_lengths(windows, indices, self.batch_size):
            inputs = self.inputs(windows, batch)
            with self.precision():
                output = self.model(**inputs, language=language)
            self._decode(output, windows, batch, answers, readings)
            bar.update(len(batch))

    def _read_pairs(
        self, windows, paired, source_windows: Windows, answers, readings, bar, own: Answers | None
    ) -> None:
        """Chunks of source windows: encode each once, then read all languages' windows that belong to it.

        ``own`` takes the source's own answers, where they are asked for.
        """
        for low in range(0, len(source_windows), self.chunk):
            high = min(low + self.chunk, len(source_windows))
            chosen = {name: np.flatnonzero((p >= low) & (p < high)) for name, p in paired.items()}
            used = [paired[language][indices] for language, indices in chosen.items()]
            needed = np.unique(np.concatenate([*used, np.array([], int)])) if own is None else np.arange(low, high)
            store = self._encode_source(source_windows, needed, own, readings, bar)
            for language, indices in chosen.items():
                part = windows[language]
                for batch in like_lengths(part, indices, self.batch_size):
                    source = stack([store[int(i)] for i in paired[language][batch]])
                    with self.precision():
                        output = self.model(**self.inputs(part, batch), language=language, source=source)
                    self._decode(output, part, batch, answers[language], readings)
                    bar.update(len(batch))

    def _encode_source(self, windows: Windows, needed: np.ndarray, own: Answers | None, readings, bar) -> dict:
        store = {}
        for batch in like_lengths(windows, needed, self.batch_size):
            with self.precision():
                encoded = self.model.encode(**self.inputs(windows, batch), language=self.model.config.source_language)
            if own is not None:
                self._decode(self.model.distributions(encoded), windows, batch, own, readings)
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

    def precision(self) -> torch.autocast:
        """The context that model passes run in: bfloat16 where it was asked for."""
        return torch.autocast(self.model.device.type, dtype=torch.bfloat16, enabled=self.autocast)

    def _decode(self, output, windows: Windows, batch, answers: Answers, readings) -> None:
        allowed = context_mask(windows, batch, output.target.shape[1]).to(output.target.device)
        for reading in readings:
            p = getattr(output, reading)
            start, end, score = best_spans(output.target if p is None else p, allowed, self.decoding)
            for index, first, last, value in zip(batch, start.tolist(), end.tolist(), score.tolist(), strict=True):
                key = windows.id_of(index)
                text = windows.text(index, first, last) if value >= 0 else ""
                answers.offer(reading, key, text, value)


def stack(rows: Sequence) -> object:
    """Encoded rows of different lengths (no batch axis) to one batch, padded with zeros."""
    names = [name for name, value in vars(rows[0]).items() if value is not None]
    stacked = {
        name: torch.nn.utils.rnn.pad_sequence([getattr(row, name) for row in rows], batch_first=True) for name in names
    }
    missing = {name: None for name in vars(rows[0]) if name not in stacked}
    return type(rows[0])(**stacked, **missing)
