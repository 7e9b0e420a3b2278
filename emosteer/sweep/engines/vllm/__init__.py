"""`engine="vllm"`: vLLM runs the units in its own batches, each request steered by its own row of the table."""
