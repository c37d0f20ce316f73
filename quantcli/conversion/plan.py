"""The plan: the type of each tensor and the reason for it, from names, shapes and metadata alone.

Planning is a pure function. `--dry-run` prints the plan, the converter executes it. The types are those of llama-quantize
(`llama_tensor_get_type` and its callers in `src/llama-quant.cpp` of llama.cpp), with two differences. A pattern that
matches no tensor is an error. Patterns also apply if the base type is F32, F16 or BF16.
"""

from __future__ import annotations

import dataclasses
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from quantcli.conversion.recipes import BlockCounts, ModelFacts, Policy, Recipe, TensorFacts, layer_of
from quantcli.conversion.roles import Role
from quantcli.core.block_types import TYPES, BlockType, block_type
from quantcli.core.errors import ModelError, UnsupportedError, UsageError, clipped, shown
from quantcli.core.listing import listed
from quantcli.formats.gguf.spec import Field
from quantcli.tensors.tensor import TensorInfo


@dataclass(frozen=True)
class Override:
    """Gives `type` to every tensor whose name matches `pattern` anywhere. `reason` is for the plan."""

    pattern: re.Pattern[str]
    type: BlockType
    reason: str = ""


@dataclass(frozen=True, kw_only=True)
class PlanOptions:
    """A user's options for the plan, besides the recipe."""

    importance: Mapping[str, int] | None = None
    """Tensor name -> how many values the importance matrix has for it; None without an importance matrix."""
    calibrated: bool = False
    """Calibration gives importance values to every matrix of a layer."""
    overrides: Sequence[Override] = ()
    """The first that matches a tensor takes precedence over the recipe's rules."""
    output_tensor_type: BlockType | None = None
    token_embedding_type: BlockType | None = None
    pure: bool = False
    """Give every tensor the base type instead of asking the rules."""
    leave_output_tensor: bool = False
    allow_requantize: bool = False
    no_fallback: bool = False
    """Refuse a model with rows that do not divide into the blocks of their type, instead of using a fallback type."""


    @property
    def has_importance(self) -> bool:
        """Whether there are importance values, from an importance matrix or from calibration."""
        return self.calibrated or self.importance is not None


DEFAULT_OPTIONS: Final = PlanOptions()


@dataclass(frozen=True)
class PlannedTensor:
    """A tensor of the output. `shape` is in NumPy order, the row length last."""

    name: str
    shape: tuple[int, ...]
    source_type: BlockType
    type: BlockType
    reason: str
    """The reason for the type, for users."""
    rule: str
    """What chose it: `keep`, `option`, `override`, `base`, or a rule's place in `recipes.toml` such as `Q4_K_M[1]`."""
    wanted: BlockType
    """The type that was chosen before the row length was looked at. `type` differs from it if it is a fallback."""
    importance: bool
    """Whether the tensor is quantized with values of the importance matrix."""
    importance_required: bool
    """Whether the tensor must not be written without such values."""
    origin: str = ""
    """The quantization method of the checkpoint's tensor, if GGUF does not have its format: `GPTQ 4-bit`."""
    exact: bool = False
    """Whether the weights already lie on the grid of `type`. Their round trip, rounded to `source_type`, is then exact."""

    @property
    def info(self) -> TensorInfo:
        """The tensor as it will be written."""
        return TensorInfo(self.name, self.shape, self.type)

    @property
    def nbytes(self) -> int:
        """Bytes of the tensor as it will be written."""
        return self.info.nbytes

    @property
    def fallback_bytes(self) -> int:
        """Bytes of the tensor beyond those in the wanted type; 0 without a fallback."""
        return self.nbytes - self.info.size * self.wanted.block_bytes // self.wanted.block_length


def parse_override(text: str) -> Override:
    """Parse `REGEX=TYPE`. The expression is lower-cased and may match anywhere in a name, as in llama-quantize.

    Raises:
        UsageError: if a part is missing, the expression is malformed, or the type is not for weights.
    """
    pattern, separator, name = text.partition("=")
    if not (pattern and separator and name):
        raise UsageError(f"{clipped(repr(text))} is not of the form REGEX=TYPE", hint="for example: attn_v=Q8_0")
    try:
        return Override(re.compile(pattern.lower()), weight_type(name))
    except (re.error, OverflowError, RecursionError) as error:
        raise UsageError(f"{clipped(repr(pattern))} is not a regular expression: {error}") from None


def parse_overrides(text: str) -> list[Override]:
    """Parse the contents of a file of overrides: `REGEX=TYPE`, separated by ASCII whitespace as in llama.cpp.

    Raises:
        UsageError: as `parse_override` does.
    """
    return [parse_override(word) for word in re.findall(r"\S+", text, re.ASCII)]


def weight_type(name: str) -> BlockType:
    """The type called `name`, in any case, if it can hold the weights of a model.

    Raises:
        UsageError: if there is none, or it is a type of activations only.
    """
    try:
        found = block_type(name)
    except ValueError as error:
        raise UsageError(str(error)) from None
    if found.activation is None:
        raise UsageError(f"{found.name} is not a type for weights")
    return found


def make_plan(
    tensors: Sequence[TensorInfo],
    metadata: Mapping[str, Field],
    recipe: Recipe,
    options: PlanOptions = DEFAULT_OPTIONS,
) -> list[PlannedTensor]:
    """Decide the type of every tensor of a model, in the order in which they are written.

    Of `metadata`, `general.architecture` and the counts of blocks, heads and experts are used. `check_plan` says whether
    the plan may be executed.

    Raises:
        UsageError: if an override matches no tensor, or rows do not divide into the blocks of a requested type.
        UnsupportedError: if no type fits a tensor's rows, or only a fallback that `no_fallback` forbids.
        ModelError: if the importance matrix was made from another model, or a name has no layer number.
    """
    _check_overrides(tensors, recipe, options)
    facts = model_facts(metadata, recipe.policy, importance=options.has_importance)
    planner = _Planner(tensors, facts, recipe, options)
    return [planner.plan(tensor) for tensor in sorted(tensors, key=lambda tensor: file_order(tensor.name))]


def check_plan(plan: Sequence[PlannedTensor], options: PlanOptions = DEFAULT_OPTIONS) -> None:
    """Refuse what llama-quantize refuses when it executes a plan. A dry run shows such a plan without this check.

    Raises:
        UsageError: if a type needs importance values and has none, or a quantized tensor would be quantized again
            without `allow_requantize`.
        UnsupportedError: if a tensor's source type cannot be converted.
    """
    unguided = [tensor for tensor in plan if tensor.importance_required and not tensor.importance]
    if unguided:
        missing = "no importance matrix is given" if not options.has_importance else "the importance matrix has none for it"
        raise UsageError(
            f"{_named(unguided)}: {unguided[0].type.name} needs importance values, and {missing}", hint="--imatrix FILE"
        )
    converted = [tensor for tensor in plan if tensor.type is not tensor.source_type]
    foreign = [tensor for tensor in converted if tensor.source_type.family is None]
    if foreign:
        types = f"{foreign[0].source_type.name} to {foreign[0].type.name}"
        raise UnsupportedError(f"{_named(foreign)}: there is no conversion from {types}")
    # A quantized GGUF file was made from an original. A quantized checkpoint may have none, so it may be requantized.
    quantized = [tensor for tensor in converted if tensor.source_type.is_quantized and not tensor.origin]
    if quantized and not options.allow_requantize:
        raise UsageError(
            f"{_named(quantized)}: already quantized, to {quantized[0].source_type.name}",
            hint="quantize the original model, or lose quality with --allow-requantize",
        )


def without_importance(plan: Sequence[PlannedTensor]) -> list[PlannedTensor]:
    """The tensors that are quantized without importance values. The CLI mentions them if an importance matrix is given."""
    return [
        tensor
        for tensor in plan
        if tensor.type.is_quantized and tensor.type is not tensor.source_type and not tensor.importance
    ]


def quantized_twice(plan: Sequence[PlannedTensor]) -> list[PlannedTensor]:
    """The tensors that are quantized in the checkpoint and are quantized again with a loss. The CLI mentions them."""
    return [
        tensor
        for tensor in plan
        if tensor.origin and tensor.type.is_quantized and tensor.type is not tensor.source_type and not tensor.exact
    ]


def substituted(plan: Sequence[PlannedTensor]) -> dict[tuple[int, BlockType, BlockType], list[PlannedTensor]]:
    """The tensors that have a fallback type, by row length, wanted type and type. The CLI mentions them."""
    groups: dict[tuple[int, BlockType, BlockType], list[PlannedTensor]] = {}
    for tensor in plan:
        if tensor.type is not tensor.wanted:
            groups.setdefault((tensor.shape[-1], tensor.wanted, tensor.type), []).append(tensor)
    return groups


def repacked_exactly(plan: Sequence[PlannedTensor]) -> list[PlannedTensor]:
    """The tensors whose round trip is exact, since they lie on the grid of their type. The CLI mentions them."""
    return [tensor for tensor in plan if tensor.exact]


def file_order(name: str) -> tuple[int, str]:
    """The sort key of a tensor in the output: tensors outside blocks first, then block by block, each by name."""
    return layer_of(name), name


def model_facts(metadata: Mapping[str, Field], policy: Policy, *, importance: bool) -> ModelFacts:
    """The facts that rules may test, for the model that `metadata` describes."""
    named = metadata.get("general.architecture")
    architecture = str(named.value) if named else ""

    def number(key: str, default: int = 0) -> int:
        return whole_number(metadata, f"{architecture}.{key}", default)

    block_count, heads = number("block_count"), number("attention.head_count")
    counted = policy.blocks.get(architecture)
    groups = number("attention.head_count_kv", heads)
    return ModelFacts(
        architecture=architecture,
        blocks=counted.evaluate(BlockCounts(block_count, number("num_loops", 1))) if counted else block_count,
        layers=block_count - number("nextn_predict_layers"),
        experts=number("expert_count"),
        heads_per_group=heads // groups if groups else 0,
        heads_differ=heads != groups,
        importance=importance,
    )


def whole_number(metadata: Mapping[str, Field], key: str, default: int) -> int:
    """The integer of a key, or the first of an array with one for each layer; `default` without the key.

    Raises:
        ModelError: if the value is not an integer.
    """
    if key not in metadata:
        return default
    field = metadata[key]
    try:
        return int(field.value if field.element is None else field.value[0])
    except (TypeError, ValueError, IndexError, OverflowError):
        raise ModelError(f"{key} is {shown(field.value)}, expected a whole number") from None


def _check_overrides(tensors: Sequence[TensorInfo], recipe: Recipe, options: PlanOptions) -> None:
    if recipe.base is None and options.overrides:
        raise UsageError(f"{recipe.name} copies every tensor, so tensor types cannot be overridden")
    for override in options.overrides:
        if not any(override.pattern.search(tensor.name) for tensor in tensors):
            raise UsageError(
                f"the pattern {override.pattern.pattern!r} matches no tensor",
                hint="--dry-run lists the names",
            )


@dataclass(frozen=True)
class _Choice:
    """A chosen type, before the row length is looked at. `exact` forbids a fallback."""

    type: BlockType
    rule: str
    reason: str
    exact: bool = False


class _Planner:
    """Plans the tensors of one model in file order, counting for each role those that the rules were asked about."""

    def __init__(self, tensors: Sequence[TensorInfo], model: ModelFacts, recipe: Recipe, options: PlanOptions) -> None:
        self._model = model
        self._recipe = recipe
        self._options = options
        self._demanded = {"output": options.output_tensor_type, "token_embedding": options.token_embedding_type}
        self._roles = {tensor.name: recipe.policy.role_of(tensor.name) for tensor in tensors}
        self._totals = Counter(role.name for role in self._roles.values() if role)
        self._judged: Counter[str] = Counter()

    def plan(self, tensor: TensorInfo) -> PlannedTensor:
        role = self._roles[tensor.name]
        kept = self._kept(tensor, role)
        choice = kept or self._choose(tensor, role)
        type = self._fit(tensor, choice)
        planned = PlannedTensor(
            name=tensor.name,
            shape=tensor.shape,
            source_type=tensor.type,
            type=type,
            reason=choice.reason,
            rule=choice.rule,
            wanted=choice.type,
            importance=type is not tensor.type and type.is_quantized and self._importance_fits(tensor, role),
            importance_required=not kept and self._needs_importance(tensor, type, role),
        )
        if type is choice.type:
            return planned
        return dataclasses.replace(planned, reason=f"{choice.reason}; {_fallback_reason(planned)}")

    def _kept(self, tensor: TensorInfo, role: Role | None) -> _Choice | None:
        """The choice for a tensor that keeps its type; None if it is converted."""

        def because(reason: str) -> _Choice:
            return _Choice(tensor.type, "keep", f"kept as {tensor.type.name}: {reason}")

        if self._recipe.base is None:
            return because(f"{self._recipe.name} converts nothing")
        if _dimensions(tensor) < 2:
            return because("it has one dimension")
        if self._options.leave_output_tensor and role and role.name == "output":
            return because("--leave-output-tensor keeps the output")
        if self._recipe.base is TYPES["F32"] and tensor.type.name in ("F16", "BF16"):
            return None  # nothing is lost, and llama.cpp's converter writes an F32 file without F16 or BF16 tensors
        kept = (keep for keep in self._recipe.policy.keep if keep.applies(tensor.name, self._model.architecture))
        return next((because(keep.reason) for keep in kept), None)

    def _choose(self, tensor: TensorInfo, role: Role | None) -> _Choice:
        """The choice for a tensor: by an option for its role, else an override, else a rule, else the base type."""
        base = self._recipe.base
        assert base is not None
        override = next((entry for entry in self._options.overrides if entry.pattern.search(tensor.name)), None)
        demanded = self._demanded.get(role.name) if role else None
        if role and demanded and not (override and role.yields_to_override and role.yields_to_override.search(tensor.name)):
            return _Choice(demanded, "option", f"{demanded.name} is requested for {role.label}", exact=True)
        if override:
            requested = f"{override.type.name} is requested for tensors matching {override.pattern.pattern!r}"
            reason = override.reason or requested
            return _Choice(override.type, "override", reason)
        if base.is_quantized and not self._options.pure:
            ruled = self._ask_rules(tensor, role, base)
            if ruled:
                return ruled
        return _Choice(base, "base", f"the base type of {self._recipe.name}")

    def _ask_rules(self, tensor: TensorInfo, own_role: Role | None, base: BlockType) -> _Choice | None:
        role, label = own_role, own_role.label if own_role else "such tensors"
        if own_role and own_role.stands_in_for and not self._totals[own_role.stands_in_for]:
            role = self._recipe.policy.roles[own_role.stands_in_for]
            label = f"{own_role.label}, which serves as {role.label},"
        demanded = self._demanded.get(role.name) if role else None
        if demanded:
            return _Choice(demanded, "option", f"{demanded.name} is requested for {label}".rstrip(","))
        facts = TensorFacts(
            **vars(self._model),
            name=tensor.name,
            role=role,
            occurrence=self._judged[role.name] if role else 0,
            role_tensors=self._totals[role.name] if role else 0,
            matrices=stacked_matrices(tensor.shape),
            row=tensor.row_length,
            base_block=base.block_length,
        )
        if role:
            self._judged[role.name] += 1
        rule = next((rule for rule in self._recipe.rules if rule.applies(facts)), None)
        if rule is None:
            return None
        reason = f"{self._recipe.name} gives {label} {rule.type.name} {rule.circumstances}"
        return _Choice(rule.type, rule.id, reason.rstrip())

    def _fit(self, tensor: TensorInfo, choice: _Choice) -> BlockType:
        """The chosen type, or a fallback if the rows do not divide into its blocks."""
        fitting = self._recipe.policy.fit(choice.type, tensor.row_length)
        if fitting is choice.type:
            return fitting
        what = f"tensor {tensor.name!r}: rows of {tensor.row_length} do not divide into {_blocks(choice.type)}"
        if choice.exact:
            raise UsageError(what, hint=f"{fitting.name} would fit" if fitting else None)
        if fitting is None or self._options.no_fallback:
            hint = f"without --no-fallback it falls back to {fitting.name}" if fitting else "choose another --type"
            raise UnsupportedError(what, hint=hint)
        return fitting

    def _needs_importance(self, tensor: TensorInfo, type: BlockType, role: Role | None) -> bool:
        if type is tensor.type and self._options.has_importance:
            return False
        exempt = role is not None and role.name in self._recipe.policy.importance_exempt
        return type in self._recipe.importance_required and not exempt

    def _importance_fits(self, tensor: TensorInfo, role: Role | None) -> bool:
        """Whether the importance matrix has one value per column of the tensor, for each of its stacked matrices.

        Raises:
            ModelError: if it has another number of values.
        """
        if self._options.calibrated:
            return tensor.name.startswith("blk.") and len(tensor.shape) > 1
        count = (self._options.importance or {}).get(tensor.name)
        expected = tensor.row_length * stacked_matrices(tensor.shape)
        if count is None or count == expected:
            return count is not None
        # The input embedding is a table, not a matrix product: values for it were collected on a tied output.
        if role and role.name == "token_embedding":
            return False
        raise ModelError(
            f"tensor {tensor.name!r}: the importance matrix has {count} values, not {expected}",
            hint="it was made from another model",
        )


def _named(tensors: Sequence[PlannedTensor]) -> str:
    return f"tensor {listed([repr(tensor.name) for tensor in tensors], most=1)}"


def _dimensions(tensor: TensorInfo) -> int:
    """The number of dimensions as ggml counts them, without leading ones (ggml's order: trailing ones)."""
    lengths = list(tensor.shape)
    while len(lengths) > 1 and lengths[0] == 1:
        del lengths[0]
    return len(lengths)


def stacked_matrices(shape: tuple[int, ...]) -> int:
    """The number of matrices stacked in a tensor of this shape, such as experts."""
    return shape[-3] if len(shape) > 2 else 1


def _blocks(type: BlockType) -> str:
    return f"{type.name} blocks of {type.block_length}"


def _fallback_reason(planned: PlannedTensor) -> str:
    extra = planned.fallback_bytes
    change = f"{extra:,} bytes ({extra / (planned.nbytes - extra):.0%}) more"
    row = planned.shape[-1]
    return f"rows of {row} do not divide into {_blocks(planned.wanted)}, so {planned.type.name} instead, {change}"
