"""What happens inside a trained model on its way to an answer: attentions, distributions, sentence vectors.

Axes: N_T and N_S tokens of the target's and the source's window, H hidden size, A attention heads.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import pandas as pd
from sklearn.manifold import TSNE
from sklearn.metrics import silhouette_score
from sklearn.metrics.pairwise import cosine_similarity
from torch import Tensor

from ..data.squad import Question
from ..data.windows import pair_windows
from ..model.aligning import mean_pool
from ..model.teaching import masked_softmax
from .predictor import READINGS, Predictor, Span, like_lengths

SPACES = ("before normalisation", "after normalisation")
OWN_MEANS = "own means taken out"


@dataclass(frozen=True)
class Explanation:
    """What led to one answer. N_T and N_S count the tokens of the target's window that holds it and of its source's.

    Attributes:
        target_tokens, source_tokens: the pieces that the other fields' positions stand for.
        target_context_start, source_context_start: the position of each side's first context token.
        cross_attention: (A, N_T, N_S) of the sharing layer; ``None`` without a source or in a plain model.
        teacher_attention: (N_T, N_S), heads averaged; ``None`` without a teacher.
        target, teacher, calibrated: (N_T, 2) distributions over start and end; the teacher's may be ``None``.
        source: (N_S, 2) the source's own distribution, which the teacher carries over; ``None`` without a source.
        answer, gold: the predicted text and the first gold answer, if there is one.
        first_token: the position of the answer's first token in the target.
        readings: the best span by the ``calibrated``, the ``target``'s own and the ``teacher``'s distribution; the
            target's alone without a source.
    """

    target_tokens: list[str] = field(repr=False)
    source_tokens: list[str] = field(repr=False)
    target_context_start: int
    source_context_start: int
    cross_attention: np.ndarray | None = field(repr=False)
    teacher_attention: np.ndarray | None = field(repr=False)
    target: np.ndarray = field(repr=False)
    teacher: np.ndarray | None = field(repr=False)
    calibrated: np.ndarray = field(repr=False)
    source: np.ndarray | None = field(repr=False)
    answer: str
    gold: str
    first_token: int
    readings: dict[str, Span]

    def looked_at(self, count: int = 5) -> pd.Series:
        """The source's pieces that the teacher looked at most from the answer's first token, with their weights.

        Raises:
            ValueError: there was no source, or the model has no teacher.
        """
        if self.teacher_attention is None:
            raise ValueError("nothing was taught: explain() needs the source question, and a model with a teacher")
        weights = self.teacher_attention[self.first_token]
        places = np.argsort(-weights, kind="stable")[:count]
        return pd.Series(weights[places], index=[piece_text(self.source_tokens[i]) for i in places], name="weight")

    def moved(self) -> pd.DataFrame:
        """The answer and its score under each reading: how calibration moved it from the target's own."""
        return pd.DataFrame([(s.text, s.score) for s in self.readings.values()], [*self.readings], ["answer", "score"])

    def _repr_html_(self) -> str:
        """Both of the above, for a notebook."""
        taught = "" if self.teacher_attention is None else self.looked_at().to_frame().T.to_html(float_format="%.3f")
        return self.moved().to_html(float_format="%.3f") + taught


def explain(predictor: Predictor, question: Question, language: str, source: Question | None = None) -> Explanation:
    """Answer one question and keep what led to the answer: attentions, distributions and their tokens.

    Args:
        predictor: with the model and its tokenizer.
        question: in the target language; of a long context the window that holds the answer is explained.
        language: the target language.
        source: the same question in the source language.
    """
    model, tokenizer = predictor.model, predictor.tokenizer
    source = source and replace(source, id=question.id)  # ids tell what belongs together
    found = predictor.predict({language: [question]}, None if source is None else [source], readings=READINGS)
    answers = {name: by_language[language][question.id] for name, by_language in found.items()}
    at = answers["calibrated"].window
    target, places = predictor.windows([question]), [at]
    sides = [target]
    if source is not None:
        sides.append(predictor.windows([source]))
        places.append(int(pair_windows(target, sides[1], by_answer=False)[at]))
    inputs = [predictor.inputs(windows, [place]) for windows, place in zip(sides, places, strict=True)]
    with predictor.passes():
        encoded = model.encode(**inputs[1]) if source else None
        output = model(**inputs[0], language=language, source=encoded, explain=True)
        p_source = masked_softmax(encoded.logits, encoded.mask) if source else None
    # the predictor may have passed over likelier tokens with nothing to see, so the place comes from its answer
    start = int(target.context_start[at]) + int((target.char_ends[at] <= answers["calibrated"].start).sum())
    n_target = int(target.length[at])
    n_source = int(sides[1].length[places[1]]) if source else 0

    def take(value: Tensor | None, *axes: slice) -> np.ndarray | None:
        return None if value is None else value[0][axes].float().cpu().numpy()

    both = slice(n_target), slice(n_source)
    ids = [windows.input_ids[place].tolist() for windows, place in zip(sides, places, strict=True)]
    tokens = [tokenizer.convert_ids_to_tokens(part) for part in ids]
    return Explanation(
        tokens[0],
        tokens[1] if source else [],
        int(target.context_start[at]),
        int(sides[1].context_start[places[1]]) if source else 0,
        take(output.cross_attention, slice(None), *both),
        take(output.teacher_attention, *both),
        take(output.target, both[0]),
        take(output.teacher, both[0]),
        take(output.calibrated, both[0]),
        take(p_source, both[1]),
        answers["calibrated"].text,
        question.answers[0].text if question.answers else "",
        start,
        {name: Span(*answer[:4]) for name, answer in answers.items() if source or name == "target"},
    )


def piece_text(piece: str) -> str:
    """A token as a picture shows it: without the marks that say where a word begins."""
    return piece.replace("\u2581", "").removeprefix("##") or "_"


def question_places(tokens: Sequence[str], context_start: int) -> list[int]:
    """Positions of the question's own tokens in a window; special tokens stand in ``<>`` or ``[]``."""
    own = [token[0] + token[-1] not in ("<>", "[]") or token in ("<unk>", "[UNK]") for token in tokens[:context_start]]
    return [i for i, kept in enumerate(own) if kept]


def question_attention(found: Explanation) -> pd.DataFrame:
    """Cross-attention between the two questions, heads averaged (Figure 4): rows are target, columns source tokens.

    Weights are those of the whole window, so a row sums to 1 only where the target looks at nothing but the question.

    Args:
        found: an explanation with a source.

    Raises:
        ValueError: it has none.
    """
    if found.cross_attention is None:
        raise ValueError("no cross-attention: explain() needs the source question, and a model that shares")
    sides = (found.target_tokens, found.target_context_start), (found.source_tokens, found.source_context_start)
    places = [question_places(*side) for side in sides]
    rows, columns = ([piece_text(tokens[i]) for i in at] for (tokens, _), at in zip(sides, places, strict=True))
    return pd.DataFrame(found.cross_attention.mean(0)[np.ix_(*places)], index=rows, columns=columns)


def attention_entropy(found: Explanation) -> float:
    """Mean entropy, in nats, of the head-averaged cross-attention of the target's question tokens (low: focused)."""
    p = found.cross_attention.mean(0)[question_places(found.target_tokens, found.target_context_start)]
    return float(-(p * np.log(np.clip(p, 1e-12, None))).sum(1).mean())


@dataclass(frozen=True)
class SentenceVectors:
    """Sentence representations of parallel questions.

    Attributes:
        languages, examples: (n,) of each vector, the example being the question's id.
        spaces: by ``SPACES``, (n, H) vectors: the mean of ``h^L``, and that of ``h~``.
    """

    languages: np.ndarray
    examples: np.ndarray
    spaces: dict[str, np.ndarray]


def one_per_passage(questions: Mapping[str, Sequence[Question]], count: int) -> dict[str, list[Question]]:
    """The first question of each of the first ``count`` passages, the same ones in every language.

    Windows hold a question and its passage, so questions of one passage look alike whatever they ask.
    """
    first: dict[str, str] = {}
    for question in next(iter(questions.values())):
        first.setdefault(question.context, question.id)
    chosen = set(list(first.values())[:count])
    return {language: [question for question in part if question.id in chosen] for language, part in questions.items()}


def sentence_vectors(predictor: Predictor, questions: Mapping[str, Sequence[Question]]) -> SentenceVectors:
    """Mean-pooled states of every question's first window, before and after Rep-Norm, each language read alone.

    Args:
        predictor: with the model and its tokenizer.
        questions: by language.
    """
    languages, examples, found = [], [], {space: [] for space in SPACES}
    for language, part in questions.items():
        windows = predictor.windows(part)
        for batch in like_lengths(windows, np.flatnonzero(windows.window == 0), predictor.batch_size):
            with predictor.passes():
                encoded = predictor.model.encode(**predictor.inputs(windows, batch), language=language)
            for space, states in zip(SPACES, (encoded.states, encoded.normalised), strict=True):
                found[space].append(mean_pool(states, encoded.mask).cpu().numpy())
            languages += [language] * len(batch)
            examples += [windows.id_of(i) for i in batch]
    return SentenceVectors(np.array(languages), np.array(examples), {k: np.concatenate(v) for k, v in found.items()})


def silhouettes(vectors: SentenceVectors) -> pd.DataFrame:
    """How strongly vectors cluster, from -1 to 1 (cosine distance): by language and by example, a row a space.

    A representation free of language has a low value by language and a high one by example.
    """
    labels = {"by language": vectors.languages, "by example": vectors.examples}
    return pd.DataFrame(
        {
            name: {space: silhouette_score(x, label, metric="cosine") for space, x in vectors.spaces.items()}
            for name, label in labels.items()
        }
    )


def own_means_out(vectors: SentenceVectors) -> SentenceVectors:
    """The vectors before normalisation without their languages' means over these very texts.

    What normalisation would take out if its stored means, running averages of training, were those of these texts.
    """
    x = vectors.spaces[SPACES[0]].copy()
    for language in set(vectors.languages):
        x[vectors.languages == language] -= x[vectors.languages == language].mean(0)
    return replace(vectors, spaces={OWN_MEANS: x})


def cosines(vectors: SentenceVectors) -> pd.DataFrame:
    """Mean cosine similarity of a question's vectors in two languages, and of two questions', a row a space.

    The sentence alignment (section 3.4) tells them apart by their difference over its temperature.
    """
    same = vectors.examples[:, None] == vectors.examples
    other = vectors.languages[:, None] != vectors.languages
    pairs = {"translations": same & other, "other questions": ~same & other}
    similarity = {space: cosine_similarity(x) for space, x in vectors.spaces.items()}
    return pd.DataFrame({n: {space: s[pair].mean() for space, s in similarity.items()} for n, pair in pairs.items()})


def tsne_frame(vectors: SentenceVectors, seed: int = 0) -> pd.DataFrame:
    """The vectors in two dimensions (t-SNE on cosine distances): rows ``space, language, example, x, y``."""
    frames = []
    for space, x in vectors.spaces.items():
        model = TSNE(metric="cosine", init="pca", perplexity=min(30, (len(x) - 1) / 3), random_state=seed)
        places = model.fit_transform(x)
        columns = {"language": vectors.languages, "example": vectors.examples, "x": places[:, 0], "y": places[:, 1]}
        frames.append(pd.DataFrame({"space": space, **columns}))
    return pd.concat(frames, ignore_index=True)
