"""Text from a real Qwen3 checkpoint: a prefill program and a decode program on one shared worker."""
