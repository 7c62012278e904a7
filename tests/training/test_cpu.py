"""A batch read in parts is the batch read whole: losses, every gradient, every output; and the model comes back."""

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise, product
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from toy import (
    KINDS,
    PAD,
    PRESETS,
    both_passes,
    gradients,
    pair_batch,
    tiny_model,
    trained_statistics,
    twin,
    without_gold,
)
from transformers import ModernBertConfig

from xsta_lib.model.configuration import XStaConfig
from xsta_lib.model.modeling import XStaForQuestionAnswering
from xsta_lib.training import cpu
from xsta_lib.training.cpu import PRODUCTS, clear_gradients, cut, products, tuned

TRAINING = {"read", "sparse", "gradient"}
LENGTHS = (12, 3, 3, 7), (3, 11, 4, 3)


def attributes(model: XStaForQuestionAnswering) -> dict[str, Any]:
    """All that a model's modules, word gradient and encoder configuration have, besides the contents of tensors."""
    own = {f"{name}.{key}": value for name, module in model.named_modules() for key, value in vars(module).items()}
    kept = {name: value if isinstance(value, (bool, int, float, str)) else id(value) for name, value in own.items()}
    kept["gradient"] = id(model.encoder.get_input_embeddings().weight.grad)
    return kept | {"configuration": dict(vars(model.encoder.config))}


@contextmanager
def in_parts(model: XStaForQuestionAnswering, bf16: bool = False) -> Iterator[None]:
    """Read in parts of at most three rows, which pay for rows of a few tokens too; the model is left as it was."""
    before = attributes(model)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cpu, "PASS_TOKENS", 1)
        patch.setattr(cpu, "CPU_ROWS", 3)
        with tuned(model, bf16):
            assert attributes(model) != before
            yield
    assert attributes(model) == before


@settings(max_examples=30, deadline=None, derandomize=True)
@given(lengths=st.lists(st.integers(1, 400), min_size=1, max_size=9).map(sorted), rows=st.integers(1, 9))
def test_no_other_cut_costs_less(lengths, rows):

    def cost(sizes):
        ends = torch.tensor(sizes).cumsum(0).tolist()
        return sum(size * lengths[end - 1] + cpu.PASS_TOKENS for size, end in zip(sizes, ends, strict=True))

    every = []
    for inner in product([False, True], repeat=len(lengths) - 1):
        places = [0, *(i for i, here in enumerate(inner, 1) if here), len(lengths)]
        sizes = [high - low for low, high in pairwise(places)]
        if max(sizes) <= rows:
            every.append(cost(sizes))
    found = cut(lengths, rows)
    assert sum(found) == len(lengths) and max(found) <= rows and cost(found) == min(every)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("preset", [name for name in PRESETS if name != "release"])
def test_parts_give_the_whole(preset, kind):
    batch = pair_batch(3, kind, *LENGTHS)
    if preset == "plain":
        del batch["source"]
    whole = tiny_model(preset, kind)
    parts, calls = twin(whole), []
    parts.encoder.register_forward_hook(lambda *given: calls.append(given))
    expected = gradients(whole, batch)
    with in_parts(parts):
        found = gradients(parts, batch)
    assert len(calls) > (1 if preset == "plain" else 2)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("preset", ["paper", "mixup"])
def test_parts_give_the_same_answers_and_attentions(preset):
    batch = without_gold(pair_batch(3, "bert", *LENGTHS))
    model = trained_statistics(tiny_model(preset))
    one = both_passes(model, batch, explain=True)
    with in_parts(model):
        other = both_passes(model, batch, explain=True)
    for name in ("target", "teacher", "calibrated", "mixing", "cross_attention", "teacher_attention"):
        expected, found = getattr(one, name), getattr(other, name)
        if name.endswith("attention") and expected is not None:
            real = batch["attention_mask"].bool()
            across = (0, 2, 1, 3) if expected.ndim == 4 else (0, 1, 2)
            expected, found = (value.permute(across)[real] for value in (expected, found))
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_several_languages_share_one_source_pass():
    """Rows in any order; every row counts alike; the gradients are those of single passes, read whole."""
    model, rows = tiny_model("paper"), {"de": [0, 1, 2, 3], "es": [3, 1, 0, 2]}
    parts = twin(model)
    batches = {name: pair_batch(seed, "bert", *LENGTHS, language=name) for seed, name in enumerate(rows)}
    source, targets = batches["de"]["source"], []
    for language, places in rows.items():
        own = batches[language] | {"source": {name: value[places] for name, value in source.items()}}
        expected = gradients(model, own)  # both languages' sum
        del own["source"]
        targets.append(own | {"source_rows": torch.tensor(places)})
    with in_parts(parts):
        for name, found in gradients(parts, {"source": source, "targets": targets}).items():
            torch.testing.assert_close(2 * found, expected[name], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_a_kept_word_gradient_is_the_gradient(kind):
    """Step after step, two batches a step; padding has none, and the kept memory stays."""
    whole = tiny_model("paper", kind)
    parts = twin(whole)
    weight = parts.encoder.get_input_embeddings().weight
    optimizers = [torch.optim.AdamW(model.parameters(), lr=0.01) for model in (whole, parts)]
    with in_parts(parts):
        clear_gradients(parts, optimizers[1])
        memory = weight.grad.data_ptr()
        for step in range(2):
            batches = [pair_batch(seed, kind, *LENGTHS) for seed in (2 * step, 2 * step + 1)]
            for model in (whole, parts):
                for batch in batches:
                    both_passes(model, batch).loss.backward()
            expected = whole.encoder.get_input_embeddings().weight.grad
            torch.testing.assert_close(weight.grad, expected, rtol=1e-4, atol=1e-5)
            assert not weight.grad[PAD[kind]].any() and weight.grad.data_ptr() == memory
            for model, optimizer in zip((whole, parts), optimizers, strict=True):
                optimizer.step()
                clear_gradients(model, optimizer)
            assert whole.encoder.get_input_embeddings().weight.grad is None and not weight.grad.any()


def test_segments_go_with_their_rows():
    batch = pair_batch(3, "bert", *LENGTHS)
    for side in (batch, batch["source"]):
        side["token_type_ids"] = torch.arange(side["input_ids"].numel()).view_as(side["input_ids"]) % 3 % 2
    model = tiny_model("paper")
    expected = both_passes(model, batch).loss
    with in_parts(model):
        torch.testing.assert_close(both_passes(model, batch).loss, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_attention_by_products_is_attention(kind):
    batch = pair_batch(3, kind, *LENGTHS)
    fused = tiny_model("paper", kind)
    plain = twin(fused)
    full = {name: torch.full((2, 5), value) for name, value in (("input_ids", 7), ("attention_mask", 1))}
    expected = gradients(fused, batch), fused.eval()(**full).start_logits
    with in_parts(plain, bf16=True):
        assert plain.encoder.config._attn_implementation == PRODUCTS and plain.sharing_layer.attend is products
        gradient, logits = gradients(plain, batch), plain.eval()(**full).start_logits
        plain.train()
    torch.testing.assert_close((gradient, logits), expected, rtol=1e-4, atol=1e-5)


def test_an_encoder_of_another_kind_keeps_its_attention():
    """ModernBERT's layers look at a window of four tokens; products mask padding alone."""
    sizes = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 48}
    encoder = ModernBertConfig(vocab_size=60, local_attention=4, pad_token_id=0, initializer_range=0.2, **sizes)
    model, batch = XStaForQuestionAnswering(XStaConfig.plain(encoder=encoder)).eval(), pair_batch(3)
    with torch.no_grad():
        read = {name: batch[name] for name in ("input_ids", "attention_mask")}
        expected = model.encode(**read).states
        assert model.encoder.config._attn_implementation == "sdpa"
        with in_parts(model, bf16=True):
            found = model.encode(**read).states
    real = read["attention_mask"].bool()
    torch.testing.assert_close(found[real], expected[real], rtol=1e-4, atol=1e-5)


def test_answering_amid_training_gives_its_way_of_reading_back():
    model, batch = tiny_model("paper"), pair_batch(3, "bert", *LENGTHS)
    expected, calls = both_passes(model, batch).loss, []
    model.encoder.register_forward_hook(lambda *given: calls.append(given))
    with in_parts(model, bf16=True):
        for inside in (torch.inference_mode(), in_parts(model, bf16=True), torch.no_grad()):
            with inside:
                torch.testing.assert_close(both_passes(model, batch).loss, expected, rtol=1e-5, atol=1e-5)
    assert len(calls) % 3 == 0  # parts are not cut into parts again


def test_attention_by_products_drops_probabilities():
    query = key = torch.zeros(1, 1, 1, 4)
    kept = products(query, key.expand(1, 1, 4000, 4), torch.ones(1, 1, 4000, 1), None, dropout=0.5)
    assert kept.item() == pytest.approx(1, abs=0.1) and kept.item() != 1


@pytest.mark.parametrize(
    ("preset", "device", "attention", "changed"),
    [
        ("paper", "cpu", "sdpa", {*TRAINING, "attend", "_attn_implementation"}),
        ("paper", "cpu", "eager", TRAINING),
        ("mixup", "cpu", "sdpa", {*TRAINING, "_attn_implementation"}),
        ("release", "cpu", "sdpa", {"attend", "_attn_implementation"}),  # its token alignment looks at padding
        ("paper", "meta", "sdpa", set()),
    ],
)
def test_what_a_device_gets_and_gives_back(preset, device, attention, changed):
    """Also where the block ends with an error."""
    model = tiny_model(preset).to(device)
    model.encoder.set_attn_implementation(attention)
    before = attributes(model)
    with pytest.raises(KeyboardInterrupt), tuned(model, bf16=True):
        inside = attributes(model)
        found = {name.split(".")[-1] for name in inside if inside[name] != before.get(name)} - {"configuration"}
        if model.encoder.config._attn_implementation != attention:
            found.add("_attn_implementation")
        raise KeyboardInterrupt
    assert found == changed and attributes(model) == before
