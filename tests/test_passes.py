"""A batch read in parts is the batch read whole: losses, every gradient, every output."""

from itertools import pairwise, product

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from tests.toy import PAD, PRESETS, pair_batch, tiny_model, trained_statistics, twin, without_gold
from xsta_lib.attention import PRODUCTS, products
from xsta_lib.passes import CPU_ROWS, PASS_TOKENS, clear_gradients, cut, look_up, tune_passes

LENGTHS = (12, 3, 3, 7), (3, 11, 4, 3)
CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def cheap_passes(monkeypatch):
    """Parts pay for rows of a few tokens too."""
    monkeypatch.setattr("xsta_lib.passes.PASS_TOKENS", 1)


def gradients(model: nn.Module, batch: dict) -> dict:
    """Gradients of one step, by name."""
    model(**batch).loss.backward()
    return {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}


@settings(max_examples=30, deadline=None, derandomize=True)
@given(lengths=st.lists(st.integers(1, 400), min_size=1, max_size=9).map(sorted), rows=st.integers(1, 9))
def test_no_other_cut_costs_less(lengths, rows):
    """Against all cuts there are."""

    def cost(sizes):
        ends = torch.tensor(sizes).cumsum(0).tolist()
        return sum(size * lengths[end - 1] + PASS_TOKENS for size, end in zip(sizes, ends, strict=True))

    every = []
    for inner in product([False, True], repeat=len(lengths) - 1):
        places = [0, *(i for i, here in enumerate(inner, 1) if here), len(lengths)]
        sizes = [high - low for low, high in pairwise(places)]
        if max(sizes) <= rows:
            every.append(cost(sizes))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("xsta_lib.passes.PASS_TOKENS", PASS_TOKENS)
        found = cut(lengths, rows)
    assert sum(found) == len(lengths) and max(found) <= rows and cost(found) == min(every)


@pytest.mark.parametrize("kind", ["bert", "xlm-roberta"])
@pytest.mark.parametrize("preset", [name for name in PRESETS if name != "release"])
def test_parts_give_the_whole(preset, kind):
    batch = pair_batch(3, kind, *LENGTHS)
    if preset == "plain":
        del batch["source"]
    whole = tiny_model(preset, kind)
    parts = twin(whole)
    parts.rows_per_pass, calls = 3, []
    parts.encoder.register_forward_hook(lambda *given: calls.append(given))
    expected = gradients(whole, batch)
    for name, found in gradients(parts, batch).items():
        torch.testing.assert_close(found, expected.pop(name), rtol=1e-4, atol=1e-5)
    assert not expected and len(calls) > (1 if preset == "plain" else 2)


@pytest.mark.parametrize("preset", ["paper", "mixup"])
def test_parts_give_the_same_answers_and_attentions(preset):
    batch = without_gold(pair_batch(3, "bert", *LENGTHS))
    whole = trained_statistics(tiny_model(preset))
    parts = twin(whole)
    parts.rows_per_pass = 3
    one, other = (model(**batch, explain=True) for model in (whole, parts))
    for name in ("target", "teacher", "calibrated", "mixing", "cross_attention", "teacher_attention"):
        expected, found = getattr(one, name), getattr(other, name)
        if name.endswith("attention") and expected is not None:
            real = batch["attention_mask"].bool()
            across = (0, 2, 1, 3) if expected.ndim == 4 else (0, 1, 2)
            expected, found = (value.permute(across)[real] for value in (expected, found))
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_several_languages_of_one_source_are_looked_up_once():
    model = tiny_model("paper")
    parts = twin(model)
    parts.rows_per_pass, calls = 3, []
    parts.encoder.get_input_embeddings().register_forward_hook(lambda *given: calls.append(given))
    first, second = (pair_batch(3, "bert", *LENGTHS, language=language) for language in ("de", "es"))
    source = first.pop("source")
    del second["source"]
    rows = {"source_rows": torch.arange(4)}
    batch = {"source": source, "targets": [first | rows, second | rows]}
    expected = gradients(model, batch)
    for name, found in gradients(parts, batch).items():
        torch.testing.assert_close(found, expected[name], rtol=1e-4, atol=1e-5)
    assert len(calls) == 1


@pytest.mark.parametrize("kind", ["bert", "xlm-roberta"])
def test_a_kept_word_gradient_is_the_gradient(kind):
    """Step after step, two batches a step; padding has none."""
    whole = tiny_model("paper", kind)
    parts = twin(whole)
    parts.rows_per_pass = 3
    weight = parts.encoder.get_input_embeddings().weight
    optimizers = [torch.optim.AdamW(model.parameters(), lr=0.01) for model in (whole, parts)]
    clear_gradients(parts, optimizers[1])
    memory = weight.grad.data_ptr()
    for step in range(2):
        batches = [pair_batch(seed, kind, *LENGTHS) for seed in (2 * step, 2 * step + 1)]
        for model in (whole, parts):
            for batch in batches:
                model(**batch).loss.backward()
        expected = whole.encoder.get_input_embeddings().weight.grad
        torch.testing.assert_close(weight.grad, expected, rtol=1e-4, atol=1e-5)
        assert not weight.grad[PAD[kind]].any() and not weight.grad.is_sparse and weight.grad.data_ptr() == memory
        for model, optimizer in zip((whole, parts), optimizers, strict=True):
            optimizer.step()
            clear_gradients(model, optimizer)
        assert whole.encoder.get_input_embeddings().weight.grad is None and not weight.grad.any()


def test_segments_go_with_their_rows():
    batch = pair_batch(3, "bert", *LENGTHS)
    for side in (batch, batch["source"]):
        side["token_type_ids"] = torch.arange(side["input_ids"].numel()).view_as(side["input_ids"]) % 3 % 2
    whole = tiny_model("paper")
    parts = twin(whole)
    parts.rows_per_pass = 3
    torch.testing.assert_close(parts(**batch).loss, whole(**batch).loss, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", ["bert", "xlm-roberta"])
def test_attention_by_products_is_attention(kind):
    """In every layer and in the sharing layer, padded rows and full ones."""
    batch = pair_batch(3, kind, *LENGTHS)
    fused = tiny_model("paper", kind)
    plain = twin(fused)
    plain.encoder.set_attn_implementation(PRODUCTS)
    expected = gradients(fused, batch)
    for name, found in gradients(plain, batch).items():
        torch.testing.assert_close(found, expected[name], rtol=1e-4, atol=1e-5)
    full = {name: torch.full((2, 5), value) for name, value in (("input_ids", 7), ("attention_mask", 1))}
    one, other = (model(**full).start_logits for model in (fused.eval(), plain.eval()))
    torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


def test_attention_by_products_drops_probabilities():
    query = key = torch.zeros(1, 1, 1, 4)
    kept = products(query, key.expand(1, 1, 4000, 4), torch.ones(1, 1, 4000, 1), None, dropout=0.5)
    assert kept.item() == pytest.approx(1, abs=0.1) and kept.item() != 1


def test_what_a_device_gets():
    model = tiny_model("paper")
    tune_passes(model, CPU, bf16=True)
    assert (model.rows_per_pass, model.encoder.config._attn_implementation) == (CPU_ROWS, PRODUCTS)
    tune_passes(model, CPU, bf16=False)
    assert (model.rows_per_pass, model.encoder.config._attn_implementation) == (CPU_ROWS, "sdpa")
    tune_passes(model, torch.device("cuda"), bf16=True)
    assert (model.rows_per_pass, model.encoder.config._attn_implementation) == (0, "sdpa")
    release = tiny_model("release")
    tune_passes(release, CPU, bf16=False)
    assert release.rows_per_pass == 0


def test_a_lookup_keeps_shapes():
    model = tiny_model("plain")
    ids = [torch.tensor([[5, 6, 7]]), torch.tensor([[8], [9]])]
    one, other = look_up(model.encoder, ids)
    embeddings = model.encoder.get_input_embeddings()
    assert torch.equal(one, embeddings(ids[0])) and torch.equal(other, embeddings(ids[1]))
