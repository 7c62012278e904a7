"""The front door: answers against brute force from the logits of any extractive model, and what it refuses or says."""

import json
import os
import pickle
import re
import shutil
import subprocess
import sys
import warnings
from concurrent.futures import ThreadPoolExecutor
from html import unescape
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    AutoModelForQuestionAnswering,
    BertConfig,
    BertForQuestionAnswering,
    BertModel,
    DistilBertConfig,
    ElectraConfig,
    PreTrainedTokenizerFast,
    RobertaConfig,
    ViTConfig,
    XLNetConfig,
)

from xsta_lib.cli import main
from xsta_lib.data.squad import Question
from xsta_lib.encoders.backbones import load_span_head
from xsta_lib.encoders.e5_file import BackboneError
from xsta_lib.encoders.packed import pack
from xsta_lib.model.configuration import XStaConfig
from xsta_lib.model.modeling import XStaForQuestionAnswering
from xsta_lib.prediction.answers import LeftOut
from xsta_lib.prediction.lines import read_requests
from xsta_lib.reader import Reader, detect

ROOT = Path(__file__).resolve().parents[1]
MILLS = [  # question, text and answer
    (
        "Wer hat die Mühle gebaut?",
        "Die Mühle am Fluss wurde 1789 von der Müllerin Anna Brandt gebaut. 1845 setzte ihr Enkel ein neues Rad ein.",
        "Anna Brandt",
    ),
    (
        "من بنى الطاحونة؟",
        "بُنيت الطاحونة على ضفة النهر عام 1789 على يد الطحّان يوسف حداد. وبعد فيضان عام 1845 ركّب حفيده عجلة جديدة.",
        "يوسف حداد",
    ),
    ("谁建造了磨坊？", "河边的磨坊由磨坊主李明于1789年建造。1845年洪水之后，他的孙子安装了一个新的水轮。", "李明"),
]
CONTEXT = "the old mill was built in 1817 by a miller . it stood by the river . later it was sold to his son ."
QUESTION = "who built the mill ?"
WORDS = sorted({*CONTEXT.split(), *QUESTION.split(), "city"})
LAYOUTS = {"bert": "[CLS] $A [SEP] $B:1 [SEP]:1", "roberta": "[CLS] $A [SEP] [SEP] $B [SEP]"}
LAYOUTS |= {"xlnet": "$A [SEP] $B:1 [SEP]:1 [CLS]:2"}
SIZES = dict(vocab_size=40, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=48)
CONFIGS = {
    "bert": BertConfig(**SIZES, max_position_embeddings=64),
    "electra": ElectraConfig(**SIZES, embedding_size=16, max_position_embeddings=64),
    "roberta": RobertaConfig(**SIZES, max_position_embeddings=66, pad_token_id=1, type_vocab_size=1),
    "distilbert": DistilBertConfig(vocab_size=40, dim=32, n_layers=2, n_heads=2, hidden_dim=48),
    "xlnet": XLNetConfig(vocab_size=40, d_model=32, n_layer=2, n_head=2, d_inner=48),
}


def word_tokenizer(kind: str = "bert", limit: int = 64) -> PreTrainedTokenizerFast:
    """A tokenizer of whole words in an architecture's layout."""
    vocabulary = {word: i for i, word in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    layout = LAYOUTS.get(kind, LAYOUTS["bert"])
    single = layout.split(" $B")[0].replace(" [SEP] [SEP]", " [SEP]") + (" [CLS]:2" if kind == "xlnet" else "")
    special = [(name, vocabulary[name]) for name in ("[CLS]", "[SEP]")]
    tokenizer.post_processor = processors.TemplateProcessing(single=single, pair=layout, special_tokens=special)
    segments = [] if kind in ("roberta", "distilbert") else ["token_type_ids"]
    names = dict(cls_token="[CLS]", sep_token="[SEP]", pad_token="[PAD]", unk_token="[UNK]")
    inputs = ["input_ids", *segments, "attention_mask"]
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, **names, model_input_names=inputs, model_max_length=limit
    )


def save_model(folder: Path, kind: str = "bert", seed: int = 0) -> Path:
    """A random question-answering model of an architecture and its tokenizer, saved to a folder."""
    torch.manual_seed(seed)
    model = AutoModelForQuestionAnswering.from_config(CONFIGS[kind])
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    model.save_pretrained(folder)
    word_tokenizer(kind).save_pretrained(folder)
    return folder


def by_hand(folder: Path, kind: str, question: str, context: str) -> tuple[list, float]:
    """Every span of up to 30 tokens as (score, start, end), best first, and the score of ([CLS], [CLS])."""
    model, tokenizer = AutoModelForQuestionAnswering.from_pretrained(folder).eval(), word_tokenizer(kind)
    encoded = tokenizer(question, context, return_offsets_mapping=True, return_tensors="pt")
    offsets, sides = encoded.pop("offset_mapping")[0].tolist(), encoded.sequence_ids(0)
    with torch.no_grad():
        output = model(**encoded)
    cls = encoded["input_ids"][0].tolist().index(tokenizer.cls_token_id)
    places = [i for i, side in enumerate(sides) if side == 1]
    start, end = (
        dict(zip([cls, *places], logits[0, [cls, *places]].double().softmax(0).tolist(), strict=True))
        for logits in (output.start_logits, output.end_logits)
    )
    spans = [(start[i] * end[j], offsets[i][0], offsets[j][1]) for i in places for j in places if 0 <= j - i < 30]
    return sorted(spans, reverse=True), start[cls] * end[cls]


@pytest.mark.parametrize("kind", CONFIGS)
def test_answers_of_any_model_are_a_hand_made_decoding_of_its_logits(tmp_path, kind):
    contexts = [CONTEXT, "it was a miller .", CONTEXT.replace("miller", "son"), "a city by the river ."]
    for seed in range(3):
        folder = save_model(tmp_path / str(seed), kind, seed)
        found = Reader(folder, "cpu").answer([QUESTION] * 4, contexts, "en")
        forced = Reader(folder, "cpu", no_answer=False).answer([QUESTION] * 4, contexts, "en", n_best=4)
        for answer, always, context in zip(found, forced, contexts, strict=True):
            spans, none = by_hand(folder, kind, QUESTION, context)
            score, start, end = spans[0]
            assert (always.text, always.start, always.end) == (context[start:end], start, end)
            assert always.score == pytest.approx(score, rel=1e-4) and always.missing is None
            assert answer.missing == pytest.approx(none / (none + score), rel=1e-4)
            assert answer.text == ("" if none > score else always.text) and bool(answer.reason) == (none > score)
            kept = []
            for score, start, end in spans:  # greedily, best first
                if len(kept) < 4 and all(end <= b or start >= a for _, b, a in kept):
                    kept.append((score, start, end))
            assert [(s.start, s.end) for s in always.alternatives] == [(start, end) for _, start, end in kept]
            assert all(context[s.start : s.end] == s.text for s in always.alternatives)


def test_a_squad_2_model_says_how_sure_it_is_that_there_is_no_answer(tmp_path):
    folder = save_model(tmp_path / "model")
    model = BertForQuestionAnswering.from_pretrained(folder)
    tokenizer = word_tokenizer()
    with torch.no_grad():  # [CLS] alone has its states pulled towards the head
        model.qa_outputs.weight.zero_()
        encoded = tokenizer(QUESTION, CONTEXT, return_tensors="pt")
        states = model.bert(**encoded).last_hidden_state[0]
        model.qa_outputs.weight.copy_((states[0] - states[1:].mean(0)).repeat(2, 1))
    model.save_pretrained(folder)
    answer = Reader(folder, "cpu").answer(QUESTION, CONTEXT, "en")
    assert answer.text == "" and 0.5 < answer.missing <= 1 and (answer.start, answer.end) == (-1, -1)
    assert "does not have the answer" in answer.reason and answer.alternatives[0].text in CONTEXT
    assert Reader(folder, "cpu", no_answer=False).answer(QUESTION, CONTEXT, "en").text == answer.alternatives[0].text


def test_a_long_context_is_read_in_windows_that_the_model_has_positions_for(tmp_path):
    folder = save_model(tmp_path / "model")
    reader = Reader(folder, "cpu", no_answer=False)
    assert reader.predictor.spec.max_length == 64
    filler = " ".join(["the city was by the river ."] * 30)
    context = f"{filler} {CONTEXT} {filler}"
    answer = reader.answer(QUESTION, context, "en", n_best=5)
    assert context[answer.start : answer.end] == answer.text and len(answer.alternatives) == 5
    ends = sorted((span.start, span.end) for span in answer.alternatives)
    assert all(one[1] <= two[0] for one, two in zip(ends, ends[1:], strict=False))
    positions = 20  # no multiple of what windows are padded to
    BertForQuestionAnswering(BertConfig(**SIZES, max_position_embeddings=positions)).save_pretrained(folder)
    answer = Reader(folder, "cpu", no_answer=False).answer(QUESTION, context, "en")
    assert answer.text and context[answer.start : answer.end] == answer.text


# --- X-STA's own readers ---


@pytest.fixture(scope="module")
def ours(tmp_path_factory, backbone) -> Path:
    """A tiny random X-STA as training saves it."""
    torch.manual_seed(1)
    model, tokenizer = XStaForQuestionAnswering.from_backbone(str(backbone), XStaConfig(sharing_layer=2), ["en", "de"])
    torch.nn.init.normal_(model.qa_outputs.weight, std=1.0)
    model.normalisation.updates += 9
    folder = tmp_path_factory.mktemp("ours")
    model.save_pretrained(folder / "model", tokenizer)
    pack(model, tokenizer, folder / "packed", str(backbone))
    return folder


GERMAN = "Die alte Mühle am Bach wurde 1817 von dem Müller Johann Krause gebaut."
ENGLISH = "The old mill by the brook was built in 1817 by the miller Johann Krause."


def test_one_in_one_out_lists_in_lists_out_in_order(ours):
    reader = Reader(ours / "model", "cpu")
    questions = ["Wer baute die Mühle?", "Wann?", "Who?", "Wer baute die Mühle?"]
    contexts = [GERMAN, GERMAN, ENGLISH, "Das Haus baute Anna."]
    found = reader.answer(questions, contexts, ["de", None, "en", "de"])
    assert [answer.language for answer in found] == ["de", "de", "en", "de"]
    assert [answer.detected for answer in found] == [False, True, False, False]
    assert ["detected" in answer.to_dict() for answer in found] == [False, True, False, False]
    for question, context, answer in zip(questions, contexts, found, strict=True):
        alone = reader.answer(question, context, answer.language)
        assert alone.text == answer.text == context[answer.start : answer.end] and answer.text
        assert alone.score == pytest.approx(answer.score, rel=0.02) and answer.missing is None
        assert answer.alternatives[0][:4] == (answer.text, answer.score, answer.start, answer.end)
    assert reader.answer([], []) == []


def test_a_language_is_known_by_its_tag_and_what_was_not_trained_is_said(ours, caplog):
    reader = Reader(ours / "model", "cpu")
    tags = [" de ", "DE", "de-AT", "de_CH", "en-US"]
    with pytest.warns(UserWarning, match="1 questions in 'en' are read alone"):
        found = reader.answer(["Wer?"] * 5, [GERMAN] * 5, tags, [("Who?", ENGLISH)] * 5)
    assert [answer.language for answer in found] == ["de"] * 4 + ["en"] and not caplog.messages
    assert len({answer.text for answer in found[:4]}) == 1
    for tag, told in {"zh_hant_TW": "zh-Hant", " ZH": "zh", "zh-TW": "zh"}.items():
        assert reader.answer("谁?", "中文。", tag, translate="command:sed s/.*/{source}/").source == (told, told)
    caplog.clear()
    reader.answer("Wer?", GERMAN, "German")
    (said,) = caplog.messages
    assert said.startswith("not trained on the language 'german': read with the average of de; ")


@pytest.mark.parametrize(
    ("language", "question", "context"),
    [
        ("zh", "谁建造了磨坊？", "老磨坊于1817年由磨坊主约翰·克劳斯建造。"),
        ("ar", "من بنى الطاحونة؟", "بنى الطحان يوهان الطاحونة القديمة عام 1817."),
        ("hi", "चक्की किसने बनाई?", "पुरानी चक्की 1817 में योहान ने बनाई थी।"),
        ("vi", "Ai đã xây cối xay?", "Cối xay cũ được Johann xây năm 1817."),
        ("es", "¿Quién construyó el molino?", "El viejo molino lo construyó Johann en 1817."),
        ("en", "Who built the mill?", ENGLISH),
    ],
)
def test_a_language_is_found_out(language, question, context):
    assert detect(Question("0", question, context, ())) == language


def test_an_english_side_gives_three_readings(ours):
    reader = Reader(ours / "model", "cpu")
    source = ("Who built the mill?", ENGLISH)
    answer = reader.answer("Wer baute die Mühle?", GERMAN, "de", source)
    assert list(answer.readings) == ["calibrated", "target", "teacher"]
    assert answer.readings["calibrated"][:4] == (answer.text, answer.score, answer.start, answer.end)
    part = reader.answer(["Wer baute die Mühle?"] * 2, [GERMAN] * 2, "de", [None, source])
    assert part[1].score == pytest.approx(answer.score, rel=0.02)
    assert part[0].score == pytest.approx(reader.answer("Wer baute die Mühle?", GERMAN, "de").score, rel=0.02)
    assert part[0].readings == {} and part[1].readings["target"] != part[1].readings["calibrated"]
    why = reader.explain("Wer baute die Mühle?", GERMAN, "de", source)
    assert why.answer == answer.text and list(why.moved()["answer"]) == [s.text for s in answer.readings.values()]
    weights = why.looked_at(3)
    assert len(weights) == 3 and weights.iloc[0] == pytest.approx(why.teacher_attention[why.first_token].max())
    assert "<table" in why._repr_html_()
    alone = reader.explain("Wer baute die Mühle?", GERMAN, "de")
    assert alone.readings["target"].text == alone.answer
    with pytest.raises(ValueError, match="needs the source question"):
        alone.looked_at()


def test_an_answer_in_a_later_window_is_explained_there(ours):
    reader = Reader(ours / "model", "cpu")
    context = " ".join(f"Satz {i} steht hier und dort, Müller {i * i}." for i in range(60)) + " " + GERMAN
    why = reader.explain("Wer baute die Mühle?", context, "de", ("Who?", ENGLISH))
    answer = reader.answer("Wer baute die Mühle?", context, "de", ("Who?", ENGLISH))
    assert why.answer == answer.text
    first = why.target_tokens[why.first_token].replace("▁", "")
    assert first and answer.text.startswith(first)


def test_a_packed_folder_answers_as_the_whole_model_does(ours):
    whole, packed = (Reader(ours / name, "cpu").answer("Wer?", GERMAN, "de") for name in ("model", "packed"))
    assert whole.text == packed.text and packed.score == pytest.approx(whole.score, rel=0.02)


def test_blank_texts_have_no_answer_and_say_so(ours):
    reader = Reader(ours / "model", "cpu")
    contexts = ["", " \n\u200b\ufe0f\u3164", GERMAN, GERMAN]
    found = reader.answer(["Wer?", "Wer?", "\u00a0", "Wer?"], contexts, "de")
    assert [answer.text != "" for answer in found] == [False, False, False, True]
    assert [answer.reason for answer in found] == ["the context is blank"] * 2 + ["the question is blank", ""]
    assert all((answer.start, answer.score, answer.alternatives) == (-1, 0, ()) for answer in found[:3])
    with pytest.raises(ValueError, match="nothing to explain: the context is blank"):
        reader.explain("Wer?", "")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((["Who?"], []), "1 questions, but 0 contexts"),
        ((["Who?"], ENGLISH), "two lists of one length"),
        (("Who?", ENGLISH, ""), "language is ''; give a code such as 'de'"),
        ((["Who?"], [ENGLISH], ["en", "de"]), "1 questions, but 2 languages"),
        ((["Who?"], [ENGLISH], "de", []), "1 questions, but 0 English versions"),
        ((["Who?"], [ENGLISH], "de", ["ab"]), "source 0: a question and its context must be two texts"),
        (("Who?", GERMAN, "de", ("", ENGLISH)), "source 0: the question is blank"),
        ((["Who?"], [None]), "question 0: a question and its context must be two texts"),
        ((["a", "b\ud800"], [ENGLISH] * 2), r"question 1: character 1 is half a surrogate pair"),
        (("Who?", ENGLISH, "en", None, 0), "n_best is 0"),
        (("Who?", ENGLISH, "en", None, 1.5), "n_best is 1.5; it must be a whole number"),
        (("Who?", ENGLISH, "en", None, "3"), "n_best is '3'; it must be a whole number"),
        (("Who?", GERMAN, "de", {"question": "Who?", "context": ENGLISH}), "source 0: .* must be two texts, as a"),
        ((["Who?"], [GERMAN], "de", {"Who?": ENGLISH}), "source is a dict; give one, or a list"),
        (({"Who?"}, [GERMAN]), "question is a set; give one, or a list"),
    ],
    ids=str,
)
def test_wrong_calls_are_refused(ours, arguments, words):
    with pytest.raises((ValueError, TypeError), match=words):
        Reader(ours / "model", "cpu").answer(*arguments)


def test_what_is_cut_or_not_used_is_said(tmp_path, ours):
    plain, reader = Reader(save_model(tmp_path / "bert"), "cpu"), Reader(ours / "model", "cpu")
    with pytest.warns(UserWarning, match="1 source versions are not used: .* reads no pairs, first: 'who"):
        plain.answer(QUESTION, CONTEXT, "de", (QUESTION, CONTEXT))
    with pytest.warns(UserWarning, match="1 questions are cut after 64 tokens, first: 'wie lang"):
        reader.answer(["wie lang " * 60, "Wer?"], [GERMAN] * 2, "de")
    with pytest.warns(UserWarning, match="1 questions in 'en' are read alone"):
        reader.answer("Who?", ENGLISH, "en", ("Who?", ENGLISH))
    with pytest.warns(UserWarning, match="1 questions are read alone: project needs their source, or translate"):
        reader.answer(["Wer?", "Who?"], [GERMAN, ENGLISH], ["de", "en"], project=True)  # English is its own source
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        reader.answer("Wer?", GERMAN, "de", ("Who?", ENGLISH))


def test_an_engine_is_opened_once(ours):
    reader, opened = Reader(ours / "model", "cpu"), []
    for _ in range(2):
        assert reader.answer("Wer?", GERMAN, "de", translate="command:cat").source == ("Wer?", GERMAN)
        opened.append(reader._engines["command:cat"])
    assert opened[0] is opened[1] and len(reader._engines) == 1


def test_a_notebook_shows_the_answer_in_its_context(ours):
    context = "<b>من بنى</b> الطاحونة & القديمة في القرية عام 1817"
    answer = Reader(ours / "model", "cpu").answer("من <i>بنى</i> الطاحونة؟", context, "ar")
    html = answer._repr_html_()
    assert "&lt;i&gt;بنى" in html and html.count('dir="auto"') >= 2 and 'lang="ar"' in html
    passage = html.split('text-align: start">')[1].split("</p>")[0]
    marks = re.findall(r"<mark style=[^>]*>(.*?)</mark>", passage)
    assert unescape(re.sub(r"</?mark[^>]*>", "", passage)) == context and "<b>" not in passage
    spans = sorted(answer.alternatives, key=lambda span: span.start)
    assert [unescape(mark) for mark in marks] == [span.text for span in spans] and len(spans) > 1


# --- what cannot be loaded ---


def without_head(folder):
    BertModel(CONFIGS["bert"]).save_pretrained(folder)
    return r"qa_outputs\.\w+ is missing \(2 weights in all\); train it to answer first"


def wider_head(folder):
    config = BertConfig(**SIZES, max_position_embeddings=64, num_labels=3)
    BertForQuestionAnswering(config).save_pretrained(folder)
    CONFIGS["bert"].save_pretrained(folder)
    return r"qa_outputs\.\w+ has the shape \(3(, 32|,)\), not \(2(, 32|,)\)"


def cut(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-500])
    return r"model\.safetensors: the file is cut or damaged"


def pointer(folder):
    (folder / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")
    return r"model\.safetensors: this is a Git LFS pointer, not the weights; fetch them: git lfs pull"


def without_weights(folder):
    (folder / "model.safetensors").unlink()
    return r"it has no weights \(model\.safetensors\)"


def without_shard(folder):
    (folder / "model.safetensors").unlink()
    index = {"weight_map": {"qa_outputs.bias": "model-00001-of-00001.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return r"model-00001-of-00001\.safetensors: model\.safetensors\.index\.json names this file"


def a_shard_outside_the_folder(folder):
    outside = (folder / "model.safetensors").rename(folder.parent / "elsewhere.safetensors")
    index = {"weight_map": {"qa_outputs.bias": f"../{outside.name}"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return r"model\.safetensors\.index\.json: it names .*elsewhere\.safetensors, which is not in this folder"


def shards_that_are_no_names(folder):
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text('{"weight_map": {"qa_outputs.bias": null}}')
    return r"model\.safetensors\.index\.json: the list of weight files is damaged"


def shards_in_a_list(folder):
    shards_that_are_no_names(folder)
    (folder / "model.safetensors.index.json").write_text("[]")
    return r"model\.safetensors\.index\.json: the list of weight files is damaged"


def fewer_layers_in_its_configuration(folder):
    BertConfig(**SIZES | {"num_hidden_layers": 1}, max_position_embeddings=64).save_pretrained(folder)
    return r"encoder\.layer\.1\.\S+ and 15 more have no place in the BertForQuestionAnswering that config\.json"


def an_adapter_beside(folder):
    (folder / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    return r"adapter_config\.json: an adapter is not read; merge it into its model first"


def no_numbers(folder):
    model = BertForQuestionAnswering.from_pretrained(folder)
    with torch.no_grad():
        model.qa_outputs.weight[1, 3] = torch.nan
    model.save_pretrained(folder)
    return r"the weight qa_outputs\.weight holds NaN or infinity; use another copy"


def more_than_weights(folder):
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Path, protocol=2))
    return r"\(its \.bin file is damaged, or holds more than weights and is not run\); it must be a question-answering"


def another_task(folder):
    (folder / "config.json").write_text(ViTConfig().to_json_string())
    return r"Unrecognized configuration class.*; it must be a question-answering model that transformers \d.* knows"


def three_outputs(folder):
    BertForQuestionAnswering(BertConfig(**SIZES, max_position_embeddings=64, num_labels=3)).save_pretrained(folder)
    return r"its span head has 3 outputs, not 2 \(start and end\); use a model that was trained to answer"


def eight_positions(folder):
    BertForQuestionAnswering(BertConfig(**SIZES, max_position_embeddings=8)).save_pretrained(folder)
    return r"it reads at most 8 tokens at once, but windows have 16; choose an encoder of at least 16 positions"


def a_tokenizer_of_no_length(folder):
    word_tokenizer(limit=0).save_pretrained(folder)
    return r"the model_max_length of its tokenizer is 0, but the encoder reads 64 tokens .*; set it to 64 in"


def without_tokenizer(folder):
    (folder / "tokenizer.json").unlink()
    return r"the folder has no tokenizer \(tokenizer\.json\); save it there"


def without_config(folder):
    (folder / "config.json").unlink()
    return r"it has no config\.json"


def large_tokenizer(folder):
    tokenizer = word_tokenizer()
    tokenizer.add_tokens([f"word{i}" for i in range(30)])
    tokenizer.save_pretrained(folder)
    return r"its tokenizer has \d+ pieces, its embedding only 40 rows"


FAULTS = (without_head, wider_head, cut, pointer, without_weights, without_shard, without_tokenizer, without_config)
FAULTS += (a_shard_outside_the_folder,)
FAULTS += (shards_that_are_no_names, shards_in_a_list, fewer_layers_in_its_configuration, an_adapter_beside, no_numbers)
FAULTS += (more_than_weights, another_task, three_outputs, eight_positions, a_tokenizer_of_no_length, large_tokenizer)


@pytest.mark.parametrize("damage", FAULTS)
def test_a_folder_that_is_not_whole_is_refused(tmp_path, damage):
    folder = save_model(tmp_path / "model")
    words = damage(folder)
    with pytest.raises(BackboneError, match=words) as caught:
        Reader(folder, "cpu")
    assert str(folder) in str(caught.value)


def test_a_local_path_is_never_looked_up_on_a_hub(tmp_path, monkeypatch):
    monkeypatch.setattr("xsta_lib.encoders.backbones._hub_answers", lambda: pytest.fail("asked the hub"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    (tmp_path / "file").write_text("")
    for name in (Path("mine"), "./mine", "runs/mine", "a/b/c", str(tmp_path / "mine"), "~/nowhere/at/all"):
        with pytest.raises(BackboneError, match="there is no such file or folder"):
            Reader(name, "cpu")
    with pytest.raises(BackboneError, match="file: this is a file, not a folder"):
        Reader("file", "cpu")


def test_a_model_that_needs_more_than_text_is_refused(tmp_path):
    class Layout(BertForQuestionAnswering):
        def forward(self, input_ids, bbox):
            raise AssertionError

    from xsta_lib.prediction.plain import PlainReader

    with pytest.raises(ValueError, match="reads bbox beside the text"):
        PlainReader(Layout(CONFIGS["bert"]))


def test_training_keeps_the_span_head_of_a_question_answering_checkpoint(tmp_path):
    config = BertConfig(**SIZES, max_position_embeddings=400)
    torch.manual_seed(0)
    model = BertForQuestionAnswering(config).eval()
    torch.nn.init.normal_(model.qa_outputs.weight)
    model.save_pretrained(tmp_path)
    tokenizer = word_tokenizer(limit=400)
    tokenizer.save_pretrained(tmp_path)
    ours, _ = XStaForQuestionAnswering.from_backbone(str(tmp_path), XStaConfig(sharing_layer=2), ["en", "de"])
    encoded = tokenizer(QUESTION, CONTEXT, return_tensors="pt")
    with torch.no_grad():
        assert torch.equal(ours.eval()(**encoded).start_logits, model(**encoded).start_logits)
    assert ours.teacher is not None and torch.equal(ours.qa_outputs.weight, load_span_head(str(tmp_path)).weight)


# --- the command ---


def test_the_command_answers_from_standard_input_on_any_console(ours):
    command = [sys.executable, "-m", "xsta_lib.cli", "answer", "Wer baute die Mühle?", "-", "--model", ours / "model"]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "PYTHONIOENCODING": "ascii"}
    done = subprocess.run(command, env=environment, input=f"\ufeff{GERMAN}".encode(), capture_output=True, timeout=200)
    assert done.returncode == 0, done.stderr
    text = Reader(ours / "model").answer("Wer baute die Mühle?", GERMAN).text
    assert done.stdout.decode("ascii") == text.encode("ascii", "backslashreplace").decode() + "\n"
    assert b"read as 'de'; --language sets another" in done.stderr


def test_the_command_prints_all_it_knows(ours, tmp_path, capsys):
    for name, text in (("de.txt", GERMAN), ("en.txt", ENGLISH)):
        (tmp_path / name).write_text(text, "utf-8")
    asked = "answer", "Wer baute die Mühle?", str(tmp_path / "de.txt"), "--model", str(ours / "model")
    source = "--source-question", "Who built the mill?", "--source-context", str(tmp_path / "en.txt")
    assert main([*asked, "--json", "--language", "de", *source]) == 0
    found, said = capsys.readouterr()
    known = json.loads(found)
    answer = Reader(ours / "model").answer("Wer baute die Mühle?", GERMAN, "de", ("Who built the mill?", ENGLISH))
    assert known["text"] == answer.text and known["readings"]["teacher"]["text"] == answer.readings["teacher"].text
    assert [span["start"] for span in known["alternatives"]] == [
        span.start for span in answer.alternatives
    ] and not said
    assert main([*asked, "--n-best", "2", *source]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("\t")[1] for line in lines] == [span.text for span in answer.alternatives[:2]]


def batch(tmp_path, ours, *options: str, lines: list | None = None) -> tuple[int, list[dict]]:
    """Run ``xsta answer --batch``; its exit status and the answers in the output."""
    output = tmp_path / "answers.jsonl"
    if lines is not None:
        (tmp_path / "questions.jsonl").write_text("\n".join(map(json.dumps, lines)), "utf-8")
    files = "--batch", str(tmp_path / "questions.jsonl"), "--output", str(output)
    status = main(["answer", *files, "--model", str(ours / "model"), *options])
    return status, [json.loads(line) for line in output.read_text("utf-8").splitlines()] if output.exists() else []


def test_a_file_of_questions_is_answered_in_order_and_goes_on_after_a_stop(ours, tmp_path, capsys, monkeypatch):
    lines = [
        {"question": f"Wer baute {'sehr ' * (9 - i)}Haus {i}?", "context": GERMAN, "id": i % 3, "language": "de"}
        for i in range(9)
    ] + [{"question": "Wer?", "context": ""}]
    lines[4] |= {"source_question": "Who?", "source_context": ENGLISH}
    status, whole = batch(tmp_path, ours, lines=lines)
    assert status == 0 and [answer["question"] for answer in whole] == [line["question"] for line in lines]
    assert [answer.get("id") for answer in whole] == [line.get("id") for line in lines]
    assert whole[9]["reason"] == "the context is blank" and "readings" in whole[4]
    output = tmp_path / "answers.jsonl"
    raw = output.read_bytes()
    output.write_bytes(raw[: raw.index(b"\n", 900) + 40])  # the last line is torn
    asked = []
    answer = Reader.answer
    monkeypatch.setattr(
        Reader, "answer", lambda self, *given, **more: asked.extend(given[0]) or answer(self, *given, **more)
    )
    with pytest.warns(UserWarning, match="its last line was not whole; it is answered again"):
        status, again = batch(tmp_path, ours)
    assert status == 0 and 0 < len(asked) < 9
    assert [line["text"] for line in again] == [line["text"] for line in whole]
    capsys.readouterr()
    assert batch(tmp_path, ours)[0] == 0 and output.read_bytes().count(b"\n") == 10  # nothing is left to do
    assert "all 10 questions are answered already" in capsys.readouterr().err
    with output.open("a", encoding="utf-8") as file:
        print(json.dumps({"question": None, "model": whole[0]["model"]}), file=file)
    assert batch(tmp_path, ours)[0] == 1
    assert "line 11: the answer to another question or of another model" in capsys.readouterr().err
    lines[1]["question"] = "Wer sonst?"
    assert batch(tmp_path, ours, lines=lines)[0] == 1
    assert "line 2: the answer to another question or of another model" in capsys.readouterr().err


def test_what_is_left_out_of_a_file_of_questions_is_counted_once(ours, tmp_path, monkeypatch):
    monkeypatch.setattr("xsta_lib.prediction.lines.TOGETHER", 2)
    lines = [{"question": "Wer " * 70, "context": GERMAN, "language": language} for language in ("de", "de", "en")]
    lines[2] |= {"source_question": "Who?", "source_context": ENGLISH}
    with pytest.warns(LeftOut) as said:
        assert batch(tmp_path, ours, lines=lines)[0] == 0
    assert [str(one.message).replace("Wer ", "") for one in said] == [
        "3 questions are cut after 64 tokens, first: ''; "
        "1 questions in 'en' are read alone: for them the source is not used, first: ''"
    ]


@pytest.mark.parametrize("change", [{"context": ENGLISH}, {"language": "en"}, {"source_context": GERMAN}, {}])
def test_answers_of_another_context_or_option_are_not_taken_for_these(ours, tmp_path, capsys, change):
    source = {"source_question": "Who?", "source_context": ENGLISH}
    lines = [{"question": "Wer?", "context": GERMAN, "language": "de"} | source]
    (answer,) = batch(tmp_path, ours, lines=lines)[1]
    status, kept = batch(tmp_path, ours, *([] if change else ["--n-best", "2"]), lines=[lines[0] | change])
    assert status == 1 and kept == [answer]
    said = "line 1: answered with another context, language, source, --n-best or weights; name another --output"
    assert said in capsys.readouterr().err
    del answer["digest"]
    (tmp_path / "answers.jsonl").write_text(json.dumps(answer) + "\n", "utf-8")
    assert batch(tmp_path, ours) == (1, [answer]) and said in capsys.readouterr().err


def test_answers_of_other_weights_of_the_same_name_are_not_taken_for_these(ours, tmp_path, capsys):
    shutil.copytree(ours / "model", tmp_path / "model")
    lines = [{"question": "Wer?", "context": GERMAN, "language": "de"}]
    (answer,) = batch(tmp_path, tmp_path, lines=lines)[1]
    assert batch(tmp_path, tmp_path) == (0, [answer]) and len(answer["digest"]) == 16
    path = tmp_path / "model" / "model.safetensors"
    weights = load_file(path)
    save_file(weights | {"qa_outputs.weight": -weights["qa_outputs.weight"]}, path, {"format": "pt"})
    assert batch(tmp_path, tmp_path) == (1, [answer])
    assert "source, --n-best or weights; name another --output" in capsys.readouterr().err


@pytest.mark.parametrize("kept", ["notes", "{}", '{"model": "another', '{"id": 7, "model": ', "questions"])
def test_a_file_that_is_not_of_answers_stays_as_it_is(tmp_path, capsys, kept):
    questions, output = tmp_path / "questions.jsonl", tmp_path / "kept.txt"
    questions.write_text(json.dumps({"question": "Wer?", "context": GERMAN}), "utf-8")
    if kept == "questions":
        output.symlink_to(questions)
    else:
        output.write_text(kept)
    before = output.read_bytes()
    command = ["answer", "--batch", str(questions), "--output", str(output), "--model", "/nowhere/at/all"]
    assert main(command) == 1 and output.read_bytes() == before
    fault = ": is the file of questions itself" if kept == "questions" else ", line 1: no answer of this command"
    assert f"{output}{fault}" in capsys.readouterr().err


def test_answers_go_to_pipes_and_what_cannot_be_written_is_named(ours, tmp_path, capsys):
    questions, pipe = tmp_path / "questions.jsonl", tmp_path / "pipe"
    questions.write_text(json.dumps({"question": "Wer?", "context": GERMAN}), "utf-8")
    asked = ["answer", "--batch", str(questions), "--model", str(ours / "model"), "--output"]
    os.mkfifo(pipe)
    with ThreadPoolExecutor(1) as pool:
        read = pool.submit(pipe.read_text, "utf-8")
        assert main([*asked, str(pipe)]) == 0 and json.loads(read.result(100))["text"] in GERMAN
    faults = (tmp_path, "Is a directory"), ("/dev/full", "No space left on device"), (questions / "a", "File exists")
    for place, fault in faults:
        capsys.readouterr()
        assert main([*asked, str(place)]) == 1
        said = capsys.readouterr().err.splitlines()[-1]
        assert said.startswith(f"xsta: --output {place}: cannot be written ({fault}") and "somewhere else" in said


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"question": "a", "context": "b"}\n{"question": "a",', "line 2: not JSON"),
        ('{"question": "a", "context": "b"}\r{"question": "a",', "line 2: not JSON"),
        ("[" * 100_000, "line 1: not JSON (maximum recursion depth"),
        (
            '{"question": "a", "context": "b", "context": "c"}',
            "line 1: not JSON (the key 'context' stands for two values",
        ),
        ('[{"question": "a", "context": "b"}]', "line 1: lacks the text of question or context; the file is one JSON"),
        ('{\n"data": []}', "line 1: not JSON (Expecting property name enclosed in double quotes: line 1 column 2"),
        ('{"data": []}', "the file is one JSON document (a list, or SQuAD's form), not JSON lines"),
        *(
            (f'{{"question": "a", "context": "b", "id": {key}}}', "line 1: 'id' is neither a text nor a number")
            for key in ("NaN", "1e999", '["\\ud800"]', "{}")
        ),
        ('{"question": "a", "context": "b", "language": " "}', "line 1: 'language' is blank"),
        (
            '{"question": "a", "context": "b", "source_question": "c", "source_context": "\u200b"}',
            "line 1: 'source_context' is blank",
        ),
        ('{"question": "a"}', "line 1: lacks the text of question or context"),
        ("[1]", "line 1: lacks the text"),
        ('{"question": "a", "context": "b", "language": 3}', "line 1: 'language' is no text"),
        ('{"question": "a", "context": "b", "source_question": "c"}', "line 1: source_question and source_context"),
        ('{"question": "a\\ud800", "context": "b"}', "line 1, 'question': character 1 is half a surrogate"),
    ],
)
def test_a_wrong_line_is_named(tmp_path, capsys, text, words):
    (tmp_path / "questions.jsonl").write_text(text, "utf-8")
    assert main(["answer", "--batch", str(tmp_path / "questions.jsonl"), "--model", "/nowhere/at/all"]) == 1
    assert words in capsys.readouterr().err


def test_repeated_ids_are_said(tmp_path):
    lines = [{"question": "a", "context": "b", "id": key} for key in ("x", 1, "1", "x", None, None)]
    (tmp_path / "questions.jsonl").write_text("\r".join(map(json.dumps, lines)), "utf-8")
    with pytest.warns(UserWarning, match=r'1 ids stand in several lines, first: "x" \(lines 1 and 4\); the answers'):
        assert read_requests(tmp_path / "questions.jsonl") == lines


@pytest.mark.parametrize(
    "arguments", [["Who?"], [], ["Who?", "a.txt", "--batch", "b"], ["Who?", "a.txt", "--output", "b"]]
)
def test_options_that_do_not_go_together_are_refused(arguments, capsys):
    assert main(["answer", *arguments]) == 1
    assert "--batch" in capsys.readouterr().err


def test_the_reader_in_the_box_answers_in_order_and_knows_the_language():
    questions, texts, golds = zip(*MILLS, strict=True)
    reader = Reader()
    answers = reader.answer(questions, texts)
    assert [answer.text for answer in answers] == list(golds)
    assert [answer.language for answer in answers] == ["de", "ar", "zh"] and all(a.score > 0.1 for a in answers)
    assert [text[a.start : a.end] for a, text in zip(answers, texts, strict=True)] == list(golds)
    card = (ROOT / "xsta_lib" / "readers" / "x-sta-e5-small" / "README.md").read_text("utf-8")
    assert reader.name in card and "Licences" in card.title()
    assert Reader(reader.name).answer(questions[0], texts[0]).text == golds[0]  # the name that answers bear
