"""PEFT's side of a training, run in an environment of its own: commands in, figures out, nothing of genmote.

    python others.py whole MODEL.gguf FOLDER
    python others.py learn FOLDER GIVEN.npz float32|nf4 THREADS

`whole` writes a GGUF model's weights as float32 for Transformers. `learn` trains LoRA on all linear layers, in the
order that `GIVEN` tells: windows `learn` and `judge` (N, T) of tokens, `order` (steps, batch), `rates` (steps,), `rank`
and `factor`. With `nf4` the base is in four bits (QLoRA) and layers are computed again on the way back. It takes a
command a line from standard input and answers each with a line of JSON: `steps K`, `judge`, `end`.
"""

import json
import resource
import sys
import time

import numpy as np
import torch
from transformers import AutoModelForCausalLM


def whole(model: str, folder: str) -> None:
    place, file = model.rsplit("/", 1)
    read = AutoModelForCausalLM.from_pretrained(place, gguf_file=file, dtype=torch.float32)
    del read.config.quantization_config
    plain = AutoModelForCausalLM.from_config(read.config, dtype=torch.float32)  # which may be saved
    plain.load_state_dict(read.state_dict())
    plain.save_pretrained(folder)


def adapted(folder: str, given: dict, kind: str):
    from peft import LoraConfig, get_peft_model, prepare_model_for_kbit_training

    if kind == "nf4":
        from transformers import BitsAndBytesConfig

        bits = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.float32)
        model = AutoModelForCausalLM.from_pretrained(folder, quantization_config=bits, device_map="cpu")
        model = prepare_model_for_kbit_training(
            model, use_gradient_checkpointing=True, gradient_checkpointing_kwargs={"use_reentrant": False}
        )
    else:
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    rank = int(given["rank"])
    model.config.use_cache = False
    settings = LoraConfig(
        r=rank,
        lora_alpha=float(given["factor"]) * rank,
        target_modules="all-linear",
        lora_dropout=0.0,
        task_type="CAUSAL_LM",
    )
    return get_peft_model(model, settings)


def learn(folder: str, file: str, kind: str, threads: int) -> None:
    torch.manual_seed(0)
    torch.set_num_threads(threads)
    given = dict(np.load(file))
    model = adapted(folder, given, kind)
    some = [p for p in model.parameters() if p.requires_grad]
    adam = torch.optim.AdamW(some, lr=1.0, weight_decay=0.0)
    done = 0

    def step() -> float:
        nonlocal done
        tokens = torch.from_numpy(given["learn"][given["order"][done]]).long()
        for group in adam.param_groups:
            group["lr"] = float(given["rates"][done])
        loss = model(input_ids=tokens, labels=tokens).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(some, 1.0)
        adam.step()
        adam.zero_grad(set_to_none=True)
        done += 1
        return float(loss.detach())

    def judge() -> float:
        model.eval()
        with torch.no_grad():
            windows = [torch.from_numpy(one[None]).long() for one in given["judge"]]
            found = float(np.mean([float(model(input_ids=one, labels=one).loss) for one in windows]))
        model.train()
        return found

    model.train()
    answer({"ready": True, "learnt": sum(p.numel() for p in some)})
    for line in sys.stdin:
        what, *count = line.split()
        if what == "steps":
            seconds, losses = [], []
            for _ in range(int(count[0])):
                began = time.perf_counter()
                losses.append(step())
                seconds.append(time.perf_counter() - began)
            answer({"seconds": seconds, "losses": losses})
        elif what == "judge":
            answer({"loss": judge()})
        else:
            break
    answer({"peak_rss_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024})


def answer(values: dict) -> None:
    print(json.dumps(values), flush=True)


if __name__ == "__main__":
    if sys.argv[1] == "whole":
        whole(sys.argv[2], sys.argv[3])
    else:
        learn(sys.argv[2], sys.argv[3], sys.argv[4], int(sys.argv[5]))
