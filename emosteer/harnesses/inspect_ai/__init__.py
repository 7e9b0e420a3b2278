"""inspect_ai on a steered model: the provider "emosteer", which an entry point makes known to it.

    inspect eval task.py --model emosteer/smollm2 -M bank=emotions.safetensors -M steer="calm +0.1"

`registry` tells inspect_ai of it, `provider` is its model API, `served` the model that providers share,
`requests` what they ask of it, `batches` how requests come together.
"""
