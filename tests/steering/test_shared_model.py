"""A steered model among everything else that is done with models: copies, other people's hooks, modes, threads."""

import copy
import io
import pickle
import subprocess
import sys
import threading

import pytest
import torch
import transformers
from torch import nn

import emosteer as es

from ..patience import PATIENCE
from .conftest import padded, random_bank, streams

IDS, MASK = padded([[5, 6, 7, 8], [9, 10]])
PROGRAMS = [es.add("calm", 0.3), es.cap("angry", 0.0) + es.hold("weary", 0.2)]


@torch.no_grad()
def logits(model, **kwargs):
    return model(input_ids=IDS, attention_mask=MASK, **kwargs).logits


# ---- copies ---------------------------------------------------------------------------------------


def by_deepcopy(model):
    return copy.deepcopy(model)


def by_pickle(model):
    return pickle.loads(pickle.dumps(model))


def by_torch_save(model):
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    # Its own bytes, made a line above; a whole module has no other way of being loaded.
    return torch.load(file, weights_only=False)


def by_cloudpickle(model):
    """How Ray sends an object to a worker."""
    cloudpickle = pytest.importorskip("ray.cloudpickle", reason="Ray is not installed: pip install ray")
    return pickle.loads(cloudpickle.dumps(model))


@pytest.mark.parametrize("copied", [by_deepcopy, by_pickle, by_torch_save, by_cloudpickle])
def test_a_copy_is_a_model_of_its_own(model, bank, copied):
    """Unsteered, answering from its own weights, during the steering of the original and after."""
    clean = logits(model)
    with es.steer(model, bank, PROGRAMS, layers="all"), es.monitor(model, _readable(model, bank), layers=[1]):
        steered = logits(model)
        other = copied(model)
        assert torch.equal(logits(other), clean)
        for parameter in other.parameters():
            parameter.data.zero_()
        assert not logits(other).any()
        text = other.generate(
            input_ids=IDS, attention_mask=MASK, max_new_tokens=2, do_sample=False, pad_token_id=0
        )
        assert text.shape == (2, 6)
        assert torch.equal(logits(model), steered)
    assert not logits(other).any()
    assert torch.equal(logits(model), clean)


def test_a_copy_can_be_steered_for_itself(model, bank):
    with es.steer(model, bank, PROGRAMS, layers="all"):
        expected, other = logits(model), copy.deepcopy(model)
        with es.steer(other, bank, PROGRAMS, layers="all"):
            torch.testing.assert_close(logits(other), expected)
    with es.steer(other, bank, PROGRAMS, layers="all"):
        torch.testing.assert_close(logits(other), expected)


def test_a_copy_of_a_part(model, bank):
    clean = model.model.layers[1].mlp.gate_proj.weight.clone()
    with es.steer(model, bank, PROGRAMS, layers="all"):
        blocks = copy.deepcopy(model.model.layers)
        blocks[1].mlp.gate_proj.weight.data.zero_()
    assert torch.equal(model.model.layers[1].mlp.gate_proj.weight, clean)
    assert blocks[1].forward.__self__ is blocks[1]


def test_a_spawned_process_gets_a_plain_model(model, bank, tmp_path):
    clean = logits(model)
    with es.steer(model, bank, PROGRAMS, layers="all"):
        (tmp_path / "model.pickle").write_bytes(pickle.dumps(model))
    code = (
        "import pickle, sys, torch; torch.set_grad_enabled(False)\n"
        "m = pickle.load(open(sys.argv[1], 'rb')); assert 'emosteer' not in sys.modules, 'a copy needs no emosteer'\n"
        "ids, mask = torch.tensor([[5,6,7,8],[0,0,9,10]]), torch.tensor([[1,1,1,1],[0,0,1,1]])\n"
        "torch.save(m(input_ids=ids, attention_mask=mask).logits, sys.argv[2])"
    )
    path = tmp_path / "logits.pt"
    subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "model.pickle"), str(path)], check=True, timeout=PATIENCE
    )
    torch.testing.assert_close(torch.load(path, weights_only=True), clean, rtol=1e-5, atol=1e-5)


def test_accelerate_prepares_a_steered_model(model, bank):
    accelerate = pytest.importorskip("accelerate", reason="pip install accelerate")
    clean = logits(model)
    with es.steer(model, bank, PROGRAMS, layers="all"):
        expected = logits(model)
        prepared = accelerate.Accelerator(cpu=True).prepare_model(model, evaluation_mode=True)
        torch.testing.assert_close(logits(prepared), expected)
    torch.testing.assert_close(logits(prepared), clean)


# ---- other people's hooks -------------------------------------------------------------------------


def replacing(module, args, output):
    return output * 0.5 + 1.0


@pytest.mark.parametrize("when", ["before", "inside", "between"])
@pytest.mark.parametrize("kind", ["block", "next block", "norm", "every module"])
def test_hooks_see_and_change_what_they_would_unfused(model, bank, when, kind):
    """Whenever they were registered: recorders, and hooks that replace what they see."""
    block, following = model.model.layers[1], model.model.layers[2]
    seen = []

    def looking(module, args, *output):
        if module in (block, following, following.input_layernorm):
            tensor = output[0] if output else args[0]
            seen.append((tensor[0] if isinstance(tensor, tuple) else tensor).clone())

    def changing(module, args):
        return (args[0] * 0.5 + 1.0, *args[1:])

    def register():
        if kind == "block":
            return [block.register_forward_hook(looking), block.register_forward_hook(replacing)]
        if kind == "every module":
            return [nn.modules.module.register_module_forward_hook(looking)]
        module = following if kind == "next block" else following.input_layernorm
        return [module.register_forward_pre_hook(looking), module.register_forward_pre_hook(changing)]

    def run(fused):
        handles = register() if when == "before" else []
        steering = es.steer(model, bank, PROGRAMS, layers="all", fused=fused)
        with steering:
            logits(model)
        handles += register() if when == "between" else []
        with steering:
            handles += register() if when == "inside" else []
            seen.clear()
            out = logits(model)
        for handle in handles:
            handle.remove()
        return out, list(seen)

    expected, unfused = run(fused=False)
    got, fused = run(fused=True)
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)
    assert len(fused) == len(unfused) > 0
    for a, b in zip(fused, unfused):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


def test_a_hook_that_is_gone_lets_the_norms_steer_again(model, bank):
    with es.steer(model, bank, PROGRAMS, layers="all") as steering:
        expected = logits(model)
        handle = model.model.layers[1].register_forward_hook(lambda *_: None)
        torch.testing.assert_close(logits(model), expected, rtol=1e-4, atol=1e-4)
        handle.remove()
        assert torch.equal(logits(model), expected)
        assert "steered inside" in steering.report()


# ---- modes ----------------------------------------------------------------------------------------


def test_made_in_inference_mode_and_trained_with(model):
    with torch.inference_mode():
        bank = random_bank(model)
        steering = es.steer(model, bank, PROGRAMS, layers="all")
        with steering:
            expected = logits(model)
    for made in (steering, es.steer(model, bank, PROGRAMS, layers="all")):
        with made:
            out = model(input_ids=IDS, attention_mask=MASK).logits
            torch.testing.assert_close(out.detach(), expected, rtol=1e-4, atol=1e-4)
            out.square().mean().backward()
            made.set(0, es.add("calm", 0.2))
            assert not torch.equal(logits(model), expected)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_the_dtype_changes_while_steered(model, bank, dtype):
    with es.steer(model, bank, PROGRAMS, layers="all", fused=False):
        model.to(dtype)
        expected = logits(model).double()
        model.float()
    with es.steer(model, bank, PROGRAMS, layers="all"):
        logits(model)
        model.to(dtype)
        got = logits(model).double()
        model.float()
    room = {torch.float64: 1e-6, torch.bfloat16: 0.15, torch.float16: 0.02}[dtype]
    assert (got - expected).norm() <= room * expected.norm()


def test_a_model_in_double_precision(model, bank):
    """Against the formula by hand, in float64."""
    model.double()
    v, scale = bank.directions[1][0].double(), bank.scale[1]

    def by_hand(block, args, output):
        y = output + 0.25 * scale * v
        return y * (output.norm(dim=-1, keepdim=True) / y.norm(dim=-1, keepdim=True))

    handle = model.model.layers[1].register_forward_hook(by_hand)
    expected = logits(model)
    handle.remove()
    with es.steer(model, bank, "calm", 0.25, layers=[1]):
        got = logits(model)
    keep = MASK.bool()
    torch.testing.assert_close(got[keep], expected[keep], rtol=1e-9, atol=1e-9)


def test_weights_loaded_while_steered(model, bank):
    other = {name: w + 0.01 * torch.randn_like(w) for name, w in model.state_dict().items()}
    before = {name: w.clone() for name, w in model.state_dict().items()}
    with es.steer(model, bank, PROGRAMS, layers="all"):
        logits(model)
        model.load_state_dict(other)
        got = logits(model)
    with es.steer(model, bank, PROGRAMS, layers="all", fused=False):
        torch.testing.assert_close(got, logits(model), rtol=1e-4, atol=1e-4)
    model.load_state_dict(before)


def test_autocast(model, bank):
    with torch.autocast("cpu", torch.bfloat16):
        with es.steer(model, bank, PROGRAMS, layers="all", fused=False):
            expected = logits(model).double()
        with es.steer(model, bank, PROGRAMS, layers="all"):
            got = logits(model).double()
    assert (got - expected).norm() < 0.05 * expected.norm()


def test_functional_call_and_its_gradient(model, bank):
    """The steered model as a function of its weights, under torch.func."""
    weights = {name: p.detach() * 1.01 for name, p in model.named_parameters()}

    def loss(weights):
        call = {"input_ids": IDS, "attention_mask": MASK, "use_cache": False}
        return torch.func.functional_call(model, weights, (), call).logits.square().mean()

    with es.steer(model, bank, PROGRAMS, layers="all"):
        gradients = torch.func.grad(loss)(weights)
        tracked = {name: w.clone().requires_grad_() for name, w in weights.items()}
        loss(tracked).backward()
    for name, w in tracked.items():
        torch.testing.assert_close(gradients[name], w.grad, rtol=1e-3, atol=1e-6)


def test_norms_behind_the_hooks_of_accelerate(model, bank):
    """Hooks that only place inputs end no fusion."""
    accelerate = pytest.importorskip("accelerate", reason="pip install accelerate")
    with es.steer(model, bank, PROGRAMS, layers="all"):
        expected = logits(model)
    placed = accelerate.dispatch_model(model, {"": "cpu"}, main_device="cpu", force_hooks=True)
    with es.steer(placed, bank, PROGRAMS, layers="all") as steering:
        torch.testing.assert_close(logits(placed), expected, rtol=1e-4, atol=1e-4)
        assert "steered inside" in steering.report()


# ---- threads --------------------------------------------------------------------------------------


def in_thread(work):
    caught = []

    def run():
        try:
            work()
        except BaseException as error:
            caught.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join(60)
    return caught[0] if caught else None


def test_two_threads_do_not_steer_one_model(model, bank):
    with es.steer(model, bank, "calm", 0.3):
        error = in_thread(lambda: es.steer(model, bank, "angry", 0.3).attach())
        assert isinstance(error, RuntimeError)
        assert "Attach one steering with a program a row" in str(error)
    assert in_thread(lambda: es.steer(model, bank, "angry", 0.3).attach().detach()) is None


def test_a_pool_of_threads_takes_a_row_each(model, bank):
    """The pattern of a server: one steering, a row a request."""
    one = {"input_ids": IDS[:1], "attention_mask": MASK[:1]}
    settings = dict(max_new_tokens=4, min_new_tokens=4, do_sample=False, pad_token_id=0)
    programs = [es.add("calm", 0.4), es.add("angry", 0.4), None, es.ablate("proud")]
    expected = []
    for program in programs:
        with es.steer(model, bank, program, layers="all", positions="generated"):
            expected.append(model.generate(**one, **settings).tolist())
    found = {}
    with es.steer(model, bank, programs, layers="all", positions="generated") as steering:

        def serve(k):
            for _ in range(3):
                with steering.batch([k]):
                    found.setdefault(k, []).append(model.generate(**one, **settings).tolist())

        threads = [threading.Thread(target=serve, args=(k,)) for k in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert found == {k: [expected[k]] * 3 for k in range(4)}


def test_leaving_while_another_thread_generates_is_told(model, bank):
    started, go_on = threading.Event(), threading.Event()

    def wait(ids, scores):
        started.set()
        go_on.wait(PATIENCE)
        return scores

    def generate():
        model.generate(
            input_ids=IDS, attention_mask=MASK, max_new_tokens=3, pad_token_id=0, logits_processor=[wait]
        )

    thread = threading.Thread(target=generate)
    steering = es.steer(model, bank, "calm", 0.3).attach()
    thread.start()
    assert started.wait(PATIENCE)
    with pytest.raises(RuntimeError, match="another thread still generates"):
        steering.detach()
    go_on.set()
    thread.join(60)


# ---- guidance, and other texts beside -------------------------------------------------------------


@pytest.mark.parametrize("negative", [False, True])
@pytest.mark.parametrize("positions", ["all", "prompt", "generated", slice(-2, None)], ids=str)
def test_guidance_steers_both_texts(model, bank, positions, negative):
    """Against steering both sequences by hand: each has a prompt of its own."""
    ids, mask = padded([[5, 6, 7, 8, 9]])
    beside = torch.tensor([[21, 22, 23]]) if negative else ids[:, -1:]
    new = 4
    follow = torch.randint(5, 200, (1, new), generator=torch.Generator().manual_seed(2))

    def only(batch, sent):
        return [int(follow[0, len(sent) - ids.shape[1]])]

    with es.steer(model, bank, es.add("calm", 0.4), layers=[1], positions=positions, fused=False) as steering:
        with streams(model) as seen:
            model.generate(
                input_ids=ids,
                attention_mask=mask,
                guidance_scale=1.5,
                max_new_tokens=new,
                min_new_tokens=new,
                do_sample=False,
                pad_token_id=0,
                prefix_allowed_tokens_fn=only,
                **({"negative_prompt_ids": beside} if negative else {}),
            )
        main = torch.cat([layers[1] for layers in seen[0::2]], 1)
        other = torch.cat([layers[1] for layers in seen[1::2]], 1)
        for prompt, got in ((ids, main), (beside, other)):
            whole = torch.cat([prompt, follow[:, : new - 1]], 1)
            token = torch.zeros_like(whole)
            token[:, : prompt.shape[1]] = 1
            known = token[:, : prompt.shape[1]]
            with steering.batch(prompt_mask=known), streams(model) as by_hand, torch.no_grad():
                model(input_ids=whole, attention_mask=torch.ones_like(whole))
            torch.testing.assert_close(got, by_hand[0][1], rtol=1e-4, atol=1e-4)


def test_guidance_without_a_cache_is_refused_where_it_cannot_be_told(model, bank):
    call = dict(input_ids=IDS, attention_mask=MASK, guidance_scale=1.5, use_cache=False, max_new_tokens=2)
    with (
        es.steer(model, bank, "calm", 0.3, positions="generated"),
        pytest.raises(ValueError, match="two texts"),
    ):
        model.generate(**call)
    with es.steer(model, bank, "calm", 0.3):
        model.generate(**call, pad_token_id=0)


@pytest.mark.skipif(transformers.__version__ < "5", reason="an older continuous batching")
def test_one_program_in_a_packed_batch(model, bank):
    """Each request is what `generate` makes of it alone."""
    from transformers.generation.configuration_utils import ContinuousBatchingConfig

    prompts, new = [[5, 6, 7], [8, 9], [10, 11, 12, 13]], 6
    usual = dict(max_new_tokens=new, do_sample=False, pad_token_id=0)
    how = transformers.GenerationConfig(**usual, eos_token_id=-1)
    room = ContinuousBatchingConfig(num_blocks=16, max_batch_tokens=64)

    def packed():
        found = model.generate_batch(
            prompts, generation_config=how, continuous_batching_config=room, warmup=False
        )
        return [one.generated_tokens for one in found.values()]

    clean = packed()
    with es.steer(model, bank, "calm", 0.5, layers="all"):
        alone = [
            model.generate(input_ids=torch.tensor([ids]), **usual, min_new_tokens=new, eos_token_id=None)[0]
            for ids in prompts
        ]
        assert packed() == [row[len(ids) :].tolist() for row, ids in zip(alone, prompts)] != clean
    assert packed() == clean


def test_packed_batches_are_refused(model, bank):
    if not hasattr(model, "generate_batch"):
        pytest.skip("this version of transformers has no continuous batching")
    for program, positions in ((["calm", "angry"], "all"), (["calm"], "generated")):
        with (
            es.steer(model, bank, program, 0.3, positions=positions),
            pytest.raises(ValueError, match="packs many requests into one row of tokens"),
        ):
            model.generate_batch([[5, 6, 7], [8, 9]])
    assert "generate_batch" not in model.__dict__


def test_the_strength_given_at_the_start_holds(model, bank):
    steering = es.steer(model, bank, ["calm", "calm"], 0.05)
    steering.set(1, "angry")
    assert steering.programs == (es.add("calm", 0.05), es.add("angry", 0.05))
    steering.set(0, "angry", 0.2)
    steering.set_all(["proud", None])
    assert steering.programs == (es.add("proud", 0.05), es.programs.Program())
    several = es.steer(model, bank, ["calm", "angry"], [0.1, 0.2])
    several.set(1, "proud")
    assert several.programs[1] == es.add("proud", 0.2)
    with pytest.raises(ValueError, match="needs a strength"):
        es.steer(model, bank, es.ablate("calm")).set(0, "angry")


def _readable(model, bank):
    from ..test_monitoring import bank_with_statistics

    return bank_with_statistics(model)
