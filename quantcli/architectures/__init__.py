"""One TOML file per architecture, under `models`, and the closed vocabulary of transforms they name.

What a file may say; everything is optional but `gguf`, `metadata` and `tensors`, which are usually inherited in part:

    extends = "decoder"              the file of this package it is laid over, table by table; `false` removes a table
    gguf = "qwen3"                   the value of general.architecture, which GGUF readers go by
    title = "Qwen 3"                 what people call it
    classes = ["Qwen3ForCausalLM"]   the names in config.json's `architectures` that mean it
    model_types = ["qwen3"]          the `model_type`s it has, whose configuration classes' defaults lie in `defaults`
    when = "not is_moe"              what else must hold of config.json, where a class has several architectures
    classless = "ssm_cfg.layer == 2" what tells a config.json that names no class
    base_prefix = "model."           what a checkpoint without its head leaves off all tensor names
    drop_prefixes = [...]            beginnings of tensor names that are taken off, one after another
    drop_from_names = [...]          pieces of tensor names that are taken out
    rename_endings = { ".a" = ".b" } endings of tensor names that are replaced
    store_as_float32 = [...]         globs of GGUF names that are F32 in every file
    metadata_order = [...]           which rows of [metadata] are written, in which order; otherwise all, as they stand
    metadata_last = [...]            those of them that come after all others, in this order

    [replace_in_names]   piece of a checkpoint's tensor names = what stands for it, one after another
    [refused]     what a model has, "with ..." = expression that is true of the variants that GGUF readers do not know
    [ignore]      glob of checkpoint names = why they are not needed, or { why, if_zero }; `{name}` in it stands for a value
    [indices]     placeholder = how many: `{layer}` and `{expert}` of tensor names run below these
    [kinds]       kind of layer = which layers are of it: an expression of `layer`, written once for all rows of this kind
    [values]      name = expression, for use in the expressions below it
    [metadata]    GGUF key = { type, value, when, required, map, early, in_place }
    [generated]   GGUF tensor = { generator, when }: what follows from the configuration alone
    [tensors]     GGUF tensor = { from, shape, gather, transforms, kind, when, required, group, unless_equal, or };
                  `or` lists rows that are laid over this one, for checkpoints that hold the tensor in another way
    [graph]       the flags of the forward pass, for the runner: the fields of `graph.Graph`
    [vocabulary]  what its vocabularies have beside the common
    [defaults.MODEL_TYPE]   key = what else holds for that `model_type` where config.json is silent: a constant;
                  `{ or_null = constant }` for a key that may also be null, and `null = expression` beside it for
                  what null is taken for; `{ value = expression }`, which counts where it is absent or null

Expressions are described in `expressions`, the columns of rows in `schema`, transforms, gathers and generators in
`transforms`. `models/llama.toml` and the files it extends are an example of all of them.
"""
