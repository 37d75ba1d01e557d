"""The ranks that engines build kernels for: every exported layer is padded with zeros to one of them.

vLLM refuses any other value of `--max-lora-rank` (`MaxLoRARanks` in vllm/config/lora.py: these, and 1), and reserves
memory for the value it is given. SGLang, llama.cpp and Ollama take any rank.
"""

RANK_GRID = (8, 16, 32, 64, 128, 256, 320, 512)


def on_grid(rank: int) -> int:
    """The smallest rank of the grid that holds `rank`; above the grid, `rank` itself."""
    return next((step for step in RANK_GRID if step >= rank), rank)
