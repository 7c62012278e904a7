"""CalibreNet (after the abstract of Liang et al., 2021): the marked span, its noise, recovered edges, unseen folds."""

from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from toy import KINDS, encoder_config, ragged_mask, stir, toy_protocol
from transformers import BertConfig, BertTokenizerFast

from xsta_lib.baselines.calibrenet import (
    FAR,
    CalibreNetConfig,
    CalibreNetForQuestionAnswering,
    CalibreTrainer,
    PhraseEdges,
    answered_windows,
    fold_of,
    fold_spans,
    initial_spans,
    moved,
)
from xsta_lib.baselines.phrases import Passages, units_of
from xsta_lib.data.batches import Part, Row
from xsta_lib.data.squad import Question
from xsta_lib.data.windows import WindowSpec, build_windows
from xsta_lib.experiments.experiment import Experiment
from xsta_lib.experiments.run import training_parts
from xsta_lib.training.configuration import TrainingConfig
from xsta_lib.training.cpu import tuned

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]


def tiny(kind: str = "bert") -> CalibreNetForQuestionAnswering:
    torch.manual_seed(0)
    model = CalibreNetForQuestionAnswering(CalibreNetConfig(encoder=encoder_config(kind), special_ids=[2, 3]))
    stir(model)
    return model.eval()


def batch() -> dict[str, torch.Tensor]:
    """Two rows in the frame [CLS] question [SEP] passage [SEP], ids 2 and 3, the second one padded."""
    ids = torch.tensor([[2, 10, 11, 3, 20, 21, 22, 23, 3], [2, 12, 3, 24, 25, 26, 3, 0, 0]])
    return {"input_ids": ids, "attention_mask": ragged_mask([9, 7])}


@pytest.mark.parametrize("kind", KINDS)
def test_zero_indicators_and_copied_weights_are_the_base_reader(kind: str) -> None:
    model, inputs = tiny(kind), batch()
    model.encoder.load_state_dict(model.base.encoder.state_dict())
    model.qa_outputs.load_state_dict(model.base.qa_outputs.state_dict())
    real, marks = inputs["attention_mask"].bool(), torch.zeros_like(inputs["input_ids"])
    marks[:, 4:6] = 1
    with torch.no_grad():
        stirred = model(**inputs, marks=marks)
        model.indicator.weight.zero_()
        expected, found = model.base(**inputs), model(**inputs, marks=marks)
    for name in ("start_logits", "end_logits"):
        torch.testing.assert_close(found[name][real], expected[name][real])
        assert (stirred[name] - expected[name])[real].abs().max() > 0.01
    fresh = CalibreNetForQuestionAnswering(CalibreNetConfig(encoder=encoder_config(kind)))
    assert not fresh.indicator.weight.any()


def test_without_marks_it_marks_what_the_base_reader_answers() -> None:
    """The best span of the passage by the base reader, whatever question and frame score."""
    model, inputs = tiny(), batch()
    with torch.no_grad():
        read = model.base(**inputs)
        starts, ends = initial_spans(model.base, **inputs)
        marks = torch.zeros_like(inputs["input_ids"])
        for row, places in enumerate((range(4, 8), range(3, 6))):
            spans = [(a, b) for a in places for b in places if a <= b]
            best = max(spans, key=lambda s, row=row: (read.target[row, s[0], 0] * read.target[row, s[1], 1]).item())
            assert (starts[row].item(), ends[row].item()) == best
            marks[row, best[0] : best[1] + 1] = 1
        torch.testing.assert_close(model(**inputs).target, model(**inputs, marks=marks).target)
        with tuned(model, False):
            torch.testing.assert_close(model(**inputs).target, model(**inputs, marks=marks).target)
        empty = {name: value[:1, :4] for name, value in inputs.items()}  # a window with a question alone
        assert [value.item() for value in initial_spans(model.base, **empty)][1] < 4
        assert torch.isfinite(model(**empty).target).all()


def test_base_reader_is_not_trained_and_has_no_dropout() -> None:
    model = tiny().train()
    assert model.training and not model.base.training and model.encoder.training
    model(**batch(), start_positions=torch.tensor([4, 3]), end_positions=torch.tensor([5, 3])).loss.backward()
    assert all(value.grad is None for value in model.base.parameters())
    assert model.indicator.weight.grad.abs().sum() > 0


def test_saved_and_loaded_with_both_networks(tmp_path: Path) -> None:
    model = tiny()
    model.save_pretrained(tmp_path)
    again = CalibreNetForQuestionAnswering.from_pretrained(tmp_path).eval()
    with torch.no_grad():
        assert torch.equal(again(**batch()).target, model(**batch()).target)


def test_moved_edges_are_near_overlap_and_lie_on_units() -> None:
    text = "aa bb, cc dd ee ff gg hh ii jj"
    _, units = units_of(text)
    starts, ends = units[:, 0], units[:, 1]  # a token a word
    rng, left, right, same = np.random.default_rng(0), set(), set(), 0
    for _ in range(2000):
        first, last = moved(4, 6, units, starts, ends, rng)
        assert 0 <= first <= last < len(units) and first <= 6 and last >= 4
        left.add(first - 4), right.add(last - 6)
        same += (first, last) == (4, 6)
    assert left == set(range(-FAR, 3)) and right == set(range(-2, FAR + 1)) and 0.25 < same / 2000 < 0.35
    halves = np.array([(a, a + 1) for a in starts] + [(a + 1, a + 2) for a in starts]).reshape(2, -1, 2)
    halves = halves.transpose(1, 0, 2).reshape(-1, 2)  # two tokens a word
    for _ in range(200):
        first, last = moved(8, 13, units, halves[:, 0], halves[:, 1], rng)
        assert first % 2 == 0 and last % 2 == 1


def toy_passages(count: int, seed: int, tokenizer: BertTokenizerFast) -> Passages:
    """passages of three phrases ``o3 m3 z3`` among other words: the digit tells them apart, o and z are the edges."""
    rng, questions, places = np.random.default_rng(seed), [], []
    for number in range(count):
        words, spans = [], []
        for digit in rng.permutation(4)[:3]:
            words += [f"f{i}" for i in rng.integers(0, 6, FAR + 1)]
            spans.append((len(words), len(words) + 2))
            words += [f"o{digit}", f"m{digit}", f"z{digit}"]
        text = " ".join([*words, "f0", "f1", "f2", "f3"])
        _, chars = units_of(text)
        questions.append(Question(str(number), "", text, ()))
        places.append(np.array([(chars[a, 0], chars[b, 1]) for a, b in spans]))
    windows = build_windows(questions, tokenizer, WindowSpec(max_length=64, stride=4, max_question_length=4))
    return Passages(Part("en", windows), places)


def test_phrase_edges_are_recovered_and_only_with_the_right_mark() -> None:
    words = [f"{kind}{digit}" for kind in "fomz" for digit in range(6 if kind == "f" else 4)]
    tokenizer = BertTokenizerFast(vocab={word: i for i, word in enumerate([*SPECIAL, *words])})
    torch.manual_seed(0)
    sizes = {"hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 96}
    sizes |= {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0, "initializer_range": 0.1}
    encoder = BertConfig(vocab_size=len(tokenizer), **sizes)
    model = CalibreNetForQuestionAnswering(CalibreNetConfig(encoder=encoder, special_ids=[2, 3]))
    edges = PhraseEdges([toy_passages(300, 0, tokenizer)])
    settings = TrainingConfig(steps=100, batch_size=32, learning_rate=6e-3, precision="fp32")
    trainer = CalibreTrainer(model, [edges.passages[0].part], settings, 0, rows=edges.rows, spans=edges)
    trainer.train(progress=False)
    unseen = PhraseEdges([toy_passages(200, 1, tokenizer)])
    trainer.parts, trainer.spans = [unseen.passages[0].part], unseen
    inputs = trainer._inputs(unseen.rows, False)
    gold = inputs["start_positions"], inputs["end_positions"]

    def recovered(marks: torch.Tensor) -> float:
        names = ("input_ids", "attention_mask", "token_type_ids")
        with torch.no_grad():
            output = model.eval()(**{name: inputs[name] for name in names}, marks=marks)
        right = (output.start_logits.argmax(1) == gold[0]) & (output.end_logits.argmax(1) == gold[1])
        return right.double().mean().item()

    shuffled = inputs["marks"][torch.randperm(len(gold[0]), generator=torch.Generator().manual_seed(0))]
    assert recovered(inputs["marks"]) > 0.95 and recovered(shuffled) < 0.5


def test_fine_tuning_marks_unseen_answers_and_moved_gold(backbone: Path) -> None:
    """Half of the windows that hold the answer are marked at or near the gold span, the others as the reader says."""
    data = toy_protocol()
    torch.manual_seed(0)
    model, tokenizer = CalibreNetForQuestionAnswering.from_backbone(str(backbone), CalibreNetConfig(), ["en"])
    (english,) = training_parts(Experiment("toy", "calibrenet"), data, tokenizer)
    windows, contexts = english.target, [question.context for question in data.train]
    answers = answered_windows(model.base, tokenizer, windows, np.arange(len(windows)))
    assert (answers[:, 0] >= windows.context_start).all() and (answers[:, 1] < windows.length - 1).all()
    assert answered_windows(model.base, tokenizer, windows, np.array([3, 1])).tolist() == answers[[3, 1]].tolist()
    spans, rng, asked = partial(fold_spans, windows, contexts, answers), np.random.default_rng(0), 0
    for _ in range(40):
        for index in range(len(windows)):
            gold, marked = spans(Row(0, index, -1), rng)
            assert gold == (windows.start[index], windows.end[index])
            if marked == tuple(answers[index]):
                asked += 1
            else:
                assert marked[0] <= gold[1] and marked[1] >= gold[0]
    assert asked / 40 / len(windows) == pytest.approx(0.5, abs=0.08)
    windows.holds_answer = windows.holds_answer & False
    assert all(spans(Row(0, 5, -1), rng)[1] == tuple(answers[5]) for _ in range(20))


def test_folds_keep_passages_whole() -> None:
    folds = fold_of(["a", "b", "a", "c", "b", "d"], 2)
    assert folds.tolist() == [0, 1, 0, 0, 1, 1]


def test_without_phrases_there_is_nothing_to_recover() -> None:
    with pytest.raises(ValueError, match="no phrase was found"):
        PhraseEdges([])
