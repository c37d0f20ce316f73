"""The recipes of `recipes.toml`, parsed and checked: which rule applies to a tensor."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from difflib import get_close_matches
from functools import cached_property
from typing import Any, Final

from quantcli.architectures.expressions import Expression
from quantcli.conversion.roles import Role, read_roles, recipe_text, role_of
from quantcli.core.block_types import BlockType, block_type
from quantcli.core.errors import ModelError, UsageError


@dataclass(frozen=True, kw_only=True)
class ModelFacts:
    """The facts about a model that rules may test. `recipes.toml` explains them above its conditions."""

    architecture: str = ""
    blocks: int = 0
    layers: int = 0
    experts: int = 0
    heads_per_group: int = 0
    heads_differ: bool = False
    importance: bool = False

    def get(self, name: str, /) -> Any:
        """A fact by its name, for expressions."""
        return getattr(self, name)


@dataclass(frozen=True, kw_only=True)
class TensorFacts(ModelFacts):
    """The facts about a tensor that rules may test. `role` may be the role it stands in for."""

    name: str
    role: Role | None
    occurrence: int
    role_tensors: int
    """Tensors of this role in the whole model."""
    matrices: int
    row: int
    base_block: int

    @property
    def total(self) -> int:
        """The number of layers, or of tensors of the role, that `position` is out of."""
        return self.role_tensors if self.role and self.role.counted_by == "tensors" else self.blocks

    @cached_property
    def position(self) -> int:
        """The position of the tensor among those of its role: the layer number in a mixture of experts, else a count.

        The experts of a layer may be several tensors, so that counting tensors does not give the layer.

        Raises:
            ModelError: if the position is a layer number, and the name has none of this model.
        """
        if self.experts <= 1 or self.role is None or self.role.counted_by == "tensors":
            return self.occurrence
        layer = layer_of(self.name)
        if not 0 <= layer < self.blocks:
            raise ModelError(f"tensor {self.name!r}: its name has no layer number from 0 to {self.blocks - 1}")
        return layer


@dataclass(frozen=True)
class BlockCounts:
    """The hyperparameters that the number of blocks is computed from."""

    block_count: int
    num_loops: int

    def get(self, name: str, /) -> Any:
        """One of them by its name, for expressions."""
        return getattr(self, name)


BLOCK_COUNTS: Final = frozenset(entry.name for entry in fields(BlockCounts))
"""The names a formula under [blocks] may use."""

FACTS: Final = frozenset(
    {entry.name for entry in fields(ModelFacts)} | {"occurrence", "position", "total", "matrices", "row", "base_block"}
)
"""The names a condition may use."""


def layer_of(name: str) -> int:
    """The number of the block that a tensor belongs to by its name; -1 outside blocks."""
    found = re.match(r"blk\.(\d+)", name)
    return int(found[1]) if found else -1


@dataclass(frozen=True)
class Keep:
    """Tensors that are never quantized: those whose name matches `pattern`, in `architectures` or, if empty, in all."""

    reason: str
    pattern: re.Pattern[str]
    architectures: tuple[str, ...] = ()

    def applies(self, name: str, architecture: str) -> bool:
        """Whether the tensor `name` of a model of `architecture` is one of them."""
        if self.architectures and architecture not in self.architectures:
            return False
        return self.pattern.search(name) is not None


@dataclass(frozen=True)
class Clause:
    """A named condition of a rule, or its negation."""

    name: str
    test: Expression = field(repr=False, compare=False)
    says: str
    negated: bool = False

    def holds(self, facts: TensorFacts) -> bool:
        """Whether the condition holds for a tensor."""
        return bool(self.test.evaluate(facts, "recipes.toml")) != self.negated


@dataclass(frozen=True)
class Rule:
    """Gives `type` to the tensors it applies to. `id` names its place in the data: the list and the index in it."""

    id: str
    type: BlockType
    roles: tuple[str, ...] = ()
    name: re.Pattern[str] | None = None
    clauses: tuple[Clause, ...] = ()

    def applies(self, facts: TensorFacts) -> bool:
        """Whether the rule applies to a tensor."""
        return (
            (not self.roles or (facts.role is not None and facts.role.name in self.roles))
            and (self.name is None or self.name.search(facts.name) is not None)
            and all(clause.holds(facts) for clause in self.clauses)
        )

    @property
    def circumstances(self) -> str:
        """The conditions of the rule in words, without the negated ones."""
        return " ".join(clause.says for clause in self.clauses if not clause.negated)


@dataclass(frozen=True)
class Policy:
    """The tables that all recipes share."""

    roles: Mapping[str, Role]
    blocks: Mapping[str, Expression]
    """Architecture -> the number of blocks as an expression in `BlockCounts`, where it is not `block_count`."""
    keep: tuple[Keep, ...]
    fallbacks: Mapping[BlockType, BlockType]
    importance_exempt: tuple[str, ...]

    def role_of(self, name: str) -> Role | None:
        """The role of the tensor `name`; None if it has none."""
        return role_of(name, self.roles)

    def fit(self, type: BlockType, row: int) -> BlockType | None:
        """`type`, or its first fallback whose block length divides `row` weights; None if there is none."""
        fitting: BlockType | None = type
        while fitting and row % fitting.block_length:
            fitting = self.fallbacks.get(fitting)
        return fitting


@dataclass(frozen=True)
class Recipe:
    """A file type, as `--type` takes it.

    file_type             the number in `general.file_type`
    base                  the type of tensors that no rule applies to; None, as in COPY, to keep all types and the file type
    importance_required   the types that this recipe does not use without an importance matrix
    """

    name: str
    file_type: int | None
    base: BlockType | None
    rules: tuple[Rule, ...]
    importance_required: frozenset[BlockType]
    policy: Policy = field(repr=False)
    aliases: tuple[str, ...] = ()


def load_recipes(text: str) -> dict[str, Recipe]:
    """Every recipe of a TOML document laid out as `recipes.toml`, by name, in the order of the document.

    Raises:
        ValueError: if the document names a role, condition, fact, list or type that does not exist.
    """
    document = tomllib.loads(text)
    roles = read_roles(document)
    policy = Policy(
        roles=roles,
        blocks={name: Expression.about(text, BLOCK_COUNTS) for name, text in document["blocks"].items()},
        keep=tuple(_keep(**entry) for entry in document["keep"]),
        fallbacks={block_type(wanted): block_type(instead) for wanted, instead in document["fallbacks"].items()},
        importance_exempt=tuple(document["importance"]["exempt"]),
    )
    parser = _RuleParser(document, roles)
    always = document["importance"]["required"]
    return {name: _recipe(name, policy, parser, always, **entry) for name, entry in document["recipes"].items()}


def find_recipe(name: str) -> Recipe:
    """The recipe with the name or alias `name`, in any case.

    Raises:
        UsageError: for an unknown name; the hint gives the nearest names.
    """
    wanted = name.upper()
    for recipe in RECIPES.values():
        if wanted in (recipe.name, *recipe.aliases):
            return recipe
    names = [known for recipe in RECIPES.values() for known in (recipe.name, *recipe.aliases)]
    near = get_close_matches(wanted, names, n=3)
    hint = f"did you mean {', '.join(near)}?" if near else f"one of {', '.join(names)}"
    raise UsageError(f"unknown type {name!r}", hint=hint)


def _keep(reason: str, patterns: list[str], architectures: Sequence[str] = ()) -> Keep:
    return Keep(reason, re.compile("|".join(patterns)), tuple(architectures))


def _recipe(
    name: str,
    policy: Policy,
    parser: _RuleParser,
    always: list[str],
    *,
    file_type: int | None = None,
    base: str | None = None,
    rules: Sequence[Any] = (),
    aliases: Sequence[str] = (),
    importance_required: Sequence[str] = (),
) -> Recipe:
    return Recipe(
        name=name,
        file_type=file_type,
        base=block_type(base) if base else None,
        rules=tuple(parser.rules(name, rules)),
        importance_required=frozenset(block_type(entry) for entry in (*always, *importance_required)),
        policy=policy,
        aliases=tuple(aliases),
    )


class _RuleParser:
    """Parses lists of rules: expands shared lists, and resolves the names of roles, conditions and types."""

    def __init__(self, document: Mapping[str, Any], roles: Mapping[str, Role]) -> None:
        self._shared: Mapping[str, list[Any]] = document["rules"]
        self._roles = roles
        self._clauses = {
            name: Clause(name, Expression.about(entry["test"], FACTS), entry["says"])
            for name, entry in document["conditions"].items()
        }

    def rules(self, owner: str, entries: Sequence[Any]) -> Iterator[Rule]:
        """The rules of the list `owner`. A name of a shared list is replaced by its rules."""
        for index, entry in enumerate(entries):
            if isinstance(entry, dict):
                yield self._rule(f"{owner}[{index}]", entry)
            elif entry in self._shared:
                yield from self.rules(entry, self._shared[entry])
            else:
                raise ValueError(f"{owner}: no shared list of rules is called {entry!r}")

    def _rule(self, id: str, entry: Mapping[str, Any]) -> Rule:
        unknown = entry.keys() - {"role", "name", "if", "type"}
        roles = _names(entry.get("role", ()))
        unknown |= {role for role in roles if role not in self._roles}
        if unknown:
            raise ValueError(f"{id}: unknown {', '.join(sorted(unknown))}")
        name = entry.get("name")
        return Rule(
            id=id,
            type=block_type(entry["type"]),
            roles=roles,
            name=re.compile(name) if name else None,
            clauses=tuple(self._clause(id, text) for text in _names(entry.get("if", ()))),
        )

    def _clause(self, id: str, text: str) -> Clause:
        name = text.removeprefix("not ")
        if name not in self._clauses:
            raise ValueError(f"{id}: no condition {name!r}")
        clause = self._clauses[name]
        return Clause(name, clause.test, clause.says, negated=text != name)


def _names(value: str | Sequence[str]) -> tuple[str, ...]:
    return (value,) if isinstance(value, str) else tuple(value)


RECIPES: Final[Mapping[str, Recipe]] = load_recipes(recipe_text())
"""Every recipe by name."""
