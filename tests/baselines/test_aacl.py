"""AA-CL (after the abstract of Chen et al., 2022): spans, losses and stages; at weight 0 trans-train."""

from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
from test_lakm import make_trainer as plain_trainer
from toy import stir, toy_protocol
from transformers import ModernBertConfig

from xsta_lib.baselines.aacl import (
    AaclConfig,
    AaclForQuestionAnswering,
    AaclTrainer,
    best_other_spans,
    context_tokens,
    info_nce,
    margin_loss,
)
from xsta_lib.data.protocols import ProtocolData
from xsta_lib.data.squad import Answer, Question
from xsta_lib.experiments.experiment import Experiment
from xsta_lib.experiments.run import training_parts
from xsta_lib.training.configuration import TrainingConfig
from xsta_lib.training.log import gradient_shares

ALL = 10**6


def random_rows(seed: int, rows: int = 5, length: int = 14) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Logits, passages of different lengths and places, and gold spans in them."""
    rng = np.random.default_rng(seed)
    logits, context = torch.tensor(rng.normal(size=(rows, length, 2))).float(), torch.zeros(rows, length, dtype=bool)
    gold = torch.zeros(rows, 2, dtype=torch.long)
    for row in range(rows):
        first = int(rng.integers(1, 5))
        last = int(rng.integers(first + 2, length))
        context[row, first:last] = True
        gold[row] = torch.tensor(sorted(rng.integers(first, last, 2)))
    return logits, context, gold


def by_hand(
    logits: torch.Tensor, context: torch.Tensor, gold: torch.Tensor, row: int, longest: int
) -> list[tuple[float, int, int]]:
    """All spans of a row other than the gold one, best first."""
    spans = []
    for start, end in product(np.flatnonzero(context[row]), repeat=2):
        if start <= end < start + longest and (start, end) != tuple(gold[row].tolist()):
            spans.append(((logits[row, start, 0] + logits[row, end, 1]).item(), int(start), int(end)))
    return sorted(spans, reverse=True)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("longest", [3, 30])
def test_k_best_are_those_of_all_spans(seed: int, longest: int) -> None:
    logits, context, gold = random_rows(seed)
    scores, starts, ends = best_other_spans(logits, context, gold, ALL, longest)
    for row in range(len(logits)):
        wanted = by_hand(logits, context, gold, row, longest)
        found = [(float(s), int(a), int(b)) for s, a, b in zip(scores[row], starts[row], ends[row], strict=True)]
        there = [span for span in found if span[0] > -np.inf]
        assert [span[1:] for span in there] == [span[1:] for span in wanted]
        assert [span[0] for span in there] == pytest.approx([span[0] for span in wanted])
        assert tuple(gold[row].tolist()) not in {span[1:] for span in there}
    few = best_other_spans(logits, context, gold, 4, longest)
    assert all(torch.equal(value, whole[:, :4]) for value, whole in zip(few, (scores, starts, ends), strict=True))


@pytest.mark.parametrize("count", [1, 3, ALL])
def test_margin_is_zero_where_the_k_best_hold_gold_by_it(count: int) -> None:
    logits, context, gold = random_rows(7)
    holds = torch.tensor([True, True, False, True, True])
    wanted = []
    for row in np.flatnonzero(holds):
        others, own = by_hand(logits, context, gold, row, 30), logits[row, gold[row], [0, 1]].sum().item()
        wanted.append(max(0.0, 0.5 + others[count - 1][0] - own) if len(others) >= count else 0.0)
    logits.requires_grad_()
    loss = margin_loss(logits, context, gold, holds, count, 0.5)
    loss.backward()
    assert loss.item() == pytest.approx(np.mean(wanted), abs=1e-6) and torch.isfinite(logits.grad).all()
    assert (loss.item() > 0) == (count < ALL) == bool(logits.grad.any()) and not logits.grad[2].any()
    assert margin_loss(logits, context, gold, holds & False, count, 0.5) == 0


def test_context_is_what_stands_before_the_last_special_token() -> None:
    """XLM-R's frame and BERT's: <s> q q </s> </s> c c c </s>, [CLS] q [SEP] c c [SEP] and padding."""
    special = torch.tensor([[1, 0, 0, 1, 1, 0, 0, 0, 1], [1, 0, 1, 0, 0, 1, 0, 0, 0]]).bool()
    mask = torch.tensor([[1] * 9, [1] * 6 + [0] * 3])
    found = context_tokens(mask, mask.bool() & ~special)
    assert found.int().tolist() == [[0, 0, 0, 0, 0, 1, 1, 1, 0], [0, 0, 0, 1, 1, 0, 0, 0, 0]]


def test_info_nce_against_numpy() -> None:
    rng = np.random.default_rng(0)
    anchor, positive, negatives = rng.normal(size=(3, 6)), rng.normal(size=(3, 6)), rng.normal(size=(3, 5, 6))
    exists = np.array([[1, 1, 1, 1, 1], [1, 0, 1, 0, 0], [0, 0, 0, 0, 0]], bool)

    def cosine(a: np.ndarray, b: np.ndarray) -> float:
        return a @ b / np.linalg.norm(a) / np.linalg.norm(b)

    wanted = []
    for row in range(3):
        top = np.exp(cosine(anchor[row], positive[row]) / 0.05)
        rest = [np.exp(cosine(anchor[row], other) / 0.05) for other in negatives[row][exists[row]]]
        wanted.append(-np.log(top / (top + sum(rest))))
    found = info_nce(*map(torch.tensor, (anchor, positive, negatives, exists)), 0.05)
    np.testing.assert_allclose(found.numpy(), wanted, atol=1e-12)


def make_trainer(backbone: Path, steps: int = 6, data: ProtocolData | None = None, **changes) -> AaclTrainer:
    torch.manual_seed(0)
    config, data = AaclConfig(**changes), data or toy_protocol()
    made = AaclForQuestionAnswering.from_backbone(str(backbone), config, ["en", "de"], dropout=0.1)
    settings = TrainingConfig(steps=steps, batch_size=8, learning_rate=3e-3, log_every=1)
    parts = training_parts(Experiment("toy", "aa-cl"), data, made[1])
    return AaclTrainer(made[0], parts, settings, made[1].pad_token_id)


def test_weight_0_and_all_candidates_are_trans_train_bit_for_bit(backbone: Path) -> None:
    ours, theirs = (
        make_trainer(backbone, contrast=0.0, candidates=ALL),
        plain_trainer("trans-train", backbone, toy_protocol()),
    )
    logs = [[line["loss"] for line in trainer.train(False).log] for trainer in (ours, theirs)]
    weights = ours.model.state_dict()
    assert logs[0] == logs[1] and ours.result.tokens == theirs.result.tokens
    assert all(torch.equal(value, weights[name]) for name, value in theirs.model.state_dict().items())
    other = make_trainer(backbone)
    assert [line["loss"] for line in other.train(False).log] != logs[0]


def test_second_half_reads_the_english_beside(backbone: Path) -> None:
    """The same rows as trans-train's all along; the English of each row's own question, where there is one."""
    trainer = make_trainer(backbone)
    result = trainer.train(False)
    assert all("margin" in line for line in result.log[:3]) and not any("contrast" in line for line in result.log[:3])
    assert any("contrast" in line for line in result.log[3:])
    pairs = sum("contrast" in line for line in result.log)
    assert result.sequences == 6 * 8 + 8 * pairs
    rows = [row for row in trainer.rows if row.part == 1][:3]
    trainer.parts[1].paired[rows[1].target] = -1
    trainer.step = 3
    read, part = trainer._inputs(rows, False), trainer.parts[1]
    assert read["source"]["holds_answer"].tolist() == [True, False, True]
    for place in (0, 2):
        ids = part.source.input_ids[part.source.ids.index(part.target.id_of(rows[place].target))]
        assert read["source"]["input_ids"][place][: len(ids)].tolist() == ids.tolist()


def test_its_second_stage_is_watched_whatever_the_encoder(backbone: Path) -> None:
    """Nothing shares: the tiny encoder has no layer below the paper's sharing one, ModernBERT's lie elsewhere."""
    trainer = make_trainer(backbone, steps=1)
    assert trainer.train_step([row for row in trainer.rows if row.part == 1][:8])["share_contrast"] > 0
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 48}
    model = AaclForQuestionAnswering(AaclConfig(encoder=ModernBertConfig(vocab_size=60, pad_token_id=0, **sizes)))
    terms = {"target": model.qa_outputs.weight.sum(), "contrast": model.span_projection.weight.sum()}
    assert gradient_shares(model, terms) == {}


def test_contrast_of_a_batch_by_hand(backbone: Path) -> None:
    """Gold against gold; negatives the k best others of both sides; rows without an answer do not count."""
    trainer = make_trainer(backbone, candidates=3)
    trainer.step, model = 5, trainer.model.eval()
    stir(model)
    inputs = trainer._inputs([row for row in trainer.rows if row.part == 1][:3], False)
    inputs["source"]["holds_answer"][2] = False
    source = model.encode(**inputs.pop("source"))
    output = model(**inputs, source=source)
    target = model.encode(**{name: value for name, value in inputs.items() if name != "passages"})
    wanted = []
    for row in range(2):
        vectors, negatives = [], []
        for side in (source, target):
            last = int(side.mask[row].sum()) - 1
            first = max(place for place in range(last) if not side.content[row, place]) + 1
            context = torch.zeros_like(side.content)
            context[row, first:last] = True
            gold = torch.stack([side.starts, side.ends], 1)
            spans = [tuple(gold[row].tolist())] + [s[1:] for s in by_hand(side.logits, context, gold, row, 30)[:3]]
            found = [model.span_projection(torch.cat([side.states[row, a], side.states[row, b]])) for a, b in spans]
            vectors.append(found[0].detach().numpy())
            negatives += [vector.detach().numpy() for vector in found[1:]]
        unit = [v / np.linalg.norm(v) for v in (*vectors, *negatives)]
        logits = np.array([unit[0] @ other for other in unit[1:]], dtype=float) / 0.05
        wanted.append(np.log(np.exp(logits).sum()) - logits[0])
    assert output.losses["contrast"].item() == pytest.approx(np.mean(wanted), rel=1e-4)
    assert output.loss.item() == pytest.approx((output.losses["target"] + 0.1 * output.losses["contrast"]).item())


def recall(trainer: AaclTrainer, k: int) -> float:
    """How often the k best spans hold gold, over all rows, the span head alone."""
    model, hits = trainer.model.eval(), []
    for rows in ([row for row in trainer.rows if row.part == part] for part in (0, 1)):
        inputs = super(AaclTrainer, trainer)._inputs(rows, False)
        names = ("input_ids", "attention_mask", "start_positions", "end_positions")
        with torch.no_grad():
            side = model.encode(**{name: inputs[name] for name in names})
        gold, context = torch.stack([side.starts, side.ends], 1), context_tokens(side.mask, side.content)
        others, _, _ = best_other_spans(side.logits, context, gold, k)
        places = torch.arange(len(gold))
        own = side.logits[places, gold[:, 0], 0] + side.logits[places, gold[:, 1], 1]
        hits += (own > others[:, k - 1]).tolist()
    return sum(hits) / len(hits)


def lists(words: str) -> list[Question]:
    """Passages of five places each, one of which a question asks for: easy to find the five, hard to tell which."""
    rng, found = np.random.default_rng(0), []
    for number in range(32):
        names, places = (
            rng.permutation(list("bcdfg")),
            rng.permutation(["the city", "Paris", "a river", "Rome", "Oslo"]),
        )
        asked, place = names[number % 5], str(places[number % 5])
        context = " ".join(f"{name} {words} {where}." for name, where in zip(names, places, strict=True))
        start = context.index(f"{asked} {words} ") + len(f"{asked} {words} ")
        found.append(Question(f"q{number}", f"{asked}?", context, (Answer(place, start),)))
    return found


def test_first_stage_raises_recall_over_as_many_plain_steps(backbone: Path) -> None:
    english = lists("is in")
    data = replace(toy_protocol(), train=english, parallel={"de": lists("ist in")}, parallel_source=english)
    found = []
    for candidates in (ALL, 3):
        trainer = make_trainer(backbone, 40, data, contrast=0.0, candidates=candidates, margin=2.0)
        trainer.train(False)
        found.append(recall(trainer, 3))
    assert found[1] > found[0] + 0.1
