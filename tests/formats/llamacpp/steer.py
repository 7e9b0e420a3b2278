"""Runs in the environment of llama-cpp-python: loads control vectors and steers a model with them.

python steer.py LOADER.so JOB.json    →  one JSON line; logits into the files that the job names
"""

import ctypes
import json
import sys

import numpy as np


def load(loader, path, strength):
    """`(n_embd, data)` as llama.cpp's loader gives them."""
    data, used = np.zeros(1 << 20, dtype=np.float32), ctypes.c_size_t()
    pointer = data.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
    n_embd = loader.load(path.encode(), ctypes.c_float(strength), pointer, data.size, ctypes.byref(used))
    return n_embd, data[: used.value].copy()


def main(library, job_path):
    loader = ctypes.CDLL(library)
    loader.load.restype = ctypes.c_int
    loader.load.argtypes = [
        ctypes.c_char_p, ctypes.c_float, ctypes.POINTER(ctypes.c_float), ctypes.c_size_t,
        ctypes.POINTER(ctypes.c_size_t),
    ]  # fmt: skip
    with open(job_path) as file:
        job = json.load(file)
    loaded = [load(loader, path, job["strength"]) for path in job["vectors"]]
    for (_, data), path in zip(loaded, job["vectors"]):
        np.save(path + ".npy", data)
    if job.get("model"):
        logits(job, *loaded[0])
    print(json.dumps({"n_embd": [n_embd for n_embd, _ in loaded]}))


def logits(job, n_embd, data):
    import llama_cpp

    model = llama_cpp.Llama(
        job["model"], n_ctx=64, logits_all=True, n_threads=1, verbose=False, type_k=0, type_v=0
    )
    pointer = data.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
    for name, steered in (("plain", False), ("steered", True)):
        if steered:
            n = data.size // n_embd
            code = llama_cpp.llama_set_adapter_cvec(model._ctx.ctx, pointer, data.size, n_embd, 1, n)
            assert code == 0, code
        model.reset()
        model.eval(job["tokens"])
        np.save(job[name], model.scores[: len(job["tokens"])])


if __name__ == "__main__":
    main(*sys.argv[1:])
