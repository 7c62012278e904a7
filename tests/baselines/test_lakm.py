"""LAKM: what is masked, the head over the vocabulary, the tasks' turns, and trans-train without masking."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from toy import encoder_config, stir, toy_protocol
from transformers import AutoModelForMaskedLM, DistilBertConfig, ElectraConfig

from xsta_lib.baselines.lakm import (
    LakmConfig,
    LakmForQuestionAnswering,
    LakmTrainer,
    MaskedTokenHead,
    lakm_tasks,
    mask_tokens,
    mixed_parts,
)
from xsta_lib.data.batches import rows_of
from xsta_lib.data.protocols import ProtocolData
from xsta_lib.data.squad import Question
from xsta_lib.encoders import backbones
from xsta_lib.experiments.experiment import METHODS, Experiment
from xsta_lib.experiments.run import training_parts
from xsta_lib.training.configuration import TrainingConfig
from xsta_lib.training.trainer import Trainer


def with_phrases() -> ProtocolData:
    """The toy protocol, whose first two passages share a phrase that a question asks for, in both languages."""
    data = toy_protocol()

    def say(questions: list[Question]) -> list[Question]:
        changed = [replace(q, context=q.context + " Grand Canyon.") for q in questions[:2]]
        return [*changed, replace(questions[2], question="grand canyon"), *questions[3:]]

    return replace(
        data, train=say(data.train), parallel={"de": say(data.parallel["de"])}, parallel_source=say(data.train)
    )


def test_shares_of_the_masks() -> None:
    """15 % of the tokens; of these 80 % the mask, 10 % another token, 10 % themselves; phrases first; no frame."""
    rng, length = np.random.default_rng(0), 400
    ids = np.concatenate([[0], np.arange(10, 10 + length), [2]])
    places, phrases = np.arange(1, length + 1), np.array([[50, 53], [200, 202], [300, 303]])
    counts, kinds = np.zeros(len(ids)), np.zeros(3)
    for _ in range(400):
        read, labels = mask_tokens(ids, places, phrases, 9, np.arange(1000, 2000), rng)
        masked = labels >= 0
        assert (labels[masked] == ids[masked]).all() and (read[~masked] == ids[~masked]).all()
        assert masked.sum() == 60 and not masked[[0, -1]].any()
        counts += masked
        kinds += [(read[masked] == 9).sum(), (read[masked] >= 1000).sum(), (read[masked] == ids[masked]).sum()]
    assert kinds / kinds.sum() == pytest.approx([0.8, 0.1, 0.1], abs=0.01)
    inside = np.zeros(len(ids), bool)
    for first, last in phrases:
        inside[first : last + 1] = True
    assert (counts[inside] == 400).all()  # eleven tokens of phrases, room for sixty
    others = counts[1:-1][~inside[1:-1]] / 400
    assert others.mean() == pytest.approx(49 / (length - 11)) and others.max() < 0.22


def test_phrases_are_masked_whole_where_there_are_more_than_fit() -> None:
    ids, rng = np.arange(100, 140), np.random.default_rng(1)
    phrases = np.array([[2, 4], [10, 12], [20, 22], [30, 32]])
    for _ in range(50):
        _, labels = mask_tokens(ids, np.arange(40), phrases, 9, ids, rng)
        masked = set(np.flatnonzero(labels >= 0))
        assert len(masked) == 6 and sum(masked >= set(range(a, b + 1)) for a, b in phrases.tolist()) == 2


@pytest.mark.parametrize("kind", ["bert", "xlm-roberta"])
def test_head_is_the_checkpoints_own(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its logits are those of transformers' own model, at every place."""
    torch.manual_seed(0)
    whole = AutoModelForMaskedLM.from_config(encoder_config(kind)).eval()
    stir(whole)
    whole.tie_weights()
    whole.save_pretrained(tmp_path)
    head = MaskedTokenHead(whole.config)
    head.load_state_dict(backbones.load_masked_head(str(tmp_path)))
    ids = torch.randint(5, 60, (2, 7))
    with torch.no_grad():
        expected, states = whole(ids).logits, whole.base_model(ids).last_hidden_state
        found = head(states, whole.get_input_embeddings().weight)
    torch.testing.assert_close(found, expected)
    assert backbones.load_masked_head("e5-small-q4") is None


@pytest.mark.parametrize("kind", [DistilBertConfig, ElectraConfig])
def test_an_encoder_that_cannot_take_the_head_is_refused(kind: type) -> None:
    """DistilBERT has no hidden_act, ELECTRA's word embeddings are of another width (128)."""
    sizes = {"vocab_size": 60, "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4}
    with pytest.raises(ValueError, match=f"'{kind.model_type}' cannot take LAKM's head"):
        LakmForQuestionAnswering(LakmConfig(encoder=kind(**sizes)))


def test_loss_is_the_cross_entropy_of_the_masked_tokens(backbone: Path) -> None:
    torch.manual_seed(0)
    model, tokenizer = LakmForQuestionAnswering.from_backbone(str(backbone), LakmConfig(), ["en"])
    stir(model.eval())
    ids = torch.randint(5, 40, (2, 6))
    labels = torch.tensor([[-100, 7, -100, -100, 9, -100], [-100, -100, -100, 11, -100, -100]])
    output = model(ids, torch.ones_like(ids), masked_labels=labels)
    head, words = model.masked_head, model.encoder.get_input_embeddings().weight.detach().double().numpy()
    states = model.encoder(input_ids=ids).last_hidden_state
    wanted = []
    for row, place in ((0, 1), (0, 4), (1, 3)):
        with torch.no_grad():
            vector = head.transform(states[row, place]).double().numpy()
        logits = words @ vector + head.bias.detach().double().numpy()
        wanted.append(np.log(np.exp(logits).sum()) - logits[labels[row, place]])
    assert output.loss.item() == pytest.approx(np.mean(wanted), rel=1e-5)
    output.loss.backward()
    assert model.qa_outputs.weight.grad is None and head.bias.grad.shape == (len(words),) and tokenizer.mask_token_id


def make_trainer(method: str, backbone: Path, data: ProtocolData, tasks: dict | None = None, **changes) -> Trainer:
    exp = Experiment("toy", method)
    torch.manual_seed(0)
    model, tokenizer = METHODS[method][0].from_backbone(str(backbone), exp.model_config(), ["en", "de"], dropout=0.1)
    settings = TrainingConfig(**{"steps": 6, "batch_size": 8, "learning_rate": 3e-3, "log_every": 1, **changes})
    given = model, training_parts(exp, data, tokenizer), settings, tokenizer.pad_token_id
    if method == "trans-train":
        return Trainer(*given)
    tasks = lakm_tasks(data, tokenizer, model.config.mix_mrc) if tasks is None else tasks
    return LakmTrainer(*given, **tasks, tokenizer=tokenizer)


def test_without_passages_it_is_trans_train_bit_for_bit(backbone: Path) -> None:
    data, nothing = toy_protocol(), {"passages": [], "mixed": []}
    ours, theirs = make_trainer("lakm", backbone, data, nothing), make_trainer("trans-train", backbone, data)
    assert [line["loss"] for line in ours.train(False).log] == [line["loss"] for line in theirs.train(False).log]
    weights = ours.model.state_dict()
    assert all(torch.equal(value, weights[name]) for name, value in theirs.model.state_dict().items())
    assert ours.result.extra == {} and ours.result.tokens == theirs.result.tokens


@pytest.mark.parametrize(
    ("method", "turns"), [("lakm", ["", "knowledge"]), ("lakm_mixmrc", ["", "mixed", "knowledge"])]
)
def test_tasks_take_turns_and_are_counted(method: str, turns: list[str], backbone: Path) -> None:
    """The plain reader's batches are trans-train's; what the others read stands under their names."""
    data = with_phrases()
    trainer, plain = make_trainer(method, backbone, data), make_trainer("trans-train", backbone, data)
    assert list(trainer.tasks) == turns and trainer.config.steps == 6 * len(turns)
    batches, wanted = trainer._batches(), plain._batches()
    for step in range(12):
        _, rows = next(batches)
        assert set(rows) <= set(trainer.tasks[turns[step % len(turns)]])
        assert step % len(turns) or rows == next(wanted)[1]
    trainer.step = 5
    resumed, whole = trainer._batches(), make_trainer(method, backbone, data)._batches()
    expected = [next(whole)[1] for _ in range(12)][5:]
    assert [next(resumed)[1] for _ in range(7)] == expected
    trainer.step = 0
    result = trainer.train(False)
    assert result.steps == 6 * len(turns) and set(result.extra) == set(turns[1:])
    assert all(spent["steps"] == 6 and spent["sequences"] == 48 for spent in result.extra.values())
    assert result.tokens == plain.train(False).tokens + sum(spent["tokens"] for spent in result.extra.values())
    knowledge = [line["knowledge"] for line in result.log if "knowledge" in line]
    assert len(knowledge) == 6 and knowledge[-1] < knowledge[0]


def test_masked_batches_hold_what_the_passages_hold(backbone: Path) -> None:
    """Masked phrases, no special token masked, the same at the same step and others at the next."""
    trainer = make_trainer("lakm", backbone, with_phrases())
    rows = trainer.tasks["knowledge"][:4]
    read, windows = trainer._inputs(rows, False), trainer.passages[rows[0].part].part.target
    assert set(read) == {"input_ids", "attention_mask", "masked_labels"}
    for place, row in enumerate(rows):
        ids, labels = windows.input_ids[row.target], read["masked_labels"][place].numpy()[: windows.length[row.target]]
        masked = labels >= 0
        assert (labels[masked] == ids[masked]).all() and masked.sum() == max(1, round(0.15 * (len(ids) - 4)))
        assert not np.isin(ids[masked], [0, 1, 2]).any() and (read["masked_labels"][place, len(ids) :] == -100).all()
        phrases = trainer.passages[row.part].tokens(row.target)
        assert len(phrases) == (row.target < 2)
        for first, last in phrases:
            assert masked[first : last + 1].all() or masked[:first].sum() + masked[last + 1 :].sum() == 0
    again = trainer._inputs(rows, False)
    assert all(torch.equal(again[name], value) for name, value in read.items())
    trainer.step = 1
    assert not torch.equal(trainer._inputs(rows, False)["masked_labels"], read["masked_labels"])


def test_mixed_questions_join_by_id(backbone: Path) -> None:
    data = with_phrases()
    tokenizer = backbones.load_tokenizer(str(backbone))
    first, second = mixed_parts(replace(data, parallel_source=data.parallel_source[3:]), tokenizer)
    assert len(rows_of([first])) == 13 == len(rows_of([second])) and first.language == "de"
    text = tokenizer.decode(first.target.input_ids[0]), tokenizer.decode(second.target.input_ids[0])
    assert "Where is river 3?" in text[0] and "Der Fluss 3 ist in" in text[0]
    assert "Wo ist Fluss 3?" in text[1] and "River 3 is in" in text[1]
    assert first.target.holds_answer.all() and second.target.holds_answer.all()
