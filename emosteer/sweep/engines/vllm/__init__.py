"""`engine="vllm"`: units as requests of vLLM, each with its program (`emosteer.vllm`), in its own batches."""
