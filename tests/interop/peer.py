"""The side of the exchange that is not weft: transformers and PEFT of one generation.
  peer.py version                       their versions
  peer.py write SIZE BASES OUT [FROM]   base models (of FROM's weights, where given) and an adapter a variant
  peer.py golden GOLDENS OUT            adapters for the suite's own goldens, with outputs and gradients
  peer.py read BASES DIR RESULTS        loads what weft wrote and appends how far the outputs lie apart
Outputs are compared as max|a - b| / max|b|. Any warning is part of a result."""
import contextlib
import io
import json
import logging
import os
import sys
import warnings

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "warning")

import peft
import torch
import transformers
from safetensors.torch import load_file, save_file
from transformers import AutoModel, AutoModelForCausalLM, AutoTokenizer, AutoImageProcessor

GENERATION = int(transformers.__version__.split(".")[0])
HERE = os.path.dirname(os.path.abspath(__file__))
RENAMED = {"query": "q_proj", "key": "k_proj", "value": "v_proj", "dense": "o_proj", "weights_out": "down_proj"}
SIZES = {
    "tiny": dict(hidden_size=24, num_hidden_layers=3, num_attention_heads=2, image_size=56, patch_size=14),
    "base": dict(hidden_size=768, num_hidden_layers=12, num_attention_heads=12, image_size=518, patch_size=14),
}
LLAMAS = {
    "tiny": dict(vocab_size=64, hidden_size=24, num_hidden_layers=2, intermediate_size=40, num_attention_heads=2),
    "base": dict(vocab_size=32768, hidden_size=384, num_hidden_layers=7, intermediate_size=1024, num_attention_heads=6),
}


class Heard:
    """Collects what the libraries warn of, on any channel."""

    def __enter__(self):
        self.lines, self.stack = [], contextlib.ExitStack()
        self.caught = self.stack.enter_context(warnings.catch_warnings(record=True))
        warnings.simplefilter("always")
        self.handler = logging.Handler(logging.WARNING)
        self.handler.emit = lambda record: self.lines.append(record.getMessage())
        for name in ("transformers", "peft"):
            logging.getLogger(name).addHandler(self.handler)
        self.err = self.stack.enter_context(contextlib.redirect_stderr(io.StringIO()))
        return self

    def __exit__(self, *_):
        for name in ("transformers", "peft"):
            logging.getLogger(name).removeHandler(self.handler)
        self.lines += [str(w.message) for w in self.caught if not issubclass(w.category, (DeprecationWarning, FutureWarning))]
        self.stack.close()

    def text(self):
        return "; ".join(dict.fromkeys(" ".join(line.split())[:300] for line in self.lines))


def renamed(variant):
    """A variant's settings by the names of this generation."""
    settings = dict(variant["peft"])
    if GENERATION < 5 or variant.get("model") == "llama":
        return settings
    for key in ("target_modules", "modules_to_save", "exclude_modules"):
        if isinstance(settings.get(key), list):
            settings[key] = [RENAMED.get(name, name) for name in settings[key]]
    for key in ("rank_pattern", "alpha_pattern"):
        if key in settings:
            settings[key] = {RENAMED.get(name, name): v for name, v in settings[key].items()}
    return {**settings, **variant.get("transformers5", {})}


def noise(model, scale=0.05):
    with torch.no_grad():
        for p in model.parameters():
            if p.requires_grad:
                p.add_(torch.randn_like(p) * scale)


def fresh(kind, size):
    torch.manual_seed(7)
    if kind == "llama":
        # another base than the default, which each generation keeps in its own place
        theta = {"rope_theta": 5000.0} if GENERATION < 5 else {"rope_parameters": {"rope_theta": 5000.0, "rope_type": "default"}}
        config = transformers.LlamaConfig(**LLAMAS[size], num_key_value_heads=LLAMAS[size]["num_attention_heads"], tie_word_embeddings=True,
                                          max_position_embeddings=128, **theta, pad_token_id=0, bos_token_id=1, eos_token_id=2)
        return transformers.LlamaForCausalLM(config)
    if kind == "registers":
        model = transformers.Dinov2WithRegistersModel(transformers.Dinov2WithRegistersConfig(**SIZES[size], num_register_tokens=4))
    else:
        model = transformers.Dinov2Model(transformers.Dinov2Config(**SIZES[size], use_swiglu_ffn=kind == "swiglu"))
    noise(model, 0.01)
    return model


def load(path):
    auto = AutoModelForCausalLM if "llama" in os.path.basename(path) or os.path.basename(path) == "language" else AutoModel
    return auto.from_pretrained(path).eval()


def inputs(kind, size):
    g = torch.Generator().manual_seed(3)
    if kind == "llama":
        return {"input_ids": torch.randint(3, LLAMAS[size]["vocab_size"], (2, 9), generator=g)}
    side = (70, 42) if size == "tiny" else (224, 224)
    return {"pixel_values": torch.randn(1 if size == "base" else 2, 3, *side, generator=g)}


def output(model, given):
    with torch.no_grad():
        out = model(**given)
    return out.logits if hasattr(out, "logits") else out.last_hidden_state


def apart(a, b):
    return ((a.double() - b.double()).abs().max() / b.double().abs().max()).item()


def variants():
    with open(HERE + "/variants.json") as f:
        return json.load(f)


def write(size, bases, out, source=None):
    os.makedirs(bases, exist_ok=True)
    kinds = ("dinov2", "registers", "swiglu", "llama") if size == "tiny" else ("dinov2", "llama")
    for kind in kinds:
        model = load(source + "/" + kind) if source else fresh(kind, size).eval()
        model.save_pretrained(bases + "/" + kind)
        given = inputs(kind, size)
        save_file({**given, "output": output(model, given).contiguous()}, bases + "/" + kind + "/io.safetensors")
    for v in variants():
        kind = v.get("model", "dinov2")
        if kind not in kinds:
            continue
        try:
            write_one(v, kind, size, bases, out + "/" + v["name"])
        except Exception as e:  # one that this generation can't make is a line of the table
            with open(out + "/" + v["name"] + ".cannot", "w") as f:
                f.write("%s: %s" % (type(e).__name__, e))


def write_one(v, kind, size, bases, where):
    os.makedirs(where, exist_ok=True)
    torch.manual_seed(11)
    model = load(bases + "/" + kind)
    settings = dict(r=4, lora_alpha=8)
    settings.update(renamed(v))
    model = peft.get_peft_model(model, peft.LoraConfig(**settings)).eval()
    options = {}
    if v.get("mutated"):
        way = model.peft_config["default"].init_lora_weights
        model.peft_config["default"].init_lora_weights = True
        model.save_pretrained(where + "-begin")
        model.peft_config["default"].init_lora_weights = way
        options["path_initial_model_for_weight_conversion"] = where + "-begin"
    noise(model, v.get("scale", 0.01 if v.get("mutated") else 0.05))
    given = inputs(kind, size)
    trained = output(model, given)
    model.save_pretrained(where, **options)
    with Heard() as heard:
        back = peft.PeftModel.from_pretrained(load(bases + "/" + kind), where).eval()
    meant = output(back, given)
    # PEFT 0.17 cannot read its own adapters of modules with "weight" in their name: what it trained counts
    if "missing adapter keys" in heard.text():
        meant = trained
    save_file({**given, "output": meant.contiguous(), "trained": trained.clone().contiguous()}, where + "/io.safetensors")


def read(bases, folder, results):
    with open(results, "a") as out:
        for name in sorted(os.listdir(folder)):
            path = folder + "/" + name
            if not os.path.exists(path + "/about.json"):
                continue
            with open(path + "/about.json") as f:
                about = json.load(f)
            if about["generations"] and GENERATION not in about["generations"]:
                continue
            row = {"size": about["size"], "variant": about["variant"], "way": "we write, %d reads" % GENERATION}
            try:
                with Heard() as heard:
                    if about["kind"] == "adapter":
                        model = peft.PeftModel.from_pretrained(load(bases + "/" + about["base"]), path).eval()
                    else:
                        model = exported(path)
                    io_ = load_file(path + "/io.safetensors")
                    expected = io_.pop("output")
                    row["difference"] = apart(output(model, io_), expected)
                # of any adapter on a table that is tied, one of its own too, PEFT says this
                row["heard"] = "; ".join(x for x in heard.text().split("; ") if "tie_word_embeddings" not in x)
                if about.get("cannot", {}).get(str(GENERATION)):
                    row = {"size": row["size"], "variant": row["variant"], "way": row["way"], "skipped": about["cannot"][str(GENERATION)]}
            except Exception as e:
                row["failed"] = "%s: %s" % (type(e).__name__, " ".join(str(e).split())[:400])
            out.write(json.dumps(row) + "\n")


def exported(path):
    """A directory of `weft export`, with what lies beside the weights."""
    model = load(path)
    if os.path.exists(path + "/tokenizer.json"):
        tokenizer = AutoTokenizer.from_pretrained(path)
        with open(path + "/words.json") as f:
            for text, ids in json.load(f):
                mine = tokenizer(text, add_special_tokens=False)["input_ids"]
                if mine != ids:
                    raise ValueError("the tokenizer splits %r into %s, weft into %s" % (text, mine, ids))
                if tokenizer.decode(ids) != text:
                    raise ValueError("the tokenizer joins %s to %r, not to %r" % (ids, tokenizer.decode(ids), text))
        if None in (tokenizer.pad_token_id, tokenizer.eos_token_id, tokenizer.bos_token_id):
            raise ValueError("the tokenizer lacks a token that begins, ends or pads")
        model.generate(torch.tensor([[tokenizer.bos_token_id, 5]]), max_new_tokens=4)
    if os.path.exists(path + "/preprocessor_config.json"):
        from PIL import Image

        rule = AutoImageProcessor.from_pretrained(path, **({"backend": "pil"} if GENERATION >= 5 else {"use_fast": False}))
        image = Image.open(path + "/picture.png").convert("RGB")
        pixels = rule(image, return_tensors="pt")["pixel_values"]
        mine = load_file(path + "/pixels.safetensors")["pixel_values"]
        if pixels.shape != mine.shape or (pixels - mine).abs().max() > 0.02:
            raise ValueError("its processor prepares a picture otherwise than weft")
    return model


GOLDENS = {
    "conv2d": ("dinov2_mlp", dict(target_modules=["projection", "query"], lora_bias=True)),
    "conv2d_dora": ("dinov2_mlp", dict(target_modules=["projection"], use_dora=True)),
    "embedding": ("llama_tiny", dict(target_modules=["embed_tokens", "down_proj"])),
    "embedding_dora": ("llama_tiny", dict(target_modules=["embed_tokens"], use_dora=True, use_rslora=True)),
    "gates": ("dinov2_swiglu", dict(target_modules=["gate_proj", "up_proj", "down_proj"], rank_pattern={"up_proj": 3})),
    "gates_dora": ("dinov2_swiglu", dict(target_modules=["gate_proj", "up_proj"], use_dora=True)),
    "one_gate": ("dinov2_swiglu", dict(target_modules=["up_proj"])),
}


def golden(goldens, out):
    """What torch and PEFT compute with adapters on the models among the goldens. Gates exist in generation 5 alone."""
    for name, (base, settings) in GOLDENS.items():
        if ("gate" in name) != (GENERATION == 5):
            continue
        torch.manual_seed(19)
        where = out + "/" + name
        auto = AutoModelForCausalLM if base.startswith("llama") else AutoModel
        model = peft.get_peft_model(auto.from_pretrained(goldens + "/" + base), peft.LoraConfig(r=2, lora_alpha=3, **settings)).eval()
        noise(model, 0.1)
        if base.startswith("llama"):
            given = {"input_ids": torch.randint(3, 211, (2, 7))}
        else:
            given = {"pixel_values": torch.randn(2, 3, 42, 28)}
        y = model(**given)
        y = y.logits if hasattr(y, "logits") else y.last_hidden_state
        weight = torch.randn_like(y)
        (y * weight).sum().backward()
        state = {**given, "output": y.detach(), "loss_weight": weight}
        for key, p in model.named_parameters():
            if p.grad is not None:
                state["grad." + key.replace(".default", "")] = p.grad
        model.base_model.model.name_or_path = base
        model.peft_config["default"].base_model_name_or_path = base
        model.save_pretrained(where, save_embedding_layers=False)
        os.remove(where + "/README.md")
        save_file({k: v.contiguous() for k, v in state.items()}, where + "/io.safetensors")


if __name__ == "__main__":
    if sys.argv[1] == "version":
        print("transformers %s, PEFT %s, torch %s" % (transformers.__version__, peft.__version__, torch.__version__))
    elif sys.argv[1] == "golden":
        golden(*sys.argv[2:])
    elif sys.argv[1] == "write":
        write(*sys.argv[2:])
    else:
        read(*sys.argv[2:])
