"""One TOML file per architecture, under `models`, and the transforms they use.

The keys and tables of a file. All are optional but `gguf`, `metadata` and `tensors`, which are usually inherited in part:

    extends = "decoder"              a file of this package to inherit from, table by table; `false` removes a table
    gguf = "qwen3"                   the value of general.architecture
    title = "Qwen 3"                 the display name
    classes = ["Qwen3ForCausalLM"]   the class names in config.json's `architectures`
    enclosing_classes = [...]        more of them, which decide even if the language model inside has a class of its own
    model_types = ["qwen3"]          its `model_type`s; the defaults of their configuration classes are in `defaults`
    when = "not is_moe"              a condition on config.json, where several architectures share a class
    classless = "ssm_cfg.layer == 2" a condition that identifies a config.json without a class name
    base_prefix = "model."           the prefix of tensor names that a checkpoint without language model head lacks
    drop_prefixes = [...]            prefixes that are removed from tensor names, one after another
    drop_from_names = [...]          substrings that are removed from tensor names
    rename_endings = { ".a" = ".b" } suffixes of tensor names that are replaced
    store_as_float32 = [...]         globs of GGUF names of tensors that are always F32
    optional_kind = "..."            the kind of layers that a checkpoint may lack
    metadata_order = [...]           the rows of [metadata] to write, in order; by default all, in file order
    metadata_last = [...]            the rows to write after all others, in order

    [replace_in_names]   substring of tensor names = replacement, applied one after another
    [refused]     a feature, "with ..." = expression that is true for models with it, which GGUF readers do not support
    [ignore]      glob of checkpoint names = why they are not needed, or { why, if_zero }; `{name}` is replaced by a value;
                  names as stored, or without what the keys above remove
    [indices]     placeholder = its number of values: `{layer}` and `{expert}` of tensor names count from 0 up to it
    [derived_indices]  placeholder of checkpoint names = expression of those, for tensors that are counted otherwise there
    [kinds]       kind of layer = which layers are of it: an expression of `layer`, shared by all rows of this kind
    [values]      name = expression, a variable for the expressions below it
    [metadata]    GGUF key = { type, value, when, required, map, early, in_place }
    [generated]   GGUF tensor = { generator, when }: computed from config.json alone
    [tensors]     GGUF tensor = { from, shape, gather, transforms, kind, when, required, group, unless_equal, or };
                  `or` lists rows that override this one, for checkpoints with another layout of the tensor; one with
                  `exported`, a condition, is what `quantize export` writes
    [graph]       the flags of the forward pass, for the runner: the fields of `graph.Graph`
    [vocabulary]  rules for its vocabularies only: the fields of `schema.VocabularyRules`
    [export]      key of config.json = expression: what GGUF does not record, as its graph has one value, for `export`
    [defaults.MODEL_TYPE]   key = a further default of that `model_type`, for a key absent from config.json: a constant;
                  `{ or_null = constant }` for a key that may also be null, with `null = expression` for the value that
                  replaces null; or `{ value = expression }`, for a key that is absent or null

Expressions are described in `expressions`, the columns of rows in `schema`, transforms, gathers and generators in
`transforms`. `models/llama.toml` and the files it extends are an example of all of them.
"""
