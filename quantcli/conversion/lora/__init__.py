"""LoRA adapters: merged into a checkpoint on the way, or written as GGUF adapters."""
