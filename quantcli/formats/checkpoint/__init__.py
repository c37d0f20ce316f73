"""Checkpoints as Hugging Face and PyTorch store them: directories, shards, safetensors, pickles."""
