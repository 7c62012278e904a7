"""Tiny random translation models, one of each family, as their checkpoints look: tokenizer files and safetensors."""

import json
from pathlib import Path

import sentencepiece
import torch
from transformers import (
    M2M100Config,
    M2M100ForConditionalGeneration,
    M2M100Tokenizer,
    MarianConfig,
    MarianMTModel,
    MarianTokenizer,
    MBart50Tokenizer,
    MBartConfig,
    MBartForConditionalGeneration,
    NllbTokenizer,
    T5Config,
    T5ForConditionalGeneration,
    T5Tokenizer,
)

TEXTS = ["The house is red.", "Where is the river?", "La casa es roja, y el río es largo."]
SIZES = {"d_model": 16, "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 2, "init_std": 0.5}
SIZES |= {"decoder_attention_heads": 2, "encoder_ffn_dim": 16, "decoder_ffn_dim": 16, "dropout": 0.0}
FAMILIES = ("nllb", "m2m100", "mbart", "madlad", "opus-mt-en-es", "opus-mt-en-itc")


def make_family(family: str, folder: Path, positions: int = 64) -> Path:
    """Write a family's tiny model under ``folder``; ``positions`` is how many tokens it reads."""
    folder.mkdir(parents=True, exist_ok=True)
    lines, model = folder / "lines.txt", folder / "trained"
    lines.write_text("\n".join(TEXTS * 20), "utf-8")
    options = {"vocab_size": 60, "hard_vocab_limit": False, "minloglevel": 2}
    sentencepiece.SentencePieceTrainer.train(input=str(lines), model_prefix=str(model), **options)
    pieces = sentencepiece.SentencePieceProcessor(f"{model}.model")
    scored = [(pieces.id_to_piece(i), pieces.get_score(i)) for i in range(3, len(pieces))]
    makers = {"nllb": _nllb, "m2m100": _m2m100, "mbart": _mbart, "madlad": _madlad}
    torch.manual_seed(0)
    place = folder / family
    for part in makers.get(family, _opus)(scored, f"{model}.model", positions, family):
        part.save_pretrained(place)
    return place


def _nllb(scored: list, spm: str, positions: int, family: str) -> tuple:
    characters = sorted({character for text in TEXTS for character in text.replace(" ", "▁")})
    vocabulary = {"<s>": 0, "<pad>": 1, "</s>": 2, "<unk>": 3} | {c: i + 4 for i, c in enumerate(characters)}
    tokenizer = NllbTokenizer(vocab=vocabulary, merges=[])
    config = M2M100Config(vocab_size=len(tokenizer), max_position_embeddings=positions, **SIZES)
    model = M2M100ForConditionalGeneration(config)
    model.model.shared.weight.data[len(vocabulary) :] *= 0.3  # it writes letters too, not only languages
    return tokenizer, model


def _m2m100(scored: list, spm: str, positions: int, family: str) -> tuple:
    words = ["<s>", "<pad>", "</s>", "<unk>", *(piece for piece, _ in scored)]
    path = Path(spm).with_name("words.json")
    path.write_text(json.dumps({piece: i for i, piece in enumerate(words)}), "utf-8")
    tokenizer = M2M100Tokenizer(str(path), spm)
    rows = len(words) + len(tokenizer.lang_code_to_id) + 8
    config = M2M100Config(vocab_size=rows, max_position_embeddings=positions, **SIZES)
    return tokenizer, M2M100ForConditionalGeneration(config)


def _mbart(scored: list, spm: str, positions: int, family: str) -> tuple:
    tokenizer = MBart50Tokenizer(vocab=[("<unk>", 0.0), ("<s>", 0.0), ("</s>", 0.0), *scored])
    config = MBartConfig(vocab_size=len(tokenizer), max_position_embeddings=positions, **SIZES)
    config.decoder_start_token_id = 2
    return tokenizer, MBartForConditionalGeneration(config)


def _madlad(scored: list, spm: str, positions: int, family: str) -> tuple:
    head = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0)]
    languages = [("<2es>", 0.0), ("<2en>", 0.0), ("<2zh_Latn>", 0.0)]
    tokenizer = T5Tokenizer(vocab=head + scored + languages, extra_ids=0, model_max_length=positions)
    sizes = {"d_model": 16, "d_kv": 8, "d_ff": 16, "num_layers": 1, "num_heads": 2, "dropout_rate": 0.0}
    config = T5Config(vocab_size=len(tokenizer), initializer_factor=3.0, decoder_start_token_id=0, **sizes)
    return tokenizer, T5ForConditionalGeneration(config)


def _opus(scored: list, spm: str, positions: int, family: str) -> tuple:
    targets = [">>spa<<", ">>por<<"] if family.endswith("itc") else []
    words = ["</s>", "<unk>", *(piece for piece, _ in scored), *targets, "<pad>"]
    path = Path(spm).with_name("words.json")
    path.write_text(json.dumps({piece: i for i, piece in enumerate(words)}), "utf-8")
    tokenizer = MarianTokenizer(spm, spm, str(path), source_lang="eng", target_lang=family.rpartition("-")[2])
    tokenizer.model_max_length = positions
    end = {"eos_token_id": 0, "pad_token_id": len(words) - 1, "decoder_start_token_id": len(words) - 1}
    config = MarianConfig(vocab_size=len(words), max_position_embeddings=positions, forced_eos_token_id=None, **end)
    for name, value in SIZES.items():
        setattr(config, name, value)
    return tokenizer, MarianMTModel(config)
