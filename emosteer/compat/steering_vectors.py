"""steering-vectors: patch_activations and apply steer on the kernels, training reads both sides in one pass."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import steering_vectors
import steering_vectors.steering_operators
import steering_vectors.steering_vector
import torch
import tqdm
from steering_vectors.layer_matching import collect_matching_layers, guess_and_enhance_layer_config
from steering_vectors.token_utils import fix_pad_token
from steering_vectors.torch_utils import get_module, untuple_tensor
from torch import Tensor, nn

from .columns import Columns
from .edits import Edit, finite
from .kernel_norms import KernelNorms
from .last_tokens import last_tokens
from .replacing import Replacements

_operators = steering_vectors.steering_operators
# The library makes a new function at each call; what it does is told by its code.
_PUSH, _ABLATE, _ABLATE_THEN_PUSH = (
    make().__code__
    for make in (
        _operators.addition_operator,
        _operators.ablation_operator,
        _operators.ablation_then_addition_operator,
    )
)


def install(replaced: Replacements) -> None:
    """Replace the hook that steers, and the reading of training samples."""
    steer = steering_vectors.steering_vector
    # The function of this name hides the module that it is in.
    train = sys.modules["steering_vectors.train_steering_vector"]
    patching: list[Columns] = []
    norms = KernelNorms(replaced)
    replaced.replace(steer, "_create_additive_hook", lambda original: _hooks(original, replaced, patching))
    replaced.replace(
        steer.SteeringVector,
        "patch_activations",
        lambda original: _patch(original, replaced, patching, norms),
    )
    for owner in (train, steering_vectors):
        if "extract_activations" in vars(owner):
            replaced.replace(
                owner, "extract_activations", lambda original: _extract(original, replaced, train, norms)
            )


# ---- steering --------------------------------------------------------------------------------------------


def _patch(
    original: Callable, replaced: Replacements, patching: list[Columns], norms: KernelNorms
) -> Callable:
    def patch_activations(self: Any, model: nn.Module, *args: Any, **kwargs: Any) -> Any:
        if not replaced.on:
            return original(self, model, *args, **kwargs)
        # `apply` always hands on an index, its default too, which with token_indices the library refuses.
        if kwargs.get("min_token_index") == 0 and kwargs.get("token_indices") is not None:
            kwargs["min_token_index"] = None
        columns = Columns(model)
        patching.append(columns)
        try:
            handle = original(self, model, *args, **kwargs)
        finally:
            patching.remove(columns)
        if columns.wanted:
            handle.model_hooks.append(columns.watch())
        if columns.steers:
            handle.model_hooks.append(norms.hold(model))
        return handle

    return patch_activations


def _hooks(original: Callable, replaced: Replacements, patching: list[Columns]) -> Callable:
    def create_additive_hook(
        target: Tensor, token_indices: Any, operator: Callable | None = None
    ) -> Callable:
        plain = original(target, token_indices, operator)
        edit = _edit(target, operator, replaced) if replaced.on and patching else None
        if edit is None:
            return plain
        columns, chosen = patching[-1], None
        columns.steers = True
        if token_indices not in _EVERY_TOKEN if isinstance(token_indices, slice) else True:
            chosen = token_indices
            if not columns.want():
                replaced.say_once("no stack of blocks was found, so where a token stands is not known")
                return plain

        def hook(module: nn.Module, inputs: Any, outputs: Any) -> Any:
            hidden = untuple_tensor(outputs)
            if not replaced.on or torch.compiler.is_compiling():
                return plain(module, inputs, outputs)
            if chosen is None and edit.again(hidden):
                return outputs
            if not edit.fits(hidden) or hidden.ndim != 3:
                return plain(module, inputs, outputs)
            token_row = None
            if chosen is not None:
                if not columns.fit(chosen, hidden):
                    return plain(module, inputs, outputs)
                token_row = columns.token_row(chosen, hidden)
            steered = edit(hidden, token_row, in_place=True)
            if steered is hidden:
                return outputs
            return (steered, *outputs[1:]) if isinstance(outputs, tuple) else steered

        return hook

    return create_additive_hook


_EVERY_TOKEN = (slice(None), slice(0, None))


def _edit(target: Tensor, operator: Callable | None, replaced: Replacements) -> Edit | None:
    """What a hook with this vector and operator does, None where the kernels have nothing for it."""
    code = getattr(operator, "__code__", None)
    if operator is not None and code not in (_PUSH, _ABLATE, _ABLATE_THEN_PUSH):
        replaced.say_once("the operator is a function of your own")
        return None
    if target.requires_grad:
        replaced.say_once("the vector wants a gradient")
        return None
    vectors = target.reshape(1, -1)
    if not finite(vectors):
        return None
    if code in (_ABLATE, _ABLATE_THEN_PUSH):
        return Edit(vectors, push=code is _ABLATE_THEN_PUSH, low=0.0, high=0.0)
    return Edit(vectors)


# ---- reading ---------------------------------------------------------------------------------------------


def _extract(original: Callable, replaced: Replacements, train: Any, norms: KernelNorms) -> Callable:
    """Activations of both sides of all samples, all layers, in one pass."""

    def extract_activations(
        model: nn.Module,
        tokenizer: Any,
        training_samples: Any,
        layers: list[int] | None = None,
        layer_type: Any = "decoder_block",
        layer_config: Any = None,
        move_to_cpu: bool = False,
        read_token_index: Any = -1,
        show_progress: bool = False,
        batch_size: int = 1,
        tqdm_desc: str = "Extracting activations",
    ) -> tuple[dict[int, list[Tensor]], dict[int, list[Tensor]]]:
        if not replaced.on or not len(training_samples):
            return original(
                model,
                tokenizer,
                training_samples,
                layers=layers,
                layer_type=layer_type,
                layer_config=layer_config,
                move_to_cpu=move_to_cpu,
                read_token_index=read_token_index,
                show_progress=show_progress,
                batch_size=batch_size,
                tqdm_desc=tqdm_desc,
            )
        fix_pad_token(tokenizer)
        modules = _modules(model, layers, layer_type, layer_config)
        samples = train._formalize_batch(training_samples)
        texts = [sample.positive_str for sample in samples] + [sample.negative_str for sample in samples]
        asked = [s.read_positive_token_index for s in samples] + [
            s.read_negative_token_index for s in samples
        ]
        tokens = tokenizer(texts)
        at = [
            _place(train._get_token_index(index, read_token_index, text), len(ids), text)
            for index, text, ids in zip(asked, texts, tokens["input_ids"])
        ]
        with norms.hold(model):
            found = last_tokens(
                model,
                modules,
                tokens,
                at,
                batch_size,
                lambda todo: tqdm.tqdm(todo, desc=tqdm_desc, disable=not show_progress),
            )
        if move_to_cpu:
            found = {layer: states.cpu() for layer, states in found.items()}
        half = len(samples)
        return (
            {layer: [found[layer][:half]] for layer in modules},
            {layer: [found[layer][half:]] for layer in modules},
        )

    return extract_activations


def _modules(model: nn.Module, layers: Any, layer_type: Any, layer_config: Any) -> dict[int, nn.Module]:
    config = guess_and_enhance_layer_config(model, layer_config, layer_type)
    if layer_type not in config:
        raise ValueError(f"layer_type {layer_type} not provided in layer config")
    names = collect_matching_layers(model, config[layer_type])
    return {
        number: get_module(model, name)
        for number, name in enumerate(names)
        if layers is None or number in layers or number - len(names) in layers
    }


def _place(index: int, length: int, text: str) -> int:
    if not -length <= index < length:
        raise IndexError(f"token {index} is to be read of a text of {length} tokens: {text!r}")
    return index % length
