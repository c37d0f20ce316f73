"""Special tokens and chat templates: the ids of begin, end, unknown ... tokens, and which of them encoding a text adds.

A checkpoint has them in up to four places that overlap:

- the post-processor and the added tokens of `tokenizer.json`
- `tokenizer_config.json`
- chat template files
- `config.json`

The precedence is that of `SpecialVocab` in llama.cpp's `gguf-py/gguf/vocab.py`, so that the same keys are written in the
same order. Places that only transformers reads come after these, and not at all with `TokenizerFiles.as_reference`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final

from quantcli.conversion.vocabulary.files import TokenizerFiles
from quantcli.conversion.vocabulary.tokens import token_text
from quantcli.formats.gguf import vocabulary as spec
from quantcli.formats.gguf.spec import Metadata, ValueType, array, boolean, string, u32

if TYPE_CHECKING:
    from quantcli.formats.checkpoint.checkpoint import Checkpoint

NO_IDS: Final[Mapping[str, int]] = MappingProxyType({})

ROLES: Final = ("bos", "eos", "unk", "sep", "pad", "cls", "mask")
"""The roles in the order of their keys. `eot` and `eom` are added where the post-processor has another `eos`."""


def special_metadata(
    files: TokenizerFiles,
    vocabulary_size: int | None,
    *,
    alone: Mapping[str, int] = NO_IDS,
    late: Mapping[str, int] = NO_IDS,
) -> Metadata:
    """The metadata of special tokens, of the flags that add them, of chat templates and of normalization.

    Negative ids, and ids at or above `vocabulary_size` unless it is None, are left out.

    alone   role -> id, used if the checkpoint names no special token at all
    late    role -> id, used for roles that the checkpoint does not name
    """
    found = _Findings(list(ROLES))
    tokenizer, configuration = files.tokenizer, dict(files.configuration if files.as_reference else files.named_tokens)
    if tokenizer:
        _read_post_processor(tokenizer, configuration, found)
    _read_roles(configuration, files, found, vocabulary_size)
    if not files.as_reference and _begins_with_text(tokenizer.get("post_processor") or {}):
        found.add.setdefault("bos", False)
    _read_ids(files.checkpoint.config, found, vocabulary_size)
    if not found.ids:
        found.set_ids(alone, vocabulary_size)
    if not files.as_reference:
        _read_generation(files.checkpoint, found, vocabulary_size)
    found.set_ids(late, vocabulary_size)
    if not files.as_reference:
        found.set_ids({role: id_ for role, id_ in found.ends.items() if found.add.get(role)}, vocabulary_size)

    keys, flags = spec.SPECIAL_TOKENS, spec.ADD_SPECIAL_TOKENS
    metadata = {keys[role]: u32(id_) for role, id_ in found.ids.items() if role in keys}
    metadata |= {flags[role]: boolean(add) for role, add in found.add.items() if role in flags}
    metadata |= template_metadata(chat_templates(files, configuration))
    return metadata | _normalizer_metadata(tokenizer.get("normalizer"))


@dataclass
class _Findings:
    """The special tokens found so far, each table in the order in which its keys are written."""

    roles: list[str]
    ids: dict[str, int] = field(default_factory=dict)
    add: dict[str, bool] = field(default_factory=dict)
    ends: dict[str, int] = field(default_factory=dict)
    """The ids that the post-processor adds before and after a text."""

    def set_id(self, role: str, id_: object, vocabulary_size: int | None) -> None:
        """Set the id of a role unless it is already set or the id is invalid."""
        if not isinstance(id_, int) or isinstance(id_, bool) or id_ < 0 or role in self.ids:
            return
        if vocabulary_size is None or id_ < vocabulary_size:
            self.ids[role] = id_

    def set_ids(self, ids: Mapping[str, object], vocabulary_size: int | None) -> None:
        """Set the ids of several roles."""
        for role, id_ in ids.items():
            self.set_id(role, id_, vocabulary_size)


def _read_post_processor(tokenizer: Mapping[str, Any], configuration: dict[str, Any], found: _Findings) -> None:
    """Read the special tokens that the post-processor of `tokenizer.json` adds. Also fills gaps in `configuration`."""
    complete = bool(configuration)
    # Without a configuration only the flags are used; the tokens that the readers set are dropped.
    entries = configuration if complete else {}
    for role, stand_in in (("bos", "cls"), ("eos", "sep")):
        if complete and not entries.get(f"{role}_token") and entries.get(f"{stand_in}_token"):
            entries[f"{role}_token"] = entries[f"{stand_in}_token"]
    processor = tokenizer.get("post_processor") or {}
    for step in processor.get("processors", [processor]):
        reader = _POST_PROCESSORS.get(step.get("type"))
        if reader:
            reader(step, entries, found, complete)


def _read_byte_level(step: Mapping[str, Any], entries: dict[str, Any], found: _Findings, complete: bool) -> None:
    found.add.setdefault("bos", False)
    found.add.setdefault("eos", False)


def _read_roberta(step: Mapping[str, Any], entries: dict[str, Any], found: _Findings, complete: bool) -> None:
    found.add |= {"bos": True, "eos": True, "sep": True}
    found.ends |= {role: step[name][1] for role, name in (("bos", "cls"), ("eos", "sep")) if name in step}
    for role, stand_in in (("cls", "bos"), ("sep", "eos")):
        if complete and not entries.get(f"{role}_token"):
            entries[f"{role}_token"] = step.get(role, [entries.get(f"{stand_in}_token")])[0]


def _read_template(step: Mapping[str, Any], entries: dict[str, Any], found: _Findings, complete: bool) -> None:
    """Read `TemplateProcessing`: `single` is one text between special tokens, `pair` two texts, maybe with a separator."""
    single, pair = step.get("single", []), step.get("pair", [])
    first = last = None
    ids = step.get("special_tokens") or {}
    if len(single) > 1:
        if first := _special(single[0]):
            _begin_with(first, entries, found, complete)
            found.ends["bos"] = ids.get(first, {}).get("ids", [None])[0]
        if last := _special(single[-1]):
            _end_with(last, entries, found, complete)
            found.ends["eos"] = ids.get(last, {}).get("ids", [None])[0]
    if not pair:
        return
    start = 1 if first and _special(pair[0]) == first else 0
    stop = len(pair) - 1 if last and _special(pair[-1]) == last else len(pair)
    inner = pair[start:stop]
    if inner and _sequence(inner[0]) == "A" and _sequence(inner[-1]) == "B" and inner[1:-1]:
        _separate_with([_special(item) for item in inner[1:-1]], bool(last), entries, found, complete)


def _begins_with_text(processor: Mapping[str, Any]) -> bool:
    """Whether a post-processor adds no token before a text.

    Then `add_bos_token` is written as false: many readers add a begin token if the key is missing.
    """
    steps = [step for step in processor.get("processors", [processor]) if step.get("type") == "TemplateProcessing"]
    return bool(steps) and all(step["single"] and _sequence(step["single"][0]) == "A" for step in steps)


def _begin_with(token: str, entries: dict[str, Any], found: _Findings, complete: bool) -> None:
    if not complete:
        entries["bos_token"] = token
    elif token not in (entries.get("bos_token"), entries.get("cls_token")):
        for role in ("bos_token", "cls_token"):
            entries[role] = entries.get(role) or token
    found.add["bos"] = token in (entries.get("bos_token"), entries.get("cls_token"))


def _end_with(token: str, entries: dict[str, Any], found: _Findings, complete: bool) -> None:
    if complete and token != entries.get("eos_token"):
        # The configured `eos` then ends a turn or a message.
        smaller = next((role for role in ("eot", "eom") if role not in found.roles), None)
        if smaller:
            found.roles.append(smaller)
            entries[f"{smaller}_token"] = entries.get("eos_token")
    entries["eos_token"] = token
    found.add["eos"] = True


def _separate_with(
    between: Sequence[str | None], ends: bool, entries: dict[str, Any], found: _Findings, complete: bool
) -> None:
    """Read the separator of a pair: `[sep]`, `[eos]` or `[eos][sep]`. A single one counts unless `single` ends with one."""
    separators = (entries.get("sep_token"), entries.get("eos_token"))
    add = bool(between[0]) and between[0] in separators and not ends
    if len(between) == 2:
        add = add or (bool(between[1]) and between[1] in separators)
    found.add["sep"] = add
    if add and complete and not entries.get("sep_token"):
        entries["sep_token"] = entries.get("eos_token")


_POST_PROCESSORS: Final = {
    "ByteLevel": _read_byte_level,
    "RobertaProcessing": _read_roberta,
    "TemplateProcessing": _read_template,
}
"""Type of a post-processor step -> its reader. Steps of other types add no special tokens."""


def _special(item: Mapping[str, Any]) -> str | None:
    token: str | None = item.get("SpecialToken", {}).get("id")
    return token


def _sequence(item: Mapping[str, Any]) -> str | None:
    name: str | None = item.get("Sequence", {}).get("id")
    return name


def _read_roles(
    configuration: Mapping[str, Any], files: TokenizerFiles, found: _Findings, vocabulary_size: int | None
) -> None:
    """Take flags and ids from `tokenizer_config.json`. A token is used only if its text is that of an added token."""
    ids = {token["content"]: id_ for id_, token in files.added_tokens()}
    for role in found.roles:
        add = configuration.get(f"add_{role}_token")
        if isinstance(add, bool):
            # The post-processor is what runs, so it takes precedence.
            found.add.setdefault(role, add)
        text = token_text(configuration.get(f"{role}_token"))
        if text is not None:
            found.set_id(role, ids.get(text), vocabulary_size)


def _read_ids(config: Mapping[str, Any], found: _Findings, vocabulary_size: int | None) -> None:
    """Take the ids that are still unknown from `config.json`, or from the `text_config` of a multimodal model."""
    text_config = config.get("text_config") or {}
    for role in found.roles:
        id_ = config.get(f"{role}_token_id")
        found.set_id(role, text_config.get(f"{role}_token_id") if id_ is None else id_, vocabulary_size)


def ends_of_generation(checkpoint: Checkpoint) -> list[Any]:
    """The end tokens, as transformers' `generate` takes them: from generation_config.json, else config.json."""
    text_config = checkpoint.config.get("text_config") or {}
    places = (checkpoint.generation_config(), checkpoint.config, text_config)
    ends: Any = next((given for place in places if (given := place.get("eos_token_id")) is not None), [])
    return ends if isinstance(ends, list) else [ends]


def _read_generation(checkpoint: Checkpoint, found: _Findings, vocabulary_size: int | None) -> None:
    """Take ids that are still unknown from generation_config.json. Of a list of end tokens the first is `eos`."""
    generation = checkpoint.generation_config()
    ids = {role: generation.get(f"{role}_token_id") for role in ROLES}
    found.set_ids(ids | {"eos": next(iter(ends_of_generation(checkpoint)), None)}, vocabulary_size)


def chat_templates(files: TokenizerFiles, configuration: Mapping[str, Any]) -> Any:
    """The checkpoint's chat template: a string, a list of named templates, or None.

    As in transformers, template files take precedence over tokenizer_config.json, which takes precedence over
    chat_template.json. With `as_reference`, tokenizer_config.json takes precedence, and without it there is no template.

    Raises:
        FormatError: if a template file is not UTF-8.
    """
    if files.as_reference:
        beside = _template_files(files)
        stored = configuration.get("chat_template", _json_template(files) if beside is None else beside)
        return stored if configuration else None
    stored = configuration.get("chat_template")
    if isinstance(stored, Mapping):
        stored = [{"name": name, "template": text} for name, text in stored.items()]
    beside = _template_files(files, stored if isinstance(stored, str) else None)
    found = stored if beside is None else beside
    return _json_template(files) if found is None else found


def _json_template(files: TokenizerFiles) -> Any:
    return (files.checkpoint.json("chat_template.json") or {}).get("chat_template")


def _template_files(files: TokenizerFiles, default: str | None = None) -> Any:
    """The templates in files. If only named ones exist, `default` is the one without a name."""
    folder, place = "additional_chat_templates", files.checkpoint.directory
    text = files.text("chat_template.jinja")
    if text is None and files.as_reference:
        return None
    names = sorted(path.name for path in (place / folder).glob("*.jinja"))
    more = {name: files.text(f"{folder}/{name}") for name in names}
    named = [{"name": name.removesuffix(".jinja"), "template": template} for name, template in more.items()]
    if not named:
        return text
    text = default if text is None else text
    return named if text is None else [{"name": "default", "template": text}, *named]


def template_metadata(template: Any) -> Metadata:
    """The metadata of a chat template: a string, or a list of objects with `name` and `template`; else no metadata.

    Named templates come before the default one. Characters in names other than letters and digits become underscores.
    """
    if isinstance(template, str):
        return {spec.CHAT_TEMPLATE: string(template)}
    if not isinstance(template, list):
        return {}
    templates = {
        re.sub("[^a-zA-Z0-9]", "_", choice.get("name", "")): choice["template"]
        for choice in template
        if choice.get("name") and choice.get("template") is not None
    }
    default = templates.pop("default", None)
    metadata = {f"{spec.CHAT_TEMPLATE}.{name}": string(text) for name, text in templates.items()}
    if templates:
        metadata[spec.CHAT_TEMPLATE_NAMES] = array(ValueType.STRING, list(templates))
    if default is not None:
        metadata[spec.CHAT_TEMPLATE] = string(default)
    return metadata


def _normalizer_metadata(normalizer: Mapping[str, Any] | None) -> Metadata:
    flags: dict[str, bool] = {}
    pending = [normalizer] if normalizer else []
    while pending:
        step = pending.pop(0)
        flags |= _NORMALIZER_FLAGS.get(step.get("type", ""), {})
        if step.get("type") == "BertNormalizer":
            flags |= {key: step[name] for name, key in _BERT_NORMALIZER_KEYS.items() if name in step}
        pending = [*step.get("normalizers", []), *pending]
    return {key: boolean(flags[key]) for key in _BERT_NORMALIZER_KEYS.values() if flags.get(key) is not None}


_BERT_NORMALIZER_KEYS: Final = {"lowercase": spec.NORMALIZER_LOWERCASE, "strip_accents": spec.NORMALIZER_STRIP_ACCENTS}
_NORMALIZER_FLAGS: Final = {
    "Lowercase": {spec.NORMALIZER_LOWERCASE: True},
    "StripAccents": {spec.NORMALIZER_STRIP_ACCENTS: True},
}
