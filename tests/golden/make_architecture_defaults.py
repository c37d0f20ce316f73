"""Make quantcli/architectures/defaults/*.toml: what the configuration classes of transformers assume.

    python tests/golden/make_architecture_defaults.py [MODEL_TYPE ...]

Without arguments, of every model type that an architecture file lists under `model_types`, and `enclosing_types.toml`. The
reference converter reads config.json through these classes, so a key that is absent there has the value the class gives it.

A class is asked, not read. It is made without a key, and with the key null, beside several choices of a model's sizes. A
value that is always the same is a constant. One that follows the sizes is the first of `DERIVATIONS` that agrees with all
of them. What no derivation explains is left out: such a key has to stand in the architecture's own file.
"""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any, Final

ROOT: Final = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from quantcli.architectures.expressions import Expression  # noqa: E402
from quantcli.architectures.tables import DEFAULTS_DIRECTORY, ENCLOSING_TYPES, headings  # noqa: E402
from quantcli.formats.checkpoint.nested import PLACES  # noqa: E402

DERIVATIONS: Final = tuple(
    Expression(source)
    for source in (
        "num_attention_heads",
        "hidden_size // num_attention_heads",
        "qk_rope_head_dim",
        "num_layers",
    )
)
"""How one size follows from others in the classes that are known."""

PROBES: Final[tuple[Mapping[str, int], ...]] = (
    {},
    {"hidden_size": 960, "num_attention_heads": 12},
    {"hidden_size": 1536, "num_attention_heads": 24},
    {"num_hidden_layers": 6},
    {"num_layers": 7},
    {"qk_rope_head_dim": 48},
    {"expand": 4},
)
"""Sizes beside which a class is asked."""

ROPE_NAMES: Final = (
    "rope_theta", "global_rope_theta", "local_rope_theta", "rope_local_base_freq", "rotary_emb_base",
    "partial_rotary_factor", "rotary_pct",
)  # fmt: skip
"""Rotary parameters that config.json may hold by themselves, where the class takes them into its table."""

UNLIKELY: Final = 0.734375
"""A rotary parameter that no class assumes."""

REFUSED: Final = "refused"
UNTOLD: Final = "untold"


def config_class(model_type: str) -> Any:
    """The configuration class of a model type, None where transformers knows none."""
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    return CONFIG_MAPPING[model_type] if model_type in CONFIG_MAPPING else None  # noqa: SIM401 -- a lazy one, without `get`


def text_class(kind: Any) -> Any:
    """The class of the language model in a larger one, else the class itself."""
    return kind().sub_configs.get("text_config", kind)


def made(kind: Any, **given: Any) -> dict[str, Any] | None:
    """The keys of a configuration that not every class has; None where the class refuses what is given."""
    from transformers import PreTrainedConfig

    try:
        keys = kind(**given).to_dict()
    except Exception:
        return None
    declared = {field.name for field in fields(kind)}
    for name, real in kind.attribute_map.items():  # a key is written under the name that the class maps its field to
        if name in declared and real not in declared and real in keys:
            keys[name] = keys.pop(real)
    common = PreTrainedConfig().to_dict().keys() | {"vision_config", "model_type"}
    return {key: value for key, value in keys.items() if key not in common}


def asked(kind: Any, key: str, given: Mapping[str, Any]) -> Any:
    """What a key is where `given` says of it what it does: a constant, an expression, `REFUSED`, or `UNTOLD`."""
    plain = made(kind) or {}
    probes = [probe for probe in PROBES if probe.keys() <= plain.keys() - {key}]
    found = [answer for probe in probes if (answer := made(kind, **{**probe, **given})) is not None]
    if not found:
        return REFUSED
    if all(answer.get(key) == found[0].get(key) for answer in found):
        return found[0].get(key)
    return next((each for each in DERIVATIONS if all(_explains(each, key, answer) for answer in found)), UNTOLD)


def _explains(derivation: Expression, key: str, answer: Mapping[str, Any]) -> bool:
    value = answer.get(key)
    return value is not None and derivation.evaluate({**answer, key: None}) == value


def defaults_of(model_type: str) -> dict[str, Any] | None:
    """The table of a model type as TOML has it, None where transformers does not know the type."""
    whole = config_class(model_type)
    if whole is None:
        return None
    kind = text_class(whole)
    keys = made(kind) or {}
    rope = keys.pop("rope_parameters", None) or {}
    rows = {key: _row(asked(kind, key, {}), asked(kind, key, {key: None})) for key in keys}
    if (key := "tie_word_embeddings") not in keys:
        rows[key] = _row(asked(whole, key, {}), asked(whole, key, {key: None}))
    return {key: row for key, row in rows.items() if row is not None} | _rope_rows(kind, rope)


def _row(absent: Any, null: Any) -> Any:
    """The default of a key by what it is where it is absent, and where it is null; None where that cannot be said."""
    if absent in (None, UNTOLD, REFUSED) or null == UNTOLD or isinstance(absent, dict) or absent == []:
        return None
    if isinstance(absent, Expression):
        return {"value": absent.source} if null == absent else None
    if isinstance(null, Expression):
        return {"or_null": absent, "null": null.source}
    return absent if null == REFUSED else {"or_null": absent}


def _rope_rows(kind: Any, rope: Mapping[str, Any]) -> dict[str, Any]:
    """The defaults of rotary parameters: each by itself where it has a name, and what else the table has of its own."""
    flat = _flat(rope)
    tables = {name: (made(kind, **{name: UNLIKELY}) or {}).get("rope_parameters") or {} for name in ROPE_NAMES}
    places = {name: _places(flat, _flat(table)) for name, table in tables.items()}
    named: dict[str, Any] = {name: flat[at[0]] for name, at in places.items() if at and flat.get(at[0]) is not None}
    taken = {place for at in places.values() for place in at}
    rest = {key: value for key, value in rope.items() if (key,) not in taken and not isinstance(value, Mapping)}
    return named | ({} if set(rest) <= {"rope_type"} else {"rope_parameters": {"or_null": rest}})


def _flat(rope: Mapping[str, Any]) -> dict[tuple[str, ...], Any]:
    """The entries of a table and of the tables in it, by where they are."""
    tables = {key: value for key, value in rope.items() if isinstance(value, Mapping)}
    nested = {(key, name): item for key, table in tables.items() for name, item in table.items()}
    return {(key,): value for key, value in rope.items() if key not in tables} | nested


def _places(before: Mapping[tuple[str, ...], Any], after: Mapping[tuple[str, ...], Any]) -> list[tuple[str, ...]]:
    """Where a table has become `UNLIKELY`; what is of all layers first."""
    return sorted(place for place, value in after.items() if value == UNLIKELY and before.get(place) != UNLIKELY)


def toml(value: Any) -> str:
    """A value as TOML writes it."""
    match value:
        case dict():
            return "{ " + ", ".join(f"{key} = {toml(item)}" for key, item in value.items()) + " }"
        case list() | tuple():
            return "[" + ", ".join(map(toml, value)) + "]"
        case bool() | str():
            return json.dumps(value)
        case float():
            return repr(value)
        case _:
            return str(value)


def document(kind: str, rows: Mapping[str, Any]) -> str:
    """The file of a model type."""
    import transformers

    made_from = f"{config_class(kind).__name__} of transformers {transformers.__version__}"
    head = f"# Made from {made_from} by tests/golden/make_architecture_defaults.py: not to be edited.\n\n"
    return head + "".join(f"{key} = {toml(value)}\n" for key, value in rows.items())


def enclosing_types() -> list[str]:
    """The model types whose class has a language model's configuration inside."""
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    return sorted(kind for kind in CONFIG_MAPPING if CONFIG_MAPPING[kind].sub_configs.keys() & {key for key, *_ in PLACES})


def enclosing_document() -> str:
    """The file of those types."""
    import transformers

    head = (
        f"# The model types that transformers {transformers.__version__} knows of models with a language model inside. "
        "Of others it\n# does not complete the configuration. Made by tests/golden/make_architecture_defaults.py: "
        "not to be edited.\n\n"
    )
    return head + "model_types = [\n" + "".join(f'  "{kind}",\n' for kind in enclosing_types()) + "]\n"


def main() -> None:
    """See the module's description."""
    logging.disable(logging.CRITICAL)
    if not sys.argv[1:]:
        ENCLOSING_TYPES.write_text(enclosing_document(), encoding="utf-8")
    kinds = sys.argv[1:] or sorted({kind for heading in headings() for kind in heading.model_types})
    for kind in kinds:
        rows = defaults_of(kind)
        if rows is None:
            print(f"{kind}: transformers does not know it")
        else:
            (DEFAULTS_DIRECTORY / f"{kind}.toml").write_text(document(kind, rows), encoding="utf-8")


if __name__ == "__main__":
    main()
