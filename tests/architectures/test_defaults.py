"""What configuration classes assume: that the files made of them are what transformers says today."""

from __future__ import annotations

import sys
import tomllib
from pathlib import Path

import pytest

from quantcli.architectures.hf_config import complete_config
from quantcli.architectures.loader import find_architecture
from quantcli.architectures.tables import DEFAULTS_DIRECTORY, ENCLOSING_TYPES, class_defaults, headings

sys.path.insert(0, str(Path(__file__).parents[1] / "golden"))

FILES = sorted(DEFAULTS_DIRECTORY.glob("*.toml"))


def test_every_file_is_of_a_model_type_of_an_architecture():
    assert {path.stem for path in FILES} == {kind for heading in headings() for kind in heading.model_types}
    assert len(FILES) > 60


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_the_defaults_are_those_of_the_configuration_class(path: Path):
    pytest.importorskip("transformers")
    from make_architecture_defaults import defaults_of, document

    rows = defaults_of(path.stem)
    assert rows is not None
    # The first line names the version of transformers; another version is fine as long as it says the same.
    assert path.read_text(encoding="utf-8").splitlines()[1:] == document(path.stem, rows).splitlines()[1:]


def test_the_types_of_models_with_a_language_model_inside_are_those_that_transformers_knows():
    pytest.importorskip("transformers")
    from make_architecture_defaults import enclosing_document

    assert ENCLOSING_TYPES.read_text(encoding="utf-8").splitlines()[2:] == enclosing_document().splitlines()[2:]


def test_no_file_repeats_what_the_class_says():
    for heading in headings():
        for kind, own in tomllib.loads(heading.path.read_text(encoding="utf-8")).get("defaults", {}).items():
            below = class_defaults(kind) if kind in heading.model_types else {}
            assert not [key for key in own if own[key] == below.get(key)], f"{heading.name}: [defaults.{kind}]"


def test_an_exaone_that_is_saved_as_a_llama_has_the_base_of_its_own_class():
    config = {"architectures": ["LlamaForCausalLM"], "model_type": "exaone"}
    assert find_architecture(config).metadata(config)["llama.rope.freq_base"].content == 500000.0


def test_what_a_file_says_lies_over_what_the_class_says():
    defaults = find_architecture({"architectures": ["Exaone4ForCausalLM"]}).declaration.defaults
    assert complete_config({"model_type": "exaone4", "sliding_window": None}, defaults)["layer_types"] is None
